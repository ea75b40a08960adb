//! The registry's variants, and the ways into refshim, are what the other tests take them for.

use std::path::Path;
use std::process::Command;

use reqwest::{Method, StatusCode};

use crate::support::{
    Authority, Client, Http, Identity, Refshim, Registry, Rules, SERVICE, TokenService, USER,
};

#[tokio::test]
async fn a_registry_with_tls_is_reached_by_those_who_trust_its_authority() {
    let authority = Authority::new();
    let registry = Registry::variant().tls(&authority).start();
    for version in [Http::One, Http::Two] {
        let client = Client::to(&registry.url(), version, registry.trusted_by());
        client.image("a", "one").await;
        let stranger = Authority::new();
        let client = Client::to(&registry.url(), version, Some(&stranger.certificate()));
        assert!(client.try_send(client.request(Method::GET, "/v2/")).await.unwrap_err().is_connect());
    }
}

#[tokio::test]
async fn both_sides_speak_tls_and_a_client_shows_its_certificate() {
    let authority = Authority::new();
    let registry = Registry::variant().tls(&authority).start();
    let directory = tempfile::tempdir().unwrap();
    let clients = authority.certificate();
    let refshim = Refshim::before(&registry, directory.path())
        .with_tls(&authority.server("refshim", &["127.0.0.1"]))
        .with("TLS_CLIENT_CA", clients.to_str().unwrap())
        .launch()
        .await;
    let Identity { certificate, key } = authority.client("alice");
    let curl = |version: &str, more: &[&Path]| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", version, "-w", "%{http_version} %{http_code}", "--cacert"])
            .arg(&clients)
            .args(more);
        let output = curl.arg(format!("https://{}/v2/", refshim.address)).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let shown = ["--cert".as_ref(), certificate.as_path(), "--key".as_ref(), key.as_path()];
    assert_eq!(curl("--http2", &shown), (true, "{}2 200".to_owned()));
    assert_eq!(curl("--http1.1", &shown), (true, "{}1.1 200".to_owned()));
    assert!(!curl("--http2", &[]).0);
}

/// `alice` may write `a`, `bob` read it, anybody read `public`.
fn service() -> TokenService {
    Rules::default()
        .user(USER.0, USER.1)
        .user("bob", "b")
        .grant(USER.0, "repository:a", "pull,push,delete")
        .grant("bob", "repository:*", "pull")
        .grant_anonymous("repository:public", "pull")
        .start()
}

async fn token(
    service: &TokenService,
    user: Option<(&str, &str)>,
    scope: &str,
) -> Result<String, StatusCode> {
    let client = service.client();
    let client = user.map_or(client.clone(), |(name, password)| client.as_user(name, password));
    let answer = client.get(&format!("/token?service=x&scope={scope}")).await;
    if answer.status == StatusCode::OK {
        Ok(answer.json()["token"].as_str().unwrap().to_owned())
    } else {
        Err(answer.status)
    }
}

