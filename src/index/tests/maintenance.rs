//! Checking, mending, dumping and loading.

use std::collections::BTreeSet;
use std::io::{Seek as _, SeekFrom, Write};

use super::*;
use crate::index::maintenance::{Rebuilt, check, dump_directory as dump, load_directory as load, rebuild};

/// A closed index of several small segments, with pending, removed and re-pushed referrers, and its answers.
async fn filled() -> (Bench, BTreeMap<u32, Vec<Listed>>) {
    let mut bench = Bench::new();
    bench.settings.segment_bytes = 4 << 10;
    let index = bench.open().await;
    for n in 0..40 {
        put(&index, 100 + n, &[n % 3, 3]).await;
    }
    drop(begin(&index, 170, &[1]).await);
    for n in [103, 110] {
        let seen = version(&index, n).await.unwrap();
        remove(&index, n, seen).await;
    }
    put(&index, 103, &[1]).await;
    let all = answers(&index, 0..4).await;
    index.close().await;
    (bench, all)
}

fn dumped(bench: &Bench) -> Vec<u8> {
    let mut bytes = Vec::new();
    dump(&bench.settings.data_dir, &mut bytes).unwrap();
    bytes
}

fn flip(path: &Path, offset: u64) {
    let byte = fs::read(path).unwrap()[usize::try_from(offset).unwrap()] ^ 0x20;
    let mut file = fs::File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(&[byte]).unwrap();
}

#[tokio::test]
async fn what_was_dumped_and_loaded_gives_the_same_answers() {
    let (bench, expected) = filled().await;
    let other = Bench::new();
    let records = load(&other.settings.data_dir, dumped(&bench).as_slice()).unwrap().records;
    assert!(records > 80);
    let index = other.open().await;
    assert_eq!(answers(&index, 0..4).await, expected);
    // What comes after is younger than all of it.
    put(&index, 180, &[3]).await;
    assert_eq!(numbers(&index, 3).await.last(), Some(&(180, false)));
    index.close().await;
    drop(index);
    let again = load(&other.settings.data_dir, dumped(&bench).as_slice()).unwrap_err();
    assert!(again.to_string().contains("holds an index already"), "{again}");
}

#[tokio::test]
async fn an_index_that_is_served_and_compacted_can_be_dumped() {
    let mut bench = Bench::new();
    (bench.settings.segment_bytes, bench.settings.compact_bytes) = (2 << 10, 4 << 10);
    let index = bench.open().await;
    let acknowledged = std::sync::atomic::AtomicU32::new(0);
    let (data_dir, counter) = (bench.settings.data_dir.clone(), &acknowledged);
    let write = async {
        for n in 0..300 {
            put(&index, n, &[1000]).await;
            counter.store(n + 1, std::sync::atomic::Ordering::Relaxed);
        }
    };
    let read = async {
        let mut dumps = Vec::new();
        while counter.load(std::sync::atomic::Ordering::Relaxed) < 300 {
            let before = counter.load(std::sync::atomic::Ordering::Relaxed);
            let data_dir = data_dir.clone();
            let dumped = move || {
                let mut bytes = Vec::new();
                dump(&data_dir, &mut bytes).map(|_| bytes)
            };
            dumps.push((before, tokio::task::spawn_blocking(dumped).await.unwrap().unwrap()));
        }
        dumps
    };
    let ((), dumps) = tokio::join!(write, read);
    index.close().await;
    assert!(!bench.journal_files("snapshot").is_empty());
    let step = (dumps.len() / 5).max(1);
    for (before, dump) in dumps.iter().step_by(step) {
        let other = Bench::new();
        load(&other.settings.data_dir, dump.as_slice()).unwrap();
        let listed: BTreeSet<u32> = numbers(&other.open().await, 1000).await.iter().map(|it| it.0).collect();
        assert!((0..*before).all(|n| listed.contains(&n)));
    }
}

/// Does something when the first of a dump is written: all files are open then.
struct Meanwhile<F> {
    written: Vec<u8>,
    act: Option<F>,
}

