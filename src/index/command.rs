//! What the committer is asked for, each with the place for its answer.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::in_flight::Mark;
use super::record::ReferrerKey;
use super::sled::Store;
use super::watches::Watch;
use super::{Learnt, Order, Referrer, Removed, Repository, Version, WriteError};

/// What the committer is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    Write(Box<Write>),
    /// sled has nearly caught up.
    Opened(Arc<Store>),
    Close,
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
    SettlePresent {
        key: ReferrerKey,
        seen: Version,
        reply: Reply<()>,
    },
    Remove {
        key: ReferrerKey,
        seen: Version,
        reply: Reply<Removed>,
    },
    Learn {
        watch: Arc<Watch>,
        learnt: Vec<Learnt>,
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
    pub(crate) mark: Mark,
    pub(crate) referrer: Referrer,
    pub(crate) order: Order,
}

impl Write {
    /// About how long its record is.
    pub(crate) fn size(&self) -> usize {
        const KEY: usize = 400;
        const LINK: usize = 110;
        let of = |referrer: &Referrer| KEY + referrer.descriptor.len() + LINK * referrer.links.len();
        match self {
            Self::Begin { referrer, .. } | Self::Confirm { put: Put { referrer, .. }, .. } => of(referrer),
            Self::Learn { learnt, .. } => learnt.iter().map(|learnt| of(&learnt.referrer)).sum(),
            Self::Refuse { .. } | Self::SettlePresent { .. } | Self::Remove { .. } | Self::Probe { .. } => {
                KEY
            }
        }
    }
}
