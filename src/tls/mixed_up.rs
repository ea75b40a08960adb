//! TLS spoken to what speaks plain HTTP, and the other way round: each side then gets bytes that mean nothing to it,
//! and its error names neither.

use std::error::Error;
use std::io;

use rustls::InvalidMessage;

/// What servers that speak TLS answer, in plain HTTP, to a plain request: Go, nginx, Apache, refshim itself.
const TOLD: [&str; 4] = ["https server", "https port", "ssl-enabled server port", "speaks tls"];

/// The answer of a server that was spoken to in the other one of the two.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MixedUp {
    /// It was spoken to in TLS.
    #[error("{} was spoken to in TLS, but it speaks plain HTTP: its URL is {}", .0, .0.replacen("https:", "http:", 1))]
    SpeaksPlain(String),
    /// It was spoken to in plain HTTP.
    #[error("{} was spoken to in plain HTTP, but it speaks TLS: its URL is {}", .0, .0.replacen("http:", "https:", 1))]
    SpeaksTls(String),
}

impl MixedUp {
    /// What an error in speaking to this URL comes from, if it comes from that.
    #[must_use]
    pub fn of(url: &str, error: &(dyn Error + 'static)) -> Option<Self> {
        if url.starts_with("https:") {
            has_cause(error, is_no_tls).then(|| Self::SpeaksPlain(url.to_owned()))
        } else {
            has_cause(error, is_no_http).then(|| Self::SpeaksTls(url.to_owned()))
        }
    }

    /// What this URL answered is that, if it is the complaint of a server that speaks TLS.
    #[must_use]
    pub fn told(url: &str, status: http::StatusCode, body: &[u8]) -> Option<Self> {
        let body = String::from_utf8_lossy(body).to_lowercase();
        let told = url.starts_with("http:")
            && status == http::StatusCode::BAD_REQUEST
            && TOLD.iter().any(|told| body.contains(told));
        told.then(|| Self::SpeaksTls(url.to_owned()))
    }
}

/// The first bytes of a TLS answer are text.
fn is_no_tls(error: &(dyn Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)))
}

/// The first bytes of an HTTP/1.1 answer are not its version, as those of a TLS alert are not.
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
        // An I/O error passes over what it is made of when it is asked for its source.
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| cause.source());
    }
    false
}
