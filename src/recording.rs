//! Records the links of manifests that pass through: pushed and deleted ones ([`pushes`], and [`watched`] where
//! nothing of them may change), and pulled ones ([`pulls`]); and of those that refshim fetched by itself ([`found`]).
//! Where refshim writes referrers tags, pushes leave word of them ([`unlisted`]).
//!
//! A link is *pending* until the registry is known to have the referrer, then *confirmed*. A pending link is never
//! listed as it is: the query that meets it asks the registry for the referrer first. So whatever goes wrong between
//! the two (a crash, a time-out, a client that goes away), nothing is lost and nothing untrue is listed.

mod advice;
pub mod found;
pub mod learnt;
pub mod pulls;
pub mod pushes;
pub mod unlisted;
pub mod watched;
mod write;
