//! A store of manifests and blobs: a repository of a registry, or a directory in the OCI image layout.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::layout::Layout;
use super::registry::Registry;
use super::{
    BlobStream, Error, ErrorKind, ListChange, ListScope, ListedReferrer, Manifest, Part, Platform, Progress,
    ReferrerList, Referrers, Result, Target, Wanted,
};
use crate::oci::{Digest, ReferrersList, RepositoryName, Tag, TagOrDigest};

/// A store of either kind.
#[derive(Clone, Debug)]
pub enum Repository {
    /// A repository of a registry, over HTTP.
    Registry(Arc<Registry>),
    /// A directory in the OCI image layout.
    Layout(Arc<Layout>),
}

/// How a blob got to its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It was there already.
    Already,
    /// The registry mounted it from another of its repositories.
    Mounted,
    /// It was sent.
    Sent,
}

impl Repository {
    /// Its name in messages.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Registry(registry) => registry.to_string(),
            Self::Layout(layout) => layout.to_string(),
        }
    }

    /// Another repository of the same registry; a layout is one.
    #[must_use]
    pub fn beside(&self, name: &RepositoryName) -> Self {
        match self {
            Self::Registry(registry) => Self::Registry(Arc::new(registry.beside(name.clone()))),
            Self::Layout(layout) => Self::Layout(Arc::clone(layout)),
        }
    }

    /// A manifest, verified if it was asked for by digest. Its absence is an error.
    pub async fn manifest(&self, target: &TagOrDigest) -> Result<Manifest> {
        let found = self.find_manifest(target).await?;
        found.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("reading {target} of {}", self.name()),
                "there is no such manifest",
            )
            .advise("check the name; a registry also hides what you may not see")
        })
    }

    /// A manifest, if it is there.
    pub async fn find_manifest(&self, target: &TagOrDigest) -> Result<Option<Manifest>> {
        match self {
            Self::Registry(registry) => registry.manifest(target).await,
            Self::Layout(layout) => layout.manifest(target),
        }
    }

    /// The image that a command's argument names. Of an index, the image for `platform` if that is given.
    pub async fn image(&self, target: &Target, platform: Option<&Platform>) -> Result<Manifest> {
        let named = match (self, target) {
            (_, Target::Named(named)) => named.clone(),
            (_, Target::Abbreviated { prefix, tag }) => {
                TagOrDigest::Digest(self.whole_digest(prefix, tag.as_ref()).await?)
            }
            (Self::Registry(_), Target::Unnamed) => TagOrDigest::Tag(Tag::latest()),
            (Self::Layout(layout), Target::Unnamed) => layout.only_image()?,
        };
        let manifest = self.manifest(&named).await?;
        match platform {
            Some(platform) if manifest.is_index() => self.image_for(&manifest, platform).await,
            Some(_) | None => Ok(manifest),
        }
    }

    async fn image_for(&self, index: &Manifest, platform: &Platform) -> Result<Manifest> {
        let fits = |part: &&Part| part.platform.as_ref().is_some_and(|other| platform.takes(other));
        let Some(part) = index.children().iter().find(fits) else {
            let there: Vec<String> = index
                .children()
                .iter()
                .filter_map(|part| Some(part.platform.as_ref()?.to_string()))
                .collect();
            let asked = format!("looking for {platform} in {} of {}", index.digest, self.name());
            let answer = format!("the index has only {}", there.join(", "));
            return Err(Error::new(ErrorKind::NotFound, asked, answer));
        };
        self.manifest(&TagOrDigest::Digest(part.descriptor.digest.clone())).await
    }

    /// The digest of a manifest, if it is there.
    pub async fn digest(&self, target: &TagOrDigest) -> Result<Option<Digest>> {
        match self {
            Self::Registry(registry) => registry.digest(target).await,
            Self::Layout(layout) => Ok(layout.manifest(target)?.map(|manifest| manifest.digest)),
        }
    }

    /// The same, asked by GET as well before it is taken for absent: some proxies answer every HEAD with 404.
    pub async fn digest_for_sure(&self, target: &TagOrDigest) -> Result<Option<Digest>> {
        match self {
            Self::Registry(registry) => registry.digest_for_sure(target).await,
            Self::Layout(_) => self.digest(target).await,
        }
    }

    /// Whether a manifest is there and can be found: in a layout, its file alone is not enough.
    pub async fn has_manifest(&self, digest: &Digest) -> Result<bool> {
        match self {
            Self::Registry(registry) => {
                Ok(registry.digest(&TagOrDigest::Digest(digest.clone())).await?.is_some())
            }
            Self::Layout(layout) => layout.lists(digest),
        }
    }

    /// Whether a blob is there.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool> {
        match self {
            Self::Registry(registry) => registry.has_blob(digest).await,
            Self::Layout(layout) => Ok(layout.has_blob(digest)),
        }
    }

    /// Pushes a manifest by its digest or to a tag.
    pub async fn put_manifest(&self, target: &TagOrDigest, manifest: &Manifest) -> Result<()> {
        match self {
            Self::Registry(registry) => registry.put_manifest(target, manifest).await,
            Self::Layout(layout) => layout.put_manifest(target, manifest).await,
        }
    }

    /// Tries to attach a file by one request. False if it has to be done step by step.
    pub async fn attach(&self, subject: &Digest, manifest: &Manifest, file: &Part, content: Bytes) -> bool {
        match self {
            Self::Registry(registry) => registry.attach(subject, manifest, file, content).await,
            Self::Layout(_) => false,
        }
    }

    /// Deletes a manifest. Its blobs stay until garbage collection.
    pub async fn delete_manifest(&self, digest: &Digest) -> Result<()> {
        match self {
            Self::Registry(registry) => registry.delete_manifest(digest).await,
            Self::Layout(layout) => layout.delete_manifest(digest).await,
        }
    }

    /// The content of a blob, verified on the way.
    pub async fn blob(&self, part: &Part) -> Result<BlobStream> {
        match self {
            Self::Registry(registry) => registry.blob(part).await,
            Self::Layout(layout) => layout.blob(part).await,
        }
    }

    /// Copies a blob from another store; within one registry it is mounted and not downloaded.
    pub async fn take_blob(&self, part: &Part, from: &Self, progress: &Progress) -> Result<Arrival> {
        match (self, from) {
            (Self::Registry(to), Self::Registry(other)) if to.can_mount_from(other) => {
                to.take_blob(part, Some(other.repository()), || from.blob(part), progress).await
            }
            (Self::Registry(to), _) => to.take_blob(part, None, || from.blob(part), progress).await,
            (Self::Layout(to), _) => to.take_blob(part, || from.blob(part), progress).await,
        }
    }

    /// Pushes a blob.
    pub async fn put_blob<F: Future<Output = Result<BlobStream>>>(
        &self,
        part: &Part,
        content: impl FnOnce() -> F,
        progress: &Progress,
    ) -> Result<Arrival> {
        match self {
            Self::Registry(registry) => registry.take_blob(part, None, content, progress).await,
            Self::Layout(layout) => layout.take_blob(part, content, progress).await,
        }
    }

    /// The referrers of a manifest.
    pub async fn referrers(&self, subject: &Digest, wanted: &Wanted) -> Result<Referrers> {
        let mut referrers = match self {
            Self::Registry(registry) => registry.referrers(subject, wanted).await?,
            Self::Layout(layout) => Referrers { found: layout.referrers(subject)?, vanished: Vec::new() },
        };
        // Only refshim's list is filtered already, and not by every filter (see `Wanted::to_query`).
        referrers.found.retain(|referrer| wanted.takes(referrer));
        Ok(referrers)
    }

    /// The referrers of a manifest as lists describe them.
    pub async fn referrer_list(
        &self,
        subject: &Digest,
        wanted: &Wanted,
        scope: ListScope,
    ) -> Result<ReferrerList> {
        let mut list = match self {
            Self::Registry(registry) => registry.referrer_list(subject, wanted, scope).await?,
            Self::Layout(layout) => {
                Referrers { found: layout.referrers(subject)?, vanished: Vec::new() }.into()
            }
        };
        list.found.retain(|referrer| wanted.takes_listed(referrer));
        Ok(list)
    }

    /// Everything that lists name as a referrer of a manifest, whether or not it is one.
    pub async fn claimed_referrers(&self, subject: &Digest) -> Result<Vec<ListedReferrer>> {
        match self {
            Self::Registry(registry) => registry.claimed_referrers(subject).await,
            Self::Layout(layout) => Ok(layout.referrers(subject)?.iter().map(ListedReferrer::from).collect()),
        }
    }

    /// Makes sure that referrers are listed: in a registry without the referrers API, at the tag of their
    /// subject. A layout has no such list.
    pub async fn ensure_listed(&self, referrers: &[Manifest]) -> Result<()> {
        match self {
            Self::Registry(registry) => registry.ensure_listed(referrers).await,
            Self::Layout(_) => Ok(()),
        }
    }

    /// Removes a manifest from the list at the referrers tag of its subject, if there is one.
    pub async fn unlist(&self, referrer: &Manifest) -> Result<()> {
        match self {
            Self::Registry(registry) => registry.unlist(referrer).await,
            Self::Layout(_) => Ok(()),
        }
    }

    /// The list at a subject's referrers tag; `None` if there is none, as in a layout.
    ///
    /// # Errors
    /// It cannot be read, or something else is at that tag.
    pub async fn tagged_list(&self, subject: &Digest) -> Result<Option<ReferrersList>> {
        match self {
            Self::Registry(registry) => registry.tagged_list(subject).await,
            Self::Layout(_) => Ok(None),
        }
    }

    /// Changes the list at a subject's referrers tag, whoever else writes it meanwhile; true if it had to be written. A
    /// permit of `turns` is held while requests are under way. A layout has no such list.
    ///
    /// # Errors
    /// It cannot be read or written. Then it is as it was, or as somebody else wrote it.
    pub async fn change_list(
        &self,
        subject: &Digest,
        change: &mut impl ListChange,
        turns: Option<&Semaphore>,
    ) -> Result<bool> {
        match self {
            Self::Registry(registry) => registry.change_list(subject, change, turns).await,
            Self::Layout(_) => Ok(false),
        }
    }

    /// What the registry's own referrers API lists for a subject; `None` if it has none, as a layout.
    ///
    /// # Errors
    /// The list cannot be read.
    pub async fn native_referrers(&self, subject: &Digest) -> Result<Option<Vec<Digest>>> {
        match self {
            Self::Registry(registry) => registry.native_referrers(subject).await,
            Self::Layout(_) => Ok(None),
        }
    }

    /// All tags.
    pub async fn tags(&self) -> Result<Vec<Tag>> {
        match self {
            Self::Registry(registry) => registry.tags().await,
            Self::Layout(layout) => layout.tags(),
        }
    }
}
