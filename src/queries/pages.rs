//! A page of a manifest's referrers. The steps of a query:
//!
//! 1. **Rights.** The registry must serve the caller the subject or, if that is a 404, one of the referrers. Until
//!    then nothing is revealed, not even by how long the answer takes.
//! 2. **Merge.** What the registry itself lists is brought into the index ([`Merger`]), for the first page only.
//! 3. **Scan.** The entries come from the index, which keeps them in the order of pushes.
//! 4. **Check.** Pending entries are listed only after the registry was asked for them.
//!
//! A page that needed no check is kept as it was written, and stands for steps 3 and 4 until a write to its repository
//! (`kept`).
//!
//! A query is an error only if there is no honest answer, since clients read an error as "unsigned"; and it is never
//! an empty list because something failed.

mod across;
mod answer;
mod entries;
mod kept;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use jiff::Timestamp;

use crate::config;
use crate::index::{Coverage, Entry, Index, Order, Page, Repository, Scan};
use crate::oci::{Digest, LinkKinds, TagOrDigest, image_index_of};
use crate::proxy::error::Error;
use crate::registry::reader::ManifestReader;
use crate::registry::{Answer, Merger, Question, Registry, Verdict, Visit};

pub use across::{Beyond, REPOSITORY_ANNOTATION};
use across::{Elsewhere, merge};
use answer::MayMiss;
pub use answer::render;
use kept::{KeptPages, KeptPlace, Listing};

/// Entries of a page that may be claims the registry never confirmed. Each costs a request, and a client can make
/// one by hanging up during a PUT.
const CLAIMS: usize = 500;

/// Makes the pages of both queries.
#[derive(Debug)]
pub struct ReferrerPages {
    registry: Arc<Registry>,
    merger: Arc<Merger>,
    reader: ManifestReader,
    index: Index,
    page_bytes: usize,
    concurrency: usize,
    elsewhere: Elsewhere,
    may_miss: MayMiss,
    kept: KeptPages,
}

/// The filter of a query.
pub type Accepts = Arc<dyn Fn(&Entry) -> bool + Send + Sync>;

/// Which page of which entries a query asks for.
pub struct PageRequest {
    /// The last entry of the previous page.
    pub after: Option<Order>,
    /// The most entries.
    pub count: Option<usize>,
    /// The filter.
    pub accepts: Accepts,
    /// Whether to inline the manifests' bytes (`data`).
    pub inline: bool,
    /// Whether the registry itself may list entries of the wanted kinds, so that a merge is needed.
    pub gathers: bool,
    /// In which repositories.
    pub scope: QueryScope,
    /// A name that only requests for the same have, under which the page may be kept.
    pub name: Option<Box<str>>,
}

/// The repositories that a query searches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueryScope {
    /// The repository of the query.
    #[default]
    Repository,
    /// All repositories of the upstream; on a further page, those that earlier pages did not reach.
    Registry(Option<Beyond>),
}

/// A page.
#[derive(Debug)]
pub struct ReferrerPage {
    /// The digest whose referrers it lists; resolved, if the query named a tag.
    pub subject: Digest,
    /// The image index of the referrers' descriptors, oldest first.
    pub image_index: Bytes,
    /// The kinds of link of each of them.
    pub kinds: Arc<[LinkKinds]>,
    /// The start of the next page, if there is one.
    pub next: Option<Next>,
    /// Says that the list may miss something, if it may.
    pub warning: Option<HeaderValue>,
}

/// What a page's answer says, for those who only want to know how much it was.
#[derive(Debug)]
pub struct Listed {
    /// The digest whose referrers are listed.
    pub subject: Digest,
    /// How many are on the page.
    pub count: usize,
}

impl From<ReferrerPage> for Listed {
    fn from(page: ReferrerPage) -> Self {
        Self { subject: page.subject, count: page.kinds.len() }
    }
}

/// The start of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// After this referrer.
    pub after: Option<Order>,
    /// In the repositories after these.
    pub beyond: Option<Beyond>,
}

/// An entry, and the number of the question that found it.
type Placed = (usize, Entry);

