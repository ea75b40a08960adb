//! `GET /v2/<name>/referrers/<digest>` of OCI 1.1 (distribution-spec, "Listing Referrers"): an image index
//! of the manifests that name a digest as their subject.

pub(crate) mod query;

use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;

use crate::config;
use crate::http::body::Body;
use crate::oci::{Digest, LinkKind, LinkKinds, TagOrDigest};
use crate::proxy::error::Error;
use crate::queries::pages::{ReferrerPages, render};
use crate::registry::Visit;

use query::ReferrersQuery;

/// Answers referrers queries.
#[derive(Debug)]
pub struct ReferrersHandler {
    pages: Arc<ReferrerPages>,
    kinds: LinkKinds,
}

impl ReferrersHandler {
    /// Answers what `listing` lists: `subject` links, those that a verified referrers tag stands for, and
    /// the kinds that the operator includes.
    #[must_use]
    pub fn new(pages: Arc<ReferrerPages>, settings: &config::ReferrersConfig) -> Self {
        let kinds =
            [LinkKind::Subject, LinkKind::Fallback].into_iter().chain(settings.include.iter()).collect();
        Self { pages, kinds }
    }

    /// The answer to one query: an empty list for whatever nothing is known of. A client that goes away
    /// ends it wherever it is; nothing is lost by that.
    pub async fn answer(
        &self,
        visit: Visit,
        subject: Digest,
        request: &Request<Incoming>,
    ) -> Result<Response<Body>, Error> {
        let query = ReferrersQuery::parse(request.uri().query().unwrap_or_default())?;
        let (name, caller) = (visit.repository.name.clone(), Arc::clone(&visit.caller));
        let listed = self.pages.page(visit, TagOrDigest::Digest(subject), &query.wanted(self.kinds)).await?;
        let last = listed.next.and_then(|next| next.after);
        let next = last.map(|last| caller.with_namespace(query.next(&name, &listed.subject, last)));
        render(&listed.descriptors, query.filters_applied(), next)
    }
}
