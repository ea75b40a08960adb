//! Links that pass, recorded in the index: those of manifests that are pushed or deleted, and of manifests that are
//! pulled.

pub mod pulls;
pub mod pushes;
