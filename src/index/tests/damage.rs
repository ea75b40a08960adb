//! What a crash, a disk or a person may do to the files.

use std::io::{Seek, SeekFrom, Write as _};

use super::*;
use crate::index::local::journal::format::{self, FORMAT, HEADER_BYTES, Header};
use crate::index::maintenance::dump_directory;

/// A closed index with pending, confirmed, removed and re-pushed referrers, and its answers.
async fn filled() -> (Bench, BTreeMap<u32, Vec<Listed>>) {
    let bench = Bench::new();
    let index = bench.open().await;
    for n in 0..60 {
        put(&index, 100 + n, &[n % 3, 3]).await;
    }
    put(&index, 105, &[4]).await;
    drop(begin(&index, 170, &[1]).await);
    let seen = version(&index, 103).await.unwrap();
    remove(&index, 103, seen).await;
    put(&index, 103, &[1]).await;
    let all = answers(&index, 0..5).await;
    index.close().await;
    (bench, all)
}

/// Pseudo-random bytes; the same for the same seed.
fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[4]
    })
}

fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    let mut file = fs::File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(bytes).unwrap();
}

#[tokio::test]
async fn without_sled_the_answers_are_the_same() {
    let (bench, expected) = filled().await;
    fs::remove_dir_all(bench.sled()).unwrap();
    let index = bench.open().await;
    assert_eq!(answers(&index, 0..5).await, expected);
    let before = index.statistics().unwrap();
    put(&index, 200, &[0]).await;
    assert_eq!(index.statistics().unwrap().referrers, before.referrers + 1);
}

/// Each file of sled, damaged by `damage`: the answers are the same, and no later ones stand before.
async fn check_damaged_sled(damage: impl Fn(&Path)) -> usize {
    let (original, expected) = filled().await;
    let mut rebuilds = 0;
    for path in files_in(&original.delta()).into_iter().filter(|path| path.is_file()) {
        let bench = original.after_crash();
        damage(&bench.delta().join(path.file_name().unwrap()));
        let index = bench.open().await;
        assert_eq!(answers(&index, 0..5).await, expected, "{}", path.display());
        put(&index, 200, &[5]).await;
        assert_eq!(numbers(&index, 5).await, [(200, false)]);
        index.close().await;
        rebuilds += bench.rebuilds();
    }
    rebuilds
}

#[tokio::test]
async fn noise_in_a_file_of_sled_changes_no_answer() {
    let mut rebuilds = 0;
    for seed in 1..6 {
        rebuilds += check_damaged_sled(|path| {
            let length = fs::metadata(path).unwrap().len();
            let bytes: Vec<u8> = noise(seed).take(usize::try_from(length).unwrap()).collect();
            fs::write(path, bytes).unwrap();
        })
        .await;
    }
    assert!(rebuilds > 0);
}

#[tokio::test]
async fn a_little_noise_in_a_file_of_sled_changes_no_answer() {
    for seed in 1..6 {
        check_damaged_sled(|path| {
            let length = fs::metadata(path).unwrap().len();
            let offset = noise(seed).take(8).fold(0, |offset, byte| offset << 8 | u64::from(byte)) % length;
            let bytes: Vec<u8> = noise(seed + 100).take(64).collect();
            overwrite(path, offset, &bytes);
        })
        .await;
    }
}

#[tokio::test]
async fn a_file_of_sled_cut_short_changes_no_answer() {
    for eighths in [0, 1, 5] {
        check_damaged_sled(|path| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() * eighths / 8).unwrap();
        })
        .await;
    }
}

#[tokio::test]
async fn what_a_kill_while_sled_opened_left_is_in_nobodys_way() {
    let (bench, expected) = filled().await;
    fs::write(bench.delta().join("snap.0000000000000000.generating"), b"").unwrap();
    let index = bench.open().await;
    assert_eq!(answers(&index, 0..5).await, expected);
    assert_eq!(bench.rebuilds(), 0);
}

