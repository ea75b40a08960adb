//! Who a command is to a registry, and whom it tells.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{Ended, Shell};
use crate::support::{
    Authority, Content, Identity, Refshim, Registry, Rules, Scripted, TokenService, USER, digest_of,
};

/// Where `refshim tree` is asked for an image that only [`USER`] may read.
async fn private() -> (Registry, Refshim, tempfile::TempDir, String) {
    let (registry, data) = (Registry::with_user(), tempfile::tempdir().unwrap());
    let refshim = Refshim::start(registry.address, data.path()).await;
    let client = refshim.client().as_user(USER.0, USER.1);
    let image = client.image("a", "private").await;
    client.push_as("a", "v1", &image).await;
    let host = refshim.address.to_string();
    (registry, refshim, data, host)
}

fn encoded() -> String {
    STANDARD.encode(format!("{}:{}", USER.0, USER.1))
}

fn tree(shell: &Shell, host: &str) -> Ended {
    shell.run(&["tree", &format!("{host}/a:v1")])
}

#[tokio::test]
async fn credentials_are_found_where_docker_and_podman_leave_them() {
    let (_registry, _refshim, _data, host) = private().await;
    let auths = json!({"auths": {host.as_str(): {"auth": encoded()}}}).to_string();
    let check = |place: &str, shell: Shell| {
        tree(&shell, &host).failed(4, &["401", "docker login"]);
        shell.write(place, &auths);
        assert!(tree(&shell, &host).ok().contains("  image  "), "{place}");
    };
    check(".docker/config.json", Shell::new());
    check(".config/containers/auth.json", Shell::new());
    let relative = |variable, value| Shell::new().with(variable, value);
    check("elsewhere/config.json", relative("DOCKER_CONFIG", "elsewhere"));
    check("run/containers/auth.json", relative("XDG_RUNTIME_DIR", "run"));
    check("auth.json", relative("REGISTRY_AUTH_FILE", "auth.json"));
}

#[tokio::test]
async fn credential_helpers_are_asked() {
    let (_registry, _refshim, _data, host) = private().await;
    let answer = json!({"ServerURL": host, "Username": USER.0, "Secret": USER.1});
    let helper = format!("#!/bin/sh\ntest \"$(cat)\" = '{host}' && echo '{answer}'\n");
    for config in [json!({"credHelpers": {host.as_str(): "test"}}), json!({"credsStore": "test"})] {
        let shell = Shell::new();
        let program = shell.write("bin/docker-credential-test", &helper);
        std::process::Command::new("chmod").arg("+x").arg(&program).status().unwrap();
        let path = format!("{}:{}", shell.path("bin").display(), std::env::var("PATH").unwrap());
        let shell = shell.with("PATH", &path);
        shell.write(".docker/config.json", config.to_string());
        assert!(tree(&shell, &host).ok().contains("  image  "), "{config}");
    }
    let shell = Shell::new();
    shell.write(".docker/config.json", json!({"credsStore": "missing"}).to_string());
    tree(&shell, &host).failed(1, &[".docker/config.json", "credential helper", &host]);
    shell.write(".docker/config.json", "{");
    tree(&shell, &host).failed(1, &[".docker/config.json", &host]);
}

#[tokio::test]
async fn a_password_given_by_hand_comes_before_one_that_is_kept() {
    let (_registry, _refshim, _data, host) = private().await;
    let shell = Shell::new();
    let wrong = STANDARD.encode("alice:wrong");
    shell.write(".docker/config.json", json!({"auths": {host.as_str(): {"auth": wrong}}}).to_string());
    let image = format!("{host}/a:v1");
    tree(&shell, &host).failed(4, &["401"]);
    let by_hand = ["tree", &image, "--username", USER.0, "--password-stdin"];
    let password = format!("{}\n", USER.1);
    assert!(shell.run_with_input(&by_hand, password.as_bytes()).ok().contains("  image  "));
    shell.run_with_input(&by_hand, b"wrong").failed(4, &["401", &image[..image.len() - 3]]);
    shell.run_with_input(&by_hand, b"").failed(2, &["there is none on standard input"]);
    assert_eq!(shell.run(&["tree", &image, "--username", "alice"]).code, 2);
}

