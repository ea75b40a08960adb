//! `GET /v2/<name>/manifests/<ref>/references` of the 2021 proposal: an image index of what refers to
//! a manifest. Nothing is said before the upstream showed that the caller may read the repository,
//! and nothing pending is listed before the upstream was asked for it.

mod answer;
mod query;

use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use http::{Request, Response};
use hyper::body::Incoming;

use crate::access::{Access, Answer, Caller, Verdict};
use crate::body::Body;
use crate::config;
use crate::error::Error;
use crate::index::{Entry, Index, Page, Repository, Scan};
use crate::oci::{Digest, TagOrDigest};
use crate::telemetry::Metrics;

use query::Query;

/// Answers references queries.
#[derive(Debug)]
pub struct References {
    access: Arc<Access>,
    index: Index,
    metrics: Arc<Metrics>,
    page_bytes: usize,
    concurrency: usize,
}

/// What a step of the query gives: its value, or the upstream's refusal to be passed on.
enum Step<T> {
    Go(T),
    Refused(Response<Body>),
}

impl References {
    /// Answers from `index` to whom `access` lets.
    #[must_use]
    pub fn new(
        access: Arc<Access>,
        index: Index,
        metrics: Arc<Metrics>,
        settings: &config::References,
    ) -> Self {
        let config::References { page_bytes, concurrency, .. } = *settings;
        Self { access, index, metrics, page_bytes, concurrency }
    }

    /// The answer to one query. A client that goes away ends it wherever it is; nothing is lost by
    /// that.
    pub async fn answer(
        &self,
        repository: Repository,
        manifest: TagOrDigest,
        request: &Request<Incoming>,
    ) -> Result<Response<Body>, Error> {
        let began = Instant::now();
        let query = Query::parse(request.uri().query().unwrap_or_default())?;
        let caller = self.access.caller(request.headers());
        let response = match self.readable_page(&caller, &repository, manifest, &query).await? {
            Step::Refused(response) => response,
            Step::Go((subject, Page { entries, more })) => {
                let last = entries.last().filter(|_| more).map(|entry| entry.order);
                let descriptors = match self.present(&caller, &repository, entries, &query).await? {
                    Step::Refused(response) => return Ok(response),
                    Step::Go(descriptors) => descriptors,
                };
                let next = last.map(|last| query.next(&repository.name, &subject, last));
                answer::render(&descriptors, query.filters_applied(), next)?
            }
        };
        self.metrics.query(began.elapsed());
        Ok(response)
    }

    /// The subject and a page of what refers to it, as far as the caller may know.
    async fn readable_page(
        &self,
        caller: &Caller,
        repository: &Repository,
        manifest: TagOrDigest,
        query: &Query,
    ) -> Result<Step<(Digest, Page)>, Error> {
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
        let scan = Scan {
            after: query.after,
            max_entries: query.count.unwrap_or(usize::MAX),
            max_bytes: self.page_bytes,
            accepts: query.accepts(),
        };
        let page = self.index.referrers(repository.clone(), subject.clone(), scan).await;
        let page = page.map_err(Error::LookUp)?;
        if proven {
            return Ok(Step::Go((subject, page)));
        }
        let referrers = page.entries.iter().map(|entry| entry.digest.clone());
        Ok(match self.access.may_read_one_of(caller, repository, referrers).await? {
            Verdict::Readable => Step::Go((subject, page)),
            Verdict::Unproven => Step::Go((subject, Page { entries: Vec::new(), more: false })),
            Verdict::Refused(response) => Step::Refused(response),
        })
    }

    /// The descriptors of a page: pending entries settled, manifests inlined where asked for.
    async fn present(
        &self,
        caller: &Caller,
        repository: &Repository,
        entries: Vec<Entry>,
        query: &Query,
    ) -> Result<Step<Vec<String>>, Error> {
        let inlined = if query.inline {
            answer::what_fits(&entries, self.page_bytes)
        } else {
            vec![false; entries.len()]
        };
        let descriptors = entries.into_iter().zip(inlined).map(|(entry, inlined)| async move {
            if inlined || entry.pending {
                self.check(caller, repository, entry, inlined).await
            } else {
                Ok(Step::Go(Some(entry.descriptor)))
            }
        });
        let steps: Vec<Step<Option<String>>> =
            stream::iter(descriptors).buffered(self.concurrency).try_collect().await?;
        let mut listed = Vec::with_capacity(steps.len());
        for step in steps {
            match step {
                Step::Go(descriptor) => listed.extend(descriptor),
                Step::Refused(response) => return Ok(Step::Refused(response)),
            }
        }
        Ok(Step::Go(listed))
    }

    /// Asks the upstream for a referrer: if it is there, its descriptor, with the manifest in it where
    /// that is to be inlined; if not, it is forgotten.
    async fn check(
        &self,
        caller: &Caller,
        repository: &Repository,
        entry: Entry,
        inlined: bool,
    ) -> Result<Step<Option<String>>, Error> {
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
                Step::Go(Some(match manifest {
                    Some(manifest) => answer::with_data(entry, &manifest),
                    None => entry.descriptor,
                }))
            }
            Answer::Absent => {
                self.forget(repository, &entry).await;
                Step::Go(None)
            }
            Answer::Refused(response) => Step::Refused(response),
        })
    }

    /// The answer does not depend on whether this can be written down: the next query asks again.
    async fn confirm(&self, repository: &Repository, entry: &Entry) {
        let written =
            self.index.settle_present(repository.clone(), entry.digest.clone(), entry.version).await;
        log_unwritten(repository, entry, written);
    }

    /// Only for callers that were shown to be able to read the repository.
    async fn forget(&self, repository: &Repository, entry: &Entry) {
        let written = self.index.remove(repository.clone(), entry.digest.clone(), entry.version).await;
        log_unwritten(repository, entry, written);
    }
}

fn log_unwritten<T>(repository: &Repository, entry: &Entry, written: Result<T, crate::index::WriteError>) {
    if let Err(error) = written {
        tracing::warn!(repository = %repository.name, digest = %entry.digest, %error,
            "what the registry said of a referrer could not be written to the index");
    }
}
