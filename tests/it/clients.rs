//! What clients of the referrers API do behind refshim, as the registries of packages give them out.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::manifest::{OciDescriptor, OciImageManifest};
use oci_client::secrets::RegistryAuth;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{
    Answer, Client, Content, IMAGE_INDEX, IMAGE_MANIFEST, Refshim, Registry, Rules, SERVICE, USER, binary,
    digest_of,
};

const SIGNATURE: &str = "application/vnd.example.signature";
const SBOM: &str = "application/vnd.example.sbom+json";

/// Where `tests/run` puts what the clients need.
pub(crate) fn installed(path: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let installed = target.join("clients").join(path);
    assert!(installed.exists(), "{}: tests/run installs it", installed.display());
    installed
}

/// Runs a client to its end; the JSON that it prints.
#[track_caller]
fn run(program: &Path, script: &str, directory: &Path, argument: &Value) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
    let mut command = Command::new(program);
    command.arg(script).arg(argument.to_string()).current_dir(directory).env("NO_PROXY", "127.0.0.1");
    let output = command.output().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// An artifact to attach. The annotation is one character, and two bytes longer than that, for clients
/// that take the one for the other.
fn artifact(media_type: &str, content: &str) -> Value {
    json!({"mediaType": media_type, "content": content, "annotations": {"org.example.signer": "Zoë"}})
}

/// Attaches artifacts to an image with @sigstore/oci, all at once; the descriptors it gives back.
#[track_caller]
fn sign(address: SocketAddr, repository: &str, subject: &Content, artifacts: &[Value]) -> Vec<Value> {
    sign_as(address, repository, subject, artifacts, None)
}

#[track_caller]
fn sign_as(
    address: SocketAddr,
    repository: &str,
    subject: &Content,
    artifacts: &[Value],
    user: Option<(&str, &str)>,
) -> Vec<Value> {
    let argument = json!({
        "image": format!("{address}/{repository}"),
        "digest": subject.digest,
        "artifacts": artifacts,
        "credentials": user.map(|(name, password)| json!({"username": name, "password": password})),
    });
    let node_modules = installed("node/node_modules");
    let attached = run(Path::new("node"), "sign.mjs", node_modules.parent().unwrap(), &argument);
    attached.as_array().unwrap().clone()
}

/// The tags of a repository, sorted.
async fn tags(client: &Client, repository: &str) -> Vec<String> {
    let listed = client.get(&format!("/v2/{repository}/tags/list")).await.json();
    let mut tags: Vec<String> = serde_json::from_value(listed["tags"].clone()).unwrap();
    tags.sort();
    tags
}

/// The image `v1` in a repository.
async fn image(client: &Client, repository: &str) -> Content {
    let image = client.image(repository, repository).await;
    client.push_as(repository, "v1", &image).await;
    image
}

fn fallback_tag(subject: &Content) -> String {
    subject.digest.replace(':', "-")
}

/// What the referrers API lists, after everything that clients are known to insist on.
#[track_caller]
fn entries(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.header("content-type"), IMAGE_INDEX);
    let index = answer.json();
    let expected = json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": index["manifests"]});
    assert_eq!(index, expected);
    index["manifests"].as_array().unwrap().clone()
}

async fn listed(client: &Client, repository: &str, subject: &Content) -> Vec<Value> {
    entries(&client.get(&format!("/v2/{repository}/referrers/{}", subject.digest)).await)
}

/// The descriptors that the referrers API has to give for manifests, made of what the registry serves.
async fn served(registry: &Client, repository: &str, digests: &[String]) -> Vec<Value> {
    let mut descriptors = Vec::new();
    for digest in digests {
        let get = registry.request(Method::GET, &format!("/v2/{repository}/manifests/{digest}"));
        let answer = registry.send(get.header("accept", IMAGE_MANIFEST)).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        let manifest = answer.json();
        let artifact_type = manifest.get("artifactType").unwrap_or(&manifest["config"]["mediaType"]);
        descriptors.push(json!({
            "mediaType": answer.header("content-type"),
            "digest": digest_of(&answer.body),
            "size": answer.body.len(),
            "artifactType": artifact_type,
            "annotations": manifest["annotations"],
        }));
    }
    descriptors
}

