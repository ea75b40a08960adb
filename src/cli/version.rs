//! `refshim version`.

use clap::Args;
use serde::Serialize;

use super::connection::Output;
use super::output::{print, print_json};
use crate::client::Result;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Prints the version, like --version.
#[derive(Debug, Args)]
pub(super) struct Version {
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Versions {
    version: &'static str,
}

impl Version {
    pub(super) fn run(&self) -> Result<()> {
        if self.output.json {
            print_json(&Versions { version: VERSION })
        } else {
            print(&format!("refshim {VERSION}"))
        }
    }
}
