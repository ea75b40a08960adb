//! The access log: a line for each request, written when its answer was sent, broke off, or was given up because the
//! client went away.
//!
//! What a client wrote (path, user agent) is cut and escaped, so that it can neither forge a line nor control a
//! terminal. The query is left out, which may hold tokens, and so is every other header field.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::header::USER_AGENT;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use jiff::Timestamp;
use serde::Serialize;

use super::request_log::shown_id;
use crate::config::LogFormat;
use crate::http::body::{Body, Sent};
use crate::http::route::RouteClass;
use crate::proxy::upstream::Upstream;
use crate::telemetry::LineLog;

/// The most bytes of a path and of a user agent that are written.
const PATH_BYTES: usize = 2048;
const AGENT_BYTES: usize = 512;

/// The access log.
#[derive(Debug)]
pub(super) struct AccessLog {
    lines: Arc<LineLog>,
    format: LogFormat,
}

/// The line of a request, written when it is dropped.
#[derive(Debug)]
pub(super) struct AccessLine {
    log: Arc<AccessLog>,
    began: Instant,
    client: IpAddr,
    method: Method,
    uri: Uri,
    version: Version,
    agent: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    class: RouteClass,
    upstream: Option<Arc<Upstream>>,
    /// None if the client went away before there was one.
    status: Option<StatusCode>,
    sent: Sent,
}

/// The fields of a line, by their names in JSON.
#[derive(Debug, Serialize)]
struct Fields<'a> {
    time: String,
    client: IpAddr,
    method: &'a str,
    path: String,
    protocol: &'static str,
    status: Option<u16>,
    bytes: u64,
    seconds: f64,
    upstream: Option<&'a str>,
    class: &'static str,
    agent: Option<String>,
    request_id: &'a str,
    complete: bool,
}

impl AccessLog {
    /// Writes lines of this format.
    pub(super) fn new(lines: Arc<LineLog>, format: LogFormat) -> Self {
        Self { lines, format }
    }

    /// Begins the line of a request.
    pub(super) fn begin<B>(
        self: &Arc<Self>,
        client: IpAddr,
        request: &Request<B>,
        request_id: Option<&HeaderValue>,
    ) -> Box<AccessLine> {
        Box::new(AccessLine {
            log: Arc::clone(self),
            began: Instant::now(),
            client,
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            agent: request.headers().get(USER_AGENT).cloned(),
            request_id: request_id.cloned(),
            class: RouteClass::Other,
            upstream: None,
            status: None,
            sent: Sent::default(),
        })
    }
}

impl AccessLine {
    /// Which upstream the request is for, and what it asks for.
    pub(super) fn selected(&mut self, upstream: &Arc<Upstream>, class: RouteClass) {
        (self.upstream, self.class) = (Some(Arc::clone(upstream)), class);
    }

    /// Lets the line wait for the end of this answer's body.
    pub(super) fn answered(mut self: Box<Self>, response: &mut Response<Body>) {
        self.status = Some(response.status());
        response.body_mut().when_sent(move |sent| self.sent = sent);
    }

    fn fields(&self) -> Fields<'_> {
        let method = self.method.as_str();
        let agent = self.agent.as_ref().map(HeaderValue::as_bytes);
        Fields {
            time: String::new(),
            client: self.client,
            // A method may be any token; there is no longer one than this.
            method: method.get(..32).unwrap_or(method),
            path: printable(self.uri.path().as_bytes(), PATH_BYTES),
            protocol: protocol(self.version),
            status: self.status.map(|status| status.as_u16()),
            bytes: self.sent.bytes,
            seconds: rounded(self.began.elapsed().as_secs_f64()),
            upstream: self.upstream.as_ref().map(|upstream| upstream.name().as_str()),
            class: self.class.as_str(),
            agent: agent.map(|agent| printable(agent, AGENT_BYTES)),
            request_id: shown_id(self.request_id.as_ref()),
            complete: self.sent.is_whole,
        }
    }

    fn line(&self) -> Option<String> {
        let mut fields = self.fields();
        let now = Timestamp::now();
        let mut line = match self.log.format {
            LogFormat::Json => {
                fields.time = now.to_string();
                serde_json::to_string(&fields).ok()?
            }
            LogFormat::Text => {
                fields.time = now.strftime("%d/%b/%Y:%H:%M:%S +0000").to_string();
                combined(&fields).ok()?
            }
        };
        line.push('\n');
        Some(line)
    }
}

impl Drop for AccessLine {
    fn drop(&mut self) {
        if let Some(line) = self.line() {
            self.log.lines.write(line);
        }
    }
}

/// The combined log format of web servers, with fields of refshim's own behind it.
fn combined(fields: &Fields<'_>) -> Result<String, std::fmt::Error> {
    let Fields { time, client, method, path, protocol, bytes, seconds, class, request_id, complete, .. } =
        fields;
    let mut line = format!("{client} - - [{time}] \"{method} {path} {protocol}\" ");
    match fields.status {
        Some(status) => write!(line, "{status}")?,
        None => line.push('-'),
    }
    let (agent, upstream) = (fields.agent.as_deref().unwrap_or("-"), fields.upstream.unwrap_or("-"));
    write!(
        line,
        " {bytes} \"-\" \"{agent}\" upstream={upstream} class={class} seconds={seconds} request_id={request_id} \
         complete={complete}"
    )?;
    Ok(line)
}

/// The text as far as it is printable ASCII without quotes and backslashes; every other byte as `\xNN`, as nginx writes
/// it. What is longer is cut.
fn printable(text: &[u8], most: usize) -> String {
    let mut printable = String::new();
    for byte in text.get(..most).unwrap_or(text) {
        match byte {
            b' '..=b'~' if !matches!(byte, b'"' | b'\\') => printable.push(char::from(*byte)),
            // Writing to a String cannot fail.
            _ => write!(printable, "\\x{byte:02X}").unwrap_or_default(),
        }
    }
    printable
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

/// To microseconds.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_wrote_stays_in_its_place() {
        assert_eq!(printable(b"docker/27.1 (linux)", 512), "docker/27.1 (linux)");
        assert_eq!(printable(b"a\" 200\n\x1b[2J\\", 512), r"a\x22 200\x0A\x1B[2J\x5C");
        assert_eq!(printable("ü\u{202e}".as_bytes(), 512), r"\xC3\xBC\xE2\x80\xAE");
        assert_eq!(printable(b"abc", 2), "ab");
    }

    #[test]
    fn a_line_of_text_is_in_the_combined_format() {
        let fields = Fields {
            time: "27/Nov/2026:12:00:00 +0000".to_owned(),
            client: "192.0.2.1".parse().unwrap(),
            method: "GET",
            path: "/v2/".to_owned(),
            protocol: "HTTP/1.1",
            status: None,
            bytes: 0,
            seconds: 0.25,
            upstream: None,
            class: "base",
            agent: Some("curl/8".to_owned()),
            request_id: "7",
            complete: false,
        };
        let expected = "192.0.2.1 - - [27/Nov/2026:12:00:00 +0000] \"GET /v2/ HTTP/1.1\" - 0 \"-\" \"curl/8\" \
             upstream=- class=base seconds=0.25 request_id=7 complete=false";
        assert_eq!(combined(&fields).unwrap(), expected);
    }
}
