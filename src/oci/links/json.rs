//! Parses JSON member by member: other members are skipped, and one element of a list is held at a time.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;

pub(super) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

/// Rejects lists: serde would parse a struct from a list too, and a list is not a descriptor.
pub(super) fn parse_raw<'a, T: Deserialize<'a>>(value: &'a RawValue) -> Option<T> {
    if value.get().starts_with('[') {
        return None;
    }
    serde_json::from_str(value.get()).ok()
}

pub(super) fn text(value: Option<&RawValue>) -> Option<Cow<'_, str>> {
    value.and_then(parse_raw)
}

pub(super) fn annotations(value: &RawValue) -> BTreeMap<String, String> {
    let values: BTreeMap<String, &RawValue> = parse_raw(value).unwrap_or_default();
    values.into_iter().filter_map(|(key, value)| Some((key, text(Some(value))?.into_owned()))).collect()
}

/// Calls `visit` with each element of a JSON list, holding one at a time. False if it is not a list.
pub(super) fn each_element<'a>(list: &'a RawValue, visit: impl FnMut(usize, &'a RawValue)) -> bool {
    struct Elements<F>(F);
    impl<'de, F: FnMut(usize, &'de RawValue)> serde::de::Visitor<'de> for Elements<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
            let mut position = 0;
            while let Some(element) = list.next_element::<&'de RawValue>()? {
                (self.0)(position, element);
                position += 1;
            }
            Ok(())
        }
    }
    let mut list = serde_json::Deserializer::from_str(list.get());
    serde::Deserializer::deserialize_seq(&mut list, Elements(visit)).is_ok()
}
