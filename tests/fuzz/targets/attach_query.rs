#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| refshim::fuzzing::attach_query(bytes));
