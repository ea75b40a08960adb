//! Whether a manifest is in another repository than what refers to it: signatures may be kept in a repository of their
//! own (cosign's `COSIGN_REPOSITORY`, and the examples of the 2021 proposal).

use std::collections::BTreeSet;

use futures_util::{StreamExt as _, stream};

use super::Collection;
use crate::oci::{Digest, RepositoryName, TagOrDigest};

impl Collection {
    /// Those of these manifests that are in another repository, or may be, since one cannot be read.
    pub(super) async fn elsewhere(
        &self,
        than: &RepositoryName,
        digests: BTreeSet<Digest>,
    ) -> BTreeSet<Digest> {
        let looks: Vec<_> = digests
            .into_iter()
            .map(|digest| async move {
                for name in self.plan.all.iter().filter(|name| *name != than) {
                    if !self.is_absent(name, &digest).await {
                        return Some(digest);
                    }
                }
                None
            })
            .collect();
        let found = stream::iter(looks).buffer_unordered(self.plan.jobs);
        found.filter_map(std::future::ready).collect().await
    }

    async fn is_absent(&self, name: &RepositoryName, digest: &Digest) -> bool {
        let _turn = self.turns.acquire().await.ok();
        let look = async { self.place(name)?.digest_for_sure(&TagOrDigest::Digest(digest.clone())).await };
        match look.await {
            Ok(found) => found.is_none(),
            Err(error) => {
                self.fail(format!("{name}@{digest}"), &error);
                false
            }
        }
    }
}
