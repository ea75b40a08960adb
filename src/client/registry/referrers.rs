//! The referrers of a manifest, from the best list that a registry has: `/references` if refshim is in front
//! of it, else `/referrers`, else the referrers tag; and cosign's tags.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::Deserialize;

use super::pages::Pages;
use super::tagged_list::ListChange;
use super::{Registry, by_digest, by_tag};
use crate::client::referrer::kinds_of;
use crate::client::transport::header;
use crate::client::{Error, Manifest, Referrer, Referrers, Result, Wanted};
use crate::oci::{Descriptor, Digest, LinkKind, LinkKinds, ReferrersList, Tag, media_type};

/// How many manifests are asked for at a time.
pub(super) const CONCURRENCY: usize = 8;
/// The tags of cosign, each a suffix to the tag of the digest.
const COSIGN_SUFFIXES: [&str; 3] = ["sig", "att", "sbom"];

#[derive(Deserialize)]
struct List {
    manifests: Option<Vec<Descriptor>>,
}

impl Registry {
    pub(in crate::client) async fn referrers(&self, subject: &Digest, wanted: &Wanted) -> Result<Referrers> {
        let query = format!("manifests/{subject}/references?{}", wanted.to_inline_query());
        if let Some(listed) = self.list(&query).await? {
            let mut referrers = self.of_references(subject, listed).await?;
            self.complete(subject, wanted, &mut referrers.found).await?;
            return Ok(referrers);
        }
        let mut referrers = match self.list(&format!("referrers/{subject}")).await? {
            Some(listed) => self.of_referrers(subject, listed, None).await?,
            None => self.of_fallback(subject).await?,
        };
        // On no list of OCI's: cosign links by the tag alone.
        for referrer in self.of_cosign_tags(subject).await? {
            let same = |other: &&mut Referrer| other.manifest.digest == referrer.manifest.digest;
            match referrers.found.iter_mut().find(same) {
                Some(other) => {
                    other.kinds = other.kinds.iter().chain([LinkKind::Cosign]).collect();
                    other.tag = referrer.tag;
                }
                None => referrers.found.push(referrer),
            }
        }
        Ok(referrers)
    }

    /// A manifest with a `subject` that the registry does not list has to be put on the list at the
    /// subject's tag (distribution-spec, "Referrers Tag Schema").
    pub(in crate::client) async fn ensure_listed(&self, referrers: &[Manifest]) -> Result<()> {
        let mut by_subject: BTreeMap<&Digest, Vec<&Manifest>> = BTreeMap::new();
        for manifest in referrers {
            if let Some(subject) = manifest.subject() {
                by_subject.entry(subject).or_default().push(manifest);
            }
        }
        for (subject, manifests) in by_subject {
            // A registry with the API lists every referrer by itself, so the other subjects need no tag,
            // either.
            if self.list(&format!("referrers/{subject}")).await?.is_some() {
                return Ok(());
            }
            let mut added = Added(manifests.into_iter().map(Manifest::descriptor).collect());
            self.change_list(subject, &mut added, None).await?;
        }
        Ok(())
    }

    pub(in crate::client) async fn unlist(&self, referrer: &Manifest) -> Result<()> {
        match referrer.subject() {
            // Also where there is an API: other clients go on writing the tag, and registries go on listing
            // what it lists.
            Some(subject) => {
                let mut removed = Removed(referrer.digest.clone());
                self.change_list(subject, &mut removed, None).await.map(|_| ())
            }
            None => Ok(()),
        }
    }

    /// What the registry's own referrers API lists; `None` if it has none.
    pub(in crate::client) async fn native_referrers(&self, subject: &Digest) -> Result<Option<Vec<Digest>>> {
        let listed = self.list(&format!("referrers/{subject}")).await?;
        Ok(listed.map(|listed| listed.into_iter().map(|referrer| referrer.digest).collect()))
    }

