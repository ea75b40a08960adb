//! Each endpoint of the registry's API in its good and its bad cases, by a client that compares all that
//! comes back: status, fields of the head, and body.

use reqwest::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, IF_NONE_MATCH, LOCATION, RANGE};
use reqwest::{Body, Method, RequestBuilder};

use super::outcome::Outcome;
use super::side::Side;
use crate::support::{
    Answer, Client, Content, DOCKER_LIST, DOCKER_MANIFEST, Http, IMAGE_MANIFEST, descriptor, digest_of,
};

/// Asks and keeps what was said.
struct Script<'a> {
    side: &'a Side,
    client: Client,
    outcome: Outcome,
}

impl<'a> Script<'a> {
    fn new(side: &'a Side, version: Http) -> Self {
        Self { side, client: side.client(version), outcome: Outcome::default() }
    }

    async fn send(&mut self, what: &str, request: RequestBuilder) -> Option<Answer> {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let head = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
        let fields = self.side.normal().fields(head);
        // docker-registry breaks off the body of some of its own errors.
        let body = response.bytes().await.ok();
        let text = body.as_ref().map(|body| self.side.normal().text(&String::from_utf8_lossy(body)));
        let said = format!("{what}: {status} {fields:?} {text:?}");
        self.outcome = std::mem::take(&mut self.outcome).then(Outcome::new(status.as_str(), said));
        body.map(|body| Answer { status, headers, body: body.to_vec() })
    }

    async fn ask(&mut self, method: Method, path: &str) -> Option<Answer> {
        let request = self.client.request(method.clone(), path);
        self.send(&format!("{method} {path}"), request).await
    }

    async fn get(&mut self, path: &str) {
        self.ask(Method::GET, path).await;
    }

    async fn head(&mut self, path: &str) {
        self.ask(Method::HEAD, path).await;
    }

    async fn get_with(&mut self, path: &str, field: reqwest::header::HeaderName, value: &str) {
        let request = self.client.request(Method::GET, path).header(&field, value);
        self.send(&format!("GET {path} {field}: {value}"), request).await;
    }

    async fn put(&mut self, path: &str, media_type: &str, body: &[u8]) {
        let request = self.client.request(Method::PUT, path).header(CONTENT_TYPE, media_type);
        self.send(&format!("PUT {path}"), request.body(body.to_vec())).await;
    }

    /// Starts an upload; where it goes on.
    async fn upload(&mut self, repository: &str) -> String {
        let answer = self.ask(Method::POST, &format!("/v2/{repository}/blobs/uploads/")).await.unwrap();
        answer.header(LOCATION.as_str()).to_owned()
    }

    async fn patch(&mut self, location: &str, range: Option<&str>, body: Body) -> String {
        let mut request = self.client.request(Method::PATCH, location);
        if let Some(range) = range {
            request = request.header(CONTENT_RANGE, range);
        }
        let answer = self.send("PATCH", request.body(body)).await.unwrap();
        answer.headers.get(LOCATION).map_or(String::new(), |value| value.to_str().unwrap().to_owned())
    }
}

