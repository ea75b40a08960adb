//! `refshim index check` of an index in a database: whether links and referrers agree.

use std::collections::HashMap;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::IndexDatabase;
use super::reading::repository;
use crate::index::maintenance::MaintenanceError;
use crate::index::postgres::connection::Session;
use crate::index::postgres::failure::Failure;
use crate::index::postgres::rows::{digest_key, digest_of, get, head, repository_key};
use crate::index::postgres::statements::Sql;

/// Rows that are read at once.
const CHUNK: i64 = 500;
/// How many odd rows are named; the others are counted.
const NAMED: usize = 100;

/// Referrers by their keys, each with whether its repository is known.
static REFERRERS: Sql = Sql {
    text: "SELECT r.pushed_us, r.revision, r.version, r.pending, r.was_confirmed, r.claimed, r.absent_us, r.puts, \
           r.puts_until_us, r.brought, r.doubted, r.subjects, r.kinds, r.descriptor, r.referrer, r.repo, \
           EXISTS (SELECT 1 FROM repository AS p WHERE p.repo = r.repo) FROM referrer AS r \
           WHERE (r.repo, r.referrer) > ($1, $2) ORDER BY r.repo, r.referrer LIMIT $3",
    types: &[Type::BYTEA, Type::BYTEA, Type::INT8],
};

/// The links of these keys.
static LINKS_OF: Sql = Sql {
    text: "SELECT l.repo, l.referrer, l.subject, l.kinds, l.pending, l.was_confirmed, l.version, l.descriptor \
           FROM unnest($1, $2, $3) AS u (subject, repo, pushed_us) JOIN link AS l \
           ON l.subject = u.subject AND l.repo = u.repo AND l.pushed_us = u.pushed_us",
    types: &[Type::BYTEA_ARRAY, Type::BYTEA_ARRAY, Type::INT8_ARRAY],
};

/// Links by their keys, each with whether its referrer has it.
static LINKS: Sql = Sql {
    text: "SELECT l.subject, l.repo, l.pushed_us, l.referrer, EXISTS (SELECT 1 FROM referrer AS r \
           WHERE r.repo = l.repo AND r.referrer = l.referrer AND r.pushed_us = l.pushed_us \
           AND l.subject = ANY (r.subjects)) FROM link AS l \
           WHERE (l.subject, l.repo, l.pushed_us) > ($1, $2, $3) ORDER BY l.subject, l.repo, l.pushed_us LIMIT $4",
    types: &[Type::BYTEA, Type::BYTEA, Type::INT8, Type::INT8],
};

/// Repositories by their keys.
static REPOSITORIES: Sql = Sql {
    text: "SELECT repo, upstream, name FROM repository WHERE repo > $1 ORDER BY repo LIMIT $2",
    types: &[Type::BYTEA, Type::INT8],
};

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatabaseReport {
    /// Number of repositories.
    pub repositories: u64,
    /// Number of referrers.
    pub referrers: u64,
    /// Those that the registry has to be asked for.
    pub pending: u64,
    /// Number of links.
    pub links: u64,
    /// How many rows are odd.
    pub odd: u64,
    /// The first of them.
    pub named: Vec<Odd>,
}

/// A row that is not as refshim writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Odd {
    /// Which row.
    pub row: String,
    /// What is odd.
    pub what: &'static str,
}

impl DatabaseReport {
    fn odd(&mut self, row: impl FnOnce() -> String, what: &'static str) {
        self.odd += 1;
        if self.named.len() < NAMED {
            self.named.push(Odd { row: row(), what });
        }
    }
}

/// A link's referrer and subject, as they are stored, in a repository.
type LinkKey = (Vec<u8>, Vec<u8>, Vec<u8>);

impl IndexDatabase {
    /// Reads the index from end to end, as it is at this moment.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn check(&self) -> Result<DatabaseReport, MaintenanceError> {
        let session = self.read_consistently().await?.session;
        let mut report = DatabaseReport::default();
        check_repositories(&session, &mut report).await?;
        check_referrers(&session, &mut report).await?;
        check_links(&session, &mut report).await?;
        Ok(report)
    }
}

async fn check_repositories(session: &Session, report: &mut DatabaseReport) -> Result<(), Failure> {
    let mut after: Vec<u8> = Vec::new();
    loop {
        let rows = session.rows(&REPOSITORIES, &[&after, &CHUNK]).await?;
        for row in &rows {
            after = get(row, 0)?;
            let (upstream, name): (i64, &str) = (get(row, 1)?, get(row, 2)?);
            report.repositories += 1;
            let shown = || format!("repository {name:?} of upstream {upstream}");
            match repository(upstream, name) {
                Ok(repository) if repository_key(&repository) == after => {}
                Ok(_) => report.odd(shown, "its key is another one's"),
                Err(_) => report.odd(shown, "it cannot be read"),
            }
        }
        if is_last(&rows) {
            return Ok(());
        }
    }
}

