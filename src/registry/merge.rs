//! What the registry itself knows of a subject's referrers, brought into the index: the list at its referrers
//! tag and its own referrers API. So there is one list, in one order, whatever its pages.
//!
//! A tag can be written by anyone: an entry of it counts once its manifest was fetched and names the subject.
//! Clients go on writing these tags, so this never ends. What fails is an error, not a shorter list; but a
//! registry that only throttles or fails now is answered for by the last complete merge, if that is young and
//! nothing was written since, for an error is read as "unsigned".

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

/// Asks the registry for referrers and puts them into the index.
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

/// Whether the registry gave something that only who may read the repository gets.
type Shown = bool;

impl Merger {
    /// Nothing merged yet.
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

    /// Brings the index up to what the registry lists. A caller who was not shown to be able to read the
    /// repository has everything asked anew; what comes back tells whether the answers showed it.
    pub async fn refresh(self: &Arc<Self>, question: &Question, is_proven: bool) -> Result<Shown, Error> {
        let memory = &self.registry.memory;
        let epoch = question.visit.epoch;
        let before = memory.merge(epoch, &question.visit.caller, &question.subject);
        let is_younger = |age: Duration| before.is_some_and(|merge| merge.asked.elapsed() < age);
        if is_proven && is_younger(self.fresh_for) {
            return Ok(true);
        }
        // Boxed: a query that finds a fresh merge keeps no room for making one.
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

    /// Merges, once for all who ask the same at this moment.
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
        // From before the first question: what is deleted meanwhile is then not recorded as being there.
        let watch = self.index.watch(repository.clone());
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
        // An empty list is no proof: something in front of the registry may answer one to anything.
        let is_shown = at_tag.as_ref().is_some_and(|entries| !entries.is_empty())
            || api.as_ref().is_some_and(|page| !page.entries.is_empty());
        if !is_proven && !is_shown {
            return Ok(false);
        }
        // What one caller, or one namespace of a mirror, was not shown says nothing of what others are.
        let is_api_sure = is_api_sure && !question.visit.is_foreign;
        if api.is_none() && !without_api {
            memory.set_without_api(epoch, caller, is_api_sure);
        }
        let merge = Pass { merger: self, question, watch: &watch };
        let fingerprint = fingerprint(tag.list.as_ref(), api.as_ref());
        let before = memory.merge(epoch, caller, subject);
        let has_more = api.as_ref().is_some_and(|page| page.next.is_some());
        // The same lists as before need no look, unless something of them was not there.
        let is_known = before.is_some_and(|before| before.fingerprint == fingerprint && !before.is_undecided);
        let mut is_undecided = false;
        if !is_known || has_more {
            is_undecided = merge.take(at_tag, api).await?;
        }
        let is_sure = tag.is_sure && is_api_sure && !is_undecided;
        memory.set_merge(epoch, caller, subject, Merge { asked, fingerprint, is_undecided }, is_sure);
        Ok(is_shown)
    }

    /// The list at the referrers tag, if there is one.
    async fn tag(&self, question: &Question, is_proven: bool) -> Result<AtTag, Error> {
        let tag = TagOrDigest::Tag(Tag::of_referrers(&question.subject));
        let answer = self.registry.fetch(&question.visit, &tag).await;
        match answer {
            Ok(Answer::Present(list)) => {
                // GitLab takes the tag for the digest that it is made of, and gives the subject itself.
                let digest = Digest::of(question.subject.algorithm(), &list.bytes);
                Ok(AtTag { list: Some(list).filter(|_| digest != question.subject), is_sure: true })
            }
            Ok(Answer::Absent) => Ok(AtTag { list: None, is_sure: true }),
            Ok(Answer::Odd(_)) => Ok(AtTag { list: None, is_sure: false }),
            // Registries that answer 403 for a tag that does not exist (older Artifactory, cosign #2973) gave
            // this caller the subject, or something else of the repository, a moment ago.
            Err(error) if is_proven && error.rejected() == Some(StatusCode::FORBIDDEN) => {
                Ok(AtTag { list: None, is_sure: false })
            }
            Err(error) => Err(error),
        }
    }
}

/// What the referrers tag leads to.
struct AtTag {
    list: Option<FetchedManifest>,
    /// Whether that counts for everybody who may read the repository.
    is_sure: bool,
}

/// Tells two answers apart. What the registry lists on further pages is looked at each time.
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
