//! Snapshots: made beside writers, damaged, converted from an older format, and refused by nobody but older builds.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::index::local::journal::format::{self, Header, Identity};
use crate::index::local::sled::{Delta, DeltaSettings, Meta};
use crate::index::local::store::{SortedSnapshot, StoreError};
use crate::index::maintenance::{check, dump_directory, load_directory, rebuild};
use crate::index::record::{Record, Recorded};

const SUBJECTS: std::ops::Range<u32> = 0..40;
/// How long a header is.
const HEADER: usize = 48;

/// A closed index of which nearly all is in a snapshot of several blocks, and its answers.
async fn compacted() -> (Bench, BTreeMap<u32, Vec<Listed>>) {
    let mut bench = Bench::new();
    bench.settings.compact_bytes = 100_000;
    let index = bench.open().await;
    let mut n = 100;
    while index.statistics().unwrap().compactions == 0 {
        put(&index, n, &[n % 37, 37]).await;
        n += 1;
        assert!(n < 900, "a compaction ends");
    }
    drop(begin(&index, 901, &[1, 38]).await);
    for n in [101, 140] {
        let seen = version(&index, n).await.unwrap();
        remove(&index, n, seen).await;
    }
    put(&index, 902, &[38]).await;
    let all = answers(&index, SUBJECTS).await;
    counts(&index).await;
    index.close().await;
    assert_eq!(bench.journal_files("snapshot").len(), 1);
    (bench, all)
}

fn snapshot(bench: &Bench) -> PathBuf {
    bench.journal_files("snapshot").pop().unwrap()
}

fn flip(path: &Path, place: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[place] ^= 0x20;
    fs::write(path, bytes).unwrap();
}

/// Each list as before, or an error. How many are errors.
async fn check_answers(index: &Index, expected: &BTreeMap<u32, Vec<Listed>>) -> usize {
    let mut failed = 0;
    for (subject, expected) in expected {
        match index.referrers(repository("a"), digest(*subject), everything()).await {
            Ok(page) => assert_eq!(&listed(page.entries), expected, "{subject}"),
            Err(error) => {
                assert_eq!(error, ReadError::Damaged);
                failed += 1;
            }
        }
    }
    failed
}

async fn all_lists(index: &Index) -> Vec<Result<Vec<Listed>, ReadError>> {
    let mut all = Vec::new();
    for subject in SUBJECTS {
        let page = index.referrers(repository("a"), digest(subject), everything()).await;
        all.push(page.map(|page| listed(page.entries)));
    }
    all
}

#[tokio::test]
async fn a_damaged_block_costs_the_lists_that_need_it_and_no_others() {
    let (bench, expected) = compacted().await;
    let length = usize::try_from(fs::metadata(snapshot(&bench)).unwrap().len()).unwrap();
    let (mut with_errors, mut refused, mut with_the_same) = (0, 0, 0);
    for place in (HEADER..length).step_by(length / 23) {
        let bench = bench.after_crash();
        flip(&snapshot(&bench), place);
        let index = bench.open().await;
        let failed = check_answers(&index, &expected).await;
        assert!(failed < expected.len(), "{place}");
        with_errors += usize::from(failed > 0);
        assert!(failed == 0 || index.statistics().unwrap().damaged > 0);
        // What cannot be looked up is not recorded; all else is, and is listed if anything of its list is.
        for n in 910..930 {
            let begun = index.begin(repository("a"), referrer(n, &[n % 37])).await;
            let confirmed = match begun {
                Ok(put) => put.confirm().await,
                Err(error) => Err(error),
            };
            match confirmed {
                Ok(()) => {
                    let page = index.referrers(repository("a"), digest(n % 37), everything()).await;
                    let is_listed = |page: Page| page.entries.iter().any(|entry| entry.digest == digest(n));
                    assert!(page.map_or(true, is_listed), "{n}");
                }
                Err(error) => {
                    assert_eq!(error, WriteError::Damaged);
                    refused += 1;
                }
            }
        }
        let observed = (930..950).map(|n| Observation { referrer: referrer(n, &[n % 37]), claimed: false });
        let read = index.begin_read(repository("a")).await;
        let told = index.observe(&read, observed.collect()).await;
        assert!(matches!(told, Ok(()) | Err(WriteError::Damaged)), "{told:?}");
        let before = all_lists(&index).await;
        index.close().await;
        drop(index);
        // What was refused is neither in sled nor in the journal, and everything else is in both.
        fs::remove_dir_all(bench.sled()).unwrap();
        let index = bench.try_open().unwrap();
        // At once, while nothing can be looked up: it is taken, and may need the damaged block.
        put(&index, 990, &[39]).await;
        index.opened().await;
        assert_eq!(index.state(), IndexState::Ready);
        let after = all_lists(&index).await;
        // What was recorded before the damage may need the block now.
        let differs = |(before, after): &(&Result<_, _>, &Result<_, _>)| before != after && after.is_ok();
        let differing: Vec<_> =
            (0..).zip(before.iter().zip(&after)).filter(|(_, both)| differs(both)).collect();
        assert!(differing.iter().all(|(subject, _)| *subject == 39), "{place}: {differing:?}");
        with_the_same += usize::from(after.iter().filter(|list| list.is_err()).count() < 20);
        index.close().await;
        drop(index);
        let report = check(&bench.settings.data_dir).unwrap();
        assert!(failed == 0 || report.gaps.len() == 1, "{report:?}");
        check_rebuilt(&bench, &expected).await;
    }
    assert!(with_errors > 5 && refused > 5 && with_the_same > 5, "{with_errors} {refused} {with_the_same}");
}

