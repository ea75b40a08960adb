//! Referrers, and filters for them.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::Manifest;
use crate::oci::{AnnotationFilter, Digest, LinkKind, LinkKinds, Tag};

/// A manifest that refers to another.
#[derive(Clone, Debug)]
pub struct Referrer {
    /// The referring manifest.
    pub manifest: Manifest,
    /// The kinds of its links to the subject.
    pub kinds: LinkKinds,
    /// The tag that makes it a referrer, as cosign's do.
    pub tag: Option<Tag>,
}

/// The referrers of one manifest.
#[derive(Clone, Debug, Default)]
pub struct Referrers {
    /// Those that exist, oldest first where the order is known.
    pub found: Vec<Referrer>,
    /// Those that are listed but answered with 404: deleted without the list being updated.
    pub vanished: Vec<Digest>,
}

/// Filters. Values of one are alternatives, and all filters must match; an empty one matches everything.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Links of these kinds.
    pub kinds: Vec<LinkKind>,
    /// Is of one of these types: artifact types, or the words of [`Manifest::type_name`] for common ones.
    pub artifact_types: Vec<String>,
    /// Has one of these.
    pub annotations: Vec<AnnotationFilter>,
}

impl Wanted {
    /// What is attached to an image and copied with it.
    #[must_use]
    pub fn attached() -> Self {
        Self { kinds: LinkKind::ATTACHED.to_vec(), ..Self::default() }
    }

    /// Whether a referrer passes the filters.
    #[must_use]
    pub fn takes(&self, referrer: &Referrer) -> bool {
        let manifest = &referrer.manifest;
        let kinds: LinkKinds = self.kinds.iter().copied().collect();
        (kinds.is_empty() || kinds.intersects(referrer.kinds))
            && (self.artifact_types.is_empty()
                || self.artifact_types.iter().any(|wanted| manifest.is_of_type(wanted)))
            && (self.annotations.is_empty()
                || self.annotations.iter().any(|wanted| wanted.matches(manifest.annotations())))
    }

    /// The filters as a references query, as far as it has them; [`Wanted::takes`] filters its answer again.
    pub(super) fn to_query(&self) -> String {
        let mut query = "inline=true".to_owned();
        // Every "+" and blank as %XX: in a query some servers read "+" as itself, and some as a blank.
        let mut add = |name: &str, value: &str| {
            query.extend(["&", name, "="]);
            query.extend(utf8_percent_encode(value, NON_ALPHANUMERIC));
        };
        for kind in &self.kinds {
            add("kind", kind.as_str());
        }
        // One word of `type_name` among them, and none is sent: they are alternatives, and the server, which
        // does not know the word, would leave out what it means.
        if self.artifact_types.iter().all(|wanted| Manifest::could_state_type(wanted)) {
            self.artifact_types.iter().for_each(|wanted| add("artifactType", wanted));
        }
        for annotation in &self.annotations {
            add("annotation", &annotation.to_string());
        }
        query
    }
}

/// The kinds of a manifest's links to `subject`, when it is pushed to this tag.
pub(super) fn kinds_of(manifest: &Manifest, tag: Option<&Tag>, subject: &Digest) -> LinkKinds {
    let links = manifest.links(tag).links.into_iter();
    links.filter(|link| link.subject == *subject).map(|link| link.kind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(artifact_types: &[&str], annotation: &str, expected: &str) {
        let wanted = Wanted {
            kinds: vec![LinkKind::Cosign],
            artifact_types: artifact_types.iter().map(|&text| text.to_owned()).collect(),
            annotations: vec![annotation.parse().unwrap()],
        };
        assert_eq!(wanted.to_query(), format!("inline=true&kind=cosign{expected}"));
    }

    #[test]
    fn a_query_reads_the_same_whatever_a_plus_means() {
        check(&["a/b+json"], "k=v", "&artifactType=a%2Fb%2Bjson&annotation=k%3Dv");
        check(
            &["a/b", "c/d"],
            "a b=c+d&",
            "&artifactType=a%2Fb&artifactType=c%2Fd&annotation=a%20b%3Dc%2Bd%26",
        );
        check(&["a/b", "image"], "k", "&annotation=k");
    }
}
