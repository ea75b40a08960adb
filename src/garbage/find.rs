//! The look into one repository.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use tokio::time::sleep;

use super::keepers::Keepers;
use super::{Collection, Found, Garbage, add};
use crate::client::{Manifest, Repository as Place};
use crate::export::each_referrer;
use crate::index::{KnownReferrer, Version};
use crate::oci::{Digest, LinkKind, RepositoryName, TagOrDigest};

/// How long after the first 404 a subject is asked for again. Registries lag behind their own 201 by seconds.
const SECOND_LOOK: Duration = Duration::from_secs(3);

/// A referrer, as the index knows it, and its manifest once that was fetched.
struct Candidate {
    subjects: BTreeSet<Digest>,
    version: Version,
    first_seen: Timestamp,
    manifest: Option<Manifest>,
}

/// One repository.
struct Look<'a> {
    run: &'a Collection,
    place: Place,
    name: RepositoryName,
    candidates: BTreeMap<Digest, Candidate>,
    /// The indexes that list a manifest.
    parents: HashMap<Digest, Vec<Digest>>,
    /// Whether manifests are gone. What could not be asked for is not.
    gone: HashMap<Digest, bool>,
}

impl Collection {
    pub(super) async fn find_in(&self, name: RepositoryName) -> Vec<Garbage> {
        let place = match self.place(&name) {
            Ok(place) => place,
            Err(error) => {
                self.fail(name.to_string(), &error);
                return Vec::new();
            }
        };
        let mut look = Look {
            run: self,
            place,
            name,
            candidates: BTreeMap::new(),
            parents: HashMap::new(),
            gone: HashMap::new(),
        };
        look.find().await
    }
}

