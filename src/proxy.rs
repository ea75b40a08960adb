//! The reverse proxy: which upstream a request goes to, the HTTP client that sends it, how heads are changed on the
//! way, and the error answers.

pub mod error;
pub mod forward;
pub mod selection;
pub mod upstream;
