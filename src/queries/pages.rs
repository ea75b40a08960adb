//! One page of what refers to a manifest, as the queries need it. Nothing is said before the upstream
//! showed that the caller may read the repository, and nothing pending is listed before the upstream was
//! asked for it.

mod across;
mod answer;

use std::fmt;
use std::sync::Arc;

use crate::config;
use crate::index::{Entry, Index, Order, Page, Removed, Repository, Scan};
use crate::oci::{Digest, TagOrDigest};
use crate::proxy::error::Error;
use crate::registry::reader::ManifestReader;
use crate::registry::{Answer, FetchedManifest, Merger, Question, Registry, Verdict, Visit};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use http::StatusCode;

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

/// What the registry says of an entry.
enum Seen {
    /// It has it; how it is listed.
    There(String),
    /// It does not have it, or does not show it to this caller.
    Hidden,
    /// By its bytes it is not what is wanted, or this caller is denied it.
    Unwanted,
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

    /// The descriptors of a page: pending entries settled, manifests inlined where asked for.
    async fn present(
        &self,
        questions: &[Question],
        entries: &[Placed],
        wanted: &PageRequest,
    ) -> Result<Vec<String>, Error> {
        let inlined = if wanted.inline {
            answer::what_fits(entries, self.page_bytes)
        } else {
            vec![false; entries.len()]
        };
        // A page has thousands of entries, of which hardly any has to be asked for.
        let is_asked = |(place, entry): &Placed, inlined: bool| {
            let is_foreign = questions.get(*place).is_none_or(|question| question.visit.is_foreign);
            inlined || entry.pending || is_foreign
        };
        let asked: Vec<bool> =
            entries.iter().zip(&inlined).map(|(placed, inlined)| is_asked(placed, *inlined)).collect();
        let looks = entries.iter().zip(inlined).zip(&asked).filter(|(_, asked)| **asked);
        let looks: Vec<_> =
            looks.map(|((placed, inlined), _)| self.look(questions, placed, inlined, wanted)).collect();
        let looked: Vec<Seen> = stream::iter(looks).buffered(self.concurrency).try_collect().await?;
        let mut looked = looked.into_iter();
        let shown = entries.iter().zip(&asked).map(|((_, entry), asked)| match asked {
            true => looked.next().ok_or(Error::Handler),
            false => Ok(Seen::There(entry.descriptor.clone())),
        });
        let shown: Vec<Seen> = shown.collect::<Result<_, Error>>()?;
        for (place, question) in questions.iter().enumerate() {
            let here = entries.iter().zip(&shown).filter(|((at, _), _)| *at == place);
            let (hidden, others): (Vec<_>, Vec<_>) = here
                .map(|((_, entry), seen)| (entry, seen))
                .partition(|(_, seen)| matches!(seen, Seen::Hidden));
            let hidden: Vec<&Entry> = hidden.into_iter().map(|(entry, _)| entry).collect();
            let others = others.into_iter().map(|(entry, _)| &entry.digest);
            self.doubt(question, &hidden, std::iter::once(&question.subject).chain(others)).await;
        }
        let listed = entries.iter().zip(shown).filter_map(|((place, _), seen)| match seen {
            Seen::There(descriptor) if *place > 0 => {
                let name = &questions.get(*place)?.visit.repository.name;
                Some(answer::with_repository(&descriptor, name))
            }
            Seen::There(descriptor) => Some(Ok(descriptor)),
            Seen::Hidden | Seen::Unwanted => None,
        });
        listed.collect()
    }

    /// How an entry is listed that has to be asked for: it is pending, or is to be inlined, or may be another
    /// namespace's.
    async fn look(
        &self,
        questions: &[Question],
        (place, entry): &Placed,
        inlined: bool,
        wanted: &PageRequest,
    ) -> Result<Seen, Error> {
        let question = questions.get(*place).ok_or(Error::Handler)?;
        match self.check(question, entry, inlined, wanted).await {
            Ok(seen) => Ok(seen),
            Err(error) => self.as_known(question, entry, wanted, error),
        }
    }

    /// How an entry is listed that the registry cannot be asked for. One that is doubted was there once, and a
    /// registry that fails says nothing against it; a claim that was never confirmed may not be told.
    fn as_known(
        &self,
        question: &Question,
        entry: &Entry,
        wanted: &PageRequest,
        error: Error,
    ) -> Result<Seen, Error> {
        let reason = error.stands_in();
        match reason {
            _ if question.visit.is_foreign || !entry.was_confirmed => return Err(error),
            // Only its content was wanted besides what is known.
            _ if !entry.pending => {}
            None => return Err(error),
            Some(reason) => self.registry.listed_as_known(&question.visit, &entry.digest, reason, &error),
        }
        let is_wanted = !entry.kinds.is_empty() && (wanted.accepts)(entry);
        Ok(if is_wanted { Seen::There(entry.descriptor.clone()) } else { Seen::Unwanted })
    }

