//! Parses method and path into a typed route, and makes the paths of the API. Pure, and the only room that knows
//! their grammar. What it does not recognise is passed on unchanged.

mod mode;
mod path;
mod references;

use http::Method;
use percent_encoding::percent_decode_str;

use crate::oci::{Digest, InvalidDigest, InvalidName, InvalidTag, RepositoryName, TagOrDigest};

pub use path::{
    API, begins_upload, behind, blob_path, has_dot_segment, is_api, manifest_path, references_path,
    referrers_path,
};
pub use references::{EXTENSION, ListPath};

/// What a request asks for, as far as refshim handles it.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    /// `GET|HEAD /v2/<name>/manifests/<ref>/references`
    References { repository: RepositoryName, manifest: TagOrDigest, path: ListPath },
    /// `POST /v2/<name>/manifests/<ref>/references`
    Attach { repository: RepositoryName, manifest: TagOrDigest },
    /// `GET|HEAD /v2/<name>/manifests/<ref>/references/<digest>`
    Reference { repository: RepositoryName, manifest: TagOrDigest, referrer: Digest },
    /// `DELETE /v2/<name>/manifests/<ref>/references/<digest>`
    Detach { repository: RepositoryName, manifest: TagOrDigest, referrer: Digest },
    /// `GET|HEAD /v2/_oci/ext/discover`
    Extensions,
    /// `GET|HEAD /v2/<name>/referrers/<digest>`
    Referrers { repository: RepositoryName, subject: Digest },
    /// The path of a query with another method than these, answered with 405. OPTIONS is passed on, as on all
    /// paths: it is the CORS preflight of browsers (Fetch, section 4.8), and the registry decides it
    /// (docker-registry-ui #104).
    QueryMethod(RouteClass, &'static str),
    /// The path of a query with a malformed name, tag or digest.
    QueryPath(RouteClass, MalformedPath),
    /// `GET /v2/<name>/manifests/<ref>`
    GetManifest { repository: RepositoryName, manifest: TagOrDigest },
    /// `PUT /v2/<name>/manifests/<ref>`
    PutManifest { repository: RepositoryName, manifest: TagOrDigest },
    /// `HEAD /v2/<name>/manifests/<digest>`
    HeadManifest { repository: RepositoryName, digest: Digest },
    /// `DELETE /v2/<name>/manifests/<ref>`
    DeleteManifest { repository: RepositoryName, manifest: TagOrDigest },
    /// The PUT of a manifest that nothing may change or delay: recorded from a copy.
    WatchPut { repository: RepositoryName, manifest: TagOrDigest },
    /// A write of a manifest that is not recorded.
    PassWrite { repository: RepositoryName },
    /// Everything else.
    Pass(RouteClass),
}

