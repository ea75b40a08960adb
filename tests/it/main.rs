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
mod access_log;
mod access_matrix;
mod across_repositories;
mod attach;
mod audit;
mod bad_moments;
mod broken_bodies;
mod buildkit_attestations;
mod client_breakages;
mod clients;
mod commands;
mod comparison;
mod configuration;
mod databases;
mod documents;
mod doors;
mod durability;
mod earlier;
mod early_answers;
mod filled;
mod forgetting;
mod going_away;
mod index_in_database;
mod injection;
mod kept_connections;
mod kept_lists;
mod large;
mod limits;
mod maintenance;
mod many_clients;
mod modes;
mod modules;
mod notifications;
mod observability;
mod odd_registries;
mod odd_requests;
mod openapi;
mod operation;
mod paging;
mod pass_through;
mod paths;
mod pulls;
mod pushes;
mod references;
mod referrers;
mod registry_lists;
mod reload;
mod request_log;
mod rollout;
mod self_signed;
mod serve_command;
mod service_manager;
mod silent_clients;
mod support;
mod test_databases;
mod test_registries;
mod tls;
mod traces;
mod tunnels;
mod upstream_faults;
mod upstreams;
mod web;
mod write_tags;
