//! What the committer is asked for, each with the place for its answer.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::in_progress::PutMark;
use super::opening::OpeningError;
use super::record::ReferrerKey;
use super::sled::Store;
use super::watches::ReadMark;
use crate::index::{Observation, Order, Referrer, Removed, Repository, Version, WriteError};

/// What the committer is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    Write(Box<Queued>),
    /// There is something to do that waits elsewhere.
    Wake,
    /// sled has nearly caught up.
    Opened(Arc<Store>),
    /// sled could not be opened.
    NotOpened(OpeningError),
    /// This store could not be read.
    Failed(Arc<Store>),
    Close,
}

/// A write that waits.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) write: Write,
    /// The room that it takes up while it waits.
    pub(crate) _room: Option<OwnedSemaphorePermit>,
}

/// What is answered when it is durable.
#[derive(Debug)]
pub(crate) enum Write {
    Begin {
        repository: Repository,
        referrer: Referrer,
        reply: Reply<Put>,
    },
    Confirm {
        put: Put,
        reply: Reply<()>,
    },
    Refuse {
        put: Put,
        reply: Reply<()>,
    },
    Settle {
        repository: Repository,
        seen: Version,
        found: Referrer,
        reply: Reply<()>,
    },
    Remove {
        key: ReferrerKey,
        seen: Version,
        reply: Reply<Removed>,
    },
    Absent {
        key: ReferrerKey,
        seen: Version,
        reply: Reply<Removed>,
    },
    Doubt {
        key: ReferrerKey,
        reply: Reply<()>,
    },
    Learn {
        read: Arc<ReadMark>,
        learnt: Vec<Observation>,
        reply: Reply<()>,
    },
    /// An empty frame.
    Probe {
        reply: Reply<()>,
    },
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T, WriteError>>;

/// A PUT whose referrer is recorded as pending.
#[derive(Debug)]
pub(crate) struct Put {
    pub(crate) mark: PutMark,
    pub(crate) referrer: Referrer,
    pub(crate) order: Order,
}

impl Write {
    /// Whether whoever asked for it has given up, and it would be done for nobody: of a PUT that begins, the
    /// manifest is not sent on without an answer.
    pub(crate) fn is_abandoned(&self) -> bool {
        match self {
            Self::Begin { reply, .. } => reply.is_closed(),
            Self::Probe { reply } => reply.is_closed(),
            Self::Confirm { .. }
            | Self::Refuse { .. }
            | Self::Settle { .. }
            | Self::Remove { .. }
            | Self::Absent { .. }
            | Self::Doubt { .. }
            | Self::Learn { .. } => false,
        }
    }

    /// About how long its record is.
    pub(crate) fn size(&self) -> usize {
        const KEY: usize = 400;
        const LINK: usize = 110;
        let of = |referrer: &Referrer| KEY + referrer.descriptor.len() + LINK * referrer.links.len();
        match self {
            Self::Begin { referrer, .. }
            | Self::Settle { found: referrer, .. }
            | Self::Confirm { put: Put { referrer, .. }, .. } => of(referrer),
            Self::Learn { learnt, .. } => learnt.iter().map(|learnt| of(&learnt.referrer)).sum(),
            Self::Refuse { .. }
            | Self::Remove { .. }
            | Self::Absent { .. }
            | Self::Doubt { .. }
            | Self::Probe { .. } => KEY,
        }
    }
}
