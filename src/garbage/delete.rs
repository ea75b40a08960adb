//! Deletes a referrer: from the registry, from the list at its subject's referrers tag, from the index.

use futures_util::{StreamExt as _, stream};

use super::{Collection, Garbage, add};
use crate::client::{ErrorKind, Result};
use crate::oci::{RepositoryName, TagOrDigest};

impl Collection {
    /// Deletes garbage of one repository, except for what was tagged meanwhile: all repositories are looked through
    /// before the first deletion.
    pub(super) async fn delete_in(&self, name: &RepositoryName, garbage: Vec<Garbage>) {
        let keepers = async { self.keepers(&self.place(name)?).await };
        let keepers = match keepers.await {
            Ok(keepers) => keepers,
            Err(error) => return self.fail(name.to_string(), &error),
        };
        let is_kept = |it: &Garbage| keepers.keep(&it.found.digest, &it.found.subjects);
        let (kept, garbage): (Vec<_>, Vec<_>) = garbage.into_iter().partition(is_kept);
        for it in kept {
            self.fail(format!("{name}@{}", it.found.digest), &"has a tag by now; it is kept");
        }
        let deletions = stream::iter(garbage).map(|garbage| self.delete_one(garbage));
        deletions.buffer_unordered(self.plan.jobs).count().await;
    }

    async fn delete_one(&self, garbage: Garbage) {
        let what = format!("{}@{}", garbage.found.repository, garbage.found.digest);
        match self.try_delete(&garbage).await {
            Ok(None) => add(&self.counts.deleted, 1),
            Ok(Some(reason)) => self.fail(what, &reason),
            Err(error) => self.fail(what, &error),
        }
    }

    /// Deletes it; gives the reason why not.
    async fn try_delete(&self, garbage: &Garbage) -> Result<Option<String>> {
        let place = self.place(&garbage.found.repository)?;
        let repository = self.repository(garbage.found.repository.clone());
        let _turn = self.turns.acquire().await.ok();
        for subject in &garbage.found.subjects {
            if place.digest_for_sure(&TagOrDigest::Digest(subject.clone())).await?.is_some() {
                return Ok(Some(format!("{subject} is there; it is kept")));
            }
        }
        match self.index.version(&repository, &garbage.found.digest).await {
            Ok(version) if version == Some(garbage.version) => {}
            Ok(_) => return Ok(Some("the index knows other things of it by now; it is kept".to_owned())),
            Err(error) => return Ok(Some(error.to_string())),
        }
        match place.delete_manifest(&garbage.found.digest).await {
            // Somebody else did.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            deleted => deleted?,
        }
        // In this order: a list that names what is gone is put right by the next export, and the index finds out by
        // itself. The other way round, nobody would find it again.
        place.unlist(&garbage.manifest).await?;
        let removed = self.index.remove(repository, garbage.found.digest.clone(), garbage.version).await;
        Ok(removed.err().map(|error| error.to_string()))
    }
}