#[tokio::test]
async fn a_sled_from_another_journal_is_built_anew_and_only_the_newest_is_kept() {
    let (bench, expected) = filled().await;
    for rebuilds in 1..4 {
        let (other, _) = filled().await;
        fs::remove_dir_all(bench.sled()).unwrap();
        copy_directory(&other.sled(), &bench.sled()).unwrap();
        let index = bench.open().await;
        assert_eq!(answers(&index, 0..5).await, expected);
        index.close().await;
        assert_eq!(bench.rebuilds(), rebuilds);
    }
}

/// A journal of one segment that lost what sled was made from.
async fn check_lost_end(length: u64) {
    let (bench, _) = filled().await;
    fs::File::options().write(true).open(bench.last_segment()).unwrap().set_len(length).unwrap();
    let dumped = dump_directory(&bench.settings.data_dir, Vec::new()).unwrap_err();
    assert!(dumped.to_string().contains("the journal is damaged"), "{dumped}");
    // It stays refused, also if it grew meanwhile.
    for n in 0..3 {
        let index = bench.try_open().unwrap();
        let put = index.begin(repository("a"), referrer(300 + n, &[3])).await;
        assert!(n == 0 || put.is_err());
        index.opened().await;
        let IndexState::Damaged(reason) = index.state() else { panic!("{:?}", index.state()) };
        assert!(reason.contains("refshim index rebuild"), "{reason}");
        drop(put);
        index.close().await;
    }
    let rebuilt = crate::index::local::maintenance::rebuild(&bench.settings.data_dir).unwrap();
    assert_eq!(rebuilt.gaps.is_empty(), length < HEADER_BYTES);
    let index = bench.open().await;
    assert!(numbers(&index, 3).await.iter().all(|(_, pending)| *pending));
}

#[tokio::test]
async fn a_journal_that_ends_before_sled_is_refused_until_it_is_mended() {
    let (bench, _) = filled().await;
    let length = fs::metadata(bench.last_segment()).unwrap().len();
    for length in [length - 1, length / 2, HEADER_BYTES, HEADER_BYTES - 1, 0] {
        check_lost_end(length).await;
    }
}

#[tokio::test]
async fn a_journal_that_is_gone_is_refused_if_there_is_a_sled() {
    let (bench, _) = filled().await;
    let journal = bench.settings.data_dir.join("journal");
    for removed in [bench.last_segment(), journal.clone()] {
        if removed.is_dir() {
            fs::remove_dir_all(removed).unwrap();
        } else {
            fs::remove_file(removed).unwrap();
        }
        for _ in 0..2 {
            check_refused(&bench, &journal, "it is missing, although sled, which is built from it, is there")
                .await;
        }
    }
}

#[tokio::test]
async fn the_last_frame_cut_at_any_byte_costs_nothing_before_it() {
    let (bench, expected) = filled().await;
    let before = fs::metadata(bench.last_segment()).unwrap().len();
    let index = bench.open().await;
    let _pending = begin(&index, 201, &[5]).await;
    index.close().await;
    let whole = fs::metadata(bench.last_segment()).unwrap().len();
    // A crash does not leave a sled that is ahead of the journal; without one the test is quicker, too.
    fs::remove_dir_all(bench.sled()).unwrap();
    for length in before..whole {
        let bench = bench.after_crash();
        fs::File::options().write(true).open(bench.last_segment()).unwrap().set_len(length).unwrap();
        let index = bench.open().await;
        assert_eq!(fs::metadata(bench.last_segment()).unwrap().len(), before);
        // Opening builds the same index each time: looking at it once in a while is enough.
        if length % 16 == 0 || length == before || length + 1 == whole {
            assert_eq!(answers(&index, 0..6).await[&3], expected[&3]);
            assert_eq!(numbers(&index, 5).await, []);
            put(&index, 202, &[5]).await;
            assert_eq!(numbers(&index, 5).await, [(202, false)]);
        }
    }
}

