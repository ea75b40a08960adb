//! The tags of a repository.

use serde::Deserialize;

use super::Registry;
use super::pages::Pages;
use crate::client::{Error, Result};
use crate::oci::Tag;

#[derive(Deserialize)]
struct TagList {
    tags: Option<Vec<String>>,
}

impl Registry {
    pub(in crate::client) async fn tags(&self) -> Result<Vec<Tag>> {
        let asked = format!("listing the tags of {self}");
        let mut tags = Vec::new();
        let mut pages = Pages::of(self, &asked, "tags/list")?;
        while let Some(response) = pages.answer().await? {
            if !response.status().is_success() {
                return Err(self.session.refused(&asked, response).await);
            }
            let page = pages.body(response).await?;
            let page: TagList = serde_json::from_slice(&page)
                .map_err(|error| Error::failed(asked.as_str(), error.to_string()))?;
            // `null` is what registries in Go make of an empty list.
            for tag in page.tags.unwrap_or_default() {
                // Not skipped: a copy of all tags would lack it and say nothing.
                tags.push(
                    tag.parse().map_err(|_| Error::failed(asked.as_str(), format!("{tag:?} is no tag")))?,
                );
            }
        }
        Ok(tags)
    }
}
