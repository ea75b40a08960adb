//! A registry's own referrers API, where it may or may not have one.

use std::sync::OnceLock;

use super::{Error, Repository, Result};
use crate::oci::Digest;

/// Whether a repository has the API, once that was asked. Not all repositories of a registry are alike: Quay turns it
/// on by organization, and behind a virtual registry stand several.
#[derive(Debug, Default)]
pub struct ReferrersApi {
    is_there: OnceLock<bool>,
}

impl ReferrersApi {
    /// What it lists for a subject; `None` if this repository, always the same one, has no API.
    ///
    /// # Errors
    /// The list cannot be read, or the registry lists the referrers of other manifests and not of this: no empty list,
    /// since what is on it is missing.
    pub async fn listed(&self, repository: &Repository, subject: &Digest) -> Result<Option<Vec<Digest>>> {
        if self.is_there.get() == Some(&false) {
            return Ok(None);
        }
        match repository.native_referrers(subject).await? {
            Some(referrers) => {
                let _known = self.is_there.set(true);
                Ok(Some(referrers))
            }
            None if *self.is_there.get_or_init(|| false) => {
                let asked = format!("asking {} what refers to {subject}", repository.name());
                Err(Error::failed(asked, "the registry lists the referrers of others, but not of this"))
            }
            None => Ok(None),
        }
    }
}
