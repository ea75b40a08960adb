//! A registry full of every dialect of links, and what has to be listed of it.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream::{self, StreamExt as _};
use reqwest::StatusCode;

use super::Client;

mod contents;
mod filling;
mod plan;

use filling::Filling;
use plan::{Plan, plans};

/// By subject's digest: the links, as (referrer's digest, kind as `?kind=` names it). A subject without any is one
/// that something only seems to refer to.
pub(crate) type Links = BTreeMap<String, BTreeSet<(String, String)>>;

const KINDS: [&str; 6] = ["reference", "subject", "parent", "attestation", "cosign", "fallback"];

/// Repositories that are filled, and subjects that are asked about, at once.
const AT_ONCE: usize = 8;

/// What a registry was filled with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Filled {
    /// By name.
    pub(crate) repositories: BTreeMap<String, Repository>,
}

/// What there is in one repository. All of it can be found from the tags, through indexes and lists.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Repository {
    /// How many tags there are, those of cosign and the referrers tags included.
    pub(crate) tags: usize,
    /// Every link there is.
    pub(crate) links: Links,
}

impl Filled {
    /// The links by repository: what [`listed`] gives if all of them are known.
    pub(crate) fn links(&self) -> BTreeMap<String, Links> {
        self.repositories.iter().map(|(name, repository)| (name.clone(), repository.links.clone())).collect()
    }
}

/// Pushes this many tags to this many repositories (2 at least, of which one has no tag left), a few of which get
/// most of the tags. The same seed pushes the same.
pub(crate) async fn fill(client: &Client, repositories: usize, tags: usize, seed: u64) -> Filled {
    let filled = plans(repositories, tags, seed).into_iter().map(|plan| async move {
        let Plan { name, seed, dialects } = plan;
        let repository = Filling::new(client, &name, seed).await.with(&dialects).await;
        (name, repository)
    });
    Filled { repositories: stream::iter(filled).buffer_unordered(AT_ONCE).collect().await }
}

/// What refshim lists about each subject of `filled`, page by page, kind by kind.
pub(crate) async fn listed(client: &Client, filled: &Filled) -> BTreeMap<String, Links> {
    let repositories = filled.repositories.iter();
    let subjects = repositories.flat_map(|(name, repository)| {
        repository.links.keys().map(move |subject| (name.as_str(), subject.as_str()))
    });
    let answers = subjects.enumerate().map(|(number, (name, subject))| async move {
        let path = format!("/v2/{name}/manifests/{subject}/references");
        let count = match number % 7 {
            0 => "?n=1",
            3 => "?n=3",
            _ => "?n=1000",
        };
        (name, subject, listed_about(client, &format!("{path}{count}")).await)
    });
    let mut answers = stream::iter(answers).buffer_unordered(AT_ONCE);
    let mut listed: BTreeMap<String, Links> =
        filled.repositories.keys().map(|name| (name.clone(), Links::new())).collect();
    while let Some((name, subject, links)) = answers.next().await {
        listed.entry(name.to_owned()).or_default().insert(subject.to_owned(), links);
    }
    listed
}

async fn listed_about(client: &Client, path: &str) -> BTreeSet<(String, String)> {
    let all = pages(client, path).await;
    let mut links = BTreeSet::new();
    if all.is_empty() {
        return links;
    }
    for kind in KINDS {
        let referrers = pages(client, &format!("{path}&kind={kind}")).await;
        links.extend(referrers.into_iter().map(|digest| (digest, kind.to_owned())));
    }
    // Whatever is listed has a kind, and the other way round.
    assert_eq!(all, links.iter().map(|(digest, _)| digest.clone()).collect(), "{path}");
    links
}

/// The digests on all pages, each of which has to be there once.
async fn pages(client: &Client, path: &str) -> BTreeSet<String> {
    let (mut digests, mut next) = (BTreeSet::new(), Some(path.to_owned()));
    while let Some(path) = next {
        let answer = client.get(&path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path} {answer:?}");
        for entry in answer.json()["manifests"].as_array().unwrap() {
            let digest = entry["digest"].as_str().unwrap().to_owned();
            assert!(digests.insert(digest), "twice in {path}: {entry}");
        }
        next = answer.headers.get("link").map(|link| {
            let link = link.to_str().unwrap();
            link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap().to_owned()
        });
    }
    digests
}
