//! Attaching with one request: what it makes, who may, and what is left when it fails at any step.

mod breaking;

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{
    Answer, Client, Content, Face, IMAGE_MANIFEST, RawAnswer, Refshim, Registry, Rules, Scripted,
    TokenService, USER, digest_of, exchange,
};

const SPDX: &str = "application/spdx+json";
const SBOM: &[u8] = br#"{"spdxVersion":"SPDX-2.3"}"#;
const CREATED: &str = "org.opencontainers.image.created";
const TITLE: &str = "org.opencontainers.image.title";

/// The path of the references of a manifest, and the parameters of an attachment.
fn path(repository: &str, reference: &str, parameters: &str) -> String {
    format!(
        "/v2/{repository}/manifests/{reference}/references?artifactType=application/spdx%2Bjson{parameters}"
    )
}

fn post(client: &Client, path: &str, media_type: &str, body: &[u8]) -> RequestBuilder {
    client.request(Method::POST, path).header("content-type", media_type).body(body.to_vec())
}

async fn attach(client: &Client, path: &str) -> Answer {
    client.send(post(client, path, SPDX, SBOM)).await
}

/// The digest of what was attached, after what has to hold of every such answer.
#[track_caller]
fn attached(answer: &Answer, repository: &str, subject: &str) -> String {
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    let descriptor = answer.json();
    let digest = descriptor["digest"].as_str().unwrap();
    assert_eq!(answer.header("docker-content-digest"), digest);
    assert_eq!(answer.header("location"), format!("/v2/{repository}/manifests/{digest}"));
    assert_eq!(answer.header("oci-subject"), subject);
    assert_eq!(answer.header("content-type"), "application/vnd.oci.descriptor.v1+json");
    assert_eq!(descriptor["mediaType"], IMAGE_MANIFEST);
    digest.to_owned()
}

/// A manifest of the repository, as it was pushed.
async fn manifest(client: &Client, repository: &str, digest: &str) -> Vec<u8> {
    let path = format!("/v2/{repository}/manifests/{digest}");
    let answer = client.send(client.request(Method::GET, &path).header("accept", IMAGE_MANIFEST)).await;
    assert_eq!((answer.status, digest_of(&answer.body)), (StatusCode::OK, digest.to_owned()));
    answer.body
}

/// Uploads that the registry has begun and that are neither closed nor cancelled.
fn uploads(registry: &Registry) -> usize {
    fn below(directory: &Path) -> usize {
        let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
        let entries = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
        entries.map(|path| if path.ends_with("_uploads") { count(&path) } else { below(&path) }).sum()
    }
    // What docker-registry cancels it leaves a directory of, without the time of its beginning.
    fn count(directory: &Path) -> usize {
        let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
        entries.filter(|entry| entry.as_ref().unwrap().path().join("startedat").exists()).count()
    }
    below(&registry.root())
}

/// Waits until no upload is open: what a client leaves is cleared up without it.
async fn no_upload_is_left(registry: &Registry) {
    for _ in 0..600 {
        if uploads(registry) == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} uploads are open", uploads(registry));
}

/// A registry, refshim before it, and an image, `app:v1`.
struct Scene {
    registry: Registry,
    refshim: Refshim,
    client: Client,
    image: Content,
    _directory: tempfile::TempDir,
}

impl Scene {
    async fn start() -> Self {
        let registry = Registry::start();
        let directory = tempfile::tempdir().unwrap();
        let refshim = Refshim::before(&registry, directory.path()).launch().await;
        let client = refshim.client();
        let image = client.image("app", "image").await;
        client.push_as("app", "v1", &image).await;
        Self { registry, refshim, client, image, _directory: directory }
    }

    /// The digests of what is attached.
    async fn listed(&self) -> Vec<String> {
        let listed = self.client.references("app", &self.image.digest, "").await;
        listed.iter().map(|entry| entry["digest"].as_str().unwrap().to_owned()).collect()
    }
}

