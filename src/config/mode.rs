//! What refshim does with the requests for an upstream (`upstreams.<name>.mode`), and upstreams that are one registry
//! (`upstreams.<name>.shares`): some clients can be served while refshim only watches the others.

use std::fmt;

use super::mistake::Mistake;
use super::{Config, ManifestsConfig, ReferencesConfig, ReferrersConfig, UpstreamConfig};

/// What refshim does with the requests for an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Records what passes, and answers queries.
    #[default]
    Full,
    /// Records what passes, and answers nothing itself: a client cannot tell that refshim is there.
    Learn,
    /// Passes everything on, and records nothing.
    Pass,
}

impl Mode {
    /// Its word in the configuration, in metrics and in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Learn => "learn",
            Self::Pass => "pass",
        }
    }

    pub(super) const fn word(self) -> (&'static str, Self) {
        (self.as_str(), self)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Config {
    /// All upstreams, the default one first.
    pub fn upstreams(&self) -> impl Iterator<Item = &UpstreamConfig> {
        std::iter::once(&self.upstream).chain(&self.further_upstreams)
    }

    /// Whether all that is pushed through refshim to the registry with this number in the index is recorded: not if one
    /// of the upstreams that share it only passes on.
    #[must_use]
    pub fn is_recorded(&self, number: u32) -> bool {
        self.upstreams().filter(|it| it.number() == number).all(|it| it.mode != Mode::Pass)
    }

    /// The tables of the configuration that say something which no upstream's mode makes use of.
    #[must_use]
    pub fn without_effect(&self) -> Vec<&'static str> {
        let is_in_use = |modes: &[Mode]| self.upstreams().any(|upstream| modes.contains(&upstream.mode));
        let (answers, records) = (is_in_use(&[Mode::Full]), is_in_use(&[Mode::Full, Mode::Learn]));
        let idle = [
            ("references", !answers && self.references != ReferencesConfig::default()),
            ("referrers", !answers && self.referrers != ReferrersConfig::default()),
            ("manifests", !records && self.manifests != ManifestsConfig::default()),
        ];
        idle.into_iter().filter(|(_, is_idle)| *is_idle).map(|(table, _)| table).collect()
    }
}

/// Upstreams that cannot share what they say they share.
pub(super) fn unshareable(upstreams: &[UpstreamConfig]) -> Vec<Mistake> {
    let problem = |upstream: &UpstreamConfig| {
        let shared = upstream.shares.as_ref()?;
        let Some(other) = upstreams.iter().find(|other| other.name == *shared) else {
            return Some(format!("shares: there is no upstream {shared}"));
        };
        if other.name == upstream.name {
            Some("shares: this is itself (name another upstream of the same url)".to_owned())
        } else if let Some(further) = &other.shares {
            Some(format!("shares: {shared} itself shares with {further} (write shares = \"{further}\")"))
        } else if other.url != upstream.url {
            Some(format!("shares: {shared} has another url ({}); only one registry can be shared", other.url))
        } else {
            None
        }
    };
    let mistake = |upstream: &UpstreamConfig| {
        Some(Mistake::new(format!("upstreams.{}", upstream.name), problem(upstream)?))
    };
    upstreams.iter().filter_map(mistake).collect()
}
