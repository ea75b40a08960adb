//! Manifests that this client creates: artifacts about an image, and copies that refer to one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use indexmap::IndexMap;
use serde_json::value::RawValue;
use tokio::io::AsyncWriteExt as _;

use super::blob::{read, unchanged};
use super::{BlobStream, Error, Manifest, Part, Progress, Repository, Result};
use crate::oci::artifact::{
    CREATED, EMPTY_CONFIG, SubjectMember, TITLE, artifact_manifest, created_now, empty_config,
};
use crate::oci::{Algorithm, Descriptor, Digest, Hasher, Tag, TagOrDigest, media_type};

const UNKNOWN_TYPE: &str = "application/octet-stream";
const STANDARD_INPUT: &str = "-";
/// The largest file that is attached by one request, in bytes: it is held in memory, sent although the registry may have
/// it, and from its start if it breaks off.
const AT_ONCE: u64 = 1 << 20;

/// A file to attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileToAttach {
    path: PathBuf,
    media_type: String,
    annotations: BTreeMap<String, String>,
}

/// An artifact about an image.
#[derive(Debug)]
pub struct Artifact {
    /// Its subject.
    pub subject: Part,
    /// The type of its content, a media type.
    pub artifact_type: String,
    /// The annotations of its manifest.
    pub annotations: BTreeMap<String, String>,
    /// The member by which it refers to its subject.
    pub member: SubjectMember,
}

impl FromStr for FileToAttach {
    type Err = &'static str;

    /// `FILE` or `FILE:media/type`. If a file of the whole name exists, that is meant.
    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let file = |path: &str, media_type: &str| Self {
            path: path.into(),
            media_type: media_type.to_owned(),
            annotations: BTreeMap::new(),
        };
        match text.rsplit_once(':') {
            Some((path, media_type)) if media_type::is_valid(media_type) && !Path::new(text).exists() => {
                Ok(file(path, media_type))
            }
            Some(_) | None if text.is_empty() => Err("a file is FILE or FILE:media/type"),
            Some(_) | None => Ok(file(text, UNKNOWN_TYPE)),
        }
    }
}

impl Artifact {
    /// Pushes the files and the manifest, to the tag if there is one, and gives the manifest. A small file goes by one
    /// request, if the registry makes the same manifest of that.
    pub async fn push(
        &self,
        to: &Repository,
        files: &[FileToAttach],
        tag: Option<Tag>,
        progress: &Progress,
    ) -> Result<Manifest> {
        let opened = open_all(files).await?;
        let manifest = self.manifest(&opened)?;
        if tag.is_none() && self.is_pushed_at_once(to, &opened, &manifest).await? {
            return Ok(manifest);
        }
        for (_, part) in &opened {
            progress.expect(part.descriptor.size);
        }
        for (content, part) in &opened {
            store(content.path(), part, to, progress).await?;
        }
        let empty = || async {
            Ok(Box::pin(futures_util::stream::iter([Ok(Bytes::from_static(EMPTY_CONFIG))])) as BlobStream)
        };
        // Registries refuse a manifest whose config they do not have, even this one.
        to.put_blob(&empty_config().into(), empty, progress).await?;
        let target = tag.map_or_else(|| TagOrDigest::Digest(manifest.digest.clone()), TagOrDigest::Tag);
        to.put_manifest(&target, &manifest).await?;
        // Last: a list must not name what is not there.
        to.ensure_listed(std::slice::from_ref(&manifest)).await?;
        Ok(manifest)
    }

    /// The manifest that a push would send now; nothing is sent.
    pub async fn rehearse(&self, files: &[FileToAttach]) -> Result<Manifest> {
        self.manifest(&open_all(files).await?)
    }

