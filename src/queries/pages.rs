//! One page of what refers to a manifest, as the queries need it. Nothing is said before the upstream
//! showed that the caller may read the repository, and nothing pending is listed before the upstream was
//! asked for it.

mod across;
mod answer;
mod entries;

use std::fmt;
use std::sync::Arc;

use crate::config;
use crate::index::{Entry, Index, Order, Page, Repository, Scan};
use crate::oci::{Digest, TagOrDigest};
use crate::proxy::error::Error;
use crate::registry::reader::ManifestReader;
use crate::registry::{Answer, Merger, Question, Registry, Verdict, Visit};

pub use across::{Beyond, REPOSITORY_ANNOTATION};
use across::{Elsewhere, merge};
pub use answer::render;

/// How many entries of a page may be claims that the registry never confirmed. Each costs a question, and whoever
/// hangs up in the middle of a PUT makes one.
const CLAIMS: usize = 500;

/// Lists referrers.
#[derive(Debug)]
pub struct ReferrerPages {
    registry: Arc<Registry>,
    merger: Arc<Merger>,
    reader: ManifestReader,
    index: Index,
    page_bytes: usize,
    concurrency: usize,
    elsewhere: Elsewhere,
}

/// Which entries a caller wants to see.
pub type Accepts = Arc<dyn Fn(&Entry) -> bool + Send + Sync>;

/// What a caller wants to see.
pub struct PageRequest {
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
    pub scope: QueryScope,
}

/// Where referrers are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueryScope {
    /// In the repository of the query.
    #[default]
    Repository,
    /// In all repositories of the upstream, or in those beyond some that earlier pages told of.
    Registry(Option<Beyond>),
}

/// What a page holds.
#[derive(Debug)]
pub struct ReferrerPage {
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

/// An entry, and in which of the repositories it was found.
type Placed = (usize, Entry);

/// The referrers that are asked for to show that a repository can be read: the newest, the oldest and one between
/// them, confirmed ones before others. Of three that are gone alike nothing would be shown for ever.
fn witnesses(page: &Page) -> impl Iterator<Item = Digest> {
    let confirmed: Vec<&Entry> = page.entries.iter().filter(|entry| !entry.pending).collect();
    let all = if confirmed.is_empty() { page.entries.iter().collect() } else { confirmed };
    let places = [all.len().checked_sub(1), Some(0), Some(all.len() / 2)].into_iter().flatten();
    let mut found: Vec<Digest> =
        places.filter_map(|place| all.get(place)).map(|entry| entry.digest.clone()).collect();
    // Each once: an equal question would not be asked again, which could be told from outside.
    let mut seen = std::collections::HashSet::new();
    found.retain(|digest| seen.insert(digest.clone()));
    found.into_iter()
}

impl fmt::Debug for PageRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wanted")
            .field("after", &self.after)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

impl ReferrerPages {
    /// Lists from `index` what `registry` lets its callers see.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        merger: Arc<Merger>,
        reader: ManifestReader,
        index: Index,
        settings: &config::ReferencesConfig,
    ) -> Self {
        let config::ReferencesConfig { page_bytes, concurrency, scope_repositories, .. } = *settings;
        let elsewhere = Elsewhere::new(scope_repositories, concurrency, page_bytes);
        Self { registry, merger, reader, index, page_bytes, concurrency, elsewhere }
    }