    /// Asks the registry for a referrer.
    async fn check(
        &self,
        question: &Question,
        entry: &Entry,
        inlined: bool,
        wanted: &PageRequest,
    ) -> Result<Seen, Error> {
        let visit = &question.visit;
        if self.registry.was_just_missing(visit, &entry.digest) {
            return Ok(Seen::Hidden);
        }
        let manifest = TagOrDigest::Digest(entry.digest.clone());
        let fetched = match self.registry.fetch(visit, &manifest).await {
            Ok(Answer::Present(fetched)) => fetched,
            Ok(Answer::Absent) => return Ok(Seen::Hidden),
            Ok(Answer::Odd(status)) => return Err(Error::Undecided(status)),
            // This one is kept from who may read the others, which says nothing of whether it is there.
            Err(error) if error.rejected() == Some(StatusCode::FORBIDDEN) => return Ok(Seen::Unwanted),
            Err(error) => return Err(error),
        };
        let bytes = fetched.bytes.clone();
        // The room on the page was counted by what is claimed of its size.
        let inlined = inlined && answer::is_as_long_as_claimed(entry, &bytes);
        let settled = if entry.pending { Some(self.settle(question, entry, fetched).await?) } else { None };
        let entry = settled.as_ref().unwrap_or(entry);
        if entry.kinds.is_empty() || !(wanted.accepts)(entry) {
            return Ok(Seen::Unwanted);
        }
        let descriptor = entry.descriptor.clone();
        Ok(Seen::There(if inlined { answer::with_data(&descriptor, &bytes)? } else { descriptor }))
    }

    /// What somebody claimed of a referrer becomes what its bytes say, as the registry serves them. The answer
    /// does not depend on whether this can be written down: the next query asks again.
    async fn settle(
        &self,
        question: &Question,
        entry: &Entry,
        fetched: FetchedManifest,
    ) -> Result<Entry, Error> {
        let Question { visit: Visit { repository, .. }, subject } = question;
        let manifest = TagOrDigest::Digest(entry.digest.clone());
        let (algorithm, content_type) = (entry.digest.algorithm(), fetched.content_type.as_deref());
        let read = self.reader.read(repository, &manifest, algorithm, &fetched.bytes, content_type).await?;
        let own = read.referrer.links.iter().filter(|link| link.subject == *subject).map(|link| link.kind);
        let told = entry.kinds.iter().filter(|kind| !kind.is_in_own_bytes());
        let settled = Entry {
            kinds: own.chain(told).collect(),
            descriptor: read.referrer.descriptor.clone(),
            pending: false,
            was_confirmed: true,
            ..entry.clone()
        };
        if !question.visit.is_foreign {
            let written = self.index.settle(repository.clone(), entry.version, read.referrer).await;
            log_unwritten(repository, entry, written);
        }
        Ok(settled)
    }

    /// Notes that the registry does not show these, if it shows the caller a witness afterwards: a registry
    /// that hides by 404, or lost its storage, says the same of everything.
    async fn doubt(&self, question: &Question, hidden: &[&Entry], witnesses: impl Iterator<Item = &Digest>) {
        let visit = &question.visit;
        let asked = hidden.iter().filter(|entry| !self.registry.was_just_missing(visit, &entry.digest));
        let asked: Vec<&&Entry> = asked.collect();
        let witnesses = witnesses.map(|digest| TagOrDigest::Digest(digest.clone()));
        if asked.is_empty() || visit.is_foreign || !self.registry.still_reads(visit, witnesses).await {
            return;
        }
        for entry in asked {
            self.registry.note_missing(visit, &entry.digest);
            let (repository, digest) = (visit.repository.clone(), entry.digest.clone());
            let written = self.index.absent(repository, digest, entry.version).await;
            if let Ok(Removed::Gone) = written {
                // Should it come back, a list that names it has to be looked at again.
                self.registry.forget(&visit.repository);
            }
            log_unwritten(&visit.repository, entry, written);
        }
    }
}

fn log_unwritten<T>(repository: &Repository, entry: &Entry, written: Result<T, crate::index::WriteError>) {
    if let Err(error) = written {
        tracing::warn!(repository = %repository.name, digest = %entry.digest, %error,
            "what the registry said of a referrer could not be written to the index");
    }
}
