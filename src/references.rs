//! `GET /v2/<name>/manifests/<ref>/references` of the 2021 proposal: an image index of what refers to
//! a manifest, in every way there is.

pub(crate) mod query;

use std::sync::Arc;
use std::time::Instant;

use http::{Request, Response};
use hyper::body::Incoming;

use crate::access::Access;
use crate::body::Body;
use crate::error::Error;
use crate::index::Repository;
use crate::listing::{Listed, Listing, Step, render};
use crate::oci::TagOrDigest;
use crate::telemetry::Metrics;

use query::Query;

/// Answers references queries.
#[derive(Debug)]
pub struct References {
    access: Arc<Access>,
    listing: Arc<Listing>,
    metrics: Arc<Metrics>,
}

impl References {
    /// Answers what `listing` lists.
    #[must_use]
    pub fn new(access: Arc<Access>, listing: Arc<Listing>, metrics: Arc<Metrics>) -> Self {
        Self { access, listing, metrics }
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
        let response = match self.listing.page(&caller, &repository, manifest, &query.wanted()).await? {
            Step::Refused(response) => response,
            Step::Go(Listed { subject, descriptors, next }) => {
                let next = next.map(|next| query.next(&repository.name, &subject, next));
                render(&descriptors, query.filters_applied(), next)?
            }
        };
        self.metrics.query(began.elapsed());
        Ok(response)
    }
}
