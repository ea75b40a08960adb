//! The two sides of a copy, each in a data directory or a database.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;

use super::Changes;
use crate::config::DatabaseConfig;
use crate::index::Repository;
use crate::index::decision::Decision;
use crate::index::local::maintenance::copying::TargetDirectory;
use crate::index::local::maintenance::scratch::Scratch;
use crate::index::maintenance::{IndexDatabase, MaintenanceError};
use crate::index::postgres::Head;
use crate::index::postgres::maintenance::reading::Reading;
use crate::index::postgres::maintenance::writing::Writing;
use crate::index::record::{Record, Recorded, ReferrerKey};
use crate::index::referrer_state::ReferrerState;
use crate::oci::Digest;

/// Referrers that are read at once, and that are added at once.
const PAGE: usize = 500;

/// Where an index is.
#[derive(Clone, Debug)]
pub enum CopyPlace {
    /// In this data directory.
    Directory(PathBuf),
    /// In this database.
    Database(Box<DatabaseConfig>),
}

/// What an index holds, sorted.
#[derive(Debug)]
pub(super) enum View {
    Directory(Box<Scratch>),
    Database(Reading),
}

/// A referrer as it was read.
#[derive(Debug)]
pub(super) enum Row {
    Directory(ReferrerState),
    Database(Head),
}

impl Row {
    pub(super) fn state(&self) -> &ReferrerState {
        match self {
            Self::Directory(state) => state,
            Self::Database(head) => &head.state,
        }
    }
}

impl View {
    pub(super) async fn repositories(&self) -> Result<BTreeSet<Repository>, MaintenanceError> {
        match self {
            Self::Directory(scratch) => scratch.repositories(),
            Self::Database(reading) => reading.repositories().await,
        }
    }

    /// The referrers of a repository, by digest.
    pub(super) fn referrers<'v>(&'v self, repository: &'v Repository) -> Referrers<'v> {
        Referrers { view: self, repository, page: VecDeque::new(), after: None, more: true }
    }
}

/// The referrers of a repository, by digest.
#[derive(Debug)]
pub(super) struct Referrers<'v> {
    view: &'v View,
    repository: &'v Repository,
    page: VecDeque<(Digest, Row)>,
    after: Option<Digest>,
    more: bool,
}

impl Referrers<'_> {
    pub(super) async fn next(&mut self) -> Result<Option<(Digest, Row)>, MaintenanceError> {
        while self.page.is_empty() && self.more {
            let after = self.after.take();
            (self.page, self.more) = match self.view {
                View::Directory(scratch) => {
                    let (page, more) = scratch.page(self.repository, after, PAGE)?;
                    (page.into_iter().map(|(digest, state)| (digest, Row::Directory(state))).collect(), more)
                }
                View::Database(reading) => {
                    let (page, more) = reading.page(self.repository, after.as_ref(), PAGE).await?;
                    (page.into_iter().map(|(digest, head)| (digest, Row::Database(head))).collect(), more)
                }
            };
            self.after = self.page.back().map(|(digest, _)| digest.clone());
        }
        Ok(self.page.pop_front())
    }
}

/// The index that is copied, as it is at one moment.
#[derive(Debug)]
pub(super) struct Source(pub(super) View);

impl Source {
    pub(super) async fn open(place: &CopyPlace) -> Result<Self, MaintenanceError> {
        Ok(Self(match place {
            CopyPlace::Directory(data_dir) => View::Directory(Box::new(Scratch::of_data_dir(data_dir)?)),
            CopyPlace::Database(database) => {
                View::Database(IndexDatabase::new(database)?.read_consistently().await?)
            }
        }))
    }
}

/// A change of the target.
#[derive(Debug)]
pub(super) enum Change {
    /// A referrer that it does not have.
    Add(ReferrerState),
    /// What an earlier copy put there, as it is now in the source; nothing if it is gone there.
    Replace { before: Row, after: Option<ReferrerState> },
    /// Something more of a referrer that is the target's own.
    Tell { before: Row, record: Record },
}

/// The index that is copied to.
#[derive(Debug)]
pub(super) enum Target {
    Directory(TargetDirectory),
    Database { database: IndexDatabase, writing: Writing, added: Vec<(Digest, ReferrerState)> },
}

