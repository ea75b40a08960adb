//! What a reverse proxy does: which upstream a request is for, the client that asks it, what becomes of the heads of
//! messages on their way, and what a client is answered when that fails.

pub mod error;
pub mod forward;
pub mod selection;
pub mod upstream;
