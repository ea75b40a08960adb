//! refshim
pub mod oci;