    /// Tries to attach by one request. It pays for one small file: others may be there already, or have to be resumed.
    async fn is_pushed_at_once(
        &self,
        to: &Repository,
        opened: &[(Content<'_>, Part)],
        manifest: &Manifest,
    ) -> Result<bool> {
        let ([(content, part)], SubjectMember::Both) = (opened, self.member) else { return Ok(false) };
        let Descriptor { size, annotations, .. } = &part.descriptor;
        if *size > AT_ONCE || annotations.keys().any(|key| key != TITLE) {
            return Ok(false);
        }
        let mut stream = unchanged(open(content.path()).await?, part, content.path());
        let mut bytes = BytesMut::new();
        while let Some(some) = stream.next().await.transpose()? {
            bytes.extend_from_slice(&some);
        }
        Ok(to.attach(&self.subject.descriptor.digest, manifest, part, bytes.freeze()).await)
    }

    fn manifest(&self, opened: &[(Content<'_>, Part)]) -> Result<Manifest> {
        let layers: Vec<&Part> = opened.iter().map(|(_, part)| part).collect();
        let mut annotations = self.annotations.clone();
        annotations.entry(CREATED.to_owned()).or_insert_with(created_now);
        let about = (&&self.subject, self.member);
        let bytes = artifact_manifest(&self.artifact_type, &layers, &annotations, about);
        Manifest::new(Bytes::from(bytes), Some(media_type::IMAGE_MANIFEST))
    }
}

impl FileToAttach {
    /// Whether it is standard input.
    #[must_use]
    pub fn is_standard_input(&self) -> bool {
        self.path.as_os_str() == STANDARD_INPUT
    }

    /// Its name. Not with directories: `fetch` drops those of a title, as none may lead out of its own.
    #[must_use]
    pub fn title(&self) -> Option<&str> {
        self.path.file_name().filter(|_| !self.is_standard_input()).and_then(|name| name.to_str())
    }

    /// Gives it annotations. Its name is one of them, unless these have another.
    pub fn annotate(&mut self, annotations: BTreeMap<String, String>) {
        self.annotations = annotations;
    }

    /// Its content and what describes it.
    async fn opened(&self) -> Result<(Content<'_>, Part)> {
        let content = if self.is_standard_input() {
            Content::Kept(keep_standard_input().await?)
        } else {
            Content::File(&self.path)
        };
        let mut part = described(content.path(), &self.media_type).await?;
        part.descriptor.annotations.clone_from(&self.annotations);
        if let Some(title) = self.title() {
            part.descriptor.annotations.entry(TITLE.to_owned()).or_insert_with(|| title.to_owned());
        }
        Ok((content, part))
    }
}

async fn open_all(files: &[FileToAttach]) -> Result<Vec<(Content<'_>, Part)>> {
    let mut opened = Vec::new();
    for file in files {
        opened.push(file.opened().await?);
    }
    Ok(opened)
}

/// Where the content of a file to attach is.
enum Content<'a> {
    File(&'a Path),
    /// Standard input, in a temporary file.
    Kept(tempfile::NamedTempFile),
}

impl Content<'_> {
    fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Kept(kept) => kept.path(),
        }
    }
}

/// Stores a file under the digest that was computed from it before.
async fn store(path: &Path, part: &Part, to: &Repository, progress: &Progress) -> Result<()> {
    let content = || async { Ok(unchanged(open(path).await?, part, path)) };
    to.put_blob(part, content, progress).await?;
    Ok(())
}

/// Saves standard input to a temporary file: the digest is needed before the content is sent, and input can
/// be read only once.
async fn keep_standard_input() -> Result<tempfile::NamedTempFile> {
    let failed = |error: std::io::Error| Error::io("keeping standard input in a temporary file", &error);
    let kept = tempfile::NamedTempFile::new().map_err(failed)?;
    let mut file = tokio::fs::File::from_std(kept.reopen().map_err(failed)?);
    tokio::io::copy(&mut tokio::io::stdin(), &mut file).await.map_err(failed)?;
    // tokio writes in the background: without a flush, the end may be missing.
    file.flush().await.map_err(failed)?;
    Ok(kept)
}

async fn open(path: &Path) -> Result<BlobStream> {
    let file = tokio::fs::File::open(path).await;
    let file = file.map_err(|error| Error::io(format!("reading {}", path.display()), &error))?;
    Ok(read(&path.display().to_string(), file))
}

async fn described(path: &Path, media_type: &str) -> Result<Part> {
    let mut content = open(path).await?;
    let (mut hasher, mut size) = (Hasher::new(Algorithm::Sha256), 0);
    while let Some(bytes) = content.next().await.transpose()? {
        hasher.update(&bytes);
        size += bytes.len() as u64;
    }
    Ok(part(media_type, hasher.finish(), size))
}

fn part(media_type: &str, digest: Digest, size: u64) -> Part {
    let descriptor = Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        artifact_type: None,
        annotations: BTreeMap::new(),
        data: None,
    };
    descriptor.into()
}

