//! Selects the upstream of a request: by `Host`, else by `ns=`, else by the prefix of the repository's name, else the
//! default one. Pure.
//!
//! A client that follows a `Location` or `Link` sends neither `ns=` nor the prefix again. So refshim puts the
//! upstream's name into such paths, `/.refshim/<name>/v2/…`, and this mark takes precedence over everything else. An
//! upstream that is selected by `Host` alone has no mark: a client that cannot use that host name (a firewall, a
//! certificate) must not reach the upstream by a path either.

use std::borrow::Cow;
use std::sync::Arc;

use form_urlencoded::{byte_serialize, parse};
use http::uri::PathAndQuery;

use crate::config::{Config, UpstreamConfig};
use crate::http::route::{API, begins_upload, behind, has_dot_segment};
use crate::oci::RepositoryName;

/// `/.refshim/<name>`
const MARK: &str = "/.refshim/";

/// The rules of all upstreams, the default one first.
#[derive(Debug)]
pub struct Selection {
    rules: Vec<Rules>,
    is_needed: bool,
}

#[derive(Debug)]
struct Rules {
    mark: Arc<str>,
    hosts: Vec<String>,
    namespaces: Vec<String>,
    prefixes: Vec<String>,
    strip_prefix: bool,
}

/// The upstream selected for a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// Its position among the upstreams.
    pub place: usize,
    /// Path and query at the upstream, if they differ from the request's.
    pub target: Option<PathAndQuery>,
    /// The prefix that makes a path lead to this upstream again.
    pub mark: Option<Arc<str>>,
    /// The `ns=` by which it was selected.
    pub namespace: Option<String>,
}

impl Selection {
    /// The rules of a configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let rules: Vec<Rules> = config.upstreams().map(Rules::of).collect();
        let is_needed = rules.len() > 1 || rules.iter().any(|rules| rules.strip_prefix);
        Self { rules, is_needed }
    }

    /// Selects the upstream of a request to this host and target.
    #[must_use]
    pub fn select(&self, host: Option<&str>, target: &PathAndQuery) -> Selected {
        if !self.is_needed {
            return Selected::default();
        }
        self.by_mark(target)
            .or_else(|| self.by_host(host?))
            .or_else(|| self.by_namespace(target.query()?))
            .or_else(|| self.by_prefix(target))
            .unwrap_or_default()
    }

    /// The upstreams that a request to this host can reach, by their positions: the one that the host selects, else all
    /// but those that only a host selects.
    #[must_use]
    pub fn reachable(&self, host: Option<&str>) -> Vec<usize> {
        if let Some(selected) = host.and_then(|host| self.by_host(host)) {
            return vec![selected.place];
        }
        let is_reachable = |(place, rules): &(usize, &Rules)| *place == 0 || rules.gives_marks();
        self.rules.iter().enumerate().filter(is_reachable).map(|(place, _)| place).collect()
    }

    /// What clients write for a repository of the upstream at this position: the host, if that selects it, and the
    /// name, with the prefix in front that was taken off.
    #[must_use]
    pub fn name_for_clients(&self, place: usize, name: &RepositoryName) -> (Option<&str>, String) {
        let Some(rules) = self.rules.get(place) else { return (None, name.to_string()) };
        let host = rules.hosts.first().or(rules.namespaces.first().filter(|_| rules.prefixes.is_empty()));
        let prefix = rules.prefixes.first().filter(|_| rules.strip_prefix && rules.hosts.is_empty());
        (
            host.map(String::as_str),
            prefix.map_or_else(|| name.to_string(), |prefix| format!("{prefix}/{name}")),
        )
    }

    fn by_mark(&self, target: &PathAndQuery) -> Option<Selected> {
        behind(target.path(), MARK)?;
        let marked = self.rules.iter().enumerate().filter(|(_, rules)| rules.gives_marks());
        let (place, rules, rest) = marked
            .filter_map(|(place, rules)| Some((place, rules, behind(target.as_str(), &rules.mark)?)))
            .find(|(_, _, rest)| behind(rest, "/").is_some())?;
        let target = absolute(rest)?;
        Some(Selected { place, target: Some(target), mark: Some(Arc::clone(&rules.mark)), namespace: None })
    }

    fn by_host(&self, host: &str) -> Option<Selected> {
        let without_port = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let names =
            |rule: &String| rule.eq_ignore_ascii_case(host) || rule.eq_ignore_ascii_case(without_port);
        let place = self.rules.iter().position(|rules| rules.hosts.iter().any(names))?;
        Some(Selected { place, ..Selected::default() })
    }

    fn by_namespace(&self, query: &str) -> Option<Selected> {
        let (_, namespace) = parse(query.as_bytes()).find(|(key, _)| key == "ns")?;
        let names = |rules: &Rules| rules.namespaces.iter().any(|rule| *rule == namespace);
        let place = self.rules.iter().position(names)?;
        let mark = Some(Arc::clone(&self.rules.get(place)?.mark));
        Some(Selected { place, target: None, mark, namespace: Some(namespace.into_owned()) })
    }

    /// Selects by the longest prefix; a path with dot segments is below none.
    fn by_prefix(&self, target: &PathAndQuery) -> Option<Selected> {
        let repository = behind(target.path(), API)?;
        let is_under = |prefix: &str| under(repository, prefix).is_some();
        let all = self.rules.iter().enumerate();
        let matching = all.flat_map(|(place, rules)| {
            let prefixes = rules.prefixes.iter().filter(|prefix| is_under(prefix));
            prefixes.map(move |prefix| (prefix, place, rules))
        });
        let (prefix, place, rules) = matching.max_by_key(|(prefix, ..)| prefix.len())?;
        // The upstream would resolve the dots, and the path could leave the prefix whose rules were applied.
        if has_dot_segment(target.path()) {
            return None;
        }
        let target = if rules.strip_prefix { Some(without_prefix(target, prefix)?) } else { None };
        Some(Selected { place, target, mark: Some(Arc::clone(&rules.mark)), namespace: None })
    }
}

