//! Copies of an index in all four directions: equal at the end, also with pushes meanwhile, interruptions, and a target
//! that was served.

use std::sync::atomic::{AtomicBool, Ordering};

use super::database_maintenance::{fill, known};
use super::*;
use crate::index::maintenance::{Copied, CopyPlace, CopyProgress, copy};

fn place(bench: &Bench) -> CopyPlace {
    match &bench.settings.database {
        None => CopyPlace::Directory(bench.settings.data_dir.clone()),
        Some(database) => CopyPlace::Database(Box::new(database.clone())),
    }
}

async fn copied(from: &Bench, to: &Bench) -> Copied {
    copy(&place(from), &place(to), None, &CopyProgress::default()).await.unwrap()
}

/// Both kinds to both kinds.
fn directions() -> impl Iterator<Item = (Bench, Bench)> {
    let bench = |is_local| if is_local { Bench::new() } else { Bench::in_postgres() };
    let directions = [(true, true), (true, false), (false, true), (false, false)];
    directions.into_iter().map(move |(from, to)| (bench(from), bench(to)))
}

#[tokio::test]
async fn a_copy_gives_equal_answers_in_every_direction() {
    for (from, to) in directions() {
        let index = from.open().await;
        fill(&index).await;
        let first = copied(&from, &to).await;
        assert_eq!(first.source, first.target);
        assert_eq!((first.passes, first.changes.added, first.kept), (2, first.source.referrers, 0));
        // What changed meanwhile follows, and nothing else is touched.
        put(&index, 180, &[3]).await;
        remove(&index, 120, version(&index, 120).await.unwrap()).await;
        index.doubt(repository("a"), digest(121)).await.unwrap();
        let second = copied(&from, &to).await;
        assert_eq!(second.source, second.target);
        let changes = second.changes;
        assert_eq!((changes.added, changes.changed, changes.removed, changes.sum()), (1, 1, 1, 3));
        assert_eq!(copied(&from, &to).await.changes.sum(), 0);
        let (expected, listed) = (known(&index).await, answers(&index, 0..4).await);
        index.close().await;
        let index = to.open().await;
        assert_eq!(known(&index).await, expected);
        assert_eq!(answers(&index, 0..4).await, listed);
        put(&index, 181, &[3]).await;
        assert_eq!(numbers(&index, 3).await.last(), Some(&(181, false)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pushed_during_copies_is_there_after_the_last_one() {
    for (from, to) in directions() {
        let index = from.open().await;
        let is_over = AtomicBool::new(false);
        let write = async |writer: u32| {
            let mut n = 0;
            // On a busy machine the copies may be over before anything was written.
            while n < 20 || !is_over.load(Ordering::Relaxed) {
                let number = 1_000 * writer + n % 300;
                put(&index, number, &[n % 5, 7]).await;
                if n % 7 == 0 {
                    remove(&index, number, version(&index, number).await.unwrap()).await;
                }
                n += 1;
            }
        };
        let copies = async {
            for _ in 0..2 {
                let (from, to) = (place(&from), place(&to));
                let copying = async move { copy(&from, &to, None, &CopyProgress::default()).await };
                let copied = tokio::spawn(copying).await.unwrap().unwrap();
                assert_eq!((copied.source, copied.kept), (copied.target, 0));
            }
            is_over.store(true, Ordering::Relaxed);
        };
        tokio::join!(write(1), write(2), write(3), write(4), copies);
        let last = copied(&from, &to).await;
        assert_eq!((last.source, last.last.sum()), (last.target, 0));
        let expected = known(&index).await;
        index.close().await;
        assert!(expected.len() > 4);
        assert_eq!(known(&to.open().await).await, expected);
    }
}

#[tokio::test]
async fn an_interrupted_copy_goes_on_and_makes_no_index_before() {
    for (from, to) in directions() {
        let index = from.open().await;
        for n in 0..40 {
            let name = format!("r{n}");
            for m in 0..20 {
                let put = index.begin(repository(&name), referrer(100 * n + m, &[1])).await.unwrap();
                put.confirm().await.unwrap();
            }
        }
        let progress = CopyProgress::default();
        let (one, other) = (place(&from), place(&to));
        let mut copying = Box::pin(copy(&one, &other, None, &progress));
        // It is dropped in the middle, as if it were killed.
        while progress.repositories_done.load(Ordering::Relaxed) < 20 {
            tokio::select! {
                biased;
                copied = &mut copying => {
                    // A copy between directories waits for nothing in between.
                    copied.unwrap();
                    break;
                }
                () = tokio::task::yield_now() => {}
            }
        }
        drop(copying);
        let copied = copied(&from, &to).await;
        assert_eq!(copied.source, copied.target);
        assert_eq!(copied.target.referrers, 800);
    }
}

#[tokio::test]
async fn what_a_served_target_recorded_itself_stays() {
    for (from, to) in directions() {
        let index = from.open().await;
        for n in 10..20 {
            put(&index, n, &[1]).await;
        }
        put(&index, 20, &[1]).await;
        index.doubt(repository("a"), digest(20)).await.unwrap();
        copied(&from, &to).await;
        let served = to.open().await;
        put(&served, 30, &[1]).await;
        put(&served, 11, &[1, 2]).await;
        settle(&served, 20, &[1], version(&served, 20).await.unwrap()).await;
        served.close().await;
        drop(served);
        put(&index, 11, &[1, 3]).await;
        put(&index, 40, &[1]).await;
        for n in [12, 20] {
            remove(&index, n, version(&index, n).await.unwrap()).await;
        }
        let copied = copied(&from, &to).await;
        assert!(copied.kept > 0 && copied.source != copied.target);
        index.close().await;
        let served = to.open().await;
        let listed: BTreeMap<u32, bool> = numbers(&served, 1).await.into_iter().collect();
        // Pushed there, settled there, or only here: all of them stay, and the registry is asked for what is not known
        // here any more.
        assert_eq!((listed[&30], listed[&20], listed[&40], listed[&11]), (true, true, false, false));
        // A directory does not say which of its referrers were copied.
        assert_eq!(listed.get(&12).copied(), to.is_local().then_some(true));
        assert_eq!(numbers(&served, 2).await, [(11, false)]);
        assert_eq!(numbers(&served, 3).await, [(11, false)]);
    }
}

#[tokio::test]
async fn a_directory_that_is_served_is_no_target() {
    let (from, to) = (Bench::new(), Bench::new());
    let (_source, _served) = (from.open().await, to.open().await);
    let refused = copy(&place(&from), &place(&to), None, &CopyProgress::default()).await.unwrap_err();
    assert!(refused.to_string().contains("in use by another process"), "{refused}");
    let nowhere = CopyPlace::Directory(from.directory.path().join("nothing"));
    let refused = copy(&nowhere, &place(&Bench::new()), None, &CopyProgress::default()).await.unwrap_err();
    assert!(refused.to_string().contains("holds no index"), "{refused}");
}
