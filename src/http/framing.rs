//! Ambiguous heads: messages that another reader may take for something else than refshim does (RFC 9112, sections
//! 6.3 and 11).
//!
//! A request is rejected (request smuggling) if it has no `Host` or several, or several `Content-Length`s that
//! differ. hyper 1.12 does more by itself. In HTTP/1.1 it rejects lengths that differ or are not numbers, a transfer
//! coding that does not end in `chunked`, and lines that are not fields. Of a request with both `Transfer-Encoding`
//! and `Content-Length` it removes the length, which is then not passed on either, and closes the connection after it
//! (RFC 9112, section 6.1): the bytes that something in front of refshim may have taken for the next request are not
//! read.
//!
//! An answer is rejected if its end is not clear (response splitting): a cache or client behind refshim could take
//! the bytes after the end that it sees for the answer to somebody else's request.

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Version};

/// Why a request is ambiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ambiguity {
    /// It has lengths that differ.
    #[error("the request has several Content-Lengths")]
    Lengths,
    /// It has no `Host`, or several (RFC 9112, section 3.2).
    #[error("the request must have one Host")]
    Host,
}

/// Why the end of an answer is not clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFraming {
    /// Its lengths differ, or one is not a number.
    #[error("the registry's answer has an invalid Content-Length")]
    Length,
    /// It has another transfer coding than `chunked`, which refshim cannot decode.
    #[error("the registry's answer has an invalid Transfer-Encoding")]
    Coding,
}

/// The lengths of a message differ, or one is not a number.
#[derive(Debug)]
struct InvalidLength;

/// Rejects an ambiguous request; leaves one length where several are the same.
///
/// # Errors
/// It is ambiguous.
pub fn check_request<B>(request: &mut Request<B>) -> Result<(), Ambiguity> {
    one_host(request)?;
    one_length(request)
}

/// Rejects an answer whose end is not clear. Leaves one length, or none beside a transfer coding, which takes
/// precedence (RFC 9112, section 6.3).
///
/// # Errors
/// The lengths differ, or the body cannot be decoded.
pub fn check_answer(headers: &mut HeaderMap) -> Result<(), InvalidFraming> {
    if !headers.contains_key(TRANSFER_ENCODING) {
        return unify_lengths(headers).map_err(|InvalidLength| InvalidFraming::Length);
    }
    if !elements(headers, &TRANSFER_ENCODING).eq(["chunked"]) {
        return Err(InvalidFraming::Coding);
    }
    headers.remove(CONTENT_LENGTH);
    Ok(())
}

fn one_host<B>(request: &Request<B>) -> Result<(), Ambiguity> {
    let hosts = request.headers().get_all(HOST).iter().count();
    // HTTP/1.0 knows no Host, and HTTP/2 has `:authority` instead.
    if hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11) {
        return Err(Ambiguity::Host);
    }
    Ok(())
}

/// Needed for HTTP/2, where h2 looks at the first length alone. In HTTP/1.1 hyper has done it before.
fn one_length<B>(request: &mut Request<B>) -> Result<(), Ambiguity> {
    unify_lengths(request.headers_mut()).map_err(|InvalidLength| Ambiguity::Lengths)
}

/// Leaves one length where all are the same, in several fields or as a list in one (RFC 9110, section 8.6).
fn unify_lengths(headers: &mut HeaderMap) -> Result<(), InvalidLength> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else { return Ok(()) };
    if lengths.next().is_none() && length(first.as_bytes()).is_some() {
        return Ok(());
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter().flat_map(|value| {
        value.as_bytes().split(|byte| *byte == b',').map(|element| length(element.trim_ascii()))
    });
    let first = lengths.next().flatten().ok_or(InvalidLength)?;
    if lengths.any(|length| length != Some(first)) {
        return Err(InvalidLength);
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(first));
    Ok(())
}

/// A number of digits alone; Rust's parser would accept a sign as well.
fn length(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()
}