/// Removes the prefix from a target, for an upstream that does not know it; also from the source of a mount (`from=`,
/// distribution-spec, section "Mounting a blob from another repository").
fn without_prefix(target: &PathAndQuery, prefix: &str) -> Option<PathAndQuery> {
    let path = under(behind(target.path(), API)?, prefix)?;
    let starts_upload = begins_upload(path);
    let query = target.query().map(|query| {
        let fields = query.split('&').map(|field| {
            let source = if starts_upload { mounted_from(field, prefix) } else { None };
            source.map_or(Cow::Borrowed(field), Cow::Owned)
        });
        ["?", &fields.collect::<Vec<_>>().join("&")].concat()
    });
    [API, path, query.as_deref().unwrap_or_default()].concat().parse().ok()
}

/// The rest of a raw path below a prefix.
fn under<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    behind(path, prefix).and_then(|rest| behind(rest, "/"))
}

/// Makes a request path of a raw path whose first slash may be encoded.
fn absolute(path: &str) -> Option<PathAndQuery> {
    ["/", behind(path, "/")?].concat().parse().ok()
}

/// A query parameter without the prefix, if it is `from=` with a repository below it.
fn mounted_from(field: &str, prefix: &str) -> Option<String> {
    let (_, repository) = parse(field.as_bytes()).find(|(key, _)| key == "from")?;
    let repository = repository.strip_prefix(prefix)?.strip_prefix('/')?;
    Some(std::iter::once("from=").chain(byte_serialize(repository.as_bytes())).collect())
}

impl Rules {
    /// Whether paths with this upstream's mark are given to clients.
    fn gives_marks(&self) -> bool {
        !(self.namespaces.is_empty() && self.prefixes.is_empty())
    }

