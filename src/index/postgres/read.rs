//! Queries: each one statement, or one for every page of a long list.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::Row;

use super::connection::Session;
use super::failure::Failure;
use super::rows::{Head, digest_key, digest_of, get, head, kinds_of, number, repository_key, signed};
use super::{Postgres, statements};
use crate::index::record::ReferrerKey;
use crate::index::{Entry, KnownReferrer, Order, Page, ReadError, Repository, RepositoryPage, Scan, Version};
use crate::oci::{Digest, RepositoryName};

/// Entries that are read at once. Pages of the index that the database has to read from disk are read one after the
/// other, so a list is not read further than it is needed.
const CHUNK: usize = 200;
/// The longest wait for the number of referrers in a repository.
const COUNT_WAIT: Duration = Duration::from_secs(2);
/// Bytes of the descriptors on a page of a walk after which it ends.
const WALK_BYTES: usize = 4 << 20;
/// Referrers that a walk reads at once.
const WALK_CHUNK: usize = 500;

impl Postgres {
    pub(crate) async fn version(&self, key: &ReferrerKey) -> Result<Option<Version>, ReadError> {
        let (repo, referrer) = (repository_key(&key.repository), digest_key(&key.digest));
        let (repo, referrer) = (&repo, &referrer);
        let read = self.run(|session| async move {
            let row = session.row(&statements::VERSION, &[repo, referrer]).await?;
            row.map(|row| Ok(Version(number(&row, 0)?))).transpose()
        });
        Ok(read.await?)
    }

    /// The version also while it is being PUT.
    #[cfg(test)]
    pub(crate) async fn current_version(&self, key: &ReferrerKey) -> Option<Version> {
        let read = self.run(|session| async move { super::change::read(&session, key).await });
        read.await.unwrap().head.map(|head| head.state.version)
    }

    pub(crate) async fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        scan: &Scan,
    ) -> Result<Page, ReadError> {
        let (repo, subject) = (repository_key(repository), digest_key(subject));
        let (repo, subject) = (&repo, &subject);
        Ok(self.run(|session| async move { page(&session, repo, subject, scan).await }).await?)
    }

    pub(crate) async fn repositories(
        &self,
        upstream: u32,
        subject: &Digest,
    ) -> Result<Vec<RepositoryName>, ReadError> {
        let (upstream, subject) = (i64::from(upstream), digest_key(subject));
        let (upstream, subject) = (&upstream, &subject);
        let read = self.run(|session| async move {
            let rows = session.rows(&statements::REPOSITORIES, &[upstream, subject]).await?;
            // By us: the database's collation may be any.
            let mut names: Vec<RepositoryName> = rows.iter().map(name).collect::<Result<_, _>>()?;
            names.sort();
            Ok(names)
        });
        Ok(read.await?)
    }

    pub(crate) async fn referring_repositories(
        &self,
        upstream: u32,
        after: Option<RepositoryName>,
        max: usize,
    ) -> Result<Vec<RepositoryName>, ReadError> {
        let after = after.map(|name| name.to_string()).unwrap_or_default();
        let (upstream, max, after) = (i64::from(upstream), limit(max), &after);
        let (upstream, max) = (&upstream, &max);
        let read = self.run(|session| async move {
            let rows = session.rows(&statements::REFERRING_REPOSITORIES, &[upstream, after, max]).await?;
            rows.iter().map(name).collect()
        });
        Ok(read.await?)
    }

    pub(crate) async fn referrers_in(
        &self,
        repository: &Repository,
        after: Option<&Digest>,
        max: usize,
    ) -> Result<RepositoryPage, ReadError> {
        let repo = repository_key(repository);
        let after = after.map(digest_key).unwrap_or_default();
        let (repo, after) = (&repo, &after);
        Ok(self.run(|session| async move { walk(&session, repo, after.clone(), max).await }).await?)
    }

    /// Whether a repository may have more referrers. Yes if they cannot be counted now: a limit on growth is no reason
    /// to refuse what cannot be checked.
    pub(crate) async fn has_room(&self, repository: &Repository) -> bool {
        if let Some(has_room) = self.room.get(repository) {
            return has_room;
        }
        // Others that ask meanwhile do not count as well.
        self.room.insert(repository.clone(), true);
        let (repo, limit) = (repository_key(repository), signed(self.repository_referrers));
        let (repo, limit) = (&repo, &limit);
        let counted = self.run(|session| async move {
            let row = session.row(&statements::COUNT, &[repo, limit]).await?;
            row.map_or(Ok(0), |row| get::<i64>(&row, 0))
        });
        // With a limit of its own: of a repository with a million referrers the count may take longer than it is worth.
        let count = timeout(COUNT_WAIT, counted).await.ok().and_then(Result::ok);
        let has_room = count.is_none_or(|count| count < *limit);
        self.room.insert(repository.clone(), has_room);
        has_room
    }
}

