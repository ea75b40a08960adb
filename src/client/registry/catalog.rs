//! The repositories of a registry, where it tells them.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::pages::Pages;
use crate::client::session::{Scope, Session};
use crate::client::{Error, ErrorKind, Result};

/// Repositories a page: without it, some registries give 100, and each page costs them a walk of their storage.
const PAGE: usize = 1_000;
const NAME_THEM: &str = "name the repositories with --repositories-from";

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
    // Not every registry has one, and not for everybody.
    let untold = |error: Error| match error.kind() {
        ErrorKind::Denied => {
            error.advise(format!("log in (docker login) as somebody who may, or {NAME_THEM}"))
        }
        ErrorKind::Failed | ErrorKind::NotFound | ErrorKind::Malformed | ErrorKind::Usage => {
            error.advise(NAME_THEM)
        }
    };
    loop {
        let response = match pages.answer().await {
            Ok(Some(response)) if response.status().is_success() => response,
            Ok(Some(response)) => return Err(untold(session.refused(&asked, response).await)),
            Err(error) if error.kind() == ErrorKind::Denied => return Err(untold(error)),
            Err(error) => return Err(error),
            Ok(None) => return Ok(names),
        };
        let page = pages.body(response).await?;
        let page: Catalog = serde_json::from_slice(&page)
            .map_err(|error| Error::failed(asked.as_str(), error.to_string()))?;
        names.extend(page.repositories.unwrap_or_default());
    }
}