#[tokio::test]
async fn one_request_attaches_and_others_list_fetch_and_delete_it() {
    let registry = Registry::start();
    for face in Face::ALL {
        let scene = face.before_url(&registry.url(), &[]).await;
        let (client, name) = (&scene.client, format!("app-{face:?}").to_lowercase());
        let image = client.image(&name, "image").await;
        client.push_as(&name, "v1", &image).await;
        let parameters = "&title=sbom.json&annotation=org.example.by%3Dme&annotation=x=";
        let answer = attach(client, &path(&name, "v1", parameters)).await;
        let digest = attached(&answer, &name, &image.digest);
        let (descriptor, bytes) = (answer.json(), manifest(client, &name, &digest).await);
        assert_eq!(descriptor["size"], bytes.len());
        let manifest: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(manifest["artifactType"], SPDX);
        for member in ["subject", "reference"] {
            assert_eq!(manifest[member], image.descriptor(), "{face:?}");
        }
        let layer = json!({
            "mediaType": SPDX, "digest": digest_of(SBOM), "size": SBOM.len(), "annotations": {TITLE: "sbom.json"},
        });
        assert_eq!(manifest["layers"], json!([layer]));
        assert_eq!(manifest["config"]["mediaType"], "application/vnd.oci.empty.v1+json");
        let annotations = &manifest["annotations"];
        assert_eq!((&annotations["org.example.by"], &annotations["x"]), (&json!("me"), &json!("")));
        assert_eq!(annotations[CREATED].as_str().unwrap().len(), "2026-01-01T00:00:00Z".len());
        assert_eq!(&descriptor["annotations"], annotations);

        let listed = client.references(&name, "v1", "?artifactType=application/spdx%2Bjson").await;
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert_eq!((&listed[0]["digest"], &listed[0]["annotations"]), (&json!(digest), annotations));
        assert_eq!(client.referrers(&name, &image.digest, "").await, [digest.clone()]);

        let one = format!("/v2/{name}/manifests/v1/references/{digest}");
        for method in [Method::GET, Method::HEAD] {
            let led = client.send(client.request(method.clone(), &one)).await;
            let expected = (StatusCode::TEMPORARY_REDIRECT, format!("/v2/{name}/manifests/{digest}"));
            assert_eq!((led.status, led.header("location").to_owned()), expected, "{face:?} {method}");
        }
        for query in ["?content", "?content=sbom.json", &format!("?content={}", digest_of(SBOM))] {
            let led = client.get(&format!("{one}{query}")).await;
            assert_eq!(led.status, StatusCode::TEMPORARY_REDIRECT, "{led:?}");
            assert_eq!(client.get(led.header("location")).await.body, SBOM);
        }
        let other = client.get(&format!("{one}?content=other.json")).await;
        assert_eq!(other.status, StatusCode::BAD_REQUEST, "{other:?}");

        // Not of another image, of no image, and not what refers to something else.
        let unrelated = client.image(&name, "unrelated").await;
        client.push_as(&name, "unrelated", &unrelated).await;
        for (subject, referrer) in [
            ("unrelated", digest.clone()),
            ("v1", unrelated.digest.clone()),
            ("v1", digest_of(b"nobody's")),
            ("none", digest.clone()),
        ] {
            let path = format!("/v2/{name}/manifests/{subject}/references/{referrer}");
            for method in [Method::GET, Method::DELETE] {
                let answer = client.send(client.request(method.clone(), &path)).await;
                let code = (answer.status, answer.error_code());
                assert_eq!(code, (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN".to_owned()), "{method} {path}");
            }
        }
        assert_eq!(client.delete(&one).await.status, StatusCode::ACCEPTED);
        assert_eq!(client.references(&name, "v1", "").await, Vec::<Value>::new());
        assert_eq!(client.delete(&one).await.status, StatusCode::NOT_FOUND);
    }
    assert_eq!(uploads(&registry), 0);
}

#[tokio::test]
async fn the_same_twice_is_the_same_manifest() {
    let scene = Scene::start().await;
    let client = &scene.client;
    let first = attach(client, &path("app", "v1", "&title=a.json")).await;
    let first = attached(&first, "app", &scene.image.digest);
    // So that another time would be another manifest.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    for reference in ["v1", &scene.image.digest] {
        let again = attach(client, &path("app", reference, "&title=a.json")).await;
        assert_eq!(attached(&again, "app", &scene.image.digest), first);
    }
    assert_eq!(scene.listed().await, [first.clone()]);
    // What differs in anything but its time is another one.
    let mut all = vec![first.clone()];
    for different in ["&title=b.json", "&title=a.json&annotation=a%3D1", "&title=a.json&annotation=a%3D2"] {
        let other = attach(client, &path("app", "v1", different)).await;
        all.push(attached(&other, "app", &scene.image.digest));
    }
    let other = client.send(post(client, &path("app", "v1", "&title=a.json"), SPDX, b"{}")).await;
    all.push(attached(&other, "app", &scene.image.digest));
    let other = client.send(post(client, &path("app", "v1", "&title=a.json"), "text/plain", SBOM)).await;
    all.push(attached(&other, "app", &scene.image.digest));
    assert_eq!(scene.listed().await, all);
    // A time that the client gives is that time.
    let timed = path("app", "v1", &format!("&title=a.json&annotation={CREATED}%3D2020-01-01T00:00:00Z"));
    let timed = attach(client, &timed).await;
    assert_eq!(timed.json()["annotations"][CREATED], "2020-01-01T00:00:00Z");
    assert!(!all.contains(&attached(&timed, "app", &scene.image.digest)));
    // And one that was deleted comes back as it was not: its time is not known any more.
    assert_eq!(client.delete(&format!("/v2/app/manifests/v1/references/{first}")).await.status, 202);
    let anew = attach(client, &path("app", "v1", "&title=a.json")).await;
    let anew = attached(&anew, "app", &scene.image.digest);
    assert!(scene.listed().await.contains(&anew));
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_told_before_anybody_is_asked() {
    let upstream = Scripted::start(|exchange| exchange.answer_status("500 Internal Server Error"));
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(upstream.address, directory.path()).await;
    let client = refshim.client();
    let of_type = |parameters: &str| path("a", "v1", parameters);
    let all = [
        ("/v2/a/manifests/v1/references".to_owned(), SPDX, 400, "artifactType is missing"),
        ("/v2/a/manifests/v1/references?artifactType=sbom".to_owned(), SPDX, 400, "sbom"),
        (of_type("&artifactType=a/b"), SPDX, 400, "only once"),
        (of_type("&annotation=x"), SPDX, 400, "key=value"),
        (of_type("&annotation=x=1&annotation=x=2"), SPDX, 400, "each key once"),
        (of_type("&title=../x"), SPDX, 400, "title"),
        (of_type("&digest=md5:0"), SPDX, 400, "digest"),
        (of_type(""), "application/x-www-form-urlencoded", 415, "curl"),
        (of_type(""), "json", 400, "Content-Type"),
        (of_type(""), "multipart/form-data", 400, "multipart"),
        (of_type("&title=x"), "multipart/form-data; boundary=b", 400, "title"),
        ("/v2/A/manifests/v1/references".to_owned(), SPDX, 400, "name"),
        ("/v2/a/manifests/.x/references".to_owned(), SPDX, 400, "tag"),
    ];
    for (path, media_type, status, told) in all {
        let answer = client.send(post(&client, &path, media_type, SBOM)).await;
        assert_eq!(answer.status.as_u16(), status, "{path}: {answer:?}");
        let text = String::from_utf8(answer.body.clone()).unwrap();
        assert!(text.contains(told), "{path}: {text}");
        answer.error_code();
    }
    let empty = client.send(client.request(Method::POST, &of_type(""))).await;
    assert!(empty.status == 400 && String::from_utf8_lossy(&empty.body).contains("nothing to attach"));
    let coded = post(&client, &of_type(""), SPDX, SBOM).header("content-encoding", "gzip");
    assert_eq!(client.send(coded).await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    for method in [Method::PUT, Method::PATCH, Method::DELETE] {
        let answer = client.send(client.request(method, &of_type(""))).await;
        let expected = (StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD, POST");
        assert_eq!((answer.status, answer.header("allow")), expected);
    }
    assert_eq!(upstream.requests().len(), 0, "{:?}", upstream.requests());
}

#[tokio::test]
async fn a_web_page_of_another_site_attaches_nothing_unless_the_registry_lets_it() {
    let scene = Scene::start().await;
    let client = &scene.client;
    let path = path("app", "v1", "");
    let send = async |media_type: Option<&str>, fields: &[(&str, &str)]| {
        let request = client.request(Method::POST, &path).body(form(&[(Some("a"), None, SBOM)]));
        let request = media_type.into_iter().fold(request, |request, it| request.header("content-type", it));
        let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        client.send(request).await
    };
    let elsewhere: [&[_]; 3] = [
        &[("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")],
        &[("origin", "https://evil.example")],
        &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")],
    ];
    for fields in elsewhere {
        for media_type in
            [None, Some(FORM), Some("text/plain;charset=UTF-8"), Some("Multipart/Form-Data; boundary=b0")]
        {
            let answer = send(media_type, fields).await;
            assert_eq!(
                (answer.status, answer.error_code().as_str()),
                (StatusCode::FORBIDDEN, "DENIED"),
                "{fields:?}"
            );
        }
        // For this one the browser asks first, and the registry answers.
        attached(&send(Some(SPDX), fields).await, "app", &scene.image.digest);
    }
    for fields in [
        &[("sec-fetch-site", "same-origin"), ("origin", "http://refshim")][..],
        &[("sec-fetch-site", "none")],
        &[],
    ] {
        attached(&send(Some(FORM), fields).await, "app", &scene.image.digest);
    }
    assert_eq!(scene.listed().await.len(), 2);
}

/// A form of these files: name, media type, content.
fn form(files: &[(Option<&str>, Option<&str>, &[u8])]) -> Vec<u8> {
    let mut form = Vec::new();
    for (name, media_type, content) in files {
        let name = name.map(|name| format!("; filename=\"{name}\"")).unwrap_or_default();
        let media_type = media_type.map(|it| format!("Content-Type: {it}\r\n")).unwrap_or_default();
        let head = format!("--b0\r\nContent-Disposition: form-data; name=\"file\"{name}\r\n{media_type}\r\n");
        form.extend_from_slice(head.as_bytes());
        form.extend_from_slice(content);
        form.extend_from_slice(b"\r\n");
    }
    form.extend_from_slice(b"--b0--\r\n");
    form
}

const FORM: &str = "multipart/form-data; boundary=b0";

#[tokio::test]
async fn a_form_attaches_several_files_at_once() {
    let scene = Scene::start().await;
    let client = &scene.client;
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let files: [(Option<&str>, Option<&str>, &[u8]); 3] = [
        (Some("sbom.json"), Some("application/spdx+json; charset=utf-8"), SBOM),
        (Some("C:\\scans\\large.bin"), None, &large),
        (None, Some("text/plain"), b"--b0-\r\n--b"),
    ];
    let answer = client.send(post(client, &path("app", "v1", ""), FORM, &form(&files))).await;
    let digest = attached(&answer, "app", &scene.image.digest);
    let manifest: Value = serde_json::from_slice(&manifest(client, "app", &digest).await).unwrap();
    let layers: Vec<(&str, &str, Option<&str>)> = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| {
            let text = |member: &str| layer[member].as_str().unwrap();
            (text("mediaType"), text("digest"), layer["annotations"][TITLE].as_str())
        })
        .collect();
    let digests = files.map(|(.., content)| digest_of(content));
    let expected = [
        (SPDX, &*digests[0], Some("sbom.json")),
        ("application/octet-stream", &*digests[1], Some("large.bin")),
        ("text/plain", &*digests[2], None),
    ];
    assert_eq!(layers, expected);
    let one = format!("/v2/app/manifests/v1/references/{digest}");
    let which = client.get(&format!("{one}?content")).await;
    assert!(which.status == 400 && String::from_utf8_lossy(&which.body).contains("large.bin"), "{which:?}");
    let led = client.get(&format!("{one}?content=large.bin")).await;
    assert_eq!(client.get(led.header("location")).await.body, large);

    // What is no form, or not to its end, or has nothing in it.
    let whole = form(&files);
    let long_head =
        [b"--b0\r\nContent-Disposition: form-data; x=\"".as_slice(), &vec![b'a'; 100_000], b"\""].concat();
    let many: Vec<_> = (0..101).map(|_| (None, None, b"x".as_slice())).collect();
    let before = scene.listed().await;
    for (what, body) in [
        ("nothing", b"".to_vec()),
        ("no part", b"--b0--\r\n".to_vec()),
        ("something else", SBOM.to_vec()),
        ("a head without an end", b"--b0\r\nContent-Disposition: form-data".to_vec()),
        ("a part without a head", b"--b0\r\n\r\nx\r\n--b0--\r\n".to_vec()),
        ("a long head", long_head),
        ("cut off", whole[..whole.len() - 4].to_vec()),
        ("cut off in a file", whole[..whole.len() / 2].to_vec()),
        ("an empty file", form(&[(Some("a"), None, b"")])),
        ("a bad name", form(&[(Some("a/.."), None, b"x")])),
        ("a bad type", form(&[(Some("a"), Some("x"), b"x")])),
        ("too many", form(&many)),
    ] {
        let answer = client.send(post(client, &path("app", "v1", ""), FORM, &body)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{what}: {answer:?}");
        answer.error_code();
    }
    no_upload_is_left(&scene.registry).await;
    assert_eq!(scene.listed().await, before);
}

#[tokio::test]
async fn a_digest_that_is_given_is_that_of_what_is_attached() {
    let scene = Scene::start().await;
    let client = &scene.client;
    let sha512 = format!("sha512:{}", sha512_of(SBOM));
    for expected in [digest_of(SBOM), sha512] {
        let answer = attach(client, &path("app", "v1", &format!("&digest={expected}"))).await;
        let digest = attached(&answer, "app", &scene.image.digest);
        let manifest: Value = serde_json::from_slice(&manifest(client, "app", &digest).await).unwrap();
        assert_eq!(manifest["layers"][0]["digest"], expected);
    }
    let before = scene.listed().await;
    for name in ["digest", "manifest"] {
        let other = attach(client, &path("app", "v1", &format!("&{name}={}", digest_of(b"other")))).await;
        assert_eq!((other.status, other.error_code().as_str()), (StatusCode::BAD_REQUEST, "DIGEST_INVALID"));
        no_upload_is_left(&scene.registry).await;
        assert_eq!(scene.listed().await, before);
    }
    // That of the manifest, which is the same again.
    let again = attach(client, &path("app", "v1", &format!("&manifest={}", before[0]))).await;
    assert_eq!(again.status, StatusCode::CREATED);
    assert_eq!(scene.listed().await, before);
}

fn sha512_of(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let output = std::process::Command::new("sha512sum").arg(file.path()).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

#[tokio::test]
async fn nothing_is_attached_to_what_is_not_there() {
    let scene = Scene::start().await;
    for reference in ["none", &digest_of(b"none")] {
        let answer = attach(&scene.client, &path("app", reference, "")).await;
        assert_eq!(
            (answer.status, answer.error_code().as_str()),
            (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN")
        );
    }
    let answer = attach(&scene.client, &path("nowhere", "v1", "")).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(uploads(&scene.registry), 0);
}

/// The head of a request that waits for `100 Continue`.
fn expecting(path: &str, authorization: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: refshim\r\ncontent-type: {SPDX}\r\ncontent-length: {}\r\n\
         expect: 100-continue\r\n{authorization}\r\n",
        SBOM.len()
    )
}

#[tokio::test]
async fn the_body_is_asked_for_after_the_registry_has_said_yes_and_not_before() {
    let registry = Registry::with_user();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, directory.path()).launch().await;
    let owner = refshim.client().as_user(USER.0, USER.1);
    let image = owner.image("app", "image").await;
    owner.push_as("app", "v1", &image).await;
    let login = format!("authorization: Basic {}\r\n", base64_of(&format!("{}:{}", USER.0, USER.1)));
    let wrong = format!("authorization: Basic {}\r\n", base64_of("somebody:else"));
    for (path, authorization, status) in [
        (path("app", "v1", ""), "", 401),
        (path("app", "v1", ""), &*wrong, 401),
        (path("app", "none", ""), &*login, 404),
        ("/v2/app/manifests/v1/references".to_owned(), &*login, 400),
    ] {
        let mut stream = TcpStream::connect(refshim.address).await.unwrap();
        // The first answer, and not a 100 before it.
        let answer = exchange(&mut stream, expecting(&path, authorization)).await.unwrap();
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert_eq!(answer.header("www-authenticate").is_some(), status == 401, "{answer:?}");
    }
    let mut stream = TcpStream::connect(refshim.address).await.unwrap();
    stream.write_all(expecting(&path("app", "v1", ""), &login).as_bytes()).await.unwrap();
    let mut go_on = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    stream.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(uploads(&registry), 1, "the registry has said yes");
    stream.write_all(SBOM).await.unwrap();
    assert_eq!(RawAnswer::read(&mut stream).await.unwrap().status, 201);
    assert_eq!(uploads(&registry), 0);
    assert_eq!(owner.references("app", "v1", "").await.len(), 1);
}

fn base64_of(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test]
async fn the_challenge_of_a_token_service_asks_for_all_that_is_needed() {
    let service =
        Rules::default().user("alice", "password").grant("alice", "repository:app", "pull,push").start();
    let registry = Registry::variant().tokens_of(&service).start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, directory.path()).launch().await;
    let client = refshim.client();
    let token = async |actions: &str| {
        let scope = format!("repository:app:{actions}");
        client.with_token(&TokenService::token(&service, Some("alice"), &[&scope]).await)
    };
    let owner = token("pull,push").await;
    let image = owner.image("app", "image").await;
    owner.push_as("app", "v1", &image).await;
    for caller in [client.clone(), token("pull").await] {
        let answer = attach(&caller, &path("app", "v1", "")).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        let challenge = answer.header("www-authenticate");
        let scopes = ["pull,push", "push,pull"].map(|actions| format!("scope=\"repository:app:{actions}\""));
        assert!(scopes.iter().any(|scope| challenge.contains(scope)), "{challenge}");
    }
    attached(&attach(&owner, &path("app", "v1", "")).await, "app", &image.digest);
    assert_eq!(uploads(&registry), 0);
}

#[tokio::test]
async fn in_modes_that_answer_nothing_the_request_is_the_registrys() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim =
        Refshim::before(&registry, directory.path()).with("UPSTREAMS_DEFAULT_MODE", "learn").launch().await;
    let client = refshim.client();
    let image = client.image("app", "image").await;
    client.push_as("app", "v1", &image).await;
    assert_eq!(attach(&client, &path("app", "v1", "")).await.status, StatusCode::NOT_FOUND);
    assert_eq!(client.get("/v2/_oci/ext/discover").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_extension_is_found_and_lists_the_same() {
    let scene = Scene::start().await;
    let client = &scene.client;
    for n in 0..3 {
        attach(client, &path("app", "v1", &format!("&annotation=n%3D{n}"))).await;
    }
    let discovered = client.get("/v2/_oci/ext/discover").await;
    assert_eq!(discovered.header("content-type"), "application/json");
    let discovered = discovered.json();
    let names: Vec<&Value> =
        discovered["extensions"].as_array().unwrap().iter().map(|extension| &extension["name"]).collect();
    assert_eq!(names, ["_oci", "_refshim"]);
    let digest = &scene.image.digest;
    let (list, same) =
        (format!("/v2/app/_refshim/references/{digest}"), format!("/v2/app/manifests/{digest}/references"));
    assert_eq!(client.get(&list).await.json(), client.get(&same).await.json());
    // Its further pages have its own path, for a gateway that lets through nothing else.
    let (mut next, mut found) = (format!("{list}?n=1"), Vec::new());
    loop {
        let page = client.get(&next).await;
        let entries = page.json()["manifests"].as_array().unwrap().clone();
        found.extend(entries.iter().map(|entry| entry["digest"].as_str().unwrap().to_owned()));
        let Some(link) = page.headers.get("link") else { break };
        let link = link.to_str().unwrap();
        next = link[1..].split('>').next().unwrap().to_owned();
        assert!(next.starts_with(&list), "{next}");
    }
    assert_eq!(found, scene.listed().await);
}
