//! Numbers and names that nothing else has.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::{SystemTime, UNIX_EPOCH};

/// A version that no referrer had: the time, and chance.
pub(super) fn fresh_version() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    // 2^63 is in the year 2255.
    i64::try_from((now << 10) | u128::from(random() % 1024)).unwrap_or(i64::MAX)
}

/// A name that nothing else has.
pub(crate) fn unique() -> String {
    format!("{:016x}{:016x}", fresh_version(), random())
}

/// Some number.
pub(super) fn random() -> u64 {
    // The standard library seeds each of these anew.
    RandomState::new().build_hasher().finish()
}
