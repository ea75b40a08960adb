//! Checks the entries of a page with the registry, where that is needed: pending ones, those to be inlined, and those
//! that may belong to another namespace of a mirror. All others are listed as they are in the index.
//!
//! A 404 is never proof that a referrer is gone: registries answer it for seconds after their own 201, and one bad
//! node answers it for a moment. The referrer is left out of this caller's list and doubted; it is removed only after
//! nothing but 404 for `index.forget_after`, from a registry that shows the caller something else. 401, 403, 429 and
//! 5xx never count against a referrer.

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use http::StatusCode;

use super::{PageRequest, Placed, ReferrerPages, answer};
use crate::index::{Entry, Removed, Repository};
use crate::oci::{Digest, LinkKinds, TagOrDigest};
use crate::proxy::error::Error;
use crate::registry::{Answer, FetchedManifest, Question, Visit};

/// What the registry answered about an entry.
enum Seen {
    /// It exists; its descriptor, and the kinds of its links.
    There(String, LinkKinds),
    /// 404: it does not exist, or is hidden from this caller.
    Hidden,
    /// Its bytes do not pass the filter, or this caller is denied it.
    Unwanted,
}

impl ReferrerPages {
    /// The descriptors of a page, with its entries checked and manifests inlined where the query wants it.
    pub(super) async fn present(
        &self,
        questions: &[Question],
        entries: Vec<Placed>,
        wanted: &PageRequest,
    ) -> Result<Vec<(String, LinkKinds)>, Error> {
        let inlined = if wanted.inline {
            answer::what_fits(&entries, self.page_bytes)
        } else {
            vec![false; entries.len()]
        };
        // A page may have thousands of entries, hardly any of which need a request: only those get a future.
        let is_asked = |(place, entry): &Placed, inlined: bool| {
            let is_foreign = questions.get(*place).is_none_or(|question| question.visit.is_foreign);
            inlined || entry.pending || is_foreign
        };
        let asked: Vec<bool> =
            entries.iter().zip(&inlined).map(|(placed, inlined)| is_asked(placed, *inlined)).collect();
        if !asked.contains(&true) {
            let shown = entries
                .into_iter()
                .map(|(place, entry)| Ok((listed(questions, place, entry.descriptor)?, entry.kinds)));
            return shown.collect();
        }
        let looks = entries.iter().zip(inlined).zip(&asked).filter(|(_, asked)| **asked);
        let looks: Vec<_> =
            looks.map(|((placed, inlined), _)| self.look(questions, placed, inlined, wanted)).collect();
        let looked: Vec<Seen> = stream::iter(looks).buffered(self.concurrency).try_collect().await?;
        let mut looked = looked.into_iter();
        let shown = entries.iter().zip(&asked).map(|((_, entry), asked)| match asked {
            true => looked.next().ok_or(Error::Handler),
            false => Ok(Seen::There(entry.descriptor.clone(), entry.kinds)),
        });
        let shown: Vec<Seen> = shown.collect::<Result<_, Error>>()?;
        let is_hidden = |seen: &Seen| matches!(seen, Seen::Hidden);
        let in_doubt = if shown.iter().any(is_hidden) { questions } else { &[] };
        for (place, question) in in_doubt.iter().enumerate() {
            let here = entries.iter().zip(&shown).filter(|((at, _), _)| *at == place);
            let (hidden, others): (Vec<_>, Vec<_>) =
                here.map(|((_, entry), seen)| (entry, seen)).partition(|(_, seen)| is_hidden(seen));
            let hidden: Vec<&Entry> = hidden.into_iter().map(|(entry, _)| entry).collect();
            let others = others.into_iter().map(|(entry, _)| &entry.digest);
            self.doubt(question, &hidden, std::iter::once(&question.subject).chain(others)).await;
        }
        let shown = entries.iter().zip(shown).filter_map(|((place, _), seen)| match seen {
            Seen::There(descriptor, kinds) => {
                Some(listed(questions, *place, descriptor).map(|descriptor| (descriptor, kinds)))
            }
            Seen::Hidden | Seen::Unwanted => None,
        });
        shown.collect()
    }

    /// Checks an entry with the registry; if that fails, takes it as it is where that is honest.
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

