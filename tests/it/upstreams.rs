//! Several upstreams behind one refshim: which one gets a request, that what its answers name leads back
//! to it, and that neither links nor credentials of one are seen at another.

use std::path::Path;
use std::process::Command;

use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::referrers::signature;
use crate::support::{Answer, Client, Content, IMAGE_INDEX, Refshim, Registry, Scripted};

/// An upstream that says its name, and this header.
fn named(name: &'static str, header: &'static str) -> Scripted {
    Scripted::start(move |exchange| {
        exchange.read_body();
        let header = header.replace("{host}", exchange.request.header("host").unwrap());
        let length = name.len();
        exchange.answer(&format!(
            "HTTP/1.1 200 OK\r\n{header}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{name}"
        ));
    })
}

/// In front of a default upstream, of `hub` (by host, namespace, or prefix, which it does not know), and
/// of `team` (by prefix, which it knows).
async fn in_front_of(urls: [&str; 3], more: &[(&'static str, &str)], data: &Path) -> Refshim {
    let [default, hub, team] = urls;
    let start = Refshim::in_front_of(default, data)
        .with("UPSTREAMS_HUB_URL", hub)
        .with("UPSTREAMS_HUB_HOSTS", "hub.example.com,other.example.com")
        .with("UPSTREAMS_HUB_NAMESPACES", "docker.io")
        .with("UPSTREAMS_HUB_PREFIXES", "hub")
        .with("UPSTREAMS_HUB_STRIP_PREFIX", "true")
        .with("UPSTREAMS_TEAM_URL", team)
        .with("UPSTREAMS_TEAM_PREFIXES", "team,hub/inner");
    more.iter().fold(start, |start, (name, value)| start.with(name, value)).launch().await
}

/// Three scripted upstreams, in the order of [`in_front_of`].
struct Scene {
    upstreams: [Scripted; 3],
    refshim: Refshim,
    _directory: tempfile::TempDir,
}

async fn scene(header: &'static str, more: &[(&'static str, &str)]) -> Scene {
    let upstreams = ["default", "hub", "team"].map(|name| named(name, header));
    let urls = upstreams.each_ref().map(|upstream| format!("http://{}", upstream.address));
    let directory = tempfile::tempdir().unwrap();
    let refshim = in_front_of(urls.each_ref().map(String::as_str), more, directory.path()).await;
    Scene { upstreams, refshim, _directory: directory }
}

impl Scene {
    async fn get(&self, host: &str, path: &str) -> Answer {
        let client = self.refshim.client();
        client.send(client.request(Method::GET, path).header("host", host)).await
    }

    /// How many requests each upstream got so far.
    fn counts(&self) -> [usize; 3] {
        self.upstreams.each_ref().map(|upstream| upstream.requests().len())
    }

    /// What came last to the upstream of this name.
    fn last(&self, name: &str) -> crate::support::Request {
        let place = ["default", "hub", "team"].iter().position(|known| *known == name).unwrap();
        self.upstreams[place].requests().last().unwrap().clone()
    }
}

#[tokio::test]
async fn host_namespace_prefix_and_mark_say_where_a_request_goes() {
    let scene = scene("x: y", &[]).await;
    let base = format!("http://{}", scene.refshim.address);
    for (host, path, name, sent) in [
        ("any", "/v2/", "default", "/v2/"),
        ("any", "/v2/a/tags/list?ns=quay.io", "default", "/v2/a/tags/list?ns=quay.io"),
        ("any", "/v2/hubs/a/tags/list", "default", "/v2/hubs/a/tags/list"),
        ("hub.example.com", "/v2/team/a/tags/list", "hub", "/v2/team/a/tags/list"),
        ("Other.example.com:5000", "/outside?x", "hub", "/outside?x"),
        ("any", "/v2/team/a/blobs/x?ns=docker.io", "hub", "/v2/team/a/blobs/x?ns=docker.io"),
        ("any", "/v2/hub/library/a/manifests/v1?x=%2F", "hub", "/v2/library/a/manifests/v1?x=%2F"),
        ("any", "/v2/hub/a/blobs/uploads/", "hub", "/v2/a/blobs/uploads/"),
        ("any", "/v2/hub/inner/a/tags/list", "team", "/v2/hub/inner/a/tags/list"),
        ("any", "/v2/team/a/manifests/v1", "team", "/v2/team/a/manifests/v1"),
        ("any", "/.refshim/team/v2/a/tags/list?n=1", "team", "/v2/a/tags/list?n=1"),
        ("hub.example.com", "/.refshim/team/v2/hub/a/tags/list", "team", "/v2/hub/a/tags/list"),
        ("any", "/.refshim/default/v2/hub/a/tags/list", "default", "/.refshim/default/v2/hub/a/tags/list"),
        ("any", "/.refshim/none/v2/", "default", "/.refshim/none/v2/"),
    ] {
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let host = format!("host: {host}");
            let url = format!("{base}{path}");
            let curl =
                Command::new("curl").args(["-sS", "--path-as-is", version, "-H", &host, &url]).output();
            let answered = String::from_utf8(curl.unwrap().stdout).unwrap();
            assert_eq!(answered, name, "{version} {host} {path}");
            assert_eq!(scene.last(name).line, format!("GET {sent} HTTP/1.1"), "{version} {host}");
        }
    }
    for upstream in &scene.upstreams {
        let own = upstream.address.to_string();
        assert!(upstream.requests().iter().all(|request| request.header("host") == Some(&own)));
    }
}

