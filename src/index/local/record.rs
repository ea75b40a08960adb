//! What the journal says, record by record: JSON Lines, so that a person can read it.
//!
//! Each record counts once: the state of a referrer carries the version of the last record that made it, and
//! records up to that version change nothing. So a stretch of the journal may be read again, over a snapshot
//! that has a part of it already, and ends in the same state.

use serde::{Deserialize, Serialize};

use super::referrer_state::ReferrerState;
use crate::index::{Order, Repository, Version};
use crate::oci::{Digest, InvalidName, Link};

/// Which referrer: its digest counts within one repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "WireKey", into = "WireKey")]
pub(crate) struct ReferrerKey {
    pub(crate) repository: Repository,
    pub(crate) digest: Digest,
}

/// One change, or the end of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Record {
    /// The referrer has these links (too).
    Recorded(Recorded),
    /// A PUT of it begins. What it claims is added if the referrer is unknown or pending: whoever begins a
    /// PUT may have no right to it, so a confirmed referrer only gets a new version.
    Begun(Recorded),
    /// The upstream took a PUT of it. If the referrer was pending, this replaces what was claimed before.
    Accepted(Recorded),
    /// The upstream serves it like this; replaces what was claimed before.
    Settled(Recorded),
    /// The upstream has it.
    Confirmed(ReferrerKey),
    /// Whether the upstream has it has to be asked.
    Doubted(ReferrerKey),
    /// The upstream answers 404 for it, since `since` (microseconds since 1970) at the latest.
    Absent { referrer: ReferrerKey, since: u64 },
    /// The upstream does not have it.
    Removed(ReferrerKey),
    /// A snapshot is complete and holds this many referrers; stands in snapshots alone.
    End { referrers: u64 },
}

/// A referrer with all that is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recorded {
    pub(crate) referrer: ReferrerKey,
    pub(crate) order: u64,
    pub(crate) pending: bool,
    /// Whether the descriptor is another manifest's word. Not there in records of older builds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) claimed: bool,
    /// Whether it was confirmed at any time; in snapshots, of what is pending.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) was_confirmed: bool,
    /// Since when the upstream has answered nothing but 404 for it, in microseconds since 1970; in snapshots
    /// alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) absent_since: Option<u64>,
    /// The version of the last record that this includes; in snapshots alone. Without it, records that the
    /// snapshot includes already would count twice.
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

    /// All that is known of a referrer.
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
    /// What it says of a referrer, if it is more than a change of state.
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

    /// The referrer that it is about; none if it ends a snapshot.
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

    /// The order that the record gives to its referrer.
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
    /// The version that the record with this index in the frame at `position` gives to its referrer:
    /// strictly increasing, as a record is longer than a byte.
    pub(crate) fn of(position: u64, index: u64) -> Self {
        Self(position + 1 + index)
    }

    /// The version of what a record of a snapshot at `position` tells. Builds that wrote no version into
    /// snapshots relied on records that may be read twice; theirs is less than what any later record makes.
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
