//! Recognises TLS sent to a plain HTTP port and plain HTTP sent to a TLS port. The errors of the libraries name
//! neither (`InvalidContentType`, "invalid HTTP version parsed"), and this is the most frequent mistake in a URL.

use std::error::Error;
use std::io;

use rustls::InvalidMessage;

/// What TLS servers answer to a plain HTTP request: Go, nginx, Apache, refshim itself.
const TOLD: [&str; 4] = ["https server", "https port", "ssl-enabled server port", "speaks tls"];

/// The URL has the wrong one of http and https.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MixedUp {
    /// TLS was sent to a plain HTTP port.
    #[error("{} was spoken to in TLS, but it speaks plain HTTP: its URL is {}", .0, .0.replacen("https:", "http:", 1))]
    SpeaksPlain(String),
    /// Plain HTTP was sent to a TLS port.
    #[error("{} was spoken to in plain HTTP, but it speaks TLS: its URL is {}", .0, .0.replacen("http:", "https:", 1))]
    SpeaksTls(String),
}

impl MixedUp {
    /// Recognises the mistake in an error of a connection to this URL.
    #[must_use]
    pub fn of(url: &str, error: &(dyn Error + 'static)) -> Option<Self> {
        if url.starts_with("https:") {
            has_cause(error, is_no_tls).then(|| Self::SpeaksPlain(url.to_owned()))
        } else {
            has_cause(error, is_no_http).then(|| Self::SpeaksTls(url.to_owned()))
        }
    }

    /// Recognises the mistake in a TLS server's answer to plain HTTP.
    #[must_use]
    pub fn told(url: &str, status: http::StatusCode, body: &[u8]) -> Option<Self> {
        let body = String::from_utf8_lossy(body).to_lowercase();
        let told = url.starts_with("http:")
            && status == http::StatusCode::BAD_REQUEST
            && TOLD.iter().any(|told| body.contains(told));
        told.then(|| Self::SpeaksTls(url.to_owned()))
    }
}

/// The first bytes that TLS received are not a TLS record.
fn is_no_tls(error: &(dyn Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)))
}

/// The first bytes of the answer are not an HTTP version; those of a TLS alert are not.
fn is_no_http(error: &(dyn Error + 'static)) -> bool {
    let parse_error = error.downcast_ref::<hyper::Error>().filter(|error| error.is_parse());
    parse_error.is_some_and(|error| error.to_string().contains("invalid HTTP version"))
}

fn has_cause(error: &(dyn Error + 'static), is_it: fn(&(dyn Error + 'static)) -> bool) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        if is_it(cause) {
            return true;
        }
        // The `source` of an I/O error is that of the error it wraps, so the wrapped error itself has to be looked
        // at.
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| cause.source());
    }
    false
}
