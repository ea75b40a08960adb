//! What `upstreams.<name>.mode` leaves of a route: the one place that decides what a mode changes.
//!
//! - `learn` is a shadow, there to be compared with what was before it: pushes, pulls and deletions are recorded, and
//!   no answer differs from the registry's. So queries are passed on like anything else, also malformed ones. A push is
//!   neither held nor confirmed first: held, it would lose its `Expect` and its framing, and could fail for reasons of
//!   refshim's own, a full disk for instance. Its answer has no `OCI-Subject` and no `Warning`, and waits for the index
//!   as long as recording takes and no longer than `timeouts.index`.
//! - `pass` reads nothing. Only that something was written is noted: another upstream may be the same registry
//!   (`upstreams.<name>.shares`), and what is remembered of it must not outlive a write.
//!
//! What stays in each mode is what makes a proxy: limits, the refusal of ambiguous requests, addresses that lead back,
//! and `X-Request-Id` for the registry's log.

use super::{Route, RouteClass};
use crate::config::Mode;

impl Route {
    /// The route in a mode.
    #[must_use]
    pub fn within(self, mode: Mode) -> Self {
        let class = self.class();
        match mode {
            Mode::Full => self,
            Mode::Learn => self.watched(class),
            Mode::Pass => self.unread(class),
        }
    }

    /// Whether refshim answers it itself.
    #[must_use]
    pub fn is_query(&self) -> bool {
        match self {
            Self::References { .. }
            | Self::Referrers { .. }
            | Self::QueryMethod(..)
            | Self::QueryPath(..) => true,
            Self::Attach { .. }
            | Self::Reference { .. }
            | Self::Detach { .. }
            | Self::Extensions
            | Self::GetManifest { .. }
            | Self::HeadManifest { .. }
            | Self::PutManifest { .. }
            | Self::DeleteManifest { .. }
            | Self::WatchPut { .. }
            | Self::PassWrite { .. }
            | Self::Pass(_) => false,
        }
    }

    /// Whether it is refshim's own: there is none of it in the registry's API.
    fn is_refshims(&self) -> bool {
        match self {
            Self::References { .. }
            | Self::Attach { .. }
            | Self::Reference { .. }
            | Self::Detach { .. }
            | Self::Extensions
            | Self::Referrers { .. }
            | Self::QueryMethod(..)
            | Self::QueryPath(..) => true,
            Self::GetManifest { .. }
            | Self::HeadManifest { .. }
            | Self::PutManifest { .. }
            | Self::DeleteManifest { .. }
            | Self::WatchPut { .. }
            | Self::PassWrite { .. }
            | Self::Pass(_) => false,
        }
    }

    fn watched(self, class: RouteClass) -> Self {
        if self.is_refshims() {
            return Self::Pass(class);
        }
        if let Self::PutManifest { repository, manifest } = self {
            return Self::WatchPut { repository, manifest };
        }
        self
    }

    fn unread(self, class: RouteClass) -> Self {
        if let Self::PutManifest { repository, .. }
        | Self::DeleteManifest { repository, .. }
        | Self::WatchPut { repository, .. }
        | Self::PassWrite { repository } = self
        {
            return Self::PassWrite { repository };
        }
        Self::Pass(class)
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    #[track_caller]
    fn check(mode: Mode, method: &Method, path: &str, expected: &Route) {
        let route = Route::parse(method, path).within(mode);
        assert_eq!(route, *expected, "{mode} {method} {path}");
        assert_eq!(route.class(), Route::parse(method, path).class());
    }

    #[test]
    fn outside_of_full_no_query_is_answered() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let queries = [
            (Method::GET, "/v2/a/manifests/latest/references".to_owned(), RouteClass::References),
            (Method::GET, format!("/v2/a/referrers/{digest}"), RouteClass::Referrers),
            (Method::HEAD, format!("/v2/a/referrers/{digest}"), RouteClass::Referrers),
            (Method::GET, "/v2/a/referrers/malformed".to_owned(), RouteClass::Referrers),
            (Method::GET, "/v2/A/manifests/latest/references".to_owned(), RouteClass::References),
            (Method::PUT, format!("/v2/a/referrers/{digest}"), RouteClass::Referrers),
        ];
        for (method, path, class) in queries {
            let full = Route::parse(&method, &path).within(Mode::Full);
            assert!(full.is_query() && full == Route::parse(&method, &path), "{method} {path}");
            check(Mode::Learn, &method, &path, &Route::Pass(class));
            check(Mode::Pass, &method, &path, &Route::Pass(class));
        }
    }

    #[test]
    fn learn_watches_and_pass_only_notes_writes() {
        let path = "/v2/a/manifests/latest";
        let (repository, manifest) = ("a".parse().unwrap(), "latest".parse().unwrap());
        check(Mode::Learn, &Method::PUT, path, &Route::WatchPut { repository, manifest });
        for method in [Method::GET, Method::DELETE] {
            check(Mode::Learn, &method, path, &Route::parse(&method, path));
        }
        for method in [Method::PUT, Method::DELETE] {
            check(Mode::Pass, &method, path, &Route::PassWrite { repository: "a".parse().unwrap() });
        }
        check(Mode::Pass, &Method::GET, path, &Route::Pass(RouteClass::Manifests));
        for mode in [Mode::Learn, Mode::Pass] {
            check(mode, &Method::GET, "/v2/", &Route::Pass(RouteClass::Base));
        }
    }
}
