//! What the registry itself knows of a subject's referrers, brought into the index: the list at its referrers
//! tag and its own referrers API. So there is one list, in one order, whatever its pages.
//!
//! A tag can be written by anyone: an entry of it counts once its manifest was fetched and names the subject.
//! Clients go on writing these tags, so this never ends. What fails is an error, not a shorter list; but a
//! registry that only throttles or fails now is answered for by the last complete merge, if that is young and
//! nothing was written since, for an error is read as "unsigned".

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use http::{StatusCode, Uri};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::flights::Flights;
use super::image_index::entries;
use super::memory::{Epoch, ListFingerprint, Merge};
use super::question::CallerKey;
use super::referrers_api::{Api, ListPage};
use super::{Answer, FetchedManifest, Question, Registry, Visit};
use crate::config::Config;
use crate::index::{Index, Observation, Referrer, Removed, Scan, UpstreamRead, Version};
use crate::oci::{Descriptor, Digest, Link, LinkKind, LinkKinds, Tag, TagOrDigest};
use crate::proxy::error::Error;
use crate::registry::reader::{ManifestReader, to_json};

/// How many entries of the index are looked at, and written, at once.
const AT_ONCE: usize = 500;
/// How many referrers that are no longer listed, or that were not there before, are asked for in one go.
const ASKED_AGAIN: usize = 64;
/// How many pages of the registry's own list are read. Each is in the index before the next one comes.
const PAGES: usize = 256;

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

/// A referrer as the index has it.
#[derive(Debug)]
struct ListedReferrer {
    kinds: LinkKinds,
    pending: bool,
    version: Version,
}

/// What the index has of what the registry can list.
type KnownEntry = HashMap<Digest, ListedReferrer>;

/// What a listed manifest turned out to be.
enum Verified {
    /// It names the subject.
    Referrer(Observation),
    /// It does not.
    Stranger,
    /// It was not there, which may change.
    Missing,
}

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
        let watch = self.index.begin_read(repository.clone());
        let without_api = is_proven && memory.is_without_api(epoch, caller);
        let api = async {
            let known = Api::None { is_sure: true };
            if without_api { Ok(known) } else { self.registry.first_page(question).await }
        };
        let (tag, api) = tokio::try_join!(self.tag(question, is_proven), api)?;
        let at_tag = tag.list.as_ref().and_then(|list| entries(&list.bytes, list.content_type.as_deref()));
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

/// One merge on its way.
struct Pass<'a> {
    merger: &'a Merger,
    question: &'a Question,
    watch: &'a UpstreamRead,
}

