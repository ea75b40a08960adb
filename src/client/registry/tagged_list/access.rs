//! Reads and writes the list at a referrers tag, once.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use http::{Method, StatusCode};

use crate::client::registry::{Registry, accepting};
use crate::client::transport::{Request, header};
use crate::client::{Error, ErrorKind};
use crate::oci::{Digest, ReferrersList, Tag, media_type};

/// Registries refuse longer manifests, and clients do not read them (distribution-spec, "Pushing Manifests": at least
/// 4 MiB).
const MANIFEST_LIMIT: usize = 4 << 20;

/// What is at a referrers tag.
#[derive(Debug)]
pub(super) struct Tagged {
    pub(super) list: ReferrersList,
    pub(super) state: State,
}

/// Which list it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// There is no such tag.
    Absent,
    /// There is no list, but the registry takes the tag for the subject's digest.
    Subject,
    Listed {
        digest: Digest,
        etag: Option<HeaderValue>,
    },
}

/// What came of a write.
pub(super) enum Outcome {
    Written,
    /// It is no longer what it was when it was read.
    Overtaken,
    /// The registry does not take it. It may be for an entry whose manifest is not there.
    Refused(Error),
}

/// Why a list cannot be read or written.
pub(super) enum Trouble {
    /// The registry throttles or fails, or there was no answer.
    ForNow(Error),
    ForGood(Error),
}

impl Trouble {
    fn of_status(status: StatusCode, error: Error) -> Self {
        let is_failure = status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED;
        if is_failure || status == StatusCode::TOO_MANY_REQUESTS {
            Self::ForNow(error)
        } else {
            Self::ForGood(error)
        }
    }

    /// Waiting does not help if there are no credentials.
    fn of_connection(error: Error) -> Self {
        if error.kind() == ErrorKind::Failed { Self::ForNow(error) } else { Self::ForGood(error) }
    }

    pub(super) fn into_error(self) -> Error {
        match self {
            Self::ForNow(error) | Self::ForGood(error) => error,
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::ForGood(error)
    }
}

impl Registry {
    /// What is at a subject's tag.
    pub(super) async fn tagged(&self, subject: &Digest) -> std::result::Result<Tagged, Trouble> {
        let tag = Tag::of_referrers(subject);
        let asked = format!("reading the list of referrers {tag} of {self}");
        let request = accepting(Method::GET, self.url(&format!("manifests/{tag}"))?);
        // docker-registry answers 500 while somebody writes the tag. A patient session has tried often enough.
        let trouble =
            |trouble: Trouble| if self.session.is_patient() { trouble.into_error().into() } else { trouble };
        let response = self.session.send(self.pull(&asked, request)).await;
        let response = response.map_err(|error| trouble(Trouble::of_connection(error)))?;
        let status = response.status();
        if status == StatusCode::NOT_FOUND {
            return Ok(Tagged { list: ReferrersList::default(), state: State::Absent });
        }
        if !status.is_success() {
            return Err(trouble(Trouble::of_status(status, self.session.refused(&asked, response).await)));
        }
        let etag = response.headers().get(ETAG).cloned();
        let content_type = header(response.headers(), CONTENT_TYPE.as_str()).map(str::to_owned);
        let bytes = response.read(&asked).await.map_err(Trouble::of_connection)?;
        let digest = Digest::of(subject.algorithm(), &bytes);
        // GitLab resolves the tag `sha256-<hex>` as the digest (oras-go #1396).
        if digest == *subject {
            return Ok(Tagged { list: ReferrersList::default(), state: State::Subject });
        }
        let Some(list) = ReferrersList::parse(&bytes, content_type.as_deref()) else {
            let what = content_type.as_deref().unwrap_or("something without a Content-Type");
            let error = Error::failed(asked, format!("it is no list of referrers, but {what}"))
                .advise("it is left as it is: look what it is, and delete the tag if nobody needs it");
            return Err(error.into());
        };
        Ok(Tagged { list, state: State::Listed { digest, etag } })
    }

    pub(super) async fn put_list(
        &self,
        subject: &Digest,
        list: &ReferrersList,
        condition: Option<(HeaderName, HeaderValue)>,
    ) -> std::result::Result<Outcome, Trouble> {
        let asked = self.writing(subject);
        let bytes = Bytes::from(list.to_bytes());
        if bytes.len() > MANIFEST_LIMIT {
            let answer =
                format!("it would be {} bytes long, and registries take no more than 4 MiB", bytes.len());
            let advice = "delete referrers that nobody needs, or use a registry that has the referrers API";
            return Err(Error::failed(asked, answer).advise(advice).into());
        }
        let url = self.url(&format!("manifests/{}", Tag::of_referrers(subject)))?;
        let mut request = Request::new(Method::PUT, url).with_body(bytes);
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type::IMAGE_INDEX));
        headers.extend(condition);
        // Without an answer, it may be written all the same: the list is read again in any case.
        let response = self.session.send(self.push(&asked, request)).await.map_err(Trouble::of_connection)?;
        let status = response.status();
        if status.is_success() {
            return Ok(Outcome::Written);
        }
        if status == StatusCode::PRECONDITION_FAILED {
            return Ok(Outcome::Overtaken);
        }
        let error = self.session.refused(&asked, response).await;
        match status {
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY => {
                Ok(Outcome::Refused(error))
            }
            _ => Err(Trouble::of_status(status, error)),
        }
    }

    pub(super) fn writing(&self, subject: &Digest) -> String {
        format!("writing the list of referrers {} of {self}", Tag::of_referrers(subject))
    }
}

/// By which a registry that honours it takes a write only if the list is still this one (RFC 9110, section 13.1).
pub(super) fn condition(state: &State) -> Option<(HeaderName, HeaderValue)> {
    match state {
        State::Absent => Some((IF_NONE_MATCH, HeaderValue::from_static("*"))),
        State::Subject => None,
        // A weak one never matches (section 13.1.1).
        State::Listed { etag, .. } => {
            let strong = etag.clone().filter(|etag| !etag.as_bytes().starts_with(b"W/"));
            strong.map(|etag| (IF_MATCH, etag))
        }
    }
}
