//! `GET /v2/<name>/referrers/<digest>` of OCI 1.1 (distribution-spec, "Listing Referrers"): an image index
//! of the manifests that name a digest as their subject.

pub(crate) mod query;

use std::sync::Arc;
use std::time::Instant;

use http::{Request, Response};
use hyper::body::Incoming;

use crate::access::Access;
use crate::body::Body;
use crate::config;
use crate::error::Error;
use crate::index::Repository;
use crate::listing::{Listed, Listing, Step, render};
use crate::oci::{Digest, LinkKind, LinkKinds, TagOrDigest};
use crate::telemetry::Metrics;

use query::Query;

/// Answers referrers queries.
#[derive(Debug)]
pub struct Referrers {
    access: Arc<Access>,
    listing: Arc<Listing>,
    metrics: Arc<Metrics>,
    kinds: LinkKinds,
}

impl Referrers {
    /// Answers what `listing` lists: `subject` links, those that a verified referrers tag stands for, and
    /// the kinds that the operator includes.
    #[must_use]
    pub fn new(
        access: Arc<Access>,
        listing: Arc<Listing>,
        metrics: Arc<Metrics>,
        settings: &config::Referrers,
    ) -> Self {
        let kinds =
            [LinkKind::Subject, LinkKind::Fallback].into_iter().chain(settings.include.iter()).collect();
        Self { access, listing, metrics, kinds }
    }

    /// The answer to one query: an empty list for whatever nothing is known of. A client that goes away
    /// ends it wherever it is; nothing is lost by that.
    pub async fn answer(
        &self,
        repository: Repository,
        subject: Digest,
        request: &Request<Incoming>,
    ) -> Result<Response<Body>, Error> {
        let began = Instant::now();
        let query = Query::parse(request.uri().query().unwrap_or_default())?;
        let caller = self.access.caller(request.headers());
        let wanted = query.wanted(self.kinds);
        let subject = TagOrDigest::Digest(subject);
        let response = match self.listing.page(&caller, &repository, subject, &wanted).await? {
            Step::Refused(response) => response,
            Step::Go(Listed { subject, descriptors, next }) => {
                let last = next.and_then(|next| next.after);
                let next = last.map(|last| query.next(&repository.name, &subject, last));
                render(&descriptors, query.filters_applied(), next)?
            }
        };
        self.metrics.query(began.elapsed());
        Ok(response)
    }
}
