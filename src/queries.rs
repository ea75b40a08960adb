//! What refers to a manifest? The two queries that ask it, and the pages that answer both.

pub mod pages;
pub mod references;
pub mod referrers;
