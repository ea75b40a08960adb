//! What refers to a manifest, as lists describe it, without the manifests themselves: the number of requests does not
//! grow with the list, but for what only a manifest can tell.

use std::collections::HashMap;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::referrers::CONCURRENCY;
use super::{Registry, by_digest};
use crate::client::{Error, ErrorKind, ListScope, ListedReferrer, Manifest, ReferrerList, Result, Wanted};
use crate::oci::{Descriptor, Digest, LinkKind, LinkKinds, RepositoryName};

/// The annotation by which refshim's list says in which other repository an entry is.
const REPOSITORY: &str = "io.refshim.repository";
/// How many manifests are read that their descriptors do not describe, unless it has to be known of all.
const CLEARED_UP: usize = 32;

/// An entry of a list: a manifest may refer to the same subject from several repositories.
type Key = (Digest, Option<RepositoryName>);

impl Registry {
    /// The list, by the best means that the registry has.
    pub(in crate::client) async fn referrer_list(
        &self,
        subject: &Digest,
        wanted: &Wanted,
        scope: ListScope,
    ) -> Result<ReferrerList> {
        let mut list = match (self.by_refshim(subject, wanted, scope).await?, scope) {
            (Some(found), _) => ReferrerList { found, vanished: Vec::new() },
            (None, ListScope::Registry) => {
                let asked = format!("asking {self} what refers to {subject} in any repository");
                return Err(Error::new(
                    ErrorKind::Usage,
                    asked,
                    "there is no refshim in front of the registry",
                )
                .advise("without --scope registry, the registry's own means are asked"));
            }
            (None, ListScope::Repository) => self.by_others(subject).await?,
        };
        self.clear_up(wanted, &mut list).await?;
        Ok(list)
    }

    /// refshim's list, and one for each kind of link, since a descriptor does not name its links.
    async fn by_refshim(
        &self,
        subject: &Digest,
        wanted: &Wanted,
        scope: ListScope,
    ) -> Result<Option<Vec<ListedReferrer>>> {
        let path =
            |wanted: &Wanted| format!("manifests/{subject}/references?{}", wanted.to_list_query(scope));
        let Some(listed) = self.list(&path(wanted)).await? else { return Ok(None) };
        if listed.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let by_kind = LinkKind::ALL.into_iter().map(|kind| {
            let path = path(&Wanted { kinds: vec![kind], ..wanted.clone() });
            async move { Ok::<_, Error>((kind, self.list(&path).await?.unwrap_or_default())) }
        });
        let by_kind: Vec<_> = by_kind.collect();
        let by_kind: Vec<_> = stream::iter(by_kind).buffered(CONCURRENCY).try_collect().await?;
        let mut kinds: HashMap<Key, Vec<LinkKind>> = HashMap::new();
        for (kind, listed) in by_kind {
            for descriptor in listed {
                kinds.entry(key(&descriptor, scope)).or_default().push(kind);
            }
        }
        let referrer = |descriptor: Descriptor| {
            let key = key(&descriptor, scope);
            let kinds: LinkKinds = kinds.get(&key).into_iter().flatten().copied().collect();
            ListedReferrer { repository: key.1, ..ListedReferrer::of(descriptor, kinds) }
        };
        Ok(Some(listed.into_iter().map(referrer).collect()))
    }

    /// What the registry's own API lists, else what its referrers tag does; and cosign's tags.
    async fn by_others(&self, subject: &Digest) -> Result<ReferrerList> {
        let mut list = match self.by_own_api(subject).await? {
            Some(found) => ReferrerList { found, vanished: Vec::new() },
            // Each entry is read: clients write that list, and leave on it what is gone or never was about this.
            None => self.of_fallback(subject).await?.into(),
        };
        self.add_cosign_tags(subject, &mut list.found).await?;
        Ok(list)
    }

    /// Everything that a list names, true or not. Nothing is read but what cosign's tags lead to.
    pub(in crate::client) async fn claimed_referrers(&self, subject: &Digest) -> Result<Vec<ListedReferrer>> {
        let by_refshim = self.by_refshim(subject, &Wanted::default(), ListScope::Repository).await?;
        if let Some(found) = by_refshim {
            return Ok(found);
        }
        let mut found = match self.by_own_api(subject).await? {
            Some(found) => found,
            None => of_kind(self.fallback_list(subject).await?, LinkKind::Fallback),
        };
        self.add_cosign_tags(subject, &mut found).await?;
        Ok(found)
    }

    async fn by_own_api(&self, subject: &Digest) -> Result<Option<Vec<ListedReferrer>>> {
        let listed = self.list(&format!("referrers/{subject}")).await?;
        Ok(listed.map(|listed| of_kind(listed, LinkKind::Subject)))
    }

    async fn add_cosign_tags(&self, subject: &Digest, found: &mut Vec<ListedReferrer>) -> Result<()> {
        for referrer in self.of_cosign_tags(subject).await? {
            let referrer = ListedReferrer::from(&referrer);
            let same = |other: &&mut ListedReferrer| other.descriptor.digest == referrer.descriptor.digest;
            match found.iter_mut().find(same) {
                Some(other) => other.kinds = other.kinds.iter().chain([LinkKind::Cosign]).collect(),
                None => found.push(referrer),
            }
        }
        Ok(())
    }

    /// Reads the manifests whose descriptors do not say what they are.
    async fn clear_up(&self, wanted: &Wanted, list: &mut ReferrerList) -> Result<()> {
        // A filter must not depend on the place in the list.
        let most = if wanted.asks_what_it_is() { usize::MAX } else { CLEARED_UP };
        let vague = list.found.iter().filter(|referrer| referrer.what.is_vague(referrer.kinds)).take(most);
        let reads = vague.map(|referrer| async move {
            let digest = referrer.descriptor.digest.clone();
            let manifest = match &referrer.repository {
                Some(name) => self.sibling(name).manifest(&by_digest(&digest)).await?,
                None => self.manifest(&by_digest(&digest)).await?,
            };
            Ok::<_, Error>((digest, manifest))
        });
        let reads: Vec<_> = reads.collect();
        let read: HashMap<Digest, Option<Manifest>> =
            stream::iter(reads).buffer_unordered(CONCURRENCY).try_collect().await?;
        list.found.retain_mut(|referrer| match read.get(&referrer.descriptor.digest) {
            Some(Some(manifest)) => {
                referrer.what = manifest.description(referrer.kinds);
                true
            }
            Some(None) => {
                list.vanished.push(referrer.descriptor.digest.clone());
                false
            }
            None => true,
        });
        Ok(())
    }

    /// Another repository of the same registry.
    fn sibling(&self, name: &RepositoryName) -> Self {
        Self::new(std::sync::Arc::clone(&self.session), name.clone())
    }
}

fn of_kind(listed: Vec<Descriptor>, kind: LinkKind) -> Vec<ListedReferrer> {
    listed.into_iter().map(|descriptor| ListedReferrer::of(descriptor, kind.into())).collect()
}

fn key(descriptor: &Descriptor, scope: ListScope) -> Key {
    let repository = match scope {
        // A manifest may have the annotation by itself.
        ListScope::Repository => None,
        ListScope::Registry => descriptor.annotations.get(REPOSITORY).and_then(|name| name.parse().ok()),
    };
    (descriptor.digest.clone(), repository)
}
