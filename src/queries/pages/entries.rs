//! How the entries of a page are listed: those that the registry has to be asked for are settled, the others are taken
//! as they are.

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use http::StatusCode;

use super::{PageRequest, Placed, ReferrerPages, answer};
use crate::index::{Entry, Removed, Repository};
use crate::oci::{Digest, TagOrDigest};
use crate::proxy::error::Error;
use crate::registry::{Answer, FetchedManifest, Question, Visit};

/// What the registry says of an entry.
enum Seen {
    /// It has it; how it is listed.
    There(String),
    /// It does not have it, or does not show it to this caller.
    Hidden,
    /// By its bytes it is not what is wanted, or this caller is denied it.
    Unwanted,
}

impl ReferrerPages {
    /// The descriptors of a page: pending entries settled, manifests inlined where asked for.
    pub(super) async fn present(
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
