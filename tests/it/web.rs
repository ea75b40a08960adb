//! The web page, as text: what it shows to whom, that what others wrote is text on it, and what goes to the registry.

mod browser;
mod content;

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::referrers::signature;
use crate::support::{
    Answer, Authority, Client, Content, Http, Refshim, Registry, Rules, Said, Scripted, Shelf, TokenService,
    USER, digest_of, put, shelf_registry,
};

const POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; \
                      frame-ancestors 'none'; base-uri 'none'";

/// A page, after what has to hold for every answer.
#[track_caller]
fn text(answer: &Answer) -> String {
    assert_eq!(answer.header("content-security-policy"), POLICY, "{answer:?}");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("referrer-policy"), "no-referrer");
    assert_eq!(answer.header("cache-control"), "no-store");
    assert!(answer.headers.get("set-cookie").is_none(), "{answer:?}");
    let text = String::from_utf8(answer.body.clone()).unwrap();
    assert!(!text.contains("<script") && !text.contains("style=\""), "{text}");
    text
}

#[track_caller]
fn page(answer: &Answer) -> String {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8");
    text(answer)
}

fn short(content: &Content) -> &str {
    &content.digest[..19]
}

/// How often something stands in a text.
fn times(text: &str, part: &str) -> usize {
    text.matches(part).count()
}

#[tokio::test]
async fn an_image_is_shown_with_its_parts_and_all_that_is_attached() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, directory.path()).with_web().launch().await;
    let app = content::app(&refshim.client()).await;
    let visitor = refshim.visitor();
    for address in ["/image?image=app:v1".to_owned(), format!("/image?image=app@{}", app.index.digest)] {
        let shown = page(&visitor.get(&address).await);
        for part in ["linux/amd64", "linux/arm64", "signature", "SBOM", "provenance", "Signature attached"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        for content in app.all() {
            assert_eq!(times(&shown, &format!("<code>{}</code>", short(content))), 1, "{shown}");
        }
        // The attestation stands below the part that it is about, and is no part itself.
        assert!(!shown.contains("unknown/unknown"), "{shown}");
        assert!(shown.contains("What was pushed before"), "{shown}");
    }
    // Of a part of the index: who lists it.
    let shown = page(&visitor.get(&format!("/image?image=app@{}", app.amd64.digest)).await);
    assert!(shown.contains("Listed by") && shown.contains(short(&app.index)), "{shown}");
    let shown = page(&visitor.get(&format!("/graph?image=app@{}", app.index.digest)).await);
    let drawn = app.all().into_iter().filter(|content| shown.contains(short(content))).count();
    assert_eq!(drawn, app.all().len(), "{shown}");
    assert_eq!(times(&shown, "<rect "), app.all().len() + 1, "{shown}");
    let shown = page(&visitor.get(&format!("/referrer?image=app@{}", app.sbom.digest)).await);
    for part in ["sbom.spdx.json", "org.example.author", short(&app.amd64), "oras pull REGISTRY/app@sha256:"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[tokio::test]
async fn nothing_attached_and_nothing_there_are_told_apart() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, directory.path()).with_web().launch().await;
    let (client, visitor) = (refshim.client(), refshim.visitor());
    let image = client.image("a/empty", "empty").await;
    client.push_as("a/empty", "v1", &image).await;
    let shown = page(&visitor.get("/image?image=a/empty:v1").await);
    assert!(
        shown.contains("Nothing is known to be attached") && shown.contains("No signature known"),
        "{shown}"
    );
    let unknown = visitor.get("/image?image=a/empty:v2").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert!(text(&unknown).contains("Nothing known"));
    let malformed = visitor.get("/image?image=A:b:c").await;
    assert_eq!(malformed.status, StatusCode::BAD_REQUEST);
    assert!(text(&malformed).contains("Write an image as repository:tag"));
    // What refers to an image that is not there any more.
    let late = signature(&image, &image, "application/vnd.cncf.notary.signature", "late");
    client.push("a/empty", &late).await;
    assert_eq!(client.delete(&format!("/v2/a/empty/manifests/{}", image.digest)).await.status, 202);
    let shown = page(&visitor.get(&format!("/image?image=a/empty@{}", image.digest)).await);
    assert!(shown.contains("does not have this manifest") && shown.contains(short(&late)), "{shown}");
}