/// A rebuild lists what was listed before, or names it.
async fn check_rebuilt(bench: &Bench, expected: &BTreeMap<u32, Vec<Listed>>) {
    let rebuilt = rebuild(&bench.settings.data_dir).unwrap();
    let index = bench.open().await;
    for (subject, expected) in expected {
        let found: BTreeSet<String> =
            entries(&index, *subject).await.into_iter().map(|entry| entry.descriptor).collect();
        for (descriptor, _, _) in expected {
            let number = (0..1000).find(|n| descriptor == &super::descriptor(*n)).unwrap();
            let is_lost = rebuilt.lost.contains(&(repository("a"), digest(number)));
            assert!(found.contains(descriptor) || is_lost, "{number} of {subject}: {rebuilt:?}");
        }
    }
    counts(&index).await;
    assert!(rebuilt.lost.len() < 60, "{}", rebuilt.lost.len());
    index.close().await;
}

#[tokio::test]
async fn a_compaction_that_cannot_be_made_changes_no_answer_and_is_made_up_for() {
    let (bench, _) = compacted().await;
    let intact = fs::read(snapshot(&bench)).unwrap();
    flip(&snapshot(&bench), HEADER + 500);
    let index = bench.open().await;
    // Enough for a compaction, in another repository: in what is intact.
    let other = repository("z/other");
    let mut puts = BTreeSet::new();
    for n in 0..300 {
        let referrer = referrer(2000 + n, &[50 + n % 3]);
        if let Ok(put) = index.begin(other.clone(), referrer).await
            && put.confirm().await.is_ok()
        {
            puts.insert(digest(2000 + n));
        }
    }
    assert!(puts.len() > 200, "{}", puts.len());
    let listed = |index: Index| async move {
        let mut found = BTreeSet::new();
        for subject in 50..53 {
            let repository = repository("z/other");
            let page = index.referrers(repository, digest(subject), everything()).await.unwrap();
            found.extend(page.entries.into_iter().map(|entry| entry.digest));
        }
        found
    };
    assert_eq!(listed(index.clone()).await, puts);
    assert_eq!(index.statistics().unwrap().compactions, 0);
    assert_eq!(files_in(&bench.sled()).len(), 2);
    let killed = bench.after_crash();
    index.close().await;
    drop(index);
    let without_sled = bench.after_crash();
    fs::remove_dir_all(without_sled.sled()).unwrap();
    for bench in [bench, killed, without_sled] {
        // The disk gives back what it was given.
        fs::write(snapshot(&bench), &intact).unwrap();
        let index = bench.open().await;
        assert_eq!(listed(index.clone()).await, puts);
        let mut probes = 0..2000;
        while index.statistics().unwrap().compactions == 0 {
            index.probe().await.unwrap();
            probes.next().expect("the compaction is made up for");
        }
        assert_eq!(listed(index.clone()).await, puts);
        counts(&index).await;
        index.close().await;
        drop(index);
        assert_eq!(bench.rebuilds(), 0);
        assert_eq!(listed(bench.open().await).await, puts);
    }
}