fn digests(descriptors: &[Value]) -> Vec<String> {
    descriptors.iter().map(|descriptor| descriptor["digest"].as_str().unwrap().to_owned()).collect()
}

/// For answers whose order is not what a test is about.
fn sorted(mut descriptors: Vec<Value>) -> Vec<Value> {
    descriptors.sort_by_key(|descriptor| descriptor["digest"].to_string());
    descriptors
}

#[tokio::test]
async fn sigstore_writes_no_fallback_tag_any_more() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let (alone, client) = (registry.client(), refshim.client());

    let before = image(&alone, "before").await;
    let signed = sign(registry.address, "before", &before, &[artifact(SIGNATURE, "one")]);
    assert_eq!(signed[0].get("subjectDigest"), None);
    assert_eq!(tags(&alone, "before").await, [fallback_tag(&before), "v1".to_owned()]);

    let after = image(&client, "after").await;
    let first = sign(refshim.address, "after", &after, &[artifact(SIGNATURE, "one")]);
    let second = sign(refshim.address, "after", &after, &[artifact(SBOM, "two")]);
    let signed = [first, second].concat();
    assert!(signed.iter().all(|signed| signed["subjectDigest"] == after.digest), "{signed:?}");
    assert_eq!(tags(&alone, "after").await, ["v1"]);
    let expected = served(&alone, "after", &digests(&signed)).await;
    assert_eq!(listed(&client, "after", &after).await, expected);

    let sboms =
        format!("/v2/after/referrers/{}?artifactType=application/vnd.example.sbom%2Bjson", after.digest);
    let sboms = client.get(&sboms).await;
    assert_eq!(entries(&sboms), expected[1..]);
    assert_eq!(sboms.header("oci-filters-applied"), "artifactType");
}

#[tokio::test]
async fn no_signature_is_lost_when_many_sign_at_once() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let client = refshim.client();
    let image = image(&client, "app").await;
    // docker-registry itself refuses manifests while several put the first copy of one blob, and this is
    // the config of them all.
    client.push_blob("app", b"{}").await;
    let artifacts: Vec<Value> = (0..20).map(|n| artifact(SIGNATURE, &format!("signature {n}"))).collect();
    let signed = sign(refshim.address, "app", &image, &artifacts);
    let expected = served(&registry.client(), "app", &digests(&signed)).await;
    assert_eq!(sorted(listed(&client, "app", &image).await), sorted(expected));
    assert_eq!(tags(&registry.client(), "app").await, ["v1"]);
}

#[tokio::test]
async fn a_signer_logs_in_through_refshim() {
    let registry = Registry::with_user();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let (alone, client) = (registry.client(), refshim.client());
    let user = alone.as_user(USER.0, USER.1);
    let image = image(&user, "app").await;
    let signed = sign_as(refshim.address, "app", &image, &[artifact(SIGNATURE, "one")], Some(USER));
    assert_eq!(tags(&user, "app").await, ["v1"]);
    let expected = served(&user, "app", &digests(&signed)).await;
    assert_eq!(listed(&client.as_user(USER.0, USER.1), "app", &image).await, expected);

    let refused = client.get(&format!("/v2/app/referrers/{}", image.digest)).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    let challenge = alone.get(&format!("/v2/app/manifests/{}", image.digest)).await;
    assert_eq!(refused.header("www-authenticate"), challenge.header("www-authenticate"));
}