impl<F: FnOnce()> Write for Meanwhile<F> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Some(act) = self.act.take() {
            act();
        }
        self.written.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// sled takes more of the journal than the dump opened, which is no damage.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_begins_or_ends_to_be_served_can_be_dumped_meanwhile() {
    for (is_served, is_served_at_the_end) in [(true, false), (true, true), (false, true), (false, false)] {
        let (bench, expected) = filled().await;
        let mut served = None;
        if is_served {
            served = Some(bench.open().await);
        }
        let mut act = || {
            tokio::runtime::Handle::current().block_on(async {
                let index = match served.take() {
                    Some(index) => index,
                    None => bench.open().await,
                };
                for n in 0..20 {
                    put(&index, 400 + n, &[3]).await;
                }
                if is_served_at_the_end {
                    served = Some(index);
                } else {
                    index.close().await;
                }
            });
        };
        let mut dumped = Meanwhile { written: Vec::new(), act: Some(&mut act) };
        tokio::task::block_in_place(|| dump(&bench.settings.data_dir, &mut dumped)).unwrap();
        assert!(dumped.act.is_none());
        let other = Bench::new();
        load(&other.settings.data_dir, dumped.written.as_slice()).unwrap();
        assert_eq!(answers(&other.open().await, 0..4).await, expected);
        if let Some(index) = served {
            index.close().await;
        }
    }
}

#[tokio::test]
async fn a_dump_that_was_cut_off_or_changed_makes_no_index() {
    let (bench, _) = filled().await;
    let whole = String::from_utf8(dumped(&bench)).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let other = Bench::new();
    let check = |text: String, expected: &str| {
        let error = load(&other.settings.data_dir, text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!other.settings.data_dir.join("journal").exists());
    };
    check(String::new(), "cut off");
    check(lines[..1].join("\n"), "cut off");
    check(lines[..lines.len() - 1].join("\n"), "cut off");
    check(lines[1..].join("\n"), "line 1: not the first line");
    check([&lines[..5], &lines[6..]].concat().join("\n"), "but its last line counts");
    check(whole.replacen("begun", "retold", 1), "line 2: not a record");
    check(whole.replacen("\"format\":2", "\"format\":3", 1), "use a newer build");
    check(whole.clone() + &whole, "continues after its last line");
    load(&other.settings.data_dir, whole.as_bytes()).unwrap();
}

#[tokio::test]
async fn an_intact_index_is_found_intact_and_rebuilt_as_it_was() {
    let (bench, expected) = filled().await;
    let report = check(&bench.settings.data_dir).unwrap();
    assert_eq!((report.gaps.len(), report.torn), (0, None));
    assert_eq!(report.sled.unwrap().0, 40);
    let rebuilt = rebuild(&bench.settings.data_dir).unwrap();
    assert_eq!((rebuilt.gaps.len(), rebuilt.referrers, rebuilt.set_aside), (0, 40, None));
    assert_eq!(check(&bench.settings.data_dir).unwrap().sled, Err("it is missing".to_owned()));
    let index = bench.open().await;
    assert_eq!(answers(&index, 0..4).await, expected);
    let locked = check(&bench.settings.data_dir).unwrap_err();
    assert!(locked.to_string().contains("in use"), "{locked}");
}

