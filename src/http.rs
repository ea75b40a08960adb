//! What HTTP and a registry's API look like, without a registry: bodies, the grammar of paths and of `Link`, content
//! codings, ambiguous heads, and how much at once.

pub mod body;
pub mod coding;
pub mod framing;
pub mod header;
pub mod limits;
pub mod link;
pub mod route;