impl Target {
    pub(super) async fn open(place: &CopyPlace) -> Result<Self, MaintenanceError> {
        Ok(match place {
            CopyPlace::Directory(data_dir) => Self::Directory(TargetDirectory::open(data_dir)?),
            CopyPlace::Database(database) => {
                let database = IndexDatabase::new(database)?;
                database.migrate().await?;
                let writing = database.write().await?;
                Self::Database { database, writing, added: Vec::new() }
            }
        })
    }

    pub(super) async fn view(&self) -> Result<View, MaintenanceError> {
        Ok(match self {
            Self::Directory(directory) => View::Directory(Box::new(directory.states()?)),
            Self::Database { database, .. } => View::Database(database.read().await?),
        })
    }

    /// Whether a referrer is as an earlier copy left it.
    pub(super) fn is_as_copied(&self, row: &Row) -> bool {
        match (self, row) {
            (Self::Directory(directory), _) => !directory.was_served,
            (_, Row::Database(head)) => head.is_as_copied(),
            (Self::Database { .. }, Row::Directory(_)) => false,
        }
    }

    pub(super) async fn change(
        &mut self,
        key: ReferrerKey,
        change: Change,
    ) -> Result<Changes, MaintenanceError> {
        match self {
            Self::Directory(directory) => change_directory(directory, key, change),
            Self::Database { writing, added, .. } => {
                if let Change::Add(state) = change {
                    added.push((key.digest, state));
                    if added.len() < PAGE {
                        return Ok(Changes::default());
                    }
                    return add_all(writing, &key.repository, added).await;
                }
                change_database(writing, &key, change).await
            }
        }
    }

    /// Writes what was collected of a repository.
    pub(super) async fn flush(&mut self, repository: &Repository) -> Result<Changes, MaintenanceError> {
        match self {
            Self::Directory(directory) => directory.write().map(|()| Changes::default()),
            Self::Database { writing, added, .. } => add_all(writing, repository, added).await,
        }
    }

    /// Makes the copy usable.
    pub(super) fn complete(&mut self) -> Result<(), MaintenanceError> {
        match self {
            Self::Directory(directory) => directory.complete(),
            Self::Database { .. } => Ok(()),
        }
    }
}

async fn add_all(
    writing: &Writing,
    repository: &Repository,
    added: &mut Vec<(Digest, ReferrerState)>,
) -> Result<Changes, MaintenanceError> {
    let new = writing.add(repository, added).await?;
    let missed = added.len().saturating_sub(new) as u64;
    added.clear();
    Ok(Changes { added: new as u64, missed, ..Changes::default() })
}

async fn change_database(
    writing: &Writing,
    key: &ReferrerKey,
    change: Change,
) -> Result<Changes, MaintenanceError> {
    let counted = counted(&change);
    let done = match change {
        Change::Replace { before: Row::Database(head), after } => {
            writing.replace(key, &head, after.as_ref()).await?
        }
        Change::Tell { before: Row::Database(head), record } => {
            writing.change(key, &head, Decision::Record(record)).await?
        }
        // Added together, and rows of a database are read from one.
        Change::Add(_) | Change::Replace { .. } | Change::Tell { .. } => false,
    };
    Ok(if done { counted } else { Changes { missed: 1, ..Changes::default() } })
}

fn change_directory(
    directory: &mut TargetDirectory,
    key: ReferrerKey,
    change: Change,
) -> Result<Changes, MaintenanceError> {
    let counted = counted(&change);
    let recorded = |key, state| Record::Recorded(Recorded { version: None, ..Recorded::of(key, state) });
    match change {
        Change::Add(state) => directory.add(&[recorded(key, state)])?,
        Change::Replace { after: None, .. } => directory.add(&[Record::Removed(key)])?,
        Change::Replace { after: Some(state), .. } => {
            directory.add(&[Record::Removed(key.clone()), recorded(key, state)])?;
        }
        Change::Tell { record, .. } => directory.add(&[record])?,
    }
    Ok(counted)
}

fn counted(change: &Change) -> Changes {
    let none = Changes::default();
    match change {
        Change::Add(_) => Changes { added: 1, ..none },
        Change::Replace { after: None, .. } => Changes { removed: 1, ..none },
        Change::Tell { record: Record::Doubted(_), .. } => Changes { doubted: 1, ..none },
        Change::Replace { .. } | Change::Tell { .. } => Changes { changed: 1, ..none },
    }
}
