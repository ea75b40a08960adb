//! refshim as its users meet it: the real binary in front of a real registry, and in front of a
//! scripted one for what a real one will not do on demand.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cloned_ref_to_slice_refs,
    reason = "these are tests"
)]

mod access;
mod access_matrix;
mod attestations;
mod breakages;
mod broken_off;
mod clients;
mod command;
mod commands;
mod comparison;
mod documents;
mod doors;
mod durability;
mod earlier;
mod early_answers;
mod elsewhere;
mod forgetting;
mod gathering;
mod going_away;
mod injection;
mod large;
mod learning;
mod limits;
mod maintenance;
mod many;
mod modules;
mod moments;
mod odd;
mod oddities;
mod operation;
mod paging;
mod pass_through;
mod paths;
mod queries;
mod recording;
mod referrers;
mod request_log;
mod self_signed;
mod silent;
mod support;
mod tls;
mod upgrade;
mod upstream_faults;
mod upstreams;
mod variants;
