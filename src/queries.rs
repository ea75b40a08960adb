//! The two queries that refshim answers: [`references`] of the 2021 proposal and [`referrers`] of OCI 1.1. Both list
//! what refers to a manifest, from the same [`pages`].
//!
//! In both, repeats of a filter mean "or" and different filters "and"; only filters that were applied are named in
//! `OCI-Filters-Applied`, on every page. Pages end by bytes (`references.page_bytes`, just under 4 MiB) and not by a
//! small count: 4 MiB is the most that clients read, and go-containerregistry, containerd and rust-oci-client do not
//! follow `Link`. Entries are in the order of pushes, oldest first: one client takes the last as the newest.

pub mod extensions;
pub mod pages;
pub mod references;
pub mod referrers;
