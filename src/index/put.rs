//! PUTs in progress.

use std::sync::Arc;

use super::local::Local;
use super::local::write::{self, Write};
use super::{WriteError, postgres};

/// A PUT that was recorded before its manifest goes upstream. If it is dropped, the outcome is unknown: the referrer
/// becomes pending, so that the upstream is asked for it before it is listed.
#[derive(Debug)]
#[must_use = "dropped, the outcome of the PUT is unknown"]
pub struct PutInFlight(pub(super) InFlight);

#[derive(Debug)]
pub(super) enum InFlight {
    Local(LocalPut),
    Postgres(postgres::Put),
}

/// A PUT of the engine on this machine.
#[derive(Debug)]
pub(super) struct LocalPut {
    pub(super) engine: Arc<Local>,
    /// None once the outcome is reported.
    pub(super) put: Option<write::Put>,
}

impl PutInFlight {
    /// Records that the upstream accepted the manifest.
    pub async fn confirm(self) -> Result<(), WriteError> {
        match self.0 {
            InFlight::Local(mut it) => {
                let Some(put) = it.put.take() else { return Ok(()) };
                it.engine.write(|reply| Write::Confirm { put, reply }).await
            }
            InFlight::Postgres(put) => put.confirm().await,
        }
    }

    /// Records that the upstream refused the manifest.
    pub async fn refuse(self) -> Result<(), WriteError> {
        match self.0 {
            InFlight::Local(mut it) => {
                let Some(put) = it.put.take() else { return Ok(()) };
                it.engine.write(|reply| Write::Refuse { put, reply }).await
            }
            InFlight::Postgres(put) => put.refuse().await,
        }
    }
}

impl Drop for LocalPut {
    fn drop(&mut self) {
        // Dropping the mark in it asks for a doubt; the committer must be woken to write that.
        if self.put.take().is_some() {
            self.engine.wake();
        }
    }
}