fn service() -> TokenService {
    Rules::default()
        .user(USER.0, USER.1)
        .grant(USER.0, "repository:a", "pull,push,delete")
        .grant(USER.0, "repository:b", "pull,push")
        .grant_anonymous("repository:public", "pull")
        .start()
}

/// What was asked of the service: how, by whom, and for what.
fn asked(service: &TokenService) -> Vec<(Option<String>, Option<String>, String)> {
    let requests = service.requests().into_iter();
    requests.map(|request| (request.grant_type, request.user, request.scopes.join(" "))).collect()
}

#[tokio::test]
async fn tokens_are_asked_for_once_for_each_right() {
    let service = service();
    let registry = Registry::variant().tokens_of(&service).start();
    let data = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, data.path()).await;
    let host = refshim.address.to_string();
    let shell = Shell::new();
    shell.write(".docker/config.json", json!({"auths": {host.as_str(): {"auth": encoded()}}}).to_string());
    layout(&shell);
    let alice = |scope: &str| (None, Some(USER.0.to_owned()), scope.to_owned());
    shell.ok(&["copy", "oci:layout:v1", &format!("{host}/a")]);
    let first = asked(&service);
    assert!(first.contains(&alice("repository:a:pull,push")), "{first:?}");
    assert!(
        first.len() <= 4,
        "one for each right, and for each that asks for it at the same time: {first:?}"
    );

    // Mounting needs the right to read the other repository too.
    let report = shell.ok(&["copy", &format!("{host}/a:v1"), &format!("{host}/b:v1"), "--json"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["blobs_mounted"], 2, "{report}");
    let scope = "repository:b:pull,push repository:a:pull";
    assert!(asked(&service).contains(&alice(scope)), "{:?}", asked(&service));

    shell.ok(&["attach", &format!("{host}/a:v1"), "layout/oci-layout", "--artifact-type", "a/b"]);
    let digest = shell.ok(&["references", &format!("{host}/a:v1"), "--format", "digest"]);
    shell.ok(&["detach", &format!("{host}/a:v1"), &digest, "--yes"]);
    let nobody = Shell::new();
    nobody.run(&["tree", &format!("{host}/a:v1")]).failed(4, &[&host, "docker login"]);
    // An anonymous token is a token: what is public is read.
    nobody.run(&["tree", &format!("{host}/public:v1")]).failed(3, &["there is no such manifest"]);
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let service = service();
    let registry = Registry::variant().tokens_of(&service).start();
    let host = registry.address.to_string();
    let shell = Shell::new();
    layout(&shell);
    let config = |token: &str| {
        let auth = STANDARD.encode("<token>:");
        json!({"auths": {host.as_str(): {"auth": auth, "identitytoken": token}}}).to_string()
    };
    shell.write(".docker/config.json", config("identity-of-alice"));
    shell.ok(&["copy", "oci:layout:v1", &format!("{host}/a")]);
    let requests = asked(&service);
    assert!(requests.iter().all(|(grant, user, _)| {
        (grant.as_deref(), user.as_deref()) == (Some("refresh_token"), Some("alice"))
    }));
    shell.write(".docker/config.json", config("identity-of-nobody"));
    tree(&shell, &host).failed(4, &["401", "127.0.0.1", "repository:a:pull"]);
}

