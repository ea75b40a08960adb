//! Referrers, and filters for them.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::Manifest;
use crate::oci::artifact::CREATED;
use crate::oci::{
    AnnotationFilter, ArtifactDescription, Descriptor, Digest, LinkKind, LinkKinds, RepositoryName, Tag,
};

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

/// A referrer as a list describes it, without its manifest.
#[derive(Clone, Debug)]
pub struct ListedReferrer {
    /// Its descriptor.
    pub descriptor: Descriptor,
    /// The kinds of its links to the subject, as far as they are known.
    pub kinds: LinkKinds,
    /// What it is.
    pub what: ArtifactDescription,
    /// The repository that it is in, if that is not its subject's.
    pub repository: Option<RepositoryName>,
}

/// What refers to one manifest, as lists describe it.
#[derive(Clone, Debug, Default)]
pub struct ReferrerList {
    /// The referrers, in the order of the registry: of a refshim, as they were pushed.
    pub found: Vec<ListedReferrer>,
    /// Those of which it turned out that they no longer exist.
    pub vanished: Vec<Digest>,
}

/// Where referrers are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListScope {
    /// In the subject's repository.
    #[default]
    Repository,
    /// In all repositories of the registry. Only refshim can tell.
    Registry,
}

impl ListedReferrer {
    /// What a descriptor says.
    #[must_use]
    pub fn of(descriptor: Descriptor, kinds: LinkKinds) -> Self {
        Self { what: ArtifactDescription::of(&descriptor), descriptor, kinds, repository: None }
    }

    /// Its annotation of when it was created, RFC 3339.
    #[must_use]
    pub fn created(&self) -> Option<&str> {
        self.descriptor.annotations.get(CREATED).map(String::as_str)
    }
}

impl From<&Referrer> for ListedReferrer {
    fn from(referrer: &Referrer) -> Self {
        let what = referrer.manifest.description(referrer.kinds);
        Self { what, ..Self::of(referrer.manifest.descriptor(), referrer.kinds) }
    }
}

impl From<Referrers> for ReferrerList {
    fn from(Referrers { found, vanished }: Referrers) -> Self {
        Self { found: found.iter().map(ListedReferrer::from).collect(), vanished }
    }
}

/// Filters. Values of one are alternatives, and all filters must match; an empty one matches everything.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Links of these kinds.
    pub kinds: Vec<LinkKind>,
    /// Is of one of these types: artifact types, or words for them ([`ArtifactDescription::is_called`]).
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
        self.takes_listed(&referrer.into())
    }

    /// Whether a referrer on a list passes the filters.
    #[must_use]
    pub fn takes_listed(&self, referrer: &ListedReferrer) -> bool {
        let kinds: LinkKinds = self.kinds.iter().copied().collect();
        (kinds.is_empty() || kinds.intersects(referrer.kinds))
            && (self.artifact_types.is_empty()
                || self.artifact_types.iter().any(|wanted| referrer.what.is_called(wanted)))
            && (self.annotations.is_empty()
                || self.annotations.iter().any(|wanted| wanted.matches(&referrer.descriptor.annotations)))
    }

    /// Whether something is sought by a word for what it is, which no descriptor states as such.
    pub(super) fn asks_what_it_is(&self) -> bool {
        !self.artifact_types.iter().all(|wanted| Manifest::could_state_type(wanted))
    }

    /// The filters as a references query that has the manifests sent along; [`Wanted::takes`] filters its answer again.
    pub(super) fn to_inline_query(&self) -> String {
        self.to_query("inline=true".to_owned())
    }

    /// The filters as a references query for descriptors; [`Wanted::takes_listed`] filters its answer again.
    pub(super) fn to_list_query(&self, scope: ListScope) -> String {
        let scope = match scope {
            ListScope::Repository => "repository",
            ListScope::Registry => "registry",
        };
        self.to_query(format!("scope={scope}"))
    }

    /// The filters behind what a query begins with, as far as a query has them.
    fn to_query(&self, mut query: String) -> String {
        // Every "+" and blank as %XX: in a query some servers read "+" as itself, and some as a blank.
        let mut add = |name: &str, value: &str| {
            query.extend(["&", name, "="]);
            query.extend(utf8_percent_encode(value, NON_ALPHANUMERIC));
        };
        for kind in &self.kinds {
            add("kind", kind.as_str());
        }
        // One word among them, and none is sent: they are alternatives, and the server, which does not know the
        // word, would leave out what it means.
        if !self.asks_what_it_is() {
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
        assert_eq!(wanted.to_inline_query(), format!("inline=true&kind=cosign{expected}"));
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
