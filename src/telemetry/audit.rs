//! The audit log: who recorded, deleted or asked for which links, a JSON object a line.
//!
//! An entry is begun with the request and written when it is dropped, so that there is one whatever comes between: an
//! error, or a client that goes away. The user is the one that the credentials name. refshim verifies no credentials;
//! the registry does, and the status says what it answered.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, StatusCode};
use jiff::Timestamp;
use serde::Serialize;

use super::{LineLog, LinkOutcome};
use crate::config::UpstreamName;
use crate::http::header::X_REQUEST_ID;
use crate::http::user::{NamedUser, UserSource, named_user};
use crate::index::{Referrer, Repository};
use crate::oci::{Digest, visible};

/// Links of a push that are written: a manifest may have tens of thousands, and anybody may try to push it.
const LINKS: usize = 100;
/// Bytes of a request id that are written.
const ID_BYTES: usize = 128;

/// The audit log, or none. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Audit(Option<Arc<LineLog>>);

/// One entry, written when it is dropped.
#[derive(Debug, Serialize)]
pub struct AuditEntry {
    #[serde(skip)]
    log: Arc<LineLog>,
    time: Option<Timestamp>,
    #[serde(flatten)]
    action: Action,
    /// Of the registry's answer, or of refshim's own; none if there was none, or if the client went away before.
    status: Option<u16>,
    user: Option<String>,
    user_from: Option<UserSource>,
    client: IpAddr,
    upstream: String,
    repository: String,
    request_id: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
enum Action {
    /// Pushed a manifest with links.
    Record {
        manifest: String,
        outcome: &'static str,
        links: Vec<AuditedLink>,
        /// How many there are, if more than are listed.
        #[serde(skip_serializing_if = "Option::is_none")]
        all_links: Option<usize>,
    },
    /// Deleted a manifest. `was_referrer` if the index had links of it; none if that is not known.
    Delete { manifest: String, was_referrer: Option<bool> },
    /// Asked for the links to a subject.
    List { query: Queried, subject: String, digest: Option<String>, listed: Option<usize> },
}

#[derive(Debug, Serialize)]
struct AuditedLink {
    referrer: String,
    subject: String,
    kind: &'static str,
}

/// The kind of query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Queried {
    /// `/references`
    References,
    /// `/referrers`
    Referrers,
}

/// Whose request it is, and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Audited<'a> {
    /// The request's header fields.
    pub headers: &'a HeaderMap,
    /// The client's address.
    pub client: IpAddr,
    /// The upstream.
    pub upstream: &'a UpstreamName,
    /// The repository.
    pub repository: &'a Repository,
}

impl Audit {
    /// Writes to this log, or nothing at all.
    #[must_use]
    pub fn new(log: Option<Arc<LineLog>>) -> Self {
        Self(log)
    }

    /// Whether anything is written.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins the entry of a push. Unless [`AuditEntry::recorded`] says more, its links are pending.
    #[must_use]
    pub fn push<'a>(
        &self,
        audited: Audited<'_>,
        manifest: &Digest,
        all: impl IntoIterator<Item = &'a Referrer>,
    ) -> Option<AuditEntry> {
        let log = self.0.as_ref()?;
        let links = all.into_iter().flat_map(|referrer| {
            referrer.links.iter().map(|link| AuditedLink {
                referrer: referrer.digest.to_string(),
                subject: link.subject.to_string(),
                kind: link.kind.as_str(),
            })
        });
        let mut links: Vec<AuditedLink> = links.collect();
        let all_links = Some(links.len()).filter(|all| *all > LINKS);
        links.truncate(LINKS);
        let (manifest, outcome) = (manifest.to_string(), LinkOutcome::Pending.as_str());
        let action = Action::Record { manifest, outcome, links, all_links };
        Some(AuditEntry::new(log, action, audited))
    }

    /// Begins the entry of a deletion.
    #[must_use]
    pub fn deletion(&self, audited: Audited<'_>, manifest: &dyn ToString) -> Option<AuditEntry> {
        let log = self.0.as_ref()?;
        let action = Action::Delete { manifest: manifest.to_string(), was_referrer: None };
        Some(AuditEntry::new(log, action, audited))
    }

    /// Begins the entry of a query.
    #[must_use]
    pub fn query(&self, audited: Audited<'_>, query: Queried, subject: &dyn ToString) -> Option<AuditEntry> {
        let log = self.0.as_ref()?;
        let action = Action::List { query, subject: subject.to_string(), digest: None, listed: None };
        Some(AuditEntry::new(log, action, audited))
    }
}

impl AuditEntry {
    fn new(log: &Arc<LineLog>, action: Action, audited: Audited<'_>) -> Self {
        let Audited { headers, client, upstream, repository } = audited;
        let (user, user_from) = match named_user(headers) {
            // What would hide or reorder text on a terminal is shown by its number.
            Some(NamedUser { name, source }) => (Some(visible(&name)), Some(source)),
            None => (None, None),
        };
        let id = headers.get(X_REQUEST_ID).map(HeaderValue::as_bytes);
        let id = id.map(|id| visible(&String::from_utf8_lossy(id.get(..ID_BYTES).unwrap_or(id))));
        Self {
            log: Arc::clone(log),
            time: None,
            action,
            status: None,
            user,
            user_from,
            client,
            upstream: upstream.to_string(),
            repository: repository.name.to_string(),
            request_id: id,
        }
    }

    /// What the client is answered.
    pub fn answered(&mut self, status: StatusCode) {
        self.status = Some(status.as_u16());
    }

    /// What came of the links of a push.
    pub fn recorded(&mut self, came: LinkOutcome) {
        if let Action::Record { outcome, .. } = &mut self.action {
            *outcome = came.as_str();
        }
    }

    /// Whether the index had links of what is to be deleted.
    pub fn was_referrer(&mut self, was: bool) {
        if let Action::Delete { was_referrer, .. } = &mut self.action {
            *was_referrer = Some(was);
        }
    }

    /// What a query found: the digest that it was about, and the number of descriptors in its answer.
    pub fn listed(&mut self, about: &dyn ToString, count: usize) {
        if let Action::List { digest, listed, .. } = &mut self.action {
            (*digest, *listed) = (Some(about.to_string()), Some(count));
        }
    }
}

impl Drop for AuditEntry {
    fn drop(&mut self) {
        self.time = Some(Timestamp::now());
        // A struct of texts and numbers can be written as JSON.
        if let Ok(mut line) = serde_json::to_string(self) {
            line.push('\n');
            self.log.write(line);
        }
    }
}
