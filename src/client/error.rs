//! Why a command failed: what was tried, what came of it, and what the user can do.

use std::fmt;
use std::io;

use http::StatusCode;
use hyper_util::client::legacy;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::tls::{MixedUp, ProxyError};

/// The result of a client's command.
pub type Result<T> = std::result::Result<T, Error>;

/// The kind of failure, from which the exit code follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// Any other failure.
    Failed,
    /// The command line is wrong.
    Usage,
    /// There is no such image, tag or referrer.
    NotFound,
    /// What the registry gave is not what it is said to be, and will not be another time.
    Malformed,
    /// The credentials were rejected.
    Denied,
}

/// A failure, in terms of what the user asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

    /// A failure of no particular kind.
    pub fn failed(asked: impl Into<String>, answer: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, asked, answer)
    }

    /// The same failure, with what to do about it.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// The same failure, with the store where it happened.
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

    /// An error status of a registry.
    pub(super) fn answered(asked: impl Into<String>, status: StatusCode, body: &[u8]) -> Self {
        let kind = match status {
            StatusCode::NOT_FOUND => ErrorKind::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::Denied,
            _ => ErrorKind::Failed,
        };
        let answered = Self::new(kind, asked, format!("answered {status}{}", told(body)));
        match status {
            // Registries answer 404 also for what a user may not see, so as not to reveal that it exists.
            StatusCode::NOT_FOUND => {
                answered.advise("check the name; a registry also hides what you may not see")
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => answered
                .advise("log in (refshim login, docker login), or give --username and --password-stdin"),
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

    /// No answer from this URL, or one that broke off.
    pub(super) fn unreachable(
        asked: impl Into<String>,
        url: &Url,
        error: &(dyn std::error::Error + 'static),
    ) -> Self {
        // The libraries' own errors for it name neither HTTP nor TLS.
        if let Some(mixed_up) = MixedUp::of(&url.origin().ascii_serialization(), error) {
            return Self::mixed_up(asked, &mixed_up);
        }
        // Before the registry is blamed: it was never reached.
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

    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What the user can do about it, if that is known.
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

/// The first error of an OCI error body; empty for any other body (proxies answer with HTML).
fn told(body: &[u8]) -> String {
    let told = serde_json::from_slice::<Told>(body).ok();
    let first = told.and_then(|told| told.errors.into_iter().next());
    first.map(|error| format!(", {}: {}", error.code, error.message)).unwrap_or_default()
}

/// The last cause of the chain: the ones before it only say that something failed.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    causes(error).last().unwrap_or(error).to_string()
}

/// An error and its causes, outermost first.
fn causes<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'e (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |cause| cause.source())
}