/// The class of a path, for metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouteClass {
    /// `/v2/`
    Base,
    /// `/v2/<name>/manifests/<ref>`
    Manifests,
    /// `/v2/<name>/blobs/<digest>`
    Blobs,
    /// `/v2/<name>/blobs/uploads/…`
    Uploads,
    /// `/v2/<name>/tags/list`
    Tags,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/<name>/manifests/<ref>/references`
    References,
    /// `/v2/<name>/referrers/<digest>`
    Referrers,
    /// Anything else, under `/v2/` or not.
    Other,
}

/// Which part of a query's path is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedPath {
    /// The repository name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The tag or digest.
    #[error(transparent)]
    Manifest(#[from] InvalidTag),
    /// The digest, where a tag is not allowed.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
}

impl Route {
    /// Parses method and path, after percent-decoding, as registries do.
    #[must_use]
    pub fn parse(method: &Method, path: &str) -> Self {
        // Most paths have nothing to decode, and to find that out byte by byte takes longer than all the rest.
        let decoded =
            if path.contains('%') { percent_decode_str(path).decode_utf8() } else { Ok(path.into()) };
        let Ok(path) = decoded else {
            return Self::Pass(RouteClass::Other);
        };
        let Some(rest) = path.strip_prefix(API) else {
            return Self::Pass(if path == "/v2" { RouteClass::Base } else { RouteClass::Other });
        };
        let mut from_end = rest.rsplitn(3, '/');
        match (from_end.next(), from_end.next(), from_end.next()) {
            // Before the references query: `…/manifests/references` is a manifest with the tag `references`, and the
            // registry's grammar takes precedence.
            (Some(manifest), Some("manifests"), Some(name)) => Self::manifest(method, name, manifest),
            (Some("references"), Some(manifest), Some(before)) => match before.strip_suffix("/manifests") {
                Some(name) if is_clean(rest) => Self::references(method, name, manifest),
                Some(_) | None => Self::Pass(RouteClass::Other),
            },
            (Some(subject), Some("references"), Some(before)) if is_clean(rest) => {
                Self::below_references(method, before, subject)
            }
            (Some("uploads"), Some("blobs"), Some(_)) | (Some(_), Some("uploads"), Some(_)) => {
                Self::Pass(RouteClass::Uploads)
            }
            (Some(_), Some("blobs"), Some(_)) => Self::Pass(RouteClass::Blobs),
            (Some("list"), Some("tags"), Some(_)) => Self::Pass(RouteClass::Tags),
            (Some(digest), Some("referrers"), Some(name)) if is_clean(name) => {
                Self::referrers(method, name, digest)
            }
            (Some(""), None, None) => Self::Pass(RouteClass::Base),
            (Some("discover"), Some("ext"), Some("_oci")) => {
                Self::other_method(method, RouteClass::Other).unwrap_or(Self::Extensions)
            }
            (Some("_catalog"), None, None) => Self::Pass(RouteClass::Catalog),
            _ => Self::Pass(RouteClass::Other),
        }
    }

    /// The class by which the request is counted.
    #[must_use]
    pub fn class(&self) -> RouteClass {
        match self {
            Self::References { .. } | Self::Attach { .. } | Self::Reference { .. } | Self::Detach { .. } => {
                RouteClass::References
            }
            Self::Extensions => RouteClass::Other,
            Self::Referrers { .. } => RouteClass::Referrers,
            Self::GetManifest { .. }
            | Self::HeadManifest { .. }
            | Self::PutManifest { .. }
            | Self::DeleteManifest { .. }
            | Self::WatchPut { .. }
            | Self::PassWrite { .. } => RouteClass::Manifests,
            Self::QueryMethod(class, _) | Self::QueryPath(class, _) | Self::Pass(class) => *class,
        }
    }

    /// The repository of the request; `None` where refshim does not need to know it.
    #[must_use]
    pub fn repository(&self) -> Option<&RepositoryName> {
        match self {
            Self::References { repository, .. }
            | Self::Attach { repository, .. }
            | Self::Reference { repository, .. }
            | Self::Detach { repository, .. }
            | Self::Referrers { repository, .. }
            | Self::GetManifest { repository, .. }
            | Self::HeadManifest { repository, .. }
            | Self::PutManifest { repository, .. }
            | Self::DeleteManifest { repository, .. }
            | Self::WatchPut { repository, .. }
            | Self::PassWrite { repository } => Some(repository),
            Self::Extensions | Self::QueryMethod(..) | Self::QueryPath(..) | Self::Pass(_) => None,
        }
    }

    fn manifest(method: &Method, name: &str, manifest: &str) -> Self {
        let (Ok(repository), Ok(manifest)) = (name.parse(), manifest.parse()) else {
            return Self::Pass(RouteClass::Manifests);
        };
        match (method, manifest) {
            (&Method::GET, manifest) => Self::GetManifest { repository, manifest },
            (&Method::PUT, manifest) => Self::PutManifest { repository, manifest },
            (&Method::HEAD, TagOrDigest::Digest(digest)) => Self::HeadManifest { repository, digest },
            (&Method::DELETE, manifest) => Self::DeleteManifest { repository, manifest },
            _ => Self::Pass(RouteClass::Manifests),
        }
    }

    /// What is below a list of references: one of them, or the list of refshim's extension.
    fn below_references(method: &Method, before: &str, subject: &str) -> Self {
        if let Some(name) = before.strip_suffix(EXTENSION).and_then(|name| name.strip_suffix('/')) {
            return Self::extension(method, name, subject);
        }
        let manifest = before.rsplit_once('/');
        match manifest.and_then(|(name, manifest)| Some((name.strip_suffix("/manifests")?, manifest))) {
            Some((name, manifest)) => Self::reference(method, name, manifest, subject),
            None => Self::Pass(RouteClass::Other),
        }
    }

    /// The route for a method other than GET and HEAD on the path of a query.
    fn other_method(method: &Method, class: RouteClass) -> Option<Self> {
        match *method {
            Method::GET | Method::HEAD => None,
            Method::OPTIONS => Some(Self::Pass(class)),
            _ => Some(Self::QueryMethod(class, references::OF_A_QUERY)),
        }
    }

    fn referrers(method: &Method, name: &str, digest: &str) -> Self {
        let class = RouteClass::Referrers;
        if let Some(other) = Self::other_method(method, class) {
            return other;
        }
        match (name.parse(), digest.parse()) {
            (Ok(repository), Ok(subject)) => Self::Referrers { repository, subject },
            (Err(error), _) => Self::QueryPath(class, MalformedPath::Name(error)),
            (Ok(_), Err(error)) => Self::QueryPath(class, MalformedPath::Digest(error)),
        }
    }
}

impl RouteClass {
    /// Its name in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Manifests => "manifests",
            Self::Blobs => "blobs",
            Self::Uploads => "uploads",
            Self::Tags => "tags",
            Self::Catalog => "catalog",
            Self::References => "references",
            Self::Referrers => "referrers",
            Self::Other => "other",
        }
    }
}

/// Whether a path has no empty or dot segments. Registries redirect others to a clean path, so they are passed on.
fn is_clean(path: &str) -> bool {
    path.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: &Method, path: &str, expected: &Route) {
        assert_eq!(Route::parse(method, path), *expected, "{method} {path}");
    }

    fn references(name: &str, manifest: &str) -> Route {
        let (repository, manifest) = (name.parse().unwrap(), manifest.parse().unwrap());
        Route::References { repository, manifest, path: ListPath::Manifests }
    }

    #[test]
    fn a_references_query_is_what_the_registry_does_not_claim() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        check(&Method::GET, "/v2/a/manifests/latest/references", &references("a", "latest"));
        check(&Method::HEAD, "/v2/a/b/manifests/latest/references", &references("a/b", "latest"));
        check(&Method::GET, &format!("/v2/a/manifests/{digest}/references"), &references("a", &digest));
        let encoded = digest.replace(':', "%3A");
        check(&Method::GET, &format!("/v2/a/manifests/{encoded}/references"), &references("a", &digest));
        check(&Method::GET, "/v2/a/manifests/blobs/references", &references("a", "blobs"));
        check(&Method::GET, "/v2/a/manifests/x/manifests/y/references", &references("a/manifests/x", "y"));

        let manifest = |name: &str| Route::GetManifest {
            repository: name.parse().unwrap(),
            manifest: "references".parse().unwrap(),
        };
        check(&Method::GET, "/v2/a/manifests/manifests/references", &manifest("a/manifests"));
        check(&Method::GET, "/v2/a/manifests/references", &manifest("a"));
        check(&Method::GET, "/v2/a/manifests/b/manifests/references", &manifest("a/manifests/b"));
        let other = Route::Pass(RouteClass::Other);
        check(&Method::GET, "/v2/a/manifests/latest/references/", &other);
        check(&Method::GET, "/v2/a/manifests//references", &other);
        check(&Method::GET, "/v2/a/../manifests/x/references", &other);
        check(&Method::GET, "/v2//a/manifests/x/references", &other);
        check(&Method::GET, "/v1/a/manifests/x/references", &other);
    }

    #[test]
    fn other_methods_on_a_references_query_are_told_so() {
        for method in [Method::PUT, Method::DELETE, Method::PATCH] {
            let told = Route::QueryMethod(RouteClass::References, "GET, HEAD, POST");
            check(&method, "/v2/a/manifests/latest/references", &told);
        }
        let (repository, manifest) = ("a".parse().unwrap(), "latest".parse().unwrap());
        check(&Method::POST, "/v2/a/manifests/latest/references", &Route::Attach { repository, manifest });
    }

    #[test]
    fn options_on_a_query_are_the_upstreams_to_tell() {
        let pass = Route::Pass;
        check(&Method::OPTIONS, "/v2/a/manifests/latest/references", &pass(RouteClass::References));
        check(&Method::OPTIONS, "/v2/a/referrers/latest", &pass(RouteClass::Referrers));
    }

    #[test]
    fn malformed_parts_of_a_references_query_are_told_apart() {
        let malformed = |part| Route::QueryPath(RouteClass::References, part);
        let name = malformed(MalformedPath::Name(InvalidName));
        let manifest = |error| malformed(MalformedPath::Manifest(error));
        check(&Method::GET, "/v2/A/manifests/latest/references", &name);
        check(&Method::GET, "/v2/a/manifests/.x/references", &manifest(InvalidTag::Tag));
        let encoded = InvalidTag::Digest(InvalidDigest::Encoded);
        check(&Method::GET, "/v2/a/manifests/sha256:XYZ/references", &manifest(encoded));
        let algorithm = InvalidTag::Digest(InvalidDigest::Algorithm);
        check(&Method::GET, "/v2/a/manifests/md5:00/references", &manifest(algorithm));
    }

    #[test]
    fn a_referrers_query_takes_a_digest() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let referrers = |name: &str| Route::Referrers {
            repository: name.parse().unwrap(),
            subject: digest.parse().unwrap(),
        };
        let class = RouteClass::Referrers;
        check(&Method::GET, &format!("/v2/a/b/referrers/{digest}"), &referrers("a/b"));
        check(&Method::HEAD, &format!("/v2/a/referrers/{}", digest.replace(':', "%3a")), &referrers("a"));
        check(&Method::GET, &format!("/v2/a/manifests/referrers/{digest}"), &referrers("a/manifests"));
        check(&Method::GET, "/v2/a/manifests/referrers/references", &references("a", "referrers"));
        for method in [Method::PUT, Method::POST, Method::DELETE, Method::PATCH] {
            check(&method, &format!("/v2/a/referrers/{digest}"), &Route::QueryMethod(class, "GET, HEAD"));
        }
        let malformed = |error| Route::QueryPath(class, MalformedPath::Digest(error));
        check(&Method::GET, "/v2/a/referrers/latest", &malformed(InvalidDigest::Form));
        check(&Method::GET, "/v2/a/referrers/", &malformed(InvalidDigest::Form));
        check(&Method::GET, "/v2/a/referrers/sha256:00", &malformed(InvalidDigest::Encoded));
        let name = Route::QueryPath(class, MalformedPath::Name(InvalidName));
        check(&Method::GET, &format!("/v2/A/referrers/{digest}"), &name);
        let other = Route::Pass(RouteClass::Other);
        check(&Method::GET, &format!("/v2//referrers/{digest}"), &other);
        check(&Method::GET, &format!("/v2/a/../referrers/{digest}"), &other);
    }

    #[test]
    fn manifests_are_recorded_under_valid_names_only() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let repository: RepositoryName = "a/b".parse().unwrap();
        let put = |manifest: &str| Route::PutManifest {
            repository: repository.clone(),
            manifest: manifest.parse().unwrap(),
        };
        check(&Method::PUT, "/v2/a/b/manifests/latest", &put("latest"));
        check(&Method::PUT, &format!("/v2/a/b/manifests/{digest}"), &put(&digest));
        let delete = |manifest: &str| Route::DeleteManifest {
            repository: repository.clone(),
            manifest: manifest.parse().unwrap(),
        };
        check(&Method::DELETE, &format!("/v2/a/b/manifests/{digest}"), &delete(&digest));
        let pass = Route::Pass(RouteClass::Manifests);
        check(&Method::DELETE, "/v2/a/b/manifests/latest", &delete("latest"));
        let head = Route::HeadManifest { repository: repository.clone(), digest: digest.parse().unwrap() };
        check(&Method::HEAD, &format!("/v2/a/b/manifests/{digest}"), &head);
        check(&Method::PUT, "/v2/A/manifests/latest", &pass);
        check(&Method::PUT, "/v2/a/manifests/-", &pass);
        let get = Route::GetManifest { repository, manifest: "latest".parse().unwrap() };
        check(&Method::GET, "/v2/a/b/manifests/latest", &get);
        check(&Method::GET, "/v2/A/manifests/latest", &pass);
        check(&Method::HEAD, "/v2/a/manifests/latest", &pass);
        check(&Method::PATCH, "/v2/a/manifests/latest", &pass);
    }

    #[test]
    fn everything_else_passes_and_is_counted_by_class() {
        let class = |path: &str, class| check(&Method::GET, path, &Route::Pass(class));
        class("/v2/", RouteClass::Base);
        class("/v2", RouteClass::Base);
        class("/v2/_catalog", RouteClass::Catalog);
        class("/v2/a/b/tags/list", RouteClass::Tags);
        class("/v2/a/blobs/sha256:00", RouteClass::Blobs);
        class("/v2/a/blobs/uploads", RouteClass::Uploads);
        class("/v2/a/blobs/uploads/", RouteClass::Uploads);
        class("/v2/a/blobs/uploads/0-1", RouteClass::Uploads);
        class("/", RouteClass::Other);
        class("/api/v2.0/projects", RouteClass::Other);
        class("*", RouteClass::Other);
        class("/v2/%ff/manifests/x", RouteClass::Other);
    }
}
