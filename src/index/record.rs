//! The records of the journal: JSON Lines, one record a line, so that an operator can read them.
//!
//! JSON costs little here: parsing is under 2 % of building an index, and a binary form would save a third of the
//! journal's length.
//!
//! Each record is applied once: a referrer carries the version of the last record that changed it, and records up to
//! that version change nothing. So a part of the journal can be read over a snapshot that includes some of it, and
//! the result is the same. What a record does to a referrer is in [`super::referrer_state`].
//!
//! Fields and kinds are only ever added, with defaults, so that older journals and dumps stay readable. A new kind of
//! record needs a new format version, because older builds take it for damage.

use serde::{Deserialize, Serialize};

use super::referrer_state::ReferrerState;
use crate::index::{Order, Repository, Version};
use crate::oci::{Digest, InvalidName, Link};

/// Identifies a referrer: a digest within one repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "WireKey", into = "WireKey")]
pub(crate) struct ReferrerKey {
    pub(crate) repository: Repository,
    pub(crate) digest: Digest,
}

/// One change of a referrer, or the end of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Record {
    /// The referrer has these links, besides those it may have already.
    Recorded(Recorded),
    /// A PUT of it begins. Its claims are added if the referrer is unknown or pending. A confirmed one only gets a
    /// new version: whoever begins a PUT may have no right to.
    Begun(Recorded),
    /// The upstream accepted a PUT of it. If the referrer was pending, this replaces what was claimed before.
    Accepted(Recorded),
    /// The upstream serves it like this. Replaces what was claimed before.
    Settled(Recorded),
    /// The upstream has it.
    Confirmed(ReferrerKey),
    /// The upstream has to be asked whether it has it.
    Doubted(ReferrerKey),
    /// The upstream answers 404 for it, since `since` (microseconds since 1970) at the latest.
    Absent { referrer: ReferrerKey, since: u64 },
    /// The upstream does not have it.
    Removed(ReferrerKey),
    /// The end of a snapshot, with the number of its referrers; in snapshots only.
    End { referrers: u64 },
}

/// A referrer with its links.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recorded {
    pub(crate) referrer: ReferrerKey,
    pub(crate) order: u64,
    pub(crate) pending: bool,
    /// Whether the descriptor is another manifest's claim. Missing in records of older builds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) claimed: bool,
    /// Whether it was ever confirmed; in snapshots only, of pending referrers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) was_confirmed: bool,
    /// When the upstream began to answer nothing but 404 for it, in microseconds since 1970; in snapshots only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) absent_since: Option<u64>,
    /// The version of the last record that this includes; in snapshots only. Without it, records from behind the
    /// snapshot's position that it includes already would be applied twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<u64>,
    pub(crate) descriptor: String,
    pub(crate) links: Vec<Link>,
}

#[derive(Serialize, Deserialize)]
struct WireKey {
    upstream: u32,
    name: String,
    digest: Digest,
}

impl From<ReferrerKey> for WireKey {
    fn from(key: ReferrerKey) -> Self {
        Self { upstream: key.repository.upstream, name: key.repository.name.to_string(), digest: key.digest }
    }
}

impl TryFrom<WireKey> for ReferrerKey {
    type Error = InvalidName;

    fn try_from(wire: WireKey) -> Result<Self, InvalidName> {
        let repository = Repository { upstream: wire.upstream, name: wire.name.parse()? };
        Ok(Self { repository, digest: wire.digest })
    }
}

impl Recorded {
    /// A record of links outside a snapshot, of a descriptor that is not another manifest's claim.
    pub(crate) fn new(
        referrer: ReferrerKey,
        order: Order,
        pending: bool,
        descriptor: String,
        links: Vec<Link>,
    ) -> Self {
        Self {
            referrer,
            order: order.0,
            pending,
            claimed: false,
            was_confirmed: false,
            absent_since: None,
            version: None,
            descriptor,
            links,
        }
    }

    /// The record for a snapshot of a referrer in this state.
    pub(crate) fn of(referrer: ReferrerKey, state: ReferrerState) -> Self {
        Self {
            referrer,
            order: state.order.0,
            pending: state.pending,
            claimed: state.claimed,
            was_confirmed: state.pending && state.was_confirmed,
            absent_since: state.absent_since,
            version: Some(state.version.0),
            links: state.links(),
            descriptor: state.descriptor,
        }
    }
}

impl Record {
    /// The referrer with its links, if the record has them.
    pub(crate) fn recorded(&self) -> Option<&Recorded> {
        match self {
            Self::Recorded(recorded)
            | Self::Begun(recorded)
            | Self::Accepted(recorded)
            | Self::Settled(recorded) => Some(recorded),
            Self::Confirmed(_)
            | Self::Doubted(_)
            | Self::Absent { .. }
            | Self::Removed(_)
            | Self::End { .. } => None,
        }
    }

