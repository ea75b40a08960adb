//! Names of header fields that the `http` crate does not know: the registry's API, and what proxies add.

use http::HeaderName;

/// The digest of the manifest or blob in an answer (distribution-spec, section "Pulling manifests"). Optional until
/// distribution-spec 1.1; some registries still leave it out.
pub const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Registries name their API in it. It tells a registry's answer from that of a web server in its place.
pub const DOCKER_DISTRIBUTION_API_VERSION: HeaderName =
    HeaderName::from_static("docker-distribution-api-version");

/// The query parameters that a list of referrers was filtered by (distribution-spec, section "Listing Referrers").
pub const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// The registry that a mirror answers for: the value of the request's `ns=`.
pub const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// The subject of a pushed manifest, in the answer to its PUT (distribution-spec, section "Pushing Manifests with
/// Subject"). oras, notation and regctl take it for a promise that the referrers API lists the manifest, and write no
/// fallback tag then.
pub const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// Identifies a request in the logs of client, refshim and registry.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The client's address, and those of the proxies on the way.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The host that the client asked for.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// `http` or `https`, as the client sees it.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