#[tokio::test]
async fn what_others_wrote_is_text_and_leads_nowhere() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, directory.path()).with_web().launch().await;
    let hostile = content::hostile(&refshim.client()).await;
    let visitor = refshim.visitor();
    for address in ["/image", "/graph", "/referrer", "/coverage"] {
        for digest in [&hostile.image.digest, &hostile.referrer.digest] {
            let shown = page(&visitor.get(&format!("{address}?image=hostile@{digest}")).await);
            for part in ["<script", "<img", "<b>", "\u{202e}", "\u{2066}", "\u{200b}", "\u{0}"] {
                assert!(!shown.contains(part), "{part:?}: {shown}");
            }
            for target in shown.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
                assert!(target.starts_with('/') || target == "#main", "{target}");
                assert!(!target.starts_with("//") && !target.contains("javascript"), "{target}");
            }
        }
    }
    let shown = page(&visitor.get(&format!("/referrer?image=hostile@{}", hostile.referrer.digest)).await);
    for part in ["&#60;script&#62;alert(1)", "javascript:alert(1)", "\\u{202e}gpj.exe", "first\\u{a}second"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    // A type is no command.
    assert!(!shown.contains("--artifact-type"), "{shown}");
    let searched = visitor.get("/image?image=%22%3E%3Cscript%3Ealert(1)%3C/script%3E").await;
    assert!(text(&searched).contains("Not an image"));
    let searched = visitor.get("/login?%22%3E%3Cscript%3E").await;
    assert_eq!(searched.status, StatusCode::UNAUTHORIZED);
    text(&searched);
}

#[tokio::test]
async fn a_visitor_is_asked_for_the_password_that_the_registry_wants() {
    let registry = Registry::with_user();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, directory.path()).with_web().launch().await;
    let owner = refshim.client().as_user(USER.0, USER.1);
    let app = content::app(&owner).await;
    let stranger = refshim.visitor();
    let (visitor, liar) = (stranger.as_user(USER.0, USER.1), stranger.as_user(USER.0, "wrong"));
    for address in
        ["/image?image=app:v1", "/graph?image=app:v1", "/referrer?image=app:v1", "/coverage?image=app:v1"]
    {
        assert!(page(&visitor.get(address).await).contains(&app.index.digest), "{address}");
        for other in [&stranger, &liar] {
            let answer = other.get(address).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{answer:?}");
            assert!(answer.header("www-authenticate").starts_with("Basic realm="), "{answer:?}");
            let shown = text(&answer);
            assert!(!shown.contains(short(&app.index)) && !shown.contains("linux"), "{shown}");
        }
    }
    // A login that is asked for before the registry does.
    assert_eq!(stranger.get("/login").await.status, StatusCode::UNAUTHORIZED);
    let back = visitor.get("/login?image=app%3Av1").await;
    assert_eq!(
        (back.status, back.header("location")),
        (StatusCode::SEE_OTHER, "/registry/default/image?image=app%3Av1")
    );
    assert_eq!(visitor.get("/login").await.header("location"), "/");
}

fn tokens() -> TokenService {
    Rules::default()
        .user("alice", "password")
        .user("bob", "password")
        .grant("alice", "repository:private", "pull,push")
        .grant("alice", "repository:public", "pull,push")
        .grant_anonymous("repository:public", "pull")
        .start()
}

#[tokio::test]
async fn the_token_service_is_asked_with_the_visitors_own_password_to_pull_from_one_repository() {
    let service = tokens();
    let registry = Registry::variant().tokens_of(&service).start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, directory.path()).with_web().launch().await;
    let scopes = ["repository:private:pull,push", "repository:public:pull,push"];
    let owner = refshim.client().with_token(&service.token(Some("alice"), &scopes).await);
    for repository in ["private", "public"] {
        let image = owner.image(repository, repository).await;
        owner.push_as(repository, "v1", &image).await;
        owner.push(repository, &signature(&image, &image, "application/x", "x")).await;
    }
    let stranger = refshim.visitor();
    let as_user = |name: &str, password: &str| stranger.as_user(name, password);
    for (visitor, private, public) in [
        (stranger.clone(), 401, 200),
        (as_user("alice", "password"), 200, 200),
        (as_user("alice", "wrong"), 401, 401),
        // Logged in, and without a right: to be asked again would lead nowhere.
        (as_user("bob", "password"), 403, 403),
    ] {
        let before = service.requests().len();
        let answers =
            [visitor.get("/image?image=private:v1").await, visitor.get("/image?image=public:v1").await];
        assert_eq!(answers.each_ref().map(|answer| answer.status.as_u16()), [private, public]);
        for asked in &service.requests()[before..] {
            let repository = asked.scopes[0].split(':').nth(1).unwrap();
            assert_eq!(asked.scopes, [format!("repository:{repository}:pull")]);
        }
    }
    let users: Vec<Option<String>> = service.requests().into_iter().skip(1).map(|asked| asked.user).collect();
    let [alice, bob] = ["alice", "bob"].map(|name| Some(name.to_owned()));
    // A wrong password gets no further than the service's door.
    assert_eq!(users, [None, None, alice.clone(), alice, bob.clone(), bob]);
}

