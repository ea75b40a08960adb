//! Keys and values come back as they were.

use super::*;

#[track_caller]
fn check_key(name: &str, digest: Digest) {
    let repository = Repository { upstream: 3, name: name.parse().unwrap() };
    let referrer = ReferrerKey { repository, digest };
    let key = reverse_entry(&referrer);
    assert!(key.starts_with(&reverse_entries(&referrer.repository)));
    assert_eq!(referrer_of_reverse_entry(&key), Some(referrer.clone()));
    assert_eq!(referrer_of_reverse_entry(&key[..key.len() - 1]), None);
    assert_eq!(referrer_of_reverse_entry(&[&key[..], &[0]].concat()), None);
    let count = referrers_in(&referrer.repository);
    assert!(count.starts_with(&repositories_with_referrers(3)));
    assert_eq!(repository_of_referrers_in(&count), Some(referrer.repository));
    assert_eq!(repository_of_referrers_in(&key), None);
}

#[test]
fn of_reverse_entries_tell_the_referrer() {
    check_key("a", Digest::Sha256([7; 32]));
    check_key(&"a".repeat(255), Digest::Sha512([7; 64]));
}

#[test]
fn of_links_stand_in_the_order_of_pushes() {
    let of = |name: &str, subject: u8, order| {
        let repository = Repository { upstream: 0, name: name.parse().unwrap() };
        link(&repository, &Digest::Sha256([subject; 32]), Order(order))
    };
    let keys = [of("a", 1, 1), of("a", 1, 256), of("a", 2, 0), of("b", 0, 0), of("aa", 0, 0)];
    assert!(keys.is_sorted());
    assert_eq!(order_of_link(&keys[1]), Some(Order(256)));
}

/// Checks what comes back of a referrer with this many subjects and this long a descriptor, and how
/// many of its entries have the descriptor.
#[track_caller]
fn check(subjects: u8, descriptor: usize, pending: bool, descriptors: usize) {
    for was_confirmed in [true, !pending] {
        check_confirmed(subjects, descriptor, (pending, was_confirmed), descriptors);
    }
}

#[track_caller]
fn check_confirmed(
    subjects: u8,
    descriptor: usize,
    (pending, was_confirmed): (bool, bool),
    descriptors: usize,
) {
    let repository = Repository { upstream: 0, name: "a".parse().unwrap() };
    let referrer = ReferrerKey { repository, digest: Digest::Sha256([9; 32]) };
    let links = (0..subjects).map(|n| (Digest::Sha512([n; 64]), LinkKinds::from_bits(n + 1))).collect();
    let descriptor = "d".repeat(descriptor);
    let (order, version, claimed) = (Order(5), Version(6), pending);
    let absent_since = pending.then_some(7);
    let state =
        ReferrerState { order, pending, was_confirmed, absent_since, version, claimed, descriptor, links };
    let mut entries = entries(&referrer, &state);
    let (_, reverse) = entries.pop().unwrap();
    let reverse = decode_reverse_entry(&reverse).unwrap();
    let mut found = usize::from(reverse.has_descriptor);
    let expected = if reverse.has_descriptor { state.descriptor.clone() } else { String::new() };
    assert_eq!(reverse.value, ReferrerState { descriptor: expected, ..state.clone() });
    for ((key, value), (subject, kinds)) in entries.iter().zip(&state.links) {
        assert_eq!(*key, link(&referrer.repository, subject, state.order));
        let link = decode_link(key, value).unwrap();
        found += usize::from(link.has_descriptor);
        let descriptor = if link.has_descriptor { state.descriptor.clone() } else { String::new() };
        let expected = Entry {
            order: state.order,
            digest: referrer.digest.clone(),
            kinds: *kinds,
            pending,
            was_confirmed,
            version: state.version,
            descriptor,
        };
        assert_eq!(link.value, expected);
    }
    assert_eq!(found, descriptors);
}

#[test]
fn come_back_with_the_descriptor_in_each_link_or_else_in_the_reverse_entry() {
    check(1, 10, true, 1);
    check(5, 10, false, 5);
    check(0, 10, false, 1);
    check(1, 1 << 20, false, 1);
    check(64, 1 << 10, true, 64);
    check(65, 1 << 10, true, 1);
    check(3, 0, false, 3);
}
