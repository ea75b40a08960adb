//! The index in a database (`index.url`), which several replicas share: its settings, and which of them need another.

use std::path::PathBuf;

use super::IndexConfig;
use super::database_url::DatabaseUrl;
use super::mistake::Mistake;
use super::service::secret;
use super::tls_files::Places;

/// The database that the index is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseConfig {
    /// Its URL.
    pub url: DatabaseUrl,
    /// The file with the password, if the URL has none. Read at each connection.
    pub password_file: Option<PathBuf>,
    /// TLS towards it.
    pub tls: DatabaseTls,
    /// How statements are sent. Default prepared.
    pub statements: Statements,
    /// Connections at a time at most. Default 10.
    pub connections: usize,
    /// Whether a serving refshim brings the schema up to date. Default no.
    pub migrate: bool,
    /// Whether refshim is not ready while the database cannot be reached. Default yes.
    pub readiness: bool,
}

/// TLS towards the database, which is always verified. All files are PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatabaseTls {
    /// Whether there is TLS: not with `sslmode=disable` in the URL, and not to Unix sockets.
    pub required: bool,
    /// The authorities that its certificate is verified with. Default: the platform's.
    pub ca: Option<PathBuf>,
    /// refshim's own client certificate, with its chain.
    pub certificate: Option<PathBuf>,
    /// The private key of that certificate.
    pub key: Option<PathBuf>,
    /// The name that its certificate must have. Default: the host of its URL.
    pub server_name: Option<String>,
}

/// How statements are sent to the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Statements {
    /// Prepared once on each connection.
    #[default]
    Prepared,
    /// Without a name each time, since a pool between (pgbouncer in transaction mode) may send the next one elsewhere.
    Unnamed,
}

impl DatabaseConfig {
    /// What the client connects by, with the password that is in the file now.
    ///
    /// # Errors
    /// The file cannot be read, or has no password in it.
    pub fn connection(&self) -> Result<tokio_postgres::Config, String> {
        let mut connection = self.url.config().clone();
        if let Some(file) = &self.password_file {
            connection.password(secret(file)?);
        }
        Ok(connection)
    }
}

/// The settings of the database while they are parsed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DatabaseDraft {
    pub(super) url: Option<DatabaseUrl>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) tls: DatabaseTls,
    pub(super) statements: Statements,
    pub(super) connections: usize,
    pub(super) migrate: bool,
    pub(super) readiness: bool,
}

impl Default for DatabaseDraft {
    fn default() -> Self {
        Self {
            url: None,
            password_file: None,
            tls: DatabaseTls::default(),
            statements: Statements::default(),
            connections: 10,
            migrate: false,
            readiness: true,
        }
    }
}

impl DatabaseDraft {
    /// The database, if the index is in one. Inconsistent settings are reported to `problem` with their keys.
    pub(super) fn finish(
        self,
        index: &IndexConfig,
        mut problem: impl FnMut(&'static str, &'static str),
    ) -> Option<DatabaseConfig> {
        let Some(url) = self.url else {
            for key in self.changed() {
                problem(key, "needs index.url");
            }
            return None;
        };
        for key in changed_local(index) {
            problem(key, "is of the index in data_dir, but index.url names a database: remove one of them");
        }
        if url.has_password() && self.password_file.is_some() {
            problem("index.password_file", "the password is in index.url already: remove one of them");
        }
        let mut tls = self.tls;
        if tls.certificate.is_some() != tls.key.is_some() {
            problem("index.tls", "set both certificate and key, or neither");
        }
        if !url.is_tls() && tls != DatabaseTls::default() {
            problem(
                "index.tls",
                "has no effect without TLS (index.url has sslmode=disable or a Unix socket)",
            );
        }
        tls.required = url.is_tls();
        Some(DatabaseConfig {
            url,
            password_file: self.password_file,
            tls,
            statements: self.statements,
            connections: self.connections,
            migrate: self.migrate,
            readiness: self.readiness,
        })
    }

    /// The keys, other than the URL's, that are not at their defaults.
    fn changed(&self) -> Vec<&'static str> {
        let default = Self::default();
        let changed = [
            ("index.password_file", self.password_file != default.password_file),
            ("index.statements", self.statements != default.statements),
            ("index.connections", self.connections != default.connections),
            ("index.migrate", self.migrate != default.migrate),
            ("index.readiness", self.readiness != default.readiness),
            ("index.tls", self.tls != default.tls),
        ];
        keys(changed)
    }

    /// The mistake in its file, at the place of its setting. `tls_files` looks at those of TLS.
    pub(super) fn mistake(&self, places: &Places) -> Option<Mistake> {
        let problem = secret(self.password_file.as_deref()?).err()?;
        let key = "index.password_file";
        Some(Mistake::new(places.get(key).map_or(key, String::as_str), problem))
    }
}

/// The keys of the index in `data_dir` that are not at their defaults. At these they say nothing, as in the example
/// file.
fn changed_local(index: &IndexConfig) -> Vec<&'static str> {
    let default = IndexConfig::default();
    let changed = [
        ("index.cache_bytes", index.cache_bytes != default.cache_bytes),
        ("index.compact_bytes", index.compact_bytes != default.compact_bytes),
    ];
    keys(changed)
}

fn keys<const N: usize>(changed: [(&'static str, bool); N]) -> Vec<&'static str> {
    changed.into_iter().filter(|(_, is_changed)| *is_changed).map(|(key, _)| key).collect()
}