#[tokio::test]
async fn a_password_goes_to_no_token_service_without_tls() {
    let challenge = r#"Bearer realm="http://auth.example/token",service="x""#;
    let registry = shelf_registry(&Shelf::default(), move |_| {
        Some(Said::status("401 Unauthorized").with("www-authenticate", challenge))
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(registry.address, directory.path()).with_web().launch().await;
    let answer = refshim.visitor().as_user("alice", "secret").get("/image?image=a:v1").await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{answer:?}");
    assert!(text(&answer).contains("not reached over https"));
    // Nor to a registry that does not ask for it itself.
    assert!(registry.requests().iter().all(|asked| asked.header("authorization").is_none()));
    assert!(!refshim.lines().join("\n").contains("secret"));
}

/// Where the registry serves manifests from another host, that one must not name who gets the password.
#[tokio::test]
async fn a_host_that_is_redirected_to_asks_for_no_password() {
    let service = Scripted::answering(
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 13\r\n\r\n{\"token\":\"x\"}",
    );
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"x\"", service.address);
    let storage = shelf_registry(&Shelf::default(), move |_| {
        Some(Said::status("401 Unauthorized").with("www-authenticate", &challenge))
    });
    let to = storage.address;
    let registry = shelf_registry(&Shelf::default(), move |turn| {
        let there = format!("http://{to}{}", turn.path());
        let is_manifest = turn.path().contains("/manifests/");
        let moved = Said::status("307 Temporary Redirect").with("location", &there);
        Some(if is_manifest { moved } else { turn.right.clone() })
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(registry.address, directory.path()).with_web().launch().await;
    for visitor in [refshim.visitor(), refshim.visitor().as_user("alice", "secret")] {
        let answer = visitor.get("/image?image=a:v1").await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{answer:?}");
        assert_eq!(answer.headers.get("www-authenticate"), None);
    }
    let subject = Content::image("config", "layer").digest;
    for query in [format!("/v2/a/referrers/{subject}"), format!("/v2/a/manifests/{subject}/references")] {
        let answer = refshim.client().as_user("alice", "secret").get(&query).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{answer:?}");
        assert_eq!(answer.headers.get("www-authenticate"), None);
    }
    assert!(!storage.requests().is_empty());
    assert!(storage.requests().iter().all(|asked| asked.header("authorization").is_none()));
    assert_eq!(service.requests().len(), 0);
}

/// Whoever can push writes the index.
#[tokio::test]
async fn an_index_of_many_parts_costs_no_more_than_is_shown() {
    let shelf = Shelf::default();
    let registry = shelf_registry(&shelf, |turn| Some(turn.right.clone()));
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(registry.address, directory.path()).with_web().launch().await;
    let part = |n: usize| json!({"mediaType": "m", "size": 1, "digest": digest_of(n.to_string().as_bytes())});
    let attestation = |n: usize| {
        let about = digest_of((n % 10).to_string().as_bytes());
        let said = json!({"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": about});
        let mut entry = part(1_000 + n % 3_000);
        entry["annotations"] = said;
        entry
    };
    // 150 parts, each many times, and thousands of attestations about ten of them.
    let parts = (0..6_000).map(|n| part(n % 150)).chain((0..9_000).map(attestation));
    let index = Content::new(
        "application/vnd.oci.image.index.v1+json",
        &json!({"schemaVersion": 2, "manifests": parts.collect::<Vec<_>>()}),
    );
    put(&shelf, "a", &["v1"], &index);
    for address in ["/image?image=a:v1", "/graph?image=a:v1", "/referrer?image=a:v1"] {
        let shown = page(&refshim.visitor().get(address).await);
        assert!(shown.len() < 1 << 20, "{address}: {} bytes", shown.len());
    }
    let shown = page(&refshim.visitor().get("/image?image=a:v1").await);
    assert!(shown.contains("The index has 50 parts more than are shown."), "{shown}");
    assert!(times(&shown, "<tr") < 400, "{} rows", times(&shown, "<tr"));
    assert!(refshim.peak_memory() < 400 << 20, "{} bytes", refshim.peak_memory());
}

/// The browser would send the password that it remembers.
#[tokio::test]
async fn other_sites_are_shown_nothing() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, directory.path()).with_web().launch().await;
    content::app(&refshim.client()).await;
    let visitor = refshim.visitor();
    for (site, mode, expected) in [
        ("cross-site", "no-cors", 403),
        ("cross-site", "cors", 403),
        ("same-site", "no-cors", 403),
        ("cross-site", "navigate", 200),
        ("same-origin", "no-cors", 200),
        ("none", "navigate", 200),
    ] {
        let request = visitor.request(Method::GET, "/image?image=app:v1");
        let request = request.header("sec-fetch-site", site).header("sec-fetch-mode", mode);
        let answer = visitor.send(request).await;
        assert_eq!(answer.status.as_u16(), expected, "{site} {mode}");
        text(&answer);
    }
}

#[tokio::test]
async fn the_registry_sees_the_visitor_and_nothing_of_the_page() {
    let shelf = Shelf::default();
    let registry = shelf_registry(&shelf, |turn| {
        let is_known = turn.request.header("authorization").is_some();
        let refused = Said::status("401 Unauthorized").with("www-authenticate", "Basic realm=\"x\"");
        Some(if is_known { turn.right.clone() } else { refused })
    });
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(registry.address, directory.path())
        .with("TRUSTED_PROXIES", "127.0.0.1")
        .with_web()
        .launch()
        .await;
    let image = Content::image("config", "layer");
    put(&shelf, "a", &["v1"], &image);
    let visitor = refshim.visitor();
    let before = registry.requests().len();
    let request = visitor
        .request(Method::GET, "/image?image=a:v1")
        .header("cookie", "session=1")
        .header("user-agent", "Mozilla/5.0")
        .header("x-forwarded-for", "192.0.2.7")
        .header("x-forwarded-host", "evil.example")
        .header("authorization", "Basic YWxpY2U6cA==");
    page(&visitor.send(request).await);
    let asked = registry.requests()[before..].to_vec();
    let with_password =
        asked.iter().filter(|asked| asked.header("authorization") == Some("Basic YWxpY2U6cA=="));
    assert!(with_password.count() >= asked.len() - 1, "{asked:?}");
    assert_eq!(asked[0].header("authorization"), None, "before the registry asked for it: {asked:?}");
    for request in asked {
        assert_eq!(request.header("x-forwarded-for"), Some("192.0.2.7, 127.0.0.1"), "{request:?}");
        for name in ["cookie", "user-agent", "x-forwarded-host", "referer"] {
            assert_eq!(request.header(name), None, "{request:?}");
        }
    }
}

#[tokio::test]
async fn many_referrers_are_paged_and_grouped() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, directory.path()).with_web().launch().await;
    let image = content::many(&refshim.client(), 120).await;
    let visitor = refshim.visitor();
    let web = refshim.web();
    let mut address = format!("/registry/default/image?image=many@{}", image.digest);
    let mut seen = Vec::new();
    loop {
        let shown = page(&web.get(&address).await);
        let rows = shown.split("/referrer?image=many%40").skip(1).map(|rest| rest.split('"').next().unwrap());
        let tab = image.digest.replace(':', "%3A");
        seen.extend(rows.filter(|digest| *digest != tab).map(str::to_owned));
        // A signature is known of, also if it is on another page.
        assert!(shown.contains("Signature attached"), "{shown}");
        let Some((before, _)) = shown.split_once("\" rel=\"next\"") else { break };
        address = before.rsplit_once('"').unwrap().1.replace("&#38;", "&");
    }
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!((count, seen.len()), (120, 120));
    let shown = page(&visitor.get(&format!("/graph?image=many@{}", image.digest)).await);
    // 119 SBOMs as one node, the one signature, and the image.
    assert!(shown.contains("119 SBOMs"), "{shown}");
    assert_eq!(times(&shown, "<rect "), 3, "{shown}");
    let shown = page(&visitor.get(&format!("/image?image=many@{}&kind=signature", image.digest)).await);
    assert_eq!(times(&shown, "<th scope=\"row\""), 1, "{shown}");
}

