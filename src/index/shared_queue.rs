//! Queues of what is to be worked off later, where several replicas share an index: kept beside it, so that what one
//! has taken is worked off by another one if it is lost.

use std::sync::Arc;
use std::time::Duration;

use super::postgres::{self, Postgres};
use super::{Engine, Index, WriteError};

/// Some events of a queue, which one replica works off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parcel {
    /// Its name in the queue.
    pub id: String,
    /// When it came, since 1970.
    pub received: Duration,
    /// The events, as lines of JSON.
    pub events: String,
}

/// A replica's part of a queue.
#[derive(Clone, Debug)]
pub struct SharedQueue {
    engine: Arc<Postgres>,
    queue: String,
    holder: String,
}

impl Index {
    /// The queue of this name, if the index is shared. Of one that is this process's own, queues are files.
    #[must_use]
    pub fn shared_queue(&self, queue: &str) -> Option<SharedQueue> {
        match &self.engine {
            Engine::Local(_) => None,
            Engine::Postgres(engine) => Some(SharedQueue {
                engine: Arc::clone(engine),
                queue: queue.to_owned(),
                holder: postgres::unique(),
            }),
        }
    }
}

impl SharedQueue {
    /// How often [`SharedQueue::take`] is to be called, so that nobody else takes over what this replica has.
    pub const RENEWED: Duration = Duration::from_secs(postgres::HELD.as_secs() / 3);

    /// Adds events, durably; gives their parcel's name.
    pub async fn add(&self, events: &str) -> Result<String, WriteError> {
        let id = postgres::unique();
        self.engine.add_parcel(&self.queue, &self.holder, &id, events).await?;
        Ok(id)
    }

    /// Removes a parcel that is worked off, unless somebody else has taken it over.
    pub async fn remove(&self, id: &str) -> Result<(), WriteError> {
        self.engine.remove_parcel(&self.queue, &self.holder, id).await
    }

    /// Renews this replica's parcels, and takes over some that others have left.
    pub async fn take(&self) -> Result<Vec<Parcel>, WriteError> {
        self.engine.take_parcels(&self.queue, &self.holder).await
    }
}
