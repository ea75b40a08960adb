//! A directory in the OCI image layout (image-spec, `image-layout.md`), as a store of manifests and blobs.
//!
//! `index.json` lists the manifests with a tag and those that no other manifest leads to; all others are
//! found through them. A file gets its name only when it is complete. There is no lock between processes:
//! only one command may write at a time.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value, json};
use tokio::fs::File;

use super::blob::{read, verified, write_file};
use super::referrer::kinds_of;
use super::repository::Arrival;
use super::{BlobStream, Error, ErrorKind, Manifest, Part, Progress, Referrer, Result};
use crate::oci::{Algorithm, Digest, LinkKind, Tag, TagOrDigest, media_type};

const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A directory in the OCI image layout.
#[derive(Debug)]
pub struct Layout {
    directory: PathBuf,
    writing: tokio::sync::Mutex<()>,
    /// All manifests, cached until `index.json` is written: each has to be read and hashed.
    known: Mutex<Option<Arc<Vec<Known>>>>,
}

#[derive(Debug)]
struct Known {
    manifest: Manifest,
    tag: Option<Tag>,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oci:{}", self.directory.display())
    }
}

impl Layout {
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            writing: tokio::sync::Mutex::default(),
            known: Mutex::default(),
        }
    }

    pub(super) fn manifest(&self, target: &TagOrDigest) -> Result<Option<Manifest>> {
        match target {
            TagOrDigest::Digest(digest) => self.stored_manifest(digest, None),
            TagOrDigest::Tag(tag) => {
                let entry = self.entries()?.into_iter().find(|entry| tag_of(entry).as_ref() == Some(tag));
                match entry.map(|entry| part(&entry)).transpose()? {
                    Some(part) => {
                        self.stored_manifest(&part.descriptor.digest, Some(&part.descriptor.media_type))
                    }
                    None => Ok(None),
                }
            }
        }
    }

    /// The image that a name without tag and digest means: the only one, or `latest`.
    pub(super) fn only_image(&self) -> Result<TagOrDigest> {
        let mut tags = self.tags()?;
        match (tags.pop(), tags.is_empty()) {
            (Some(tag), true) => Ok(TagOrDigest::Tag(tag)),
            (Some(_), false) => Ok(TagOrDigest::Tag(Tag::latest())),
            (None, _) => Err(Error::new(
                ErrorKind::NotFound,
                format!("looking for an image in {self}"),
                "nothing there has a tag",
            )),
        }
    }

    pub(super) fn tags(&self) -> Result<Vec<Tag>> {
        Ok(self.entries()?.iter().filter_map(tag_of).collect())
    }

    pub(super) async fn put_manifest(&self, target: &TagOrDigest, manifest: &Manifest) -> Result<()> {
        let content = Box::pin(futures_util::stream::iter([Ok(manifest.bytes.clone())]));
        self.prepare(manifest.digest.algorithm())?;
        // Before its entry, so that no entry leads to a file that is not there.
        write_file(&self.blob_path(&manifest.digest), content).await?;
        // Manifests are put in parallel, and each rewrites `index.json`: one would lose the other's entry.
        let _writing = self.writing.lock().await;
        let index = self.index()?;
        let mut entries = entries(&index);
        entries.retain(|entry| !is_replaced(entry, target, manifest));
        if let TagOrDigest::Tag(_) = target {
            entries.push(entry(target, manifest)?);
        } else if !entries.iter().any(|listed| is_of(listed, &manifest.digest)) {
            entries.push(entry(target, manifest)?);
        }
        self.write_index(index, entries).await
    }

    /// Whether a manifest is there and reachable from `index.json`. Its file alone does not count: after a
    /// copy that broke off, it may have no entry yet.
    pub(super) fn lists(&self, digest: &Digest) -> Result<bool> {
        Ok(self.known()?.iter().any(|known| known.manifest.digest == *digest))
    }

    pub(super) async fn delete_manifest(&self, digest: &Digest) -> Result<()> {
        let _writing = self.writing.lock().await;
        let index = self.index()?;
        let mut entries = entries(&index);
        entries.retain(|entry| !is_of(entry, digest));
        // The entry first, as no entry may lead to nothing. What remains after a crash in between is garbage.
        self.write_index(index, entries).await?;
        std::fs::remove_file(self.blob_path(digest)).map_err(|error| self.failed("deleting from", &error))
    }

    pub(super) async fn blob(&self, part: &Part) -> Result<BlobStream> {
        let path = self.blob_path(&part.descriptor.digest);
        let file = File::open(&path).await;
        let file = file.map_err(|error| Error::io(format!("reading {}", path.display()), &error))?;
        Ok(verified(read(&path.display().to_string(), file), part))
    }

    pub(super) fn has_blob(&self, digest: &Digest) -> bool {
        // Not read again: a file gets its name only when it is complete.
        self.blob_path(digest).exists()
    }

    pub(super) async fn take_blob<F: Future<Output = Result<BlobStream>>>(
        &self,
        part: &Part,
        content: impl FnOnce() -> F,
        progress: &Progress,
    ) -> Result<Arrival> {
        let path = self.blob_path(&part.descriptor.digest);
        if self.has_blob(&part.descriptor.digest) {
            return Ok(Arrival::Already);
        }
        self.prepare(part.descriptor.digest.algorithm())?;
        let bar = progress.blob(part);
        write_file(&path, bar.watching(content().await?)).await?;
        Ok(Arrival::Sent)
    }

    pub(super) fn referrers(&self, subject: &Digest) -> Result<Vec<Referrer>> {
        let known = self.known()?;
        let attested = |manifest: &Manifest| {
            let tells = |other: &Known| {
                let told = other.manifest.links(None).attestations;
                told.iter().any(|told| told.referrer.digest == manifest.digest && told.subject == *subject)
            };
            known.iter().any(tells).then_some(LinkKind::Attestation)
        };
        let mut referrers: Vec<Referrer> = Vec::new();
        for Known { manifest, tag } in known.iter() {
            let kinds = kinds_of(manifest, tag.as_ref(), subject).iter().chain(attested(manifest)).collect();
            let referrer = Referrer { manifest: manifest.clone(), kinds, tag: tag.clone() };
            // A copy takes a referrer's tag along, so only a tag that makes the link is given.
            let cosign = referrer.kinds.intersects(LinkKind::Cosign.into());
            let referrer = if cosign { referrer } else { Referrer { tag: None, ..referrer } };
            match referrers.iter_mut().find(|other| other.manifest.digest == referrer.manifest.digest) {
                // The same manifest under several tags, or as a child as well: the tag of cosign must not be
                // lost.
                Some(other) if cosign => *other = referrer,
                Some(_) => {}
                None if referrer.kinds.is_empty() => {}
                None => referrers.push(referrer),
            }
        }
        Ok(referrers)
    }

    /// All manifests that are reachable from `index.json`.
    fn known(&self) -> Result<Arc<Vec<Known>>> {
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(known);
        }
        let entries = self.entries()?;
        // A stack, so reversed: what comes out is in the order of `index.json`, oldest first.
        let mut left: Vec<(Part, Option<Tag>)> =
            entries.iter().rev().map(|entry| Ok((part(entry)?, tag_of(entry)))).collect::<Result<_>>()?;
        let (mut known, mut seen) = (Vec::new(), HashSet::new());
        while let Some((part, tag)) = left.pop() {
            // With the tag: a manifest with two tags counts twice, since either may make a link.
            if !seen.insert((part.descriptor.digest.clone(), tag.clone())) {
                continue;
            }
            let found = self.stored_manifest(&part.descriptor.digest, Some(&part.descriptor.media_type))?;
            // What is missing is left out here; an index that lists it says so where it is copied.
            if let Some(manifest) = found {
                left.extend(manifest.children().iter().rev().map(|child| (child.clone(), None)));
                known.push(Known { manifest, tag });
            }
        }
        let known = Arc::new(known);
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&known));
        Ok(known)
    }

    fn stored_manifest(&self, digest: &Digest, media_type: Option<&str>) -> Result<Option<Manifest>> {
        match std::fs::read(self.blob_path(digest)) {
            Ok(bytes) => {
                Manifest::verified(digest, bytes.into(), media_type).map(Some).map_err(|error| error.at(self))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("reading", &error)),
        }
    }

    fn entries(&self) -> Result<Vec<Value>> {
        Ok(entries(&self.index()?))
    }

    /// The members of `index.json`, unparsed: what only other tools know must survive a rewrite.
    fn index(&self) -> Result<Map<String, Value>> {
        let text = match std::fs::read(self.directory.join("index.json")) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
            Err(error) => return Err(self.failed("reading", &error)),
        };
        serde_json::from_slice(&text)
            .map_err(|error| Error::failed(format!("reading index.json of {self}"), error.to_string()))
    }

    /// Rewrites `index.json` with these entries.
    async fn write_index(&self, mut index: Map<String, Value>, entries: Vec<Value>) -> Result<()> {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
        index.entry("schemaVersion").or_insert(json!(2));
        index.entry("mediaType").or_insert(json!(media_type::IMAGE_INDEX));
        index.insert("manifests".to_owned(), Value::Array(entries));
        let text = Value::Object(index).to_string();
        let content = Box::pin(futures_util::stream::iter([Ok(text.into())]));
        write_file(&self.directory.join("index.json"), content).await
    }

    fn prepare(&self, algorithm: Algorithm) -> Result<()> {
        let failed = |error: std::io::Error| self.failed("writing", &error);
        std::fs::create_dir_all(self.directory.join("blobs").join(folder(algorithm))).map_err(failed)?;
        let marker = self.directory.join("oci-layout");
        if marker.exists() {
            return Ok(());
        }
        std::fs::write(marker, r#"{"imageLayoutVersion":"1.0.0"}"#).map_err(failed)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        let text = digest.to_string();
        let encoded = text.split_once(':').map_or(text.as_str(), |(_, encoded)| encoded);
        self.directory.join("blobs").join(folder(digest.algorithm())).join(encoded)
    }

    fn failed(&self, doing: &str, error: &std::io::Error) -> Error {
        Error::io(format!("{doing} {self}"), error)
    }
}