#[tokio::test]
async fn an_upstream_is_chosen_by_name_or_as_clients_do_and_not_past_its_host() {
    let [default, hub, own] = [0; 3].map(|_| Registry::start());
    for (registry, repository) in [(&default, "a"), (&hub, "library/a"), (&own, "a")] {
        let image = registry.client().image(repository, &registry.url()).await;
        registry.client().push_as(repository, "v1", &image).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&default, directory.path())
        .with("UPSTREAMS_HUB_URL", &hub.url())
        .with("UPSTREAMS_HUB_PREFIXES", "hub")
        .with("UPSTREAMS_HUB_STRIP_PREFIX", "true")
        .with("UPSTREAMS_OWN_URL", &own.url())
        .with("UPSTREAMS_OWN_HOSTS", "own.example.com")
        .with_web()
        .launch()
        .await;
    let web = refshim.web();
    let get = async |address: &str, host: &str| {
        web.send(web.request(Method::GET, address).header("host", host)).await
    };
    let leads_to = async |address: &str, host: &str| {
        let answer = get(address, host).await;
        text(&answer);
        answer.headers.get("location").map(|location| location.to_str().unwrap().to_owned())
    };
    let search = page(&web.get("/").await);
    assert!(search.contains("value=\"default\"") && search.contains("value=\"hub\""), "{search}");
    assert!(!search.contains("value=\"own\""), "{search}");
    for (address, host, expected) in [
        ("/image?image=a:v1", "any", Some("/registry/default/image?image=a%3Av1")),
        ("/graph?image=hub/library/a:v1", "any", Some("/registry/hub/graph?image=library%2Fa%3Av1")),
        ("/image?image=library/a:v1&upstream=hub", "any", Some("/registry/hub/image?image=library%2Fa%3Av1")),
        ("/image?image=a:v1&upstream=own", "any", None),
        ("/image?image=a:v1&upstream=%22%3E", "any", None),
        ("/image?image=a:v1", "own.example.com:80", Some("/registry/own/image?image=a%3Av1")),
    ] {
        assert_eq!(leads_to(address, host).await.as_deref(), expected, "{address}");
    }
    for (address, host, expected) in [
        ("/registry/default/image?image=a:v1", "any", 200),
        ("/registry/hub/image?image=library/a:v1", "any", 200),
        ("/registry/hub/image?image=a:v1", "any", 404),
        ("/registry/own/image?image=a:v1", "any", 404),
        ("/registry/own/image?image=a:v1", "own.example.com", 200),
        ("/registry/default/image?image=a:v1", "own.example.com", 404),
        ("/registry/%22/image?image=a:v1", "any", 404),
    ] {
        let answer = get(address, host).await;
        text(&answer);
        assert_eq!(answer.status.as_u16(), expected, "{address}");
    }
    let shown = page(&web.get("/registry/hub/image?image=library/a:v1").await);
    assert!(shown.contains("refshim tree REGISTRY/hub/library/a@sha256:"), "{shown}");
    let health = page(&web.get("/health").await);
    assert!(health.contains("The registry hub") && !health.contains("registry own"), "{health}");
    // A browser sends a password to no other path than that of the registry it was asked for by, for no other realm.
    let asked = web.get("/registry/hub/login").await;
    assert_eq!(asked.header("www-authenticate"), "Basic realm=\"registry hub\", charset=\"UTF-8\"");
}

