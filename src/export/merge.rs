//! What a list of referrers is to say: decided by the manifests themselves, each of which is read once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::time::sleep;

use crate::client::{ListChange, Repository as Place, Result};
use crate::oci::{Descriptor, Digest, ReferrersList, TagOrDigest};

/// How many manifests of one list are asked for at a time.
const CONCURRENCY: usize = 4;
/// How long after a 404 a manifest is asked for again. One is no proof: registries lag behind their
/// own 201, and one bad node answers it for a moment.
const SECOND_LOOK: Duration = Duration::from_secs(1);
const ABSENT: &str = "is not there";

/// Brings a list level with the index and with what the registry has.
pub(super) struct Merge<'a> {
    place: &'a Place,
    subject: &'a Digest,
    /// What the index has, oldest first.
    ours: Vec<Digest>,
    /// What it says of them, where that is enough.
    known: Option<HashMap<Digest, Descriptor>>,
    read: HashMap<Digest, Verdict>,
    made: Made,
}

/// What was changed.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub(super) added: BTreeSet<Digest>,
    pub(super) corrected: BTreeSet<Digest>,
    /// With the reasons.
    pub(super) removed: BTreeMap<Digest, &'static str>,
}

/// What the registry says of a manifest that somebody lists.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It is about the subject.
    About(Box<Descriptor>),
    /// It has no business on the list.
    Not(&'static str),
    /// It could not be read now.
    Unread(String),
}

impl<'a> Merge<'a> {
    pub(super) fn new(place: &'a Place, subject: &'a Digest, ours: Vec<Digest>) -> Self {
        Self { place, subject, ours, known: None, read: HashMap::new(), made: Made::default() }
    }

    /// The same for a list that is written often, which would be read as often as it is long: what it lists is read
    /// only if the index says something else of it. Entries that only others know of stay as they are.
    pub(super) fn knowing(self, known: HashMap<Digest, Descriptor>) -> Self {
        Self { known: Some(known), ..self }
    }

    pub(super) fn made(&self) -> &Made {
        &self.made
    }

    /// What was read and is about the subject.
    pub(super) fn about(&self) -> impl Iterator<Item = &Digest> {
        let is_about = |verdict: &Verdict| matches!(verdict, Verdict::About(_));
        self.read.iter().filter(move |(_, verdict)| is_about(verdict)).map(|(digest, _)| digest)
    }

    /// What the index knows and the registry does not have.
    pub(super) fn absent(&self) -> impl Iterator<Item = &Digest> {
        let is_absent = |digest: &&Digest| matches!(self.read.get(*digest), Some(Verdict::Not(ABSENT)));
        self.ours.iter().filter(is_absent)
    }

    /// What could not be read, so that it is not known whether it is to be listed.
    pub(super) fn unread(&self) -> impl Iterator<Item = String> {
        self.read.values().filter_map(|verdict| match verdict {
            Verdict::Unread(reason) => Some(reason.clone()),
            Verdict::About(_) | Verdict::Not(_) => None,
        })
    }

    /// What of ours the registry has, and somebody does not list.
    pub(super) async fn lacks(&mut self, lists: impl Fn(&Digest) -> bool) -> Vec<Digest> {
        let unlisted: Vec<Digest> = self.ours.iter().filter(|digest| !lists(digest)).cloned().collect();
        self.read(&unlisted).await;
        let is_about = |digest: &Digest| matches!(self.read.get(digest), Some(Verdict::About(_)));
        unlisted.into_iter().filter(is_about).collect()
    }

    /// Whether an entry of the list may not be as it should be.
    fn is_doubtful(&self, entry: &Descriptor) -> bool {
        let Some(known) = &self.known else { return true };
        known.get(&entry.digest).is_some_and(|known| known != entry)
    }

    /// Reads those that were not read yet.
    async fn read(&mut self, digests: &[Digest]) {
        let unread: BTreeSet<Digest> =
            digests.iter().filter(|digest| !self.read.contains_key(*digest)).cloned().collect();
        let (place, subject) = (self.place, self.subject);
        let reads = unread.into_iter().map(|digest| async move {
            let verdict = verdict(place, subject, &digest).await;
            (digest, verdict)
        });
        let reads: Vec<_> = reads.collect();
        let read: Vec<_> = stream::iter(reads).buffer_unordered(CONCURRENCY).collect().await;
        self.read.extend(read);
    }
}

impl ListChange for Merge<'_> {
    async fn apply(&mut self, list: &mut ReferrersList) -> Result<()> {
        let listed: Vec<Descriptor> = list.descriptors().cloned().collect();
        let doubtful = listed.iter().filter(|entry| self.is_doubtful(entry));
        let digests: Vec<Digest> = doubtful.map(|entry| entry.digest.clone()).collect();
        self.read(&digests).await;
        for entry in &listed {
            match self.read.get(&entry.digest) {
                Some(Verdict::About(descriptor)) => {
                    list.put(descriptor);
                    // `data`, which may stand in the list, is no part of the comparison.
                    if **descriptor != *entry && !self.made.added.contains(&entry.digest) {
                        self.made.corrected.insert(entry.digest.clone());
                    }
                }
                Some(Verdict::Not(reason)) => {
                    list.remove(&entry.digest);
                    self.made.removed.insert(entry.digest.clone(), reason);
                }
                Some(Verdict::Unread(_)) | None => {}
            }
        }
        let unlisted: Vec<Digest> = self.ours.iter().filter(|digest| !list.has(digest)).cloned().collect();
        self.read(&unlisted).await;
        for digest in unlisted {
            if let Some(Verdict::About(descriptor)) = self.read.get(&digest) {
                list.put(descriptor);
                self.made.added.insert(digest);
            }
        }
        Ok(())
    }
}

/// Reads a manifest and says whether it is about the subject.
pub(crate) async fn verdict(place: &Place, subject: &Digest, digest: &Digest) -> Verdict {
    let named = TagOrDigest::Digest(digest.clone());
    let mut found = place.find_manifest(&named).await;
    if matches!(found, Ok(None)) {
        sleep(SECOND_LOOK).await;
        found = place.find_manifest(&named).await;
    }
    match found {
        Ok(Some(manifest)) if manifest.subject() == Some(subject) => {
            Verdict::About(manifest.descriptor().into())
        }
        Ok(Some(manifest)) if manifest.subject().is_some() => Verdict::Not("is about another manifest"),
        Ok(Some(_)) => Verdict::Not("does not say that it is about that manifest"),
        Ok(None) => Verdict::Not(ABSENT),
        Err(error) => Verdict::Unread(error.to_string()),
    }
}
