//! Where the tests' indexes are: each in a directory or a database of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::config::{DatabaseConfig, DatabaseTls, Statements};
use crate::test_database::Postgres;

/// Runs SQL in the database of an index.
pub(super) fn server_sql(bench: &Bench, sql: &str) -> String {
    let database = bench.settings.database.as_ref().unwrap();
    let name = database.url.config().get_dbname().unwrap();
    server().psql(&format!("\\connect \"{name}\"\n{sql}"))
}

/// An index in a directory or a database of its own that can be closed and opened again.
pub(super) struct Bench {
    pub(super) directory: tempfile::TempDir,
    pub(super) settings: IndexSettings,
}

/// The server of this process's tests. It does not wait for the disk.
pub(super) fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(Postgres::start_fast)
}

/// The settings of a database.
pub(super) fn database(url: &str) -> DatabaseConfig {
    DatabaseConfig {
        url: url.parse().unwrap(),
        password_file: None,
        tls: DatabaseTls::default(),
        statements: Statements::Prepared,
        connections: 10,
        migrate: true,
        readiness: true,
    }
}

impl Bench {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = IndexSettings {
            database: None,
            data_dir: directory.path().join("data"),
            cache_bytes: 8 << 20,
            flush_interval: Duration::from_millis(100),
            segment_bytes: 64 << 20,
            compact_bytes: 1 << 30,
            repository_referrers: 1 << 20,
            timeout: Duration::from_secs(60),
            forget_after: Duration::from_secs(3600),
        };
        Self { directory, settings }
    }

    /// In a database of its own.
    pub(super) fn in_postgres() -> Self {
        static DATABASES: AtomicU32 = AtomicU32::new(0);
        let name = format!("index{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        let mut bench = Self::new();
        bench.settings.database = Some(database(&server().database(&name)));
        bench
    }

    /// One for each engine.
    pub(super) fn each() -> impl Iterator<Item = Self> {
        [false, true].into_iter().map(|is_local| if is_local { Self::new() } else { Self::in_postgres() })
    }

    pub(super) fn is_local(&self) -> bool {
        self.settings.database.is_none()
    }

    /// What changes with everything that is written.
    pub(super) async fn written(&self, index: &Index) -> Vec<(Digest, u64)> {
        if let Some(statistics) = index.statistics() {
            return vec![(digest(0), statistics.records)];
        }
        let all = everything_known(index).await;
        all.into_iter().map(|referrer| (referrer.digest, referrer.version.0)).collect()
    }

    /// Loses what can be built again.
    pub(super) fn lose_sled(&self) {
        if self.is_local() {
            fs::remove_dir_all(self.sled()).unwrap();
        }
    }

    /// A copy of all files, as a crash at this moment would leave them.
    pub(super) fn after_crash(&self) -> Self {
        let copy = Self::new();
        // A compaction may take files away meanwhile.
        while copy_directory(&self.settings.data_dir, &copy.settings.data_dir).is_err() {
            fs::remove_dir_all(&copy.settings.data_dir).unwrap();
        }
        let settings = IndexSettings { data_dir: copy.settings.data_dir.clone(), ..self.settings.clone() };
        Self { directory: copy.directory, settings }
    }

    pub(super) fn try_open(&self) -> Result<Index, OpenError> {
        Index::open(self.settings.clone())
    }

    /// The index, ready.
    pub(super) async fn open(&self) -> Index {
        let index = self.try_open().unwrap();
        index.opened().await;
        assert_eq!(index.state(), IndexState::Ready);
        index
    }

    pub(super) fn sled(&self) -> PathBuf {
        self.settings.data_dir.join("sled")
    }

    /// The directory of the newest delta.
    pub(super) fn delta(&self) -> PathBuf {
        files_in(&self.sled()).pop().unwrap()
    }

    pub(super) fn journal_files(&self, extension: &str) -> Vec<PathBuf> {
        let mut files: Vec<_> = files_in(&self.settings.data_dir.join("journal"));
        files.retain(|path| path.extension().is_some_and(|found| found == extension));
        files
    }

    pub(super) fn last_segment(&self) -> PathBuf {
        self.journal_files("journal").pop().unwrap()
    }

    /// How many times sled's directory was set aside, the last time included.
    pub(super) fn rebuilds(&self) -> usize {
        if !self.is_local() {
            return 0;
        }
        let names = files_in(&self.settings.data_dir);
        let names = names.iter().filter_map(|path| path.file_name()?.to_str()?.strip_prefix("sled.damaged-"));
        let numbers: Vec<usize> = names.map(|number| number.parse().unwrap()).collect();
        assert!(numbers.len() <= 1, "only the newest is kept");
        numbers.first().copied().unwrap_or(0)
    }
}

pub(super) fn files_in(directory: &Path) -> Vec<PathBuf> {
    try_files_in(directory).unwrap()
}

/// An error if somebody takes the directory away meanwhile.
fn try_files_in(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let files = fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
    let mut files = files.collect::<std::io::Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

pub(super) fn copy_directory(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for path in try_files_in(from)? {
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_directory(&path, &target)?;
        } else {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}
