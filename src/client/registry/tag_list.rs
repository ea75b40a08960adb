//! The tags of a repository.

use http::Method;
use serde::Deserialize;

use super::Registry;
use crate::client::session::{read, request};
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
        let mut next = Some(self.url("tags/list")?);
        while let Some(url) = next {
            let request = request(Method::GET, url.clone());
            let response = self.session.succeed(self.pull(&asked, request)).await?;
            next = self.next_page(&url, response.headers())?;
            let page = read(&asked, response).await?;
            let page: TagList = serde_json::from_slice(&page)
                .map_err(|error| Error::failed(asked.as_str(), error.to_string()))?;
            for tag in page.tags.unwrap_or_default() {
                tags.push(
                    tag.parse().map_err(|_| Error::failed(asked.as_str(), format!("{tag:?} is no tag")))?,
                );
            }
        }
        Ok(tags)
    }
}
