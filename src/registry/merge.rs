//! Merges what the registry itself lists of a subject's referrers into the index: the image index at the subject's
//! referrers tag, and the registry's own referrers API where it has one. So queries read one list in one order, and
//! their pages do not depend on how many sources there are.
//!
//! - **It never ends.** A registry with the API must list what the tag lists (distribution-spec, "Enabling the
//!   Referrers API"), and clients go on writing the tag: notation 1.x by default, oras-go after a PUT without
//!   `OCI-Subject`, regctl for five minutes, and whoever does not go through refshim. An import would not do.
//! - **A tag proves nothing.** Anybody may write it, so each entry's manifest is fetched, must name the subject, and
//!   its descriptor is computed from its bytes: go-containerregistry before 0.22.1 wrote entries without annotations.
//! - **A failure is an error, never a shorter list.** But an error is read as "unsigned" too: while the registry
//!   throttles (429, 503) or fails (5xx), the last completed merge answers, for `referrers.stale_for` and only if
//!   nothing was written since (a write begins a new epoch, which has no merge).
//! - **A referrer that a list no longer has** may have been deleted without refshim. It is asked for, and only
//!   doubted, never removed at once: one 404 is no proof.

mod pass;

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::flights::Flights;
use super::memory::{Epoch, ListFingerprint, Merge};
use super::question::CallerKey;
use super::referrers_api::{Api, ListPage, listed};
use super::{Answer, FetchedManifest, Question, Registry, Visit};
use crate::config::Config;
use crate::index::Index;
use crate::oci::{Digest, Tag, TagOrDigest};
use crate::proxy::error::Error;
use crate::registry::reader::ManifestReader;
use pass::Pass;

/// Merges the registry's own lists of referrers into the index.
#[derive(Debug)]
pub struct Merger {
    registry: Arc<Registry>,
    index: Index,
    reader: ManifestReader,
    flights: Flights<(Epoch, CallerKey, Digest, bool), Shown>,
    fresh_for: Duration,
    stale_for: Duration,
    concurrency: usize,
}

/// Whether the registry served a list that proves that the caller may read the repository.
type Shown = bool;

impl Merger {
    /// Merges what `registry` lists into `index`.
    #[must_use]
    pub fn new(registry: Arc<Registry>, index: Index, reader: ManifestReader, config: &Config) -> Self {
        Self {
            registry,
            index,
            reader,
            flights: Flights::default(),
            fresh_for: config.referrers.upstream_ttl,
            stale_for: config.referrers.stale_for,
            concurrency: config.references.concurrency,
        }
    }

    /// Brings the index up to date with what the registry lists. `is_proven` says whether the caller is known to be
    /// allowed to read the repository. If not, no cached merge is used, and the result says whether a list proved it.
    pub async fn refresh(self: &Arc<Self>, question: &Question, is_proven: bool) -> Result<Shown, Error> {
        let memory = &self.registry.memory;
        let epoch = question.visit.epoch;
        let before = memory.merge(epoch, &question.visit.caller, &question.subject);
        let is_younger = |age: Duration| before.is_some_and(|merge| merge.asked.elapsed() < age);
        if is_proven && is_younger(self.fresh_for) {
            return Ok(true);
        }
        // Boxed, so that the future of a query does not hold room for a merge that is rarely needed.
        match Box::pin(self.merge_once(question, is_proven)).await {
            Ok(is_shown) => Ok(is_shown),
            Err(error) => match error.stands_in() {
                Some(reason) if is_proven && is_younger(self.stale_for) => {
                    self.registry.answered_stale(question, reason, &error);
                    Ok(true)
                }
                _ => Err(error),
            },
        }
    }

    /// Merges once for all who ask the same at this moment.
    async fn merge_once(self: &Arc<Self>, question: &Question, is_proven: bool) -> Result<Shown, Error> {
        let Question { visit, subject } = question;
        let key = (visit.epoch, visit.caller.key, subject.clone(), is_proven);
        let merge = || {
            let (merger, question) = (Arc::clone(self), question.clone());
            async move { merger.merge(&question, is_proven).await }
        };
        self.flights.join(key, merge).await
    }