/// The elements of a list, in lower case.
fn elements(headers: &HeaderMap, name: &HeaderName) -> impl Iterator<Item = String> {
    let values = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?"));
    values.flat_map(|value| value.split(',')).map(|element| element.trim().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_lengths(lengths: &[&str], expected: Result<&[&str], Ambiguity>) {
        let request = Request::builder();
        let request = lengths.iter().fold(request, |request, length| request.header(CONTENT_LENGTH, *length));
        let mut request = request.body(()).unwrap();
        let unified = one_length(&mut request);
        let left = request.headers().get_all(CONTENT_LENGTH);
        match expected {
            Ok(expected) => {
                assert_eq!(unified, Ok(()), "{lengths:?}");
                assert!(left.iter().eq(expected), "{lengths:?}");
            }
            Err(expected) => assert_eq!(unified, Err(expected), "{lengths:?}"),
        }
    }

    #[test]
    fn equal_lengths_are_one() {
        check_lengths(&[], Ok(&[]));
        check_lengths(&["5"], Ok(&["5"]));
        check_lengths(&["5", "5", "5"], Ok(&["5"]));
        check_lengths(&["5", "6"], Err(Ambiguity::Lengths));
        check_lengths(&["5", "5", "6"], Err(Ambiguity::Lengths));
    }

    #[track_caller]
    fn check_hosts(version: Version, hosts: &[&str], expected: Result<(), Ambiguity>) {
        let request = Request::builder().version(version);
        let request =
            hosts.iter().fold(request, |request, host| request.header(HOST, *host)).body(()).unwrap();
        assert_eq!(one_host(&request), expected, "{version:?} {hosts:?}");
    }

    #[test]
    fn a_request_of_http_1_1_has_one_host_and_no_other_has_two() {
        check_hosts(Version::HTTP_11, &["a"], Ok(()));
        check_hosts(Version::HTTP_11, &[], Err(Ambiguity::Host));
        check_hosts(Version::HTTP_11, &["a", "a"], Err(Ambiguity::Host));
        check_hosts(Version::HTTP_10, &[], Ok(()));
        check_hosts(Version::HTTP_10, &["a", "b"], Err(Ambiguity::Host));
        check_hosts(Version::HTTP_2, &[], Ok(()));
    }

    #[track_caller]
    fn check_framing(name: &str, values: &[&str], expected: Result<Option<&str>, InvalidFraming>) {
        let name: http::HeaderName = name.parse().unwrap();
        let mut headers: HeaderMap = [(CONTENT_LENGTH, HeaderValue::from(7))].into_iter().collect();
        if name == CONTENT_LENGTH {
            headers.clear();
        }
        for value in values {
            headers.append(&name, value.parse().unwrap());
        }
        let unified = check_answer(&mut headers);
        let lengths: Vec<_> = headers.get_all(CONTENT_LENGTH).iter().map(|it| it.to_str().unwrap()).collect();
        match (unified, expected) {
            (Ok(()), Ok(expected)) => assert_eq!(lengths, Vec::from_iter(expected), "{name} {values:?}"),
            (unified, expected) => assert_eq!(unified, expected.map(|_| ()), "{name} {values:?}"),
        }
    }

    #[test]
    fn lengths_that_agree_are_one_and_others_are_none() {
        let invalid = Err(InvalidFraming::Length);
        for (values, expected) in [
            (&["5"][..], Ok(Some("5"))),
            (&["5, 5"], Ok(Some("5"))),
            (&["5,5", "5"], Ok(Some("5"))),
            (&["5", "5"], Ok(Some("5"))),
            (&["5, 6"], invalid),
            (&["5", "6"], invalid),
            (&["5,"], invalid),
            (&["+5"], invalid),
            (&["-5"], invalid),
            (&["0x5"], invalid),
            (&["5 5"], invalid),
            (&["", "5"], invalid),
            (&["18446744073709551616"], invalid),
        ] {
            check_framing("content-length", values, expected);
        }
    }

    #[test]
    fn chunks_come_before_a_length_and_no_other_coding_is_known() {
        let invalid = Err(InvalidFraming::Coding);
        check_framing("transfer-encoding", &["chunked"], Ok(None));
        check_framing("transfer-encoding", &["Chunked"], Ok(None));
        for values in
            [&["gzip, chunked"][..], &["chunked, chunked"], &["chunked", "chunked"], &["gzip"], &["xchunked"]]
        {
            check_framing("transfer-encoding", values, invalid);
        }
    }
}
