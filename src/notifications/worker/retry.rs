//! Whether and when an event is tried again. The client waits for a registry that throttles or fails, too; these are
//! the pauses after it gave up.

use std::time::Duration;

use crate::queue;
use crate::telemetry::EventFailure;

/// How long the registry may not show what it told of. Quay, and distribution on S3, lag by seconds.
const MISSING_FOR: Duration = Duration::from_secs(120);
const FIRST_WHILE_MISSING: Duration = Duration::from_millis(250);
const LONGEST_WHILE_MISSING: Duration = Duration::from_secs(30);
/// How long after its event a tag may still be moved.
const TAG_SETTLES: Duration = Duration::from_secs(30);
const FIRST_FOR_TAG: Duration = Duration::from_millis(50);
const LONGEST_FOR_TAG: Duration = Duration::from_secs(10);
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

/// The pause until an event is tried again that was told so long ago and tried so often before; nothing if it is given
/// up.
pub(super) fn pause(
    reason: EventFailure,
    tried: u32,
    age: Duration,
    give_up_after: Duration,
) -> Option<Duration> {
    let (first, longest, until) = match reason {
        EventFailure::Missing => (FIRST_WHILE_MISSING, LONGEST_WHILE_MISSING, MISSING_FOR.min(give_up_after)),
        EventFailure::Denied | EventFailure::Failed | EventFailure::Index => (FIRST, LONGEST, give_up_after),
        // It will be no other one.
        EventFailure::Unreadable => return None,
    };
    (age < until).then(|| queue::pause(first, longest, tried))
}

/// The pause until it is looked again where the tag of an event is; nothing if that will not change any more.
pub(super) fn pause_for_tag(tried: u32, age: Duration) -> Option<Duration> {
    (age < TAG_SETTLES).then(|| queue::pause(FIRST_FOR_TAG, LONGEST_FOR_TAG, tried))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[track_caller]
    fn check(reason: EventFailure, tried: u32, age: u64, expected: Option<u64>) {
        let found = pause(reason, tried, Duration::from_secs(age), DAY);
        assert_eq!(found, expected.map(Duration::from_millis), "{reason:?} {tried} {age}");
    }

    #[test]
    fn pauses_grow_to_a_bound_and_end_with_the_events_age() {
        check(EventFailure::Missing, 0, 0, Some(250));
        check(EventFailure::Missing, 3, 2, Some(2_000));
        check(EventFailure::Missing, 40, 119, Some(30_000));
        check(EventFailure::Missing, 8, 120, None);
        for reason in [EventFailure::Failed, EventFailure::Denied, EventFailure::Index] {
            check(reason, 0, 0, Some(1_000));
            check(reason, 4, 120, Some(16_000));
            check(reason, u32::MAX, 86_399, Some(300_000));
            check(reason, 9, 86_400, None);
        }
        check(EventFailure::Unreadable, 0, 0, None);
        let for_tag =
            |tried, age| pause_for_tag(tried, Duration::from_secs(age)).map(|pause| pause.as_millis());
        assert_eq!((for_tag(0, 0), for_tag(9, 29), for_tag(9, 30)), (Some(50), Some(10_000), None));
        let found = pause(EventFailure::Missing, 0, Duration::from_secs(2), Duration::from_secs(1));
        assert_eq!(found, None, "a day is not the longest for it");
    }
}
