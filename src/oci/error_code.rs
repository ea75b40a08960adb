//! Error codes and the body that carries them (distribution-spec, "Error Codes").

use serde::Serialize;

/// The codes that refshim itself answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// The caller must log in.
    Unauthorized,
    /// The caller may not do this.
    Denied,
    /// The digest is malformed.
    DigestInvalid,
    /// The manifest, or the tag, does not exist.
    ManifestUnknown,
    /// The tag or a query parameter is malformed, or the body could not be read.
    ManifestInvalid,
    /// The repository name is malformed.
    NameInvalid,
    /// The method is not allowed here.
    Unsupported,
    /// Too many requests.
    Toomanyrequests,
    /// The upstream or the index failed (not in the specification, used by distribution).
    Unavailable,
    /// A query parameter is out of its range (not in the specification, used by distribution).
    PaginationNumberInvalid,
}

/// `{"errors":[{"code":…,"message":…}]}`
#[derive(Debug, Serialize)]
pub struct ErrorBody<'a> {
    errors: [ErrorEntry<'a>; 1],
}

#[derive(Debug, Serialize)]
struct ErrorEntry<'a> {
    code: ErrorCode,
    message: &'a str,
}

impl<'a> ErrorBody<'a> {
    /// A body with one error.
    #[must_use]
    pub fn new(code: ErrorCode, message: &'a str) -> Self {
        Self { errors: [ErrorEntry { code, message }] }
    }

    /// The body as it goes over the wire.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}