#[tokio::test]
async fn a_digest_alone_finds_the_repositories_that_the_visitor_may_read() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, directory.path()).with_web().launch().await;
    let (client, web, visitor) = (refshim.client(), refshim.web(), refshim.visitor());
    let image = client.image("team/app", "image").await;
    client.push("team/app", &image).await;
    for name in ["team/app", "copies/app", "other"] {
        client.image(name, "image").await;
        client.push(name, &image).await;
        let signed = signature(&image, &image, "application/vnd.cncf.notary.signature", name);
        if name != "other" {
            client.push(name, &signed).await;
        }
    }
    for asked in [image.digest.clone(), format!("@{}", image.digest)] {
        let led = web.get(&format!("/image?image={asked}")).await;
        assert_eq!(led.status, StatusCode::SEE_OTHER, "{led:?}");
        assert!(led.header("location").starts_with("/registry/default/digest?image=sha256%3A"), "{led:?}");
        let led = visitor.get(&format!("/image?image={asked}")).await;
        assert!(led.header("location").starts_with("/registry/default/digest?image=sha256%3A"), "{led:?}");
    }
    let shown = page(&visitor.get(&format!("/digest?image={}", image.digest)).await);
    assert!(shown.contains("<code>team/app</code>") && shown.contains("<code>copies/app</code>"), "{shown}");
    assert!(!shown.contains("<code>other</code>") && !shown.contains("nobodys"), "{shown}");
    let page_of = format!("/registry/default/image?image=team%2Fapp%40{}", image.digest.replace(':', "%3A"));
    assert!(shown.contains(&page_of), "{shown}");
    // One that the registry does not have any more says nothing.
    assert_eq!(client.delete(&format!("/v2/copies/app/manifests/{}", image.digest)).await.status, 202);
    let shown = page(&visitor.get(&format!("/digest?image={}", image.digest)).await);
    assert!(!shown.contains("copies/app"), "{shown}");
    for (digest, status) in [(digest_of(b"nobody's"), 404), ("team/app:v1".to_owned(), 400)] {
        let failed = visitor.get(&format!("/digest?image={digest}")).await;
        text(&failed);
        assert_eq!(failed.status.as_u16(), status, "{failed:?}");
    }
}

