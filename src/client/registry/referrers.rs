//! What refers to a manifest, from whichever of its lists a registry has: `/references` where refshim is in
//! front of it, else `/referrers`, else the referrers tag; and cosign's tags.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::header::CONTENT_TYPE;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::{Registry, by_digest, by_tag};
use crate::client::referrer::kinds_of;
use crate::client::session::{header, read, request};
use crate::client::{Error, Manifest, Part, Referrer, Result, Wanted};
use crate::oci::{Descriptor, Digest, LinkKind, LinkKinds, Tag, media_type};

/// How many manifests are asked for at a time.
const CONCURRENCY: usize = 8;
/// The tags of cosign, each a suffix to the tag of the digest.
const COSIGN_SUFFIXES: [&str; 3] = ["sig", "att", "sbom"];

#[derive(Deserialize)]
struct List {
    manifests: Option<Vec<Descriptor>>,
}

impl Registry {
    pub(in crate::client) async fn referrers(
        &self,
        subject: &Digest,
        wanted: &Wanted,
    ) -> Result<Vec<Referrer>> {
        let query = format!("manifests/{subject}/references?{}", wanted.to_query());
        if let Some(listed) = self.list(&query).await? {
            let mut referrers = self.of_references(subject, listed).await?;
            self.complete(subject, wanted, &mut referrers).await?;
            return Ok(referrers);
        }
        let mut referrers = match self.list(&format!("referrers/{subject}")).await? {
            Some(listed) => self.of_referrers(subject, listed, None).await?,
            None => self.of_fallback(subject).await?,
        };
        for referrer in self.of_cosign_tags(subject).await? {
            match referrers.iter_mut().find(|other| other.manifest.digest == referrer.manifest.digest) {
                Some(other) => {
                    other.kinds = other.kinds.iter().chain([LinkKind::Cosign]).collect();
                    other.tag = referrer.tag;
                }
                None => referrers.push(referrer),
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
            if self.list(&format!("referrers/{subject}")).await?.is_some() {
                return Ok(());
            }
            self.change_list(subject, |list| {
                for manifest in &manifests {
                    if list.iter().all(|listed| listed.digest != manifest.digest) {
                        list.push(manifest.descriptor());
                    }
                }
            })
            .await?;
        }
        Ok(())
    }

    pub(in crate::client) async fn unlist(&self, referrer: &Manifest) -> Result<()> {
        match referrer.subject() {
            Some(subject) => {
                self.change_list(subject, |list| list.retain(|listed| listed.digest != referrer.digest)).await
            }
            None => Ok(()),
        }
    }

    /// Writes the list at a subject's tag anew, if that changes it. Two who write at the same time are not kept
    /// apart: no registry offers that.
    async fn change_list(&self, subject: &Digest, change: impl FnOnce(&mut Vec<Descriptor>)) -> Result<()> {
        let tag = by_tag(Tag::of_referrers(subject));
        let before: Vec<Descriptor> = match self.manifest(&tag).await? {
            Some(index) if index.is_index() => {
                index.children().iter().map(|part| part.descriptor.clone()).collect()
            }
            Some(_) | None => Vec::new(),
        };
        let mut after = before.clone();
        change(&mut after);
        if after == before {
            return Ok(());
        }
        let index = json!({"schemaVersion": 2, "mediaType": media_type::IMAGE_INDEX, "manifests": after});
        let index = Manifest::new(Bytes::from(index.to_string()), Some(media_type::IMAGE_INDEX))?;
        self.put_manifest(&tag, &index).await
    }

    /// All pages of a list; nothing where there is no such list, and whatever else is there instead.
    async fn list(&self, path: &str) -> Result<Option<Vec<Descriptor>>> {
        let asked = format!("asking {self} what refers to {}", path.split(['/', '?']).nth(1).unwrap_or(path));
        let mut listed = Vec::new();
        let mut next = Some(self.url(path)?);
        while let Some(url) = next {
            let request = request(Method::GET, url.clone());
            let response = self.session.send(self.pull(&asked, request)).await?;
            let content_type = header(response.headers(), CONTENT_TYPE.as_str()).map(media_type::essence);
            match response.status() {
                StatusCode::OK if content_type == Some(media_type::IMAGE_INDEX) => {}
                StatusCode::OK
                | StatusCode::NOT_FOUND
                | StatusCode::BAD_REQUEST
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::NOT_ACCEPTABLE
                | StatusCode::NOT_IMPLEMENTED => return Ok(None),
                _ => return Err(self.session.refused(&asked, response).await),
            }
            next = self.next_page(&url, response.headers())?;
            let page: List = serde_json::from_slice(&read(&asked, response).await?)
                .map_err(|error| Error::failed(asked.as_str(), error.to_string()))?;
            listed.extend(page.manifests.unwrap_or_default());
        }
        Ok(Some(listed))
    }

    /// What refshim lists, with the manifests it sent along.
    async fn of_references(&self, subject: &Digest, listed: Vec<Descriptor>) -> Result<Vec<Referrer>> {
        let referrers = listed.into_iter().map(|descriptor| async move {
            let inline = descriptor.data.as_ref().and_then(|data| STANDARD.decode(data).ok());
            let manifest = match inline {
                Some(bytes) => {
                    Some(Manifest::verified(&descriptor.digest, bytes.into(), Some(&descriptor.media_type))?)
                }
                None => self.manifest(&by_digest(&descriptor.digest)).await?,
            };
            // One that is gone refers to nothing any more.
            Ok(manifest.map(|manifest| Referrer {
                kinds: kinds_of(&manifest, None, subject),
                manifest,
                tag: None,
            }))
        });
        let referrers: Vec<Option<Referrer>> =
            stream::iter(referrers).buffered(CONCURRENCY).try_collect().await?;
        Ok(referrers.into_iter().flatten().collect())
    }

    /// The kinds that a manifest does not show by itself are asked for.
    async fn complete(&self, subject: &Digest, wanted: &Wanted, referrers: &mut [Referrer]) -> Result<()> {
        let sought: LinkKinds = wanted.kinds.iter().copied().collect();
        let is_open =
            |kinds: LinkKinds| if sought.is_empty() { kinds.is_empty() } else { !kinds.intersects(sought) };
        for kind in [LinkKind::Cosign, LinkKind::Attestation, LinkKind::Fallback] {
            let asks = sought.is_empty() || sought.intersects(kind.into());
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

    /// What OCI's list names. Each manifest is fetched, and counts if it says itself what it is about.
    async fn of_referrers(
        &self,
        subject: &Digest,
        listed: Vec<Descriptor>,
        by: Option<LinkKind>,
    ) -> Result<Vec<Referrer>> {
        let fetched = listed.into_iter().map(|descriptor| async move {
            let manifest = self.manifest(&by_digest(&descriptor.digest)).await?;
            Ok::<_, Error>(manifest.filter(|manifest| manifest.subject() == Some(subject)))
        });
        let fetched: Vec<Option<Manifest>> =
            stream::iter(fetched).buffered(CONCURRENCY).try_collect().await?;
        let referrer = |manifest: Manifest| {
            let kinds = kinds_of(&manifest, None, subject).iter().chain(by).collect();
            Referrer { manifest, kinds, tag: None }
        };
        Ok(fetched.into_iter().flatten().map(referrer).collect())
    }

    async fn of_fallback(&self, subject: &Digest) -> Result<Vec<Referrer>> {
        let index = self.manifest(&by_tag(Tag::of_referrers(subject))).await?;
        let Some(index) = index.filter(Manifest::is_index) else { return Ok(Vec::new()) };
        let listed = index.children().iter().map(|part: &Part| part.descriptor.clone()).collect();
        self.of_referrers(subject, listed, Some(LinkKind::Fallback)).await
    }

    async fn of_cosign_tags(&self, subject: &Digest) -> Result<Vec<Referrer>> {
        let mut found = Vec::new();
        for suffix in COSIGN_SUFFIXES {
            let tag = format!("{}.{suffix}", subject.to_string().replace(':', "-"));
            // A sha512 digest makes a tag that is too long to be one.
            let Ok(tag) = tag.parse::<Tag>() else { continue };
            if let Some(manifest) = self.manifest(&by_tag(tag.clone())).await? {
                let kinds = kinds_of(&manifest, Some(&tag), subject);
                found.push(Referrer { manifest, kinds, tag: Some(tag) });
            }
        }
        Ok(found)
    }
}