/// The Python oras sends a subject and writes no fallback tag: to a registry alone the link is lost.
#[tokio::test]
async fn what_oras_pushes_about_an_image_is_listed() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let (alone, client) = (registry.client(), refshim.client());
    let files = tempfile::tempdir().unwrap();
    for name in ["layer", "signature"] {
        std::fs::write(files.path().join(name), name).unwrap();
    }
    std::fs::write(files.path().join("config"), "{}").unwrap();
    let python = installed("python/bin/python");
    let push = |address: SocketAddr, tag: &str, file: &str, config: &str, subject: Option<&str>| {
        let target = |tag: &str| format!("{address}/app:{tag}");
        let argument = json!({
            "registry": address.to_string(),
            "target": target(tag),
            "file": files.path().join(file).display().to_string() + ":application/octet-stream",
            "config": files.path().join("config").display().to_string() + ":" + config,
            "annotations": {"org.example.signer": "Zoë"},
            "subject": subject.map(target),
        });
        run(&python, "push.py", files.path(), &argument)
    };

    let config = "application/vnd.oci.image.config.v1+json";
    let image = push(registry.address, "v1", "layer", config, None);
    let unseen = push(registry.address, "unseen", "signature", SBOM, Some("v1"));
    assert_eq!(unseen["subject"], Value::Null);
    let signed = push(refshim.address, "signed", "signature", SIGNATURE, Some("v1"));
    assert_eq!(signed["subject"], image["digest"]);
    assert_eq!(tags(&alone, "app").await, ["signed", "unseen", "v1"]);

    let path = format!("/v2/app/referrers/{}", image["digest"].as_str().unwrap());
    let expected = served(&alone, "app", &digests(&[signed])).await;
    assert_eq!(expected[0]["artifactType"], SIGNATURE);
    assert_eq!(entries(&client.get(&path).await), expected);
    assert_eq!(alone.get(&path).await.status, StatusCode::NOT_FOUND);
}

/// Pushes an artifact about an image with oci-client to the tag `name`; its digest.
async fn push_artifact(
    client: &oci_client::Client,
    to: &Registry,
    at: SocketAddr,
    name: &str,
    subject: &Content,
) -> String {
    let data = Bytes::from(name.to_owned());
    let config = Config::new(Bytes::from_static(b"{}"), "application/vnd.oci.empty.v1+json".to_owned(), None);
    let layer = ImageLayer::new(data, "application/octet-stream".to_owned(), None);
    let manifest = OciImageManifest {
        media_type: Some(IMAGE_MANIFEST.to_owned()),
        artifact_type: Some(format!("application/vnd.example.{name}")),
        subject: Some(OciDescriptor {
            media_type: subject.media_type.clone(),
            digest: subject.digest.clone(),
            size: subject.bytes.len().try_into().unwrap(),
            ..OciDescriptor::default()
        }),
        ..OciImageManifest::build(&[layer.clone()], &config, None)
    };
    let tag = oci_client::Reference::with_tag(at.to_string(), "app".to_owned(), name.to_owned());
    client.push(&tag, &[layer], config, &RegistryAuth::Anonymous, Some(manifest)).await.unwrap();
    to.client().served("app", name).await.2
}

/// oci-client sends a subject and writes no fallback tag: to a registry alone the link is lost.
#[tokio::test]
async fn oci_client_pulls_the_referrers_that_it_pushed() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let image = image(&registry.client(), "app").await;
    let config = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
    let client = oci_client::Client::try_from(config).unwrap();
    let pull = async |at: SocketAddr, artifact_type: Option<&str>| {
        let subject =
            oci_client::Reference::with_digest(at.to_string(), "app".to_owned(), image.digest.clone());
        let index = client.pull_referrers(&subject, artifact_type).await.unwrap();
        index.manifests.into_iter().map(|entry| entry.digest).collect::<Vec<_>>()
    };

    push_artifact(&client, &registry, registry.address, "unseen", &image).await;
    assert_eq!(pull(registry.address, None).await, [""; 0]);

    let signature = push_artifact(&client, &registry, refshim.address, "signature", &image).await;
    let sbom = push_artifact(&client, &registry, refshim.address, "sbom", &image).await;
    assert_eq!(pull(refshim.address, None).await, [signature, sbom.clone()]);
    assert_eq!(pull(refshim.address, Some("application/vnd.example.sbom")).await, [sbom]);
}

