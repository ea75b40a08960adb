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
use crate::queries::pages::{Listed, ReferrerPages, render};
use crate::registry::Visit;

use query::ReferrersQuery;

/// Answers referrers queries.
#[derive(Debug)]
pub struct ReferrersHandler {
    pages: Arc<ReferrerPages>,
    kinds: LinkKinds,
}

impl ReferrersHandler {
    /// Answers from `pages`: `subject` links, verified entries of the referrers tag, and the kinds in
    /// `referrers.include`. No others by default: a verifier that sees a bundle here stops looking at `.att` tags
    /// (conforma/cli #3185), and Kyverno rejects more than 50 entries.
    #[must_use]
    pub fn new(pages: Arc<ReferrerPages>, settings: &config::ReferrersConfig) -> Self {
        let kinds =
            [LinkKind::Subject, LinkKind::Fallback].into_iter().chain(settings.include.iter()).collect();
        Self { pages, kinds }
    }

    /// The answer to one query. May be cancelled at any point. An empty list, never a 404, for an unknown digest, the
    /// zero digest (a client's ping) and a repository that was never pushed to (distribution-spec, "Listing
    /// Referrers").
    pub async fn answer(
        &self,
        visit: Visit,
        subject: Digest,
        request: &Request<Incoming>,
    ) -> Result<(Response<Body>, Listed), Error> {
        let asked = request.uri().query().unwrap_or_default();
        let query = ReferrersQuery::parse(asked)?;
        let (name, caller) = (visit.repository.name.clone(), Arc::clone(&visit.caller));
        let wanted = query.wanted(asked, self.kinds);
        let listed = self.pages.page(visit, TagOrDigest::Digest(subject), &wanted).await?;
        let last = listed.next.and_then(|next| next.after);
        let next = last.map(|last| caller.with_namespace(query.next(&name, &listed.subject, last)));
        Ok((render(&listed, query.filters_applied(), next)?, listed.into()))
    }
}
