//! What the upstream itself knows of a subject's referrers: the list at its referrers tag and its own
//! referrers API. Each query asks, unless it was asked within seconds, and what is new goes into the index
//! before the index is read: so there is one list, in one order, whatever its pages.
//!
//! A tag can be written by anyone: an entry of it counts once its manifest was fetched and names the
//! subject. Clients go on writing these tags, so this never ends. What fails is an error, not a shorter
//! list.

mod image_index;
mod memory;
mod native;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use moka::sync::Cache;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::access::{Access, Answer, Caller};
use crate::error::Error;
use crate::index::{Index, Learnt, Referrer, Repository, Scan, Version, Watch};
use crate::oci::{Descriptor, Digest, Link, LinkKind, LinkKinds, Tag, TagOrDigest};
use crate::reading::{Reading, to_json};

use image_index::entries;
use memory::{Fingerprint, Memory, OfRepository};
use native::NativeList;

/// How many manifests that refer to something else than a tag says are remembered.
const STRANGERS_REMEMBERED: u64 = 100_000;
/// How many entries of the index are looked at, and written, at once.
const AT_ONCE: usize = 500;
/// How many referrers that are no longer listed are asked for in one go.
const UNLISTED_ASKED_FOR: usize = 64;

/// Asks the upstream for referrers and puts them into the index.
#[derive(Debug)]
pub struct Gathering {
    access: Arc<Access>,
    index: Index,
    reading: Reading,
    memory: Memory,
    /// (manifest, subject): what the one's bytes say, it does not refer to the other.
    strangers: Cache<(Digest, Digest), ()>,
    concurrency: usize,
}

/// What the upstream said of one subject.
struct Said {
    /// None if there is no list at the tag.
    tag: Option<Vec<Descriptor>>,
    /// None if there is no API.
    native: Option<Vec<Descriptor>>,
    fingerprint: Fingerprint,
}

struct Known {
    kinds: LinkKinds,
    pending: bool,
    version: Version,
}

impl Gathering {
    /// Believes what the upstream said for `lifetime`, and asks `concurrency` questions at once.
    #[must_use]
    pub fn new(
        access: Arc<Access>,
        index: Index,
        reading: Reading,
        lifetime: Duration,
        concurrency: usize,
    ) -> Self {
        let strangers = Cache::new(STRANGERS_REMEMBERED);
        Self { access, index, reading, memory: Memory::new(lifetime), strangers, concurrency }
    }

    /// Forgets what is remembered of a repository, rights included, since it is being written to.
    pub fn forget(&self, repository: &Repository) {
        self.access.forget(repository);
        self.memory.forget(repository);
    }

