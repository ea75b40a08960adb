//! The response to a query: an image index, with inlined manifests where the query wants them.

use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_TYPE, LINK, WARNING};
use http::{HeaderValue, Response};
use jiff::Timestamp;

use super::{Placed, REPOSITORY_ANNOTATION, ReferrerPage};
use crate::http::body::Body;
use crate::http::header::OCI_FILTERS_APPLIED;
use crate::index::{Coverage, Entry};
use crate::oci::{Descriptor, RepositoryName, media_type};
use crate::proxy::error::Error;
use crate::registry::reader::to_json;

/// What `data` adds to a descriptor besides its base64: the member's name, quotes and a comma.
const DATA_MEMBER_BYTES: usize = r#","data":"""#.len();

/// A 200 with this page. A header that cannot be written is an error: without its `Link`, or its `Warning`, the list
/// would seem to be complete.
pub fn render(
    page: &ReferrerPage,
    filters_applied: Option<String>,
    next: Option<String>,
) -> Result<Response<Body>, Error> {
    let mut response = Response::new(Body::whole(page.image_index.clone()));
    let headers = response.headers_mut();
    // Exactly this, without a charset: two client libraries compare the text.
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type::IMAGE_INDEX));
    let link = next.map(|next| format!("<{next}>; rel=\"next\""));
    if let Some(warning) = &page.warning {
        headers.insert(WARNING, warning.clone());
    }
    for (name, value) in [(OCI_FILTERS_APPLIED, filters_applied), (LINK, link)] {
        if let Some(value) = value {
            headers.insert(name, HeaderValue::try_from(value).map_err(|_| Error::Handler)?);
        }
    }
    Ok(response)
}

/// The `Warning` (RFC 9111, section 5.5; distribution-spec, "Warnings") of lists that may miss something: "nothing
/// known yet" must not read as "unsigned". Made once: its time hardly ever changes, and to write it costs as much as a
/// short list.
#[derive(Debug, Default)]
pub(super) struct MayMiss(Mutex<Option<(Timestamp, HeaderValue)>>);

impl MayMiss {
    /// The header of a list that is known that far.
    pub(super) fn header(&self, coverage: Coverage) -> Result<Option<HeaderValue>, Error> {
        let Coverage::Since(since) = coverage else { return Ok(None) };
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, header)) = &*last
            && *of == since
        {
            return Ok(Some(header.clone()));
        }
        let time = since.strftime("%FT%TZ");
        let text = format!("299 - \"refshim: links pushed before {time} may be missing (refshim backfill)\"");
        let header = HeaderValue::try_from(text).map_err(|_| Error::Handler)?;
        *last = Some((since, header.clone()));
        Ok(Some(header))
    }
}

/// Which manifests can be inlined with the page staying under its limit; earlier entries come first.
pub(super) fn what_fits(entries: &[Placed], page_bytes: usize) -> Vec<bool> {
    let listed: usize = entries.iter().map(|(_, entry)| entry.descriptor.len() + 1).sum();
    let mut left = page_bytes.saturating_sub(listed);
    let fits = |(_, entry): &Placed| {
        let size = serde_json::from_str::<Descriptor>(&entry.descriptor).ok()?.size;
        let encoded = usize::try_from(size).ok()?.div_ceil(3).checked_mul(4)?;
        left = left.checked_sub(encoded.checked_add(DATA_MEMBER_BYTES)?)?;
        Some(())
    };
    entries.iter().map(fits).map(|fits| fits.is_some()).collect()
}

/// Whether a manifest has the size that its descriptor claims.
pub(super) fn is_as_long_as_claimed(entry: &Entry, manifest: &[u8]) -> bool {
    serde_json::from_str::<Descriptor>(&entry.descriptor)
        .is_ok_and(|descriptor| usize::try_from(descriptor.size) == Ok(manifest.len()))
}

/// A descriptor with its manifest as `data` (image-spec, `descriptor.md`).
pub(super) fn with_data(descriptor: &str, manifest: &[u8]) -> Result<String, Error> {
    let mut descriptor: Descriptor = serde_json::from_str(descriptor).map_err(|_| Error::Handler)?;
    descriptor.data = Some(STANDARD.encode(manifest));
    to_json(&descriptor)
}

/// The descriptor of an entry in another repository, annotated with that repository's name.
pub(super) fn with_repository(descriptor: &str, repository: &RepositoryName) -> Result<String, Error> {
    let mut descriptor: Descriptor = serde_json::from_str(descriptor).map_err(|_| Error::Handler)?;
    descriptor.annotations.insert(REPOSITORY_ANNOTATION.to_owned(), repository.to_string());
    to_json(&descriptor)
}