async fn check_referrers(session: &Session, report: &mut DatabaseReport) -> Result<(), Failure> {
    let (mut repo, mut referrer): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
    loop {
        let rows = session.rows(&REFERRERS, &[&repo, &referrer, &CHUNK]).await?;
        let mut links = links_of(session, &rows).await?;
        for row in &rows {
            (referrer, repo) = (get(row, 14)?, get(row, 15)?);
            check_referrer(row, &repo, &referrer, &mut links, report)?;
        }
        if is_last(&rows) {
            return Ok(());
        }
    }
}

/// The links of these referrers.
async fn links_of(session: &Session, rows: &[Row]) -> Result<HashMap<LinkKey, Row>, Failure> {
    let (mut subjects, mut repos, mut orders) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        let (order, of, repo): (i64, Vec<Vec<u8>>, Vec<u8>) = (get(row, 0)?, get(row, 11)?, get(row, 15)?);
        orders.extend(std::iter::repeat_n(order, of.len()));
        repos.extend(std::iter::repeat_n(repo, of.len()));
        subjects.extend(of);
    }
    let found = session.rows(&LINKS_OF, &[&subjects, &repos, &orders]).await?;
    found.into_iter().map(|row| Ok(((get(&row, 0)?, get(&row, 1)?, get(&row, 2)?), row))).collect()
}

fn check_referrer(
    row: &Row,
    repo: &[u8],
    referrer: &[u8],
    links: &mut HashMap<LinkKey, Row>,
    report: &mut DatabaseReport,
) -> Result<(), Failure> {
    report.referrers += 1;
    let shown = || format!("referrer {} in {}", digest(referrer), hexadecimal(repo));
    if !get::<bool>(row, 16)? {
        report.odd(shown, "its repository is unknown");
    }
    let own: Option<String> = get(row, 13)?;
    let is_repeated = own.is_none();
    let Ok(head) = head(row, own.unwrap_or_default()) else {
        report.odd(shown, "it cannot be read");
        return Ok(());
    };
    let state = head.state;
    report.pending += u64::from(state.pending);
    let listed: Vec<&[u8]> = get(row, 11)?;
    let kinds: Vec<i16> = get(row, 12)?;
    if digest_of(referrer).is_err() || listed.len() != kinds.len() || state.links.len() != listed.len() {
        report.odd(shown, "it cannot be read");
    }
    if is_repeated && state.links.is_empty() {
        report.odd(shown, "its descriptor is missing");
    }
    for (subject, kinds) in &state.links {
        let key = (repo.to_vec(), referrer.to_vec(), digest_key(subject));
        let Some(link) = links.remove(&key) else {
            report.odd(shown, "one of its links is missing");
            continue;
        };
        let agrees = get::<i16>(&link, 3)? == i16::from(kinds.bits())
            && get::<bool>(&link, 4)? == state.pending
            && get::<bool>(&link, 5)? == state.was_confirmed
            && u64::try_from(get::<i64>(&link, 6)?) == Ok(state.version.0)
            && get::<Option<&str>>(&link, 7)?.is_some() == is_repeated;
        if !agrees {
            report.odd(shown, "one of its links does not agree with it");
        }
    }
    Ok(())
}

async fn check_links(session: &Session, report: &mut DatabaseReport) -> Result<(), Failure> {
    let (mut subject, mut repo, mut order): (Vec<u8>, Vec<u8>, i64) = (Vec::new(), Vec::new(), i64::MIN);
    loop {
        let rows = session.rows(&LINKS, &[&subject, &repo, &order, &CHUNK]).await?;
        for row in &rows {
            (subject, repo, order) = (get(row, 0)?, get(row, 1)?, get(row, 2)?);
            report.links += 1;
            if !get::<bool>(row, 4)? {
                let referrer: &[u8] = get(row, 3)?;
                let shown = || {
                    format!(
                        "link from {} to {} in {}",
                        digest(referrer),
                        digest(&subject),
                        hexadecimal(&repo)
                    )
                };
                report.odd(shown, "its referrer does not have it");
            }
        }
        if is_last(&rows) {
            return Ok(());
        }
    }
}

fn is_last(rows: &[Row]) -> bool {
    i64::try_from(rows.len()).unwrap_or(0) < CHUNK
}

fn digest(key: &[u8]) -> String {
    digest_of(key).map_or_else(|_| hexadecimal(key), |digest| digest.to_string())
}

fn hexadecimal(key: &[u8]) -> String {
    use std::fmt::Write as _;
    key.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}