/// Uploads in every way, and everything that can go wrong with one.
pub(super) async fn uploads(side: &Side, version: Http) -> Outcome {
    let mut s = Script::new(side, version);
    let content = b"0123456789".repeat(1000);
    let digest = digest_of(&content);

    let at_once = format!("/v2/a/b/blobs/uploads/?digest={digest}");
    let request = s.client.request(Method::POST, &at_once).header(CONTENT_TYPE, "application/octet-stream");
    s.send("POST at once", request.body(content.clone())).await;

    let location = s.upload("a/b").await;
    let location = s.patch(&location, Some("0-3999"), content[..4000].to_vec().into()).await;
    let request = s.client.request(Method::GET, &location);
    s.send("GET upload", request).await;
    let pieces = content[4000..].chunks(700).map(|piece| Ok::<_, std::io::Error>(piece.to_vec()));
    let stream = futures_util::stream::iter(pieces.collect::<Vec<_>>());
    let location = s.patch(&location, None, Body::wrap_stream(stream)).await;
    let request = s.client.request(Method::PUT, &format!("{location}&digest={digest}"));
    s.send("PUT upload", request.header("content-length", "0")).await;
    let request = s.client.request(Method::GET, &location);
    s.send("GET upload that has ended", request).await;

    let location = s.upload("a/b").await;
    s.patch(&location, Some("50-59"), content[..10].to_vec().into()).await;
    let request = s.client.request(Method::PUT, &format!("{location}&digest={}", digest_of(b"other")));
    s.send("PUT upload with another digest", request.body(content.clone())).await;
    let location = s.upload("a/b").await;
    let request = s.client.request(Method::PUT, &location).body(content.clone());
    s.send("PUT upload without digest", request).await;

    let location = s.upload("a/b").await;
    for what in ["DELETE upload", "DELETE upload again"] {
        let request = s.client.request(Method::DELETE, &location);
        s.send(what, request).await;
    }
    let unknown = "/v2/a/b/blobs/uploads/00000000-0000-0000-0000-000000000000";
    for method in [Method::GET, Method::PATCH, Method::PUT, Method::DELETE] {
        s.ask(method, unknown).await;
    }
    s.ask(Method::POST, &format!("/v2/c/blobs/uploads/?mount={digest}&from=a/b")).await;
    s.ask(Method::POST, &format!("/v2/c/blobs/uploads/?mount={}&from=a/b", digest_of(b"none"))).await;
    s.outcome
}

/// Blobs down again, whole and in part.
pub(super) async fn blobs(side: &Side, version: Http) -> Outcome {
    let mut s = Script::new(side, version);
    let content = b"a blob of the comparison".to_vec();
    let path = format!("/v2/a/b/blobs/{}", s.client.push_blob("a/b", &content).await);
    s.get(&path).await;
    s.head(&path).await;
    s.get(&path.replace(':', "%3A")).await;
    for range in ["bytes=0-3", "bytes=4-", "bytes=-2", "bytes=0-0", "bytes=1000-", "bytes=9-3", "lines=1-2"] {
        s.get_with(&path, RANGE, range).await;
    }
    let digest = path.rsplit('/').next().unwrap().to_owned();
    s.get_with(&path, IF_NONE_MATCH, &format!("\"{digest}\"")).await;
    let none = format!("/v2/a/b/blobs/{}", digest_of(b"none"));
    s.get(&none).await;
    s.head(&none).await;
    s.get("/v2/a/b/blobs/sha256:short").await;
    s.get("/v2/a/b/blobs/none").await;
    s.ask(Method::DELETE, &none).await;
    s.ask(Method::PUT, &path).await;
    s.ask(Method::DELETE, &path).await;
    s.get(&path).await;
    s.outcome
}

/// Manifests of every kind, told apart by what the client accepts.
pub(super) async fn manifests(side: &Side, version: Http) -> Outcome {
    let mut s = Script::new(side, version);
    let image = s.client.image("a/b", "comparison").await;
    let path = |reference: &str| format!("/v2/a/b/manifests/{reference}");
    s.put(&path("v1"), &image.media_type, &image.bytes).await;
    s.put(&path(&image.digest), &image.media_type, &image.bytes).await;
    s.put(&path(&digest_of(b"other")), &image.media_type, &image.bytes).await;
    s.put(&path("v2"), &image.media_type, b"{").await;
    s.put(&path("v2"), "text/plain", &image.bytes).await;
    let broken = Content::image("not pushed", "either");
    s.put(&path("v2"), &broken.media_type, &broken.bytes).await;
    let docker = image.changed(|manifest| {
        manifest["mediaType"] = DOCKER_MANIFEST.into();
        manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json".into();
        manifest["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip".into();
    });
    s.put(&path("docker"), DOCKER_MANIFEST, &docker.bytes).await;
    let mut entry = descriptor(DOCKER_MANIFEST, &docker.bytes);
    entry["platform"] = serde_json::json!({"architecture": "amd64", "os": "linux"});
    let list = serde_json::json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [entry]});
    s.put(&path("list"), DOCKER_LIST, list.to_string().as_bytes()).await;
    let index = Content::index(&[&image]);
    s.put(&path("index"), &index.media_type, &index.bytes).await;

    for reference in ["v1", "list", "index", "none", &image.digest, &digest_of(b"none"), "sha256:short"] {
        let accept = [IMAGE_MANIFEST, DOCKER_MANIFEST, DOCKER_LIST, &index.media_type].join(", ");
        s.get_with(&path(reference), ACCEPT, &accept).await;
        s.head(&path(reference)).await;
    }
    for accept in [IMAGE_MANIFEST, DOCKER_MANIFEST, DOCKER_LIST, "*/*", "text/html;q=0.5"] {
        s.get_with(&path("list"), ACCEPT, accept).await;
        s.get_with(&path("index"), ACCEPT, accept).await;
    }
    let several = s
        .client
        .request(Method::GET, &path("list"))
        .header(ACCEPT, DOCKER_MANIFEST)
        .header(ACCEPT, DOCKER_LIST);
    s.send("GET with two Accept fields", several).await;
    s.get_with(&path("v1"), IF_NONE_MATCH, &format!("\"{}\"", image.digest)).await;
    s.get(&path(&image.digest.replace(':', "%3A"))).await;
    for method in [Method::POST, Method::PATCH, Method::OPTIONS] {
        s.ask(method, &path("v1")).await;
    }
    s.ask(Method::DELETE, &path("v1")).await;
    s.ask(Method::DELETE, &path(&docker.digest)).await;
    s.ask(Method::DELETE, &path(&docker.digest)).await;
    s.get(&path("docker")).await;
    s.outcome
}

