//! Error codes and the body that carries them (distribution-spec, "Error Codes").

use serde::Serialize;

/// The error codes of refshim's own answers. A closed enum, since registries with strings ship misspelt codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// The client must log in.
    Unauthorized,
    /// The client may not do this.
    Denied,
    /// The digest is malformed.
    DigestInvalid,
    /// The manifest, or the tag, does not exist.
    ManifestUnknown,
    /// The repository name is malformed.
    NameInvalid,
    /// The client exceeded a limit.
    #[serde(rename = "TOOMANYREQUESTS")]
    TooManyRequests,
    /// The body does not have the expected length.
    SizeInvalid,
    /// The tag is malformed (this and those below are not in the specification; distribution uses them).
    TagInvalid,
    /// A page size out of range.
    PaginationNumberInvalid,
    /// The method or a parameter is not supported.
    Unsupported,
    /// The upstream or the index is not available now.
    Unavailable,
    /// An internal error.
    Unknown,
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

    /// The body as JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}
