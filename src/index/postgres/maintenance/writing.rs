//! Writing referrers as they are in another index.

use tokio_postgres::types::Type;

use super::IndexDatabase;
use crate::index::decision::Decision;
use crate::index::maintenance::MaintenanceError;
use crate::index::postgres::change;
use crate::index::postgres::connection::Session;
use crate::index::postgres::failure::Failure;
use crate::index::postgres::rows::{
    Head, columns, digest_key, digest_of, get, placed, repository_key, signed,
};
use crate::index::postgres::statements::{ADD_REPOSITORY, NOTE_REMOVAL, REMOVE, Sql};
use crate::index::postgres::unique::{copied_version, random};
use crate::index::record::ReferrerKey;
use crate::index::referrer_state::ReferrerState;
use crate::index::{Order, Repository};
use crate::oci::Digest;

/// What a batch holds at most, except for a single referrer that is larger.
const ROWS: usize = 200;
const LINKS: usize = 2_000;
const BYTES: usize = 1 << 20;
/// How often something is tried again while others change the same rows.
const TRIES: u32 = 20;

/// Adds referrers of one repository with their links, and tells which; those that are there already stay as they are.
static INSERT_MANY: Sql = Sql {
    text: "WITH r AS (SELECT * FROM unnest($2, $3, $4, $5, $6, $7, $8, $9) \
           AS u (referrer, pushed_us, pending, was_confirmed, claimed, absent_us, own, repeated)), \
           l AS (SELECT * FROM unnest($10, $11, $12) AS u (referrer, subject, kinds)), \
           g AS (SELECT referrer, array_agg(subject ORDER BY subject) AS subjects, \
           array_agg(kinds ORDER BY subject) AS kinds FROM l GROUP BY referrer), \
           head AS (INSERT INTO referrer (repo, referrer, pushed_us, revision, version, pending, was_confirmed, \
           claimed, absent_us, puts, puts_until_us, brought, doubted, subjects, kinds, descriptor) \
           SELECT $1, r.referrer, r.pushed_us, $13, $13, r.pending, r.was_confirmed, r.claimed, r.absent_us, \
           0, 0, false, false, COALESCE(g.subjects, ARRAY[]::bytea[]), COALESCE(g.kinds, ARRAY[]::smallint[]), r.own \
           FROM r LEFT JOIN g ON g.referrer = r.referrer \
           ON CONFLICT (repo, referrer) DO NOTHING RETURNING referrer), \
           made AS (INSERT INTO link (subject, repo, pushed_us, referrer, kinds, pending, was_confirmed, version, \
           descriptor) SELECT l.subject, $1, r.pushed_us, r.referrer, l.kinds, r.pending, r.was_confirmed, $13, \
           r.repeated FROM head JOIN r ON r.referrer = head.referrer JOIN l ON l.referrer = r.referrer) \
           SELECT referrer FROM head",
    types: &[
        Type::BYTEA,
        Type::BYTEA_ARRAY,
        Type::INT8_ARRAY,
        Type::BOOL_ARRAY,
        Type::BOOL_ARRAY,
        Type::BOOL_ARRAY,
        Type::INT8_ARRAY,
        Type::TEXT_ARRAY,
        Type::TEXT_ARRAY,
        Type::BYTEA_ARRAY,
        Type::BYTEA_ARRAY,
        Type::INT2_ARRAY,
        Type::INT8,
    ],
};

/// Referrers of one repository that are added with one statement.
#[derive(Debug)]
pub(super) struct Batch<'r> {
    repository: &'r Repository,
    rows: Columns,
    bytes: usize,
}

/// The columns of the rows in a batch, and those of their links.
#[derive(Debug, Default)]
struct Columns {
    referrers: Vec<Vec<u8>>,
    orders: Vec<i64>,
    pending: Vec<bool>,
    was_confirmed: Vec<bool>,
    claimed: Vec<bool>,
    absent: Vec<Option<i64>>,
    own: Vec<Option<String>>,
    repeated: Vec<Option<String>>,
    link_referrers: Vec<Vec<u8>>,
    link_subjects: Vec<Vec<u8>>,
    link_kinds: Vec<i16>,
}

impl<'r> Batch<'r> {
    pub(super) fn new(repository: &'r Repository) -> Self {
        Self { repository, rows: Columns::default(), bytes: 0 }
    }

    pub(super) fn is_full(&self) -> bool {
        self.rows.referrers.len() >= ROWS || self.rows.link_subjects.len() >= LINKS || self.bytes >= BYTES
    }

    pub(super) fn add(&mut self, digest: &Digest, state: &ReferrerState) {
        let key = digest_key(digest);
        let (subjects, kinds) = columns(&state.links);
        let (own, repeated) = placed(&state.descriptor, state.links.len());
        self.bytes += state.descriptor.len();
        let rows = &mut self.rows;
        rows.link_referrers.extend(std::iter::repeat_n(key.clone(), subjects.len()));
        rows.link_subjects.extend(subjects);
        rows.link_kinds.extend(kinds);
        rows.referrers.push(key);
        rows.orders.push(signed(state.order.0));
        rows.pending.push(state.pending);
        rows.was_confirmed.push(state.was_confirmed || !state.pending);
        rows.claimed.push(state.claimed);
        rows.absent.push(state.absent_since.map(signed));
        rows.own.push(own.map(str::to_owned));
        rows.repeated.push(repeated.map(str::to_owned));
    }

