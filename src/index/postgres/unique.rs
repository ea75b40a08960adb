//! Numbers and names that nothing else has.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::{SystemTime, UNIX_EPOCH};

/// How many versions there are in a microsecond. The first of them is left to copies.
const VERSIONS: i64 = 1 << 10;

/// A version that no referrer had: the time, and chance.
pub(super) fn fresh_version() -> i64 {
    let chance = i64::try_from(random() % 1023).unwrap_or(0);
    copied_version(0).saturating_add(1 + chance)
}

/// A version of a referrer that is copied from another index, higher than `before`.
pub(super) fn copied_version(before: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    // 2^63 is in the year 2255.
    let now = i64::try_from(now).unwrap_or(0).saturating_mul(VERSIONS);
    now.max((before / VERSIONS).saturating_add(1).saturating_mul(VERSIONS))
}

/// Whether a referrer is as it was copied: every change raises the revision above the version that it began with, and
/// nothing but a copy begins with such a version.
pub(super) fn is_as_copied(version: i64, revision: i64) -> bool {
    version == revision && version % VERSIONS == 0
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
