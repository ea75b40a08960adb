//! One pass of a merge: writes to the index what the lists add, and checks what they no longer have.
//!
//! The API's entries are taken as listed, since the registry vouches for them. The tag's entries are fetched and
//! verified. Both go into the index in batches, so that a client that gives up on a long list leaves progress behind.

use std::collections::{HashMap, HashSet};

use futures_util::stream::{self, StreamExt as _};
use http::{StatusCode, Uri};

use super::Merger;
use crate::index::{Observation, Referrer, Removed, Scan, UpstreamRead, Version};
use crate::oci::{Descriptor, Digest, Link, LinkKind, LinkKinds, Tag, TagOrDigest};
use crate::proxy::error::Error;
use crate::registry::reader::to_json;
use crate::registry::referrers_api::ListPage;
use crate::registry::{Answer, Question, Visit};

/// Entries of the index that are read, or written, at once.
const AT_ONCE: usize = 500;
/// Requests per merge for referrers that are no longer listed, and for entries that were missing before.
const ASKED_AGAIN: usize = 64;
/// Pages of the registry's API that are read. Each is in the index before the next one is requested.
const PAGES: usize = 256;

/// A referrer in the index.
#[derive(Debug)]
struct ListedReferrer {
    kinds: LinkKinds,
    pending: bool,
    version: Version,
}

/// The referrers in the index that the registry may list as well.
type KnownEntry = HashMap<Digest, ListedReferrer>;

/// What a listed manifest is.
enum Verified {
    /// A referrer: its bytes name the subject.
    Referrer(Observation),
    /// Its bytes do not name the subject.
    Stranger,
    /// It does not exist, which may change.
    Missing,
}

/// One pass.
pub(super) struct Pass<'a> {
    pub(super) merger: &'a Merger,
    pub(super) question: &'a Question,
    pub(super) watch: &'a UpstreamRead,
}