    /// One page. A client that goes away ends it wherever it is; nothing is lost by that.
    pub async fn page(
        &self,
        visit: Visit,
        manifest: TagOrDigest,
        wanted: &PageRequest,
    ) -> Result<ReferrerPage, Error> {
        let (question, verdict) = self.open(visit, manifest).await?;
        let here = self.here(&question, verdict, wanted).await?;
        let mut questions = Vec::new();
        let (entries, next) = match wanted.scope {
            QueryScope::Repository => {
                let last = here.entries.last().filter(|_| here.more);
                let next = last.map(|last| Next { after: Some(last.order), beyond: None });
                questions.push(question);
                (here.entries.into_iter().map(|entry| (0, entry)).collect(), next)
            }
            QueryScope::Registry(beyond) => {
                let found = self.elsewhere.pages(self, &question, wanted).await?;
                questions.push(question);
                let mut pages = vec![here];
                for (question, page) in found.pages {
                    questions.push(question);
                    pages.push(page);
                }
                let names: Vec<_> =
                    questions.iter().map(|question| &question.visit.repository.name).collect();
                let (entries, last) = merge(pages, &names, self.page_bytes, wanted.count);
                let within = last.map(|last| Next { after: Some(last), beyond });
                let behind = found.beyond.map(|beyond| Next { after: None, beyond: Some(beyond) });
                (entries, within.or(behind))
            }
        };
        let descriptors = self.present(&questions, &entries, wanted).await?;
        let subject = questions.swap_remove(0).subject;
        Ok(ReferrerPage { subject, descriptors, next })
    }

    /// The question, once its subject is known, and what is known of the caller's right to ask it.
    async fn open(&self, visit: Visit, manifest: TagOrDigest) -> Result<(Question, Verdict), Error> {
        match manifest {
            TagOrDigest::Digest(subject) => {
                let question = Question { visit, subject };
                let verdict = self.registry.may_read(&question).await?;
                Ok((question, verdict))
            }
            tag @ TagOrDigest::Tag(_) => match self.registry.find(&visit, &tag).await? {
                Answer::Present(found) => {
                    let verdict = if found.is_proof { Verdict::Readable } else { Verdict::Unproven };
                    Ok((Question { visit, subject: found.digest }, verdict))
                }
                Answer::Absent => Err(Error::TagUnknown),
                Answer::Odd(status) => Err(Error::Undecided(status)),
            },
        }
    }

    /// The same question about another repository.
    fn elsewhere(&self, question: &Question, repository: Repository) -> Question {
        let visit = self.registry.visit(&question.visit.caller, repository);
        Question { visit, subject: question.subject.clone() }
    }

    /// The page of the repository that was asked, as far as the caller may know.
    async fn here(&self, question: &Question, verdict: Verdict, wanted: &PageRequest) -> Result<Page, Error> {
        let nothing = Page { entries: Vec::new(), more: false };
        if matches!(wanted.scope, QueryScope::Registry(Some(_))) {
            return Ok(nothing);
        }
        // Later pages go on in what the first one brought into the index.
        let gathers = wanted.gathers && wanted.after.is_none();
        if verdict == Verdict::Readable {
            if gathers {
                self.merger.refresh(question, true).await?;
            }
            return self.scan(question, wanted, self.page_bytes).await;
        }
        let page = self.scan(question, wanted, self.page_bytes).await?;
        let witnesses = witnesses(&page);
        let shown = self.registry.may_read_one_of(&question.visit, witnesses).await?;
        let is_shown = shown == Verdict::Readable;
        if gathers && self.merger.refresh(question, is_shown).await? {
            return self.scan(question, wanted, self.page_bytes).await;
        }
        match (shown, verdict) {
            (Verdict::Readable, _) => Ok(page),
            // A login page is not the 404 of a subject that was never pushed.
            (Verdict::Odd(status), _) | (_, Verdict::Odd(status)) => Err(Error::Undecided(status)),
            (Verdict::Unproven, Verdict::Readable | Verdict::Unproven) => Ok(nothing),
        }
    }

    /// The entries that are wanted. What is pending is looked at whatever is wanted: what is known of it is
    /// somebody's claim, by which nothing may be left out.
    async fn scan(&self, question: &Question, wanted: &PageRequest, max_bytes: usize) -> Result<Page, Error> {
        let accepts = Arc::clone(&wanted.accepts);
        let scan = Scan {
            after: wanted.after,
            max_entries: wanted.count.unwrap_or(usize::MAX),
            max_bytes,
            max_claims: CLAIMS,
            accepts: Box::new(move |entry| entry.pending || accepts(entry)),
        };
        let Question { visit: Visit { repository, .. }, subject } = question;
        self.index.referrers(repository.clone(), subject.clone(), scan).await.map_err(Error::LookUp)
    }
}
