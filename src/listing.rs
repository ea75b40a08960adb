//! One page of what refers to a manifest, as the queries need it. Nothing is said before the upstream
//! showed that the caller may read the repository, and nothing pending is listed before the upstream was
//! asked for it.

mod answer;
mod elsewhere;

use std::fmt;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use http::Response;

use crate::access::{Access, Answer, Caller, Verdict};
use crate::body::Body;
use crate::config;
use crate::error::Error;
use crate::gathering::Gathering;
use crate::index::{Entry, Index, Order, Page, Repository, Scan};
use crate::oci::{Digest, TagOrDigest};

pub use answer::render;
pub use elsewhere::{Beyond, REPOSITORY_ANNOTATION};
use elsewhere::{Elsewhere, merge};

/// Lists referrers.
#[derive(Debug)]
pub struct Listing {
    access: Arc<Access>,
    gathering: Arc<Gathering>,
    index: Index,
    page_bytes: usize,
    concurrency: usize,
    elsewhere: Elsewhere,
}

/// Which entries a caller wants to see.
pub type Accepts = Arc<dyn Fn(&Entry) -> bool + Send + Sync>;

/// What a caller wants to see.
pub struct Wanted {
    /// Where the page before ended.
    pub after: Option<Order>,
    /// How many entries at most.
    pub count: Option<usize>,
    /// Which ones.
    pub accepts: Accepts,
    /// Whether the manifests' bytes are wanted too.
    pub inline: bool,
    /// Whether the upstream can have something that the index has not.
    pub gathers: bool,
    /// Where to look.
    pub scope: Scope,
}

/// Where referrers are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// In the repository of the query.
    #[default]
    Repository,
    /// In all repositories of the upstream, or in those beyond some that earlier pages told of.
    Registry(Option<Beyond>),
}

/// What a page holds.
#[derive(Debug)]
pub struct Listed {
    /// What was asked about.
    pub subject: Digest,
    /// The descriptors of its referrers, oldest first.
    pub descriptors: Vec<String>,
    /// Where the next page begins, if there is one.
    pub next: Option<Next>,
}

/// Where a page begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// Behind this referrer.
    pub after: Option<Order>,
    /// In the repositories beyond.
    pub beyond: Option<Beyond>,
}

/// What a step of the query gives: its value, or the upstream's refusal to be passed on.
#[derive(Debug)]
pub enum Step<T> {
    /// Go on with this.
    Go(T),
    /// The answer to be passed on.
    Refused(Response<Body>),
}

/// An entry, and in which of the repositories it was found.
type Placed = (usize, Entry);

/// What the upstream says of an entry.
enum Seen {
    /// It has it; how it is listed.
    There(String),
    /// It does not have it, or does not give it to this caller.
    Gone(Placed),
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wanted")
            .field("after", &self.after)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

impl Listing {
    /// Lists from `index` to whom `access` lets.
    #[must_use]
    pub fn new(
        access: Arc<Access>,
        gathering: Arc<Gathering>,
        index: Index,
        settings: &config::References,
    ) -> Self {
        let config::References { page_bytes, concurrency, scope_repositories, .. } = *settings;
        let elsewhere = Elsewhere::new(scope_repositories, concurrency, page_bytes);
        Self { access, gathering, index, page_bytes, concurrency, elsewhere }
    }

