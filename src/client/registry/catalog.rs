//! The repositories of a registry, where it tells them.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::pages::Pages;
use crate::client::session::{Scope, Session};
use crate::client::{Error, Result};

/// Repositories a page: without it, some registries give 100, and each page costs them a walk of their storage.
const PAGE: usize = 1_000;

#[derive(Deserialize)]
struct Catalog {
    repositories: Option<Vec<String>>,
}

/// The names in the catalog, each once, as the registry tells them.
pub(in crate::client) async fn catalog(session: &Session) -> Result<BTreeSet<String>> {
    let asked = format!("listing the repositories of {}", session.host());
    let first = session.url(&format!("_catalog?n={PAGE}"))?;
    let mut names = BTreeSet::new();
    let mut pages = Pages::at(session, Scope::catalog(), &asked, first);
    while let Some(response) = pages.answer().await? {
        if !response.status().is_success() {
            let advice = "not every registry tells its repositories, and not to everybody; name them with \
                          --repositories-from";
            return Err(session.refused(&asked, response).await.advise(advice));
        }
        let page = pages.body(response).await?;
        let page: Catalog = serde_json::from_slice(&page)
            .map_err(|error| Error::failed(asked.as_str(), error.to_string()))?;
        names.extend(page.repositories.unwrap_or_default());
    }
    Ok(names)
}
