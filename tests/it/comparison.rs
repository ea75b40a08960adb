//! The same work, done with a registry alone and with a registry of the same kind behind refshim, comes to
//! the same: for each client, for each variant of the registry, and for each way into refshim.
//!
//! A table for each setting is printed, and left in `target/tmp/comparison/`. Compared are exits and what
//! clients print, statuses, fields and bodies of answers, the requests that reached the registry and its
//! storage, and what the registry holds in the end. [`normal`] says what is not.

mod api;
mod containerd;
mod containers;
mod curl;
mod documented;
mod layout;
mod normal;
mod oras;
mod outcome;
mod side;
mod table;

use crate::support::postgres::Postgres;
use crate::support::{Authority, Http, Registry, Rules, TokenService, USER, Variant};
use containerd::Containerd;
use side::{Setting, Side, Way};
use table::Comparison;

const OUTSIDE: &str = "API: what is not below /v2/";

async fn comparison(
    name: &'static str,
    authority: &Authority,
    setting: Setting,
    variant: impl Fn(Way) -> Variant,
) -> Comparison {
    let layout = tempfile::tempdir().unwrap();
    layout::write(layout.path());
    let start = async |way| Side::start(way, variant(way), &setting, authority, layout.path()).await;
    Comparison::new(name, start(Way::Alone).await, start(Way::Through).await)
}

fn with_tls(authority: &Authority) -> Setting {
    let identity = Some(authority.server("refshim", &["127.0.0.1", "localhost"]));
    Setting { identity, ..Setting::default() }
}

fn token_service() -> TokenService {
    let rules = Rules::default().user(USER.0, USER.1);
    rules.grant(USER.0, "repository:*", "pull,push,delete").grant(USER.0, "registry:*", "*").start()
}

/// A token for everything that clients do who do not ask for tokens.
async fn token(service: &TokenService) -> String {
    let repositories = ["a/b", "c", "curl", "oras"];
    let scopes = repositories.map(|name| format!("&scope=repository:{name}:pull,push,delete")).concat();
    let client = service.client().as_user(USER.0, USER.1);
    let answer = client.get(&format!("/token?service=x&scope=registry:catalog:*{scopes}")).await;
    answer.json()["token"].as_str().unwrap().to_owned()
}

/// Every endpoint, the client speaking one version of HTTP to each side.
async fn endpoints(comparison: &mut Comparison, alone: Http, through: Http) {
    comparison.ask("API: uploads", alone, through, api::uploads).await;
    comparison.ask("API: blobs", alone, through, api::blobs).await;
    comparison.ask("API: manifests", alone, through, api::manifests).await;
    comparison.ask("API: lists", alone, through, api::lists).await;
    comparison.ask("API: without credentials, and with wrong ones", alone, through, api::strangers).await;
}

fn skopeo(comparison: &mut Comparison) {
    let scenario = "skopeo: copy (OCI, v2s2), inspect, list-tags, delete";
    comparison.run(scenario, "exit 0 ×10, exit 1 ×3", containers::skopeo_round);
}

fn oras(comparison: &mut Comparison) {
    comparison.run("oras: push, pull, tags", "exit 0", oras::round);
}

fn containerd(comparison: &mut Comparison) {
    let containerd = Containerd::start();
    let scenario = "containerd: ctr images pull, push";
    comparison.run(scenario, "exit 0 ×6, exit 1", |side| containerd.round(side));
}

fn curl(comparison: &mut Comparison, version: &str) {
    let ends = match (comparison.alone.user, &comparison.alone.storage) {
        (None, _) => "200 ×3, 201, 202 ×2, 206, 404",
        (Some(_), None) => "200 ×2, 201, 202 ×2, 206, 401, 404",
        // The storage gives out nothing in part.
        (Some(_), Some(_)) => "200 ×3, 201, 202 ×2, 401, 404",
    };
    comparison.run(&format!("curl {version}"), ends, |side| curl::round(side, version));
}

fn all_tools(comparison: &mut Comparison) {
    let (refused, buildah) = match comparison.alone.user {
        Some(_) => ("exit 1 ×3", "exit 0 ×11, exit 125 ×2"),
        None => ("exit 0 ×2, exit 1", "exit 0 ×10, exit 125"),
    };
    skopeo(comparison);
    comparison.run("skopeo: refused", refused, containers::skopeo_refused);
    comparison.run("buildah: login, pull, push (OCI, v2s2)", buildah, containers::buildah_round);
    containerd(comparison);
    oras(comparison);
}

#[tokio::test]
async fn a_plain_registry_is_the_same_by_http_1() {
    let authority = Authority::new();
    let setting = Setting::default();
    let mut comparison = comparison("plain, HTTP 1.1", &authority, setting, |_| Registry::variant()).await;
    all_tools(&mut comparison);
    curl(&mut comparison, "--http1.1");
    curl(&mut comparison, "--http2");
    endpoints(&mut comparison, Http::One, Http::One).await;
    comparison.ask(OUTSIDE, Http::One, Http::One, api::outside).await;
    comparison.finish();
}

#[tokio::test]
async fn a_plain_registry_is_the_same_with_the_index_in_postgresql() {
    let authority = Authority::new();
    let setting = Setting { index: Some(Postgres::start_fast()), ..Setting::default() };
    let mut comparison = comparison("plain, PostgreSQL", &authority, setting, |_| Registry::variant()).await;
    all_tools(&mut comparison);
    curl(&mut comparison, "--http1.1");
    endpoints(&mut comparison, Http::One, Http::One).await;
    comparison.finish();
}