/// Both ways that a fallback tag comes to hold what did not pass through refshim: it was there before, and
/// somebody who goes round refshim goes on writing it.
#[tokio::test]
async fn what_a_fallback_tag_lists_is_listed_whoever_wrote_it() {
    let registry = Registry::start();
    let alone = registry.client();
    let image = image(&alone, "app").await;
    let mut signed = sign(registry.address, "app", &image, &[artifact(SIGNATURE, "before")]);
    signed.extend(sign(registry.address, "app", &image, &[artifact(SBOM, "before")]));
    let tag = fallback_tag(&image);
    let (_, _, tagged) = alone.served("app", &tag).await;

    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let client = refshim.client();
    let expected = served(&alone, "app", &digests(&signed)).await;
    assert_eq!(listed(&client, "app", &image).await, expected);

    signed.extend(sign(refshim.address, "app", &image, &[artifact(SIGNATURE, "through")]));
    assert_eq!(alone.served("app", &tag).await.2, tagged, "the fallback tag was written through refshim");
    let known = sorted(served(&alone, "app", &digests(&signed)).await);
    assert_eq!(sorted(listed(&client, "app", &image).await), known);

    signed.extend(sign(registry.address, "app", &image, &[artifact(SIGNATURE, "round")]));
    assert_ne!(alone.served("app", &tag).await.2, tagged, "the fallback tag was not written");
    let expected = sorted(served(&alone, "app", &digests(&signed)).await);
    // What is remembered of the tag may be as old as the setting says. Until then nothing may be missing.
    loop {
        let listed = sorted(listed(&client, "app", &image).await);
        if listed == expected {
            break;
        }
        assert_eq!(listed, known);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One that reads the tag and one that writes it, of others than refshim.
#[tokio::test]
async fn what_was_exported_is_found_without_refshim_and_stays_when_others_sign() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let image = image(&refshim.client(), "app").await;
    let mut signed =
        sign(refshim.address, "app", &image, &[artifact(SIGNATURE, "one"), artifact(SBOM, "two")]);
    refshim.stop();
    let config = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
    let reader = oci_client::Client::try_from(config).unwrap();
    let subject = oci_client::Reference::with_digest(
        registry.address.to_string(),
        "app".to_owned(),
        image.digest.clone(),
    );
    let found = async || {
        let mut found: Vec<_> = reader
            .pull_referrers(&subject, None)
            .await
            .unwrap()
            .manifests
            .into_iter()
            .map(|it| it.digest)
            .collect();
        found.sort();
        found
    };
    let export = || {
        let mut export = Command::new(binary());
        export.args(["export", "--upstream", &registry.url(), "--data-dir"]).arg(directory.path());
        let export = export.output().unwrap();
        assert!(export.status.success(), "{}", String::from_utf8_lossy(&export.stderr));
    };
    assert_eq!(found().await, [""; 0]);
    export();
    let mut expected = digests(&signed);
    expected.sort();
    assert_eq!(found().await, expected);
    signed.extend(sign(registry.address, "app", &image, &[artifact(SIGNATURE, "three")]));
    let mut expected = digests(&signed);
    expected.sort();
    assert_eq!(found().await, expected, "what somebody adds is beside it");
    export();
    assert_eq!(found().await, expected);
    let tag = registry.client().request(Method::GET, &format!("/v2/app/manifests/{}", fallback_tag(&image)));
    let list = registry.client().send(tag.header("accept", IMAGE_INDEX)).await.json();
    let listed = sorted(list["manifests"].as_array().unwrap().clone());
    assert_eq!(listed, sorted(served(&registry.client(), "app", &expected).await));
}

/// curl as people type it; what it prints.
#[track_caller]
fn curl(directory: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args(["-sSf", "--noproxy", "*"]).args(arguments).current_dir(directory);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Nothing but curl: attaches, lists, fetches and deletes, logged in by `login`; then attaches once more. The digest.
fn attach_by_curl(directory: &Path, at: SocketAddr, login: &[&str]) -> String {
    std::fs::write(directory.join("sbom.json"), "{}").unwrap();
    let references = format!("http://{at}/v2/app/manifests/v1/references");
    let attach = format!("{references}?artifactType=application/spdx%2Bjson&title=sbom.json");
    let with = |arguments: &[&str]| curl(directory, &[login, arguments].concat());
    let attached = || {
        let typed = ["-X", "POST", "-T", "sbom.json", "-H", "Content-Type: application/spdx+json", &attach];
        let descriptor: Value = serde_json::from_str(&with(&typed)).unwrap();
        descriptor["digest"].as_str().unwrap().to_owned()
    };
    let digest = attached();
    assert!(with(&[&references]).contains(&digest));
    assert_eq!(with(&["-L", &format!("{references}/{digest}?content")]), "{}");
    with(&["-X", "DELETE", &format!("{references}/{digest}")]);
    assert!(!with(&[&references]).contains(&digest));
    attached()
}

#[tokio::test]
async fn what_curl_attaches_is_found_by_other_clients_and_copied() {
    let (registry, other) = (Registry::with_user(), Registry::start());
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, &directory.path().join("data")).launch().await;
    let image = image(&refshim.client().as_user(USER.0, USER.1), "app").await;
    let password = format!("{}:{}", USER.0, USER.1);
    let digest = attach_by_curl(directory.path(), refshim.address, &["-u", &password]);
    // One that signs finds it there, and it stays.
    let signed = sign_as(refshim.address, "app", &image, &[artifact(SIGNATURE, "signed")], Some(USER));
    let all = [digest.clone(), digests(&signed)[0].clone()];
    let pull = async |at: SocketAddr, auth: &RegistryAuth| {
        let config = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
        let client = oci_client::Client::try_from(config).unwrap();
        let subject =
            oci_client::Reference::with_digest(at.to_string(), "app".to_owned(), image.digest.clone());
        client.auth(&subject, auth, oci_client::RegistryOperation::Pull).await.unwrap();
        let index = client.pull_referrers(&subject, None).await.unwrap();
        index.manifests.into_iter().map(|entry| entry.digest).collect::<Vec<_>>()
    };
    let auth = RegistryAuth::Basic(USER.0.to_owned(), USER.1.to_owned());
    assert_eq!(pull(refshim.address, &auth).await, all);
    let fetched = run(
        &installed("python/bin/python"),
        "pull.py",
        directory.path(),
        &json!({"registry": refshim.address.to_string(), "target": format!("app@{digest}"), "credentials": USER}),
    );
    assert_eq!(fetched, json!({"sbom.json": "{}"}));
    // Copied with the image: to another registry, to which refshim comes later, and to a layout.
    let login = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(&password)
    };
    std::fs::create_dir(directory.path().join(".docker")).unwrap();
    let logins = json!({"auths": {refshim.address.to_string(): {"auth": login}}});
    std::fs::write(directory.path().join(".docker/config.json"), logins.to_string()).unwrap();
    let copy = |from: &str, to: &str| {
        let mut command = Command::new(binary());
        command.args(["copy", "--references", from, to]).current_dir(directory.path());
        let output = command.env("HOME", directory.path()).env("NO_PROXY", "127.0.0.1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let source = format!("{}/app:v1", refshim.address);
    copy(&source, &format!("{}/app:v1", other.address));
    copy(&source, "oci:layout:v1");
    let second = Refshim::before(&other, &directory.path().join("second")).launch().await;
    assert_eq!(
        sorted_texts(pull(second.address, &RegistryAuth::Anonymous).await),
        sorted_texts(all.to_vec())
    );
    let mut layout = Command::new(binary());
    layout.args(["references", "oci:layout:v1", "--json"]).current_dir(directory.path());
    let layout = String::from_utf8(layout.output().unwrap().stdout).unwrap();
    assert!(all.iter().all(|digest| layout.contains(digest)), "{layout}");
}

fn sorted_texts(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts
}

#[tokio::test]
async fn curl_attaches_with_a_token_that_was_fetched_by_hand() {
    let service =
        Rules::default().user("alice", "password").grant("alice", "repository:app", "pull,push,delete");
    let service = service.start();
    let registry = Registry::variant().tokens_of(&service).start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, &directory.path().join("data")).launch().await;
    let scope = "repository:app:pull,push,delete";
    let owner = refshim.client().with_token(&service.token(Some("alice"), &[scope]).await);
    image(&owner, "app").await;
    // As the challenge says.
    let (asked, service_of, realm) =
        (format!("scope={scope}"), format!("service={SERVICE}"), service.realm());
    let typed =
        ["-u", "alice:password", "-G", "--data-urlencode", &service_of, "--data-urlencode", &asked, &realm];
    let token: Value = serde_json::from_str(&curl(directory.path(), &typed)).unwrap();
    let header = format!("Authorization: Bearer {}", token["token"].as_str().unwrap());
    let digest = attach_by_curl(directory.path(), refshim.address, &["-H", &header]);
    assert_eq!(digests(&entries(&owner.get("/v2/app/manifests/v1/references").await)), [digest]);
}
