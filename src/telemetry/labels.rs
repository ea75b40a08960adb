//! The values of labels: closed sets, so that no client can make the number of series grow.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

use crate::config::UpstreamName;
use crate::http::limits::Limit;
use crate::http::route::RouteClass;
use crate::oci::LinkKind;

/// What became of a link that passed in a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkOutcome {
    /// The upstream took the manifest, the link is listed.
    Recorded,
    /// The upstream's answer is not known; the next query asks again.
    Pending,
    /// The upstream refused the manifest.
    Refused,
    /// It was read from a manifest that was pulled.
    Learnt,
}

/// Why links were left out of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unrecorded {
    /// The manifest is longer than the limit; how many links it has is not known.
    TooLong,
    /// A link in it is malformed, or the whole manifest unreadable.
    Malformed,
    /// Its links and its descriptor together are too much.
    TooMany,
    /// Its repository has as many referrers as one may have.
    RepositoryFull,
}

/// Why a query was not answered with a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueryRefused {
    /// The registry wants the caller to log in (401).
    Unauthorized,
    /// The registry does not let the caller read the repository (403).
    Denied,
    /// The registry throttles (429).
    Throttled,
    /// The registry fails or is not available now (5xx).
    Unavailable,
    /// The registry's answer says neither yes nor no.
    Undecided,
    /// There is no connection to the registry, or it broke.
    Unreachable,
    /// The registry did not answer in time.
    Timeout,
    /// The index cannot be read or written now.
    Index,
    /// A limit of refshim's own was reached.
    Limit,
    /// The query itself is malformed.
    Malformed,
    /// The tag that was asked about does not exist.
    Unknown,
}

/// Why a query was answered from an earlier merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stale {
    /// The registry throttles.
    Throttled,
    /// The registry fails.
    Failed,
    /// There is no connection to the registry, or it did not answer in time.
    Unreachable,
}

impl EncodeLabelValue for UpstreamName {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

impl EncodeLabelValue for QueryRefused {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let reason = match self {
            Self::Unauthorized => "unauthorized",
            Self::Denied => "denied",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Undecided => "undecided",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Index => "index",
            Self::Limit => "limit",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
        };
        reason.encode(encoder)
    }
}

impl EncodeLabelValue for Stale {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let reason = match self {
            Self::Throttled => "throttled",
            Self::Failed => "failed",
            Self::Unreachable => "unreachable",
        };
        reason.encode(encoder)
    }
}

impl EncodeLabelValue for RouteClass {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

impl EncodeLabelValue for LinkKind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

impl EncodeLabelValue for LinkOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let outcome = match self {
            Self::Recorded => "recorded",
            Self::Pending => "pending",
            Self::Refused => "refused",
            Self::Learnt => "learnt",
        };
        outcome.encode(encoder)
    }
}

impl EncodeLabelValue for Limit {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let limit = match self {
            Self::Connections => "connections",
            Self::RequestsPerClient => "requests_per_client",
            Self::ManifestBytes => "manifest_bytes",
            Self::AnswerBytes => "answer_bytes",
            Self::Questions => "questions",
        };
        limit.encode(encoder)
    }
}

impl EncodeLabelValue for Unrecorded {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let reason = match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::TooMany => "too_many",
            Self::RepositoryFull => "repository_full",
        };
        reason.encode(encoder)
    }
}
