//! What a pusher, or an operator, is told of links that are not recorded.

use http::header::WARNING;
use http::{HeaderValue, Response, StatusCode};

use crate::http::body::Body;
use crate::index::Repository;
use crate::oci::{Digest, is_buildkit_attestation};
use crate::telemetry::Metrics;

/// Logs the way out if the registry rejected an attestation of BuildKit's. BuildKit (0.32 and later) pushes it before
/// the image that is its subject, and registries that require the subject first (GitLab, ECR) reject that. The client
/// gets their answer, which does not name the option.
pub(super) fn tell_way_out(
    metrics: &Metrics,
    repository: &Repository,
    (digest, bytes): (&Digest, &[u8]),
    subject: &Digest,
    status: StatusCode,
) {
    let is_about_content = matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::CONFLICT
            | StatusCode::UNPROCESSABLE_ENTITY
    );
    if !is_about_content || !is_buildkit_attestation(bytes) {
        return;
    }
    metrics.attestation_refused();
    tracing::warn!(repository = %repository.name, %digest, %subject, status = status.as_u16(),
        "the registry rejected an attestation whose subject it may not have yet; if BuildKit pushed it, build \
         with the exporter option oci-artifact=false");
}

/// Adds a `Warning` that says which links are not recorded (RFC 7234, section 5.5). Only to a success: a failure has
/// its own message.
pub(super) fn warned(mut response: Response<Body>, warning: Option<&str>) -> Response<Body> {
    warn(&mut response, warning);
    response
}

/// [`warned`], in place.
pub(super) fn warn(response: &mut Response<Body>, warning: Option<&str>) {
    if let Some(warning) = warning.filter(|_| response.status().is_success())
        && let Ok(value) = HeaderValue::try_from(format!("299 - \"refshim: {warning}\""))
    {
        response.headers_mut().append(WARNING, value);
    }
}