#[tokio::test]
async fn a_location_leads_back_to_the_upstream_that_gave_it() {
    let scene = scene("location: http://{host}/v2/a/blobs/uploads/1?_state=x%3D", &[]).await;
    for (host, path, location, name) in [
        ("any", "/v2/a/blobs/uploads/", "/v2/a/blobs/uploads/1?_state=x%3D", "default"),
        ("hub.example.com", "/v2/a/blobs/uploads/", "/v2/a/blobs/uploads/1?_state=x%3D", "hub"),
        ("any", "/v2/a/blobs/uploads/?ns=docker.io", "/.refshim/hub/v2/a/blobs/uploads/1?_state=x%3D", "hub"),
        ("any", "/v2/hub/a/blobs/uploads/", "/.refshim/hub/v2/a/blobs/uploads/1?_state=x%3D", "hub"),
        ("any", "/v2/team/a/blobs/uploads/", "/.refshim/team/v2/a/blobs/uploads/1?_state=x%3D", "team"),
        ("any", "/.refshim/hub/v2/a", "/.refshim/hub/v2/a/blobs/uploads/1?_state=x%3D", "hub"),
    ] {
        assert_eq!(scene.get(host, path).await.header("location"), location, "{host} {path}");
        assert_eq!(scene.get(host, location).await.body, name.as_bytes());
        assert_eq!(scene.last(name).line, "GET /v2/a/blobs/uploads/1?_state=x%3D HTTP/1.1");
    }
}

#[tokio::test]
async fn a_mount_names_its_source_as_the_upstream_does() {
    let scene = scene("x: y", &[]).await;
    let client = scene.refshim.client();
    for (sent, expected) in [
        ("mount=sha256:00&from=hub/library/a", "mount=sha256:00&from=library%2Fa"),
        ("from=hub%2Flibrary%2Fa&mount=sha256%3A00", "from=library%2Fa&mount=sha256%3A00"),
        ("mount=sha256:00&from=other/a&x=%20+", "mount=sha256:00&from=other/a&x=%20+"),
    ] {
        client.send(client.request(Method::POST, &format!("/v2/hub/b/blobs/uploads/?{sent}"))).await;
        assert_eq!(scene.last("hub").line, format!("POST /v2/b/blobs/uploads/?{expected} HTTP/1.1"));
    }
    client.send(client.request(Method::POST, "/v2/team/b/blobs/uploads/?from=team/a")).await;
    assert_eq!(scene.last("team").line, "POST /v2/team/b/blobs/uploads/?from=team/a HTTP/1.1");
}

const CHALLENGE: &str = r#"www-authenticate: Bearer realm="http://{host}/token?x",service="s",scope="a""#;

