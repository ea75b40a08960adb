//! PUTs, removals and queries that meet.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

#[tokio::test]
async fn a_referrer_that_is_put_again_keeps_its_place() {
    for bench in Bench::each() {
        let index = bench.open().await;
        put(&index, 10, &[1]).await;
        put(&index, 11, &[1]).await;
        let first = entries(&index, 1).await[0].clone();
        let seen = version(&index, 10).await.unwrap();
        let again = begin(&index, 10, &[1, 2]).await;
        assert_eq!(numbers(&index, 1).await, [(10, false), (11, false)]);
        again.confirm().await.unwrap();
        assert_eq!(numbers(&index, 1).await, [(10, false), (11, false)]);
        assert_eq!(numbers(&index, 2).await, [(10, false)]);
        let again = entries(&index, 1).await[0].clone();
        assert_eq!(again.order, first.order);
        assert_ne!(version(&index, 10).await, Some(seen));
        assert_eq!(version(&index, 10).await, Some(again.version));
    }
}

#[tokio::test]
async fn a_confirmed_descriptor_replaces_a_claimed_one_only() {
    for bench in Bench::each() {
        let index = bench.open().await;
        let with = |descriptor: &str| Referrer { descriptor: descriptor.to_owned(), ..referrer(10, &[1]) };
        let claim = index.begin(repository("a"), with("1")).await.unwrap();
        index.begin(repository("a"), with("2")).await.unwrap().confirm().await.unwrap();
        assert_eq!(entries(&index, 1).await[0].descriptor, "2");
        claim.confirm().await.unwrap();
        assert_eq!(entries(&index, 1).await[0].descriptor, "2");
    }
}

#[tokio::test]
async fn a_refused_put_takes_nothing_away_but_what_it_brought() {
    for bench in Bench::each() {
        let index = bench.open().await;
        begin(&index, 10, &[1]).await.refuse().await.unwrap();
        assert_eq!(numbers(&index, 1).await, []);

        put(&index, 10, &[1]).await;
        begin(&index, 10, &[1]).await.refuse().await.unwrap();
        assert_eq!(numbers(&index, 1).await, [(10, false)]);

        // The outcome of one PUT is not known: it may be what made the referrer.
        drop(begin(&index, 11, &[2]).await);
        begin(&index, 11, &[2]).await.refuse().await.unwrap();
        assert_eq!(numbers(&index, 2).await, [(11, true)]);

        let one = begin(&index, 12, &[3]).await;
        let other = begin(&index, 12, &[3]).await;
        one.refuse().await.unwrap();
        assert_eq!(numbers(&index, 3).await, [(12, true)]);
        other.refuse().await.unwrap();
        assert_eq!(numbers(&index, 3).await, []);

        let one = begin(&index, 13, &[4]).await;
        let other = begin(&index, 13, &[4]).await;
        one.confirm().await.unwrap();
        other.refuse().await.unwrap();
        assert_eq!(numbers(&index, 4).await, [(13, false)]);
    }
}

/// Whoever knows the bytes of a manifest may try to push them to any tag.
#[tokio::test]
async fn what_only_a_tag_says_is_recorded_with_the_upstreams_yes() {
    for bench in Bench::each() {
        let index = bench.open().await;
        let tagged = |n: u32, subjects: &[u32]| {
            let mut referrer = referrer(n, subjects);
            referrer.links.push(link(5, LinkKind::Cosign));
            index.begin(repository("a"), referrer)
        };
        put(&index, 10, &[1]).await;
        let put_again = tagged(10, &[1]).await.unwrap();
        assert_eq!(numbers(&index, 5).await, []);
        put_again.refuse().await.unwrap();
        drop(tagged(10, &[1]).await.unwrap());
        // Whether the upstream took it is not known. The doubt is written by the next write at the latest.
        index.probe().await.unwrap();
        // Confirmed by somebody else's PUT of the same manifest.
        let strangers = tagged(11, &[1]).await.unwrap();
        put(&index, 11, &[1]).await;
        strangers.refuse().await.unwrap();
        assert_eq!(numbers(&index, 5).await, []);
        assert_eq!(numbers(&index, 1).await, [(10, true), (11, false)]);

        tagged(10, &[1]).await.unwrap().confirm().await.unwrap();
        tagged(12, &[]).await.unwrap().confirm().await.unwrap();
        assert_eq!(numbers(&index, 5).await, [(10, false), (12, false)]);
        drop(tagged(13, &[]).await.unwrap());
        assert_eq!(version(&index, 13).await, None);
        let deleted = tagged(14, &[]).await.unwrap();
        assert_eq!(remove(&index, 14, Version::UNKNOWN).await, Removed::Unknown);
        deleted.confirm().await.unwrap();
        assert_eq!(numbers(&index, 5).await, [(10, false), (12, false), (14, true)]);
    }
}

