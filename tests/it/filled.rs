//! A registry full of every dialect of links.

use std::collections::BTreeSet;

use crate::support::{Client, Filled, Refshim, Registry, fill, listed};

const REPOSITORIES: usize = 12;
const TAGS: usize = 150;
const SEED: u64 = 1;

/// How many tags the registry says there are, in all repositories.
async fn tags(client: &Client, filled: &Filled) -> usize {
    let mut tags = 0;
    for (name, repository) in &filled.repositories {
        let answer = client.get(&format!("/v2/{name}/tags/list")).await.json();
        let found = answer["tags"].as_array().map_or(0, Vec::len);
        assert_eq!(found, repository.tags, "{name}");
        tags += found;
    }
    tags
}

#[tokio::test]
async fn every_link_that_was_pushed_is_listed_and_nothing_else() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let client = refshim.client();
    let filled = fill(&client, REPOSITORIES, TAGS, SEED).await;
    assert_eq!(listed(&client, &filled).await, filled.links());
    assert_eq!(tags(&client, &filled).await, TAGS);

    let links = filled.repositories.values().flat_map(|repository| repository.links.values().flatten());
    let kinds: BTreeSet<&str> = links.map(|(_, kind)| kind.as_str()).collect();
    assert_eq!(kinds.len(), 6, "{kinds:?}");
}

#[tokio::test]
async fn a_seed_fills_every_registry_alike() {
    let (first, second) = (Registry::start(), Registry::start());
    let (first, second) = (first.client(), second.client());
    let filled = fill(&first, REPOSITORIES, TAGS, SEED).await;
    assert_eq!(fill(&second, REPOSITORIES, TAGS, SEED).await, filled);
    assert_ne!(fill(&second, REPOSITORIES, TAGS, SEED + 1).await, filled);
}