    /// Adds them to the database, and empties the batch. Tells how many were not there yet.
    pub(super) async fn insert(&mut self, session: &Session) -> Result<usize, Failure> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        if rows.referrers.is_empty() {
            return Ok(0);
        }
        insert(session, self.repository, &rows, copied_version(0)).await.map(|added| added.len())
    }
}

async fn insert(
    session: &Session,
    repository: &Repository,
    rows: &Columns,
    version: i64,
) -> Result<Vec<Digest>, Failure> {
    let (repo, upstream) = (repository_key(repository), i64::from(repository.upstream));
    session.row(&ADD_REPOSITORY, &[&repo, &upstream, &repository.name.as_str()]).await?;
    let added = session
        .rows(
            &INSERT_MANY,
            &[
                &repo,
                &rows.referrers,
                &rows.orders,
                &rows.pending,
                &rows.was_confirmed,
                &rows.claimed,
                &rows.absent,
                &rows.own,
                &rows.repeated,
                &rows.link_referrers,
                &rows.link_subjects,
                &rows.link_kinds,
                &version,
            ],
        )
        .await?;
    added.iter().map(|row| digest_of(get(row, 0)?)).collect()
}

/// Writes referrers that are copied from another index.
#[derive(Debug)]
pub(crate) struct Writing {
    session: Session,
}

impl IndexDatabase {
    /// A connection to write with.
    pub(crate) async fn write(&self) -> Result<Writing, MaintenanceError> {
        Ok(Writing { session: self.known().await? })
    }
}

impl Writing {
    /// Adds referrers of one repository. Tells how many were not there yet; the others stay as they are.
    pub(crate) async fn add(
        &self,
        repository: &Repository,
        referrers: &[(Digest, ReferrerState)],
    ) -> Result<usize, MaintenanceError> {
        let mut batch = Batch::new(repository);
        let mut added = 0;
        let mut begin = 0;
        for (index, (digest, state)) in referrers.iter().enumerate() {
            batch.add(digest, state);
            if batch.is_full() || index + 1 == referrers.len() {
                added += match batch.insert(&self.session).await {
                    // A subject has a referrer of this order already.
                    Err(Failure::Conflict) => {
                        let rest = referrers.get(begin..=index).unwrap_or_default();
                        self.add_one_by_one(repository, rest).await?
                    }
                    inserted => inserted?,
                };
                begin = index + 1;
            }
        }
        Ok(added)
    }

    async fn add_one_by_one(
        &self,
        repository: &Repository,
        referrers: &[(Digest, ReferrerState)],
    ) -> Result<usize, Failure> {
        let mut added = 0;
        for (digest, state) in referrers {
            let mut state = state.clone();
            let mut tries = 0;
            added += loop {
                let mut batch = Batch::new(repository);
                batch.add(digest, &state);
                match batch.insert(&self.session).await {
                    Err(Failure::Conflict) if tries < TRIES => tries += 1,
                    inserted => break inserted?,
                }
                if tries > 2 {
                    state.order = Order(state.order.0.saturating_add(random() % 1000 + 1));
                }
            };
        }
        Ok(added)
    }

    /// Replaces a referrer, or removes it, if it is still as it was read. Tells whether it was.
    pub(crate) async fn replace(
        &self,
        key: &ReferrerKey,
        before: &Head,
        after: Option<&ReferrerState>,
    ) -> Result<bool, MaintenanceError> {
        let transaction = self.session.transaction().await?;
        let (repo, referrer) = (repository_key(&key.repository), digest_key(&key.digest));
        if after.is_none() {
            self.note_removal(&key.repository).await?;
        }
        let removed = self.session.row(&REMOVE, &[&repo, &referrer, &before.revision]).await?.is_some();
        if removed && let Some(after) = after {
            let mut batch = Batch::new(&key.repository);
            batch.add(&key.digest, after);
            let version = copied_version(signed(before.state.version.0).max(before.revision));
            insert(&self.session, &key.repository, &batch.rows, version).await?;
        }
        transaction.commit().await?;
        Ok(removed)
    }

    /// Has what was decided written, if the referrer is still as it was read. Tells whether it was.
    pub(crate) async fn change(
        &self,
        key: &ReferrerKey,
        before: &Head,
        decision: Decision,
    ) -> Result<bool, MaintenanceError> {
        self.note_removal(&key.repository).await?;
        match change::write(&self.session, key, Some(before), decision, before.puts, 0).await {
            Ok(_) => Ok(true),
            Err(Failure::Conflict) => Ok(false),
            Err(failure) => Err(failure.into()),
        }
    }

    /// What a replica reads from the registry at this moment is recorded as pending.
    async fn note_removal(&self, repository: &Repository) -> Result<(), Failure> {
        let (repo, upstream) = (repository_key(repository), i64::from(repository.upstream));
        self.session.row(&NOTE_REMOVAL, &[&repo, &upstream, &repository.name.as_str()]).await.map(drop)
    }
}
