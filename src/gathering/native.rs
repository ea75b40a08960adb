//! The upstream's own referrers API, where it has one. Only an image index is believed: registries without
//! it answer with redirects, login pages, a bare 401 or a 404 of any kind.

use http::header::LINK;
use http::{HeaderMap, Response, StatusCode, Uri};
use hyper::body::Incoming;
use sha2::{Digest as _, Sha256};

use super::image_index::entries;
use super::memory::Fingerprint;
use crate::access::{Access, Answer, Caller, content_type, refusal};
use crate::error::Error;
use crate::index::Repository;
use crate::oci::{Descriptor, Digest, media_type};
use crate::upstream::referrers_uri;

/// How many pages of one list are read.
const PAGES: usize = 1_000;

/// What the API lists.
#[derive(Debug)]
pub(super) struct NativeList {
    pub(super) entries: Vec<Descriptor>,
    pub(super) fingerprint: Fingerprint,
}

/// What the upstream lists itself; [`Answer::Absent`] if it has no such API. A failure is no such answer:
/// the list could be longer.
pub(super) async fn ask(
    access: &Access,
    caller: &Caller,
    repository: &Repository,
    subject: &Digest,
) -> Result<Answer<NativeList>, Error> {
    let mut list = NativeList { entries: Vec::new(), fingerprint: Fingerprint::default() };
    let mut uri = referrers_uri(&repository.name, subject).map_err(|_| Error::Handler)?;
    for page in 0..PAGES {
        let response = access.get(caller, uri, media_type::IMAGE_INDEX).await?;
        let status = response.status();
        let found = match status {
            StatusCode::OK => read(access, response, &mut list.fingerprint).await?,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                return refusal(&response).map(Answer::Refused).ok_or(Error::Undecided(status));
            }
            StatusCode::NOT_IMPLEMENTED => None,
            failed if failed.is_server_error() => return Err(Error::Undecided(failed)),
            _ => None,
        };
        match found {
            None if page == 0 => return Ok(Answer::Absent),
            None => return Err(Error::Undecided(status)),
            Some(Page { entries, next }) => {
                list.entries.extend(entries);
                match next {
                    None => return Ok(Answer::Present(list)),
                    Some(next) => uri = next,
                }
            }
        }
    }
    Err(Error::UpstreamBody)
}

struct Page {
    entries: Vec<Descriptor>,
    next: Option<Uri>,
}

async fn read(
    access: &Access,
    response: Response<Incoming>,
    fingerprint: &mut Fingerprint,
) -> Result<Option<Page>, Error> {
    let content_type = content_type(response.headers()).unwrap_or_default().to_owned();
    if media_type::essence(&content_type) != media_type::IMAGE_INDEX {
        return Ok(None);
    }
    let next = next_page(response.headers()).transpose()?;
    let bytes = access.whole(response).await?;
    let mut hash = Sha256::new();
    hash.update(*fingerprint);
    hash.update(&bytes);
    *fingerprint = hash.finalize().into();
    Ok(entries(&bytes, Some(&content_type)).map(|entries| Page { entries, next }))
}

/// The target of `Link: rel="next"`, on this upstream whatever host it names.
fn next_page(headers: &HeaderMap) -> Option<Result<Uri, Error>> {
    let mut links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    let target = links.find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        (parameters.contains("rel=\"next\"") || parameters.contains("rel=next")).then_some(target)
    })?;
    let uri = target.parse::<Uri>().ok().filter(|uri| uri.path().starts_with("/v2/"));
    Some(uri.ok_or(Error::UpstreamBody))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(link: &str, expected: Option<&str>) {
        let headers = HeaderMap::from_iter([(LINK, link.parse().unwrap())]);
        let found = next_page(&headers).map(|next| next.unwrap().path_and_query().unwrap().to_string());
        assert_eq!(found.as_deref(), expected, "{link}");
    }

    #[test]
    fn the_next_page_is_on_the_same_upstream() {
        check("</v2/a/referrers/x?n=1>; rel=\"next\"", Some("/v2/a/referrers/x?n=1"));
        check("<https://other/v2/a/referrers/x?n=1>; rel=next", Some("/v2/a/referrers/x?n=1"));
        check("</v2/a>; rel=\"prev\"", None);
        let headers = HeaderMap::from_iter([(LINK, "<next>; rel=next".parse().unwrap())]);
        assert!(next_page(&headers).unwrap().is_err());
    }
}
