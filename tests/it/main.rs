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
mod buildkit_attestations;
mod client_breakages;
mod broken_bodies;
mod clients;
mod serve_command;
mod commands;
mod comparison;
mod documents;
mod doors;
mod durability;
mod earlier;
mod early_answers;
mod across_repositories;
mod forgetting;
mod registry_lists;
mod going_away;
mod injection;
mod large;
mod pulls;
mod limits;
mod maintenance;
mod many_clients;
mod modules;
mod bad_moments;
mod odd_requests;
mod odd_registries;
mod operation;
mod paging;
mod pass_through;
mod paths;
mod references;
mod pushes;
mod referrers;
mod request_log;
mod self_signed;
mod silent_clients;
mod support;
mod tls;
mod tunnels;
mod upstream_faults;
mod upstreams;
mod test_registries;
