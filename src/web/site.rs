//! What an address of the page asks for: which image, in which registry, which part of it; and the addresses of other
//! pages about the same.

use std::str::FromStr as _;

use form_urlencoded::parse;
use http::uri::PathAndQuery;

use super::page::{HealthPage, SearchPage};
use super::respond::{Failure, REGISTRY, Shown};
use super::text::address;
use super::{Health, Web, WebRegistry};
use crate::config::UpstreamName;
use crate::http::route::API;
use crate::index::Order;
use crate::oci::{ArtifactKind, Digest, RepositoryName, Tag, TagOrDigest};
use crate::proxy::forward::Origin;

/// The pages, as one visitor can reach them, and the parameters of the request.
#[derive(Debug)]
pub(super) struct Site<'a> {
    web: &'a Web,
    host: Option<String>,
    reachable: Vec<usize>,
    image: String,
    upstream: Option<String>,
    /// The last referrer of the page before.
    pub(super) after: Option<Order>,
    /// Only referrers of this kind.
    pub(super) kind: Option<ArtifactKind>,
}

/// An image that a page is about.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) at: &'a WebRegistry,
    /// Its position among the upstreams.
    place: usize,
    pub(super) name: RepositoryName,
    pub(super) target: TagOrDigest,
}

impl Web {
    /// What a request with this query asks for.
    pub(super) fn site(&self, origin: &Origin, query: &str) -> Site<'_> {
        let field = |name: &str| {
            let value = parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value);
            value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let host = origin.requested_host().map(str::to_owned);
        Site {
            reachable: self.reachable(host.as_deref()),
            web: self,
            host,
            image: field("image").unwrap_or_default(),
            upstream: field("upstream"),
            after: field("after").and_then(|after| after.parse().ok()),
            kind: field("kind").and_then(|kind| ArtifactKind::with_slug(&kind)),
        }
    }
}

impl Site<'_> {
    /// The image that is asked for in this registry.
    pub(super) fn asked_at(&self, upstream: &UpstreamName) -> Result<Asked<'_>, Failure> {
        let place = self.named(upstream.as_str()).ok_or(Failure::NotShown)?;
        let (name, target) = parse_image(&self.image)?;
        self.asked(place, name, target)
    }

    /// The way to the page of the image in its registry: the one that was chosen, else that of the name as clients
    /// write it.
    pub(super) fn lead_to(&self, page: &str) -> Result<Shown, Failure> {
        if self.image.is_empty() {
            return Shown::redirect("/");
        }
        if self.asks_for_digest() {
            return self.lead_to_digest(self.upstream.as_deref());
        }
        let (name, target) = parse_image(&self.image)?;
        let (place, name) = match &self.upstream {
            Some(upstream) => (self.named(upstream).ok_or(Failure::NotShown)?, name),
            None => self.selected(name)?,
        };
        let asked = self.asked(place, name, target)?;
        Shown::redirect(&asked.page(page, &asked.target, &[]))
    }

    /// The way to the page of a digest alone: in the registry that was chosen, or the only one.
    pub(super) fn lead_to_digest(&self, upstream: Option<&str>) -> Result<Shown, Failure> {
        let digest = bare_digest(&self.image).ok_or(Failure::Input(NOT_A_DIGEST))?;
        let place = match (upstream, &*self.reachable) {
            (Some(upstream), _) => self.named(upstream).ok_or(Failure::NotShown)?,
            (None, [only]) => *only,
            (None, []) => return Err(Failure::NotShown),
            (None, _) => return Err(Failure::Input(WHICH_REGISTRY)),
        };
        let at = self.web.registries.get(place).ok_or(Failure::NotShown)?;
        let page = [REGISTRY, at.upstream.name().as_str(), "/digest"].concat();
        Shown::redirect(&address(&page, &[("image", &digest.to_string())]))
    }

    /// Whether a digest alone is asked for.
    pub(super) fn asks_for_digest(&self) -> bool {
        bare_digest(&self.image).is_some()
    }

    /// The digest that is asked for in this registry, without a repository; the registry's position among the upstreams.
    pub(super) fn digest_at(
        &self,
        upstream: &UpstreamName,
    ) -> Result<(usize, &WebRegistry, Digest), Failure> {
        let place = self.named(upstream.as_str()).ok_or(Failure::NotShown)?;
        let at = self.web.registries.get(place).ok_or(Failure::NotShown)?;
        Ok((place, at, bare_digest(&self.image).ok_or(Failure::Input(NOT_A_DIGEST))?))
    }

    /// The image in the registry at this position.
    pub(super) fn asked(
        &self,
        place: usize,
        name: RepositoryName,
        target: TagOrDigest,
    ) -> Result<Asked<'_>, Failure> {
        let at = self.web.registries.get(place).filter(|_| self.reachable.contains(&place));
        Ok(Asked { at: at.ok_or(Failure::NotShown)?, place, name, target })
    }

    fn named(&self, upstream: &str) -> Option<usize> {
        let is_it = |place: &&usize| {
            let registry = self.web.registries.get(**place);
            registry.is_some_and(|registry| registry.upstream.name().as_str() == upstream)
        };
        self.reachable.iter().find(is_it).copied()
    }

    /// The upstream of a name as clients write it, and the name there.
    fn selected(&self, name: RepositoryName) -> Result<(usize, RepositoryName), Failure> {
        let target =
            PathAndQuery::from_str(&format!("{API}{name}/tags/list")).map_err(|_| Failure::NoSuchPage)?;
        let selected = self.web.selection.select(self.host.as_deref(), &target);
        let Some(rewritten) = selected.target else { return Ok((selected.place, name)) };
        // The prefix was taken off.
        let there = rewritten.path().strip_prefix(API).and_then(|rest| rest.strip_suffix("/tags/list"));
        let there = there.and_then(|name| name.parse().ok());
        Ok((selected.place, there.ok_or_else(|| Failure::Input(NOT_A_NAME))?))
    }

    /// The page to search on.
    pub(super) fn search(&self) -> Result<Shown, Failure> {
        Shown::page(&SearchPage { choices: &self.choices() })
    }

    /// The registries to choose from, if there are several.
    fn choices(&self) -> Vec<String> {
        let names = self.reachable.iter().filter_map(|place| self.web.registries.get(*place));
        let names = names.map(|registry| registry.upstream.name().to_string());
        if self.reachable.len() > 1 { names.collect() } else { Vec::new() }
    }

    /// Which parts work, of those that this visitor can reach.
    pub(super) fn health(&self, health: &Health) -> Result<Shown, Failure> {
        let is_reachable = |name: &str| self.named(name).is_some();
        let mut parts = vec![("Lists of what is attached".to_owned(), health.index)];
        let upstreams = health.upstreams.iter().filter(|(name, _)| is_reachable(name.as_str()));
        parts.extend(upstreams.map(|(name, works)| match self.reachable.len() {
            1 => ("The registry".to_owned(), *works),
            _ => (format!("The registry {name}"), *works),
        }));
        Shown::page(&HealthPage { parts: &parts, replicas: health.replicas })
    }
}