#[tokio::test]
async fn a_lost_table_of_contents_costs_nothing() {
    let (bench, expected) = compacted().await;
    let length = usize::try_from(fs::metadata(snapshot(&bench)).unwrap().len()).unwrap();
    for place in [length - 1, length - 40, length - 70] {
        let bench = bench.after_crash();
        flip(&snapshot(&bench), place);
        for _ in 0..2 {
            let index = bench.open().await;
            assert_eq!(answers(&index, SUBJECTS).await, expected);
            counts(&index).await;
            index.close().await;
        }
    }
}

#[tokio::test]
async fn a_dump_of_it_makes_the_same_index() {
    let (bench, expected) = compacted().await;
    let mut dump = Vec::new();
    dump_directory(&bench.settings.data_dir, &mut dump).unwrap();
    let other = Bench::new();
    load_directory(&other.settings.data_dir, dump.as_slice()).unwrap();
    let report = check(&other.settings.data_dir).unwrap();
    assert!(report.gaps.is_empty(), "{report:?}");
    for _ in 0..2 {
        let index = other.open().await;
        assert_eq!(answers(&index, SUBJECTS).await, expected);
        counts(&index).await;
        index.close().await;
    }
    // A dump of a damaged snapshot is the same or none.
    let (path, mut refused) = (snapshot(&bench), 0);
    let intact = fs::read(&path).unwrap();
    for place in (HEADER..intact.len()).step_by(intact.len() / 19) {
        flip(&path, place);
        let mut again = Vec::new();
        match dump_directory(&bench.settings.data_dir, &mut again) {
            Ok(_) => assert!(again == dump, "{place}"),
            Err(error) => {
                assert!(error.to_string().contains("is damaged at byte"), "{error}");
                refused += 1;
            }
        }
        fs::write(&path, &intact).unwrap();
    }
    assert!(refused > 3, "{refused}");
}

/// The referrers in a snapshot as records.
fn records_in_snapshot(journal: &Path, position: u64) -> Vec<Record> {
    let snapshot = Arc::new(SortedSnapshot::open(journal, position).unwrap().unwrap());
    let record = |state: Result<_, StoreError>| {
        let (key, state) = state.unwrap();
        Record::Recorded(Recorded::of(key, state))
    };
    snapshot.view().states().map(record).collect()
}

/// Gives a journal the form in which builds before format 3 wrote it: with a snapshot of records, in the order of their
/// referrers, if `position` says where.
fn make_old(bench: &Bench, with_snapshot: bool) {
    const OLD: u32 = 2;
    let directory = bench.settings.data_dir.join("journal");
    for path in bench.journal_files("journal") {
        let mut bytes = fs::read(&path).unwrap();
        let header = Header::decode(&bytes[..HEADER]).unwrap();
        bytes[..HEADER].copy_from_slice(&Header { format: OLD, ..header }.encode());
        fs::write(&path, bytes).unwrap();
    }
    if with_snapshot {
        let sorted = snapshot(bench);
        let header = Header::decode(&fs::read(&sorted).unwrap()[..HEADER]).unwrap();
        let (mut payload, mut referrers) = (Vec::new(), 0);
        for record in records_in_snapshot(&directory, header.position) {
            record.write_to(&mut payload).unwrap();
            referrers += 1;
        }
        let end = format!("{{\"end\":{{\"referrers\":{referrers}}}}}\n");
        payload.extend(end.as_bytes());
        let frame = format::seal(&payload).unwrap();
        fs::write(sorted, [Header { format: OLD, ..header }.encode(), frame].concat()).unwrap();
    }
}

