//! The web page (`web.listen`): what is attached to an image, for people. HTML made here, without script.
//!
//! # Who sees what
//! **What a visitor sees is exactly what the registry lets that visitor read.** A page is made of the same questions
//! and lists as `/references` ([`ReferrerPages`]), asked with the visitor's own `Authorization` and address. Nothing
//! is shown from refshim's own rights or from another visitor's, and there are no sessions or cookies.
//! - A 401 of the registry that asks for name and password becomes this page's 401, so that the browser asks for
//!   them. One that names a token service is followed as any client would, with the visitor's name and password or
//!   with none, for the right to pull from the one repository (`visitor`). The token lasts for one page.
//! - Of the browser's request, only `Authorization` goes to the registry, with what `trusted_proxies` say of the
//!   visitor's address. `Host` does not: it is this page's, and a registry may build addresses from it. Nor do
//!   cookies and the rest: registries show a login page to whoever looks like a browser. Whoever sends less has fewer
//!   rights, not more.
//! - The pages of each registry have a path of their own, `/registry/<upstream>/`, and ask for the password of a realm
//!   of their own: a browser sends a password to the path that it was asked for at (RFC 7617, section 2.2), and what
//!   was typed in for one registry must not go to another.
//! - An upstream that only a `Host` selects is shown only under that host, as on the clients' port.
//!
//! # What others wrote
//! Annotations, types and titles are hostile text. askama escapes them, [`visible`](crate::oci::visible()) shows what
//! would hide or reorder text, and links lead nowhere but to these pages: no address that stands in a manifest becomes
//! one. The policy in `respond` (CSP) forbids scripts and everything from elsewhere, should all of that fail.
//!
//! # What is not here
//! A list of recent links or of repositories: what a visitor may see of it could be told only by asking the registry
//! about every repository there is.

mod commands;
mod gather;
mod graph;
mod item;
mod page;
mod places;
mod respond;
mod site;
mod text;
mod visitor;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;

use crate::client;
use crate::config::{Config, Mode, UpstreamName};
use crate::http::body::Body;
use crate::http::limits::{Answers, Limit, Place, Requests};
use crate::index::Index;
use crate::proxy::forward::{Clients, Origin, Peer};
use crate::proxy::selection::Selection;
use crate::proxy::upstream::Upstream;
use crate::queries::pages::ReferrerPages;
use crate::registry::Registry;
use crate::tls::Reload;

pub use crate::client::VisitorLogin;
use respond::{Door, Failure, Shown};
use visitor::Visitor;

/// Answers the requests of the web page.
#[derive(Debug)]
pub struct Web {
    /// In the order of the configuration, the default one first.
    registries: Vec<WebRegistry>,
    selection: Selection,
    clients: Clients,
    index: Index,
    requests: Arc<Requests>,
    answers: Arc<Answers>,
    /// The host by which clients reach refshim, if it is configured.
    host: Option<String>,
}

/// A registry that the page shows.
#[derive(Debug)]
pub struct WebRegistry {
    upstream: Arc<Upstream>,
    /// Where questions go.
    registry: Arc<Registry>,
    /// The lists that `/references` answers with.
    pages: Arc<ReferrerPages>,
    /// How visitors log in to it.
    login: VisitorLogin,
    /// Whether it was seen to ask for name and password itself.
    takes_passwords: AtomicBool,
}

/// Why there can be no web page.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct WebError(#[from] client::Error);

impl WebRegistry {
    /// The registry at this upstream, which is asked by `registry` and listed by `pages`.
    #[must_use]
    pub fn new(
        login: VisitorLogin,
        upstream: Arc<Upstream>,
        registry: Arc<Registry>,
        pages: Arc<ReferrerPages>,
    ) -> Self {
        Self { upstream, registry, pages, login, takes_passwords: AtomicBool::new(false) }
    }
}

impl Reload for Web {
    /// Reloads the TLS files towards token services, if they changed.
    fn reload(&self) {
        self.registries.iter().for_each(|registry| registry.login.reload());
    }
}

/// Whether a page of another site has the browser ask for this, and not the visitor by a link: it would send the
/// password that it remembers along, and how long the answer takes may tell that site something (Fetch Metadata).
fn is_from_elsewhere(headers: &HeaderMap) -> bool {
    let is = |name: &str, words: &[&[u8]]| {
        headers.get(name).is_some_and(|value| words.contains(&value.as_bytes()))
    };
    is("sec-fetch-site", &[b"cross-site", b"same-site"]) && !is("sec-fetch-mode", &[b"navigate"])
}