#[tokio::test]
async fn the_page_speaks_tls_where_clients_do() {
    let (authority, registry) = (Authority::new(), Registry::start());
    let identity = authority.server("refshim", &["127.0.0.1"]);
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, directory.path()).with_tls(&identity).with_web().launch().await;
    let base = refshim.web_url("").replace("http://", "https://");
    let visitor = Client::to(&base, Http::One, Some(&authority.certificate()));
    page(&visitor.get("/").await);
    let plain = refshim.web();
    let refused = plain.try_send(plain.request(Method::GET, "/")).await;
    assert!(refused.is_err() || refused.is_ok_and(|answer| answer.status == StatusCode::BAD_REQUEST));
}

#[tokio::test]
async fn every_answer_forbids_scripts_and_caches() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, directory.path()).with_web().launch().await;
    let (web, visitor) = (refshim.web(), refshim.visitor());
    for address in ["/", "/health", "/nowhere", "/v2/", "/image", "/image?image=", "/style.css", "/icon.svg"]
    {
        text(&web.get(address).await);
    }
    for address in ["/image?image=", "/login", "/nowhere", "/"] {
        text(&visitor.get(address).await);
    }
    assert_eq!(web.get("/style.css").await.header("content-type"), "text/css; charset=utf-8");
    assert_eq!(web.get("/image").await.header("location"), "/");
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let answer = web.send(web.request(method, "/")).await;
        assert_eq!((answer.status, answer.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD"));
        text(&answer);
    }
    let (get, head) = (web.get("/").await, web.head("/").await);
    assert_eq!(head.status, StatusCode::OK);
    assert_eq!(head.header("content-length"), get.body.len().to_string());
    // The clients' listener knows nothing of it.
    assert_ne!(refshim.client().get("/health").await.status, StatusCode::OK);
}

#[tokio::test]
async fn health_and_coverage_are_told_in_words() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, directory.path()).with_web().launch().await;
    let client: Client = refshim.client();
    let image = client.image("a", "a").await;
    client.push_as("a", "v1", &image).await;
    let (web, visitor) = (refshim.web(), refshim.visitor());
    let health = page(&web.get("/health").await);
    assert_eq!(times(&health, ">works<"), 2, "{health}");
    let coverage = page(&visitor.get("/coverage?image=a:v1").await);
    assert!(coverage.contains("may be missing") && coverage.contains("never"), "{coverage}");
    let admin = format!("http://{}", refshim.admin);
    let done =
        std::process::Command::new(crate::support::binary()).args(["backfill", "--admin", &admin]).output();
    assert!(done.as_ref().unwrap().status.success(), "{done:?}");
    let coverage = page(&visitor.get("/coverage?image=a:v1").await);
    assert!(coverage.contains("was read") && !coverage.contains("may be missing"), "{coverage}");
    assert!(!page(&visitor.get("/image?image=a:v1").await).contains("may be missing"));
    let address = registry.address.to_string();
    registry.stop();
    let failed = visitor.get("/image?image=a:v1").await;
    assert_eq!(failed.status, StatusCode::BAD_GATEWAY, "{failed:?}");
    assert!(!text(&failed).contains(&address));
    // The index does, all the same.
    assert!(page(&web.get("/health").await).contains(">works<"));
}