#[tokio::test]
async fn a_token_gives_the_rights_asked_for_that_the_user_has() {
    let service = service();
    let registry = Registry::variant().tokens_of(&service).start();
    let client = registry.client();
    let refused = client.get("/v2/a/tags/list").await;
    let challenge =
        format!(r#"Bearer realm="{}",service="{}",scope="repository:a:pull""#, service.realm(), SERVICE);
    assert_eq!((refused.status, refused.header("www-authenticate")), (StatusCode::UNAUTHORIZED, &*challenge));

    let start = async |bearer: &str| {
        let post = client.request(Method::POST, "/v2/a/blobs/uploads/").bearer_auth(bearer);
        client.send(post).await.status
    };
    let everything = "repository:a:pull,push";
    assert_eq!(start(&token(&service, Some(USER), everything).await.unwrap()).await, StatusCode::ACCEPTED);
    assert_eq!(
        start(&token(&service, Some(USER), "repository:a:pull").await.unwrap()).await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(
        start(&token(&service, Some(("bob", "b")), everything).await.unwrap()).await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(start(&token(&service, None, everything).await.unwrap()).await, StatusCode::UNAUTHORIZED);
    assert_eq!(token(&service, Some((USER.0, "wrong")), everything).await, Err(StatusCode::UNAUTHORIZED));

    let list = client.request(Method::GET, "/v2/public/tags/list");
    let list = list.bearer_auth(token(&service, None, "repository:public:pull,push").await.unwrap());
    assert_eq!(client.send(list).await.error_code(), "NAME_UNKNOWN");
    let seen = service.requests().into_iter().map(|request| request.user);
    assert_eq!(
        seen.collect::<Vec<_>>(),
        [Some(USER.0.to_owned()), Some(USER.0.to_owned()), Some("bob".to_owned()), None, None]
    );
}

#[tokio::test]
async fn a_password_is_exchanged_for_a_refresh_token_and_that_for_tokens() {
    let service = service();
    let client = service.client();
    let ask = async |form: String| {
        let post = client
            .request(Method::POST, "/token")
            .header("content-type", "application/x-www-form-urlencoded");
        let answer = client.send(post.body(format!("service=x&client_id=c&{form}"))).await;
        (answer.status, answer.json())
    };
    let (status, first) = ask("grant_type=password&username=alice&password=correct+horse".into()).await;
    assert_eq!(status, StatusCode::OK);
    let refresh = first["refresh_token"].as_str().unwrap();
    let scope = "scope=repository:a:pull,push+repository:b:pull";
    let (status, second) = ask(format!("grant_type=refresh_token&refresh_token={refresh}&{scope}")).await;
    assert_eq!(status, StatusCode::OK);
    let registry = Registry::variant().tokens_of(&service).start();
    let post = registry.client().request(Method::POST, "/v2/a/blobs/uploads/");
    let post = post.bearer_auth(second["access_token"].as_str().unwrap());
    assert_eq!(registry.client().send(post).await.status, StatusCode::ACCEPTED);
    assert_eq!(ask("grant_type=refresh_token&refresh_token=x".into()).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(service.requests()[1].scopes, ["repository:a:pull,push", "repository:b:pull"]);
}

#[tokio::test]
async fn addresses_are_as_the_variant_makes_them() {
    let location = async |registry: &Registry| {
        let client = Client::to(&registry.url(), Http::One, None);
        let post = client.request(Method::POST, "/v2/a/blobs/uploads/");
        client.send(post).await.header("location").to_owned()
    };
    let plain = Registry::start();
    assert!(location(&plain).await.starts_with(&format!("http://{}/v2/a/blobs/uploads/", plain.address)));
    let relative = Registry::variant().relative_urls().start();
    assert!(location(&relative).await.starts_with("/v2/a/blobs/uploads/"));
    let below = Registry::variant().below("/some/prefix").start();
    assert!(location(&below).await.starts_with(&format!("{}/v2/a/blobs/uploads/", below.url())));
}

#[tokio::test]
async fn a_mirror_has_what_its_origin_has_and_a_redirecting_registry_sends_elsewhere() {
    let origin = Registry::start();
    let image = origin.client().image("a", "one").await;
    origin.client().push_as("a", "v1", &image).await;
    let mirror = Registry::variant().mirror_of(&origin.url()).start();
    assert_eq!(mirror.client().served("a", "v1").await.2, image.digest);

    let registry = Registry::variant().redirecting_to("http://127.0.0.1:9").start();
    let digest = registry.client().push_blob("a", b"content").await;
    let answer = registry.client().get(&format!("/v2/a/blobs/{digest}")).await;
    assert_eq!(answer.status, StatusCode::TEMPORARY_REDIRECT);
    let path = answer.header("location").strip_prefix("http://127.0.0.1:9/").unwrap().to_owned();
    assert_eq!(std::fs::read(registry.root().join(path)).unwrap(), b"content");
}
