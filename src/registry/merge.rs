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

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use http::{StatusCode, Uri};
use moka::future::Cache;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::image_index::entries;
use super::memory::{Epoch, Fingerprint, Merge};
use super::question::CallerKey;
use super::referrers_api::ListPage;
use super::{Answer, Fetched, Question, Registry, Visit};
use crate::config::Config;
use crate::error::Error;
use crate::index::{Index, Learnt, Referrer, Scan, Version, Watch};
use crate::oci::{Descriptor, Digest, Link, LinkKind, LinkKinds, Tag, TagOrDigest};
use crate::reading::{Reading, to_json};

/// How many entries of the index are looked at, and written, at once.
const AT_ONCE: usize = 500;
/// How many referrers that are no longer listed, or that were not there before, are asked for in one go.
const ASKED_AGAIN: usize = 64;
/// How many pages of the registry's own list are read. Each is in the index before the next one comes.
const PAGES: usize = 256;
/// Bounds what is kept of flights; one is let go as soon as it ended.
const FLIGHTS: u64 = 10_000;
const FLIGHT_KEPT: Duration = Duration::from_millis(10);

/// Asks the registry for referrers and puts them into the index.
#[derive(Debug)]
pub struct Merging {
    registry: Arc<Registry>,
    index: Index,
    reading: Reading,
    flights: Cache<(Epoch, CallerKey, Digest, bool), Shown>,
    fresh_for: Duration,
    stale_for: Duration,
    concurrency: usize,
}

/// Whether the registry gave something that only who may read the repository gets.
type Shown = bool;

/// A referrer as the index has it.
#[derive(Debug)]
struct Listed {
    kinds: LinkKinds,
    pending: bool,
    version: Version,
}

/// What the index has of what the registry can list.
type Known = HashMap<Digest, Listed>;

/// What a listed manifest turned out to be.
enum Verified {
    /// It names the subject.
    Referrer(Learnt),
    /// It does not.
    Stranger,
    /// It was not there, which may change.
    Missing,
}

impl Merging {
    /// Nothing merged yet.
    #[must_use]
    pub fn new(registry: Arc<Registry>, index: Index, reading: Reading, config: &Config) -> Self {
        let flights = Cache::builder().max_capacity(FLIGHTS).time_to_live(FLIGHT_KEPT).build();
        Self {
            registry,
            index,
            reading,
            flights,
            fresh_for: config.referrers.upstream_ttl,
            stale_for: config.referrers.stale_for,
            concurrency: config.references.concurrency,
        }
    }

