//! Properties that hold for any bytes: run by the fuzz targets, and by the tests with likelier bytes. Compiled for
//! those two only.
#![allow(clippy::missing_panics_doc, clippy::expect_used, reason = "a panic is how these report a failure")]

use std::str::FromStr;
use std::sync::LazyLock;

use http::header::{CONNECTION, LINK, LOCATION, TE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};

use crate::config::{CommandLine, Config};
use crate::http::body::Body;
use crate::http::route::{ListPath, Route};
use crate::index::Order;
use crate::oci::{
    Algorithm, Descriptor, Digest, LinkKind, RepositoryName, Tag, TagOrDigest, TagScheme, links_of,
    media_type,
};
use crate::proxy::forward::{Clients, Origin, Peer, lead_back, strip_hop_by_hop};
use crate::proxy::upstream::Upstream;
use crate::queries::pages::{Next, QueryScope};
use crate::queries::references::query::ReferencesQuery;
use crate::queries::referrers;
use crate::telemetry::Metrics;

pub use crate::attach::fuzzing::{attach_query, attached_files};
pub use crate::config::fuzzing::configuration;
pub use crate::index::fuzzing::{delta, records, sorted};

const METHODS: [Method; 6] =
    [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::POST, Method::OPTIONS];

/// The first byte and the text behind it.
fn choice_and_text(bytes: &[u8]) -> Option<(usize, &str)> {
    let (first, rest) = bytes.split_first()?;
    Some(((*first).into(), std::str::from_utf8(rest).ok()?))
}

/// A method and a path.
pub fn route(bytes: &[u8]) {
    let Some((choice, path)) = choice_and_text(bytes) else { return };
    let Some(method) = METHODS.get(choice % METHODS.len()) else { return };
    let route = Route::parse(method, path);
    let canonical = match &route {
        Route::References { repository, manifest, path: ListPath::Manifests }
        | Route::Attach { repository, manifest } => {
            Some(format!("/v2/{repository}/manifests/{manifest}/references"))
        }
        Route::References { repository, manifest, path: ListPath::Extension } => {
            Some(format!("/v2/{repository}/_refshim/references/{manifest}"))
        }
        Route::Reference { repository, manifest, referrer }
        | Route::Detach { repository, manifest, referrer } => {
            Some(format!("/v2/{repository}/manifests/{manifest}/references/{referrer}"))
        }
        Route::Extensions => Some("/v2/_oci/ext/discover".to_owned()),
        Route::Referrers { repository, subject } => Some(format!("/v2/{repository}/referrers/{subject}")),
        Route::GetManifest { repository, manifest }
        | Route::PutManifest { repository, manifest }
        | Route::DeleteManifest { repository, manifest } => {
            Some(format!("/v2/{repository}/manifests/{manifest}"))
        }
        Route::HeadManifest { repository, digest } => Some(format!("/v2/{repository}/manifests/{digest}")),
        // The last two are no results of parsing.
        Route::QueryMethod(..)
        | Route::QueryPath(..)
        | Route::Pass(_)
        | Route::WatchPut { .. }
        | Route::PassWrite { .. } => None,
    };
    if let Some(canonical) = canonical {
        assert_eq!(Route::parse(method, &canonical), route);
        assert_eq!(percent_encoding::percent_decode_str(path).decode_utf8_lossy(), canonical);
    }
    let is_query = matches!(route, Route::References { .. } | Route::Referrers { .. });
    assert!(!is_query || [Method::GET, Method::HEAD].contains(method));
    // The registry's own grammar comes first.
    let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    let claimed = decoded.strip_prefix("/v2/").and_then(|rest| rest.rsplit_once("/manifests/"));
    if let Some((name, manifest)) = claimed
        && name.parse::<RepositoryName>().is_ok()
        && manifest.parse::<TagOrDigest>().is_ok()
    {
        assert!(!is_query && !matches!(route, Route::QueryMethod(..) | Route::QueryPath(..)));
    }
}

fn comes_back<T: FromStr + ToString>(text: &str) {
    if let Ok(parsed) = text.parse::<T>() {
        assert_eq!(parsed.to_string(), text);
    }
}