#[tokio::test]
async fn a_realm_at_the_upstream_leads_through_refshim_where_the_operator_wants_it() {
    let wanted = [("UPSTREAMS_HUB_REWRITE_REALM", "true")];
    let scene = scene(CHALLENGE, &wanted).await;
    let realm = async |host: &str, path: &str| {
        let challenge = scene.get(host, path).await.header("www-authenticate").to_owned();
        let (realm, rest) = challenge.strip_prefix("Bearer realm=\"").unwrap().split_once('"').unwrap();
        assert_eq!(rest, r#",service="s",scope="a""#);
        realm.to_owned()
    };
    let own = scene.refshim.address.to_string();
    let through = realm(&own, "/v2/hub/a/tags/list").await;
    assert_eq!(through, format!("http://{own}/.refshim/hub/token?x"));
    let client = scene.refshim.client().as_user("alice", "secret");
    assert_eq!(client.get(&through).await.body, b"hub");
    let asked = scene.last("hub");
    assert_eq!(asked.line, "GET /token?x HTTP/1.1");
    assert!(asked.header("authorization").is_some());
    assert_eq!(realm("hub.example.com", "/v2/").await, "http://hub.example.com/token?x");
    let at_default = format!("http://{}/token?x", scene.upstreams[0].address);
    assert_eq!(realm("any", "/v2/").await, at_default, "nobody wants the default upstream's rewritten");

    let mut settings = wanted.to_vec();
    settings.push(("EXTERNAL_URL", "https://outside.example:8443"));
    let scene = self::scene(CHALLENGE, &settings).await;
    let challenge = scene.get("any", "/v2/hub/a/tags/list").await.header("www-authenticate").to_owned();
    let realm = r#"Bearer realm="https://outside.example:8443/.refshim/hub/token?x""#;
    assert!(challenge.starts_with(realm), "{challenge}");
}

#[tokio::test]
async fn credentials_go_to_the_upstream_that_the_request_is_for_and_nowhere_else() {
    let scene = scene("x: y", &[]).await;
    let client = scene.refshim.client().as_user("alice", "secret");
    for (path, expected) in [
        ("/v2/hub/a/tags/list", [0, 1, 0]),
        ("/v2/hub/a/manifests/v1", [0, 2, 0]),
        ("/v2/a/tags/list?ns=docker.io", [0, 3, 0]),
        ("/v2/team/a/tags/list", [0, 3, 1]),
        ("/v2/a/tags/list", [1, 3, 1]),
    ] {
        client.get(path).await;
        assert_eq!(scene.counts(), expected, "{path}");
    }
    client.get("/v2/hub/a/manifests/v1/references?scope=registry").await;
    let [default, hub, team] = scene.counts();
    assert!(hub > 3, "refshim asked the hub nothing of its own");
    assert_eq!([default, team], [1, 1]);
}

#[tokio::test]
async fn a_redirect_from_one_upstream_to_another_stays_as_it_is() {
    let storage = named("storage", "x: y");
    let location = format!("http://{}/v2/a/blobs/x?signature=1", storage.address);
    let target = location.clone();
    let hub = Scripted::start(move |exchange| {
        exchange.answer(&format!(
            "HTTP/1.1 307 Temporary Redirect\r\nlocation: {target}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        ));
    });
    let directory = tempfile::tempdir().unwrap();
    let storage_url = format!("http://{}", storage.address);
    let urls = [&*storage_url, &format!("http://{}", hub.address), &storage_url];
    let refshim = in_front_of(urls, &[], directory.path()).await;
    let client = refshim.client().as_user("alice", "secret");
    let answer = client.get("/v2/hub/a/blobs/x").await;
    assert_eq!((answer.status, answer.header("location")), (StatusCode::TEMPORARY_REDIRECT, &*location));
    let query = client.get("/v2/hub/a/manifests/v1/references").await;
    assert_eq!(query.status, StatusCode::BAD_GATEWAY);
    // refshim's own question followed, as nobody.
    for request in storage.requests() {
        assert_eq!((&request.line[..4], request.header("authorization")), ("GET ", None));
    }
}

#[tokio::test]
async fn an_answer_says_by_which_namespace_its_upstream_was_chosen() {
    let scene = scene("x: y", &[]).await;
    for (path, expected) in [
        ("/v2/a/tags/list?ns=docker.io", Some("docker.io")),
        ("/v2/a/manifests/v1?ns=docker.io", Some("docker.io")),
        ("/v2/a/manifests/v1/references?kind=none&ns=docker.io", Some("docker.io")),
        ("/v2/a/tags/list?ns=quay.io", None),
        ("/v2/hub/a/tags/list", None),
    ] {
        let answer = scene.get("any", path).await;
        let found = answer.headers.get("oci-namespace").map(|value| value.to_str().unwrap());
        assert_eq!(found, expected, "{path}");
    }
}

/// A default registry and a hub, the team being at the hub as well.
struct Registries {
    default: Registry,
    hub: Registry,
    refshim: Refshim,
    _directory: tempfile::TempDir,
}

async fn registries(more: &[(&'static str, &str)]) -> Registries {
    let (default, hub) = (Registry::start(), Registry::start());
    let directory = tempfile::tempdir().unwrap();
    let urls = [&*default.url(), &hub.url(), &hub.url()];
    let refshim = in_front_of(urls, more, directory.path()).await;
    Registries { default, hub, refshim, _directory: directory }
}

/// An image with so many signatures in a repository, pushed through refshim.
async fn signed(client: &Client, repository: &str, count: usize) -> (Content, Vec<String>) {
    let image = client.image(repository, "image").await;
    client.push_as(repository, "v1", &image).await;
    let mut signatures = Vec::new();
    for number in 0..count {
        let name = format!("{number}{}", "x".repeat(40_000));
        let signature = signature(&image, &image, "application/signature", &name);
        client.push(repository, &signature).await;
        signatures.push(signature.digest);
    }
    (image, signatures)
}

fn digests(answer: &Answer) -> Vec<String> {
    assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, IMAGE_INDEX));
    let entries = answer.json()["manifests"].as_array().unwrap().clone();
    entries.iter().map(|entry: &Value| entry["digest"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_link_belongs_to_its_upstream_though_both_have_a_repository_of_that_name() {
    let Registries { default, hub, refshim, .. } = &registries(&[]).await;
    let client = refshim.client();
    let (image, signatures) = signed(&client, "hub/library/a", 1).await;
    assert_eq!(hub.client().served("library/a", "v1").await.2, image.digest);
    assert_eq!(client.image("library/a", "image").await.digest, image.digest);
    client.push_as("library/a", "v1", &image).await;
    assert_eq!(default.client().served("library/a", "v1").await.2, image.digest);

    let subject = &image.digest;
    let query = async |path: String| digests(&client.get(&path).await);
    for (base, namespace) in
        [("/v2/hub/library/a", ""), ("/.refshim/hub/v2/library/a", ""), ("/v2/library/a", "?ns=docker.io")]
    {
        assert_eq!(query(format!("{base}/referrers/{subject}{namespace}")).await, signatures, "{base}");
        assert_eq!(query(format!("{base}/manifests/v1/references{namespace}")).await, signatures, "{base}");
    }
    let none: [&str; 0] = [];
    assert_eq!(query(format!("/v2/library/a/referrers/{subject}")).await, none);
    for parameter in ["", "?scope=registry"] {
        assert_eq!(query(format!("/v2/library/a/manifests/v1/references{parameter}")).await, none);
    }

    let deleted = client.delete(&format!("/v2/library/a/manifests/{}", signatures[0])).await;
    assert_eq!(deleted.status, StatusCode::NOT_FOUND);
    assert_eq!(query(format!("/v2/hub/library/a/referrers/{subject}")).await, signatures);
    let deleted = client.delete(&format!("/v2/hub/library/a/manifests/{}", signatures[0])).await;
    assert_eq!(deleted.status, StatusCode::ACCEPTED);
    assert_eq!(query(format!("/v2/hub/library/a/referrers/{subject}")).await, none);
}

/// Follows Link to the last page; the digests in order, and how many pages there were.
async fn pages(client: &Client, first: &str) -> (Vec<String>, usize) {
    let (mut found, mut count, mut path) = (Vec::new(), 0, first.to_owned());
    loop {
        let answer = client.get(&path).await;
        found.extend(digests(&answer));
        count += 1;
        let Some(link) = answer.headers.get("link") else { return (found, count) };
        let link = link.to_str().unwrap();
        link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap().clone_into(&mut path);
    }
}

#[tokio::test]
async fn the_next_page_of_a_query_comes_from_the_same_upstream() {
    let registries = registries(&[("REFERENCES_PAGE_BYTES", "64KiB")]).await;
    let client = registries.refshim.client();
    let (image, signatures) = signed(&client, "hub/library/a", 3).await;
    let subject = &image.digest;
    let expected = (signatures, 3);
    for base in ["/v2/hub/library/a", "/.refshim/hub/v2/library/a"] {
        assert_eq!(pages(&client, &format!("{base}/referrers/{subject}")).await, expected, "{base}");
        assert_eq!(pages(&client, &format!("{base}/manifests/v1/references?n=1")).await, expected, "{base}");
    }
    for path in
        [format!("referrers/{subject}?ns=docker.io"), "manifests/v1/references?n=1&ns=docker.io".into()]
    {
        assert_eq!(pages(&client, &format!("/v2/library/a/{path}")).await, expected, "{path}");
    }
}

#[tokio::test]
async fn an_upstream_under_a_path_of_its_own_is_pushed_to_listed_and_asked_like_any_other() {
    let nexus = Registry::variant().below("/repository/docker").start();
    let directory = tempfile::tempdir().unwrap();
    let other = Registry::start();
    let refshim = in_front_of([&nexus.url(), &nexus.url(), &other.url()], &[], directory.path()).await;
    let client = refshim.client();
    for repository in ["library/a", "hub/library/b"] {
        let (image, signatures) = signed(&client, repository, 2).await;
        assert_eq!(client.served(repository, "v1").await.2, image.digest);
        let listed = client.get(&format!("/v2/{repository}/referrers/{}", image.digest)).await;
        assert_eq!(digests(&listed), signatures);
        let listed = pages(&client, &format!("/v2/{repository}/manifests/v1/references?n=1")).await;
        assert_eq!(listed, (signatures, 2));
    }
    let client = client.get("/v2/_catalog?n=1").await;
    assert_eq!(client.json()["repositories"], serde_json::json!(["library/a"]));
    let link = client.header("link").to_owned();
    let next = link.strip_prefix('<').unwrap().split_once('>').unwrap().0;
    assert!(next.starts_with("/v2/_catalog?"), "{link}");
    let next = refshim.client().get(next).await;
    assert_eq!(next.json()["repositories"], serde_json::json!(["library/b"]));
}
