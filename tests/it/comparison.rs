//! The same work, done with a registry alone and with the same kind of registry behind refshim, comes to
//! the same: for each client, for each variant of the registry, and for each way into refshim.
//!
//! Each test prints its table, and leaves it in Cargo's directory for tests' files.

mod containerd;
mod endpoints;
mod layout;
mod outcome;
mod side;
mod tools;

use std::sync::Arc;

use crate::support::{Authority, Http, Registry, Rules, TokenService, USER, Variant};
use containerd::Containerd;
use outcome::Comparison;
use side::{Setting, Side, Way};

async fn comparison(
    name: &'static str,
    authority: &Authority,
    setting: Setting,
    variant: impl Fn(Way) -> Variant,
) -> Comparison {
    let layout = tempfile::tempdir().unwrap();
    layout::write(layout.path());
    let start = async |way| Side::start(way, variant(way), &setting, authority, layout.path()).await;
    let (alone, through) = (start(Way::Alone).await, start(Way::Through).await);
    Comparison { name, alone, through, rows: Vec::new(), differences: Vec::new() }
}

fn with_tls(authority: &Authority) -> Setting {
    let identity = Some(authority.server("refshim", &["127.0.0.1", "localhost"]));
    Setting { identity, ..Setting::default() }
}

fn token_service() -> Arc<TokenService> {
    let rules = Rules::default().user(USER.0, USER.1);
    let rules = rules.grant(USER.0, "repository:*", "pull,push,delete").grant(USER.0, "registry:*", "*");
    Arc::new(rules.grant_anonymous("repository:public", "pull").start())
}

/// Every endpoint, the client speaking one version of HTTP to each side.
async fn endpoints(comparison: &mut Comparison, alone: Http, through: Http) {
    macro_rules! compare {
        ($name:ident) => {{
            let first = endpoints::$name(&comparison.alone, alone).await;
            let second = endpoints::$name(&comparison.through, through).await;
            comparison.compare(&format!("API: {}", stringify!($name)), &first, &second);
        }};
    }
    compare!(uploads);
    compare!(blobs);
    compare!(manifests);
    compare!(lists);
    compare!(strangers);
}

fn all_tools(comparison: &mut Comparison) {
    let containerd = Containerd::start();
    comparison.run("skopeo: copy, inspect, list-tags, delete", tools::skopeo_round);
    comparison.run("skopeo: wrong password", tools::skopeo_refused);
    comparison.run("podman: login, pull, tag, push", tools::podman_round);
    comparison.run("buildah: login, pull, tag, push", tools::buildah_round);
    comparison.run("containerd: ctr images pull, push", |side| tools::containerd_round(side, &containerd));
    comparison.run("oras: push, pull, tags", tools::oras_round);
}

#[tokio::test]
async fn a_plain_registry_is_the_same_by_http_1() {
    let authority = Authority::new();
    let setting = Setting::default();
    let mut comparison = comparison("plain, HTTP 1.1", &authority, setting, |_| Registry::variant()).await;
    all_tools(&mut comparison);
    comparison.run("curl --http1.1", |side| tools::curl_round(side, "--http1.1"));
    comparison.run("curl --http2, which asks for an upgrade", |side| tools::curl_round(side, "--http2"));
    endpoints(&mut comparison, Http::One, Http::One).await;
    comparison.finish();
}

#[tokio::test]
async fn a_plain_registry_is_the_same_by_http_2_without_tls() {
    let authority = Authority::new();
    let setting = Setting::default();
    let mut comparison = comparison("plain, h2c", &authority, setting, |_| Registry::variant()).await;
    comparison.run("curl --http2-prior-knowledge", |side| {
        let version = if side.way == Way::Alone { "--http1.1" } else { "--http2-prior-knowledge" };
        tools::curl_round(side, version)
    });
    endpoints(&mut comparison, Http::One, Http::Two).await;
    comparison.finish();
}

#[tokio::test]
async fn a_registry_with_passwords_is_the_same_by_tls() {
    let authority = Authority::new();
    let setting = Setting { user: Some(USER), ..with_tls(&authority) };
    let variant = |_| Registry::variant().passwords().tls(&authority);
    let mut comparison = comparison("htpasswd, TLS on both sides", &authority, setting, variant).await;
    all_tools(&mut comparison);
    for version in ["--http1.1", "--http2"] {
        comparison.run(&format!("curl {version}"), |side| tools::curl_round(side, version));
    }
    endpoints(&mut comparison, Http::One, Http::One).await;
    comparison.finish();
}

