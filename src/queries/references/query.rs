//! The parameters of a references query: parsed from the URI, applied to entries, and written into the `Link` to the
//! next page. Unlike those of a referrers query, malformed ones are answered with 400: this query is refshim's own.

use std::sync::Arc;

use form_urlencoded::Serializer;

use crate::index::{InvalidOrder, Order};
use crate::oci::{AnnotationFilter, Descriptor, InvalidAnnotationFilter, LinkKind, LinkKinds, media_type};
use crate::proxy::error::BadQuery;
use crate::queries::pages::{Accepts, Next, PageRequest, QueryScope};

/// The parameters. Repeats of a filter mean "or", different filters "and".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReferencesQuery {
    kinds: LinkKinds,
    artifact_types: Vec<String>,
    media_types: Vec<String>,
    annotations: Vec<AnnotationFilter>,
    inline: bool,
    count: Option<usize>,
    after: Option<Order>,
    scope: QueryScope,
}

impl ReferencesQuery {
    /// Parses a query. Unknown parameters (`ns`, `predicateType`) are ignored and never named as applied.
    pub(crate) fn parse(query: &str) -> Result<Self, BadQuery> {
        let mut parsed = Self::default();
        let mut kinds: Vec<LinkKind> = Vec::new();
        let (mut inline, mut scope, mut beyond) = (None, None, None);
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "kind" => kinds.push(value.parse().map_err(|_| BadQuery::Kind)?),
                "artifactType" => parsed.artifact_types.push(not_empty("artifactType", &value)?),
                "mediaType" => parsed.media_types.push(not_empty("mediaType", &value)?),
                "annotation" => parsed
                    .annotations
                    .push(value.parse().map_err(|InvalidAnnotationFilter| BadQuery::Annotation)?),
                "inline" => once("inline", &mut inline, value.parse().map_err(|_| BadQuery::Inline)?)?,
                "n" => once("n", &mut parsed.count, count(&value)?)?,
                "last" => once("last", &mut parsed.after, cursor(&value)?)?,
                "scope" => once("scope", &mut scope, is_registry(&value)?)?,
                "beyond" => once("beyond", &mut beyond, value.parse()?)?,
                _ => {}
            }
        }
        parsed.kinds = kinds.into_iter().collect();
        parsed.inline = inline.unwrap_or_default();
        if scope == Some(true) {
            parsed.scope = QueryScope::Registry(beyond);
        }
        Ok(parsed)
    }

    /// The names of the applied filters, for `OCI-Filters-Applied`.
    pub(crate) fn filters_applied(&self) -> Option<String> {
        let applied: Vec<&str> = [
            ("artifactType", !self.artifact_types.is_empty()),
            ("mediaType", !self.media_types.is_empty()),
            ("annotation", !self.annotations.is_empty()),
            ("kind", !self.kinds.is_empty()),
        ]
        .into_iter()
        .filter_map(|(name, applied)| applied.then_some(name))
        .collect();
        (!applied.is_empty()).then(|| applied.join(","))
    }

    /// The page that the query asks for, which was parsed from `asked`.
    pub(crate) fn wanted(&self, asked: &str) -> PageRequest {
        let gathered: LinkKinds = [LinkKind::Subject, LinkKind::Fallback].into_iter().collect();
        PageRequest {
            after: self.after,
            count: self.count,
            accepts: self.accepts(),
            inline: self.inline,
            gathers: self.kinds.is_empty() || self.kinds.intersects(gathered),
            scope: self.scope,
            name: Some(["references?", asked].concat().into()),
        }
    }

    /// The filter on entries.
    fn accepts(&self) -> Accepts {
        let query = self.clone();
        let reads_descriptors = !(query.artifact_types.is_empty()
            && query.media_types.is_empty()
            && query.annotations.is_empty());
        Arc::new(move |entry| {
            (query.kinds.is_empty() || query.kinds.intersects(entry.kinds))
                && (!reads_descriptors
                    || serde_json::from_str(&entry.descriptor).is_ok_and(|entry| query.matches(&entry)))
        })
    }

    /// The target of `Link: rel="next"`, below the list's path. That names the digest, not the tag: should the tag move,
    /// the pages still belong to one list.
    pub(crate) fn next(&self, path: &str, next: Next) -> String {
        let mut query = Serializer::new(String::new());
        for kind in self.kinds.iter() {
            query.append_pair("kind", kind.as_str());
        }
        for artifact_type in &self.artifact_types {
            query.append_pair("artifactType", artifact_type);
        }
        for media_type in &self.media_types {
            query.append_pair("mediaType", media_type);
        }
        for annotation in &self.annotations {
            query.append_pair("annotation", &annotation.to_string());
        }
        if self.inline {
            query.append_pair("inline", "true");
        }
        if let Some(count) = self.count {
            query.append_pair("n", &count.to_string());
        }
        if matches!(self.scope, QueryScope::Registry(_)) {
            query.append_pair("scope", "registry");
        }
        if let Some(beyond) = next.beyond {
            query.append_pair("beyond", &beyond.to_string());
        }
        if let Some(last) = next.after {
            query.append_pair("last", &last.to_string());
        }
        [path, "?", &query.finish()].concat()
    }

    fn matches(&self, entry: &Descriptor) -> bool {
        let artifact_type = entry.artifact_type.as_deref();
        (self.artifact_types.is_empty()
            || artifact_type.is_some_and(|own| media_type::is_among(own, &self.artifact_types)))
            && (self.media_types.is_empty() || media_type::is_among(&entry.media_type, &self.media_types))
            && (self.annotations.is_empty()
                || self.annotations.iter().any(|wanted| wanted.matches(&entry.annotations)))
    }
}