/// A sled where older builds had it.
fn old_sled(bench: &Bench) {
    let settings = DeltaSettings { cache_bytes: 1 << 20, flush_interval: Duration::from_secs(1) };
    drop(Delta::open(&bench.sled(), settings, Meta::empty(Identity([7; 16]))).unwrap());
}

#[tokio::test]
async fn a_short_journal_of_an_older_build_goes_on_as_it_is() {
    let bench = Bench::new();
    let index = bench.open().await;
    for n in 0..20 {
        put(&index, 100 + n, &[n % 3, 3]).await;
    }
    let expected = answers(&index, 0..4).await;
    index.close().await;
    drop(index);
    make_old(&bench, false);
    fs::remove_dir_all(bench.sled()).unwrap();
    old_sled(&bench);
    for _ in 0..2 {
        let index = bench.open().await;
        assert_eq!(answers(&index, 0..4).await, expected);
        put(&index, 200, &[4]).await;
        index.close().await;
        assert!(!bench.sled().join("db").exists() && bench.journal_files("snapshot").is_empty());
    }
}

#[tokio::test]
async fn what_an_older_build_had_beyond_its_journal_is_told_and_replaces_nothing() {
    let (bench, _) = compacted().await;
    make_old(&bench, true);
    fs::remove_dir_all(bench.sled()).unwrap();
    let path = snapshot(&bench);
    let old = fs::read(&path).unwrap();
    let identity = Header::decode(&old[..HEADER]).unwrap().identity;
    let settings = DeltaSettings { cache_bytes: 1 << 20, flush_interval: Duration::from_secs(1) };
    let mut beyond = Meta { applied: 1 << 40, ..Meta::empty(identity) };
    let (sled, _) = Delta::open(&bench.sled(), settings, beyond).unwrap();
    sled.write([], &mut beyond).unwrap();
    drop(sled);
    // Noted, it is told again when sled's word is no longer needed.
    for what in ["it ends before what sled was made from", "does not end where the next one begins"] {
        let index = bench.try_open().unwrap();
        index.opened().await;
        let IndexState::Damaged(reason) = index.state() else { panic!("{:?}", index.state()) };
        assert!(reason.contains(what), "{reason}");
        index.close().await;
        drop(index);
        assert_eq!(bench.journal_files("snapshot").len(), 1);
        assert_eq!(fs::read(&path).unwrap(), old);
    }
}

#[tokio::test]
async fn what_an_older_build_wrote_is_taken_over_and_recorded_to_meanwhile() {
    let (new, expected) = compacted().await;
    make_old(&new, true);
    // Its sled was one, of another form.
    fs::remove_dir_all(new.sled()).unwrap();
    for has_sled in [true, false] {
        let bench = new.after_crash();
        if has_sled {
            old_sled(&bench);
        }
        let index = bench.try_open().unwrap();
        // At once: nothing can be looked up yet.
        put(&index, 950, &[39]).await;
        index.opened().await;
        assert_eq!(index.state(), IndexState::Ready);
        assert_eq!(numbers(&index, 39).await, [(950, false)]);
        let mut answered = answers(&index, SUBJECTS).await;
        answered.insert(39, Vec::new());
        assert_eq!(answered, expected);
        counts(&index).await;
        index.close().await;
        drop(index);
        assert!(!bench.sled().join("db").exists());
        assert_eq!(bench.journal_files("snapshot").len(), 1);
        assert_eq!(bench.rebuilds(), 0);
        let index = bench.open().await;
        assert_eq!(numbers(&index, 39).await, [(950, false)]);
        index.close().await;
    }
}

#[tokio::test]
async fn a_conversion_that_is_killed_is_done_again() {
    let (new, expected) = compacted().await;
    make_old(&new, true);
    fs::remove_dir_all(new.sled()).unwrap();
    let index = new.try_open().unwrap();
    let mut copies = Vec::new();
    while index.state() != IndexState::Ready {
        copies.push(new.after_crash());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    copies.push(new.after_crash());
    index.close().await;
    for copy in copies {
        let index = copy.open().await;
        assert_eq!(answers(&index, SUBJECTS).await, expected);
        index.close().await;
    }
}