#[tokio::test]
async fn a_removal_takes_what_it_saw_and_nothing_newer() {
    for bench in Bench::each() {
        let index = bench.open().await;
        assert_eq!(remove(&index, 10, Version::UNKNOWN).await, Removed::Unknown);
        assert_eq!(version(&index, 10).await, None);
        put(&index, 10, &[1]).await;
        let seen = version(&index, 10).await.unwrap();
        assert_eq!(remove(&index, 10, seen).await, Removed::Gone);
        assert_eq!(numbers(&index, 1).await, []);

        // PUT again since.
        put(&index, 10, &[1]).await;
        assert_eq!(remove(&index, 10, seen).await, Removed::Doubted);
        assert_eq!(numbers(&index, 1).await, [(10, true)]);
        assert_eq!(remove(&index, 10, Version::UNKNOWN).await, Removed::Doubted);
        let seen = version(&index, 10).await.unwrap();
        assert_eq!(remove(&index, 10, seen).await, Removed::Gone);

        // Being PUT.
        put(&index, 11, &[2]).await;
        let again = begin(&index, 11, &[2]).await;
        let seen = version(&index, 11).await.unwrap();
        assert_eq!(remove(&index, 11, seen).await, Removed::Doubted);
        assert_eq!(numbers(&index, 2).await, [(11, true)]);
        again.refuse().await.unwrap();
        assert_eq!(numbers(&index, 2).await, [(11, true)]);
    }
}

#[tokio::test]
async fn settling_confirms_what_is_pending_and_brings_nothing_back() {
    for bench in Bench::each() {
        let index = bench.open().await;
        let in_flight = begin(&index, 10, &[1]).await;
        let seen = version(&index, 10).await.unwrap();
        settle(&index, 10, &[1], seen).await;
        assert_eq!(numbers(&index, 1).await, [(10, false)]);
        in_flight.refuse().await.unwrap();
        assert_eq!(numbers(&index, 1).await, [(10, false)]);
        let seen = version(&index, 10).await.unwrap();
        assert_eq!(remove(&index, 10, seen).await, Removed::Gone);
        settle(&index, 10, &[1], seen).await;
        assert_eq!(numbers(&index, 1).await, []);
    }
}

#[tokio::test]
async fn what_was_deleted_since_a_query_asked_for_it_stays_pending() {
    for bench in Bench::each() {
        let index = bench.open().await;
        put(&index, 10, &[1]).await;
        let deleted = version(&index, 10).await.unwrap();
        let _again = begin(&index, 10, &[1]).await;
        let asked = version(&index, 10).await.unwrap();
        assert_eq!(remove(&index, 10, deleted).await, Removed::Doubted);
        settle(&index, 10, &[1], asked).await;
        assert_eq!(numbers(&index, 1).await, [(10, true)]);

        // Pending already when it is deleted.
        let asked = version(&index, 10).await.unwrap();
        assert_eq!(remove(&index, 10, asked).await, Removed::Doubted);
        settle(&index, 10, &[1], asked).await;
        assert_eq!(numbers(&index, 1).await, [(10, true)]);

        let asked = version(&index, 10).await.unwrap();
        settle(&index, 10, &[1], asked).await;
        assert_eq!(numbers(&index, 1).await, [(10, false)]);
    }
}

