//! The registry's own referrers API, where it has one. Only an image index is believed: registries without it
//! answer with redirects to a web site (GHCR), login pages (GAR), a bare 401 (Harbor before 2.8) or any 4xx.

use http::{StatusCode, Uri};

use super::image_index::entries;
use super::{Question, Registry, Visit, content_type, referrers_uri, refused};
use crate::http::link;
use crate::http::route::API;
use crate::oci::{Algorithm, Descriptor, Digest, media_type};
use crate::proxy::error::Error;

/// What the registry says of its API.
#[derive(Debug)]
pub(super) enum Api {
    /// It has one.
    Lists(ListPage),
    /// It has none; or, if that `is_sure` not, none for this caller at this moment.
    None { is_sure: bool },
}

/// One page of what the API lists.
#[derive(Debug)]
pub(super) struct ListPage {
    pub(super) entries: Vec<Descriptor>,
    /// Where the next one is.
    pub(super) next: Option<Uri>,
    /// A hash of its bytes.
    pub(super) digest: Digest,
}

impl Registry {
    /// The first page, if the registry has such an API. A failure is no such answer: there could be a list.
    pub(super) async fn first_page(&self, question: &Question) -> Result<Api, Error> {
        let Question { visit, subject } = question;
        let uri = referrers_uri(&visit.repository.name, subject, &visit.caller)?;
        self.page(visit, uri).await
    }

    /// A further page, which cannot be missing: the list would be a shorter one.
    pub(super) async fn further_page(&self, visit: &Visit, uri: Uri) -> Result<ListPage, Error> {
        match self.page(visit, uri).await? {
            Api::Lists(page) => Ok(page),
            Api::None { .. } => Err(Error::Undecided(StatusCode::OK)),
        }
    }

    async fn page(&self, visit: &Visit, uri: Uri) -> Result<Api, Error> {
        let asked = self.upstream.absolute(&uri)?;
        // No redirect is followed: one leads to a web site, and a list from elsewhere is not the registry's.
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
        let entries = entries(&bytes, Some(&came_as));
        Ok(entries
            .map_or(Api::None { is_sure: false }, |entries| Api::Lists(ListPage { entries, next, digest })))
    }

    /// The target of a link as it is asked for at this upstream, whatever host it names: registries build
    /// their links from what a proxy in front of them says they are called.
    fn here(&self, target: &Uri) -> Result<Uri, Error> {
        let path = target.path_and_query().ok_or(Error::UpstreamBody)?.as_str();
        let path = path.strip_prefix(self.upstream.base_path()).filter(|rest| rest.starts_with('/'));
        let path = path.or(target.path_and_query().map(http::uri::PathAndQuery::as_str));
        path.filter(|path| path.starts_with(API))
            .and_then(|path| path.parse().ok())
            .ok_or(Error::UpstreamBody)
    }
}
