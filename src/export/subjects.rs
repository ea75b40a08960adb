//! What is done about the list of one subject.

use std::collections::HashSet;

use super::merge::{Made, Merge};
use super::{Export, Mode, add};
use crate::backfill::Reason;
use crate::client::{ListChange as _, ReferrersApi, Repository as Place, Result};
use crate::oci::{Digest, RepositoryName, Tag, TagOrDigest};

/// A repository whose subjects are gone through.
pub(super) struct Subjects<'a> {
    pub(super) run: &'a Export,
    pub(super) place: &'a Place,
    pub(super) api: ReferrersApi,
    pub(super) name: &'a RepositoryName,
}

impl Subjects<'_> {
    pub(super) async fn one(&self, subject: Digest, ours: Vec<Digest>) {
        let what = format!("{}@{subject}", self.name);
        if let Err(error) = self.list(&what, &subject, ours).await {
            self.run.fail(what, &error);
        }
        add(&self.run.counts.subjects, 1);
    }

    async fn list(&self, what: &str, subject: &Digest, ours: Vec<Digest>) -> Result<()> {
        let api = {
            let _turn = self.run.turns.acquire().await.ok();
            self.api.listed(self.place, subject).await?
        };
        let mut merge = Merge::new(self.place, subject, ours);
        let mode = self.run.plan.mode;
        if let Some(listed) = api {
            let _turn = self.run.turns.acquire().await.ok();
            let listed: HashSet<Digest> = listed.into_iter().collect();
            let lacks = merge.lacks(|digest| listed.contains(digest)).await;
            self.told_missing(what, lacks, "the registry has it, but its referrers API does not list it");
        } else if mode == Mode::Write {
            let is_written = self.place.change_list(subject, &mut merge, Some(&self.run.turns)).await;
            // Also if it failed: what was found is so.
            self.made(what, merge.made(), is_written.as_ref().is_ok_and(|written| *written));
            if is_written.is_ok() && self.run.plan.tags_each {
                self.tag_each(&merge).await;
            }
            self.unread(what, &merge);
            return is_written.map(|_| ());
        } else {
            let _turn = self.run.turns.acquire().await.ok();
            let mut list = self.place.tagged_list(subject).await?.unwrap_or_default();
            if mode == Mode::Check {
                let lacks = merge.lacks(|digest| list.has(digest)).await;
                self.told_missing(what, lacks, "the registry has it, but its referrers tag does not list it");
            } else {
                let before = list.clone();
                merge.apply(&mut list).await?;
                self.made(what, merge.made(), list != before);
            }
        }
        self.unread(what, &merge);
        Ok(())
    }

    /// Counts and tells what was made of a list, or would be.
    fn made(&self, what: &str, made: &Made, is_written: bool) {
        if !is_written {
            return;
        }
        let counts = &self.run.counts;
        add(&counts.written, 1);
        add(&counts.added, made.added.len() as u64);
        add(&counts.corrected, made.corrected.len() as u64);
        let mut findings = self.run.findings();
        for (digest, reason) in &made.removed {
            let reason = format!("{digest} {reason}");
            findings.removed.insert(Reason { what: what.to_owned(), reason });
        }
        if self.run.plan.mode == Mode::DryRun {
            let (added, corrected, removed) = (made.added.len(), made.corrected.len(), made.removed.len());
            let reason = format!("{added} entries added, {corrected} corrected, {removed} removed");
            findings.would_write.insert(Reason { what: what.to_owned(), reason });
        }
    }

    /// Gives each referrer on the list a tag of its own.
    async fn tag_each(&self, merge: &Merge<'_>) {
        for digest in merge.about() {
            let _turn = self.run.turns.acquire().await.ok();
            match self.tag(digest).await {
                Ok(is_new) => add(&self.run.counts.tagged, is_new.into()),
                Err(error) => self.run.fail(format!("{}@{digest}", self.name), &error),
            }
        }
    }

    async fn tag(&self, digest: &Digest) -> Result<bool> {
        let tag = TagOrDigest::Tag(Tag::of_kept(digest));
        if self.place.digest(&tag).await?.as_ref() == Some(digest) {
            return Ok(false);
        }
        let manifest = self.place.manifest(&TagOrDigest::Digest(digest.clone())).await?;
        self.place.put_manifest(&tag, &manifest).await.map(|()| true)
    }

    fn told_missing(&self, what: &str, lacks: Vec<Digest>, why: &str) {
        let told = |digest| Reason { what: what.to_owned(), reason: format!("{digest}: {why}") };
        self.run.findings().missing.extend(lacks.into_iter().map(told));
    }

    fn unread(&self, what: &str, merge: &Merge<'_>) {
        add(&self.run.counts.absent, merge.absent().count() as u64);
        let told = |reason| Reason { what: what.to_owned(), reason };
        self.run.findings().failed.extend(merge.unread().map(told));
    }
}
