//! Rejects ambiguous requests (request smuggling): no `Host` or several, several `Content-Length`s that differ.
//!
//! hyper 1.12 does more by itself. In HTTP/1.1 it rejects lengths that differ or are no numbers, a transfer coding
//! that does not end in `chunked`, and lines that are no fields. Of a request with both `Transfer-Encoding` and
//! `Content-Length` it takes the length out, which is then not passed on either, and closes the connection behind it
//! (RFC 9112, section 6.1): what something in front of refshim may have taken for the next request is not read.

use http::header::{CONTENT_LENGTH, HOST};
use http::{Request, Version};

/// How a request can be read in two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ambiguity {
    /// It has lengths that differ.
    #[error("the request has several Content-Lengths")]
    Lengths,
    /// It names no host or several (RFC 9112, section 3.2).
    #[error("the request must have one Host")]
    Host,
}

/// Rejects a request that can be read in two ways; leaves one length where several are the same.
///
/// # Errors
/// It is ambiguous.
pub fn check<B>(request: &mut Request<B>) -> Result<(), Ambiguity> {
    one_host(request)?;
    unify_lengths(request)
}

fn one_host<B>(request: &Request<B>) -> Result<(), Ambiguity> {
    let hosts = request.headers().get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11) {
        return Err(Ambiguity::Host);
    }
    Ok(())
}

/// hyper does it in HTTP/1.1, and nobody in HTTP/2.
fn unify_lengths<B>(request: &mut Request<B>) -> Result<(), Ambiguity> {
    let mut lengths = request.headers().get_all(CONTENT_LENGTH).iter();
    let (Some(first), Some(second)) = (lengths.next(), lengths.next()) else { return Ok(()) };
    if second != first || lengths.any(|length| length != first) {
        return Err(Ambiguity::Lengths);
    }
    let length = first.clone();
    request.headers_mut().insert(CONTENT_LENGTH, length);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_lengths(lengths: &[&str], expected: Result<&[&str], Ambiguity>) {
        let request = Request::builder();
        let request = lengths.iter().fold(request, |request, length| request.header(CONTENT_LENGTH, *length));
        let mut request = request.body(()).unwrap();
        let unified = unify_lengths(&mut request);
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
}