/// The journal is damaged: nothing is answered, nothing taken, and both say why.
async fn check_refused(bench: &Bench, file: &Path, what: &str) {
    let index = bench.try_open().unwrap();
    index.opened().await;
    let IndexState::Damaged(reason) = index.state() else { panic!("{:?}", index.state()) };
    let file = file.file_name().unwrap().to_str().unwrap();
    assert!(reason.contains(file) && reason.contains(what), "{reason}");
    assert!(reason.contains("refshim index rebuild"), "{reason}");
    let read = index.referrers(repository("a"), digest(3), everything()).await;
    assert_eq!(read, Err(ReadError::Damaged));
    let write = index.begin(repository("a"), referrer(10, &[1])).await.unwrap_err();
    assert_eq!(write, WriteError::Damaged);
    assert_eq!(index.write_failure(), Some(reason));
    // Clients learn what is to be done, and of no file.
    for told in [read.unwrap_err().to_string(), write.to_string()] {
        assert!(told.contains("refshim index rebuild") && !told.contains('/'), "{told}");
    }
    index.close().await;
}

#[tokio::test]
async fn a_flipped_byte_before_the_last_frame_is_refused() {
    let (bench, _) = filled().await;
    let bytes = fs::read(bench.last_segment()).unwrap();
    for tenths in 0..10 {
        let bench = bench.after_crash();
        let place =
            if tenths == 0 { usize::try_from(HEADER_BYTES).unwrap() } else { bytes.len() * tenths / 10 };
        overwrite(&bench.last_segment(), place as u64, &[bytes[place] ^ 0x20]);
        check_refused(&bench, &bench.last_segment(), "a frame that is not intact").await;
    }
}

#[tokio::test]
async fn damage_in_a_header_or_an_older_segment_is_refused() {
    let mut bench = Bench::new();
    bench.settings.segment_bytes = 2000;
    let index = bench.open().await;
    for n in 0..20 {
        put(&index, 100 + n, &[3]).await;
    }
    index.close().await;
    let segments = bench.journal_files("journal");
    assert!(segments.len() > 3);

    let damaged = |place: usize| {
        let bench = bench.after_crash();
        let path = bench.journal_files("journal").swap_remove(place);
        (bench, path)
    };
    let (bench, path) = damaged(segments.len() - 1);
    overwrite(&path, 20, b"?");
    check_refused(&bench, &path, "the header is not intact").await;
    let (bench, path) = damaged(1);
    overwrite(&path, 20, b"?");
    check_refused(&bench, &path, "the header is not intact").await;
    let (bench, path) = damaged(1);
    fs::remove_file(&path).unwrap();
    check_refused(&bench, &segments[0], "does not end where the next one begins").await;
    let (bench, path) = damaged(0);
    fs::remove_file(&path).unwrap();
    check_refused(&bench, &path, "the segment is missing").await;
    let (bench, path) = damaged(1);
    fs::File::options().write(true).open(&path).unwrap().set_len(1000).unwrap();
    check_refused(&bench, &path, "does not end where the next one begins").await;
    // What sled has is not read again. Without it, all is.
    let (bench, path) = damaged(1);
    overwrite(&path, 1000, b"?");
    fs::remove_dir_all(bench.sled()).unwrap();
    check_refused(&bench, &path, "there is no intact frame").await;
}

#[tokio::test]
async fn a_last_segment_that_was_never_begun_is_no_damage() {
    let (bench, expected) = filled().await;
    let end = fs::metadata(bench.last_segment()).unwrap().len();
    let torn = bench.settings.data_dir.join(format!("journal/{end:016x}.journal"));
    fs::write(&torn, b"refshim").unwrap();
    fs::write(torn.with_extension("journal.tmp"), b"refshim").unwrap();
    let index = bench.open().await;
    assert!(!torn.exists() && !torn.with_extension("journal.tmp").exists());
    assert_eq!(answers(&index, 0..5).await, expected);
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let (bench, _) = filled().await;
    let path = bench.last_segment();
    let bytes = fs::read(&path).unwrap();
    let header = Header::decode(&bytes[..usize::try_from(HEADER_BYTES).unwrap()]).unwrap();
    overwrite(&path, 0, &format::tests::newer(&header));
    let error = bench.try_open().unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{} has format version {}; this build reads versions up to {FORMAT}: use a newer build",
            path.display(),
            FORMAT + 1
        )
    );
}
