//! Parses manifests into what the index keeps of them, within limits, and says which links are not recorded and why.
//! Pushed and pulled manifests are parsed alike.
//!
//! A manifest over `manifests.max_bytes`, with malformed links, or with too many links always passes through all the
//! same; only its links are not recorded. The log, a metric and a `Warning` on the answer to the push say so.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;

use crate::config::{Config, UpstreamConfig};
use crate::http::body::{BodyError, Held, PushLimits};
use crate::http::limits::{Pushes, RequestGuard};
use crate::index::{Observation, Referrer, Repository};
use crate::oci::{
    Algorithm, Attestation, Descriptor, Digest, Link, LinkKind, ManifestLinks, TagOrDigest, links_of,
};
use crate::proxy::error::Error;
use crate::telemetry::{Metrics, Unrecorded};

/// Longer manifests are parsed on a blocking thread: while a worker parses and hashes 4 MiB, it serves nobody else.
const READ_IN_PLACE_BYTES: usize = 64 * 1024;

/// Parses manifests within the configured limits.
#[derive(Clone, Debug)]
pub struct ManifestReader {
    metrics: Arc<Metrics>,
    max_links_bytes: usize,
    /// How the body of a push is read.
    pushed: PushLimits,
}

/// A manifest whose links are known. Most have none, and of a push without links nothing more is made.
#[derive(Debug)]
pub struct ParsedManifest {
    digest: Digest,
    bytes: usize,
    found: ManifestLinks,
    /// Why links are not recorded, for the client that pushed it.
    warning: Option<String>,
}

/// A parsed manifest, as the index keeps it.
#[derive(Debug)]
pub struct ReadManifest {
    /// The manifest as a referrer; without links if it carries none that can be recorded.
    pub referrer: Referrer,
    /// Links of other manifests that it states: an index states those of its buildx attestations.
    pub claims: Vec<Observation>,
    /// The digest in its `subject`, if that link is recorded.
    pub subject: Option<Digest>,
    /// Why links are not recorded, for the client that pushed it.
    pub warning: Option<String>,
}

impl ParsedManifest {
    /// Whether it has links that can be recorded.
    #[must_use]
    pub fn has_links(&self) -> bool {
        !self.found.links.is_empty()
    }

    /// Why links are not recorded, for the client that pushed it.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }
}