    /// Brings the index up to what the registry lists. A caller who was not shown to be able to read the
    /// repository has everything asked anew: [`Shown`] then tells whether the answers showed it.
    pub async fn refresh(&self, question: &Question, is_proven: bool) -> Result<Shown, Error> {
        let memory = &self.registry.memory;
        let epoch = question.visit.epoch;
        let before = memory.merge(epoch, &question.subject);
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
    async fn merge_once(&self, question: &Question, is_proven: bool) -> Result<Shown, Error> {
        let Question { visit, subject } = question;
        let key = (visit.epoch, visit.caller.key, subject.clone(), is_proven);
        let flight = self.flights.entry_by_ref(&key).or_try_insert_with(self.merge(question, is_proven));
        let flight = flight.await.map_err(Error::Shared)?;
        if flight.is_fresh() {
            self.flights.invalidate(&key).await;
        }
        Ok(flight.into_value())
    }

    async fn merge(&self, question: &Question, is_proven: bool) -> Result<Shown, Error> {
        let Question { visit: Visit { repository, epoch, .. }, subject } = question;
        let epoch = *epoch;
        let memory = &self.registry.memory;
        let asked = Instant::now();
        // From before the first question: what is deleted meanwhile is then not recorded as being there.
        let watch = self.index.watch(repository.clone());
        let without_api = is_proven && memory.is_without_api(epoch);
        let api = async { if without_api { Ok(None) } else { self.registry.first_page(question).await } };
        let (tag, api) = tokio::try_join!(self.tag(question, is_proven), api)?;
        let at_tag = tag.as_ref().and_then(|list| entries(&list.bytes, list.content_type.as_deref()));
        // An empty list is no proof: something in front of the registry may answer one to anything.
        let is_shown = at_tag.as_ref().is_some_and(|entries| !entries.is_empty())
            || api.as_ref().is_some_and(|page| !page.entries.is_empty());
        if !is_proven && !is_shown {
            return Ok(false);
        }
        if api.is_none() {
            memory.set_without_api(epoch);
        }
        let merge = Pass { merging: self, question, watch: &watch };
        let fingerprint = fingerprint(tag.as_ref(), api.as_ref());
        let before = memory.merge(epoch, subject);
        let has_more = api.as_ref().is_some_and(|page| page.next.is_some());
        // The same lists as before need no look, unless something of them was not there.
        let is_known = before.is_some_and(|before| before.fingerprint == fingerprint && !before.is_undecided);
        let mut is_undecided = false;
        if !is_known || has_more {
            is_undecided = merge.take(at_tag, api).await?;
        }
        memory.set_merge(epoch, subject, Merge { asked, fingerprint, is_undecided });
        Ok(is_shown)
    }

    /// The list at the referrers tag, if there is one.
    async fn tag(&self, question: &Question, is_proven: bool) -> Result<Option<Fetched>, Error> {
        let tag = TagOrDigest::Tag(Tag::of_referrers(&question.subject));
        let answer = self.registry.fetch(&question.visit, &tag).await;
        match answer {
            Ok(Answer::Present(list)) => {
                // GitLab takes the tag for the digest that it is made of, and gives the subject itself.
                let digest = Digest::of(question.subject.algorithm(), &list.bytes);
                Ok(Some(list).filter(|_| digest != question.subject))
            }
            Ok(Answer::Absent | Answer::Odd(_)) => Ok(None),
            // Registries that answer 403 for a tag that does not exist (older Artifactory, cosign #2973) gave
            // this caller the subject, or something else of the repository, a moment ago.
            Err(error) if is_proven && error.rejected() == Some(StatusCode::FORBIDDEN) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Tells two answers apart. What the registry lists on further pages is looked at each time.
fn fingerprint(tag: Option<&Fetched>, api: Option<&ListPage>) -> Fingerprint {
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
    merging: &'a Merging,
    question: &'a Question,
    watch: &'a Watch,
}

impl Pass<'_> {
    /// Puts what is listed into the index. Tells whether something listed was not there.
    async fn take(&self, at_tag: Option<Vec<Descriptor>>, api: Option<ListPage>) -> Result<bool, Error> {
        let known = self.known().await?;
        let has_api = api.is_some();
        let mut listed: HashSet<Digest> = at_tag.iter().flatten().map(|entry| entry.digest.clone()).collect();
        if let Some(first) = api {
            self.take_pages(first, &known, &mut listed).await?;
        }
        self.ask_for_unlisted(&known, has_api, &listed).await;
        let (learnt, is_undecided) = self.verified(&known, at_tag.unwrap_or_default()).await?;
        self.learn(learnt).await?;
        Ok(is_undecided)
    }

    async fn take_pages(
        &self,
        first: ListPage,
        known: &Known,
        listed: &mut HashSet<Digest>,
    ) -> Result<(), Error> {
        let mut asked: HashSet<Uri> = HashSet::new();
        let mut page = first;
        loop {
            let subject = &self.question.subject;
            let new = page.entries.iter().filter(|entry| !is_listed(known, &entry.digest, LinkKind::Subject));
            // What somebody claimed of a pending one, its bytes have to say: the list is no proof of all of it.
            let is_pending = |digest: &Digest| known.get(digest).is_some_and(|known| known.pending);
            let learnt = new.map(|entry| found(entry, subject, LinkKind::Subject, is_pending(&entry.digest)));
            let learnt: Result<Vec<_>, _> = learnt.collect();
            self.learn(learnt?).await?;
            listed.extend(page.entries.into_iter().map(|entry| entry.digest));
            // A link that leads back is the end of a list, however often it is said.
            let Some(next) = page.next.filter(|next| asked.insert(next.clone())) else { return Ok(()) };
            if asked.len() >= PAGES {
                return Err(Error::EndlessList(PAGES));
            }
            page = self.merging.registry.further_page(&self.question.visit, next).await?;
        }
    }

    async fn learn(&self, learnt: Vec<Learnt>) -> Result<(), Error> {
        let index = &self.merging.index;
        for some in learnt.chunks(AT_ONCE) {
            let has_room = index.has_room(&self.question.visit.repository).await;
            if !has_room {
                self.merging.reading.no_room(&self.question.visit.repository, some.len());
                return Ok(());
            }
            index.learn(self.watch, some.to_vec()).await.map_err(Error::Gather)?;
        }
        Ok(())
    }

    /// What the index lists of what the registry can list.
    async fn known(&self) -> Result<Known, Error> {
        let Question { visit: Visit { repository, .. }, subject } = self.question;
        let kinds: LinkKinds = [LinkKind::Subject, LinkKind::Fallback].into_iter().collect();
        let mut known = HashMap::new();
        let mut after = None;
        loop {
            let scan = Scan {
                after,
                max_entries: AT_ONCE,
                max_bytes: usize::MAX,
                accepts: Box::new(move |entry| entry.kinds.intersects(kinds)),
            };
            let page = self.merging.index.referrers(repository.clone(), subject.clone(), scan).await;
            let page = page.map_err(Error::LookUp)?;
            after = page.entries.last().map(|entry| entry.order);
            known.extend(page.entries.into_iter().map(|entry| {
                let (kinds, pending, version) = (entry.kinds, entry.pending, entry.version);
                (entry.digest, Listed { kinds, pending, version })
            }));
            if !page.more {
                return Ok(known);
            }
        }
    }

    /// The entries of the tag's list that are what they say they are and not known yet, in their order; and
    /// whether one of the others was not there.
    async fn verified(&self, known: &Known, listed: Vec<Descriptor>) -> Result<(Vec<Learnt>, bool), Error> {
        let Question { visit, subject } = self.question;
        let (caller, epoch) = (&visit.caller, visit.epoch);
        let memory = &self.merging.registry.memory;
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
                let is_due =
                    asked_again < ASKED_AGAIN && !memory.was_just_missing(epoch, caller, &entry.digest);
                asked_again += usize::from(is_due);
                put_off |= !is_due;
                is_due
            })
            .collect();
        let verified = due.into_iter().map(|entry| async move {
            if is_listed(known, &entry.digest, LinkKind::Subject) {
                // Its own bytes said so; only that the tag lists it is news.
                return Ok(Verified::Referrer(found(&entry, subject, LinkKind::Fallback, true)?));
            }
            self.verify(entry.digest).await
        });
        let answers: Vec<Verified> =
            stream::iter(verified).buffered(self.merging.concurrency).try_collect().await?;
        let is_undecided = put_off || answers.iter().any(|answer| matches!(answer, Verified::Missing));
        let referrers = answers.into_iter().filter_map(|answer| match answer {
            Verified::Referrer(learnt) => Some(learnt),
            Verified::Stranger | Verified::Missing => None,
        });
        Ok((referrers.collect(), is_undecided))
    }

    /// Fetches a manifest that is said to refer to the subject.
    async fn verify(&self, referrer: Digest) -> Result<Verified, Error> {
        let Question { visit, subject } = self.question;
        let Visit { caller, repository, epoch } = visit;
        let Merging { registry, reading, .. } = self.merging;
        let manifest = TagOrDigest::Digest(referrer);
        let answer = registry.fetch(visit, &manifest).await?;
        let TagOrDigest::Digest(referrer) = &manifest else { return Err(Error::Handler) };
        let Answer::Present(fetched) = answer else {
            registry.memory.set_missing(*epoch, caller, referrer, true);
            return Ok(Verified::Missing);
        };
        let (algorithm, content_type) = (referrer.algorithm(), fetched.content_type.as_deref());
        let read = reading.read(repository, &manifest, algorithm, &fetched.bytes, content_type).await?;
        if read.subject.as_ref() != Some(subject) {
            tracing::warn!(repository = %repository.name, %subject, %referrer,
                "a referrers tag lists a manifest that does not name its subject; it is left out");
            registry.memory.set_stranger(referrer, subject);
            return Ok(Verified::Stranger);
        }
        // What its bytes say besides is for whoever pulls it, or lists it by its own subject.
        let links = vec![Link { subject: subject.clone(), kind: LinkKind::Fallback }];
        let referrer = Referrer { links, ..read.referrer };
        Ok(Verified::Referrer(Learnt { referrer, claimed: false }))
    }

    /// Referrers that are known only from a list that has them no longer may have been deleted behind
    /// refshim's back. If that cannot be found out they stay.
    async fn ask_for_unlisted(&self, known: &Known, has_api: bool, listed: &HashSet<Digest>) {
        let Question { visit, subject } = self.question;
        let Visit { caller, repository, epoch } = visit;
        let Merging { registry, index, concurrency, .. } = self.merging;
        let is_unlisted = |(digest, known): &(&Digest, &Listed)| {
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
        if gone.is_empty() || !registry.still_reads(visit, witnesses).await {
            return;
        }
        for (digest, seen) in gone {
            registry.memory.set_missing(*epoch, caller, &digest, false);
            if let Err(error) = index.absent(repository.clone(), digest.clone(), seen).await {
                tracing::warn!(repository = %repository.name, %digest, %error,
                    "that the registry no longer shows a referrer could not be written to the index");
            }
        }
    }
}

fn is_listed(known: &Known, digest: &Digest, kind: LinkKind) -> bool {
    known.get(digest).is_some_and(|known| !known.pending && known.kinds.intersects(kind.into()))
}

/// An entry as the list describes it.
fn found(entry: &Descriptor, subject: &Digest, kind: LinkKind, claimed: bool) -> Result<Learnt, Error> {
    let links = vec![Link { subject: subject.clone(), kind }];
    let referrer = Referrer { digest: entry.digest.clone(), descriptor: to_json(entry)?, links };
    Ok(Learnt { referrer, claimed })
}