#[tokio::test]
async fn what_was_deleted_while_it_was_put_is_asked_for() {
    for bench in Bench::each() {
        let index = bench.open().await;
        let first = begin(&index, 10, &[1]).await;
        assert_eq!(remove(&index, 10, Version::UNKNOWN).await, Removed::Doubted);
        first.confirm().await.unwrap();
        assert_eq!(numbers(&index, 1).await, [(10, true)]);
        put(&index, 10, &[1]).await;
        assert_eq!(numbers(&index, 1).await, [(10, false)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_share_syncs_and_lose_nothing() {
    const WRITERS: u32 = 64;
    const PUTS: u32 = 4;
    for bench in Bench::each() {
        let index = bench.open().await;
        let writers = (0..WRITERS).map(|writer| {
            let index = index.clone();
            tokio::spawn(async move {
                for n in 0..PUTS {
                    // The same referrer by two writers at a time.
                    put(&index, 100 + (writer / 2) * PUTS + n, &[writer % 4, 4]).await;
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
        if let Some(statistics) = index.statistics() {
            assert!(statistics.commits < u64::from(WRITERS * PUTS), "{statistics:?}");
            assert_eq!(statistics.in_flight, 0);
        }
        let all = answers(&index, 0..5).await;
        assert_eq!(all[&4].len(), (WRITERS / 2 * PUTS) as usize);
        assert!(all.values().all(|entries| entries.is_sorted_by_key(|(_, order, _)| *order)));
        let (referrers, _, pending) = counts(&index).await;
        assert_eq!((referrers, pending), (128, 0));
        index.close().await;
        drop(index);
        let index = bench.open().await;
        assert_eq!(answers(&index, 0..5).await, all);
        assert_eq!(bench.rebuilds(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_under_a_stamp_has_every_write_that_was_answered() {
    const PUTS: u32 = 300;
    let bench = Bench::new();
    let index = bench.open().await;
    let answered = Arc::new(AtomicU32::new(0));
    let writer = tokio::spawn({
        let (index, answered) = (index.clone(), Arc::clone(&answered));
        async move {
            for n in 0..PUTS {
                put(&index, 100 + n, &[1]).await;
                answered.store(n + 1, Ordering::SeqCst);
            }
        }
    });
    let mut kept = None;
    loop {
        let least = answered.load(Ordering::SeqCst);
        let stamp = index.stamp(&repository("a")).unwrap();
        let confirmed = match kept {
            Some((of, confirmed)) if of == stamp => confirmed,
            Some(_) | None => {
                let listed = numbers(&index, 1).await;
                let confirmed = listed.iter().filter(|(_, is_pending)| !is_pending).count();
                kept = Some((stamp, confirmed));
                confirmed
            }
        };
        assert!(confirmed >= least as usize, "{confirmed} {least}");
        if least == PUTS {
            break;
        }
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_answers_everybody_who_waits() {
    // More than the queue takes.
    const WRITERS: u32 = 3000;
    let bench = Bench::new();
    let mut recorded = Vec::new();
    for round in 0..5 {
        let index = bench.open().await;
        let writers = (0..WRITERS).map(|n| {
            let (index, n) = (index.clone(), round * WRITERS + n);
            tokio::spawn(async move { (n, index.begin(repository("a"), referrer(n, &[1])).await) })
        });
        let writers: Vec<_> = writers.collect();
        tokio::task::yield_now().await;
        index.close().await;
        for writer in writers {
            match writer.await.unwrap() {
                (n, Ok(_put)) => recorded.push(digest(n)),
                (_, Err(error)) => assert_eq!(error, WriteError::Closed),
            }
        }
        assert_eq!(index.statistics().unwrap().in_flight, 0);
    }
    assert!(!recorded.is_empty());
    let mut listed: Vec<_> = entries(&bench.open().await, 1).await.into_iter().map(|it| it.digest).collect();
    listed.sort();
    recorded.sort();
    assert_eq!(listed, recorded);
}

#[tokio::test]
async fn closing_while_it_is_opened_leaves_everything_in_order() {
    let bench = Bench::new();
    let index = bench.open().await;
    put(&index, 10, &[1]).await;
    index.close().await;
    drop(index);
    for round in 0..10 {
        if round % 2 == 0 {
            fs::remove_dir_all(bench.sled()).unwrap();
        }
        let index = bench.try_open().unwrap();
        tokio::time::sleep(Duration::from_millis(round)).await;
        index.close().await;
        assert_eq!(index.state(), IndexState::Closed);
        assert_eq!(index.write_failure(), None);
    }
    assert_eq!(numbers(&bench.open().await, 1).await, [(10, false)]);
    assert_eq!(bench.rebuilds(), 0);
}

/// Learns of a referrer with a `reference` to subject 1; or of what an index claims to be an attestation of it.
async fn learn(index: &Index, read: &UpstreamRead, n: u32, claimed: bool) {
    let kind = if claimed { LinkKind::Attestation } else { LinkKind::Reference };
    let referrer = Referrer { links: vec![link(1, kind)], ..referrer(n, &[]) };
    index.observe(read, vec![Observation { referrer, claimed }]).await.unwrap();
}

#[tokio::test]
async fn what_is_learnt_is_recorded_once_and_what_is_claimed_is_pending() {
    for bench in Bench::each() {
        let index = bench.open().await;
        let read = index.begin_read(repository("a")).await;
        learn(&index, &read, 10, false).await;
        learn(&index, &read, 11, true).await;
        assert_eq!(numbers(&index, 1).await, [(10, false), (11, true)]);
        let written = bench.written(&index).await;
        learn(&index, &read, 10, false).await;
        index
            .observe(&read, vec![Observation { referrer: referrer(10, &[1]), claimed: true }])
            .await
            .unwrap();
        learn(&index, &read, 11, true).await;
        let nothing = Observation { referrer: referrer(12, &[]), claimed: false };
        index.observe(&read, vec![nothing]).await.unwrap();
        assert_eq!(bench.written(&index).await, written);
        // The manifest itself was seen, and says nothing of its own.
        let seen = Observation { referrer: referrer(11, &[]), claimed: false };
        index.observe(&read, vec![seen]).await.unwrap();
        assert_eq!(numbers(&index, 1).await, [(10, false), (11, false)]);
    }
}

#[tokio::test]
async fn what_may_have_been_deleted_since_it_was_read_is_pending() {
    for bench in Bench::each() {
        let index = bench.open().await;
        let (read, elsewhere) =
            (index.begin_read(repository("a")).await, index.begin_read(repository("b")).await);
        assert_eq!(remove(&index, 10, Version::UNKNOWN).await, Removed::Unknown);
        learn(&index, &read, 10, false).await;
        learn(&index, &index.begin_read(repository("a")).await, 11, false).await;
        assert_eq!(numbers(&index, 1).await, [(10, true), (11, false)]);
        learn(&index, &elsewhere, 12, false).await;
        let page = index.referrers(repository("b"), digest(1), everything()).await.unwrap();
        assert!(!page.entries[0].pending);
        let holders = index.repositories(0, digest(1)).await.unwrap();
        assert_eq!(holders, [repository("a").name, repository("b").name]);
        assert_eq!(index.repositories(1, digest(1)).await, Ok(Vec::new()));
    }
}