/// An image `v1` in the layout `layout` of a shell's home.
pub(super) fn layout(shell: &Shell) {
    let image = Content::image("{}", "x");
    for content in [image.bytes.as_slice(), b"{}", b"x"] {
        shell.write(
            &format!("layout/blobs/sha256/{}", digest_of(content).trim_start_matches("sha256:")),
            content,
        );
    }
    let index = Content::index(&[&image]).changed(|index| {
        index["manifests"][0]["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
    });
    shell.write("layout/index.json", index.bytes);
    shell.write("layout/oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
}

#[tokio::test]
async fn credentials_by_hand_go_to_the_registry_that_is_named_last_only() {
    let curious = Scripted::answering(
        "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic realm=\"x\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    );
    let registry = Registry::with_user();
    let (source, to) = (format!("{}/a:v1", curious.address), format!("{}/b:v1", registry.address));
    let command = ["copy", &source, &to, "--username", USER.0, "--password-stdin"];
    Shell::new().run_with_input(&command, USER.1.as_bytes()).failed(4, &["401", &source[..source.len() - 3]]);
    let requests = curious.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].header("authorization"), None);
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect() {
    let storage = Scripted::answering("HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\nx");
    let url = format!("http://{}", storage.address);
    let registry = Registry::variant().passwords().redirecting_to(&url).start();
    let client = registry.client().as_user(USER.0, USER.1);
    client.push_blob("a", b"x").await;
    client.push_blob("a", b"{}").await;
    let image =
        Content::image("{}", "x").changed(|manifest| manifest["config"] = manifest["layers"][0].clone());
    client.push_as("a", "v1", &image).await;
    let image = format!("{}/a:v1", registry.address);
    let shell = Shell::new();
    let command = ["copy", &image, "oci:out", "--username", USER.0, "--password-stdin"];
    // The password is for the destination of a copy, and a layout takes none.
    shell.run_with_input(&command, USER.1.as_bytes()).failed(4, &["401"]);
    let host = registry.address.to_string();
    shell.write(".docker/config.json", json!({"auths": {host.as_str(): {"auth": encoded()}}}).to_string());
    shell.ok(&["copy", &image, "oci:out"]);
    let requests = storage.requests();
    assert!(!requests.is_empty());
    assert!(requests.iter().all(|request| request.header("authorization").is_none()), "{requests:?}");
}

#[test]
fn any_certificate_will_do_where_the_command_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let openssl = |arguments: &[&str]| {
        let mut openssl = std::process::Command::new("openssl");
        assert!(openssl.args(arguments).current_dir(directory.path()).output().unwrap().status.success());
    };
    // Of X.509 version 1, without extensions, as it was made for decades.
    openssl(&["req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-keyout", "key", "-out", "request"]);
    openssl(&["x509", "-req", "-in", "request", "-signkey", "key", "-out", "old"]);
    let old = Identity { certificate: path("old"), key: path("key") };
    for identity in [Identity::expired(directory.path(), &["other.invalid"], false), old] {
        let registry = Registry::variant().showing(&identity, identity.certificate.clone()).start();
        let tree = ["tree", &format!("{}/a:v1", registry.address), "--insecure"];
        Shell::new().run(&tree).failed(3, &["there is no such manifest"]);
    }
}

#[tokio::test]
async fn a_registry_with_tls_is_trusted_as_the_command_says() {
    let authority = Authority::new();
    let registry = Registry::variant().tls(&authority).start();
    let shell = Shell::new();
    layout(&shell);
    let ca = authority.certificate().to_str().unwrap().to_owned();
    // By name and by address, as the certificate has both.
    for host in [registry.address.to_string(), format!("localhost:{}", registry.address.port())] {
        let to = format!("{host}/a:v1");
        let copy = |more: &[&str]| shell.run(&[&["copy", "oci:layout:v1", &to], more].concat());
        copy(&["--ca-file", &ca]).ok();
        copy(&["--insecure"]).ok();
        let stranger = Authority::new();
        copy(&["--ca-file", stranger.certificate().to_str().unwrap()])
            .failed(1, &[&host, "certificate", "--ca-file"]);
        copy(&[]).failed(1, &[&host, "400"]);
        assert_eq!(copy(&["--plain-http", "--insecure"]).code, 2);
    }
    let status =
        crate::support::Client::to(&registry.url(), crate::support::Http::One, registry.trusted_by());
    assert_eq!(status.head("/v2/a/manifests/v1").await.status, StatusCode::NOT_FOUND);
}
