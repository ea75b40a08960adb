//! The body of a request to attach something, as files: the whole body is one, or each part of `multipart/form-data`
//! (RFC 7578) is. Nothing is held but a frame: the next bytes are read when the registry has taken those before.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, ORIGIN};
use http::{HeaderMap, HeaderValue};
use http_body_util::BodyDataStream;
use multer::Multipart;

use super::query::{AttachQuery, file_name};
use crate::http::body::{Body, BodyError};
use crate::oci::media_type;
use crate::proxy::error::{BadAttachment, Error};

/// The media type of a file of which nothing is said.
const UNKNOWN_TYPE: &str = "application/octet-stream";
/// Files that one request can attach: each costs the registry an upload, and the manifest must stay small.
const MOST: usize = 100;
/// The longest head of a part, with what is left of the part before.
const HEAD_BYTES: u64 = 32 << 10;
/// The longest piece that the parser is given at once, or a head could be as long as a frame.
const PIECE_BYTES: usize = 16 << 10;
/// No limit: the content of a file.
const ANY: u64 = u64::MAX;

/// The files, one after the other.
pub(super) enum Files {
    Single(Option<File>),
    Parts { parts: Box<Multipart<'static>>, allowed: Allowed, seen: usize },
}

/// A file to attach.
pub(super) struct File {
    pub(super) media_type: String,
    /// Its name.
    pub(super) title: Option<String>,
    pub(super) content: Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>,
}

/// How much may still be read before the next part begins.
type Allowed = Arc<AtomicU64>;

/// How the body of a request is to be read, as its head says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Form {
    Single { media_type: String },
    Parts { boundary: String },
}

impl Form {
    /// What a request's head says of its body.
    pub(super) fn of(headers: &HeaderMap, query: &AttachQuery) -> Result<Self, BadAttachment> {
        let is_coded = |coding: &HeaderValue| !coding.as_bytes().eq_ignore_ascii_case(b"identity");
        if headers.get_all(CONTENT_ENCODING).iter().any(is_coded) {
            return Err(BadAttachment::Encoded);
        }
        let named = headers.get(CONTENT_TYPE).map(|named| String::from_utf8_lossy(named.as_bytes()));
        let named = named.as_deref().unwrap_or(UNKNOWN_TYPE);
        let essence = media_type::essence(named);
        if media_type::is_one(named, "application/x-www-form-urlencoded") {
            return Err(BadAttachment::Form);
        }
        if media_type::is_one(named, "multipart/form-data") {
            let of_one = [("title", query.title.is_some()), ("digest", query.digest.is_some())];
            if let Some((name, _)) = of_one.into_iter().find(|(_, is_given)| *is_given) {
                return Err(BadAttachment::OfOneFile(name));
            }
            let boundary = multer::parse_boundary(named);
            return Ok(Self::Parts { boundary: boundary.map_err(|error| malformed(&error))? });
        }
        Ok(Self::Single { media_type: media_type_of("Content-Type", essence)? })
    }
}

/// Whether a web page of another site sends this without having been let: for these types of content a browser asks nobody
/// first (Fetch, "CORS-safelisted request-header"), and sends the password that it remembers, or reaches a registry that
/// only this machine can. For all others it asks by OPTIONS, which the registry answers.
pub(super) fn is_unasked(headers: &HeaderMap) -> bool {
    let is_safelisted = headers.get(CONTENT_TYPE).is_none_or(|named| {
        let named = String::from_utf8_lossy(named.as_bytes());
        ["multipart/form-data", "text/plain", "application/x-www-form-urlencoded"]
            .iter()
            .any(|simple| media_type::is_one(&named, simple))
    });
    let is_of_another_site = match headers.get("sec-fetch-site") {
        Some(site) => !matches!(site.as_bytes(), b"same-origin" | b"none"),
        // A browser that does not say so. Others send no `Origin`.
        None => headers.contains_key(ORIGIN),
    };
    is_safelisted && is_of_another_site
}

