//! `refshim health`: whether the refshim that serves is ready, for the health checks of containers.

use std::time::Duration;

use clap::Args;

use super::output::print;
use super::reach::ADMIN;
use crate::client::{AdminClient, Error, Result};

/// Longer than refshim takes to ask its upstreams and its index.
const LIMIT: Duration = Duration::from_secs(8);

/// Asks the refshim that serves whether it is ready.
///
/// Prints what it says of its index and its upstreams, and ends with 0 if it is, else 1. For HEALTHCHECK in an image and
/// for scripts.
#[derive(Debug, Args)]
pub(super) struct Health {
    /// The admin listener of the refshim that serves.
    #[arg(long, value_name = "URL", default_value = ADMIN)]
    admin: String,
    /// Ask only whether the process is up, whatever is with its index and its upstreams.
    #[arg(long)]
    live: bool,
}

impl Health {
    pub(super) async fn run(self) -> Result<()> {
        const ASKED: &str = "asking refshim whether it is ready";
        let path = if self.live { "/healthz" } else { "/readyz" };
        let admin = AdminClient::new(&self.admin)?;
        let silent = || Error::failed(ASKED, format!("no answer within {LIMIT:?}"));
        let answer = tokio::time::timeout(LIMIT, admin.look(ASKED, path)).await;
        let (is_well, told) = answer.unwrap_or_else(|_| Err(silent()))?;
        print(told.trim_end())?;
        if is_well { Ok(()) } else { Err(Error::failed(ASKED, "it is not")) }
    }
}
