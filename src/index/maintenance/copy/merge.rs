//! One pass: both sides walked beside each other.

use super::side::{Change, Row, Source, Target, View};
use super::sums::Sums;
use super::{Changes, CopyProgress};
use crate::index::Repository;
use crate::index::maintenance::MaintenanceError;
use crate::index::record::{Record, Recorded, ReferrerKey};
use crate::oci::Digest;

/// The result of a pass.
#[derive(Debug, Default)]
pub(super) struct Pass {
    pub(super) changes: Changes,
    pub(super) kept: u64,
    pub(super) source: Sums,
}

/// Makes the target as the source is.
pub(super) async fn pass(
    source: &Source,
    target: &mut Target,
    number: u64,
    progress: &CopyProgress,
) -> Result<Pass, MaintenanceError> {
    let view = target.view().await?;
    let mut repositories = source.0.repositories().await?;
    repositories.extend(view.repositories().await?);
    progress.begin_pass(number, repositories.len() as u64);
    let mut pass = Pass::default();
    for repository in &repositories {
        merge(repository, source, &view, target, &mut pass, progress).await?;
        let rest = target.flush(repository).await?;
        pass.count(rest, progress);
        progress.add(|progress| &progress.repositories_done, 1);
    }
    Ok(pass)
}

/// An index in numbers.
pub(super) async fn sums(view: &View) -> Result<Sums, MaintenanceError> {
    let mut sums = Sums::default();
    for repository in view.repositories().await? {
        let mut referrers = view.referrers(&repository);
        while let Some((digest, row)) = referrers.next().await? {
            sums.add(&content(&repository, &digest, &row), row.state().links.len())?;
        }
    }
    Ok(sums)
}

async fn merge(
    repository: &Repository,
    source: &Source,
    view: &View,
    target: &mut Target,
    pass: &mut Pass,
    progress: &CopyProgress,
) -> Result<(), MaintenanceError> {
    let (mut theirs, mut ours) = (source.0.referrers(repository), view.referrers(repository));
    let (mut left, mut right) = (theirs.next().await?, ours.next().await?);
    loop {
        let is_left = match (&left, &right) {
            (None, None) => return Ok(()),
            (Some((one, _)), Some((other, _))) => one <= other,
            (one, None) => one.is_some(),
            (None, Some(_)) => false,
        };
        let is_right = match (&left, &right) {
            (Some((one, _)), Some((other, _))) => other <= one,
            (_, other) => other.is_some(),
        };
        let from_left = if is_left { std::mem::replace(&mut left, theirs.next().await?) } else { None };
        let from_right = if is_right { std::mem::replace(&mut right, ours.next().await?) } else { None };
        let Some(digest) = from_left.as_ref().or(from_right.as_ref()).map(|(digest, _)| digest.clone())
        else {
            return Ok(());
        };
        progress.add(|progress| &progress.referrers, 1);
        let (there, here) = (from_left.map(|(_, row)| row), from_right.map(|(_, row)| row));
        if let Some(row) = &there {
            pass.source.add(&content(repository, &digest, row), row.state().links.len())?;
        }
        let key = ReferrerKey { repository: repository.clone(), digest };
        match needed(&key, there, here, target) {
            Needed::Nothing => {}
            Needed::Kept => pass.kept += 1,
            Needed::Change(change) => {
                let done = target.change(key, *change).await?;
                pass.count(done, progress);
            }
        }
    }
}

impl Pass {
    fn count(&mut self, done: Changes, progress: &CopyProgress) {
        self.changes = self.changes.and(done);
        progress.add(|progress| &progress.changes, done.sum());
    }
}

enum Needed {
    Nothing,
    /// They differ, and the target's stays.
    Kept,
    Change(Box<Change>),
}

fn needed(key: &ReferrerKey, there: Option<Row>, here: Option<Row>, target: &Target) -> Needed {
    let change = |change| Needed::Change(Box::new(change));
    let Some(here) = here else {
        return there.map_or(Needed::Nothing, |there| change(Change::Add(there.state().clone())));
    };
    let Some(there) = there else {
        return if target.is_as_copied(&here) {
            change(Change::Replace { before: here, after: None })
        } else if here.state().pending {
            Needed::Kept
        } else {
            change(Change::Tell { before: here, record: Record::Doubted(key.clone()) })
        };
    };
    let recorded = content(&key.repository, &key.digest, &there);
    if recorded == content(&key.repository, &key.digest, &here) {
        Needed::Nothing
    } else if target.is_as_copied(&here) {
        change(Change::Replace { before: here, after: Some(there.state().clone()) })
    } else if here.state().has(&recorded.links) {
        Needed::Kept
    } else {
        // Adds the links and changes nothing else: a claim, which says nothing of whether the registry has it.
        let absent_since = here.state().absent_since;
        let record =
            Recorded { pending: true, claimed: true, was_confirmed: false, absent_since, ..recorded };
        change(Change::Tell { before: here, record: Record::Recorded(record) })
    }
}

/// A referrer with its state and its links, without the version, which each index gives anew.
fn content(repository: &Repository, digest: &Digest, row: &Row) -> Recorded {
    let key = ReferrerKey { repository: repository.clone(), digest: digest.clone() };
    Recorded { version: None, ..Recorded::of(key, row.state().clone()) }
}
