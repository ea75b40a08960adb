//! Label values of the metrics, as closed enums.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

use crate::config::{Mode, SourceName, UpstreamName};
use crate::http::limits::Limit;
use crate::http::route::RouteClass;
use crate::oci::LinkKind;

/// A log beside the log itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogName {
    /// The access log.
    Access,
    /// The audit log.
    Audit,
}

/// The outcome of a link that was found in a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkOutcome {
    /// The upstream accepted the manifest; the link is listed.
    Recorded,
    /// The upstream's answer is not known; the next query of the subject asks it.
    Pending,
    /// The upstream rejected the manifest.
    Refused,
    /// Learnt from a manifest that was pulled.
    Learnt,
}

/// Why links were not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unrecorded {
    /// The manifest exceeds the limit; the number of its links is not known.
    TooLong,
    /// A link, or the whole manifest, is malformed.
    Malformed,
    /// Its links and descriptor together exceed the limit.
    TooMany,
    /// Its repository has reached its limit of referrers.
    RepositoryFull,
    /// A push that was only watched could not be recorded.
    Missed,
}

/// What came of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Swept {
    /// All of the registry was read.
    Complete,
    /// Some of it could not be read.
    Incomplete,
    /// It could not be begun.
    Failed,
}

/// Why a query was answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueryRefused {
    /// The registry requires a login (401).
    Unauthorized,
    /// The registry does not let the caller read the repository (403).
    Denied,
    /// The registry throttles (429).
    Throttled,
    /// The registry fails or is not available now (5xx).
    Unavailable,
    /// The registry's answer does not show whether the caller may read the repository.
    Undecided,
    /// The connection to the registry failed or broke.
    Unreachable,
    /// The registry did not answer in time.
    Timeout,
    /// The index cannot be read or written now.
    Index,
    /// A limit of refshim was reached.
    Limit,
    /// The query itself is malformed.
    Malformed,
    /// The tag does not exist.
    Unknown,
}

/// Why a query was answered from an earlier answer of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stale {
    /// The registry throttles.
    Throttled,
    /// The registry fails.
    Failed,
    /// There is no connection to the registry, or it did not answer in time.
    Unreachable,
}

/// What a notification told, or why it was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Notified {
    /// A push.
    Push,
    /// A deletion.
    Delete,
    /// Anything else: a pull, a blob.
    Ignored,
    /// Without the right credentials.
    Unauthorized,
    /// Not what its source sends.
    Malformed,
    /// Too long.
    TooLong,
    /// The queue is full.
    Full,
    /// It could not be written to disk.
    NotWritten,
}

/// Why an event of a notification could not be worked off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventFailure {
    /// The registry does not have it.
    Missing,
    /// The registry denies it to the service credentials.
    Denied,
    /// The registry failed or was not reached.
    Failed,
    /// The manifest cannot be recorded.
    Unreadable,
    /// The index could not be written, or the repository is full.
    Index,
}

/// Why a referrers tag was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TagFailure {
    /// The registry denies it to the service credentials.
    Denied,
    /// The registry failed, was not reached, or does not take it.
    Failed,
    /// The registry does not show what it took.
    Missing,
    /// The index could not be read.
    Index,
    /// Too many wait.
    Full,
    /// The disk did not take it.
    NotWritten,
}

impl TagFailure {
    pub(super) const ALL: [Self; 6] =
        [Self::Denied, Self::Failed, Self::Missing, Self::Index, Self::Full, Self::NotWritten];
}

impl EncodeLabelValue for TagFailure {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let reason = match self {
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::Missing => "missing",
            Self::Index => "index",
            Self::Full => "full",
            Self::NotWritten => "not_written",
        };
        reason.encode(encoder)
    }
}

impl EncodeLabelValue for SourceName {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

impl Notified {
    pub(super) const ALL: [Self; 8] = [
        Self::Push,
        Self::Delete,
        Self::Ignored,
        Self::Unauthorized,
        Self::Malformed,
        Self::TooLong,
        Self::Full,
        Self::NotWritten,
    ];
}

impl EncodeLabelValue for Notified {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let word = match self {
            Self::Push => "push",
            Self::Delete => "delete",
            Self::Ignored => "ignored",
            Self::Unauthorized => "unauthorized",
            Self::Malformed => "malformed",
            Self::TooLong => "too_long",
            Self::Full => "full",
            Self::NotWritten => "not_written",
        };
        word.encode(encoder)
    }
}

impl Swept {
    pub(super) const ALL: [Self; 3] = [Self::Complete, Self::Incomplete, Self::Failed];
}

impl EncodeLabelValue for Swept {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let outcome = match self {
            Self::Complete => "complete",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
        };
        outcome.encode(encoder)
    }
}

impl EventFailure {
    pub(super) const ALL: [Self; 5] =
        [Self::Missing, Self::Denied, Self::Failed, Self::Unreadable, Self::Index];
}

impl EncodeLabelValue for EventFailure {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let reason = match self {
            Self::Missing => "missing",
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::Unreadable => "unreadable",
            Self::Index => "index",
        };
        reason.encode(encoder)
    }
}

impl EncodeLabelValue for Mode {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

impl EncodeLabelValue for UpstreamName {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

impl QueryRefused {
    pub(super) const ALL: [Self; 11] = [
        Self::Unauthorized,
        Self::Denied,
        Self::Throttled,
        Self::Unavailable,
        Self::Undecided,
        Self::Unreachable,
        Self::Timeout,
        Self::Index,
        Self::Limit,
        Self::Malformed,
        Self::Unknown,
    ];
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

impl Stale {
    pub(super) const ALL: [Self; 3] = [Self::Throttled, Self::Failed, Self::Unreachable];
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

impl LinkOutcome {
    pub(super) const ALL: [Self; 4] = [Self::Recorded, Self::Pending, Self::Refused, Self::Learnt];
}

impl LinkOutcome {
    /// Its word in metrics and in the audit log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Recorded => "recorded",
            Self::Pending => "pending",
            Self::Refused => "refused",
            Self::Learnt => "learnt",
        }
    }
}

impl EncodeLabelValue for LinkOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
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

impl Unrecorded {
    pub(super) const ALL: [Self; 5] =
        [Self::TooLong, Self::Malformed, Self::TooMany, Self::RepositoryFull, Self::Missed];
}

impl EncodeLabelValue for Unrecorded {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let reason = match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::TooMany => "too_many",
            Self::RepositoryFull => "repository_full",
            Self::Missed => "missed",
        };
        reason.encode(encoder)
    }
}

impl LogName {
    pub(super) const ALL: [Self; 2] = [Self::Access, Self::Audit];

    /// Its word in metrics and messages.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Audit => "audit",
        }
    }
}

impl EncodeLabelValue for LogName {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}