/// The same manifest with a `reference` to a subject, which replaces one that it has. Everything else is
/// unchanged.
pub fn referring_copy(manifest: &Manifest, subject: &Part) -> Result<Manifest> {
    let failed =
        |error: serde_json::Error| Error::failed(format!("changing {}", manifest.digest), error.to_string());
    // Raw and in their order: parsed values would lose the spelling of numbers, and the copy is to differ
    // from the image in one member alone.
    let mut members: IndexMap<String, Box<RawValue>> =
        serde_json::from_slice(&manifest.bytes).map_err(failed)?;
    members.insert("reference".to_owned(), serde_json::value::to_raw_value(subject).map_err(failed)?);
    let bytes = serde_json::to_vec(&members).map_err(failed)?;
    Manifest::new(bytes.into(), Some(&manifest.media_type))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::client::layout::Layout;

    #[track_caller]
    fn check(text: &str, path: &str, media_type: &str) {
        let media_type = media_type.to_owned();
        let expected = FileToAttach { path: path.into(), media_type, annotations: BTreeMap::new() };
        assert_eq!(text.parse(), Ok(expected));
    }

    #[test]
    fn a_file_is_named_with_or_without_its_media_type() {
        check("a.sig", "a.sig", "application/octet-stream");
        check("a.sig:text/plain", "a.sig", "text/plain");
        check("-:application/vnd.example+json", "-", "application/vnd.example+json");
        check("dir/a:b", "dir/a:b", "application/octet-stream");
        check("a:dir/b c", "a:dir/b c", "application/octet-stream");
    }

    #[test]
    fn a_referring_copy_keeps_the_bytes_of_every_other_member() {
        let text = br#"{"schemaVersion":2,"zebra":[1,  2],"config":{"mediaType":"a/b","size":2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},"annotations":{"b":"1","a":"2"}}"#;
        let manifest = Manifest::new(Bytes::from_static(text), None).unwrap();
        let subject = part("x/y", Digest::Sha256([0; 32]), 7);
        let copy = referring_copy(&manifest, &subject).unwrap();
        let copy = String::from_utf8(copy.bytes.to_vec()).unwrap();
        let kept = std::str::from_utf8(text).unwrap().trim_end_matches('}');
        assert!(copy.starts_with(kept), "{copy}");
        assert!(copy[kept.len()..].contains(r#""reference":{"#), "{copy}");
    }

    #[tokio::test]
    async fn a_file_that_changes_after_its_digest_was_computed_is_not_stored() {
        let directory = tempfile::tempdir().unwrap();
        let (file, layout) = (directory.path().join("f"), directory.path().join("layout"));
        let to = Repository::Layout(Arc::new(Layout::new(&layout)));
        for changed in ["two", "longer", "x", ""] {
            std::fs::write(&file, "one").unwrap();
            let part = described(&file, UNKNOWN_TYPE).await.unwrap();
            std::fs::write(&file, changed).unwrap();
            let stored = store(&file, &part, &to, &Progress::new(false)).await;
            let error = stored.expect_err(changed);
            assert!(error.to_string().ends_with("the file changed while it was read"), "{error}");
            let left = std::fs::read_dir(layout.join("blobs/sha256")).unwrap();
            assert_eq!(left.count(), 0, "{changed}");
        }
    }
}