    async fn merge(&self, question: &Question, is_proven: bool) -> Result<Shown, Error> {
        let Question { visit: Visit { caller, repository, epoch, .. }, subject } = question;
        let epoch = *epoch;
        let memory = &self.registry.memory;
        let asked = Instant::now();
        // Before the first request: a manifest that is deleted while the lists are read is then recorded as pending,
        // not as existing.
        let watch = self.index.begin_read(repository.clone()).await;
        let without_api = is_proven && memory.is_without_api(epoch, caller);
        let api = async {
            let known = Api::None { is_sure: true };
            if without_api { Ok(known) } else { self.registry.first_page(question).await }
        };
        let (tag, api) = tokio::try_join!(self.tag(question, is_proven), api)?;
        let at_tag = tag.list.as_ref().and_then(|list| listed(&list.bytes, list.content_type.as_deref()));
        let (api, is_api_sure) = match api {
            Api::Lists(page) => (Some(page), true),
            Api::None { is_sure } => (None, is_sure),
        };
        // An empty list proves nothing: something in front of the registry may answer one to anything.
        let is_shown = at_tag.as_ref().is_some_and(|entries| !entries.is_empty())
            || api.as_ref().is_some_and(|page| !page.entries.is_empty());
        if !is_proven && !is_shown {
            return Ok(false);
        }
        // What is hidden from one caller, or missing in one namespace of a mirror, may exist for others.
        let is_api_sure = is_api_sure && !question.visit.is_foreign;
        if api.is_none() && !without_api {
            memory.set_without_api(epoch, caller, is_api_sure);
        }
        let merge = Pass { merger: self, question, watch: &watch };
        let fingerprint = fingerprint(tag.list.as_ref(), api.as_ref());
        let before = memory.merge(epoch, caller, subject);
        let has_more = api.as_ref().is_some_and(|page| page.next.is_some());
        // Unchanged lists are not merged again, unless one of their manifests was missing.
        let is_known = before.is_some_and(|before| before.fingerprint == fingerprint && !before.is_undecided);
        let mut is_undecided = false;
        if !is_known || has_more {
            is_undecided = merge.take(at_tag, api).await?;
        }
        let is_sure = tag.is_sure && is_api_sure && !is_undecided;
        memory.set_merge(epoch, caller, subject, Merge { asked, fingerprint, is_undecided }, is_sure);
        Ok(is_shown)
    }

    /// The list at the referrers tag (distribution-spec, "Referrers Tag Schema"), if there is one.
    async fn tag(&self, question: &Question, is_proven: bool) -> Result<AtTag, Error> {
        let tag = TagOrDigest::Tag(Tag::of_referrers(&question.subject));
        let answer = self.registry.fetch(&question.visit, &tag).await;
        match answer {
            Ok(Answer::Present(list)) => {
                // GitLab resolves the tag as the digest in its name and serves the subject itself (oras-go #1396).
                let digest = Digest::of(question.subject.algorithm(), &list.bytes);
                Ok(AtTag { list: Some(list).filter(|_| digest != question.subject), is_sure: true })
            }
            Ok(Answer::Absent) => Ok(AtTag { list: None, is_sure: true }),
            Ok(Answer::Odd(_)) => Ok(AtTag { list: None, is_sure: false }),
            // Older Artifactory answers 403 for a tag that does not exist (cosign #2973). It is absence only for a
            // caller who has just proved the right to read the repository.
            Err(error) if is_proven && error.rejected() == Some(StatusCode::FORBIDDEN) => {
                Ok(AtTag { list: None, is_sure: false })
            }
            Err(error) => Err(error),
        }
    }
}

/// The list at the referrers tag.
struct AtTag {
    list: Option<FetchedManifest>,
    /// Whether this holds for everybody who may read the repository.
    is_sure: bool,
}

/// A hash of the tag's list and the first page of the API. Further pages are always read again.
fn fingerprint(tag: Option<&FetchedManifest>, api: Option<&ListPage>) -> ListFingerprint {
    let mut hash = Sha256::new();
    hash.update([u8::from(tag.is_some()), u8::from(api.is_some())]);
    if let Some(list) = tag {
        hash.update(Sha256::digest(&list.bytes));
    }
    if let Some(page) = api {
        hash.update(page.digest.as_bytes());
    }
    hash.finalize().into()
}
