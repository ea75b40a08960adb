//! `refshim`: see the library for the guided tour.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    refshim::cli::Cli::typed().run()
}