fn not_empty(name: &'static str, value: &str) -> Result<String, BadQuery> {
    if value.is_empty() { Err(BadQuery::Empty(name)) } else { Ok(value.to_owned()) }
}

fn once<T>(name: &'static str, place: &mut Option<T>, value: T) -> Result<(), BadQuery> {
    if place.replace(value).is_some() { Err(BadQuery::Repeated(name)) } else { Ok(()) }
}

fn count(value: &str) -> Result<usize, BadQuery> {
    let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
    let count = value.parse().ok().filter(|count| *count > 0 && is_number);
    count.ok_or(BadQuery::Count)
}

fn cursor(value: &str) -> Result<Order, BadQuery> {
    value.parse().map_err(|InvalidOrder| BadQuery::Last)
}

fn is_registry(value: &str) -> Result<bool, BadQuery> {
    match value {
        "registry" => Ok(true),
        "repository" => Ok(false),
        _ => Err(BadQuery::Scope),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{Entry, Version};
    use crate::oci::Digest;
    use crate::queries::pages::Beyond;

    #[track_caller]
    fn check_refused(query: &str, expected: BadQuery) {
        assert_eq!(ReferencesQuery::parse(query), Err(expected), "{query}");
    }

    #[test]
    fn malformed_parameters_are_named() {
        check_refused("n=0", BadQuery::Count);
        check_refused("n=-1", BadQuery::Count);
        check_refused("n=%2B1", BadQuery::Count);
        check_refused("n=", BadQuery::Count);
        check_refused("n=99999999999999999999999", BadQuery::Count);
        check_refused("n=1&n=2", BadQuery::Repeated("n"));
        check_refused("last=zz", BadQuery::Last);
        check_refused("last=1", BadQuery::Last);
        check_refused("last=+00000000000000f", BadQuery::Last);
        check_refused("scope=all", BadQuery::Scope);
        check_refused("beyond=1", BadQuery::Beyond);
        check_refused("kind=signature", BadQuery::Kind);
        check_refused("inline=yes", BadQuery::Inline);
        check_refused("annotation=", BadQuery::Annotation);
        check_refused("annotation==v", BadQuery::Annotation);
        check_refused("artifactType=", BadQuery::Empty("artifactType"));
        check_refused("mediaType=", BadQuery::Empty("mediaType"));
    }

    #[test]
    fn unknown_parameters_are_ignored_and_not_claimed() {
        let query = ReferencesQuery::parse("ns=docker.io&predicateType=x").unwrap();
        assert_eq!(query, ReferencesQuery::default());
        assert_eq!(query.filters_applied(), None);
    }

    fn entry(kind: LinkKind, artifact_type: &str) -> Entry {
        let descriptor = serde_json::json!({
            "mediaType": "application/m",
            "digest": Digest::Sha256([1; 32]),
            "size": 1,
            "artifactType": artifact_type,
            "annotations": {"a": "1"},
        });
        Entry {
            order: Order(1),
            digest: Digest::Sha256([1; 32]),
            kinds: kind.into(),
            pending: false,
            was_confirmed: true,
            version: Version(1),
            descriptor: descriptor.to_string(),
        }
    }

    #[track_caller]
    fn check_accepts(query: &str, expected: bool) {
        let query = ReferencesQuery::parse(query).unwrap();
        assert_eq!(query.accepts()(&entry(LinkKind::Reference, "application/a+b")), expected);
    }

    #[test]
    fn repeats_mean_or_and_different_filters_and() {
        check_accepts("", true);
        check_accepts("kind=reference", true);
        check_accepts("kind=parent", false);
        check_accepts("kind=parent&kind=reference", true);
        check_accepts("artifactType=application/a%2Bb", true);
        check_accepts("artifactType=application/a+b", true);
        check_accepts("artifactType=Application/A%2BB", true);
        check_accepts("mediaType=APPLICATION/m", true);
        check_accepts("artifactType=x&artifactType=application/a%2Bb", true);
        check_accepts("artifactType=x", false);
        check_accepts("mediaType=application/m&artifactType=x", false);
        check_accepts("mediaType=application/m", true);
        check_accepts("annotation=a", true);
        check_accepts("annotation=a=1", true);
        check_accepts("annotation=a=2", false);
        check_accepts("annotation=b", false);
        check_accepts("annotation=b&annotation=a", true);
    }

    #[test]
    fn the_next_page_asks_the_same() {
        let asked = "kind=reference&artifactType=a%2Fb%26c&annotation=k%3Dv%3Dw&annotation=z&inline=true&n=5";
        let query = ReferencesQuery::parse(asked).unwrap();
        let subject = Digest::Sha256([7; 32]);
        let after = Some(Order(0xabc));
        let path = format!("/v2/a/b/manifests/{subject}/references");
        let next = query.next(&path, Next { after, beyond: None });
        let (found, parameters) = next.split_once('?').unwrap();
        assert_eq!(found, path);
        assert_eq!(ReferencesQuery::parse(parameters).unwrap(), ReferencesQuery { after, ..query.clone() });
        assert_eq!(query.filters_applied().as_deref(), Some("artifactType,annotation,kind"));

        let query = ReferencesQuery::parse("scope=registry&n=5").unwrap();
        let beyond: Beyond = "0123456789abcdef".repeat(2).parse().unwrap();
        for next in [Next { after, beyond: Some(beyond) }, Next { after: None, beyond: Some(beyond) }] {
            let target = query.next(&path, next);
            let (_, parameters) = target.split_once('?').unwrap();
            let scope = QueryScope::Registry(Some(beyond));
            let expected = ReferencesQuery { after: next.after, scope, ..query.clone() };
            assert_eq!(ReferencesQuery::parse(parameters).unwrap(), expected);
        }
    }
}