impl Asked<'_> {
    /// The address of a page about this manifest of the same repository.
    pub(super) fn page(&self, page: &str, target: &TagOrDigest, more: &[(&str, &str)]) -> String {
        let image = self.image(target);
        let mut parameters = vec![("image", image.as_str())];
        parameters.extend(more);
        address(&[REGISTRY, self.at.upstream.name().as_str(), page].concat(), &parameters)
    }

    /// The same for a digest.
    pub(super) fn page_of(&self, page: &str, digest: &Digest) -> String {
        self.page(page, &TagOrDigest::Digest(digest.clone()), &[])
    }

    /// `library/alpine:3.20`
    pub(super) fn image(&self, target: &TagOrDigest) -> String {
        match target {
            TagOrDigest::Tag(tag) => format!("{}:{tag}", self.name),
            TagOrDigest::Digest(digest) => format!("{}@{digest}", self.name),
        }
    }

    /// The repository as clients write it, `registry.example/library/alpine`.
    pub(super) fn for_clients(&self, web: &Web) -> String {
        let (host, name) = web.selection.name_for_clients(self.place, &self.name);
        let host = host.or(web.host.as_deref()).unwrap_or("REGISTRY");
        format!("{host}/{name}")
    }
}

const NOT_A_DIGEST: &str = "This is not a digest: write sha256: and 64 digits from 0 to 9 and a to f, or sha512: and \
     128 of them.";
const WHICH_REGISTRY: &str = "Of a digest alone, choose the registry in which it is.";
const NOT_A_NAME: &str = "Write an image as repository:tag or repository@digest, without the registry's \
     host: library/alpine:3.20.";

/// A digest without a repository, with an `@` before it or not.
fn bare_digest(text: &str) -> Option<Digest> {
    text.strip_prefix('@').unwrap_or(text).parse().ok()
}

/// `name[:tag][@digest]`; without either, the tag `latest`. A digest counts before a tag.
fn parse_image(text: &str) -> Result<(RepositoryName, TagOrDigest), Failure> {
    let not_a_name = || Failure::Input(NOT_A_NAME);
    let (text, digest) = match text.split_once('@') {
        Some((text, digest)) => (text, Some(digest)),
        None => (text, None),
    };
    let (name, tag) = match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        Some(_) | None => (text, None),
    };
    let name = name.parse().map_err(|_| not_a_name())?;
    let tag: Option<Tag> = tag.map(str::parse).transpose().map_err(|_| not_a_name())?;
    let digest: Option<Digest> =
        digest.map(str::parse).transpose().map_err(|_| Failure::Input(NOT_A_DIGEST))?;
    let target = digest.map_or_else(|| TagOrDigest::Tag(tag.unwrap_or(Tag::latest())), TagOrDigest::Digest);
    Ok((name, target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(&str, &str)>) {
        let parsed = parse_image(text).ok().map(|(name, target)| (name.to_string(), target.to_string()));
        let expected = expected.map(|(name, target)| (name.to_owned(), target.to_owned()));
        assert_eq!(parsed, expected, "{text}");
    }

    #[test]
    fn images_are_written_with_a_tag_or_a_digest() {
        let digest = Digest::Sha256([1; 32]).to_string();
        check("a/b:v1", Some(("a/b", "v1")));
        check("a/b", Some(("a/b", "latest")));
        check(&format!("a@{digest}"), Some(("a", &digest)));
        check(&format!("a:v1@{digest}"), Some(("a", &digest)));
        for text in
            ["", ":v1", "a:", "a@", "A/b", "host:5000/a", "a b", "../a", "a@sha256:0", "a:v1:v2", "<b>"]
        {
            check(text, None);
        }
    }
}
