//! Properties of the configuration for any text as its file.
#![allow(clippy::missing_panics_doc, reason = "a panic is how these report a failure")]

use std::path::Path;

use super::load::settle;
use super::{file, load};

/// The text of a TOML file.
pub fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let contents = file::read(Path::new("refshim.toml"), text);
    let is_whole = contents.is_whole;
    let faults = contents.said.iter().filter(|said| said.is_err()).count();
    assert!(is_whole || faults > 0, "what cannot be parsed is reported");
    let given = contents.said.iter().flatten().any(|said: &load::StatedValue| said.setting.is_upstream());
    match settle(contents.said, None) {
        Ok(loaded) => {
            assert!(is_whole && given && faults == 0);
            assert!(!loaded.config.upstream.url.authority().host().is_empty());
        }
        Err(mistakes) => {
            let told = mistakes.to_string();
            assert!(!told.is_empty() || !given);
            assert!(told.lines().all(|line| !line.contains(char::is_control)), "{told:?}");
        }
    }
}
