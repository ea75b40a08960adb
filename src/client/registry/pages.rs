//! The pages of a list, each found by the `Link` of the one before it.

use std::collections::HashSet;

use bytes::Bytes;
use http::{Method, Uri};
use url::Url;

use super::Registry;
use crate::client::session::{Ask, Scope, Session};
use crate::client::transport::{Request, Response};
use crate::client::{Error, Result};
use crate::http::link;

/// Pages of one list, at most: 100 tags a page is what registries commonly give, and 200,000 tags is more
/// than any repository has.
const PAGES: usize = 2_000;
/// Bytes of one list, at most.
const LIST_BYTES: usize = 512 << 20;

/// A list that is read page by page.
#[derive(Debug)]
pub(super) struct Pages<'a> {
    session: &'a Session,
    scope: Scope,
    asked: &'a str,
    next: Option<Url>,
    /// The pages read so far. A link to one of them would never end.
    read: HashSet<Url>,
    bytes: usize,
}

impl<'a> Pages<'a> {
    /// The list whose first page is at this path. `asked` says in words what it is for.
    pub(super) fn of(registry: &'a Registry, asked: &'a str, path: &str) -> Result<Self> {
        let scope = Scope::pull(registry.name.as_str());
        Ok(Self::at(&registry.session, scope, asked, registry.url(path)?))
    }

    /// The list whose first page is at this URL, for which one needs these rights.
    pub(super) fn at(session: &'a Session, scope: Scope, asked: &'a str, first: Url) -> Self {
        Self { session, scope, asked, next: Some(first), read: HashSet::new(), bytes: 0 }
    }

    /// Whether the answer that came last is the one for the first page.
    pub(super) fn is_first(&self) -> bool {
        self.read.len() == 1
    }

    /// The answer for the next page, whatever its status; nothing after the last page.
    pub(super) async fn answer(&mut self) -> Result<Option<Response>> {
        let Some(url) = self.next.take() else { return Ok(None) };
        if !self.read.insert(url.clone()) {
            return Err(Error::failed(self.asked, format!("the list leads back to a page before: {url}")));
        }
        if self.read.len() > PAGES {
            return Err(Error::failed(self.asked, format!("the list does not end within {PAGES} pages")));
        }
        let request = Request::new(Method::GET, url);
        let ask = Ask { asked: self.asked, scope: self.scope.clone(), request };
        self.session.send(ask).await.map(Some)
    }

    /// The body of a page, after which [`Pages::answer`] gives the next one.
    pub(super) async fn body(&mut self, response: Response) -> Result<Bytes> {
        self.next = self.after(&response)?;
        let page = response.read(self.asked).await?;
        self.bytes += page.len();
        if self.bytes > LIST_BYTES {
            let limit = LIST_BYTES >> 20;
            return Err(Error::failed(self.asked, format!("the list is longer than {limit} MiB")));
        }
        Ok(page)
    }

    /// The next page's URL, always at the registry itself, whatever host the link names: a registry behind a
    /// proxy names its inner host, and credentials must not go anywhere else.
    fn after(&self, response: &Response) -> Result<Option<Url>> {
        let failed = |error: &dyn std::fmt::Display| Error::failed(self.asked, error.to_string());
        let page: Uri = response.url().as_str().parse().map_err(|error| failed(&error))?;
        let Some(next) = link::next(response.headers(), &page) else { return Ok(None) };
        let next = next.map_err(|error| failed(&error))?;
        let target = next.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        // Not joined: a path that begins with two slashes would be another host.
        let origin = self.session.url("")?.origin().ascii_serialization();
        Url::parse(&format!("{origin}{target}")).map(Some).map_err(|error| failed(&error))
    }
}