    /// One page. A client that goes away ends it wherever it is; nothing is lost by that.
    pub async fn page(
        &self,
        caller: &Caller,
        repository: &Repository,
        manifest: TagOrDigest,
        wanted: &Wanted,
    ) -> Result<Step<Listed>, Error> {
        let (subject, proven) = match manifest {
            TagOrDigest::Digest(subject) => match self.access.may_read(caller, repository, &subject).await? {
                Verdict::Readable => (subject, true),
                Verdict::Unproven => (subject, false),
                Verdict::Refused(response) => return Ok(Step::Refused(response)),
            },
            tag @ TagOrDigest::Tag(_) => match self.access.resolve(caller, repository, &tag).await? {
                Answer::Present(subject) => (subject, true),
                Answer::Absent => return Err(Error::TagUnknown),
                Answer::Refused(response) => return Ok(Step::Refused(response)),
            },
        };
        let mut places = vec![repository.clone()];
        let here = match self.here(caller, repository, &subject, proven, wanted).await? {
            Step::Go(page) => page,
            Step::Refused(response) => return Ok(Step::Refused(response)),
        };
        let (entries, next) = match wanted.scope {
            Scope::Repository => {
                let last = here.entries.last().filter(|_| here.more);
                let next = last.map(|last| Next { after: Some(last.order), beyond: None });
                (here.entries.into_iter().map(|entry| (0, entry)).collect(), next)
            }
            Scope::Registry(beyond) => {
                let found = self.elsewhere.pages(self, caller, repository, &subject, wanted).await?;
                let found = match found {
                    Step::Go(found) => found,
                    Step::Refused(response) => return Ok(Step::Refused(response)),
                };
                let mut pages = vec![here];
                for (repository, page) in found.pages {
                    places.push(repository);
                    pages.push(page);
                }
                let (entries, last) = merge(pages, &places, self.page_bytes, wanted.count);
                let within = last.map(|last| Next { after: Some(last), beyond });
                let behind = found.beyond.map(|beyond| Next { after: None, beyond: Some(beyond) });
                (entries, within.or(behind))
            }
        };
        Ok(match self.present(caller, (&places, &subject), entries, wanted.inline).await? {
            Step::Go(descriptors) => Step::Go(Listed { subject, descriptors, next }),
            Step::Refused(response) => Step::Refused(response),
        })
    }

    /// The page of the repository that was asked, as far as the caller may know.
    async fn here(
        &self,
        caller: &Caller,
        repository: &Repository,
        subject: &Digest,
        proven: bool,
        wanted: &Wanted,
    ) -> Result<Step<Page>, Error> {
        let nothing = Page { entries: Vec::new(), more: false };
        if matches!(wanted.scope, Scope::Registry(Some(_))) {
            return Ok(Step::Go(nothing));
        }
        // Later pages go on in what the first one brought into the index.
        let gathers = wanted.gathers && wanted.after.is_none();
        if proven {
            if gathers
                && let Answer::Refused(response) = self.gathering.refresh(caller, repository, subject).await?
            {
                return Ok(Step::Refused(response));
            }
            return Ok(Step::Go(self.scan(repository, subject, wanted, self.page_bytes).await?));
        }
        let page = self.scan(repository, subject, wanted, self.page_bytes).await?;
        let witnesses = page.entries.iter().map(|entry| entry.digest.clone());
        let gathered = async {
            if !gathers {
                return Ok(Answer::Absent);
            }
            self.gathering.refresh_if_shown(caller, repository, subject).await
        };
        let readable = self.access.may_read_one_of(caller, repository, witnesses);
        Ok(match tokio::try_join!(readable, gathered)? {
            (Verdict::Refused(response), _) | (_, Answer::Refused(response)) => Step::Refused(response),
            (Verdict::Readable | Verdict::Unproven, Answer::Present(())) => {
                Step::Go(self.scan(repository, subject, wanted, self.page_bytes).await?)
            }
            (Verdict::Readable, Answer::Absent) => Step::Go(page),
            (Verdict::Unproven, Answer::Absent) => Step::Go(nothing),
        })
    }

    async fn scan(
        &self,
        repository: &Repository,
        subject: &Digest,
        wanted: &Wanted,
        max_bytes: usize,
    ) -> Result<Page, Error> {
        let accepts = Arc::clone(&wanted.accepts);
        let scan = Scan {
            after: wanted.after,
            max_entries: wanted.count.unwrap_or(usize::MAX),
            max_bytes,
            accepts: Box::new(move |entry| accepts(entry)),
        };
        self.index.referrers(repository.clone(), subject.clone(), scan).await.map_err(Error::LookUp)
    }

