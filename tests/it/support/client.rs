//! A client that does one request at a time, as a registry client would.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Once;

use reqwest::header::{CONTENT_TYPE, HeaderMap, LOCATION};
use reqwest::{Certificate, Method, RequestBuilder, StatusCode};
use serde_json::Value;

use super::content::{Content, DOCKER_LIST, DOCKER_MANIFEST, IMAGE_INDEX, IMAGE_MANIFEST, digest_of};

/// Talks to a registry, or to a refshim.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    credentials: Option<Credentials>,
}

#[derive(Clone)]
enum Credentials {
    Password(String, String),
    Token(String),
}

/// The version of HTTP that a client speaks; over TLS, ALPN offers this one alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Http {
    One,
    Two,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self::to(&format!("http://{address}"), Http::One, None)
    }

    /// HTTP/2 from the first byte.
    pub(crate) fn http2(address: SocketAddr) -> Self {
        Self::to(&format!("http://{address}"), Http::Two, None)
    }

    /// Speaks one version of HTTP to the URL that all paths are appended to, and trusts this authority
    /// and no other.
    pub(crate) fn to(base: &str, version: Http, authority: Option<&Path>) -> Self {
        // reqwest wants a provider also of a client that never speaks TLS.
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| rustls::crypto::ring::default_provider().install_default().unwrap());
        let trusted = authority.map(|file| Certificate::from_pem(&std::fs::read(file).unwrap()).unwrap());
        let builder = reqwest::Client::builder().tls_certs_only(trusted).no_proxy();
        let builder = match version {
            Http::One => builder.http1_only(),
            Http::Two => builder.http2_prior_knowledge(),
        };
        let http = builder.redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self { http, base: base.to_owned(), credentials: None }
    }

    /// The same client, logged in.
    pub(crate) fn as_user(&self, name: &str, password: &str) -> Self {
        self.with_credentials(Credentials::Password(name.to_owned(), password.to_owned()))
    }

    /// The same client, with a token.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        self.with_credentials(Credentials::Token(token.to_owned()))
    }

    fn with_credentials(&self, credentials: Credentials) -> Self {
        Self { credentials: Some(credentials), ..self.clone() }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = if path.starts_with('/') { format!("{}{path}", self.base) } else { path.to_owned() };
        let request = self.http.request(method, url);
        match &self.credentials {
            Some(Credentials::Password(name, password)) => request.basic_auth(name, Some(password)),
            Some(Credentials::Token(token)) => request.bearer_auth(token),
            None => request,
        }
    }

    pub(crate) async fn send(&self, request: RequestBuilder) -> Answer {
        self.try_send(request).await.unwrap()
    }

    pub(crate) async fn try_send(&self, request: RequestBuilder) -> reqwest::Result<Answer> {
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Answer { status, headers, body: response.bytes().await?.to_vec() })
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn head(&self, path: &str) -> Answer {
        self.send(self.request(Method::HEAD, path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    pub(crate) async fn text(&self, path: &str) -> String {
        String::from_utf8(self.get(path).await.body).unwrap()
    }

    /// Pushes a blob in two requests; its digest.
    pub(crate) async fn push_blob(&self, repository: &str, content: &[u8]) -> String {
        let digest = digest_of(content);
        let started =
            self.send(self.request(Method::POST, &format!("/v2/{repository}/blobs/uploads/"))).await;
        assert_eq!(started.status, StatusCode::ACCEPTED, "{started:?}");
        let location = started.header(LOCATION.as_str());
        let put = self.request(Method::PUT, &format!("{location}&digest={digest}")).body(content.to_vec());
        let put = self.send(put).await;
        assert_eq!(put.status, StatusCode::CREATED, "{put:?}");
        digest
    }

    pub(crate) async fn put_manifest(&self, repository: &str, reference: &str, content: &Content) -> Answer {
        let put = self.request(Method::PUT, &format!("/v2/{repository}/manifests/{reference}"));
        let put = put.header(CONTENT_TYPE, content.media_type.as_str()).body(content.bytes.clone());
        self.send(put).await
    }

    /// Pushes a manifest by its digest, and expects that the registry takes it.
    pub(crate) async fn push(&self, repository: &str, content: &Content) {
        self.push_as(repository, &content.digest, content).await;
    }

    pub(crate) async fn push_as(&self, repository: &str, reference: &str, content: &Content) {
        let answer = self.put_manifest(repository, reference, content).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        assert_eq!(answer.header("docker-content-digest"), content.digest);
    }

    /// An image of its own: config and one layer pushed, the manifest not.
    pub(crate) async fn image(&self, repository: &str, seed: &str) -> Content {
        let config = format!(r#"{{"architecture":"amd64","os":"linux","seed":"{seed}"}}"#);
        let layer = format!("layer of {seed}");
        self.push_blob(repository, config.as_bytes()).await;
        self.push_blob(repository, layer.as_bytes()).await;
        Content::image(&config, &layer)
    }

    /// Asks for references and expects an image index; its descriptors.
    pub(crate) async fn references(&self, repository: &str, reference: &str, query: &str) -> Vec<Value> {
        let path = format!("/v2/{repository}/manifests/{reference}/references{query}");
        let answer = self.get(&path).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert_eq!(answer.header(CONTENT_TYPE.as_str()), IMAGE_INDEX);
        let index = answer.json();
        assert_eq!(index["schemaVersion"], 2);
        assert_eq!(index["mediaType"], IMAGE_INDEX);
        index["manifests"].as_array().unwrap().clone()
    }

    /// The digests that [`Client::references`] lists.
    pub(crate) async fn referrers(&self, repository: &str, reference: &str, query: &str) -> Vec<String> {
        let listed = self.references(repository, reference, query).await;
        listed.iter().map(|descriptor| descriptor["digest"].as_str().unwrap().to_owned()).collect()
    }

    /// The descriptor of a manifest as the registry serves it.
    pub(crate) async fn served(&self, repository: &str, reference: &str) -> (String, usize, String) {
        let get = self.request(Method::GET, &format!("/v2/{repository}/manifests/{reference}"));
        let accept = [IMAGE_MANIFEST, IMAGE_INDEX, DOCKER_MANIFEST, DOCKER_LIST].join(", ");
        let answer = self.send(get.header("accept", accept)).await;
        assert_eq!(answer.status, StatusCode::OK);
        let media_type = answer.header(CONTENT_TYPE.as_str()).to_owned();
        (media_type, answer.body.len(), answer.header("docker-content-digest").to_owned())
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}")).to_str().unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Expects an OCI error body with one error.
    pub(crate) fn error_code(&self) -> String {
        let errors = self.json()["errors"].as_array().unwrap().clone();
        assert_eq!(errors.len(), 1);
        assert!(!errors[0]["message"].as_str().unwrap().is_empty());
        errors[0]["code"].as_str().unwrap().to_owned()
    }
}
