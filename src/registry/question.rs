//! The caller, the repository and the subject of a question.
//!
//! A question goes to the registry with everything of the client's request that a registry may decide by:
//! credentials, cookies, any unknown header, `X-Forwarded-*` and `ns=`. Its answer is cached under a key of all that,
//! so nobody is ever answered from another caller's rights.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use form_urlencoded::parse;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use sha2::{Digest as _, Sha256};

use super::memory::Epoch;
use crate::index::Repository;
use crate::oci::Digest;
use crate::proxy::forward::{Origin, question_headers};

const REPRESENTATION_PREFIX: &str = "accept";

/// Makes [`Caller`]s. Their keys are salted with a random number of this process, so that a memory dump cannot be
/// compared with hashes of known passwords.
#[derive(Clone, Debug)]
pub struct Callers {
    salt: [u64; 2],
}

/// A client, as the registry can tell it from others.
#[derive(Debug)]
pub struct Caller {
    /// The headers of each question for this caller.
    pub(super) headers: HeaderMap,
    /// The request's `ns=` parameters as they came, `ns=docker.io`. A mirror such as Spegel or Dragonfly finds nothing
    /// without them.
    pub(super) namespace: Option<Box<str>>,
    pub(super) key: CallerKey,
}

/// A salted hash of everything that a registry may decide by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct CallerKey([u8; 32]);

/// A caller at a repository, between two writes: what the visit learns is cached until the next write.
#[derive(Clone, Debug)]
pub struct Visit {
    /// Whose rights decide.
    pub caller: Arc<Caller>,
    /// The repository.
    pub repository: Repository,
    /// Whether the request names another namespace (`ns=`) than the upstream's own. A mirror of several registries has
    /// a repository of this name for each of them, and what one holds says nothing about another.
    pub is_foreign: bool,
    /// Taken before the first question, so that an answer which a write overtook is never used (see `memory`).
    pub(super) epoch: Epoch,
}

/// "What refers to this subject, in this repository, for this caller?"
#[derive(Clone, Debug)]
pub struct Question {
    /// The caller and the repository.
    pub visit: Visit,
    /// The manifest whose referrers are wanted.
    pub subject: Digest,
}

impl Caller {
    /// Whether a URI names the host that the client gave as its own name for refshim (X-Forwarded-Host).
    pub(super) fn told_host(&self, uri: &Uri) -> bool {
        let told = self.headers.get("x-forwarded-host").and_then(|told| told.to_str().ok()?.parse().ok());
        let told: Option<http::uri::Authority> = told;
        let (Some(authority), Some(told)) = (uri.authority(), told) else { return false };
        // Registries build redirects from that name with its port or without.
        let ports = authority.port_u16().zip(told.port_u16());
        told.host().eq_ignore_ascii_case(authority.host()) && ports.is_none_or(|(one, other)| one == other)
    }

    /// Adds the request's `ns=` to the target of a next page: without it a mirror would look into another namespace.
    #[must_use]
    pub fn with_namespace(&self, target: String) -> String {
        match &self.namespace {
            None => target,
            Some(namespace) => format!("{target}&{namespace}"),
        }
    }

    /// The same to a target that has no query.
    #[must_use]
    pub fn with_namespace_alone(&self, target: String) -> String {
        match &self.namespace {
            None => target,
            Some(namespace) => format!("{target}?{namespace}"),
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
    /// The caller of a request for `uri` with these headers from `origin`.
    #[must_use]
    pub fn caller(&self, headers: &HeaderMap, uri: &Uri, origin: &Origin) -> Caller {
        let headers = question_headers(headers, origin);
        let namespace = namespace(uri.query().unwrap_or_default());
        let key = self.key(&headers, namespace.as_deref());
        Caller { headers, namespace, key }
    }

    fn key(&self, headers: &HeaderMap, namespace: Option<&str>) -> CallerKey {
        let mut fields: Vec<(&HeaderName, &HeaderValue)> = Vec::with_capacity(headers.len());
        fields.extend(headers.iter().filter(|(name, _)| is_relevant(name)));
        // By name alone: the order among the values of one field may mean something.
        fields.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
        let mut hash = Sha256::new();
        self.salt.iter().for_each(|salt| hash.update(salt.to_be_bytes()));
        // Each part with its length, so that no two lists of parts read the same.
        let mut update = |part: &[u8]| {
            // No head is as long as that.
            hash.update(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
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

/// Whether the `ns=` parameters name another namespace than the upstream's own. An upstream with several namespaces, or
/// none, has no namespace of its own.
pub(super) fn is_foreign(named: Option<&str>, namespaces: &[String]) -> bool {
    let Some(named) = named else { return false };
    let [own] = namespaces else { return true };
    parse(named.as_bytes()).any(|(key, value)| key != "ns" || value != own.as_str())
}

/// Whether a field may identify the caller. One named here too few costs a request to the registry, one too many would
/// leak links. A `match`, since this is asked of each field of each query.
fn is_relevant(name: &HeaderName) -> bool {
    let name = name.as_str();
    let is_irrelevant = matches!(
        name,
        "b3" | "baggage"
            | "cache-control"
            | "cf-ray"
            | "content-length"
            | "content-type"
            | "date"
            | "expect"
            | "if-match"
            | "if-modified-since"
            | "if-none-match"
            | "if-range"
            | "if-unmodified-since"
            | "pragma"
            | "priority"
            | "range"
            | "referer"
            | "request-id"
            | "sentry-trace"
            | "traceparent"
            | "tracestate"
            | "uber-trace-id"
            | "user-agent"
            | "x-amzn-trace-id"
            | "x-b3-flags"
            | "x-b3-parentspanid"
            | "x-b3-sampled"
            | "x-b3-spanid"
            | "x-b3-traceid"
            | "x-cloud-trace-context"
            | "x-correlation-id"
            | "x-datadog-parent-id"
            | "x-datadog-trace-id"
            | "x-request-id"
            | "x-request-start"
    );
    !(is_irrelevant || name.starts_with(REPRESENTATION_PREFIX))
}

/// The `ns=` parameters of a query as they came.
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