impl Look<'_> {
    async fn find(&mut self) -> Vec<Garbage> {
        if let Err(error) = self.known().await {
            self.run.fail(self.name.to_string(), &error);
            return Vec::new();
        }
        self.look_for_subjects().await;
        self.narrow(&Keepers::default());
        if self.candidates.is_empty() {
            return Vec::new();
        }
        self.fetch().await;
        // The bytes may name subjects that the index does not know of.
        self.look_for_subjects().await;
        let keepers = match self.run.keepers(&self.place).await {
            Ok(keepers) => keepers,
            Err(error) => {
                self.run.fail(self.name.to_string(), &error);
                return Vec::new();
            }
        };
        self.look_for_parents().await;
        self.narrow(&keepers);
        self.look_elsewhere().await;
        self.narrow(&keepers);
        if self.candidates.is_empty() {
            return Vec::new();
        }
        sleep(SECOND_LOOK).await;
        self.look_again().await;
        self.narrow(&keepers);
        std::mem::take(&mut self.candidates).into_iter().filter_map(|it| self.garbage(it)).collect()
    }

    /// What the index knows of the repository.
    async fn known(&mut self) -> Result<(), crate::index::ReadError> {
        let repository = self.run.repository(self.name.clone());
        let (candidates, parents) = (&mut self.candidates, &mut self.parents);
        each_referrer(&self.run.index, &repository, |referrer| {
            let KnownReferrer { digest, order, version, links, .. } = referrer;
            let mut subjects = BTreeSet::new();
            for (subject, kinds) in links {
                if kinds.intersects(LinkKind::Parent.into()) {
                    parents.entry(subject.clone()).or_default().push(digest.clone());
                }
                if kinds.iter().any(|kind| LinkKind::ATTACHED.contains(&kind)) {
                    subjects.insert(subject);
                }
            }
            if !subjects.is_empty() {
                let first_seen =
                    i64::try_from(order.0).ok().and_then(|at| Timestamp::from_microsecond(at).ok());
                let first_seen = first_seen.unwrap_or(Timestamp::UNIX_EPOCH);
                candidates.insert(digest, Candidate { subjects, version, first_seen, manifest: None });
            }
        })
        .await
    }

    /// Asks for the subjects that were not asked for yet.
    async fn look_for_subjects(&mut self) {
        let subjects = self.candidates.values().flat_map(|candidate| &candidate.subjects);
        let subjects = subjects.filter(|subject| !self.gone.contains_key(*subject)).cloned().collect();
        self.look_for(subjects).await;
    }

    /// Asks for the indexes that list a candidate. What cannot be read may be one.
    async fn look_for_parents(&mut self) {
        let parents = self.candidates.keys().filter_map(|digest| self.parents.get(digest)).flatten();
        for (digest, found) in self.get(parents.cloned().collect()).await {
            self.gone.insert(digest, matches!(found, Ok(None)));
        }
    }

    async fn look_for(&mut self, digests: BTreeSet<Digest>) {
        add(&self.run.counts.subjects, digests.len() as u64);
        let (run, place, name) = (self.run, &self.place, &self.name);
        let looks: Vec<_> = digests
            .into_iter()
            .map(|digest| async move {
                let _turn = run.turns.acquire().await.ok();
                match place.digest_for_sure(&TagOrDigest::Digest(digest.clone())).await {
                    Ok(found) => (digest, found.is_none()),
                    Err(error) => {
                        run.fail(format!("{name}@{digest}"), &error);
                        (digest, false)
                    }
                }
            })
            .collect();
        let found: Vec<_> = stream::iter(looks).buffer_unordered(run.plan.jobs).collect().await;
        self.gone.extend(found);
    }

    /// Looks for what is gone from here in the other repositories.
    async fn look_elsewhere(&mut self) {
        for digest in self.run.elsewhere(&self.name, self.gone_subjects()).await {
            self.gone.insert(digest, false);
        }
    }

    /// The subjects of candidates that were not there.
    fn gone_subjects(&self) -> BTreeSet<Digest> {
        let subjects = self.candidates.values().flat_map(|candidate| &candidate.subjects);
        subjects.filter(|subject| self.gone.get(*subject) == Some(&true)).cloned().collect()
    }

    /// Asks once more for all that is taken to be gone, and for what referred to it: by GET, since there are proxies
    /// that answer a HEAD otherwise.
    async fn look_again(&mut self) {
        for (digest, found) in self.get(self.gone_subjects()).await {
            self.gone.insert(digest, matches!(found, Ok(None)));
        }
        self.fetch().await;
    }

    /// Fetches the candidates; what is not there, or cannot be read, is none.
    async fn fetch(&mut self) {
        for (digest, found) in self.get(self.candidates.keys().cloned().collect()).await {
            let manifest = match found {
                Ok(manifest) => manifest,
                Err(error) => {
                    self.run.fail(format!("{}@{digest}", self.name), &error);
                    None
                }
            };
            match (manifest, self.candidates.get_mut(&digest)) {
                (Some(manifest), Some(candidate)) => {
                    let own = manifest.links(None).links.into_iter();
                    let own = own.filter(|link| LinkKind::ATTACHED.contains(&link.kind));
                    candidate.subjects.extend(own.map(|link| link.subject));
                    candidate.manifest = Some(manifest);
                }
                (None, _) | (_, None) => drop(self.candidates.remove(&digest)),
            }
        }
    }

    async fn get(&self, digests: BTreeSet<Digest>) -> Vec<(Digest, crate::client::Result<Option<Manifest>>)> {
        let (run, place) = (self.run, &self.place);
        let gets: Vec<_> = digests
            .into_iter()
            .map(|digest| async move {
                let _turn = run.turns.acquire().await.ok();
                let found = place.find_manifest(&TagOrDigest::Digest(digest.clone())).await;
                (digest, found)
            })
            .collect();
        stream::iter(gets).buffer_unordered(run.plan.jobs).collect().await
    }

    /// Leaves only the candidates all of whose subjects are gone, or are such candidates themselves.
    fn narrow(&mut self, keepers: &Keepers) {
        let now = Timestamp::now();
        let mut left = std::mem::take(&mut self.candidates);
        // From below: two that refer to each other, as tags can have them do, hold each other.
        loop {
            let is_next = |digest: &Digest, candidate: &Candidate| {
                let is_gone = |subject: &Digest| {
                    self.gone.get(subject) == Some(&true) || self.candidates.contains_key(subject)
                };
                candidate.subjects.iter().all(is_gone) && !self.is_kept(digest, candidate, keepers, now)
            };
            let (next, others): (BTreeMap<_, _>, _) =
                left.into_iter().partition(|(digest, candidate)| is_next(digest, candidate));
            if next.is_empty() {
                return;
            }
            left = others;
            self.candidates.extend(next);
        }
    }

    fn is_kept(&self, digest: &Digest, candidate: &Candidate, keepers: &Keepers, now: Timestamp) -> bool {
        let mut parents = self.parents.get(digest).into_iter().flatten();
        let has_parent = parents.any(|parent| self.gone.get(parent) == Some(&false));
        let is_young = match (self.run.plan.older_than, &candidate.manifest) {
            (Some(limit), Some(manifest)) => {
                now.duration_since(created(manifest).unwrap_or(candidate.first_seen)) < limit
            }
            (None, _) | (_, None) => false,
        };
        has_parent || is_young || keepers.keep(digest, &candidate.subjects)
    }

    fn garbage(&self, (digest, candidate): (Digest, Candidate)) -> Option<Garbage> {
        let Candidate { subjects, version, first_seen, manifest } = candidate;
        let manifest = manifest?;
        let found = Found {
            repository: self.name.clone(),
            digest,
            r#type: manifest.type_name().to_owned(),
            subjects,
            created: created(&manifest),
            first_seen,
            size: manifest.content_size(),
        };
        Some(Garbage { found, version, manifest })
    }
}

fn created(manifest: &Manifest) -> Option<Timestamp> {
    manifest.created().and_then(|created| created.parse().ok())
}