    /// The list at a subject's tag; empty if there is none.
    pub(super) async fn fallback_list(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        let tagged = self.manifest(&by_tag(Tag::of_referrers(subject))).await?;
        // GitLab resolves the tag `sha256-<hex>` as the digest: then this is the subject itself (oras-go
        // #1396). If that is an index, what it lists are its children. What was asked for by tag was hashed
        // with SHA-256, whatever the subject's algorithm.
        let is_list = |manifest: &Manifest| {
            manifest.is_index() && Digest::of(subject.algorithm(), &manifest.bytes) != *subject
        };
        let listed = tagged.filter(is_list);
        Ok(listed.iter().flat_map(Manifest::children).map(|part| part.descriptor.clone()).collect())
    }

    /// All pages of a list; `None` if the registry has no such list, whatever it answers instead.
    pub(super) async fn list(&self, path: &str) -> Result<Option<Vec<Descriptor>>> {
        let asked = format!("asking {self} what refers to {}", path.split(['/', '?']).nth(1).unwrap_or(path));
        let mut listed = Vec::new();
        let mut pages = Pages::of(self, &asked, path)?;
        while let Some(response) = pages.answer().await? {
            // A 200 alone is no list: GHCR redirects to a web page, and GAR has answered with a login page.
            let is_list = response.status() == StatusCode::OK
                && header(response.headers(), CONTENT_TYPE.as_str()).map(media_type::essence)
                    == Some(media_type::IMAGE_INDEX);
            if !is_list {
                // A later page that is missing is an error: a shorter list would read as "unsigned".
                return if pages.is_first() && says_no_list(response.status()) {
                    Ok(None)
                } else {
                    Err(self.session.refused(&asked, response).await)
                };
            }
            let page: List = serde_json::from_slice(&pages.body(response).await?)
                .map_err(|error| Error::failed(asked.as_str(), error.to_string()))?;
            listed.extend(page.manifests.unwrap_or_default());
        }
        Ok(Some(listed))
    }

    /// The entries of refshim's list, with the manifests that it sent along (`inline=true`).
    async fn of_references(&self, subject: &Digest, listed: Vec<Descriptor>) -> Result<Referrers> {
        let referrers = listed.into_iter().map(|descriptor| async move {
            let inline = descriptor.data.as_ref().and_then(|data| STANDARD.decode(data).ok());
            // Inlined only up to the page limit: the rest is fetched.
            let manifest = match inline {
                Some(bytes) => {
                    Some(Manifest::verified(&descriptor.digest, bytes.into(), Some(&descriptor.media_type))?)
                }
                None => self.manifest(&by_digest(&descriptor.digest)).await?,
            };
            Ok(match manifest {
                Some(manifest) => {
                    let kinds = kinds_of(&manifest, None, subject);
                    Listed::Referrer(Referrer { kinds, manifest, tag: None }.into())
                }
                None => Listed::Vanished(descriptor.digest),
            })
        });
        Ok(sorted(stream::iter(referrers).buffered(CONCURRENCY).try_collect().await?))
    }

    /// Asks for the kinds of link that a manifest does not show by itself: those made by a tag, or by an
    /// index.
    async fn complete(&self, subject: &Digest, wanted: &Wanted, referrers: &mut [Referrer]) -> Result<()> {
        let sought: LinkKinds = wanted.kinds.iter().copied().collect();
        let is_open =
            |kinds: LinkKinds| if sought.is_empty() { kinds.is_empty() } else { !kinds.intersects(sought) };
        for kind in [LinkKind::Cosign, LinkKind::Attestation, LinkKind::Fallback] {
            let asks = sought.is_empty() || sought.intersects(kind.into());
            // A request for each kind, only while there is a referrer that none of its own links explains.
            if !asks || !referrers.iter().any(|referrer| is_open(referrer.kinds)) {
                continue;
            }
            let of_kind =
                self.list(&format!("manifests/{subject}/references?kind={kind}")).await?.unwrap_or_default();
            for referrer in referrers.iter_mut() {
                if of_kind.iter().any(|listed| listed.digest == referrer.manifest.digest) {
                    referrer.kinds = referrer.kinds.iter().chain([kind]).collect();
                }
            }
        }
        // A copy needs the tag to carry the link along; refshim's list does not name it.
        if referrers.iter().any(|referrer| referrer.kinds.intersects(LinkKind::Cosign.into())) {
            for tagged in self.of_cosign_tags(subject).await? {
                let same = |referrer: &&mut Referrer| referrer.manifest.digest == tagged.manifest.digest;
                if let Some(referrer) = referrers.iter_mut().find(same) {
                    referrer.tag = tagged.tag;
                }
            }
        }
        Ok(())
    }

