//! What can be wrong with a request to attach something, or with one for a single reference.

use http::StatusCode;

use crate::oci::ErrorCode;

/// Why nothing is attached, or no such reference found.
#[derive(Debug, thiserror::Error)]
pub enum BadAttachment {
    /// `artifactType` is missing.
    #[error(
        "artifactType is missing: say what is attached, by its media type (?artifactType=application/spdx%2Bjson)"
    )]
    NoType,
    /// Something else than a media type is in its place.
    #[error("{place} must be a media type, such as application/spdx+json, and not {given:?}")]
    NotAType {
        /// The parameter or field.
        place: &'static str,
        /// What was given.
        given: String,
    },
    /// An annotation is not `key=value`.
    #[error("annotation must be key=value, each key once")]
    Annotation,
    /// A file name is empty or a path.
    #[error("title must be the name of a file, without directories")]
    Title,
    /// A parameter that has to be a digest is none.
    #[error("{0} must be a digest: sha256: or sha512: and hexadecimal digits")]
    Digest(&'static str),
    /// A parameter is repeated.
    #[error("{0} may be given only once")]
    Repeated(&'static str),
    /// A parameter that only says something of a single file.
    #[error(
        "{0} is for a body that is one file, and not for multipart/form-data, where each part says it itself"
    )]
    OfOneFile(&'static str),
    /// A form's Content-Type, which curl sends if nobody says otherwise.
    #[error(
        "the body came as a form; say what it is by Content-Type (curl: -H 'Content-Type: application/spdx+json', and \
         -T FILE or --data-binary @FILE), or send files as multipart/form-data (curl: -F file=@FILE)"
    )]
    Form,
    /// A coded body.
    #[error(
        "a body with a Content-Encoding cannot be attached: it would be kept as it came, and nobody would know"
    )]
    Encoded,
    /// There are no bytes.
    #[error("there is nothing to attach: the body is empty")]
    Empty,
    /// The body is malformed multipart/form-data.
    #[error("the body is not well-formed multipart/form-data: {0}")]
    Multipart(String),
    /// Too many files.
    #[error("at most {0} files can be attached at once")]
    TooMany(usize),
    /// The body's digest is another one.
    #[error("the body has the digest {found}, and not {expected}: nothing was attached")]
    OtherDigest {
        /// What the client said.
        expected: String,
        /// What came.
        found: String,
    },
    /// The manifest that is made of it is another one than the client made.
    #[error("the manifest has the digest {found}, and not {expected}: nothing was attached")]
    OtherManifest {
        /// What the client said.
        expected: String,
        /// That of what was made.
        found: String,
    },
    /// The manifest refers to something else, or is not there.
    #[error("{referrer} does not refer to {subject}")]
    NotAReferrer {
        /// The manifest.
        referrer: String,
        /// What it would have to refer to.
        subject: String,
    },
    /// The manifest has several files, and none was chosen, or it has none of that name.
    #[error("{}", several(.0))]
    WhichFile(Vec<String>),
    /// A web page of another site sends it.
    #[error(
        "a web page of another site may attach something only if the registry lets it: send a Content-Type for which the \
         browser asks first, such as application/spdx+json"
    )]
    OtherSite,
    /// The subject does not exist.
    #[error("the registry has no such manifest to attach something to")]
    NoSubject,
    /// The registry wants the content elsewhere.
    #[error(
        "the registry wants uploads at another host, to which refshim sends nobody's credentials; attach with a client \
         (refshim attach, oras attach)"
    )]
    Elsewhere,
}

fn several(names: &[String]) -> String {
    if names.is_empty() {
        return "it has no file of that name".to_owned();
    }
    format!("it has several files; choose one with ?content=NAME: {}", names.join(", "))
}

impl BadAttachment {
    pub(super) fn status_and_code(&self) -> (StatusCode, ErrorCode) {
        match self {
            Self::Form | Self::Encoded => (StatusCode::UNSUPPORTED_MEDIA_TYPE, ErrorCode::Unsupported),
            Self::Digest(_) | Self::OtherDigest { .. } | Self::OtherManifest { .. } => {
                (StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid)
            }
            Self::Empty => (StatusCode::BAD_REQUEST, ErrorCode::SizeInvalid),
            Self::NotAReferrer { .. } | Self::NoSubject => {
                (StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown)
            }
            Self::OtherSite => (StatusCode::FORBIDDEN, ErrorCode::Denied),
            Self::Elsewhere => (StatusCode::BAD_GATEWAY, ErrorCode::Unsupported),
            Self::NoType
            | Self::NotAType { .. }
            | Self::Annotation
            | Self::Title
            | Self::Repeated(_)
            | Self::OfOneFile(_)
            | Self::Multipart(_)
            | Self::TooMany(_)
            | Self::WhichFile(_) => (StatusCode::BAD_REQUEST, ErrorCode::Unsupported),
        }
    }
}