/// Names, tags, digests and cursors.
pub fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    comes_back::<RepositoryName>(text);
    comes_back::<Tag>(text);
    comes_back::<Digest>(text);
    comes_back::<TagOrDigest>(text);
    comes_back::<LinkKind>(text);
    comes_back::<Order>(text);
    comes_back::<crate::queries::pages::Beyond>(text);
    assert!(text.parse::<Tag>().is_err() || text.parse::<Digest>().is_err());
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let digest = Digest::of(algorithm, bytes);
        assert_eq!(digest.to_string().parse().as_ref(), Ok(&digest));
        assert_eq!(Digest::from_bytes(algorithm, digest.as_bytes()).as_ref(), Some(&digest));
        let list = Tag::of_referrers(&digest);
        comes_back::<Tag>(&list.to_string());
        assert_eq!(list.scheme(), Some(TagScheme::Referrers));
    }
    if let Some(TagScheme::Cosign(digest)) = text.parse::<Tag>().ok().and_then(|tag| tag.scheme()) {
        assert!(text.starts_with(&digest.to_string().replace(':', "-")));
    }
}

/// A manifest, after a byte that chooses what it is pushed as.
pub fn links(bytes: &[u8]) {
    let Some((choice, manifest)) = bytes.split_first() else { return };
    let types = [
        None,
        Some(media_type::IMAGE_MANIFEST),
        Some(media_type::IMAGE_INDEX),
        Some(media_type::DOCKER_MANIFEST_LIST),
        Some(media_type::ORAS_ARTIFACT),
        Some("application/x; charset=utf-8"),
    ];
    let content_type = types.get(usize::from(*choice) % types.len()).copied().flatten();
    let subject = Digest::Sha256([7; 32]);
    let tag = match choice / 64 {
        0 => None,
        1 => Some(Tag::of_referrers(&subject)),
        2 => Tag::of_cosign(&subject).next(),
        _ => Some(Tag::latest()),
    };
    let found = links_of(manifest, content_type, tag.as_ref());
    assert!(found.links.is_sorted_by(|one, next| one < next), "each link once");
    assert!(found.refused >= found.refusals.len());
    assert_eq!(found.refused == 0, found.refusals.is_empty());
    let names_subject = |digest| found.links.iter().any(|link| link.subject == digest);
    assert!(found.subject.clone().is_none_or(names_subject));
    let descriptor = Descriptor {
        media_type: found.media_type.clone(),
        digest: Digest::of(Algorithm::Sha256, manifest),
        size: manifest.len() as u64,
        artifact_type: found.artifact_type.clone(),
        annotations: found.annotations.clone(),
        data: None,
    };
    let json = crate::registry::reader::to_json(&descriptor).expect("a descriptor is JSON");
    assert!(json.chars().all(|character| character >= ' '), "one line");
    assert_eq!(serde_json::from_str::<Descriptor>(&json).expect("its own form"), descriptor);
    // How it is written does not matter, once each member stands once.
    if let (0, Ok(value)) = (found.refused, serde_json::from_slice::<serde_json::Value>(manifest)) {
        let rewritten = serde_json::to_vec_pretty(&value).expect("a value is JSON");
        assert_eq!(links_of(&rewritten, content_type, tag.as_ref()), found);
    }
}