/// What is not below `/v2/`.
pub(super) async fn outside(side: &Side, version: Http) -> Outcome {
    let mut s = Script::new(side, version);
    for path in ["/", "/v1/_ping", "/not/of/a/registry?x=%2F&y"] {
        s.get(path).await;
        s.head(path).await;
    }
    s.outcome
}

/// Lists and their pages, and paths that are not quite those of the API. After [`manifests`], which tags something.
pub(super) async fn lists(side: &Side, version: Http) -> Outcome {
    let mut s = Script::new(side, version);
    for path in [
        "/v2/",
        "/v2",
        "/v2/a/b/tags/list",
        "/v2/a/b/tags/list?n=1",
        "/v2/a/b/tags/list?n=1&last=index",
        "/v2/a/b/tags/list?n=x",
        "/v2/none/tags/list",
        "/v2/_catalog",
        "/v2/_catalog?n=1",
        "/v2/_catalog?n=1&last=a/b",
        "/v2/_catalog?n=-1",
        "/v2/A/tags/list",
        "/v2//a//b/tags/list",
        "/v2/a/../b/tags/list",
        "/v2/a%2Fb/tags/list",
    ] {
        s.get(path).await;
    }
    s.get(&format!("/v2/{}/tags/list", "long/".repeat(60).trim_end_matches('/'))).await;
    s.get(&format!("/v2/a/b/tags/list?x={}", "y".repeat(20_000))).await;
    s.head("/v2/").await;
    for method in [Method::OPTIONS, Method::DELETE, Method::POST, Method::from_bytes(b"PROPFIND").unwrap()] {
        s.ask(method.clone(), "/v2/").await;
        s.ask(method, "/v2/a/b/tags/list").await;
    }
    s.outcome
}

/// What someone without credentials, or with wrong ones, is told.
pub(super) async fn strangers(side: &Side, version: Http) -> Outcome {
    let mut s = Script::new(side, version);
    let stranger = side.stranger(version);
    for client in
        [stranger.clone(), stranger.as_user("alice", "wrong"), stranger.with_token("no.token.atall")]
    {
        s.client = client;
        for path in ["/v2/", "/v2/a/b/tags/list", "/v2/a/b/manifests/index", "/v2/_catalog"] {
            s.get(path).await;
            s.head(path).await;
        }
        s.ask(Method::POST, "/v2/a/b/blobs/uploads/").await;
        s.ask(Method::POST, &format!("/v2/a/b/blobs/uploads/?mount={}&from=c", digest_of(b"x"))).await;
        s.ask(Method::DELETE, &format!("/v2/a/b/manifests/{}", digest_of(b"x"))).await;
        let image = Content::image("x", "y");
        s.put("/v2/a/b/manifests/v9", &image.media_type, &image.bytes).await;
    }
    s.outcome
}