impl Pass<'_> {
    /// Writes to the index what is listed. True if a listed manifest is missing, or there was no room for all.
    pub(super) async fn take(
        &self,
        at_tag: Option<Vec<Descriptor>>,
        api: Option<ListPage>,
    ) -> Result<bool, Error> {
        let known = self.known().await?;
        let (has_api, mut has_room) = (api.is_some(), true);
        let mut listed: HashSet<Digest> = at_tag.iter().flatten().map(|entry| entry.digest.clone()).collect();
        if let Some(first) = api {
            has_room = self.take_pages(first, &known, &mut listed).await?;
        }
        // After all pages: a referrer on a later page is not unlisted.
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
            // A pending referrer stays a claim: that it is listed proves its subject, not the descriptor that
            // somebody claimed for it.
            let is_pending = |digest: &Digest| known.get(digest).is_some_and(|known| known.pending);
            let learnt = new.map(|entry| found(entry, subject, LinkKind::Subject, is_pending(&entry.digest)));
            let learnt: Result<Vec<_>, _> = learnt.collect();
            has_room &= self.learn(learnt?).await?;
            listed.extend(page.entries.into_iter().map(|entry| entry.digest));
            // A Link back to a page that was read ends the list, or a broken registry would be asked for ever.
            let Some(next) = page.next.filter(|next| asked.insert(next.clone())) else { return Ok(has_room) };
            if asked.len() >= PAGES {
                return Err(Error::EndlessList(PAGES));
            }
            page = self.merger.registry.further_page(&self.question.visit, next).await?;
        }
    }

    /// Records referrers. False if the repository had no room for all (`limits.repository_referrers`).
    async fn learn(&self, mut learnt: Vec<Observation>) -> Result<bool, Error> {
        let is_foreign = self.question.visit.is_foreign;
        // In a mirror, another namespace's repository of this name is another repository: its referrers need not
        // exist for everybody, and are checked before they are listed.
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

    /// The referrers in the index that the registry may list as well.
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

    /// Records the entries of the tag's list that are new and verified, in the list's order. True if an entry is
    /// missing.
    async fn take_tag(&self, known: &KnownEntry, listed: Vec<Descriptor>) -> Result<bool, Error> {
        let Question { visit, subject } = self.question;
        let (caller, epoch) = (&visit.caller, visit.epoch);
        let memory = &self.merger.registry.memory;
        let new = listed.into_iter().filter(|entry| {
            !is_listed(known, &entry.digest, LinkKind::Fallback)
                && !memory.is_stranger(&entry.digest, subject)
        });
        // Missing entries are requested again with growing pauses: a list of thousands that were deleted must not cost
        // thousands of requests per query.
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
        // In batches, each in the index before the next is requested: a client that gives up on a long list leaves
        // progress behind, and its retry is shorter.
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
            // Already verified by its own bytes; only the link by the tag is new.
            return Ok(Verified::Referrer(found(entry, &self.question.subject, LinkKind::Fallback, true)?));
        }
        self.verify(entry.digest.clone()).await
    }

    /// Fetches an entry's manifest and checks that it names the subject.
    async fn verify(&self, referrer: Digest) -> Result<Verified, Error> {
        let Question { visit, subject } = self.question;
        let Visit { caller, repository, epoch, .. } = visit;
        let Merger { registry, reader, .. } = self.merger;
        let manifest = TagOrDigest::Digest(referrer);
        let TagOrDigest::Digest(referrer) = &manifest else { return Err(Error::Handler) };
        let answer = match registry.fetch(visit, &manifest).await {
            // A registry may deny one manifest to a caller who may read the rest.
            Err(error) if error.rejected() == Some(StatusCode::FORBIDDEN) => Answer::Absent,
            answer => answer?,
        };
        let Answer::Present(fetched) = answer else {
            registry.memory.put_off(*epoch, caller, referrer);
            return Ok(Verified::Missing);
        };
        let (algorithm, content_type) = (referrer.algorithm(), fetched.content_type.as_deref());
        let read = reader.read(repository, &manifest, algorithm, &fetched.bytes, content_type).await?;
        if read.subject.as_ref() != Some(subject) {
            tracing::warn!(repository = %repository.name, %subject, %referrer,
                "the list at a referrers tag has a manifest that does not name the subject; it is left out");
            registry.memory.set_stranger(referrer, subject);
            return Ok(Verified::Stranger);
        }
        // Only this link: its other links are recorded when it is pulled, or when their subjects are listed.
        let links = vec![Link { subject: subject.clone(), kind: LinkKind::Fallback }];
        let referrer = Referrer { links, ..read.referrer };
        Ok(Verified::Referrer(Observation { referrer, claimed: false }))
    }

    /// Asks for referrers in the index that the registry should list but does not: they may have been deleted without
    /// refshim. They stay unless the registry answers 404 for them and still serves something else.
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
        // A registry that lost its storage, or withdrew this caller's rights, answers 404 to everything.
        if gone.is_empty() || visit.is_foreign || !registry.still_reads(visit, witnesses).await {
            return;
        }
        for (digest, seen) in gone {
            registry.memory.set_missing(*epoch, caller, &digest, seen);
            let written = index.absent(repository.clone(), digest.clone(), seen).await;
            if let Ok(Removed::Gone) = written {
                // Expire the merge: should the referrer come back, the same list must be merged again.
                registry.forget(repository);
            }
            if let Err(error) = written {
                tracing::warn!(repository = %repository.name, %digest, %error,
                    "the registry no longer has a referrer, but the index could not be written; the \
                     next query checks again");
            }
        }
    }
}

fn is_listed(known: &KnownEntry, digest: &Digest, kind: LinkKind) -> bool {
    known.get(digest).is_some_and(|known| !known.pending && known.kinds.intersects(kind.into()))
}

/// An entry with the descriptor that the list gives.
fn found(entry: &Descriptor, subject: &Digest, kind: LinkKind, claimed: bool) -> Result<Observation, Error> {
    let links = vec![Link { subject: subject.clone(), kind }];
    let referrer = Referrer { digest: entry.digest.clone(), descriptor: to_json(entry)?, links };
    Ok(Observation { referrer, claimed })
}
