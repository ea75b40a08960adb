//! Responses: pages, files, failures, and the header fields that every one of them has.

use askama::Template;
use http::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName,
    LOCATION, REFERRER_POLICY, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Request, Response, StatusCode};

use super::page::FailurePage;
use crate::client;
use crate::config::UpstreamName;
use crate::http::body::Body;
use crate::http::limits::Limit;
use crate::proxy::error::Error;

/// Nothing is loaded but the stylesheet and the icon, no script runs, forms lead here, and no page may frame this one.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none'; \
     base-uri 'none'",
);
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
/// The path of each registry's own pages.
pub(super) const REGISTRY: &str = "/registry/";
/// `Retry-After` of 429 and 503, in seconds.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("5");

/// Why a page is not shown.
#[derive(Debug)]
pub(super) enum Failure {
    /// The registry or the index did not answer, or rejected the visitor.
    Question(Error),
    /// Name and password are wanted, or wrong.
    Login,
    /// Name and password are right, and do not suffice.
    Denied,
    /// The registry wants a login of a kind that browsers do not know.
    OtherLogin,
    /// The token service did not answer, or cannot be trusted with a password.
    TokenService(client::Error),
    /// What was asked for is not written as an image is.
    Input(&'static str),
    /// The registry has no such image, and nothing is known to refer to it.
    NothingKnown,
    /// The image's registry is one that refshim has no lists of.
    NotShown,
    /// Another site asks, and not the visitor.
    FromElsewhere,
    /// Neither GET nor HEAD.
    Method,
    /// No page has this address.
    NoSuchPage,
    /// The page could not be written (a bug in refshim).
    Template,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.rejected() {
            Some(StatusCode::UNAUTHORIZED) => Self::Login,
            Some(_) | None => Self::Question(error),
        }
    }
}

impl From<askama::Error> for Failure {
    fn from(_: askama::Error) -> Self {
        Self::Template
    }
}

