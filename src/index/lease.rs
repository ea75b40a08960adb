//! What one of several replicas does at a time.

use std::time::Duration;

use super::{Engine, Index, WriteError};

/// A lease of this process, which it may have or not. It outlives a replica that was killed by no more than the time
/// that it was taken for.
#[derive(Clone, Debug)]
pub struct Lease {
    engine: Engine,
    name: String,
    holder: String,
}

impl Index {
    /// A lease of this name, not taken yet.
    #[must_use]
    pub fn lease(&self, name: String) -> Lease {
        Lease { engine: self.engine.clone(), name, holder: super::postgres::unique() }
    }
}

impl Lease {
    /// Takes it, or renews it, for so long from now; whether this process has it then. Always, where the index is this
    /// process's own.
    pub async fn take(&self, lasts: Duration) -> Result<bool, WriteError> {
        match &self.engine {
            Engine::Local(_) => Ok(true),
            Engine::Postgres(engine) => engine.take_lease(&self.name, &self.holder, lasts).await,
        }
    }

    /// Gives it back, if this process has it.
    pub async fn give_back(&self) -> Result<(), WriteError> {
        match &self.engine {
            Engine::Local(_) => Ok(()),
            Engine::Postgres(engine) => engine.release_lease(&self.name, &self.holder).await,
        }
    }
}
