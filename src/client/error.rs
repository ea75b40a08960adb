//! Why a command failed: what was asked of whom, what came back, and what to do about it.

use std::fmt;
use std::io;

use http::StatusCode;
use hyper_util::client::legacy;
use serde::Deserialize;
use url::Url;

use crate::tls::{MixedUp, ProxyError};

/// What a client's command gives or fails with.
pub type Result<T> = std::result::Result<T, Error>;

/// Which sort of failure it is; the exit code follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Something did not work.
    Failed,
    /// What was asked for cannot be meant.
    Usage,
    /// What was asked for is not there.
    NotFound,
    /// The credentials were rejected.
    Denied,
}

/// A failure, told in the words of the one who asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    asked: String,
    answer: String,
    advice: Option<String>,
}

impl Error {
    /// `asked` is what was tried ("reading hello:v1 at localhost:5000"), `answer` what came of it.
    pub fn new(kind: ErrorKind, asked: impl Into<String>, answer: impl Into<String>) -> Self {
        Self { kind, asked: asked.into(), answer: answer.into(), advice: None }
    }

    /// Something did not work.
    pub fn failed(asked: impl Into<String>, answer: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, asked, answer)
    }

    /// The same failure, with what to do about it.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// The same failure, with the place where it was.
    pub(super) fn at(mut self, place: &impl fmt::Display) -> Self {
        self.asked = format!("{} of {place}", self.asked);
        self
    }

    /// A file or directory that cannot be used.
    pub fn io(asked: impl Into<String>, error: &io::Error) -> Self {
        let of = error.kind();
        let kind = if of == io::ErrorKind::NotFound {
            ErrorKind::NotFound
        } else if of == io::ErrorKind::PermissionDenied {
            ErrorKind::Denied
        } else {
            ErrorKind::Failed
        };
        let failed = Self::new(kind, asked, error.to_string());
        if matches!(
            of,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        ) {
            failed.advise("make room; the same command again goes on from where this one ended")
        } else {
            failed
        }
    }

    /// A registry's answer that is not the one hoped for.
    pub(super) fn answered(asked: impl Into<String>, status: StatusCode, body: &[u8]) -> Self {
        let kind = match status {
            StatusCode::NOT_FOUND => ErrorKind::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::Denied,
            _ => ErrorKind::Failed,
        };
        let answered = Self::new(kind, asked, format!("answered {status}{}", told(body)));
        match status {
            StatusCode::NOT_FOUND => {
                answered.advise("check the name; a registry also hides what you may not see")
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                answered.advise("log in (docker login), or give --username and --password-stdin")
            }
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => answered
                .advise("give the proxy's name and password in its URL: http://NAME:PASSWORD@HOST:PORT"),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                answered.advise("wait a moment and retry")
            }
            _ => answered,
        }
    }

    /// Plain HTTP and TLS were mixed up.
    pub(super) fn mixed_up(asked: impl Into<String>, mixed_up: &MixedUp) -> Self {
        let failed = Self::failed(asked, mixed_up.to_string());
        match mixed_up {
            MixedUp::SpeaksPlain(_) => failed.advise("give --plain-http, without --ca-file and --insecure"),
            MixedUp::SpeaksTls(_) => failed.advise(
                "leave out --plain-http; for a registry on this machine itself give --ca-file FILE or --insecure",
            ),
        }
    }

    /// No answer of this URL at all, or one that broke off.
    pub(super) fn unreachable(
        asked: impl Into<String>,
        url: &Url,
        error: &(dyn std::error::Error + 'static),
    ) -> Self {
        if let Some(mixed_up) = MixedUp::of(&url.origin().ascii_serialization(), error) {
            return Self::mixed_up(asked, &mixed_up);
        }
        if let Some(through_proxy) = causes(error).find_map(|cause| cause.downcast_ref::<ProxyError>()) {
            return Self::failed(asked, format!("{through_proxy}: {}", innermost(error))).advise(
                "is the proxy right (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY: http://NAME:PASSWORD@HOST:PORT)? \
                 Hosts in NO_PROXY are connected to without it",
            );
        }
        let failed = Self::failed(asked, innermost(error));
        if error.downcast_ref().is_some_and(legacy::Error::is_connect) {
            failed.advise("is it up, and is the connection right (--plain-http, --ca-file, --insecure)?")
        } else {
            failed.advise("retry; what is there already is not sent twice")
        }
    }

    /// Which sort of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What to do about it, where that is known.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.advice.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.asked, self.answer)
    }
}

impl std::error::Error for Error {}

#[derive(Deserialize)]
struct Told {
    errors: Vec<ToldError>,
}

#[derive(Deserialize)]
struct ToldError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The first error of an OCI error body; nothing of a body that is none.
fn told(body: &[u8]) -> String {
    let told = serde_json::from_slice::<Told>(body).ok();
    let first = told.and_then(|told| told.errors.into_iter().next());
    first.map(|error| format!(", {}: {}", error.code, error.message)).unwrap_or_default()
}

/// The cause that says most: the last of the chain.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    causes(error).last().unwrap_or(error).to_string()
}

/// An error and what it comes from, the outermost first.
fn causes<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'e (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |cause| cause.source())
}
