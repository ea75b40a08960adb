//! Paths as text: made for the API, and compared with each percent-encoding decoded once. Prefixes are matched by the
//! same decoding as routes; otherwise a request could be recorded for one repository and sent to another.

use std::fmt::Display;

use crate::oci::{Digest, RepositoryName};

/// What the path of each request to a registry's API begins with (distribution-spec, section "Endpoints").
pub const API: &str = "/v2/";

/// `/v2/<name>/manifests/<ref>`; `manifest` is a tag or a digest.
#[must_use]
pub fn manifest_path(repository: &RepositoryName, manifest: &impl Display) -> String {
    format!("{API}{repository}/manifests/{manifest}")
}

/// `/v2/<name>/blobs/<digest>`
#[must_use]
pub fn blob_path(repository: &RepositoryName, digest: &Digest) -> String {
    format!("{API}{repository}/blobs/{digest}")
}

/// `/v2/<name>/manifests/<digest>/references`
#[must_use]
pub fn references_path(repository: &RepositoryName, subject: &Digest) -> String {
    [&manifest_path(repository, subject), "/references"].concat()
}

/// `/v2/<name>/referrers/<digest>`
#[must_use]
pub fn referrers_path(repository: &RepositoryName, subject: &Digest) -> String {
    format!("{API}{repository}/referrers/{subject}")
}

/// Whether a raw path is that of `POST /v2/<name>/blobs/uploads/`, with or without its last slash.
#[must_use]
pub fn begins_upload(path: &str) -> bool {
    path.trim_end_matches('/').ends_with("/blobs/uploads")
}

/// The rest of a raw path after `prefix`, still encoded; `None` if it does not begin with `prefix` in any encoding.
#[must_use]
pub fn behind<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let mut rest = path;
    for expected in prefix.bytes() {
        let (byte, behind) = first_byte(rest)?;
        if byte != expected {
            return None;
        }
        rest = behind;
    }
    Some(rest)
}

/// The first byte of a raw path, decoded, and the rest.
fn first_byte(path: &str) -> Option<(u8, &str)> {
    if let [b'%', high, low, ..] = path.as_bytes()
        && let (Some(high), Some(low)) = (hex(*high), hex(*low))
    {
        return Some((high << 4 | low, path.get(3..)?));
    }
    Some((*path.as_bytes().first()?, path.get(1..)?))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Whether a raw path belongs to the registry's API. Only such paths are below an upstream's base path.
#[must_use]
pub fn is_api(path: &str) -> bool {
    behind(path, "/v2")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('?') || behind(rest, "/").is_some())
}

/// Whether a raw path has a `.` or `..` segment, in any encoding (RFC 3986, section 5.2.4). The upstream may resolve
/// it, and the path then leaves the prefix that it seems to be under.
#[must_use]
pub fn has_dot_segment(path: &str) -> bool {
    let is_dots = |segment: &[u8]| matches!(segment, b"." | b"..");
    if path.contains('%') {
        let decoded: Vec<u8> = percent_encoding::percent_decode_str(path).collect();
        return decoded.split(|byte| *byte == b'/').any(is_dots);
    }
    path.split('/').any(|segment| is_dots(segment.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_found_in_any_encoding_and_undone_once() {
        for (path, prefix, expected) in [
            ("/v2/a", "/v2/", Some("a")),
            ("/%76%32/a%2Fb", "/v2/", Some("a%2Fb")),
            ("%2fv2%2Fa", "/v2/", Some("a")),
            ("/v2", "/v2/", None),
            ("/%2576", "/v", None),
            ("/%2576", "/%7", Some("6")),
            ("/%zz", "/%z", Some("z")),
            ("/%7", "/%", Some("7")),
            ("/\u{e9}", "/", Some("\u{e9}")),
            ("/x", "", Some("/x")),
        ] {
            assert_eq!(behind(path, prefix), expected, "{path} {prefix}");
        }
    }

    #[test]
    fn the_api_is_recognised_in_any_encoding() {
        for path in ["/v2", "/v2/", "/v2?n=1", "/v2/a", "/%762", "/v2%2Fa", "%2Fv%32/"] {
            assert!(is_api(path), "{path}");
        }
        for path in ["/", "/v2x", "/v2;x", "//v2/", "/v2%3Fx", "/x/v2/", "/%2576%32/", "*"] {
            assert!(!is_api(path), "{path}");
        }
    }

    #[test]
    fn dot_segments_are_seen_in_any_encoding() {
        for path in ["/v2/../a", "/.", "/a/%2e%2E/b", "/a%2f..%2fb", "/a/.%2e"] {
            assert!(has_dot_segment(path), "{path}");
        }
        for path in ["/", "/a/...", "/a..b/.c", "/%252e%252e/"] {
            assert!(!has_dot_segment(path), "{path}");
        }
    }
}
