//! `GET /v2/<name>/manifests/<ref>/references` of the 2021 proposal: an image index of a manifest's referrers, by
//! every kind of link.

pub(crate) mod query;

use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;

use crate::http::body::Body;
use crate::http::route::ListPath;
use crate::oci::TagOrDigest;
use crate::proxy::error::Error;
use crate::queries::pages::{Listed, ReferrerPages, render};
use crate::registry::Visit;

use query::ReferencesQuery;

/// Answers references queries.
#[derive(Debug)]
pub struct ReferencesHandler {
    pages: Arc<ReferrerPages>,
}

impl ReferencesHandler {
    /// Answers from `pages`.
    #[must_use]
    pub fn new(pages: Arc<ReferrerPages>) -> Self {
        Self { pages }
    }

    /// The answer to one query. May be cancelled at any point.
    pub async fn answer(
        &self,
        visit: Visit,
        (manifest, path): (TagOrDigest, ListPath),
        request: &Request<Incoming>,
    ) -> Result<(Response<Body>, Listed), Error> {
        let asked = request.uri().query().unwrap_or_default();
        let query = ReferencesQuery::parse(asked)?;
        let (name, caller) = (visit.repository.name.clone(), Arc::clone(&visit.caller));
        let listed = self.pages.page(visit, manifest, &query.wanted(asked)).await?;
        let next =
            listed.next.map(|next| caller.with_namespace(query.next(&path.of(&name, &listed.subject), next)));
        Ok((render(&listed, query.filters_applied(), next)?, listed.into()))
    }
}
