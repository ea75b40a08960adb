//! Where referrers are looked for, and which of those that were found are meant.

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use crate::client::{ListScope, ListedReferrer};

#[derive(Debug, Args)]
pub(super) struct ScopeArgs {
    /// Look in the image's repository, or in all repositories of the registry, which only refshim can.
    #[arg(long, value_enum, value_name = "SCOPE", default_value_t = Scope::Repository)]
    scope: Scope,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scope {
    Repository,
    Registry,
}

impl ScopeArgs {
    pub(super) fn scope(&self) -> ListScope {
        match self.scope {
            Scope::Repository => ListScope::Repository,
            Scope::Registry => ListScope::Registry,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Selection {
    /// What makes one newer than another: when it was created, by its own annotation (what has none counts as oldest),
    /// or the order in which the registry lists them, with refshim that of the pushes.
    #[arg(long, value_enum, value_name = "ORDER", default_value_t = Sort::Pushed)]
    sort: Sort,
    /// Only so many, the newest.
    #[arg(long, value_name = "N", conflicts_with = "latest", value_parser = super::copy::at_least_one)]
    limit: Option<usize>,
    /// Only the newest.
    #[arg(long)]
    latest: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    Created,
    Pushed,
}

impl Selection {
    /// Those that are meant, oldest first.
    pub(super) fn of(&self, mut found: Vec<ListedReferrer>) -> Vec<ListedReferrer> {
        match self.sort {
            Sort::Created => found.sort_by_cached_key(created),
            Sort::Pushed => {}
        }
        let most = if self.latest { Some(1) } else { self.limit };
        let older = most.map_or(0, |most| found.len().saturating_sub(most));
        found.split_off(older)
    }
}

fn created(referrer: &ListedReferrer) -> Option<Timestamp> {
    referrer.created().and_then(|created| created.parse().ok())
}