/// The parameters of a query.
pub fn query(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let name: RepositoryName = "a/b".parse().expect("a name");
    let subject = Digest::Sha256([7; 32]);
    let is_field = |text: &str| HeaderValue::try_from(format!("<{text}>; rel=\"next\"")).is_ok();
    let after = Order(1 << 63 | 5);
    let parameters = |target: &str, path: &str| {
        assert!(is_field(target) && target.is_ascii() && !target.contains(['<', '>', ' ', '"']));
        target.strip_prefix(path).and_then(|rest| rest.strip_prefix('?')).expect("the same path").to_owned()
    };
    if let Ok(query) = ReferencesQuery::parse(text) {
        let beyond = match query.wanted("").scope {
            QueryScope::Registry(beyond) => beyond,
            QueryScope::Repository => None,
        };
        let next = Next { after: Some(after), beyond };
        let path = format!("/v2/a/b/manifests/{subject}/references");
        let target = query.next(&path, next);
        let parameters = parameters(&target, &path);
        let again = ReferencesQuery::parse(&parameters).expect("its own form");
        assert_eq!(again.next(&path, next), target);
        assert_eq!(again.filters_applied(), query.filters_applied());
        let here = |query: &ReferencesQuery| {
            (query.wanted("").count, query.wanted("").inline, query.wanted("").scope)
        };
        assert_eq!(here(&again), here(&query));
        assert_eq!(again.wanted("").after, Some(after));
    }
    if let Ok(query) = referrers::query::ReferrersQuery::parse(text) {
        let target = query.next(&name, &subject, after);
        let parameters = parameters(&target, &format!("/v2/a/b/referrers/{subject}"));
        let again = referrers::query::ReferrersQuery::parse(&parameters).expect("its own form");
        assert_eq!(again.next(&name, &subject, after), target);
        assert_eq!(again.filters_applied(), query.filters_applied());
    }
}

struct Way {
    upstream: Upstream,
    origin: Origin,
}

/// An upstream below a path, whose realms lead through refshim.
static WAY: LazyLock<Way> = LazyLock::new(|| {
    let variables = [
        ("REFSHIM_UPSTREAM", "http://registry.internal:5000/base"),
        ("REFSHIM_UPSTREAMS_DEFAULT_REWRITE_REALM", "true"),
    ];
    let variables = variables.map(|(name, value)| (name.into(), value.into()));
    let config = Config::load(&CommandLine::default(), variables).expect("a configuration");
    let upstream = Upstream::new(&config.upstream, &Metrics::new()).expect("an upstream without TLS");
    let request = Request::builder().header("host", "hub.example.com").body(()).expect("a request");
    let origin = Clients::new(&config).origin(&Peer::new([127, 0, 0, 1].into(), true), &request);
    Way { upstream, origin }
});

/// `name: value` in lines.
fn fields(bytes: &[u8]) -> HeaderMap {
    let lines = bytes.split(|byte| *byte == b'\n').take(64);
    let field = |line: &[u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at_checked(colon)?;
        let value = HeaderValue::from_bytes(value.strip_prefix(b":")?.trim_ascii()).ok()?;
        Some((HeaderName::from_bytes(name).ok()?, value))
    };
    lines.filter_map(field).collect()
}

/// The head of an answer, a field a line.
pub fn headers(bytes: &[u8]) {
    let before = fields(bytes);
    let mut stripped = before.clone();
    strip_hop_by_hop(&mut stripped);
    for name in ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
        assert!(!stripped.contains_key(name), "{name} stays");
    }
    assert!(stripped.get(TE).is_none_or(|coding| coding == "trailers"));
    let named = before.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    for name in named.flat_map(|value| value.split(',')).map(str::trim) {
        let is_gone = !stripped.contains_key(name) || name.eq_ignore_ascii_case("te");
        assert!(is_gone || ["close", "keep-alive"].contains(&name), "{name} stays");
    }
    let mut again = stripped.clone();
    strip_hop_by_hop(&mut again);
    assert_eq!(again, stripped);

    let Way { upstream, origin } = &*WAY;
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = stripped.clone();
    lead_back(&mut response, upstream, origin);
    let led = response.headers().clone();
    assert_eq!(led.len(), stripped.len());
    for (name, value) in &stripped {
        assert!(
            [LOCATION, LINK, WWW_AUTHENTICATE].contains(name)
                || led.get_all(name).iter().any(|it| it == value)
        );
    }
    for (before, after) in stripped.get_all(LOCATION).iter().zip(led.get_all(LOCATION)) {
        let changed = before != after;
        assert!(!changed || (after.as_bytes().starts_with(b"/") && !after.as_bytes().starts_with(b"//")));
        let is_upstreams = before.as_bytes().starts_with(b"http://registry.internal:5000/v2/");
        assert!(!is_upstreams || after.as_bytes().starts_with(b"/v2/"));
    }
}

#[cfg(test)]
mod tests;