fn folder(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Sha256 => "sha256",
        Algorithm::Sha512 => "sha512",
    }
}

fn entries(index: &Map<String, Value>) -> Vec<Value> {
    index.get("manifests").and_then(Value::as_array).cloned().unwrap_or_default()
}

fn entry(target: &TagOrDigest, manifest: &Manifest) -> Result<Value> {
    let mut part: Part = manifest.descriptor().into();
    if let TagOrDigest::Tag(tag) = target {
        part.descriptor.annotations.insert(REF_NAME.to_owned(), tag.to_string());
    }
    serde_json::to_value(part).map_err(|error| Error::failed("writing index.json", error.to_string()))
}

/// Whether putting a manifest makes an entry obsolete: its tag moves, or it has none and is reachable through
/// the new manifest.
fn is_replaced(entry: &Value, target: &TagOrDigest, manifest: &Manifest) -> bool {
    match (tag_of(entry), target) {
        (Some(tag), TagOrDigest::Tag(moved)) => tag == *moved,
        (Some(_), TagOrDigest::Digest(_)) => false,
        (None, _) => {
            let is = |digest: &Digest| is_of(entry, digest);
            (matches!(target, TagOrDigest::Tag(_)) && is(&manifest.digest))
                || manifest.children().iter().any(|child| is(&child.descriptor.digest))
        }
    }
}

fn is_of(entry: &Value, digest: &Digest) -> bool {
    entry.get("digest") == Some(&json!(digest))
}

fn part(entry: &Value) -> Result<Part> {
    serde_json::from_value(entry.clone())
        .map_err(|error| Error::failed("reading index.json", error.to_string()))
}

fn tag_of(entry: &Value) -> Option<Tag> {
    entry.get("annotations")?.get(REF_NAME)?.as_str()?.parse().ok()
}
