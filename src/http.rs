//! HTTP and the grammar of a registry's API, without a registry: bodies, routes and paths, header names, `Link`,
//! content codings, ambiguous heads, concurrency limits, and how connections are read and written.

pub mod body;
pub mod coding;
pub mod framing;
pub mod header;
pub mod limits;
pub mod link;
pub mod route;
pub mod stream;
pub mod user;
