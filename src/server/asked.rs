//! What is kept of a query besides its answer, also if that is an error.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use super::handlers::Handlers;
use crate::http::body::Body;
use crate::oci::RepositoryName;
use crate::proxy::error::Error;
use crate::proxy::forward::Origin;
use crate::queries::pages::Listed;
use crate::registry::{Caller, Visit};
use crate::telemetry::{AuditEntry, Audited, Queried};

/// A query while it is answered; nothing of it for any other request.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) caller: Option<Arc<Caller>>,
    entry: Option<AuditEntry>,
}

impl Asked {
    /// The visit of the query's caller to the repository, for links to this subject.
    pub(super) fn visit(
        &mut self,
        handlers: &Handlers,
        name: RepositoryName,
        origin: &Origin,
        request: &Request<Incoming>,
        (query, subject): (Queried, &dyn ToString),
    ) -> Visit {
        let visit = handlers.visit(name, origin, request);
        let audited = Audited {
            headers: request.headers(),
            client: origin.client(),
            upstream: handlers.upstream.name(),
            repository: &visit.repository,
        };
        self.entry = handlers.audit.query(audited, query, subject);
        self.caller = Some(Arc::clone(&visit.caller));
        visit
    }

    /// Notes whose visit it is.
    pub(super) fn caller_of(&mut self, visit: Visit) -> Visit {
        self.caller = Some(Arc::clone(&visit.caller));
        visit
    }

    /// Notes what the query found, and hands the answer on.
    pub(super) fn found(
        &mut self,
        answer: Result<(Response<Body>, Listed), Error>,
    ) -> Result<Response<Body>, Error> {
        let (response, listed) = answer?;
        if let Some(entry) = &mut self.entry {
            entry.listed(&listed.subject, listed.count);
        }
        Ok(response)
    }

    /// Notes what the client is answered in the end.
    pub(super) fn answered(&mut self, status: StatusCode) {
        if let Some(entry) = &mut self.entry {
            entry.answered(status);
        }
    }
}