/// Every place of the journal, some bytes apart, damaged alone.
#[tokio::test]
async fn what_is_intact_of_a_damaged_journal_is_kept_and_the_rest_is_named() {
    let (bench, expected) = filled().await;
    let was_listed: BTreeSet<u32> = expected.values().flatten().map(|listed| number(&listed.0)).collect();
    let segments = bench.journal_files("journal");
    assert!(segments.len() > 3);
    let (mut damaged, mut with_losses) = (0, 0);
    for segment in &segments {
        for offset in (0..fs::metadata(segment).unwrap().len()).step_by(499) {
            let copy = bench.after_crash();
            let path = copy.settings.data_dir.join("journal").join(segment.file_name().unwrap());
            flip(&path, offset);
            let report = check(&copy.settings.data_dir).unwrap();
            let rebuilt = rebuild(&copy.settings.data_dir).unwrap();
            assert_eq!(report.gaps, rebuilt.gaps);
            let index = copy.open().await;
            let mut listed = BTreeMap::new();
            for subject in 0..4 {
                for (number, pending) in numbers(&index, subject).await {
                    listed.insert(number, pending);
                }
            }
            if report.torn.is_some() {
                assert_eq!(rebuilt.gaps, []);
                continue;
            }
            damaged += 1;
            assert_eq!(rebuilt.gaps.len(), 1, "{report:?}");
            assert_eq!(rebuilt.gaps[0].path, path);
            assert!(
                (rebuilt.gaps[0].offset..=rebuilt.gaps[0].offset + rebuilt.gaps[0].bytes).contains(&offset)
            );
            // Nothing that was not listed before is, unless the registry will be asked for it first.
            assert!(listed.iter().all(|(number, pending)| *pending || was_listed.contains(number)));
            let missing: Vec<u32> =
                was_listed.iter().filter(|number| !listed.contains_key(number)).copied().collect();
            assert!(missing.len() <= 1, "a frame holds one write here: {missing:?}");
            with_losses += missing.len();
            assert_named(&rebuilt, &missing);
        }
    }
    assert!(damaged > 25 && with_losses > 10, "{damaged} {with_losses}");
}

/// What is missing is named, or lies in the time that is.
fn assert_named(rebuilt: &Rebuilt, missing: &[u32]) {
    for number in missing {
        let is_named = rebuilt.lost.contains(&(repository("a"), digest(*number)));
        assert!(is_named || rebuilt.between.len() == 1, "{number} {rebuilt:?}");
    }
}

fn number(descriptor_text: &str) -> u32 {
    (0..1000).find(|n| descriptor_text == descriptor(*n)).unwrap()
}

#[tokio::test]
async fn a_missing_segment_is_named_and_the_others_are_kept() {
    let (bench, _) = filled().await;
    let segments = bench.journal_files("journal");
    fs::remove_file(&segments[1]).unwrap();
    let index = bench.try_open().unwrap();
    assert!(matches!(index.state(), IndexState::Damaged(_)));
    index.close().await;
    drop(index);
    let rebuilt = rebuild(&bench.settings.data_dir).unwrap();
    let [gap] = &rebuilt.gaps[..] else { panic!("{rebuilt:?}") };
    assert_eq!((&gap.path, gap.what), (&segments[2], "the files before it are missing"));
    assert!(rebuilt.set_aside.unwrap().exists());
    let [(Some(before), Some(after))] = rebuilt.between[..] else { panic!("{:?}", rebuilt.between) };
    let index = bench.open().await;
    let of_3 = entries(&index, 3).await;
    assert!(of_3.len() > 10 && of_3.len() < 40);
    assert!(of_3.iter().all(|entry| entry.order <= before || entry.order >= after));
    assert!(of_3.iter().all(|entry| entry.pending == (entry.order <= before)));
    assert_eq!(
        rebuilt.doubted[&repository("a")],
        of_3.iter().filter(|entry| entry.pending).count() as u64 + 1
    );
}

#[tokio::test]
async fn a_kill_while_a_mended_journal_is_put_in_place_loses_nothing() {
    let (bench, expected) = filled().await;
    let data_dir = &bench.settings.data_dir;
    copy_directory(&data_dir.join("journal"), &data_dir.join("journal.mended")).unwrap();
    let index = bench.open().await;
    assert_eq!(answers(&index, 0..4).await, expected);
    index.close().await;
    drop(index);
    assert!(!data_dir.join("journal.mended").exists());
    fs::rename(data_dir.join("journal"), data_dir.join("journal.mended")).unwrap();
    assert_eq!(answers(&bench.open().await, 0..4).await, expected);
}
