//! refshim
pub mod index;
pub mod oci;