impl Failure {
    fn status(&self) -> StatusCode {
        match self {
            Self::Question(error) => error.status(),
            Self::Login => StatusCode::UNAUTHORIZED,
            Self::Denied | Self::OtherLogin | Self::FromElsewhere => StatusCode::FORBIDDEN,
            Self::TokenService(_) => StatusCode::BAD_GATEWAY,
            Self::Input(_) => StatusCode::BAD_REQUEST,
            Self::NothingKnown | Self::NotShown | Self::NoSuchPage => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Template => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// What happened, and what the visitor can do.
    fn words(&self) -> (&'static str, String) {
        match self {
            Self::Question(error) if error.is_about_rights() => {
                ("Not yours to see", "The registry does not let you read this repository.".to_owned())
            }
            Self::Question(error) => ("No answer", format!("This cannot be shown now: {error}.")),
            Self::Login => (
                "Log in",
                "The registry asks for a name and a password. Those that your browser sent, if any, were rejected."
                    .to_owned(),
            ),
            Self::Denied => (
                "Not yours to see",
                "Your name and password are right, but the registry does not let you read this repository. To use \
                 others, close the browser and begin again."
                    .to_owned(),
            ),
            Self::OtherLogin => (
                "Log in elsewhere",
                "The registry asks for a login that a browser cannot give. The command line can: refshim tree."
                    .to_owned(),
            ),
            Self::TokenService(_) => (
                "No answer",
                "The registry's token service gave no token, or is not reached over https. The log of refshim says \
                 more."
                    .to_owned(),
            ),
            Self::Input(what) => ("Not an image", (*what).to_owned()),
            Self::NothingKnown => (
                "Nothing known",
                "The registry shows you no such image, and nothing is known to refer to it. Check the name; a registry \
                 also hides what you may not see."
                    .to_owned(),
            ),
            Self::NotShown => (
                "Not shown here",
                "refshim only passes requests on to this registry, and has no lists of its own for it.".to_owned(),
            ),
            Self::FromElsewhere => {
                ("Not for other sites", "These pages are shown to people, not to other sites.".to_owned())
            }
            Self::Method => ("Not here", "These pages can only be read.".to_owned()),
            Self::NoSuchPage => ("No such page", "There is no page at this address.".to_owned()),
            Self::Template => ("A mistake of refshim's", "This page could not be written.".to_owned()),
        }
    }

    /// Whether other credentials may lead further.
    fn is_about_rights(&self) -> bool {
        match self {
            Self::Question(error) => error.is_about_rights(),
            Self::Login | Self::NothingKnown => true,
            Self::Denied
            | Self::OtherLogin
            | Self::TokenService(_)
            | Self::Input(_)
            | Self::NotShown
            | Self::FromElsewhere
            | Self::Method
            | Self::NoSuchPage
            | Self::Template => false,
        }
    }

    /// Logs what the operator should know of.
    pub(super) fn log(&self, page: &str) {
        if let Self::TokenService(error) = self {
            tracing::warn!(page, %error, "a visitor could not be logged in: {error}");
        } else if let Self::Question(error) = self
            && !error.is_the_clients()
        {
            tracing::warn!(page, "a page cannot be shown: {error}");
        } else {
            tracing::debug!(page, status = self.status().as_u16(), "a page is not shown");
        }
    }
}

/// A page, a file, or the way to another page.
#[derive(Debug)]
pub(super) struct Shown(Response<Body>);

impl Shown {
    /// A page of this template.
    pub(super) fn page(template: &impl Template) -> Result<Self, Failure> {
        let mut response = Response::new(Body::whole(template.render()?));
        response.headers_mut().insert(CONTENT_TYPE, HTML);
        Ok(Self(response))
    }

    /// The same with another status than 200.
    pub(super) fn with_status(mut self, status: StatusCode) -> Self {
        *self.0.status_mut() = status;
        self
    }

    pub(super) fn style() -> Self {
        Self::file("text/css; charset=utf-8", include_str!("templates/style.css"))
    }

    pub(super) fn icon() -> Self {
        Self::file("image/svg+xml", include_str!("templates/icon.svg"))
    }

    fn file(media_type: &'static str, content: &'static str) -> Self {
        let mut response = Response::new(Body::whole(content));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        Self(response)
    }

    /// The way to another page of these.
    pub(super) fn redirect(to: &str) -> Result<Self, Failure> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SEE_OTHER;
        response.headers_mut().insert(LOCATION, HeaderValue::try_from(to).map_err(|_| Failure::NoSuchPage)?);
        Ok(Self(response))
    }

    /// The response, with the fields that every one has.
    pub(super) fn into_response(self) -> Response<Body> {
        let mut response = self.0;
        let fields: [(HeaderName, HeaderValue); 6] = [
            (CONTENT_SECURITY_POLICY, POLICY),
            (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            // Else the address of a page, with the name of an image in it, would be told to others.
            (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
            // No cache, and no browser of the next visitor, may keep what was shown to this one.
            (CACHE_CONTROL, HeaderValue::from_static("no-store")),
            // Other sites can neither load what is here nor hold a window of it.
            (
                HeaderName::from_static("cross-origin-resource-policy"),
                HeaderValue::from_static("same-origin"),
            ),
            (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
        ];
        response.headers_mut().extend(fields);
        response
    }
}

/// What a request is for, as far as its own words say it.
#[derive(Debug)]
pub(super) struct Door<'a> {
    /// The registry whose pages it is among.
    pub(super) upstream: Option<UpstreamName>,
    /// The path, below that of the registry.
    pub(super) page: &'a str,
    query: &'a str,
    has_credentials: bool,
}

impl<'a> Door<'a> {
    pub(super) fn of<B>(request: &'a Request<B>) -> Self {
        let path = request.uri().path();
        let within = path.strip_prefix(REGISTRY).and_then(|rest| Some((rest, rest.find('/')?)));
        let within = within.and_then(|(rest, end)| rest.split_at_checked(end));
        let within = within.and_then(|(name, page)| Some((name.parse().ok()?, page)));
        let (upstream, page) = within.map_or((None, path), |(name, page)| (Some(name), page));
        Self {
            upstream,
            page,
            query: request.uri().query().unwrap_or_default(),
            has_credentials: request.headers().contains_key(AUTHORIZATION),
        }
    }

    /// Where a visitor without credentials can bring some.
    pub(super) fn login(&self) -> Option<String> {
        let upstream = self.upstream.as_ref().filter(|_| !self.has_credentials)?;
        Some(format!("{REGISTRY}{upstream}/login?{}", self.query))
    }

    /// What the browser asks for. The name is the operator's: the registry's own realm is text that others wrote.
    fn challenge(&self) -> Option<HeaderValue> {
        let realm = format!("Basic realm=\"registry {}\", charset=\"UTF-8\"", self.upstream.as_ref()?);
        HeaderValue::try_from(realm).ok()
    }
}

/// Asks for a name and a password, and goes on to the page that the query names.
pub(super) fn login(door: &Door<'_>, upstream: &UpstreamName) -> Result<Shown, Failure> {
    match door.query {
        _ if !door.has_credentials => Err(Failure::Login),
        "" => Shown::redirect("/"),
        query => Shown::redirect(&format!("{REGISTRY}{upstream}/image?{query}")),
    }
}

/// The page of a failure.
pub(super) fn failure(failure: &Failure, door: &Door<'_>) -> Response<Body> {
    let status = failure.status();
    let (title, text) = failure.words();
    let login = door.login().filter(|_| failure.is_about_rights());
    let shown = Shown::page(&FailurePage { title, text: &text, login: login.as_deref() });
    // An empty page of the same status, if not even this one can be written.
    let shown = shown.unwrap_or_else(|_| Shown(Response::new(Body::empty())));
    let mut response = shown.with_status(status).into_response();
    let headers = response.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        headers.extend(door.challenge().map(|challenge| (WWW_AUTHENTICATE, challenge)));
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    if [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS].contains(&status) {
        headers.insert(RETRY_AFTER, RETRY_SECONDS);
    }
    if matches!(failure, Failure::Question(Error::Limit(Limit::Connections))) {
        // The connection is over the limit; a browser that kept it would get 503 for ever.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
