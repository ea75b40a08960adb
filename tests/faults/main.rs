//! What must hold whatever breaks: every acknowledged link is there, nothing that the registry refused is
//! listed, and no list is ever short. Short by default; `tests/faults/run` does it at length and prints a
//! table.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "these are tests"
)]

#[allow(dead_code, unused_imports, reason = "the other suite uses the rest")]
#[path = "../it"]
mod it {
    pub(crate) mod support;
}
use it::support;
use support::random;

mod clients;
mod damage;
mod database;
mod disk;
mod door;
mod full_disk;
mod kills;
mod ledger;
mod mounted;
mod moving;
mod oddities;
mod power;
mod process;
mod recording;
mod replicas;
mod shutdown;
mod soak;
mod table;
mod unreliable;
mod upstream;
