//! What is only claimed, doubted, or absent.

use super::*;

#[tokio::test]
async fn what_is_absent_is_forgotten_when_it_was_for_long_enough_and_comes_back_if_it_is_there() {
    for mut bench in Bench::each() {
        let index = bench.open().await;
        for n in 10..13 {
            put(&index, n, &[1]).await;
        }
        let seen = async |index: &Index, n| version(index, n).await.unwrap();
        for n in 10..12 {
            assert_eq!(absent(&index, n, seen(&index, n).await).await, Removed::Doubted);
        }
        let expected = [(10, true), (11, true), (12, false)];
        assert_eq!(numbers(&index, 1).await, expected);
        // As long as it is not forgotten, saying it again writes nothing.
        let written = bench.written(&index).await;
        for _ in 0..3 {
            assert_eq!(absent(&index, 10, seen(&index, 10).await).await, Removed::Doubted);
        }
        assert_eq!(bench.written(&index).await, written);
        // It was shown to somebody.
        settle(&index, 11, &[1], seen(&index, 11).await).await;
        assert_eq!(numbers(&index, 1).await, [(10, true), (11, false), (12, false)]);
        index.close().await;
        drop(index);

        bench.lose_sled();
        bench.settings.forget_after = Duration::ZERO;
        let index = bench.open().await;
        assert_eq!(
            absent(&index, 11, seen(&index, 11).await).await,
            Removed::Doubted,
            "the first since it was there"
        );
        assert_eq!(absent(&index, 12, Version::UNKNOWN).await, Removed::Doubted);
        assert_eq!(
            absent(&index, 10, seen(&index, 10).await).await,
            Removed::Gone,
            "since before the restart"
        );
        assert_eq!(absent(&index, 10, Version::UNKNOWN).await, Removed::Unknown);
        assert_eq!(numbers(&index, 1).await, [(11, true), (12, true)]);
    }
}

#[tokio::test]
async fn a_doubt_is_written_only_where_it_changes_something() {
    for bench in Bench::each() {
        let index = bench.open().await;
        put(&index, 10, &[1]).await;
        drop(begin(&index, 11, &[1]).await);
        let written = bench.written(&index).await;
        for n in [11, 12, 13] {
            index.doubt(repository("a"), digest(n)).await.unwrap();
        }
        assert_eq!(bench.written(&index).await, written);
        {
            index.doubt(repository("a"), digest(10)).await.unwrap();
            let once = bench.written(&index).await;
            assert_ne!(once, written);
            index.doubt(repository("a"), digest(10)).await.unwrap();
            assert_eq!(bench.written(&index).await, once);
        }
        assert_eq!(numbers(&index, 1).await, [(10, true), (11, true)]);
    }
}

/// A PUT that is never accepted, at each moment of the life of the referrer that it claims something of.
#[tokio::test]
async fn what_somebody_without_rights_claims_never_becomes_the_truth() {
    for bench in Bench::each() {
        let index = bench.open().await;
        let claim = |n: u32| {
            let claim = Referrer { descriptor: "claim".to_owned(), ..referrer(n, &[2]) };
            index.begin(repository("a"), claim)
        };
        let seen = async |n| version(&index, n).await.unwrap();
        for (n, ends_refused) in [(10, true), (20, false)] {
            let end = async |put: PutInFlight| {
                if ends_refused {
                    put.refuse().await.unwrap();
                } else {
                    drop(put);
                    index.probe().await.unwrap();
                }
            };
            // Before, beside and after the true one.
            let before = claim(n).await.unwrap();
            let beside = begin(&index, n, &[1]).await;
            end(before).await;
            let also = claim(n).await.unwrap();
            beside.confirm().await.unwrap();
            end(also).await;
            end(claim(n).await.unwrap()).await;
            if !ends_refused {
                settle(&index, n, &[1], seen(n).await).await;
            }
            assert_eq!(
                (numbers(&index, 1).await.last(), numbers(&index, 2).await),
                (Some(&(n, false)), vec![])
            );
            // While it is doubted, what is claimed is pending, and goes when the bytes are read.
            index.doubt(repository("a"), digest(n)).await.unwrap();
            end(claim(n).await.unwrap()).await;
            let learnt = Observation { referrer: referrer(n, &[1]), claimed: false };
            index.observe(&index.begin_read(repository("a")).await, vec![learnt]).await.unwrap();
            assert!(entries(&index, 2).await.iter().all(|entry| entry.pending));
            settle(&index, n, &[1], seen(n).await).await;
            assert_eq!(
                (numbers(&index, 1).await.last(), numbers(&index, 2).await),
                (Some(&(n, false)), vec![])
            );
        }
        // What an index that was accepted says of it meanwhile is not the PUT's to take away.
        let refused = claim(30).await.unwrap();
        let attestation = Referrer { links: vec![link(3, LinkKind::Attestation)], ..referrer(30, &[]) };
        let learnt = vec![Observation { referrer: attestation, claimed: true }];
        index.observe(&index.begin_read(repository("a")).await, learnt).await.unwrap();
        refused.refuse().await.unwrap();
        assert!(
            matches!(&entries(&index, 3).await[..], [entry] if entry.digest == digest(30) && entry.pending)
        );
        settle(&index, 30, &[], seen(30).await).await;
        assert_eq!((numbers(&index, 3).await, numbers(&index, 2).await), (vec![(30, false)], vec![]));
    }
}
