//! The parameters of a referrers query. Those that the specification does not name are ignored.

use std::sync::Arc;

use form_urlencoded::Serializer;

use crate::http::route;
use crate::index::{Entry, InvalidOrder, Order};
use crate::oci::{Digest, LinkKinds, RepositoryName, media_type};
use crate::proxy::error::BadQuery;
use crate::queries::pages::{PageRequest, QueryScope};

/// The parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReferrersQuery {
    /// Repeats mean "or": containerd and moby repeat it.
    artifact_types: Vec<String>,
    after: Option<Order>,
}

/// The members of a descriptor that the filter reads.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Typed {
    artifact_type: Option<String>,
}

impl ReferrersQuery {
    /// Parses a query. An empty `artifactType` does not filter.
    pub(crate) fn parse(query: &str) -> Result<Self, BadQuery> {
        let mut parsed = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "artifactType" if !value.is_empty() => {
                    parsed.artifact_types.push(value.into_owned());
                }
                "last" => parsed.after = Some(value.parse().map_err(|InvalidOrder| BadQuery::Last)?),
                _ => {}
            }
        }
        Ok(parsed)
    }

    /// The page that the query asks for, which was parsed from `asked`, of links of these kinds.
    pub(crate) fn wanted(&self, asked: &str, kinds: LinkKinds) -> PageRequest {
        let artifact_types = self.artifact_types.clone();
        let is_wanted = move |entry: &Entry| {
            artifact_types.is_empty()
                || serde_json::from_str::<Typed>(&entry.descriptor)
                    .ok()
                    .and_then(|entry| entry.artifact_type)
                    .is_some_and(|own| media_type::is_among(&own, &artifact_types))
        };
        PageRequest {
            after: self.after,
            count: None,
            accepts: Arc::new(move |entry| kinds.intersects(entry.kinds) && is_wanted(entry)),
            inline: false,
            gathers: true,
            scope: QueryScope::Repository,
            // Without the kinds, which are the same for all.
            name: Some(["referrers?", asked].concat().into()),
        }
    }

    /// The name of the applied filter, for `OCI-Filters-Applied`.
    pub(crate) fn filters_applied(&self) -> Option<String> {
        (!self.artifact_types.is_empty()).then(|| "artifactType".to_owned())
    }

    /// The target of `Link: rel="next"`, after the entry at `last`.
    pub(crate) fn next(&self, repository: &RepositoryName, subject: &Digest, last: Order) -> String {
        let mut query = Serializer::new(String::new());
        for artifact_type in &self.artifact_types {
            query.append_pair("artifactType", artifact_type);
        }
        query.append_pair("last", &last.to_string());
        [&route::referrers_path(repository, subject), "?", &query.finish()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(query: &str, artifact_types: &[&str], applied: Option<&str>) {
        let parsed = ReferrersQuery::parse(query).unwrap();
        assert_eq!(parsed.artifact_types, artifact_types, "{query}");
        assert_eq!(parsed.filters_applied().as_deref(), applied, "{query}");
    }

    #[test]
    fn only_the_artifact_type_filters() {
        check("", &[], None);
        check("ns=docker.io&predicateType=x&n=1", &[], None);
        check("artifactType=", &[], None);
        check("artifactType=a/b%2Bc", &["a/b+c"], Some("artifactType"));
        check("artifactType=a&artifactType=b", &["a", "b"], Some("artifactType"));
        assert_eq!(ReferrersQuery::parse("last=x"), Err(BadQuery::Last));
    }

    #[test]
    fn the_next_page_asks_the_same() {
        let query = ReferrersQuery::parse("artifactType=a%2Fb%26c&artifactType=d").unwrap();
        let subject = Digest::Sha256([7; 32]);
        let next = query.next(&"a/b".parse().unwrap(), &subject, Order(0xabc));
        let (path, parameters) = next.split_once('?').unwrap();
        assert_eq!(path, format!("/v2/a/b/referrers/{subject}"));
        assert_eq!(
            ReferrersQuery::parse(parameters).unwrap(),
            ReferrersQuery { after: Some(Order(0xabc)), ..query }
        );
    }
}
