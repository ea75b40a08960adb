//! A registry full of every dialect of links.

use std::collections::BTreeSet;

use crate::support::{Client, Filled, Refshim, Registry, by_environment, fill, listed};

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
    let count = usize::try_from(by_environment("FILLED_TAGS", 150)).unwrap();
    let filled = fill(&client, 12, count, by_environment("FILLED_SEED", 1)).await;
    assert_eq!(listed(&client, &filled).await, filled.links());
    assert_eq!(tags(&client, &filled).await, count);

    let links = filled.repositories.values().flat_map(|repository| repository.links.values().flatten());
    let kinds: BTreeSet<&str> = links.map(|(_, kind)| kind.as_str()).collect();
    assert_eq!(kinds.len(), 6, "{kinds:?}");
}

#[tokio::test]
async fn a_seed_fills_every_registry_alike() {
    let registries = [Registry::start(), Registry::start(), Registry::start()];
    let [first, second, third] = registries.each_ref().map(Registry::client);
    let (filled, again, other) =
        tokio::join!(fill(&first, 5, 40, 1), fill(&second, 5, 40, 1), fill(&third, 5, 40, 2));
    assert_eq!(again, filled);
    assert_ne!(other, filled);
}