    /// Brings the index up to what the upstream says of a subject; for a caller who may read the
    /// repository.
    pub async fn refresh(
        &self,
        caller: &Caller,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<Answer<()>, Error> {
        let memory = self.memory.of(repository);
        if memory.is_fresh(subject) {
            return Ok(Answer::Present(()));
        }
        let asked = Instant::now();
        let watch = self.index.watch(repository.clone());
        let said = match self.ask(caller, repository, subject, memory.is_without_api()).await? {
            Answer::Present(said) => said,
            Answer::Absent => return Ok(Answer::Absent),
            Answer::Refused(response) => return Ok(Answer::Refused(response)),
        };
        self.take(caller, &watch, (repository, subject), said, (asked, &memory)).await
    }

    /// Asks the same, whatever is remembered, for a caller of whom nothing is known; [`Answer::Present`] if
    /// the upstream thereby showed that the caller may read the repository.
    pub async fn refresh_if_shown(
        &self,
        caller: &Caller,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<Answer<()>, Error> {
        let memory = self.memory.of(repository);
        let asked = Instant::now();
        let watch = self.index.watch(repository.clone());
        match self.ask(caller, repository, subject, false).await? {
            Answer::Present(said) if said.shows_something() => {
                self.take(caller, &watch, (repository, subject), said, (asked, &memory)).await
            }
            Answer::Present(_) | Answer::Absent => Ok(Answer::Absent),
            Answer::Refused(response) => Ok(Answer::Refused(response)),
        }
    }

    async fn ask(
        &self,
        caller: &Caller,
        repository: &Repository,
        subject: &Digest,
        without_api: bool,
    ) -> Result<Answer<Said>, Error> {
        let native = async {
            if without_api {
                return Ok(Answer::Absent);
            }
            native::ask(&self.access, caller, repository, subject).await
        };
        let tag = TagOrDigest::Tag(Tag::of_referrers(subject));
        let (tag, native) = tokio::try_join!(self.access.fetch(caller, repository, &tag), native)?;
        let mut fingerprint = Sha256::new();
        let native = match native {
            Answer::Present(NativeList { entries, fingerprint: of_native }) => {
                fingerprint.update(of_native);
                Some(entries)
            }
            Answer::Absent => None,
            Answer::Refused(response) => return Ok(Answer::Refused(response)),
        };
        let tag = match tag {
            Answer::Present(list) => {
                // GitLab takes the tag for the digest it is made of, and gives the subject itself.
                let digest = Digest::of(subject.algorithm(), &list.bytes);
                fingerprint.update(digest.as_bytes());
                Some(list).filter(|_| digest != *subject)
            }
            Answer::Absent => None,
            Answer::Refused(response) => return Ok(Answer::Refused(response)),
        };
        let tag = tag.and_then(|list| entries(&list.bytes, list.content_type.as_deref()));
        Ok(Answer::Present(Said { tag, native, fingerprint: fingerprint.finalize().into() }))
    }

    /// Puts what was said into the index, and remembers that it is there.
    async fn take(
        &self,
        caller: &Caller,
        watch: &Watch,
        (repository, subject): (&Repository, &Digest),
        said: Said,
        (asked, memory): (Instant, &OfRepository),
    ) -> Result<Answer<()>, Error> {
        let Said { tag, native, fingerprint } = said;
        memory.remember_api(asked, native.is_some());
        if memory.fingerprint(subject) != Some(fingerprint) {
            let known = self.known(repository, subject).await?;
            let of = (repository, subject);
            self.ask_for_unlisted(caller, of, &known, tag.as_deref(), native.as_deref()).await;
            let listed = self.verified(caller, (repository, subject), &known, tag.unwrap_or_default());
            let mut learnt = match listed.await? {
                Answer::Present(learnt) => learnt,
                Answer::Absent => return Ok(Answer::Absent),
                Answer::Refused(response) => return Ok(Answer::Refused(response)),
            };
            for entry in native.unwrap_or_default() {
                if !is_known(&known, &entry.digest, LinkKind::Subject) {
                    learnt.push(found(&entry, subject, LinkKind::Subject, false)?);
                }
            }
            for some in learnt.chunks(AT_ONCE) {
                self.index.learn(watch, some.to_vec()).await.map_err(Error::Gather)?;
            }
        }
        memory.remember(subject, asked, fingerprint);
        Ok(Answer::Present(()))
    }

    /// What the index lists of what the upstream can list.
    async fn known(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<HashMap<Digest, Known>, Error> {
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
            let page = self.index.referrers(repository.clone(), subject.clone(), scan).await;
            let page = page.map_err(Error::LookUp)?;
            after = page.entries.last().map(|entry| entry.order);
            known.extend(page.entries.into_iter().map(|entry| {
                let (kinds, pending, version) = (entry.kinds, entry.pending, entry.version);
                (entry.digest, Known { kinds, pending, version })
            }));
            if !page.more {
                return Ok(known);
            }
        }
    }

    /// The entries of the tag's list that are what they say they are and not known yet, in their order.
    async fn verified(
        &self,
        caller: &Caller,
        (repository, subject): (&Repository, &Digest),
        known: &HashMap<Digest, Known>,
        listed: Vec<Descriptor>,
    ) -> Result<Answer<Vec<Learnt>>, Error> {
        let new = listed.into_iter().filter(|entry| !is_known(known, &entry.digest, LinkKind::Fallback));
        let verified = new.map(|entry| async move {
            if is_known(known, &entry.digest, LinkKind::Subject) {
                // Its own bytes said so; only that the tag lists it is news.
                return Ok(Answer::Present(Some(found(&entry, subject, LinkKind::Fallback, true)?)));
            }
            self.verify(caller, repository, subject, entry.digest).await
        });
        let answers: Vec<Answer<Option<Learnt>>> =
            stream::iter(verified).buffered(self.concurrency).try_collect().await?;
        let mut learnt = Vec::new();
        for answer in answers {
            match answer {
                Answer::Present(found) => learnt.extend(found),
                Answer::Absent => {}
                Answer::Refused(response) => return Ok(Answer::Refused(response)),
            }
        }
        Ok(Answer::Present(learnt))
    }

    /// Fetches a manifest that is said to refer to `subject`.
    async fn verify(
        &self,
        caller: &Caller,
        repository: &Repository,
        subject: &Digest,
        referrer: Digest,
    ) -> Result<Answer<Option<Learnt>>, Error> {
        let pair = (referrer, subject.clone());
        if self.strangers.contains_key(&pair) {
            return Ok(Answer::Absent);
        }
        let manifest = TagOrDigest::Digest(pair.0.clone());
        let fetched = match self.access.fetch(caller, repository, &manifest).await? {
            Answer::Present(fetched) => fetched,
            Answer::Absent => return Ok(Answer::Absent),
            Answer::Refused(response) => return Ok(Answer::Refused(response)),
        };
        let (algorithm, content_type) = (pair.0.algorithm(), fetched.content_type.as_deref());
        let read = self.reading.read(repository, &manifest, algorithm, &fetched.bytes, content_type).await?;
        if read.referrer.digest != pair.0 || read.subject.as_ref() != Some(subject) {
            tracing::warn!(repository = %repository.name, %subject, referrer = %pair.0,
                "a referrers tag lists a manifest that does not name its subject; it is left out");
            self.strangers.insert(pair, ());
            return Ok(Answer::Absent);
        }
        let links = vec![Link { subject: subject.clone(), kind: LinkKind::Fallback }];
        let referrer = Referrer { links, ..read.referrer };
        Ok(Answer::Present(Some(Learnt { referrer, claimed: false })))
    }

    /// Referrers that are known only from a list that has them no longer may have been deleted behind
    /// refshim's back. If that cannot be found out they stay.
    async fn ask_for_unlisted(
        &self,
        caller: &Caller,
        (repository, subject): (&Repository, &Digest),
        known: &HashMap<Digest, Known>,
        tag: Option<&[Descriptor]>,
        native: Option<&[Descriptor]>,
    ) {
        let has_api = native.is_some();
        let listed = [tag, native].into_iter().flatten().flatten();
        let listed: HashSet<&Digest> = listed.map(|entry| &entry.digest).collect();
        let is_unlisted = |(digest, known): &(&Digest, &Known)| {
            let would_be_listed = has_api || !known.kinds.intersects(LinkKind::Subject.into());
            would_be_listed && !known.pending && !listed.contains(digest)
        };
        let unlisted = known.iter().filter(is_unlisted).take(UNLISTED_ASKED_FOR);
        let unlisted: Vec<_> = unlisted.map(|(digest, known)| (digest.clone(), known.version)).collect();
        let questions = unlisted.into_iter().map(|(digest, seen)| async move {
            let manifest = TagOrDigest::Digest(digest.clone());
            let answer = self.access.head(caller, repository, &manifest).await;
            matches!(answer, Ok(Answer::Absent)).then_some((digest, seen))
        });
        let answers = stream::iter(questions).buffer_unordered(self.concurrency);
        let gone: Vec<_> = answers.collect::<Vec<_>>().await.into_iter().flatten().collect();
        let list = TagOrDigest::Tag(Tag::of_referrers(subject));
        let others = listed.into_iter().map(|digest| TagOrDigest::Digest(digest.clone()));
        let witnesses = [TagOrDigest::Digest(subject.clone()), list].into_iter().chain(others);
        if gone.is_empty() || !self.access.still_reads(caller, repository, witnesses).await {
            return;
        }
        for (digest, seen) in gone {
            if let Err(error) = self.index.remove(repository.clone(), digest.clone(), seen).await {
                tracing::warn!(repository = %repository.name, %digest, %error,
                    "a referrer that the registry no longer has could not be removed from the index");
            }
        }
    }
}

impl Said {
    /// Whether the upstream gave something that only who may read the repository gets.
    fn shows_something(&self) -> bool {
        self.tag.is_some() || self.native.as_ref().is_some_and(|entries| !entries.is_empty())
    }
}

fn is_known(known: &HashMap<Digest, Known>, digest: &Digest, kind: LinkKind) -> bool {
    known.get(digest).is_some_and(|known| !known.pending && known.kinds.intersects(kind.into()))
}

/// An entry as the list describes it.
fn found(entry: &Descriptor, subject: &Digest, kind: LinkKind, claimed: bool) -> Result<Learnt, Error> {
    let links = vec![Link { subject: subject.clone(), kind }];
    let referrer = Referrer { digest: entry.digest.clone(), descriptor: to_json(entry)?, links };
    Ok(Learnt { referrer, claimed })
}
