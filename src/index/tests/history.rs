//! Segments, compaction, and writing while the index is still being opened.

use super::*;

#[tokio::test]
async fn what_is_written_while_sled_is_being_opened_is_there_afterwards() {
    let bench = Bench::new();
    let index = bench.open().await;
    for n in 0..50 {
        put(&index, 100 + n, &[1]).await;
    }
    put(&index, 200, &[2]).await;
    let seen = version(&index, 200).await.unwrap();
    index.close().await;
    drop(index);
    for _ in 0..5 {
        let bench = bench.after_crash();
        fs::remove_dir_all(bench.sled()).unwrap();
        let index = bench.try_open().unwrap();
        // Some of these come before sled is there, some after; each is right either way.
        let pending = begin(&index, 120, &[1, 3]).await;
        let refused = begin(&index, 300, &[4]).await;
        refused.refuse().await.unwrap();
        pending.confirm().await.unwrap();
        put(&index, 301, &[1]).await;
        let removed = remove(&index, 200, seen).await;
        index.opened().await;
        let of_1 = numbers(&index, 1).await;
        let expected: Vec<_> = (100..150).chain([301]).map(|n| (n, false)).collect();
        assert_eq!(of_1, expected);
        assert_eq!(numbers(&index, 3).await, [(120, false)]);
        assert!([vec![], vec![(300, true)]].contains(&numbers(&index, 4).await));
        // What versions there are, only a look tells; the journal gives the same ones again.
        match removed {
            Removed::Gone => assert_eq!(numbers(&index, 2).await, []),
            Removed::Doubted => assert_eq!(numbers(&index, 2).await, [(200, true)]),
            Removed::Unknown => panic!("it is known"),
        }
    }
}

#[tokio::test]
async fn a_read_waits_for_the_opening_but_not_for_long() {
    let mut bench = Bench::new();
    let index = bench.open().await;
    for n in 0..200 {
        put(&index, 100 + n, &[1]).await;
    }
    index.close().await;
    drop(index);
    fs::remove_dir_all(bench.sled()).unwrap();
    let index = bench.try_open().unwrap();
    let page = index.referrers(repository("a"), digest(1), everything()).await.unwrap();
    assert_eq!(page.entries.len(), 200);
    index.close().await;
    drop(index);
    fs::remove_dir_all(bench.sled()).unwrap();
    let timeout = std::mem::take(&mut bench.settings.timeout);
    let index = bench.try_open().unwrap();
    // Reading 400 commits takes longer than asking; should it not, the answer is whole, or comes too late.
    match index.referrers(repository("a"), digest(1), everything()).await {
        Err(ReadError::Opening | ReadError::Slow) => {}
        Ok(page) => assert_eq!(page.entries.len(), 200),
        Err(error) => panic!("{error}"),
    }
    index.close().await;
    drop(index);
    bench.settings.timeout = timeout;
    let index = bench.open().await;
    assert_eq!(entries(&index, 1).await.len(), 200);
}

#[tokio::test]
async fn goes_on_over_many_segments() {
    let mut bench = Bench::new();
    bench.settings.segment_bytes = 1000;
    let index = bench.open().await;
    for n in 0..30 {
        put(&index, 100 + n, &[n % 3]).await;
    }
    let expected = answers(&index, 0..3).await;
    assert!(bench.journal_files("journal").len() > 5);
    index.close().await;
    drop(index);
    let index = bench.open().await;
    assert_eq!(answers(&index, 0..3).await, expected);
    index.close().await;
    drop(index);
    fs::remove_dir_all(bench.sled()).unwrap();
    assert_eq!(answers(&bench.open().await, 0..3).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_beside_writers_keeps_everything_and_drops_old_segments() {
    let mut bench = Bench::new();
    bench.settings.segment_bytes = 10_000;
    bench.settings.compact_bytes = 60_000;
    let index = bench.open().await;
    let writers = (0..4u32).map(|writer| {
        let index = index.clone();
        tokio::spawn(async move {
            for n in 0..60 {
                let n = 100 + writer * 100 + n;
                let put = begin(&index, n, &[writer, 4]).await;
                match n % 5 {
                    0 => drop(put),
                    1 => put.refuse().await.unwrap(),
                    _ => put.confirm().await.unwrap(),
                }
                if n % 5 == 2 {
                    let seen = version(&index, n).await.unwrap();
                    remove(&index, n, seen).await;
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let mut bounded = 0..1000;
    while index.statistics().unwrap().compactions == 0 {
        bounded.next().expect("a compaction ends");
        index.probe().await.unwrap();
    }
    let expected = answers(&index, 0..5).await;
    assert_eq!(expected[&4].len(), 4 * 36);
    index.close().await;
    drop(index);
    assert_eq!(bench.journal_files("snapshot").len(), 1);
    assert_eq!(bench.journal_files("tmp"), Vec::<PathBuf>::new());
    assert!(bench.journal_files("journal").iter().all(|path| !path.ends_with("0000000000000000.journal")));
    let index = bench.open().await;
    assert_eq!(answers(&index, 0..5).await, expected);
    assert_eq!(bench.rebuilds(), 0);
    let statistics = index.statistics().unwrap();
    index.close().await;
    drop(index);

    fs::remove_dir_all(bench.sled()).unwrap();
    let index = bench.open().await;
    assert_eq!(answers(&index, 0..5).await, expected);
    assert_eq!(index.statistics().unwrap().referrers, statistics.referrers);
    assert_eq!(index.statistics().unwrap().pending, statistics.pending);
    index.close().await;
    drop(index);

    // A snapshot that is not whole is damage, not a shorter list.
    fs::remove_dir_all(bench.sled()).unwrap();
    let snapshot = bench.journal_files("snapshot").pop().unwrap();
    let file = fs::File::options().write(true).open(&snapshot).unwrap();
    file.set_len(crate::index::local::journal::format::HEADER_BYTES).unwrap();
    let index = bench.try_open().unwrap();
    index.opened().await;
    for subject in 0..5 {
        let list = index.referrers(repository("a"), digest(subject), everything()).await;
        assert_eq!(list, Err(ReadError::Damaged));
    }
}