impl Pass<'_> {
    /// Puts what is listed into the index. Tells whether something listed was not there.
    async fn take(&self, at_tag: Option<Vec<Descriptor>>, api: Option<ListPage>) -> Result<bool, Error> {
        let known = self.known().await?;
        let (has_api, mut has_room) = (api.is_some(), true);
        let mut listed: HashSet<Digest> = at_tag.iter().flatten().map(|entry| entry.digest.clone()).collect();
        if let Some(first) = api {
            has_room = self.take_pages(first, &known, &mut listed).await?;
        }
        self.ask_for_unlisted(&known, has_api, &listed).await;
        let is_undecided = self.take_tag(&known, at_tag.unwrap_or_default()).await?;
        Ok(is_undecided || !has_room)
    }

    async fn take_pages(
        &self,
        first: ListPage,
        known: &KnownEntry,
        listed: &mut HashSet<Digest>,
    ) -> Result<bool, Error> {
        let mut asked: HashSet<Uri> = HashSet::new();
        let (mut page, mut has_room) = (first, true);
        loop {
            let subject = &self.question.subject;
            let new = page.entries.iter().filter(|entry| !is_listed(known, &entry.digest, LinkKind::Subject));
            // What somebody claimed of a pending one, its bytes have to say: the list is no proof of all of it.
            let is_pending = |digest: &Digest| known.get(digest).is_some_and(|known| known.pending);
            let learnt = new.map(|entry| found(entry, subject, LinkKind::Subject, is_pending(&entry.digest)));
            let learnt: Result<Vec<_>, _> = learnt.collect();
            has_room &= self.learn(learnt?).await?;
            listed.extend(page.entries.into_iter().map(|entry| entry.digest));
            // A link that leads back is the end of a list, however often it is said.
            let Some(next) = page.next.filter(|next| asked.insert(next.clone())) else { return Ok(has_room) };
            if asked.len() >= PAGES {
                return Err(Error::EndlessList(PAGES));
            }
            page = self.merger.registry.further_page(&self.question.visit, next).await?;
        }
    }

    /// Tells whether there was room for all of it.
    async fn learn(&self, mut learnt: Vec<Observation>) -> Result<bool, Error> {
        let is_foreign = self.question.visit.is_foreign;
        // What another namespace of a mirror lists need not be there for everybody.
        for learnt in &mut learnt {
            learnt.claimed |= is_foreign;
        }
        let index = &self.merger.index;
        for some in learnt.chunks(AT_ONCE) {
            let has_room = index.has_room(&self.question.visit.repository).await;
            if !has_room {
                self.merger.reader.no_room(&self.question.visit.repository, some.len());
                return Ok(false);
            }
            index.observe(self.watch, some.to_vec()).await.map_err(Error::Gather)?;
        }
        Ok(true)
    }

    /// What the index lists of what the registry can list.
    async fn known(&self) -> Result<KnownEntry, Error> {
        let Question { visit: Visit { repository, .. }, subject } = self.question;
        let kinds: LinkKinds = [LinkKind::Subject, LinkKind::Fallback].into_iter().collect();
        let mut known = HashMap::new();
        let mut after = None;
        loop {
            let scan = Scan {
                after,
                max_entries: AT_ONCE,
                max_bytes: usize::MAX,
                max_claims: usize::MAX,
                accepts: Box::new(move |entry| entry.kinds.intersects(kinds)),
            };
            let page = self.merger.index.referrers(repository.clone(), subject.clone(), scan).await;
            let page = page.map_err(Error::LookUp)?;
            after = page.entries.last().map(|entry| entry.order);
            known.extend(page.entries.into_iter().map(|entry| {
                let (kinds, pending, version) = (entry.kinds, entry.pending, entry.version);
                (entry.digest, ListedReferrer { kinds, pending, version })
            }));
            if !page.more {
                return Ok(known);
            }
        }
    }

    /// Learns the entries of the tag's list that are what they say they are and not known yet, in their order.
    /// Tells whether one of the others was not there.
    async fn take_tag(&self, known: &KnownEntry, listed: Vec<Descriptor>) -> Result<bool, Error> {
        let Question { visit, subject } = self.question;
        let (caller, epoch) = (&visit.caller, visit.epoch);
        let memory = &self.merger.registry.memory;
        let new = listed.into_iter().filter(|entry| {
            !is_listed(known, &entry.digest, LinkKind::Fallback)
                && !memory.is_stranger(&entry.digest, subject)
        });
        // A list of thousands that are gone must not cost as many questions each time.
        let (mut asked_again, mut put_off) = (0, false);
        let due: Vec<Descriptor> = new
            .filter(|entry| {
                if !memory.was_missing(epoch, caller, &entry.digest) {
                    return true;
                }
                let is_due = asked_again < ASKED_AGAIN && !memory.is_put_off(epoch, caller, &entry.digest);
                asked_again += usize::from(is_due);
                put_off |= !is_due;
                is_due
            })
            .collect();
        // Some at a time, each in the index before the next are asked for: whoever waits for a long list and gives
        // up leaves something behind.
        let mut is_undecided = put_off;
        for some in due.chunks(AT_ONCE) {
            let verified = some.iter().map(|entry| self.verified(known, entry)).collect::<Vec<_>>();
            let mut verified = stream::iter(verified).buffered(self.merger.concurrency);
            let (mut learnt, mut failure) = (Vec::new(), None);
            while let Some(answer) = verified.next().await {
                match answer {
                    Ok(Verified::Referrer(referrer)) => learnt.push(referrer),
                    Ok(Verified::Stranger) => {}
                    Ok(Verified::Missing) => is_undecided = true,
                    Err(error) => failure = failure.or(Some(error)),
                }
                if failure.is_some() {
                    break;
                }
            }
            is_undecided |= !self.learn(learnt).await?;
            if let Some(failure) = failure {
                return Err(failure);
            }
        }
        Ok(is_undecided)
    }

    async fn verified(&self, known: &KnownEntry, entry: &Descriptor) -> Result<Verified, Error> {
        if is_listed(known, &entry.digest, LinkKind::Subject) {
            // Its own bytes said so; only that the tag lists it is news.
            return Ok(Verified::Referrer(found(entry, &self.question.subject, LinkKind::Fallback, true)?));
        }
        self.verify(entry.digest.clone()).await
    }

    /// Fetches a manifest that is said to refer to the subject.
    async fn verify(&self, referrer: Digest) -> Result<Verified, Error> {
        let Question { visit, subject } = self.question;
        let Visit { caller, repository, epoch, .. } = visit;
        let Merger { registry, reader, .. } = self.merger;
        let manifest = TagOrDigest::Digest(referrer);
        let TagOrDigest::Digest(referrer) = &manifest else { return Err(Error::Handler) };
        let answer = match registry.fetch(visit, &manifest).await {
            // A registry may keep one manifest from those who may read the others.
            Err(error) if error.rejected() == Some(StatusCode::FORBIDDEN) => Answer::Absent,
            answer => answer?,
        };
        let Answer::Present(fetched) = answer else {
            registry.memory.set_missing(*epoch, caller, referrer, true);
            return Ok(Verified::Missing);
        };
        let (algorithm, content_type) = (referrer.algorithm(), fetched.content_type.as_deref());
        let read = reader.read(repository, &manifest, algorithm, &fetched.bytes, content_type).await?;
        if read.subject.as_ref() != Some(subject) {
            tracing::warn!(repository = %repository.name, %subject, %referrer,
                "a referrers tag lists a manifest that does not name its subject; it is left out");
            registry.memory.set_stranger(referrer, subject);
            return Ok(Verified::Stranger);
        }
        // What its bytes say besides is for whoever pulls it, or lists it by its own subject.
        let links = vec![Link { subject: subject.clone(), kind: LinkKind::Fallback }];
        let referrer = Referrer { links, ..read.referrer };
        Ok(Verified::Referrer(Observation { referrer, claimed: false }))
    }

    /// Referrers that are known only from a list that has them no longer may have been deleted behind
    /// refshim's back. If that cannot be found out they stay.
    async fn ask_for_unlisted(&self, known: &KnownEntry, has_api: bool, listed: &HashSet<Digest>) {
        let Question { visit, subject } = self.question;
        let Visit { caller, repository, epoch, .. } = visit;
        let Merger { registry, index, concurrency, .. } = self.merger;
        let is_unlisted = |(digest, known): &(&Digest, &ListedReferrer)| {
            let would_be_listed = has_api || !known.kinds.intersects(LinkKind::Subject.into());
            would_be_listed && !known.pending && !listed.contains(*digest)
        };
        let unlisted = known.iter().filter(is_unlisted).take(ASKED_AGAIN);
        let unlisted: Vec<_> = unlisted.map(|(digest, known)| (digest.clone(), known.version)).collect();
        let questions = unlisted.into_iter().map(|(digest, seen)| async move {
            let manifest = TagOrDigest::Digest(digest.clone());
            let answer = registry.exists(visit, &manifest).await;
            matches!(answer, Ok(Answer::Absent)).then_some((digest, seen))
        });
        let answers = stream::iter(questions).buffer_unordered(*concurrency);
        let gone: Vec<_> = answers.collect::<Vec<_>>().await.into_iter().flatten().collect();
        let list = TagOrDigest::Tag(Tag::of_referrers(subject));
        let others = listed.iter().map(|digest| TagOrDigest::Digest(digest.clone()));
        let witnesses = [TagOrDigest::Digest(subject.clone()), list].into_iter().chain(others);
        if gone.is_empty() || visit.is_foreign || !registry.still_reads(visit, witnesses).await {
            return;
        }
        for (digest, seen) in gone {
            registry.memory.set_missing(*epoch, caller, &digest, false);
            let written = index.absent(repository.clone(), digest.clone(), seen).await;
            if let Ok(Removed::Gone) = written {
                // Should it come back, the same list has to be looked at again.
                registry.forget(repository);
            }
            if let Err(error) = written {
                tracing::warn!(repository = %repository.name, %digest, %error,
                    "that the registry no longer shows a referrer could not be written to the index");
            }
        }
    }
}

fn is_listed(known: &KnownEntry, digest: &Digest, kind: LinkKind) -> bool {
    known.get(digest).is_some_and(|known| !known.pending && known.kinds.intersects(kind.into()))
}

/// An entry as the list describes it.
fn found(entry: &Descriptor, subject: &Digest, kind: LinkKind, claimed: bool) -> Result<Observation, Error> {
    let links = vec![Link { subject: subject.clone(), kind }];
    let referrer = Referrer { digest: entry.digest.clone(), descriptor: to_json(entry)?, links };
    Ok(Observation { referrer, claimed })
}
