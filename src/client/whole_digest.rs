//! Finds the manifest that an abbreviated digest means. Registries cannot be asked for one, so what can be reached from
//! tags is looked through.

use std::collections::BTreeSet;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{Error, ErrorKind, Repository, Result, walk};
use crate::oci::{Digest, DigestPrefix, Tag, TagOrDigest};

/// How many tags are asked for at a time.
const CONCURRENCY: usize = 8;

impl Repository {
    /// The digest that begins like this: of what is below a tag, or below any tag.
    pub(super) async fn whole_digest(&self, prefix: &DigestPrefix, tag: Option<&Tag>) -> Result<Digest> {
        let tags = match tag {
            Some(tag) => vec![tag.clone()],
            None => self.tags().await?,
        };
        let mut found = self.tagged(prefix, &tags).await?;
        // Tags that only say what refers to what lead to nothing that is not found from what they are about.
        for tag in tags.iter().filter(|tag| tag.scheme().is_none()) {
            if !found.is_empty() {
                break;
            }
            let Some(root) = self.find_manifest(&TagOrDigest::Tag(tag.clone())).await? else { continue };
            let tree = walk(self, root, usize::MAX).await?;
            found.extend(
                tree.all().map(|node| node.manifest.digest.clone()).filter(|digest| prefix.matches(digest)),
            );
        }
        let asked = || format!("looking for {prefix} in {}", self.name());
        match (found.pop_first(), found.pop_first()) {
            (Some(digest), None) => Ok(digest),
            (Some(one), Some(other)) => {
                let answer = format!("it is the beginning of several digests, {one} and {other}");
                Err(Error::new(ErrorKind::Usage, asked(), answer))
            }
            (None, _) => {
                let answer = match tag {
                    Some(tag) => format!("nothing below {tag} has a digest that begins like this"),
                    None => "nothing below any tag has a digest that begins like this".to_owned(),
                };
                Err(Error::new(ErrorKind::NotFound, asked(), answer).advise("name it by its whole digest"))
            }
        }
    }

    /// Those that have a tag.
    async fn tagged(&self, prefix: &DigestPrefix, tags: &[Tag]) -> Result<BTreeSet<Digest>> {
        let digests: Vec<_> = tags.iter().map(|tag| TagOrDigest::Tag(tag.clone())).collect();
        let digests: Vec<Option<Digest>> =
            stream::iter(&digests).map(|tag| self.digest(tag)).buffered(CONCURRENCY).try_collect().await?;
        Ok(digests.into_iter().flatten().filter(|digest| prefix.matches(digest)).collect())
    }
}