impl Files {
    /// The files in a body of this form.
    pub(super) fn of(form: Form, query: &AttachQuery, body: Body) -> Self {
        match form {
            Form::Single { media_type } => {
                let content = BodyDataStream::new(body).map(|data| data.map_err(Error::request_body));
                let title = query.title.clone();
                Self::Single(Some(File { media_type, title, content: Box::pin(content) }))
            }
            Form::Parts { boundary } => {
                let allowed = Allowed::new(AtomicU64::new(HEAD_BYTES));
                let pieces = Pieces {
                    body: BodyDataStream::new(body),
                    rest: Bytes::new(),
                    allowed: Arc::clone(&allowed),
                    has_given: false,
                };
                Self::Parts { parts: Box::new(Multipart::new(pieces, boundary)), allowed, seen: 0 }
            }
        }
    }

    /// The next file, after the one before was read to its end; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<File>, Error> {
        let (parts, allowed, seen) = match self {
            Self::Single(file) => return Ok(file.take()),
            Self::Parts { parts, allowed, seen } => (parts, allowed, seen),
        };
        allowed.store(HEAD_BYTES, Ordering::Relaxed);
        let Some(part) = parts.next_field().await.map_err(failed)? else { return Ok(None) };
        *seen += 1;
        if *seen > MOST {
            return Err(BadAttachment::TooMany(MOST).into());
        }
        allowed.store(ANY, Ordering::Relaxed);
        let media_type =
            part.headers().get(CONTENT_TYPE).map(|named| String::from_utf8_lossy(named.as_bytes()));
        let media_type = media_type.as_deref().map_or(UNKNOWN_TYPE, media_type::essence);
        let media_type = media_type_of("the Content-Type of a part", media_type)?;
        // Browsers send no name for what is no file, and some clients send a path.
        let name = part.file_name().and_then(|name| name.rsplit(['/', '\\']).next());
        let title = name.filter(|name| !name.is_empty()).map(file_name).transpose()?;
        let content = part.map(|data| data.map_err(failed));
        Ok(Some(File { media_type, title, content: Box::pin(content) }))
    }
}

/// The media type of a file, without parameters.
fn media_type_of(place: &'static str, essence: &str) -> Result<String, BadAttachment> {
    if media_type::is_valid(essence) {
        Ok(essence.to_owned())
    } else {
        Err(BadAttachment::NotAType { place, given: essence.to_owned() })
    }
}

/// A body in pieces, and no more of it than is allowed.
struct Pieces {
    body: BodyDataStream<Body>,
    rest: Bytes,
    allowed: Allowed,
    /// Whether a piece was given since the parser was last made to pause. It keeps all that it gets until there is no more
    /// at the moment: of a client that is quicker than the registry, that would be the whole body.
    has_given: bool,
}

/// Why the pieces end early.
#[derive(Debug, thiserror::Error)]
enum PieceError {
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error("the head of a part is longer than {HEAD_BYTES} bytes")]
    LongHead,
}

impl Stream for Pieces {
    type Item = Result<Bytes, PieceError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.has_given) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        while self.rest.is_empty() {
            match ready!(self.body.poll_next_unpin(cx)) {
                Some(Ok(data)) => self.rest = data,
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => return Poll::Ready(None),
            }
        }
        let length = self.rest.len().min(PIECE_BYTES);
        let piece = self.rest.split_to(length);
        let allowed = self.allowed.load(Ordering::Relaxed);
        if allowed != ANY {
            match allowed.checked_sub(length as u64) {
                Some(left) => self.allowed.store(left, Ordering::Relaxed),
                None => return Poll::Ready(Some(Err(PieceError::LongHead))),
            }
        }
        self.has_given = true;
        Poll::Ready(Some(Ok(piece)))
    }
}

/// What reading a part failed of: the body, or its form.
fn failed(error: multer::Error) -> Error {
    let multer::Error::StreamReadFailed(source) = error else { return malformed(&error).into() };
    match source.downcast::<PieceError>() {
        Ok(error) => match *error {
            PieceError::Body(error) => Error::request_body(error),
            error @ PieceError::LongHead => BadAttachment::Multipart(error.to_string()).into(),
        },
        Err(other) => BadAttachment::Multipart(other.to_string()).into(),
    }
}

fn malformed(error: &multer::Error) -> BadAttachment {
    BadAttachment::Multipart(error.to_string())
}
