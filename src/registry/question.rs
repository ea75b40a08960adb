//! Who asks, and about what: a question of refshim's own is the client's request in all that a registry may
//! decide by, and what is remembered of the answer counts for exactly such requests.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use form_urlencoded::parse;
use http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, DATE, EXPECT, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    IF_RANGE, IF_UNMODIFIED_SINCE, PRAGMA, RANGE, REFERER, USER_AGENT,
};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use sha2::{Digest as _, Sha256};

use super::memory::Epoch;
use crate::http::header::X_REQUEST_ID;
use crate::index::Repository;
use crate::oci::Digest;
use crate::proxy::forward::{Origin, question_headers};

/// Fields that say nothing of who asks. Every other one is taken for a part of the caller's identity: a field
/// that is missing here costs a question to the registry, one too many would be a leak.
static IRRELEVANT: [HeaderName; 35] = [
    CACHE_CONTROL,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    DATE,
    EXPECT,
    IF_MATCH,
    IF_MODIFIED_SINCE,
    IF_NONE_MATCH,
    IF_RANGE,
    IF_UNMODIFIED_SINCE,
    PRAGMA,
    RANGE,
    REFERER,
    USER_AGENT,
    HeaderName::from_static("b3"),
    HeaderName::from_static("baggage"),
    HeaderName::from_static("cf-ray"),
    HeaderName::from_static("priority"),
    HeaderName::from_static("request-id"),
    HeaderName::from_static("sentry-trace"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("uber-trace-id"),
    HeaderName::from_static("x-amzn-trace-id"),
    HeaderName::from_static("x-b3-flags"),
    HeaderName::from_static("x-b3-parentspanid"),
    HeaderName::from_static("x-b3-sampled"),
    HeaderName::from_static("x-b3-spanid"),
    HeaderName::from_static("x-b3-traceid"),
    HeaderName::from_static("x-cloud-trace-context"),
    HeaderName::from_static("x-correlation-id"),
    HeaderName::from_static("x-datadog-parent-id"),
    HeaderName::from_static("x-datadog-trace-id"),
    X_REQUEST_ID,
    HeaderName::from_static("x-request-start"),
];
const REPRESENTATION_PREFIX: &str = "accept";

/// Makes [`Caller`]s. Their keys are salted: nothing in memory can be compared with a list of known passwords.
#[derive(Debug)]
pub struct Callers {
    salt: [u64; 2],
}

/// A client as the registry sees it.
#[derive(Debug)]
pub struct Caller {
    /// What goes with each question asked for this caller.
    pub(super) headers: HeaderMap,
    /// The `ns=` fields of the request as they came, `ns=docker.io`: a mirror needs them to find anything.
    pub(super) namespace: Option<Box<str>>,
    pub(super) key: CallerKey,
}

/// A salted hash of all that a registry may decide by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct CallerKey([u8; 32]);

/// A caller at a repository, from a moment on: what is remembered of the answers counts until the next write.
#[derive(Clone, Debug)]
pub struct Visit {
    /// Whose rights count.
    pub caller: Arc<Caller>,
    /// Where is looked.
    pub repository: Repository,
    /// Whether it names another namespace (`ns=`) than the one that the upstream stands for: a mirror of several
    /// registries has a repository of this name in each of them, and what is known of one says nothing of another.
    pub is_foreign: bool,
    /// From before the first question. An answer that a write overtook is then found by nobody.
    pub(super) epoch: Epoch,
}

/// What refers to `subject`, as far as the caller may know?
#[derive(Clone, Debug)]
pub struct Question {
    /// Who asks, and where.
    pub visit: Visit,
    /// What is asked about.
    pub subject: Digest,
}

impl Caller {
    /// Whether a URI names the host by which the client says that it reached refshim.
    pub(super) fn told_host(&self, uri: &Uri) -> bool {
        let told = self.headers.get("x-forwarded-host").and_then(|told| told.to_str().ok()?.parse().ok());
        let told: Option<http::uri::Authority> = told;
        let (Some(authority), Some(told)) = (uri.authority(), told) else { return false };
        // Redirects are made of the name with its port or without.
        let ports = authority.port_u16().zip(told.port_u16());
        told.host().eq_ignore_ascii_case(authority.host()) && ports.is_none_or(|(one, other)| one == other)
    }

    /// The target of a further page with the `ns=` of this request: without it a mirror would answer the next
    /// request differently.
    #[must_use]
    pub fn with_namespace(&self, target: String) -> String {
        match &self.namespace {
            None => target,
            Some(namespace) => format!("{target}&{namespace}"),
        }
    }
}

impl Default for Callers {
    fn default() -> Self {
        let seed = RandomState::new();
        Self { salt: [seed.hash_one(0), seed.hash_one(1)] }
    }
}

impl Callers {
    /// Who sent a request to `uri` with these headers from `origin`.
    #[must_use]
    pub fn caller(&self, headers: &HeaderMap, uri: &Uri, origin: &Origin) -> Caller {
        let headers = question_headers(headers, origin);
        let namespace = namespace(uri.query().unwrap_or_default());
        let key = self.key(&headers, namespace.as_deref());
        Caller { headers, namespace, key }
    }

    fn key(&self, headers: &HeaderMap, namespace: Option<&str>) -> CallerKey {
        let mut fields: Vec<(&HeaderName, &HeaderValue)> =
            headers.iter().filter(|(name, _)| is_relevant(name)).collect();
        // By name alone: the order among the values of one field may mean something.
        fields.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
        let mut hash = Sha256::new();
        self.salt.iter().for_each(|salt| hash.update(salt.to_be_bytes()));
        // Each part with its length, so that no two lists of parts read the same.
        let mut update = |part: &[u8]| {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        };
        update(namespace.unwrap_or_default().as_bytes());
        for (name, value) in fields {
            update(name.as_str().as_bytes());
            update(value.as_bytes());
        }
        CallerKey(hash.finalize().into())
    }
}

/// Whether the `ns=` fields of a request name another namespace than the one that the upstream stands for, if it
/// does for one alone.
pub(super) fn is_foreign(named: Option<&str>, namespaces: &[String]) -> bool {
    let Some(named) = named else { return false };
    let [own] = namespaces else { return true };
    parse(named.as_bytes()).any(|(key, value)| key != "ns" || value != own.as_str())
}

fn is_relevant(name: &HeaderName) -> bool {
    !name.as_str().starts_with(REPRESENTATION_PREFIX) && !IRRELEVANT.contains(name)
}

/// The `ns=` fields of a query as they came.
pub(super) fn namespace(query: &str) -> Option<Box<str>> {
    let is_one = |field: &&str| parse(field.as_bytes()).any(|(key, _)| key == "ns");
    let fields: Vec<&str> = query.split('&').filter(is_one).collect();
    (!fields.is_empty()).then(|| fields.join("&").into())
}

impl std::fmt::Debug for CallerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not even a hash of credentials goes into a log.
        f.write_str("CallerKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(callers: &Callers, fields: &[(&str, &str)], query: &str) -> CallerKey {
        let fields = fields.iter().map(|(name, value)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
        });
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, value);
        }
        callers.key(&headers, namespace(query).as_deref())
    }

    #[test]
    fn two_requests_are_one_caller_only_if_nothing_tells_them_apart() {
        let callers = Callers::default();
        let of = |fields: &[(&str, &str)], query: &str| key(&callers, fields, query);
        let alice: &[_] = &[("authorization", "Basic a"), ("x-forwarded-for", "192.0.2.1")];
        let same: [(&[_], _); 5] = [
            (&[("x-forwarded-for", "192.0.2.1"), ("authorization", "Basic a")], ""),
            (&[("authorization", "Basic a"), ("user-agent", "x"), ("x-forwarded-for", "192.0.2.1")], "n=1"),
            (&[("accept", "x"), ("authorization", "Basic a"), ("x-forwarded-for", "192.0.2.1")], ""),
            (&[("authorization", "Basic a"), ("range", "x"), ("x-forwarded-for", "192.0.2.1")], ""),
            (&[("authorization", "Basic a"), ("x-request-id", "x"), ("x-forwarded-for", "192.0.2.1")], ""),
        ];
        for (fields, query) in same {
            assert!(of(fields, query) == of(alice, ""), "{fields:?}");
        }
        let others: [(&[_], _); 8] = [
            (alice, "ns=docker.io"),
            (&[("authorization", "Basic b"), ("x-forwarded-for", "192.0.2.1")], ""),
            (&[("authorization", "Basic a"), ("x-forwarded-for", "192.0.2.2")], ""),
            (&[("authorization", "Basic a"), ("x-forwarded-for", "192.0.2.1"), ("cookie", "a=1")], ""),
            (&[("authorization", "Basic a"), ("x-forwarded-for", "192.0.2.1"), ("x-token", "a")], ""),
            (&[("authorization", "Basic a")], ""),
            (&[("authorization", "Basic ax-forwarded-for192.0.2.1")], ""),
            (&[], ""),
        ];
        for (fields, query) in others {
            assert!(of(fields, query) != of(alice, ""), "{fields:?} {query}");
        }
        assert!(key(&Callers::default(), alice, "") != of(alice, ""), "keys are salted");
    }

    #[test]
    fn a_namespace_goes_on_as_it_came() {
        assert_eq!(namespace("a=1&ns=docker.io&x=ns=2").as_deref(), Some("ns=docker.io"));
        assert_eq!(namespace("ns=a%2Fb&ns=c").as_deref(), Some("ns=a%2Fb&ns=c"));
        assert_eq!(namespace("a=1&n%73=b").as_deref(), Some("n%73=b"));
        assert_eq!(namespace("tns=1"), None);
    }
}
