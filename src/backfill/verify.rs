//! Asks for everything that is listed in a repository whether it is still there.

use std::sync::atomic::Ordering;

use futures_util::{StreamExt as _, stream};

use super::walk::Walk;
use super::{Add as _, Mode};
use crate::index::KnownReferrer;
use crate::oci::TagOrDigest;

/// Referrers that are read from the index at a time.
const PAGE: usize = 1_000;

impl Walk<'_> {
    /// All that the tags lead to and, in a sweep, all that is listed; whether all of it could be read.
    pub(super) async fn whole(&self, is_catalogued: bool) -> bool {
        let is_read = self.tags(is_catalogued).await;
        if self.run.plan.mode == Mode::Sweep { self.verify().await && is_read } else { is_read }
    }

    async fn verify(&self) -> bool {
        let (mut after, mut is_complete) = (None, true);
        loop {
            let page = match self.run.index.referrers_in(self.repository.clone(), after, PAGE).await {
                Ok(page) => page,
                Err(error) => {
                    let _told = self.run.fail(self.repository.name.to_string(), &error);
                    return false;
                }
            };
            after = page.referrers.last().map(|last| last.digest.clone());
            let looks = stream::iter(page.referrers).map(|known| self.look(known));
            let looks = looks.buffer_unordered(self.run.plan.jobs);
            is_complete = looks.fold(is_complete, async |all, is_known| all && is_known).await;
            if !page.more {
                return is_complete;
            }
        }
    }

    /// Whether it could be found out if the referrer is there.
    async fn look(&self, known: KnownReferrer) -> bool {
        let counts = &self.run.counts;
        counts.verified.add(1);
        let KnownReferrer { digest, version, .. } = known;
        let repository = self.repository.clone();
        let written =
            match self.asking(self.place.digest_for_sure(&TagOrDigest::Digest(digest.clone()))).await {
                Ok(Some(_)) => {
                    self.has_shown.store(true, Ordering::Relaxed);
                    return true;
                }
                // A registry that shows nothing at all may have lost its storage, or hide it.
                Ok(None) if !self.has_shown.load(Ordering::Relaxed) => {
                    self.run.index.doubt(repository, digest.clone()).await
                }
                Ok(None) => self.run.index.absent(repository, digest.clone(), version).await.map(drop),
                Err(error) => {
                    let _told = self.run.fail(format!("{}@{digest}", self.repository.name), &error);
                    return false;
                }
            };
        counts.vanished.add(1);
        let told = |error| self.run.fail(format!("{}@{digest}", self.repository.name), &error);
        written.map_err(told).is_ok()
    }
}
