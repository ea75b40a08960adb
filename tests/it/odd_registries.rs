//! Each odd way in which a registry, or what stands in front of it, answers, with each way of asking refshim,
//! before and after something is remembered: what the caller may know is listed, all of it, and nobody else
//! learns anything.

use std::io::Write as _;
use std::sync::{Arc, Mutex};

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::referrers::{referrers_tag, signature};
use crate::support::{
    Answer, Client, Content, IMAGE_INDEX, Refshim, Said, Scripted, Shelf, Target, Turn, about, digest_of,
    put, shelf_registry,
};

/// What a registry makes of the right answer.
type Odd = Arc<dyn Fn(&Turn<'_>) -> Option<Said> + Send + Sync>;

/// The ways to ask, and whether only what is pushed with a `reference` is wanted.
const WAYS: [(&str, bool); 8] = [
    ("/v2/a/manifests/latest/references", false),
    ("/v2/a/manifests/{digest}/references", false),
    ("/v2/a/manifests/{digest}/references?inline=true", false),
    ("/v2/a/manifests/latest/references?scope=registry", false),
    ("/v2/a/manifests/{digest}/references?kind=reference", true),
    ("/v2/a/manifests/{digest}/references?annotation=name", false),
    ("/v2/a/referrers/{digest}", false),
    ("/v2/a/referrers/{digest}?artifactType=application/x+y", false),
];

struct Scene {
    upstream: Scripted,
    refshim: Refshim,
    image: Content,
    pushed: Content,
    listed: Content,
    _directory: tempfile::TempDir,
}

/// An image with a referrer that is pushed through refshim and one that only the referrers tag lists.
async fn scene(
    odd: Odd,
    settings: &[(&'static str, &str)],
    push: impl Fn(RequestBuilder) -> RequestBuilder,
) -> Scene {
    let shelf = Shelf::default();
    let image = Content::image("{}", "x");
    let pushed = signature(&image, &image, "application/x+y", "pushed")
        .changed(|manifest| manifest["reference"] = image.descriptor());
    let listed = signature(&image, &image, "application/x+y", "listed");
    let list = Content::new(
        IMAGE_INDEX,
        &json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [listed.descriptor()]}),
    );
    put(&shelf, "a", &["latest"], &image);
    put(&shelf, "a", &[], &listed);
    put(&shelf, "a", &[&referrers_tag(&image)], &list);
    let upstream = shelf_registry(&shelf, move |turn| odd(turn));
    let directory = tempfile::tempdir().unwrap();
    let mut refshim = Refshim::prepare(upstream.address, directory.path());
    for (name, value) in settings {
        refshim = refshim.with(name, value);
    }
    let refshim = refshim.launch().await;
    let client = refshim.client();
    let path = format!("/v2/a/manifests/{}", pushed.digest);
    let request = client.request(Method::PUT, &path).header("content-type", pushed.media_type.as_str());
    let answer = client.send(push(request.body(pushed.bytes.clone()))).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    Scene { upstream, refshim, image, pushed, listed, _directory: directory }
}

impl Scene {
    fn path(&self, way: &str) -> String {
        way.replace("{digest}", &self.image.digest)
    }

    fn expected(&self, is_pushed_alone: bool) -> Vec<String> {
        let all = [self.pushed.digest.clone(), self.listed.digest.clone()];
        if is_pushed_alone { all[..1].to_vec() } else { all.to_vec() }
    }

    /// Neither what refers to the image nor where it is kept.
    #[track_caller]
    fn tells_nothing(&self, answer: &Answer, context: &str) {
        let text = String::from_utf8_lossy(&answer.body);
        for secret in [&self.pushed.digest, &self.listed.digest] {
            assert!(!text.contains(secret), "{context}: {text}");
        }
    }
}

#[track_caller]
fn listed(answer: &Answer, context: &str) -> Vec<String> {
    assert_eq!(answer.status, StatusCode::OK, "{context}: {}", String::from_utf8_lossy(&answer.body));
    let index: Value = answer.json();
    let entries = index["manifests"].as_array().unwrap_or_else(|| panic!("{context}: {index}"));
    entries.iter().map(|entry| entry["digest"].as_str().unwrap().to_owned()).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

const PAGE: &str = "<!doctype html><title>Log in</title>";
const ABSENT: [&str; 6] = [
    "404 Not Found",
    "403 Forbidden",
    "400 Bad Request",
    "405 Method Not Allowed",
    "410 Gone",
    "422 Unprocessable Entity",
];

/// Odd forms of answers that are right.
fn odd_forms() -> Vec<(String, Odd)> {
    let mut forms: Vec<(String, Odd)> = Vec::new();
    let mut add = |name: String, odd: Odd| forms.push((name, odd));
    for status in [
        "204 No Content",
        "206 Partial Content",
        "400 Bad Request",
        "403 Forbidden",
        "404 Not Found",
        "405 Method Not Allowed",
        "500 Internal Server Error",
        "501 Not Implemented",
        "502 Bad Gateway",
    ] {
        add(
            format!("HEAD is answered {status}"),
            Arc::new(move |turn| {
                Some(if turn.is_head() { Said::status(status) } else { turn.right.clone() })
            }),
        );
    }
    add("HEAD is hung up on".to_owned(), Arc::new(|turn| (!turn.is_head()).then(|| turn.right.clone())));
    add(
        "HEAD is answered by a page".to_owned(),
        Arc::new(|turn| {
            Some(if turn.is_head() { Said::typed("text/html", PAGE) } else { turn.right.clone() })
        }),
    );
    add(
        "no Docker-Content-Digest".to_owned(),
        Arc::new(|turn| Some(turn.right.clone().without("docker-content-digest"))),
    );
    add("no Content-Type".to_owned(), Arc::new(|turn| Some(turn.right.clone().without("content-type"))));
    for (coding, pack) in [("gzip", gzip as fn(&[u8]) -> Vec<u8>), ("zstd", zstd)] {
        add(
            format!("manifests in {coding}"),
            Arc::new(move |turn| {
                if !turn.is_found() || !turn.is_read() {
                    return Some(turn.right.clone());
                }
                let packed = pack(&turn.right.body);
                Some(turn.right.clone().with("content-encoding", coding).holding(packed))
            }),
        );
    }
    for status in [
        "301 Moved Permanently",
        "302 Found",
        "303 See Other",
        "307 Temporary Redirect",
        "308 Permanent Redirect",
    ] {
        for every in [true, false] {
            let what = if every { "manifests" } else { "manifests by digest" };
            add(
                format!("{what} by {status} on the same host"),
                Arc::new(move |turn| {
                    let moved = turn.path().starts_with("/v2/") && turn.is_found() && turn.is_read();
                    let moved =
                        moved && turn.target != Target::Other && (every || turn.target == Target::Digest);
                    if moved && !turn.request.line.contains("moved=1") {
                        let location = format!("{}?moved=1", turn.path().split('?').next().unwrap());
                        return Some(Said::status(status).with("location", &location));
                    }
                    Some(turn.right.clone())
                }),
            );
        }
    }
    for absent in ABSENT.into_iter().chain(["200 page", "200 JSON", "302 Found"]) {
        add(
            format!("no referrers API: {absent}"),
            Arc::new(move |turn| {
                Some(if turn.target == Target::Api { no(absent) } else { turn.right.clone() })
            }),
        );
    }
    for status in ["401 Unauthorized", "501 Not Implemented"] {
        add(
            format!("no referrers API: {status}"),
            Arc::new(move |turn| {
                Some(if turn.target == Target::Api { Said::status(status) } else { turn.right.clone() })
            }),
        );
    }
    forms
}

/// An answer that says no.
fn no(status: &str) -> Said {
    match status {
        "200 page" => Said::typed("text/html", PAGE),
        "200 JSON" => Said::typed("application/json", r#"{"message":"log in"}"#),
        "302 Found" => Said::status("302 Found").with("location", "/login"),
        status => Said::status(status),
    }
}

#[tokio::test]
async fn whatever_form_right_answers_have_all_that_refers_to_an_image_is_listed() {
    for (name, odd) in odd_forms() {
        let scene =
            scene(odd, &[("REFERRERS_UPSTREAM_TTL", "0s"), ("REFERENCES_ACCESS_TTL", "0s")], |it| it).await;
        let client = scene.refshim.client();
        for round in ["cold", "warm"] {
            for (way, is_pushed_alone) in WAYS {
                let answer = client.get(&scene.path(way)).await;
                let context = format!("{name}, {way}, {round}");
                assert_eq!(listed(&answer, &context), scene.expected(is_pushed_alone), "{context}");
            }
        }
    }
}

/// Without the list the tag is one that does not exist; what is pushed is listed all the same.
#[tokio::test]
async fn however_a_registry_says_that_there_is_no_referrers_tag_the_rest_is_listed() {
    for absent in ABSENT.into_iter().chain(["200 page", "200 JSON", "302 Found"]) {
        let odd: Odd = Arc::new(move |turn| {
            Some(if turn.target == Target::ReferrersTag { no(absent) } else { turn.right.clone() })
        });
        let scene = scene(odd, &[("REFERRERS_UPSTREAM_TTL", "0s")], |it| it).await;
        let client = scene.refshim.client();
        for (way, _) in WAYS {
            for round in ["cold", "warm"] {
                let answer = client.get(&scene.path(way)).await;
                let context = format!("{absent}, {way}, {round}");
                assert_eq!(listed(&answer, &context), scene.expected(true), "{context}");
            }
        }
    }
}

/// Every way to tell somebody nothing.
fn denials() -> Vec<(String, Odd)> {
    let mut denials: Vec<(String, Odd)> = Vec::new();
    for status in [
        "401 Unauthorized",
        "403 Forbidden",
        "404 Not Found",
        "400 Bad Request",
        "204 No Content",
        "206 Partial Content",
        "304 Not Modified",
        "410 Gone",
        "429 Too Many Requests",
        "500 Internal Server Error",
        "503 Service Unavailable",
        "200 OK",
        "200 page",
        "200 JSON",
        "302 Found",
    ] {
        denials.push((status.to_owned(), Arc::new(move |_| Some(no(status)))));
    }
    denials.push((
        "302 to a page with 200".to_owned(),
        Arc::new(|turn| {
            Some(if turn.path() == "/login" { Said::typed("text/html", PAGE) } else { no("302 Found") })
        }),
    ));
    denials.push((
        "200 to HEAD alone".to_owned(),
        Arc::new(|turn| Some(if turn.is_head() { Said::status("200 OK") } else { no("401 Unauthorized") })),
    ));
    denials
        .push(("a manifest type and a page".to_owned(), Arc::new(|_| Some(Said::typed(IMAGE_INDEX, PAGE)))));
    denials.push((
        "an empty index for everything".to_owned(),
        Arc::new(|_| Some(Said::typed(IMAGE_INDEX, r#"{"schemaVersion":2,"manifests":[]}"#))),
    ));
    denials.push(("hung up on".to_owned(), Arc::new(|_| None)));
    denials
}

/// Whoever knows what everybody is given can ask for its digest, or for any tag.
#[tokio::test]
async fn a_page_that_everybody_is_given_opens_nothing_by_its_own_digest() {
    let bodies = [
        ("text/html", PAGE),
        ("application/json", r#"{"message":"log in"}"#),
        (IMAGE_INDEX, r#"{"schemaVersion":2,"manifests":[]}"#),
        (
            IMAGE_INDEX,
            r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#,
        ),
        ("application/octet-stream", ""),
    ];
    for (content_type, body) in bodies {
        for with_digest in [false, true] {
            let digest = digest_of(body.as_bytes());
            let own = digest.clone();
            let odd: Odd = Arc::new(move |turn| {
                let page = Said::typed(content_type, body);
                let page = if with_digest { page.with("docker-content-digest", &own) } else { page };
                Some(if is_alice(turn) { turn.right.clone() } else { page })
            });
            let scene = scene(odd, &[], |put| put.basic_auth("alice", Some("a"))).await;
            let stranger = scene.refshim.client();
            for opening in [
                format!("/v2/a/referrers/{digest}"),
                format!("/v2/a/manifests/{digest}/references?inline=true"),
                "/v2/a/manifests/any/references".to_owned(),
                format!("/v2/a/manifests/{digest}/references?scope=registry"),
            ] {
                let context = format!("{content_type}, {body}, {opening}");
                scene.tells_nothing(&stranger.get(&opening).await, &context);
                for (way, _) in WAYS {
                    scene.tells_nothing(&stranger.get(&scene.path(way)).await, &format!("{context}, {way}"));
                }
            }
        }
    }
}

/// A mirror of several registries has a repository of the same name in each.
#[tokio::test]
async fn what_is_known_of_one_namespace_of_a_mirror_is_not_told_of_another() {
    for configured in [None, Some("docker.io,quay.io")] {
        let odd: Odd = Arc::new(|turn| {
            // Of the other namespace everybody may read the image, and nothing else is there.
            let is_theirs =
                turn.path().contains("ns=quay.io") && matches!(turn.target, Target::Tag | Target::Digest);
            let is_image = turn.is_found() && !String::from_utf8_lossy(&turn.right.body).contains("subject");
            let is_ours = is_alice(turn) && !turn.path().contains("quay.io");
            let is_shown = is_ours || (is_theirs && is_image) || !turn.is_read();
            Some(if is_shown { turn.right.clone() } else { no("404 Not Found") })
        });
        let settings: Vec<(&'static str, &str)> =
            configured.map(|namespaces| ("UPSTREAMS_DEFAULT_NAMESPACES", namespaces)).into_iter().collect();
        let scene = scene(odd, &settings, |put| put.basic_auth("alice", Some("a"))).await;
        let (alice, mallory) = (scene.refshim.client().as_user("alice", "a"), scene.refshim.client());
        for round in ["cold", "warm"] {
            for (way, is_pushed_alone) in WAYS {
                let theirs = mallory.get(&with_query(&scene.path(way), "ns=quay.io")).await;
                scene.tells_nothing(&theirs, &format!("{way}, {round}"));
                for namespace in ["", "ns=docker.io"] {
                    let ours = alice.get(&with_query(&scene.path(way), namespace)).await;
                    let context = format!("{way}, {namespace}, {round}");
                    assert_eq!(listed(&ours, &context), scene.expected(is_pushed_alone), "{context}");
                }
            }
            // A pull teaches what is to be asked for, by whom it is listed.
            for namespace in ["docker.io", "quay.io"] {
                alice.get(&format!("/v2/a/manifests/{}?ns={namespace}", scene.listed.digest)).await;
            }
        }
    }
}

/// A front that redirects to whatever name it is asked by.
#[tokio::test]
async fn a_client_does_not_choose_who_speaks_for_the_registry() {
    let theirs = Shelf::default();
    let evil = shelf_registry(&theirs, |turn| Some(turn.right.clone()));
    let odd: Odd = Arc::new(|turn| {
        let there = format!("http://{}{}", field(turn, "x-forwarded-host"), turn.path());
        let moved = Said::status("308 Permanent Redirect").with("location", &there);
        Some(if is_alice(turn) { turn.right.clone() } else { moved })
    });
    let scene = scene(odd, &[], |put| put.basic_auth("alice", Some("a"))).await;
    let planted = signature(&scene.image, &scene.image, "application/x+y", "planted");
    put(&theirs, "a", &["any", "latest"], &planted);
    put(&theirs, "a", &[], &scene.image);
    let client = scene.refshim.client();
    let host = evil.address.to_string();
    let ask = async |path: &str| client.send(client.request(Method::GET, path).header("host", &host)).await;
    for round in ["cold", "warm"] {
        for opening in [
            "/v2/a/manifests/any/references",
            "/v2/a/manifests/any",
            &format!("/v2/a/referrers/{}", planted.digest),
        ] {
            scene.tells_nothing(&ask(opening).await, opening);
            for (way, _) in WAYS {
                scene.tells_nothing(&ask(&scene.path(way)).await, &format!("{opening}, {way}, {round}"));
            }
        }
    }
    assert_eq!(evil.requests().len(), 0);
    let alice = client.as_user("alice", "a");
    for (way, is_pushed_alone) in WAYS {
        assert_eq!(listed(&alice.get(&scene.path(way)).await, way), scene.expected(is_pushed_alone), "{way}");
    }
}

fn is_alice(turn: &Turn<'_>) -> bool {
    turn.request.header("authorization").is_some()
}

#[tokio::test]
async fn however_a_registry_refuses_a_stranger_learns_nothing() {
    for (name, denial) in denials() {
        let odd: Odd =
            Arc::new(move |turn| if is_alice(turn) { Some(turn.right.clone()) } else { denial(turn) });
        let scene = scene(odd, &[], |put| put.basic_auth("alice", Some("a"))).await;
        let (alice, stranger) = (scene.refshim.client().as_user("alice", "a"), scene.refshim.client());
        for round in ["cold", "warm"] {
            for (way, is_pushed_alone) in WAYS {
                let context = format!("{name}, {way}, {round}");
                scene.tells_nothing(&stranger.get(&scene.path(way)).await, &context);
                if round == "warm" {
                    let answer = alice.get(&scene.path(way)).await;
                    assert_eq!(listed(&answer, &context), scene.expected(is_pushed_alone), "{context}");
                    scene.tells_nothing(&stranger.get(&scene.path(way)).await, &context);
                }
            }
        }
    }
}

/// What a registry, or what stands in front of it, may tell callers apart by.
struct Mark {
    name: &'static str,
    /// Puts it on a request.
    put: fn(RequestBuilder) -> RequestBuilder,
    /// Whether it is on a request as the registry gets it.
    has: fn(&Turn<'_>) -> bool,
    /// Behind the path of the request.
    query: &'static str,
}

fn field<'a>(turn: &'a Turn<'_>, name: &str) -> &'a str {
    turn.request.header(name).unwrap_or_default()
}

const MARKS: [Mark; 8] = [
    Mark {
        name: "Authorization",
        put: |it| it.basic_auth("alice", Some("a")),
        has: |turn| turn.request.header("authorization").is_some(),
        query: "",
    },
    Mark {
        name: "the client's address",
        put: |it| it.header("x-forwarded-for", "192.0.2.1"),
        has: |turn| field(turn, "x-forwarded-for").starts_with("192.0.2.1,"),
        query: "",
    },
    Mark {
        name: "the scheme",
        put: |it| it.header("x-forwarded-proto", "https"),
        has: |turn| field(turn, "x-forwarded-proto") == "https",
        query: "",
    },
    Mark {
        name: "the host",
        put: |it| it.header("x-forwarded-host", "inner.example"),
        has: |turn| field(turn, "x-forwarded-host") == "inner.example",
        query: "",
    },
    Mark {
        name: "ns",
        put: |it| it,
        has: |turn| turn.path().contains("ns=docker.io"),
        query: "ns=docker.io",
    },
    Mark {
        name: "a cookie",
        put: |it| it.header("cookie", "a=1").header("cookie", "sid=alice"),
        has: |turn| {
            let cookies: Vec<_> = turn.request.headers.iter().filter(|(name, _)| name == "cookie").collect();
            cookies.len() == 1 && cookies[0].1 == "a=1; sid=alice"
        },
        query: "",
    },
    Mark {
        name: "a field of its own",
        put: |it| it.header("x-api-key", "alice"),
        has: |turn| field(turn, "x-api-key") == "alice",
        query: "",
    },
    Mark {
        name: "a token in another field",
        put: |it| it.header("private-token", "alice"),
        has: |turn| field(turn, "private-token") == "alice",
        query: "",
    },
];

/// `path` with further fields in its query.
fn with_query(path: &str, query: &str) -> String {
    match (query, path.contains('?')) {
        ("", _) => path.to_owned(),
        (query, true) => format!("{path}&{query}"),
        (query, false) => format!("{path}?{query}"),
    }
}

#[tokio::test]
async fn whatever_a_registry_tells_callers_apart_by_what_it_denies_is_denied_and_what_it_allows_is_listed() {
    for mark in MARKS {
        for denial in ["401 Unauthorized", "403 Forbidden", "404 Not Found", "200 page", "302 Found"] {
            let has = mark.has;
            // A push is taken from anybody: who reads is what counts.
            let odd: Odd = Arc::new(move |turn| {
                Some(if has(turn) || !turn.is_read() { turn.right.clone() } else { no(denial) })
            });
            let scene = scene(odd, &[("TRUSTED_PROXIES", "127.0.0.1")], |it| it).await;
            let fronts = [scene.refshim.client(), Client::http2(scene.refshim.address)];
            for (front, client) in fronts.iter().enumerate() {
                for (way, is_pushed_alone) in WAYS {
                    let context = format!("{}, {denial}, {way}, front {front}", mark.name);
                    let path = scene.path(way);
                    let denied = async |when: &str| {
                        let answer = client.get(&path).await;
                        scene.tells_nothing(&answer, &format!("{context}, {when}"));
                    };
                    denied("cold").await;
                    let allowed = client.request(Method::GET, &with_query(&path, mark.query));
                    let answer = client.send((mark.put)(allowed)).await;
                    assert_eq!(listed(&answer, &context), scene.expected(is_pushed_alone), "{context}");
                    denied("warm").await;
                }
            }
        }
    }
}

/// What a mirror needs of the first request it needs of the next.
#[tokio::test]
async fn every_page_asks_with_the_ns_of_the_first() {
    let odd: Odd = Arc::new(|turn| {
        let is_named = turn.path().contains("ns=docker.io") || !turn.is_read();
        Some(if is_named { turn.right.clone() } else { no("404 Not Found") })
    });
    let scene = scene(odd, &[("REFERENCES_ACCESS_TTL", "0s")], |it| it).await;
    let client = scene.refshim.client();
    for query in ["n=1&ns=docker.io", "ns=docker.io&n=1&scope=registry"] {
        let mut next = Some(scene.path(&format!("/v2/a/manifests/{{digest}}/references?{query}")));
        let mut found = Vec::new();
        while let Some(path) = next {
            let page = client.get(&path).await;
            found.extend(listed(&page, &path));
            let link = page.headers.get("link").map(|link| link.to_str().unwrap().to_owned());
            next = link.map(|link| link.split_once('<').unwrap().1.split_once('>').unwrap().0.to_owned());
        }
        assert_eq!(found, scene.expected(false), "{query}");
    }
}

/// The challenge of a query is that of a pull: its realm is built from what the client asked for.
#[tokio::test]
async fn a_querys_challenge_is_the_one_that_a_pull_gets() {
    let odd: Odd = Arc::new(|turn| {
        let (proto, host) = (field(turn, "x-forwarded-proto"), field(turn, "x-forwarded-host"));
        let challenge = format!(r#"Bearer realm="{proto}://{host}/token",service="x""#);
        let refused = Said::status("401 Unauthorized").with("www-authenticate", &challenge);
        Some(if turn.is_read() { refused } else { turn.right.clone() })
    });
    let scene = scene(odd, &[("TRUSTED_PROXIES", "127.0.0.1")], |it| it).await;
    let client = scene.refshim.client();
    let ask = async |path: &str| {
        let request = client.request(Method::GET, path);
        let request = request.header("x-forwarded-proto", "https").header("x-forwarded-host", "hub.example");
        let answer = client.send(request).await;
        (answer.status, answer.header("www-authenticate").to_owned())
    };
    let pull = ask("/v2/a/manifests/latest").await;
    assert!(pull.1.contains("https://hub.example/token"), "{pull:?}");
    for (way, _) in WAYS {
        assert_eq!(ask(&scene.path(way)).await, pull, "{way}");
    }
}

/// Another host gets nothing of the request's own fields.
#[tokio::test]
async fn manifests_that_another_host_serves_are_found_and_it_learns_no_credentials() {
    let storage_shelf = Shelf::default();
    let seen = Arc::new(Mutex::new(Vec::<String>::new()));
    let names = Arc::clone(&seen);
    let storage = shelf_registry(&storage_shelf, move |turn| {
        names.lock().unwrap().extend(turn.request.headers.iter().map(|(name, _)| name.clone()));
        let plain = turn.right.clone().without("docker-content-digest").without("content-type");
        Some(plain.with("content-type", "application/octet-stream"))
    });
    let to = storage.address;
    let odd: Odd = Arc::new(move |turn| {
        let moved = turn.is_read() && turn.is_found() && turn.target != Target::Other;
        let there = format!("http://{to}{}", turn.path());
        Some(if moved {
            Said::status("307 Temporary Redirect").with("location", &there)
        } else {
            turn.right.clone()
        })
    });
    let scene = scene(odd, &[("REFERRERS_UPSTREAM_TTL", "0s")], |it| it).await;
    put(&storage_shelf, "a", &["latest"], &scene.image);
    put(&storage_shelf, "a", &[], &scene.pushed);
    put(&storage_shelf, "a", &[], &scene.listed);
    let list = Content::new(
        IMAGE_INDEX,
        &json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [scene.listed.descriptor()]}),
    );
    put(&storage_shelf, "a", &[&referrers_tag(&scene.image)], &list);
    let client = scene.refshim.client().as_user("alice", "a");
    for (way, is_pushed_alone) in WAYS {
        let request =
            client.request(Method::GET, &scene.path(way)).header("cookie", "sid=1").header("x-api-key", "k");
        let answer = client.send(request).await;
        assert_eq!(listed(&answer, way), scene.expected(is_pushed_alone), "{way}");
    }
    let seen = seen.lock().unwrap();
    assert!(seen.contains(&"accept".to_owned()));
    for secret in ["authorization", "cookie", "x-api-key", "x-forwarded-for"] {
        assert!(!seen.contains(&secret.to_owned()), "{secret} went to another host");
    }
    drop(storage);
}

/// A pull by redirect is learnt from, although the manifest never passes.
#[tokio::test]
async fn a_manifest_that_is_pulled_in_an_odd_form_is_learnt() {
    for (name, odd) in odd_forms() {
        let shelf = Shelf::default();
        let image = Content::image("{}", "x");
        let pulled = about(&image, &image, "pulled");
        put(&shelf, "a", &["latest"], &image);
        put(&shelf, "a", &["signature"], &pulled);
        let upstream = shelf_registry(&shelf, move |turn| odd(turn));
        for reference in ["signature", &pulled.digest] {
            let directory = tempfile::tempdir().unwrap();
            let refshim = Refshim::start(upstream.address, directory.path()).await;
            let client = refshim.client();
            client.get(&format!("/v2/a/manifests/{reference}")).await;
            let admin = Client::new(refshim.admin);
            while !admin.text("/metrics").await.contains("refshim_index_referrers 1") {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            let found = client.referrers("a", &image.digest, "").await;
            assert_eq!(found, [pulled.digest.clone()], "{name}, {reference}");
        }
    }
}

/// A Link field from a path to a page of it.
type LinkTo = fn(&str, &str) -> String;

/// Pages of the registry's own list, in every form that RFC 8288 gives to the link between them.
#[tokio::test]
async fn every_page_of_a_registrys_own_list_is_read_once_however_it_is_linked() {
    let forms: [(&str, LinkTo); 10] = [
        ("an absolute path", |path, page| format!(r#"<{path}?page={page}>; rel="next""#)),
        ("a query alone", |_, page| format!(r#"<?page={page}>; rel="next""#)),
        ("a relative path", |path, page| {
            format!(r#"<./{}?page={page}>; rel="next""#, path.rsplit('/').next().unwrap())
        }),
        ("another host", |path, page| format!(r#"<https://hub.example{path}?page={page}>; rel="next""#)),
        ("not quoted", |path, page| format!("<{path}?page={page}>; rel=next")),
        ("two in one field", |path, page| {
            format!(r#"<{path}?page=1>; rel="first", <{path}?page={page}>; rel="next""#)
        }),
        ("the other way round", |path, page| {
            format!(r#"<{path}?page={page}>; rel="next", <{path}?page=1>; rel="first""#)
        }),
        ("several relations", |path, page| format!(r#"<{path}?page={page}>; title="a, b"; rel="last NEXT""#)),
        ("a comma within", |path, page| format!(r#"<{path}?page={page}&x=a,b>; rel="next""#)),
        ("spaces", |path, page| format!(r#"  < {path}?page={page} > ;rel = "next""#)),
    ];
    for (name, link) in forms {
        for leads_back in [false, true] {
            let own: Arc<Mutex<Vec<Value>>> = Arc::default();
            let pages = Arc::clone(&own);
            let odd: Odd = Arc::new(move |turn| {
                if turn.target != Target::Api {
                    return Some(turn.right.clone());
                }
                let path = turn.path().split('?').next().unwrap();
                let page: usize = turn
                    .path()
                    .split_once("page=")
                    .map_or(1, |(_, rest)| rest.split('&').next().unwrap().parse().unwrap());
                let entries = pages.lock().unwrap();
                let index = json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [entries.get(page - 1)]});
                let said = Said::typed(IMAGE_INDEX, index.to_string());
                let next = match (page < entries.len(), leads_back) {
                    (true, _) => page + 1,
                    (false, true) => page,
                    (false, false) => return Some(said),
                };
                Some(said.with("link", &link(path, &next.to_string())))
            });
            let scene = scene(odd, &[("REFERRERS_UPSTREAM_TTL", "0s")], |it| it).await;
            let more: Vec<Content> = (0..3)
                .map(|n| signature(&scene.image, &scene.image, "application/x+y", &n.to_string()))
                .collect();
            *own.lock().unwrap() = more
                .iter()
                .map(|content| {
                    let mut entry = content.descriptor();
                    entry["artifactType"] = json!("application/x+y");
                    entry
                })
                .collect();
            let mut expected = vec![scene.pushed.digest.clone()];
            expected.extend(more.iter().map(|content| content.digest.clone()));
            expected.push(scene.listed.digest.clone());
            let context = format!("{name}, leads back: {leads_back}");
            let before = scene.upstream.requests().len();
            for _ in 0..2 {
                let path = format!("/v2/a/referrers/{}", scene.image.digest);
                let answer = scene.refshim.client().get(&path).await;
                assert_eq!(listed(&answer, &context), expected, "{context}");
            }
            let asked = scene.upstream.requests()[before..]
                .iter()
                .filter(|it| it.line.contains("/referrers/"))
                .count();
            assert!(asked <= 8, "{context}: {asked} questions");
        }
    }
}