    /// The referrer that it changes; none for the end of a snapshot.
    pub(crate) fn referrer(&self) -> Option<&ReferrerKey> {
        match self {
            Self::Recorded(recorded)
            | Self::Begun(recorded)
            | Self::Accepted(recorded)
            | Self::Settled(recorded) => Some(&recorded.referrer),
            Self::Confirmed(key) | Self::Doubted(key) | Self::Removed(key) => Some(key),
            Self::Absent { referrer, .. } => Some(referrer),
            Self::End { .. } => None,
        }
    }

    /// The order that it gives to its referrer, if that is new.
    pub(crate) fn order(&self) -> Option<Order> {
        self.recorded().map(|recorded| Order(recorded.order))
    }

    /// Adds the record to the payload of a frame.
    pub(crate) fn write_to(&self, payload: &mut Vec<u8>) -> serde_json::Result<()> {
        serde_json::to_writer(&mut *payload, self)?;
        payload.push(b'\n');
        Ok(())
    }

    /// The records of a frame's payload.
    pub(crate) fn read_all(payload: &[u8]) -> serde_json::Result<Vec<Self>> {
        serde_json::Deserializer::from_slice(payload).into_iter().collect()
    }
}

impl Version {
    /// The version that the record with this index in the frame at `position` gives to its referrer. Strictly
    /// increasing over the journal, because a record is longer than one byte.
    pub(crate) fn of(position: u64, index: u64) -> Self {
        Self(position + 1 + index)
    }

    /// The version in a record of a snapshot at `position`. Older builds wrote none, and their records could be
    /// applied twice; they get a version lower than any later record makes.
    pub(crate) fn in_snapshot(position: u64, record: &Record) -> Self {
        Self(record.recorded().and_then(|recorded| recorded.version).unwrap_or(position))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::LinkKind;

    #[track_caller]
    fn check(record: &Record, expected: &str) {
        let mut payload = Vec::new();
        record.write_to(&mut payload).unwrap();
        record.write_to(&mut payload).unwrap();
        assert_eq!(String::from_utf8_lossy(&payload), format!("{expected}\n{expected}\n"));
        assert_eq!(Record::read_all(&payload).unwrap(), [record.clone(), record.clone()]);
    }

    #[test]
    fn are_json_lines() {
        let digest = |n| Digest::Sha256([n; 32]);
        let repository = Repository { upstream: 7, name: "a/b".parse().unwrap() };
        let key = ReferrerKey { repository, digest: digest(1) };
        let wire = format!(r#"{{"upstream":7,"name":"a/b","digest":"{}"}}"#, digest(1));
        check(&Record::Confirmed(key.clone()), &format!(r#"{{"confirmed":{wire}}}"#));
        check(&Record::Doubted(key.clone()), &format!(r#"{{"doubted":{wire}}}"#));
        check(&Record::Removed(key.clone()), &format!(r#"{{"removed":{wire}}}"#));
        check(&Record::End { referrers: 3 }, r#"{"end":{"referrers":3}}"#);
        check(
            &Record::Absent { referrer: key.clone(), since: 8 },
            &format!(r#"{{"absent":{{"referrer":{wire},"since":8}}}}"#),
        );
        let recorded = Recorded {
            referrer: key,
            order: 5,
            pending: true,
            claimed: false,
            was_confirmed: false,
            absent_since: None,
            version: None,
            descriptor: "{\"a\":\n1}".to_owned(),
            links: vec![Link { subject: digest(2), kind: LinkKind::Parent }],
        };
        let expected = |kind: &str, more: &str| {
            format!(
                r#"{{"{kind}":{{"referrer":{wire},"order":5,"pending":true,{more}"descriptor":"{{\"a\":\n1}}","links":[{{"subject":"{}","kind":"parent"}}]}}}}"#,
                digest(2)
            )
        };
        check(&Record::Recorded(recorded.clone()), &expected("recorded", ""));
        check(&Record::Begun(recorded.clone()), &expected("begun", ""));
        check(&Record::Accepted(recorded.clone()), &expected("accepted", ""));
        check(&Record::Settled(recorded.clone()), &expected("settled", ""));
        let claimed = Recorded { claimed: true, ..recorded.clone() };
        check(&Record::Recorded(claimed), &expected("recorded", r#""claimed":true,"#));
        let in_snapshot =
            Recorded { was_confirmed: true, absent_since: Some(6), version: Some(7), ..recorded };
        let more = r#""was_confirmed":true,"absent_since":6,"version":7,"#;
        check(&Record::Recorded(in_snapshot), &expected("recorded", more));
    }

    #[test]
    fn a_name_outside_the_grammar_is_refused() {
        let digest = Digest::Sha256([0; 32]);
        let wire = format!(r#"{{"removed":{{"upstream":0,"name":"A","digest":"{digest}"}}}}"#);
        assert!(Record::read_all(wire.as_bytes()).is_err());
    }
}