#[tokio::test]
async fn a_registry_with_tokens_is_the_same_by_tls_and_http_2() {
    let authority = Authority::new();
    let service = token_service();
    let tokens = Some(Arc::clone(&service));
    let setting = Setting { user: Some(USER), tokens, ..with_tls(&authority) };
    let variant = |_| Registry::variant().tokens_of(&service).tls(&authority);
    let mut comparison = comparison("tokens, TLS on both sides", &authority, setting, variant).await;
    all_tools(&mut comparison);
    endpoints(&mut comparison, Http::Two, Http::Two).await;
    comparison.finish();
}

#[tokio::test]
async fn a_registry_with_tls_is_the_same_by_http_2_all_the_way() {
    let authority = Authority::new();
    let settings = vec![("UPSTREAMS_DEFAULT_HTTP2", "auto")];
    let setting = Setting { settings, ..with_tls(&authority) };
    let variant = |_| Registry::variant().tls(&authority);
    let mut comparison = comparison("private CA, h2 on both sides", &authority, setting, variant).await;
    comparison.run("skopeo: copy, inspect, list-tags, delete", tools::skopeo_round);
    comparison.run("curl --http2", |side| tools::curl_round(side, "--http2"));
    endpoints(&mut comparison, Http::Two, Http::Two).await;
    comparison.finish();
}

#[tokio::test]
async fn a_registry_with_relative_addresses_is_the_same() {
    let authority = Authority::new();
    let variant = |_| Registry::variant().relative_urls();
    let mut comparison = comparison("relativeurls", &authority, Setting::default(), variant).await;
    comparison.run("skopeo: copy, inspect, list-tags, delete", tools::skopeo_round);
    comparison.run("oras: push, pull, tags", tools::oras_round);
    endpoints(&mut comparison, Http::One, Http::One).await;
    comparison.finish();
}

#[tokio::test]
async fn a_registry_below_a_path_is_the_same_without_the_path() {
    let authority = Authority::new();
    let variant = |_| Registry::variant().below("/some/prefix");
    let mut comparison = comparison("http.prefix", &authority, Setting::default(), variant).await;
    comparison.run("curl --http1.1", |side| tools::curl_round(side, "--http1.1"));
    endpoints(&mut comparison, Http::One, Http::One).await;
    comparison.finish();
}

/// Tools cannot reach a registry below a path, but through refshim they can.
#[tokio::test]
async fn a_registry_below_a_path_is_as_one_that_is_not() {
    let authority = Authority::new();
    let variant = |way| match way {
        Way::Alone => Registry::variant(),
        Way::Through => Registry::variant().below("/some/prefix"),
    };
    let mut comparison =
        comparison("http.prefix, plain alone", &authority, Setting::default(), variant).await;
    comparison.run("skopeo: copy, inspect, list-tags, delete", tools::skopeo_round);
    comparison.run("oras: push, pull, tags", tools::oras_round);
    comparison.finish();
}

#[tokio::test]
async fn a_registry_that_redirects_is_the_same_and_so_are_the_requests_to_its_storage() {
    let authority = Authority::new();
    let setting = Setting { user: Some(USER), redirects: true, ..with_tls(&authority) };
    let variant = |_| Registry::variant().passwords().tls(&authority);
    let mut comparison = comparison("redirects to a storage", &authority, setting, variant).await;
    all_tools(&mut comparison);
    comparison.run("curl --http2", |side| tools::curl_round(side, "--http2"));
    endpoints(&mut comparison, Http::Two, Http::Two).await;
    assert!(comparison.through.fetched().len() > 10);
    comparison.finish();
}

#[tokio::test]
async fn a_mirror_is_the_same() {
    let authority = Authority::new();
    let origin = Registry::start();
    let variant = |_| Registry::variant().mirror_of(&origin.url());
    let mut comparison = comparison("pull-through mirror", &authority, Setting::default(), variant).await;
    let layout = comparison.alone.path("layout");
    let pushed = std::process::Command::new("skopeo")
        .args([
            "copy",
            "--quiet",
            "--all",
            "--dest-tls-verify=false",
            "--insecure-policy",
            &format!("oci:{layout}:v1"),
        ])
        .arg(format!("docker://{}/skopeo:v1", origin.address))
        .status();
    assert!(pushed.unwrap().success());
    let containerd = Containerd::start();
    comparison.run("skopeo: copy out, inspect, list-tags", tools::skopeo_pull);
    comparison.run("skopeo: copy in, refused", tools::skopeo_push);
    comparison.run("containerd: ctr images pull, push", |side| tools::containerd_round(side, &containerd));
    for (alone, through) in [(Http::One, Http::One), (Http::One, Http::Two)] {
        let first = endpoints::lists(&comparison.alone, alone).await;
        let second = endpoints::lists(&comparison.through, through).await;
        comparison.compare("API: lists", &first, &second);
    }
    comparison.finish();
}