    fn of(upstream: &UpstreamConfig) -> Self {
        Self {
            mark: format!("{MARK}{}", upstream.name).into(),
            hosts: upstream.hosts.clone(),
            namespaces: upstream.namespaces.clone(),
            prefixes: upstream.prefixes.iter().map(ToString::to_string).collect(),
            strip_prefix: upstream.strip_prefix,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CommandLine;

    fn selection() -> Selection {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("refshim.toml");
        let text = r#"
            upstream = "http://default"
            [upstreams.hub]
            url = "http://hub"
            hosts = ["hub.example.com", "other.example.com:8443"]
            namespaces = ["docker.io"]
            prefixes = ["hub"]
            strip_prefix = true
            [upstreams.inner]
            url = "http://inner"
            prefixes = ["hub/inner", "team"]
            [upstreams.own]
            url = "http://own"
            hosts = ["own.example.com"]
        "#;
        std::fs::write(&file, text).unwrap();
        Selection::new(
            &Config::load(&CommandLine { config: Some(file), ..CommandLine::default() }, []).unwrap(),
        )
    }

    #[track_caller]
    fn check(host: &str, target: &str, expected: (usize, &str, Option<&str>, Option<&str>)) {
        let selected = selection().select(Some(host), &target.parse().unwrap());
        let sent = selected.target.as_ref().map_or(target, PathAndQuery::as_str);
        let (mark, namespace) = (selected.mark.as_deref(), selected.namespace.as_deref());
        assert_eq!((selected.place, sent, mark, namespace), expected, "{host} {target}");
    }

    const HUB: Option<&str> = Some("/.refshim/hub");
    const INNER: Option<&str> = Some("/.refshim/inner");

    #[test]
    fn a_host_chooses_before_a_namespace_before_a_prefix() {
        check("any", "/v2/", (0, "/v2/", None, None));
        check("hub.example.com", "/v2/a/tags/list", (1, "/v2/a/tags/list", None, None));
        check("HUB.example.com:5000", "/v2/team/a/tags/list", (1, "/v2/team/a/tags/list", None, None));
        check("other.example.com:8443", "/", (1, "/", None, None));
        check("other.example.com", "/", (0, "/", None, None));
        check("any", "/v2/team/a?ns=docker.io", (1, "/v2/team/a?ns=docker.io", HUB, Some("docker.io")));
        check("any", "/v2/a?x=1&ns=docker%2Eio", (1, "/v2/a?x=1&ns=docker%2Eio", HUB, Some("docker.io")));
        check("any", "/v2/a?ns=quay.io", (0, "/v2/a?ns=quay.io", None, None));
    }

    #[test]
    fn the_longest_prefix_chooses_and_is_taken_off_where_the_upstream_does_not_know_it() {
        check("any", "/v2/hub/library/a/tags/list?n=1", (1, "/v2/library/a/tags/list?n=1", HUB, None));
        check("any", "/v2/hub/inner/a/tags/list", (2, "/v2/hub/inner/a/tags/list", INNER, None));
        check("any", "/v2/team/manifests/x", (2, "/v2/team/manifests/x", INNER, None));
        check("any", "/v2/hubs/a/tags/list", (0, "/v2/hubs/a/tags/list", None, None));
        check("any", "/hub/a", (0, "/hub/a", None, None));
    }

    #[test]
    fn a_marked_path_leads_back() {
        check("any", "/.refshim/hub/v2/a?x=%2F", (1, "/v2/a?x=%2F", HUB, None));
        check("any", "/.refshim/inner/outside", (2, "/outside", INNER, None));
        check("hub.example.com", "/.refshim/inner/", (2, "/", INNER, None));
        check("any", "/%2Erefshim%2fhu%62%2Fv2/a%2Fb", (1, "/v2/a%2Fb", HUB, None));
        check("any", "/.refshim/hub/.refshim/inner/", (1, "/.refshim/inner/", HUB, None));
        check("any", "/.refshim/none/v2/", (0, "/.refshim/none/v2/", None, None));
        check("any", "/.refshim/hub", (0, "/.refshim/hub", None, None));
        check("any", "/.refshim/hub?/", (0, "/.refshim/hub?/", None, None));
    }

    #[test]
    fn an_upstream_that_gives_no_marks_is_not_reached_by_one() {
        for name in ["own", "default"] {
            let target = format!("/.refshim/{name}/v2/a");
            check("any", &target, (0, &target, None, None));
            check("own.example.com", &target, (3, &target, None, None));
        }
    }

    #[test]
    fn an_upstream_that_only_a_host_selects_is_reached_by_no_other() {
        let selection = selection();
        assert_eq!(selection.reachable(Some("any:5002")), [0, 1, 2]);
        assert_eq!(selection.reachable(None), [0, 1, 2]);
        assert_eq!(selection.reachable(Some("own.example.com:5002")), [3]);
        assert_eq!(selection.reachable(Some("hub.example.com")), [1]);
    }

    #[test]
    fn clients_write_the_host_or_the_prefix() {
        let selection = selection();
        let name = "a/b".parse().unwrap();
        assert_eq!(selection.name_for_clients(0, &name), (None, "a/b".to_owned()));
        assert_eq!(selection.name_for_clients(1, &name), (Some("hub.example.com"), "a/b".to_owned()));
        assert_eq!(selection.name_for_clients(2, &name), (None, "a/b".to_owned()));
    }

    #[test]
    fn a_prefix_is_the_same_in_any_encoding() {
        check("any", "/%76%32/h%75b%2Flibrary/a", (1, "/v2/library/a", HUB, None));
        check("any", "/v2/hub/inne%72/a%2Fb", (2, "/v2/hub/inne%72/a%2Fb", INNER, None));
        check("any", "/v2/hub%252Fa", (0, "/v2/hub%252Fa", None, None));
        check("any", "/v2/hub;x/a", (0, "/v2/hub;x/a", None, None));
        check("any", "/v2/hub//a", (1, "/v2//a", HUB, None));
        for target in ["/v2/hub/../team/a", "/v2/hub/%2e%2E%2fteam/a", "/v2/hub/./a"] {
            check("any", target, (0, target, None, None));
        }
    }
}