    /// The descriptors of a page: pending entries settled, manifests inlined where asked for.
    async fn present(
        &self,
        caller: &Caller,
        (places, subject): (&[Repository], &Digest),
        entries: Vec<Placed>,
        inline: bool,
    ) -> Result<Step<Vec<String>>, Error> {
        let inlined =
            if inline { answer::what_fits(&entries, self.page_bytes) } else { vec![false; entries.len()] };
        let all: Vec<(usize, Digest)> =
            entries.iter().map(|(place, entry)| (*place, entry.digest.clone())).collect();
        let descriptors = entries.into_iter().zip(inlined).map(|((place, entry), inlined)| async move {
            let repository = places.get(place).ok_or(Error::Handler)?;
            let step = if inlined || entry.pending {
                self.check(caller, repository, (place, entry), inlined).await?
            } else {
                Step::Go(Seen::There(entry.descriptor))
            };
            Ok::<_, Error>(match step {
                Step::Go(Seen::There(descriptor)) if place > 0 => {
                    Step::Go(Seen::There(answer::with_repository(&descriptor, &repository.name)?))
                }
                here @ (Step::Go(_) | Step::Refused(_)) => here,
            })
        });
        let steps: Vec<Step<Seen>> =
            stream::iter(descriptors).buffered(self.concurrency).try_collect().await?;
        let (mut listed, mut gone) = (Vec::with_capacity(steps.len()), Vec::new());
        for step in steps {
            match step {
                Step::Go(Seen::There(descriptor)) => listed.push(descriptor),
                Step::Go(Seen::Gone(entry)) => gone.push(entry),
                Step::Refused(response) => return Ok(Step::Refused(response)),
            }
        }
        for (place, repository) in places.iter().enumerate() {
            let gone: Vec<&Entry> =
                gone.iter().filter(|(at, _)| *at == place).map(|(_, entry)| entry).collect();
            let is_there = |digest: &Digest| !gone.iter().any(|entry| entry.digest == *digest);
            let others = all.iter().filter(|(at, digest)| *at == place && is_there(digest));
            let witnesses = std::iter::once(subject).chain(others.map(|(_, digest)| digest));
            self.forget(caller, repository, &gone, witnesses).await;
        }
        Ok(Step::Go(listed))
    }

    /// Asks the upstream for a referrer: if it is there, its descriptor, with the manifest in it where
    /// that is to be inlined.
    async fn check(
        &self,
        caller: &Caller,
        repository: &Repository,
        (place, entry): Placed,
        inlined: bool,
    ) -> Result<Step<Seen>, Error> {
        let referrer = TagOrDigest::Digest(entry.digest.clone());
        let answer = if inlined {
            self.access.fetch(caller, repository, &referrer).await?.map(Some)
        } else {
            self.access.head(caller, repository, &referrer).await?.map(|_| None)
        };
        Ok(match answer {
            Answer::Present(manifest) => {
                if entry.pending {
                    self.confirm(repository, &entry).await;
                }
                Step::Go(Seen::There(match manifest {
                    Some(manifest) => answer::with_data(entry, &manifest.bytes),
                    None => entry.descriptor,
                }))
            }
            Answer::Absent => Step::Go(Seen::Gone((place, entry))),
            Answer::Refused(response) => Step::Refused(response),
        })
    }

    /// The answer does not depend on whether this can be written down: the next query asks again.
    async fn confirm(&self, repository: &Repository, entry: &Entry) {
        let written =
            self.index.settle_present(repository.clone(), entry.digest.clone(), entry.version).await;
        log_unwritten(repository, entry, written);
    }

    /// Forgets what is gone, if the upstream shows the caller a witness afterwards: a registry that hides
    /// by 404, or lost its storage, says the same of everything.
    async fn forget(
        &self,
        caller: &Caller,
        repository: &Repository,
        gone: &[&Entry],
        witnesses: impl Iterator<Item = &Digest>,
    ) {
        let witnesses = witnesses.map(|digest| TagOrDigest::Digest(digest.clone()));
        if gone.is_empty() || !self.access.still_reads(caller, repository, witnesses).await {
            return;
        }
        for entry in gone {
            let written = self.index.remove(repository.clone(), entry.digest.clone(), entry.version).await;
            log_unwritten(repository, entry, written);
        }
    }
}

fn log_unwritten<T>(repository: &Repository, entry: &Entry, written: Result<T, crate::index::WriteError>) {
    if let Err(error) = written {
        tracing::warn!(repository = %repository.name, digest = %entry.digest, %error,
            "what the registry said of a referrer could not be written to the index");
    }
}
