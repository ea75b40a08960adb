//! The registry's own referrers API (distribution-spec, "Listing Referrers"), where it has one. Only a 200 with an
//! image index counts as one: registries without the API answer with a redirect to a web site (GHCR), a login page
//! (GAR), a bare 401 (Harbor before 2.8) or any 4xx.

use http::{StatusCode, Uri};

use super::transport::{referrers_uri, refused};
use super::{Question, Registry, Visit, content_type};
use crate::http::link;
use crate::http::route::API;
use crate::oci::{Algorithm, Descriptor, Digest, ImageIndex, media_type};
use crate::proxy::error::Error;

/// Whether the registry has the API.
#[derive(Debug)]
pub(super) enum Api {
    /// It has, and this is the first page.
    Lists(ListPage),
    /// It has not. Unless that `is_sure`, this holds for this caller at this moment only.
    None { is_sure: bool },
}

/// One page of the API's list.
#[derive(Debug)]
pub(super) struct ListPage {
    pub(super) entries: Vec<Descriptor>,
    /// The URI of the next page.
    pub(super) next: Option<Uri>,
    /// The digest of its bytes, by which a changed list is noticed.
    pub(super) digest: Digest,
}

impl Registry {
    /// The first page, if the registry has the API. A failure is an error: there may be a list.
    pub(super) async fn first_page(&self, question: &Question) -> Result<Api, Error> {
        let Question { visit, subject } = question;
        let uri = referrers_uri(&visit.repository.name, subject, &visit.caller)?;
        self.page(visit, uri).await
    }

    /// A further page. It is an error if it is missing, or the list would silently be shorter.
    pub(super) async fn further_page(&self, visit: &Visit, uri: Uri) -> Result<ListPage, Error> {
        match self.page(visit, uri).await? {
            Api::Lists(page) => Ok(page),
            Api::None { .. } => Err(Error::Undecided(StatusCode::OK)),
        }
    }

    async fn page(&self, visit: &Visit, uri: Uri) -> Result<Api, Error> {
        let asked = self.upstream.absolute(&uri)?;
        // Redirects are not followed: GHCR's leads to a web site, and a list from elsewhere is not the registry's.
        let response = self.send(http::Method::GET, uri, &visit.caller, media_type::IMAGE_INDEX).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                return refused::<()>(response).map(|_| Api::None { is_sure: false });
            }
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                return Ok(Api::None { is_sure: true });
            }
            failed if failed.is_server_error() => return Err(Error::Undecided(failed)),
            _ => return Ok(Api::None { is_sure: false }),
        }
        let came_as = content_type(response.headers()).unwrap_or_default().to_owned();
        if !media_type::is_one(&came_as, media_type::IMAGE_INDEX) {
            return Ok(Api::None { is_sure: false });
        }
        let (headers, bytes) = self.whole(response).await?;
        let limit = self.manifest_limit;
        let bytes = crate::http::coding::decode(&headers, bytes, limit).ok_or(Error::UpstreamBody)?;
        let next = match link::next(&headers, &asked) {
            None => None,
            Some(next) => Some(self.here(&next.map_err(|_| Error::UpstreamBody)?)?),
        };
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let entries = listed(&bytes, Some(&came_as));
        Ok(entries
            .map_or(Api::None { is_sure: false }, |entries| Api::Lists(ListPage { entries, next, digest })))
    }

    /// The target of a Link as a path at this upstream. Its host is ignored: registries build their links from
    /// X-Forwarded-Host, or from whatever name they believe to have.
    fn here(&self, target: &Uri) -> Result<Uri, Error> {
        let path = target.path_and_query().ok_or(Error::UpstreamBody)?.as_str();
        let path = path.strip_prefix(self.upstream.base_path()).filter(|rest| rest.starts_with('/'));
        let path = path.or(target.path_and_query().map(http::uri::PathAndQuery::as_str));
        path.filter(|path| path.starts_with(API))
            .and_then(|path| path.parse().ok())
            .ok_or(Error::UpstreamBody)
    }
}

/// The entries of a list of referrers, if it is an image index.
pub(super) fn listed(bytes: &[u8], content_type: Option<&str>) -> Option<Vec<Descriptor>> {
    let ImageIndex { entries, malformed } = ImageIndex::parse(bytes, content_type)?;
    if malformed > 0 {
        tracing::warn!(malformed, "a list of referrers has malformed entries; they are left out");
    }
    Some(entries)
}