    /// An entry that the registry fails to answer for. A doubted one existed once, and a failure says nothing against
    /// it, so it is listed. A claim that was never confirmed must not be listed: anybody can make one.
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
            // Confirmed: only its content was to be inlined.
            _ if !entry.pending => {}
            None => return Err(error),
            Some(reason) => self.registry.listed_as_known(&question.visit, &entry.digest, reason, &error),
        }
        let is_wanted = !entry.kinds.is_empty() && (wanted.accepts)(entry);
        Ok(if is_wanted { Seen::There(entry.descriptor.clone(), entry.kinds) } else { Seen::Unwanted })
    }

    /// Fetches a referrer and settles it if it is pending.
    async fn check(
        &self,
        question: &Question,
        entry: &Entry,
        inlined: bool,
        wanted: &PageRequest,
    ) -> Result<Seen, Error> {
        let visit = &question.visit;
        if self.registry.was_just_missing(visit, &entry.digest, entry.version) {
            return Ok(Seen::Hidden);
        }
        let manifest = TagOrDigest::Digest(entry.digest.clone());
        let fetched = match self.registry.fetch(visit, &manifest).await {
            Ok(Answer::Present(fetched)) => fetched,
            Ok(Answer::Absent) => return Ok(Seen::Hidden),
            Ok(Answer::Odd(status)) => return Err(Error::Undecided(status)),
            // A registry may deny one manifest to a caller who may read the rest. It may well exist, so no doubt.
            Err(error) if error.rejected() == Some(StatusCode::FORBIDDEN) => return Ok(Seen::Unwanted),
            Err(error) => return Err(error),
        };
        let bytes = fetched.bytes.clone();
        // Room on the page was reserved by the size in the descriptor, which may be a false claim.
        let inlined = inlined && answer::is_as_long_as_claimed(entry, &bytes);
        let settled = if entry.pending { Some(self.settle(question, entry, fetched).await?) } else { None };
        let entry = settled.as_ref().unwrap_or(entry);
        if entry.kinds.is_empty() || !(wanted.accepts)(entry) {
            return Ok(Seen::Unwanted);
        }
        let descriptor = entry.descriptor.clone();
        let descriptor = if inlined { answer::with_data(&descriptor, &bytes)? } else { descriptor };
        Ok(Seen::There(descriptor, entry.kinds))
    }

    /// Replaces what was claimed of a referrer by what its bytes say, as the registry serves them. A failure to write
    /// that does not change the answer: the next query settles it again.
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

    /// Records a doubt about referrers that the registry answered 404 for, if it still serves the caller a witness
    /// afterwards. A registry that hides by 404, or lost its storage, answers 404 to everything.
    async fn doubt(&self, question: &Question, hidden: &[&Entry], witnesses: impl Iterator<Item = &Digest>) {
        let visit = &question.visit;
        let asked = hidden
            .iter()
            .filter(|entry| !self.registry.was_just_missing(visit, &entry.digest, entry.version));
        let asked: Vec<&&Entry> = asked.collect();
        let witnesses = witnesses.map(|digest| TagOrDigest::Digest(digest.clone()));
        if asked.is_empty() || visit.is_foreign || !self.registry.still_reads(visit, witnesses).await {
            return;
        }
        for entry in asked {
            self.registry.note_missing(visit, &entry.digest, entry.version);
            let (repository, digest) = (visit.repository.clone(), entry.digest.clone());
            let written = self.index.absent(repository, digest, entry.version).await;
            if let Ok(Removed::Gone) = written {
                // Expire the merge: should the referrer come back, a list that has it must be merged again.
                self.registry.forget(&visit.repository);
            }
            log_unwritten(&visit.repository, entry, written);
        }
    }
}

/// The descriptor of an entry in the list: with its repository, if that is another one.
fn listed(questions: &[Question], place: usize, descriptor: String) -> Result<String, Error> {
    if place == 0 {
        return Ok(descriptor);
    }
    let question = questions.get(place).ok_or(Error::Handler)?;
    answer::with_repository(&descriptor, &question.visit.repository.name)
}

fn log_unwritten<T>(repository: &Repository, entry: &Entry, written: Result<T, crate::index::WriteError>) {
    if let Err(error) = written {
        tracing::warn!(repository = %repository.name, digest = %entry.digest, %error,
            "what the registry answered about a referrer could not be written to the index; the next query asks again");
    }
}