impl ManifestReader {
    /// A reader with these limits.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, max_links_bytes: usize, pushed: PushLimits) -> Self {
        Self { metrics, max_links_bytes, pushed }
    }

    /// The reader of an upstream, with the limits of the configuration.
    #[must_use]
    pub fn of(config: &Config, upstream: &UpstreamConfig, metrics: Arc<Metrics>) -> Self {
        let pushed = PushLimits {
            bytes: config.manifests.max_bytes,
            idle: upstream.timeouts.body_idle,
            whole: config.timeouts.manifest,
            pushes: Pushes::new(config.limits.manifest_bytes),
        };
        Self::new(metrics, config.manifests.max_links_bytes, pushed)
    }

    /// Bytes of the longest manifest that is parsed.
    #[must_use]
    pub fn max_bytes(&self) -> usize {
        self.pushed.bytes
    }

    /// Reads the body of a push into memory, unless it is too long.
    ///
    /// # Errors
    /// The body breaks off, is too slow, or no memory is left for it (`limits.manifest_bytes`).
    pub async fn pushed(&self, body: Incoming, request: RequestGuard) -> Result<Held, BodyError> {
        self.pushed.read(body, request).await
    }

    /// Counts and logs a manifest that is too long. Returns the warning for the client that pushed it.
    #[must_use]
    pub fn too_long(&self, repository: &Repository, manifest: &TagOrDigest) -> String {
        tracing::warn!(repository = %repository.name, manifest = %manifest, limit = self.pushed.bytes,
            "a manifest is longer than manifests.max_bytes; its links are not recorded");
        self.metrics.unrecorded(Unrecorded::TooLong, 1);
        format!("longer than {} bytes, links are not recorded", self.pushed.bytes)
    }

    /// Parses a manifest that was pushed to, or pulled from, `manifest` with this Content-Type.
    pub async fn read(
        &self,
        repository: &Repository,
        manifest: &TagOrDigest,
        algorithm: Algorithm,
        bytes: &Bytes,
        content_type: Option<&str>,
    ) -> Result<ReadManifest, Error> {
        let parsed = self.parse(repository, manifest, algorithm, bytes, content_type).await?;
        self.describe(repository, parsed)
    }

    /// The first half of [`ManifestReader::read`]: finds the links.
    pub async fn parse(
        &self,
        repository: &Repository,
        manifest: &TagOrDigest,
        algorithm: Algorithm,
        bytes: &Bytes,
        content_type: Option<&str>,
    ) -> Result<ParsedManifest, Error> {
        let parse = move |bytes: &[u8], content_type: Option<&str>, manifest: &TagOrDigest| {
            let tag = match manifest {
                TagOrDigest::Tag(tag) => Some(tag),
                TagOrDigest::Digest(_) => None,
            };
            (links_of(bytes, content_type, tag), Digest::of(algorithm, bytes))
        };
        let (found, digest) = if bytes.len() <= READ_IN_PLACE_BYTES {
            parse(bytes, content_type, manifest)
        } else {
            let (bytes, content_type) = (bytes.clone(), content_type.map(str::to_owned));
            let manifest = manifest.clone();
            let parse = move || parse(&bytes, content_type.as_deref(), &manifest);
            tokio::task::spawn_blocking(parse).await.map_err(|_| Error::Handler)?
        };
        let warning = self.tell_refusals(repository, manifest, &found);
        Ok(ParsedManifest { digest, bytes: bytes.len(), found, warning })
    }

    /// The second half: makes the descriptor, and drops the links if they are too many.
    pub fn describe(&self, repository: &Repository, parsed: ParsedManifest) -> Result<ReadManifest, Error> {
        let ParsedManifest { digest, bytes, found, mut warning } = parsed;
        let ManifestLinks { mut links, mut subject, media_type, artifact_type, annotations, .. } = found;
        let descriptor = Descriptor {
            media_type,
            digest: digest.clone(),
            size: bytes as u64,
            artifact_type,
            annotations,
            data: None,
        };
        let descriptor = to_json(&descriptor)?;
        if links.len().saturating_mul(descriptor.len()) > self.max_links_bytes {
            tracing::warn!(repository = %repository.name, %digest, links = links.len(),
                descriptor_bytes = descriptor.len(), limit = self.max_links_bytes,
                "a manifest's links times its descriptor's length exceed manifests.max_links_bytes; \
                 they are not recorded");
            self.metrics.unrecorded(Unrecorded::TooMany, links.len());
            warning = Some(format!("{} links are too many, none is recorded", links.len()));
            (links, subject) = (Vec::new(), None);
        }
        let claims = found.attestations.into_iter().map(claim).collect::<Result<_, _>>()?;
        Ok(ReadManifest { referrer: Referrer { digest, descriptor, links }, claims, subject, warning })
    }

    /// Drops the links if the repository has no room for any.
    pub fn keep_within(&self, repository: &Repository, read: &mut ReadManifest, has_room: bool) {
        let links = read.referrer.links.len() + read.claims.len();
        if has_room || links == 0 {
            return;
        }
        self.no_room(repository, links);
        read.referrer.links.clear();
        read.claims.clear();
        read.subject = None;
        read.warning = Some("the repository has too many referrers, links are not recorded".to_owned());
    }

    /// Counts and logs links that are not recorded because the repository is full.
    pub fn no_room(&self, repository: &Repository, links: usize) {
        tracing::warn!(repository = %repository.name, links,
            "links are not recorded: the repository has as many referrers as \
             limits.repository_referrers allows");
        self.metrics.unrecorded(Unrecorded::RepositoryFull, links);
    }

    fn tell_refusals(
        &self,
        repository: &Repository,
        manifest: &TagOrDigest,
        found: &ManifestLinks,
    ) -> Option<String> {
        if found.refused == 0 {
            return None;
        }
        self.metrics.unrecorded(Unrecorded::Malformed, found.refused);
        let told: Vec<String> = found.refusals.iter().map(ToString::to_string).collect();
        let told = told.join("; ");
        tracing::warn!(repository = %repository.name, manifest = %manifest, refused = found.refused,
            reasons = %told, "malformed links of a manifest are not recorded");
        Some(format!("malformed links are not recorded: {told}"))
    }
}

/// A descriptor as JSON, which the index keeps and queries send as it is.
pub fn to_json(descriptor: &Descriptor) -> Result<String, Error> {
    serde_json::to_string(descriptor).map_err(|_| Error::Handler)
}

fn claim(attestation: Attestation) -> Result<Observation, Error> {
    let Attestation { referrer, subject } = attestation;
    let descriptor = to_json(&referrer)?;
    let links = vec![Link { subject, kind: LinkKind::Attestation }];
    Ok(Observation { referrer: Referrer { digest: referrer.digest, descriptor, links }, claimed: true })
}