async fn page(session: &Session, repo: &Vec<u8>, subject: &Vec<u8>, scan: &Scan) -> Result<Page, Failure> {
    let mut page = Page { entries: Vec::new(), more: false };
    let (mut bytes, mut claims) = (0, 0);
    let mut after = scan.after.map_or(-1, |order| signed(order.0));
    // One more than is asked for tells whether there are more.
    let chunk = scan.max_entries.saturating_add(1).clamp(2, CHUNK);
    loop {
        let rows = session.rows(&statements::LIST, &[subject, repo, &after, &limit(chunk)]).await?;
        let is_last = rows.len() < chunk;
        for row in &rows {
            let Some(entry) = entry(session, repo, row).await? else { continue };
            if !(scan.accepts)(&entry) {
                continue;
            }
            bytes += entry.descriptor.len() + 1;
            claims += usize::from(!entry.was_confirmed);
            let fits = (bytes <= scan.max_bytes && claims <= scan.max_claims) || page.entries.is_empty();
            if page.entries.len() >= scan.max_entries || !fits {
                page.more = true;
                return Ok(page);
            }
            page.entries.push(entry);
        }
        if is_last {
            return Ok(page);
        }
        if let Some(last) = rows.last() {
            after = get(last, 0)?;
        }
    }
}

/// The entry in a row of a list; none if the referrer was removed meanwhile.
async fn entry(session: &Session, repo: &Vec<u8>, row: &Row) -> Result<Option<Entry>, Failure> {
    let key: &[u8] = get(row, 1)?;
    let descriptor = match get::<Option<String>>(row, 6)? {
        Some(descriptor) => descriptor,
        None => match session.row(&statements::DESCRIPTOR, &[repo, &key]).await? {
            // It was changed meanwhile so that the links repeat it: then it is as good as new.
            Some(row) => match get(&row, 0)? {
                Some(descriptor) => descriptor,
                None => return Err(Failure::Conflict),
            },
            None => return Ok(None),
        },
    };
    Ok(Some(Entry {
        order: Order(number(row, 0)?),
        digest: digest_of(key)?,
        kinds: kinds_of(get(row, 2)?)?,
        pending: get(row, 3)?,
        was_confirmed: get(row, 4)?,
        version: Version(number(row, 5)?),
        descriptor,
    }))
}

async fn walk(
    session: &Session,
    repo: &Vec<u8>,
    after: Vec<u8>,
    max: usize,
) -> Result<RepositoryPage, Failure> {
    let (heads, more) = heads(session, repo, after, max).await?;
    let known = |(digest, Head { state, .. })| KnownReferrer {
        digest,
        order: state.order,
        pending: state.pending,
        was_confirmed: state.was_confirmed,
        claimed: state.claimed,
        version: state.version,
        descriptor: state.descriptor,
        links: state.links,
    };
    Ok(RepositoryPage { referrers: heads.into_iter().map(known).collect(), more })
}

/// The rows of referrers in a repository, by digest, and whether there are more.
pub(super) async fn heads(
    session: &Session,
    repo: &Vec<u8>,
    mut after: Vec<u8>,
    max: usize,
) -> Result<(Vec<(Digest, Head)>, bool), Failure> {
    let mut heads = Vec::new();
    let mut bytes = 0;
    loop {
        let chunk = (max - heads.len()).saturating_add(1).min(WALK_CHUNK);
        let rows = session.rows(&statements::WALK, &[repo, &after, &limit(chunk)]).await?;
        let is_last = rows.len() < chunk;
        for row in rows {
            if heads.len() >= max || bytes > WALK_BYTES {
                return Ok((heads, true));
            }
            let key: Vec<u8> = get(&row, 14)?;
            let descriptor = match get::<Option<String>>(&row, 13)? {
                Some(descriptor) => descriptor,
                None => match session.row(&statements::DESCRIPTOR, &[repo, &key]).await? {
                    Some(row) => get::<Option<String>>(&row, 0)?.ok_or(Failure::Conflict)?,
                    None => continue,
                },
            };
            bytes += descriptor.len();
            heads.push((digest_of(&key)?, head(&row, descriptor)?));
            after = key;
        }
        if is_last {
            return Ok((heads, false));
        }
    }
}

fn name(row: &Row) -> Result<RepositoryName, Failure> {
    let name: &str = get(row, 0)?;
    name.parse().map_err(|_| Failure::Malformed("the name of a repository is unreadable".to_owned()))
}

fn limit(max: usize) -> i64 {
    i64::try_from(max).unwrap_or(i64::MAX)
}