    /// The entries of a list of OCI's. Each manifest is fetched and counts only if its own `subject` says so:
    /// anyone who may push a tag can write the list.
    async fn of_referrers(
        &self,
        subject: &Digest,
        listed: Vec<Descriptor>,
        by: Option<LinkKind>,
    ) -> Result<Referrers> {
        let referrers = listed.into_iter().map(|descriptor| async move {
            Ok(match self.manifest(&by_digest(&descriptor.digest)).await? {
                Some(manifest) if manifest.subject() == Some(subject) => {
                    let kinds = kinds_of(&manifest, None, subject).iter().chain(by).collect();
                    Listed::Referrer(Referrer { manifest, kinds, tag: None }.into())
                }
                Some(_) => Listed::Unrelated,
                None => Listed::Vanished(descriptor.digest),
            })
        });
        Ok(sorted(stream::iter(referrers).buffered(CONCURRENCY).try_collect().await?))
    }

    pub(super) async fn of_fallback(&self, subject: &Digest) -> Result<Referrers> {
        let listed = self.fallback_list(subject).await?;
        self.of_referrers(subject, listed, Some(LinkKind::Fallback)).await
    }

    pub(super) async fn of_cosign_tags(&self, subject: &Digest) -> Result<Vec<Referrer>> {
        let mut found = Vec::new();
        for suffix in COSIGN_SUFFIXES {
            let tag = format!("{}.{suffix}", subject.to_string().replace(':', "-"));
            // Of a sha512 digest it would be longer than a tag may be, 128 characters.
            let Ok(tag) = tag.parse::<Tag>() else { continue };
            if let Some(manifest) = self.manifest(&by_tag(tag.clone())).await? {
                let kinds = kinds_of(&manifest, Some(&tag), subject);
                found.push(Referrer { manifest, kinds, tag: Some(tag) });
            }
        }
        Ok(found)
    }
}

/// Has the list name these.
struct Added(Vec<Descriptor>);

/// Has the list not name this.
struct Removed(Digest);

impl ListChange for Added {
    async fn apply(&mut self, list: &mut ReferrersList) -> Result<()> {
        for descriptor in &self.0 {
            list.put(descriptor);
        }
        Ok(())
    }
}

impl ListChange for Removed {
    async fn apply(&mut self, list: &mut ReferrersList) -> Result<()> {
        list.remove(&self.0);
        Ok(())
    }
}

/// What an entry of a list leads to.
enum Listed {
    Referrer(Box<Referrer>),
    /// The manifest is about something else, whatever the list says.
    Unrelated,
    Vanished(Digest),
}

fn sorted(listed: Vec<Listed>) -> Referrers {
    let mut referrers = Referrers::default();
    for entry in listed {
        match entry {
            Listed::Referrer(referrer) => referrers.found.push(*referrer),
            Listed::Unrelated => {}
            Listed::Vanished(digest) => referrers.vanished.push(digest),
        }
    }
    referrers
}

/// Whether this status can mean that the registry has no such list. All others are errors.
fn says_no_list(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::OK
            | StatusCode::NOT_FOUND
            | StatusCode::BAD_REQUEST
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::NOT_ACCEPTABLE
            | StatusCode::NOT_IMPLEMENTED
    )
}