/// The registry itself does not speak HTTP/2 without TLS.
#[tokio::test]
async fn a_plain_registry_is_the_same_by_http_2() {
    let authority = Authority::new();
    let setting = Setting::default();
    let mut comparison =
        comparison("plain, HTTP 2 to refshim alone", &authority, setting, |_| Registry::variant()).await;
    endpoints(&mut comparison, Http::One, Http::Two).await;
    comparison.ask(OUTSIDE, Http::One, Http::Two, api::outside).await;
    comparison.finish();
}

#[tokio::test]
async fn a_plain_registry_is_the_same_behind_tls() {
    let authority = Authority::new();
    let setting = with_tls(&authority);
    let mut comparison =
        comparison("plain, TLS to refshim alone", &authority, setting, |_| Registry::variant()).await;
    skopeo(&mut comparison);
    oras(&mut comparison);
    endpoints(&mut comparison, Http::One, Http::One).await;
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
        curl(&mut comparison, version);
    }
    endpoints(&mut comparison, Http::One, Http::One).await;
    comparison.finish();
}

#[tokio::test]
async fn a_registry_with_tokens_is_the_same_by_tls_and_http_2() {
    let authority = Authority::new();
    let service = token_service();
    let variables = vec![("UPSTREAMS_DEFAULT_HTTP2", "auto")];
    let token = Some(token(&service).await);
    let setting = Setting { user: Some(USER), token, variables, ..with_tls(&authority) };
    let variant = |_| Registry::variant().tokens_of(&service).tls(&authority);
    let mut comparison = comparison("tokens, TLS on both sides", &authority, setting, variant).await;
    all_tools(&mut comparison);
    curl(&mut comparison, "--http2");
    endpoints(&mut comparison, Http::Two, Http::Two).await;
    comparison.finish();
}

#[tokio::test]
async fn a_registry_with_a_private_authority_is_the_same_by_http_2_all_the_way() {
    let authority = Authority::new();
    let variables = vec![("UPSTREAMS_DEFAULT_HTTP2", "auto")];
    let setting = Setting { variables, ..with_tls(&authority) };
    let variant = |_| Registry::variant().tls(&authority);
    let mut comparison = comparison("private CA, HTTP 2 on both sides", &authority, setting, variant).await;
    skopeo(&mut comparison);
    curl(&mut comparison, "--http2");
    endpoints(&mut comparison, Http::Two, Http::Two).await;
    comparison.ask(OUTSIDE, Http::Two, Http::Two, api::outside).await;
    comparison.finish();
}

#[tokio::test]
async fn a_registry_with_relative_addresses_is_the_same() {
    let authority = Authority::new();
    let variant = |_| Registry::variant().relative_urls();
    let mut comparison = comparison("relativeurls", &authority, Setting::default(), variant).await;
    skopeo(&mut comparison);
    oras(&mut comparison);
    curl(&mut comparison, "--http1.1");
    endpoints(&mut comparison, Http::One, Http::One).await;
    comparison.finish();
}

#[tokio::test]
async fn a_registry_below_a_path_is_the_same_without_the_path() {
    let authority = Authority::new();
    let variant = |_| Registry::variant().below("/some/prefix");
    let mut comparison = comparison("http.prefix", &authority, Setting::default(), variant).await;
    curl(&mut comparison, "--http1.1");
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
        comparison("http.prefix behind refshim alone", &authority, Setting::default(), variant).await;
    skopeo(&mut comparison);
    oras(&mut comparison);
    comparison.finish();
}

#[tokio::test]
async fn a_registry_that_redirects_is_the_same_and_so_are_the_requests_to_its_storage() {
    let authority = Authority::new();
    let setting = Setting { user: Some(USER), redirects: true, ..with_tls(&authority) };
    let variant = |_| Registry::variant().passwords().tls(&authority);
    let mut comparison = comparison("redirects to a storage", &authority, setting, variant).await;
    all_tools(&mut comparison);
    curl(&mut comparison, "--http2");
    endpoints(&mut comparison, Http::One, Http::One).await;
    comparison.finish();
}

#[tokio::test]
async fn a_mirror_is_the_same() {
    let authority = Authority::new();
    let origin = Registry::start();
    let variant = |_| Registry::variant().mirror_of(&origin.url());
    let mut comparison = comparison("pull-through mirror", &authority, Setting::default(), variant).await;
    containers::skopeo_fill(&comparison.alone, &origin);
    comparison.run("skopeo: copy out, inspect, list-tags", "exit 0 ×6, exit 1 ×2", containers::skopeo_pull);
    comparison.run("skopeo: copy in", "exit 1 ×3", containers::skopeo_push);
    let containerd = Containerd::start();
    comparison.run("containerd: ctr images pull", "exit 0 ×3, exit 1", |side| containerd.pull(side));
    for (scenario, through) in [("API: lists", Http::One), ("API: lists, HTTP 2 to refshim", Http::Two)] {
        comparison.ask(scenario, Http::One, through, api::lists).await;
    }
    comparison.finish();
}

#[tokio::test]
async fn what_differs_is_what_the_api_reference_says() {
    let authority = Authority::new();
    let setting = Setting::default();
    let comparison = comparison("differences", &authority, setting, |_| Registry::variant()).await;
    let rows = documented::rows(&comparison.alone, &comparison.through).await;
    comparison.document(&rows);
    assert_eq!(rows, documented::documented());
}
