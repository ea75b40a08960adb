//! The paths of references: the list of those to a manifest, and each of them; and the same list below the name of
//! refshim's extension, for gateways that let through nothing else.

use http::Method;

use super::{MalformedPath, Route, RouteClass};
use crate::oci::{Digest, RepositoryName, TagOrDigest};

/// The name of refshim's extension in paths (distribution-spec, `extensions/README.md`).
pub const EXTENSION: &str = "_refshim";

/// The methods of the list of references, as an `Allow` names them.
const OF_THE_LIST: &str = "GET, HEAD, POST";
/// Those of one reference.
const OF_ONE: &str = "GET, HEAD, DELETE";
/// Those of what can only be read.
pub(super) const OF_A_QUERY: &str = "GET, HEAD";

/// By which path a list of references is asked for: its further pages are, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListPath {
    /// `/v2/<name>/manifests/<ref>/references`
    Manifests,
    /// `/v2/<name>/_refshim/references/<digest>`
    Extension,
}

impl ListPath {
    /// The path of the list for this subject.
    #[must_use]
    pub fn of(self, repository: &RepositoryName, subject: &Digest) -> String {
        match self {
            Self::Manifests => super::references_path(repository, subject),
            Self::Extension => format!("{}{repository}/{EXTENSION}/references/{subject}", super::API),
        }
    }
}

impl Route {
    /// `/v2/<name>/manifests/<ref>/references`
    pub(super) fn references(method: &Method, name: &str, manifest: &str) -> Self {
        let class = RouteClass::References;
        let (repository, manifest) = match (name.parse(), manifest.parse()) {
            (Ok(repository), Ok(manifest)) => (repository, manifest),
            (Err(error), _) => return Self::malformed(method, class, MalformedPath::Name(error)),
            (Ok(_), Err(error)) => return Self::malformed(method, class, MalformedPath::Manifest(error)),
        };
        match *method {
            Method::GET | Method::HEAD => {
                Self::References { repository, manifest, path: ListPath::Manifests }
            }
            Method::POST => Self::Attach { repository, manifest },
            Method::OPTIONS => Self::Pass(class),
            _ => Self::QueryMethod(class, OF_THE_LIST),
        }
    }

    /// `/v2/<name>/manifests/<ref>/references/<digest>`
    pub(super) fn reference(method: &Method, name: &str, manifest: &str, referrer: &str) -> Self {
        let class = RouteClass::References;
        let (repository, manifest, referrer) = match (name.parse(), manifest.parse(), referrer.parse()) {
            (Ok(repository), Ok(manifest), Ok(referrer)) => (repository, manifest, referrer),
            (Err(error), ..) => return Self::malformed(method, class, MalformedPath::Name(error)),
            (Ok(_), Err(error), _) => return Self::malformed(method, class, MalformedPath::Manifest(error)),
            (Ok(_), Ok(_), Err(error)) => {
                return Self::malformed(method, class, MalformedPath::Digest(error));
            }
        };
        match *method {
            Method::GET | Method::HEAD => Self::Reference { repository, manifest, referrer },
            Method::DELETE => Self::Detach { repository, manifest, referrer },
            Method::OPTIONS => Self::Pass(class),
            _ => Self::QueryMethod(class, OF_ONE),
        }
    }

    /// `/v2/<name>/_refshim/references/<digest>`
    pub(super) fn extension(method: &Method, name: &str, subject: &str) -> Self {
        let class = RouteClass::References;
        match (name.parse(), subject.parse::<Digest>()) {
            (Ok(repository), Ok(subject)) => match *method {
                Method::GET | Method::HEAD => Self::References {
                    repository,
                    manifest: TagOrDigest::Digest(subject),
                    path: ListPath::Extension,
                },
                Method::OPTIONS => Self::Pass(class),
                _ => Self::QueryMethod(class, OF_A_QUERY),
            },
            (Err(error), _) => Self::malformed(method, class, MalformedPath::Name(error)),
            (Ok(_), Err(error)) => Self::malformed(method, class, MalformedPath::Digest(error)),
        }
    }

    fn malformed(method: &Method, class: RouteClass, part: MalformedPath) -> Self {
        if *method == Method::OPTIONS { Self::Pass(class) } else { Self::QueryPath(class, part) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{InvalidDigest, InvalidTag};

    #[track_caller]
    fn check(method: &Method, path: &str, expected: &Route) {
        assert_eq!(Route::parse(method, path), *expected, "{method} {path}");
    }

    #[test]
    fn one_reference_is_below_the_list() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let (repository, manifest, referrer): (RepositoryName, _, Digest) =
            ("a/b".parse().unwrap(), "v1".parse().unwrap(), digest.parse().unwrap());
        let path = format!("/v2/a/b/manifests/v1/references/{digest}");
        let one = Route::Reference { repository, manifest, referrer };
        check(&Method::GET, &path, &one);
        check(&Method::HEAD, &path.replace(':', "%3A"), &one);
        let Route::Reference { repository, manifest, referrer } = one else { unreachable!() };
        check(&Method::DELETE, &path, &Route::Detach { repository, manifest, referrer });
        let class = RouteClass::References;
        for method in [Method::PUT, Method::POST, Method::PATCH] {
            check(&method, &path, &Route::QueryMethod(class, OF_ONE));
        }
        check(&Method::OPTIONS, &path, &Route::Pass(class));
        let form = MalformedPath::Digest(InvalidDigest::Form);
        check(&Method::GET, "/v2/a/manifests/v1/references/latest", &Route::QueryPath(class, form));
        let tag = MalformedPath::Manifest(InvalidTag::Tag);
        let path = format!("/v2/a/manifests/.x/references/{digest}");
        check(&Method::DELETE, &path, &Route::QueryPath(class, tag));
        for path in ["/v2/a/manifests//references/x", "/v2/a/../manifests/x/references/y", "/v2/references/x"]
        {
            check(&Method::GET, path, &Route::Pass(RouteClass::Other));
        }
    }

    #[test]
    fn what_the_registry_claims_is_the_registrys() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let blobs = format!("/v2/a/manifests/x/references/blobs/{digest}");
        check(&Method::GET, &blobs, &Route::Pass(RouteClass::Blobs));
        let get = Route::GetManifest {
            repository: "a/manifests/x/references".parse().unwrap(),
            manifest: digest.parse().unwrap(),
        };
        check(&Method::GET, &format!("/v2/a/manifests/x/references/manifests/{digest}"), &get);
    }

    #[test]
    fn the_extension_has_the_same_list() {
        let digest: Digest = format!("sha256:{}", "0a".repeat(32)).parse().unwrap();
        let repository: RepositoryName = "a/b".parse().unwrap();
        let path = ListPath::Extension.of(&repository, &digest);
        assert_eq!(path, format!("/v2/a/b/_refshim/references/{digest}"));
        let manifest = TagOrDigest::Digest(digest);
        let list = Route::References { repository, manifest, path: ListPath::Extension };
        check(&Method::GET, &path, &list);
        let class = RouteClass::References;
        check(&Method::POST, &path, &Route::QueryMethod(class, OF_A_QUERY));
        let form = MalformedPath::Digest(InvalidDigest::Form);
        check(&Method::GET, "/v2/a/_refshim/references/latest", &Route::QueryPath(class, form));
    }
}