/// The referrers that are requested to prove that the repository can be read: the newest, the oldest and one in the
/// middle, of the confirmed ones if there are any. Three neighbours could all have been deleted by one retention
/// rule, and then nothing would ever be listed.
fn witnesses(page: &Page) -> impl Iterator<Item = Digest> {
    let confirmed: Vec<&Entry> = page.entries.iter().filter(|entry| !entry.pending).collect();
    let all = if confirmed.is_empty() { page.entries.iter().collect() } else { confirmed };
    let places = [all.len().checked_sub(1), Some(0), Some(all.len() / 2)].into_iter().flatten();
    let mut found: Vec<Digest> =
        places.filter_map(|place| all.get(place)).map(|entry| entry.digest.clone()).collect();
    // Each once: identical questions share one request, and fewer requests show in the duration of the answer.
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

impl PageRequest {
    /// Whether it searches only repositories that earlier pages did not reach.
    fn is_beyond(&self) -> bool {
        matches!(self.scope, QueryScope::Registry(Some(_)))
    }

    /// Whether a merge comes first. Only for the first page: further ones read what it merged, or their list could
    /// change under way.
    fn gathers_now(&self) -> bool {
        self.gathers && self.after.is_none() && !self.is_beyond()
    }
}

impl ReferrerPages {
    /// Pages from `index`, for callers that `registry` lets read.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        merger: Arc<Merger>,
        reader: ManifestReader,
        index: Index,
        settings: &config::ReferencesConfig,
    ) -> Self {
        let config::ReferencesConfig { page_bytes, concurrency, scope_repositories, cache_bytes, .. } =
            *settings;
        let elsewhere = Elsewhere::new(scope_repositories, concurrency, page_bytes);
        Self {
            registry,
            merger,
            reader,
            index,
            page_bytes,
            concurrency,
            elsewhere,
            may_miss: MayMiss::default(),
            kept: KeptPages::new(cache_bytes),
        }
    }

    /// Goes on from `before`, the same under an earlier configuration: a client in the middle of a list goes on, too.
    #[must_use]
    pub fn following(self, before: &Self) -> Self {
        Self { elsewhere: self.elsewhere.following(&before.elsewhere), ..self }
    }

    /// One page. May be cancelled at any point: whatever was merged or settled until then stays.
    pub async fn page(
        &self,
        visit: Visit,
        manifest: TagOrDigest,
        wanted: &PageRequest,
    ) -> Result<ReferrerPage, Error> {
        let (question, verdict) = self.open(visit, manifest).await?;
        if verdict == Verdict::Readable && wanted.gathers_now() {
            self.merger.refresh(&question, true).await?;
        }
        // After the merge, whose writes end what is kept; before the scan, which a write may overtake.
        let is_readable = verdict == Verdict::Readable;
        let place = if is_readable { KeptPlace::of(&self.index, &question, wanted) } else { None };
        let kept = place.as_ref().and_then(|place| self.kept.get(place));
        let (question, listing) = if let Some(listing) = kept {
            (question, listing)
        } else {
            let (question, listing, is_settled) = self.list(question, verdict, wanted).await?;
            if let Some(place) = place.filter(|_| is_settled) {
                self.kept.keep(place, listing.clone());
            }
            (question, listing)
        };
        let Question { visit, subject } = question;
        let coverage = match wanted.scope {
            // Of another namespace's repositories nothing is read.
            _ if visit.is_foreign => Coverage::Since(Timestamp::now()),
            QueryScope::Repository => self.index.coverage(&visit.repository).await.map_err(Error::LookUp)?,
            QueryScope::Registry(_) => {
                let coverage = self.index.coverage_of_all(visit.repository.upstream).await;
                coverage.map_err(Error::LookUp)?
            }
        };
        let warning = self.may_miss.header(coverage)?;
        let Listing { image_index, kinds, next } = listing;
        Ok(ReferrerPage { subject, image_index, kinds, next, warning })
    }

    /// Scans and checks. Also says whether all entries are settled, so that none depends on what the registry answers.
    async fn list(
        &self,
        question: Question,
        verdict: Verdict,
        wanted: &PageRequest,
    ) -> Result<(Question, Listing, bool), Error> {
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
        let is_settled = entries.iter().all(|(_, entry)| !entry.pending);
        let presented = self.present(&questions, entries, wanted).await?;
        let (descriptors, kinds): (Vec<String>, Vec<LinkKinds>) = presented.into_iter().unzip();
        let image_index = Bytes::from(image_index_of(&descriptors));
        Ok((questions.swap_remove(0), Listing { image_index, kinds: kinds.into(), next }, is_settled))
    }

    /// Resolves a tag to its digest, and checks the caller's rights as far as that goes.
    async fn open(&self, visit: Visit, manifest: TagOrDigest) -> Result<(Question, Verdict), Error> {
        match manifest {
            TagOrDigest::Digest(subject) => {
                let question = Question { visit, subject };
                let verdict = self.registry.may_read(&question).await?;
                Ok((question, verdict))
            }
            // Resolved by the registry for each query, with every manifest type in Accept: a tag may move.
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

    /// The page of the query's own repository, empty unless the caller is proved to be allowed to read it.
    async fn here(&self, question: &Question, verdict: Verdict, wanted: &PageRequest) -> Result<Page, Error> {
        let nothing = Page { entries: Vec::new(), more: false };
        if wanted.is_beyond() {
            return Ok(nothing);
        }
        if verdict == Verdict::Readable {
            return self.scan(question, wanted, self.page_bytes).await;
        }
        let page = self.scan(question, wanted, self.page_bytes).await?;
        let witnesses = witnesses(&page);
        let shown = self.registry.may_read_one_of(&question.visit, witnesses).await?;
        let is_shown = shown == Verdict::Readable;
        if wanted.gathers_now() && self.merger.refresh(question, is_shown).await? {
            return self.scan(question, wanted, self.page_bytes).await;
        }
        match (shown, verdict) {
            (Verdict::Readable, _) => Ok(page),
            // 404 to everything is a list of nothing, for a subject that was never pushed. A login page is not: the
            // registry did not answer the question.
            (Verdict::Odd(status), _) | (_, Verdict::Odd(status)) => Err(Error::Undecided(status)),
            (Verdict::Unproven, Verdict::Readable | Verdict::Unproven) => Ok(nothing),
        }
    }

    /// The entries in the index that pass the filter. Pending ones are not filtered yet: their descriptor is only a
    /// claim, by which nothing may be left out.
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