/// Whether the parts of refshim work, without a reason: that is for the operator alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The index.
    pub index: bool,
    /// How many replicas share it; not known for an index that is one process's own, or does not answer.
    pub replicas: Option<u64>,
    /// The registries, by the name of their upstream.
    pub upstreams: Vec<(UpstreamName, bool)>,
}

impl Web {
    /// How visitors log in to each upstream, in the order of the configuration.
    ///
    /// # Errors
    /// TLS files cannot be used.
    pub fn logins(config: &Config) -> Result<Vec<VisitorLogin>, WebError> {
        Ok(config.upstreams().map(VisitorLogin::of_upstream).collect::<Result<_, _>>()?)
    }

    /// The web page of these registries.
    #[must_use]
    pub fn new(
        config: &Config,
        registries: Vec<WebRegistry>,
        index: Index,
        (requests, answers): (Arc<Requests>, Arc<Answers>),
    ) -> Self {
        let host = config.external_url.as_ref().map(|url| url.authority().to_string());
        let (selection, clients) = (Selection::new(config), Clients::new(config));
        Self { registries, selection, clients, index, requests, answers, host }
    }

    /// The answer to a request. `health` is asked only for the page that shows it.
    pub async fn answer(
        &self,
        peer: &Peer,
        place: &Arc<Place>,
        request: Request<Incoming>,
        health: impl Future<Output = Health> + Send,
    ) -> Response<Body> {
        let origin = self.clients.origin(peer, &request);
        let client = origin.client();
        let door = Door::of(&request);
        let failed = |failure: &Failure| respond::failure(failure, &door);
        let busy = match place.begin().ok_or(Limit::Connections) {
            Ok(busy) => self.requests.begin(client, busy),
            Err(limit) => Err(limit),
        };
        let in_progress = match busy {
            Ok(in_progress) => in_progress,
            Err(limit) => return failed(&Failure::Question(limit.into())),
        };
        let shown = Box::pin(self.shown(peer, &origin, &door, &request, health)).await;
        let shown = shown.unwrap_or_else(|failure| {
            failure.log(request.uri().path());
            failed(&failure)
        });
        let mut response = match shown.body().whole_length().map(|length| self.answers.take(client, length)) {
            Some(Err(limit)) => failed(&Failure::Question(limit.into())),
            Some(Ok(held)) => {
                let mut response = shown;
                response.body_mut().hold(held);
                response
            }
            None => shown,
        };
        // To the last byte: until then the visitor's share counts it, and the connection is not idle.
        response.body_mut().keep(in_progress);
        response
    }

    async fn shown(
        &self,
        peer: &Peer,
        origin: &Origin,
        door: &Door<'_>,
        request: &Request<Incoming>,
        health: impl Future<Output = Health> + Send,
    ) -> Result<Response<Body>, Failure> {
        if *request.method() != Method::GET && *request.method() != Method::HEAD {
            return Err(Failure::Method);
        }
        let site = self.site(origin, request.uri().query().unwrap_or_default());
        if is_from_elsewhere(request.headers()) {
            return Err(Failure::FromElsewhere);
        }
        if let Some(upstream) = &door.upstream {
            let visitor = Visitor::new(&self.clients, peer, request.headers());
            let shown = match door.page {
                // From the login.
                "/image" if site.asks_for_digest() => site.lead_to_digest(Some(upstream.as_str())),
                "/image" => self.image(&site, &site.asked_at(upstream)?, &visitor).await,
                "/graph" => self.graph(&site.asked_at(upstream)?, &visitor).await,
                "/referrer" => self.referrer(&site.asked_at(upstream)?, &visitor).await,
                "/digest" => self.digest(&site, upstream, door, &visitor).await,
                "/coverage" => self.coverage(&site.asked_at(upstream)?, &visitor).await,
                "/login" => respond::login(door, upstream),
                _ => Err(Failure::NoSuchPage),
            };
            return shown.map(Shown::into_response);
        }
        let shown = match door.page {
            "/" => site.search(),
            page @ ("/image" | "/graph" | "/referrer" | "/coverage") => site.lead_to(page),
            "/health" => site.health(&health.await),
            "/style.css" => Ok(Shown::style()),
            "/icon.svg" => Ok(Shown::icon()),
            _ => Err(Failure::NoSuchPage),
        };
        shown.map(Shown::into_response)
    }

    /// The registries that a visitor of this host can reach. Of those that refshim only passes requests on to it has no
    /// lists.
    fn reachable(&self, host: Option<&str>) -> Vec<usize> {
        let is_shown = |place: &usize| {
            self.registries.get(*place).is_some_and(|registry| registry.upstream.mode() == Mode::Full)
        };
        self.selection.reachable(host).into_iter().filter(is_shown).collect()
    }
}
