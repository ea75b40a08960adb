//! A path has one reading: what a request is recorded as, which upstream it goes to and where that upstream gets
//! it, however it is spelled; and who is believed about where a request comes from and whom it is for.

use std::process::Command;

use percent_encoding::percent_decode_str;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Client, Content, Face, Refshim, Request, Scripted, about};

/// Takes everything.
fn taking() -> Scripted {
    Scripted::start(|exchange| {
        exchange.read_body();
        exchange.answer_status("201 Created");
    })
}

/// Ways to spell one path, sound and unsound.
fn spellings(path: &str) -> Vec<String> {
    let mut all = vec![path.to_owned()];
    let bytes = path.as_bytes();
    let with = |at: usize, text: &str| format!("{}{text}{}", &path[..at], &path[at + 1..]);
    for at in (1..path.len().min(24)).filter(|at| bytes[*at].is_ascii()) {
        let code = bytes[at];
        all.push(with(at, &format!("%{code:02x}")));
        all.push(with(at, &format!("%{code:02X}")));
        all.push(with(at, &format!("%25{code:02x}")));
    }
    for (at, _) in path.match_indices('/') {
        let put = [
            "//", "/./", "/../", "/%2e/", "/%2e%2E/", "/x/../", "/%2f", ";x/", "/;x/", "%2F%2f", "/%00/",
            "/%zz/",
        ];
        all.extend(put.map(|text| with(at, text)));
    }
    let every: Vec<String> = path[1..].bytes().map(|byte| format!("%{byte:02x}")).collect();
    all.push(format!("/{}", every.concat()));
    all.retain(|path| path.starts_with('/'));
    all
}

/// What clients asked an upstream; refshim itself asks it now and then whether it is there.
fn asked(upstream: &Scripted) -> Vec<Request> {
    let mut requests = upstream.requests();
    requests.retain(|request| !request.line.ends_with("/v2/ HTTP/1.1"));
    requests
}

fn decoded(path: &str) -> String {
    percent_decode_str(path).decode_utf8_lossy().into_owned()
}

/// How many links were recorded of each of these upstreams.
async fn recorded(refshim: &Refshim, names: &[&str]) -> Vec<u64> {
    let metrics = Client::new(refshim.admin).text("/metrics").await;
    let count = |name: &&str| {
        let label =
            format!("refshim_links_total{{upstream=\"{name}\",kind=\"reference\",outcome=\"recorded\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&label)).map_or(0, |count| count.parse().unwrap())
    };
    names.iter().map(count).collect()
}

#[tokio::test]
async fn a_manifest_is_recorded_as_what_it_is_sent_as() {
    let names = ["default", "hub", "team"];
    let upstreams = names.map(|_| taking());
    let directory = tempfile::tempdir().unwrap();
    let url = |place: usize, base: &str| format!("http://{}{base}", upstreams[place].address);
    let refshim = Refshim::in_front_of(&url(0, "/base/path"), directory.path())
        .with("UPSTREAMS_HUB_URL", &url(1, "/hub/base"))
        .with("UPSTREAMS_HUB_PREFIXES", "hub")
        .with("UPSTREAMS_HUB_STRIP_PREFIX", "true")
        .with("UPSTREAMS_TEAM_URL", &url(2, ""))
        .with("UPSTREAMS_TEAM_PREFIXES", "team")
        .launch()
        .await;
    let bases = ["/base/path", "/hub/base", ""];
    let image = Content::image("config", "layer");
    let paths = [
        "/v2/app/manifests/",
        "/v2/hub/app/manifests/",
        "/v2/team/app/manifests/",
        "/.refshim/hub/v2/a/manifests/",
    ];
    let all = paths.iter().flat_map(|path| spellings(path));
    let mut was_recorded = 0;
    for (number, path) in all.enumerate() {
        let manifest = about(&image, &image, &number.to_string());
        let target = format!("{path}{}", manifest.digest);
        let before = recorded(&refshim, &names).await;
        let counts = upstreams.each_ref().map(|upstream| asked(upstream).len());
        let version = if number % 2 == 0 { "--http1.1" } else { "--http2-prior-knowledge" };
        let file = directory.path().join("manifest");
        std::fs::write(&file, &manifest.bytes).unwrap();
        let mut curl = Command::new("curl");
        curl.args(["-sS", version, "-X", "PUT", "--data-binary", &format!("@{}", file.display())]);
        curl.args(["-H", &format!("content-type: {}", manifest.media_type), "--request-target", &target]);
        let done = curl.arg(format!("http://{}/", refshim.address)).output().unwrap();
        assert!(done.status.success(), "{target}: {done:?}");

        let got: Vec<usize> =
            (0..3).filter(|place| asked(&upstreams[*place]).len() > counts[*place]).collect();
        let [place] = got[..] else { panic!("{target} went to {got:?}") };
        let line = asked(&upstreams[place]).last().unwrap().line.clone();
        let sent = line.split(' ').nth(1).unwrap();
        let read = decoded(&target);
        let leads_elsewhere = read.split('/').any(|segment| [".", ".."].contains(&segment));
        let expected = match &*read {
            path if path.starts_with("/.refshim/hub/") => 1,
            path if path.starts_with("/v2/hub/") && !leads_elsewhere => 1,
            path if path.starts_with("/v2/team/") && !leads_elsewhere => 2,
            _ => 0,
        };
        assert_eq!(place, expected, "{target} was sent as {sent}");

        let after = recorded(&refshim, &names).await;
        let of: Vec<usize> = (0..3).filter(|place| after[*place] > before[*place]).collect();
        if of.is_empty() {
            continue;
        }
        was_recorded += 1;
        assert_eq!(of, [place], "{target} was sent as {sent}");
        let log: Value =
            serde_json::from_str(&refshim.logs(&format!("\"digest\":\"{}\"", manifest.digest), 1).await)
                .unwrap();
        let repository = log["repository"].as_str().unwrap();
        let expected = format!("{}/v2/{repository}/manifests/{}", bases[place], manifest.digest);
        assert_eq!(decoded(sent), expected, "{target} was sent as {sent}");
    }
    assert!(was_recorded > 100, "only {was_recorded} were recorded");
}

#[tokio::test]
async fn a_host_chooses_its_upstream_whatever_name_clients_are_told() {
    let upstreams = [taking(), taking()];
    for (face, external) in
        Face::ALL.into_iter().flat_map(|face| [(face, None), (face, Some("https://outside.example"))])
    {
        if matches!(face, Face::Http2Upstream) {
            // The second refshim would be chosen by the first one's name for it.
            continue;
        }
        let hub = format!("http://{}", upstreams[1].address);
        let mut settings = vec![("UPSTREAMS_HUB_URL", &*hub), ("UPSTREAMS_HUB_HOSTS", "hub.example.com")];
        settings.extend(external.map(|url| ("EXTERNAL_URL", url)));
        settings.push(("TRUSTED_PROXIES", "127.0.0.1"));
        let scene = face.before(upstreams[0].address, &settings).await;
        let client = scene.client.as_user("alice", "secret");
        for (name, value, place) in [
            ("x-forwarded-host", "hub.example.com", 1),
            ("x-forwarded-host", "HUB.example.com:443, inner", 1),
            ("x-forwarded-host", "outside.example", 0),
            ("x-other", "", 0),
        ] {
            let counts = upstreams.each_ref().map(|upstream| asked(upstream).len());
            let request = client.request(Method::GET, "/v2/a/tags/list").header(name, value);
            assert_eq!(client.send(request).await.status, StatusCode::CREATED);
            let got = upstreams.each_ref().map(|upstream| asked(upstream).len());
            let expected: Vec<usize> = (0..2).map(|at| counts[at] + usize::from(at == place)).collect();
            assert_eq!(got[..], expected[..], "{face:?} {external:?} {name}: {value}");
            let told = asked(&upstreams[place]).last().unwrap().header("x-forwarded-host").map(str::to_owned);
            if external.is_some() {
                assert_eq!(told.as_deref(), Some("outside.example"), "{face:?} {value}");
            }
        }
    }
}

#[tokio::test]
async fn an_upstream_that_is_chosen_by_host_alone_is_not_reached_by_a_mark() {
    let upstreams = [taking(), taking()];
    let hub = format!("http://{}", upstreams[1].address);
    let settings = [("UPSTREAMS_HUB_URL", &*hub), ("UPSTREAMS_HUB_HOSTS", "hub.example.com")];
    for face in [Face::Http1, Face::Http2, Face::TlsHttp1, Face::TlsHttp2] {
        let scene = face.before(upstreams[0].address, &settings).await;
        for path in ["/.refshim/hub/v2/a", "/%2Erefshim/hub/v2/a", "/.refshim%2fhub%2fv2/a"] {
            scene.client.get(path).await;
            let line = asked(&upstreams[0]).last().unwrap().line.clone();
            assert_eq!(line, format!("GET {path} HTTP/1.1"), "{face:?}");
        }
    }
    assert!(asked(&upstreams[1]).is_empty());
}

/// What a client may say of itself to a proxy, and no registry is to believe.
const SAID: [&str; 14] = [
    "x-real-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "fastly-client-ip",
    "x-original-forwarded-for",
    "x-original-url",
    "x-rewrite-url",
    "x-forwarded",
    "x-forwarded-user",
    "client-ip",
    "x-azure-clientip",
    "x-envoy-external-address",
];

#[tokio::test]
async fn a_client_is_not_believed_about_itself_and_a_trusted_proxy_is() {
    let upstream = taking();
    for face in Face::ALL {
        for is_trusted in [false, true] {
            let settings = [("TRUSTED_PROXIES", "127.0.0.1")];
            let settings = if is_trusted { &settings[..] } else { &[] };
            // The second refshim of this face trusts nobody.
            let passes = is_trusted && face != Face::Http2Upstream;
            let scene = face.before(upstream.address, settings).await;
            for path in ["/v2/a/blobs/x", "/v2/a/manifests/latest"] {
                let mut request =
                    scene.client.request(Method::GET, path).header("proxy-authorization", "Basic eA==");
                for name in SAID {
                    request = request.header(name, "10.0.0.1");
                }
                scene.client.send(request.header("x-own", "1")).await;
                let got = asked(&upstream).last().unwrap().clone();
                for name in SAID {
                    assert_eq!(got.header(name), passes.then_some("10.0.0.1"), "{face:?} {path} {name}");
                }
                assert_eq!(got.header("proxy-authorization"), None, "{face:?} {path}");
                assert_eq!(got.header("x-own"), Some("1"), "{face:?} {path}");
            }
        }
    }
}

#[tokio::test]
async fn options_on_a_query_are_answered_by_the_registry() {
    let upstream = Scripted::answering(
        "HTTP/1.1 204 No Content\r\nallow: GET, HEAD\r\naccess-control-allow-origin: https://ui\r\nconnection: close\r\n\r\n",
    );
    let digest = json!(Content::image("c", "l").digest).as_str().unwrap().to_owned();
    for face in Face::ALL {
        let scene = face.before(upstream.address, &[]).await;
        for path in [format!("/v2/a/referrers/{digest}"), "/v2/a/manifests/latest/references".to_owned()] {
            let request = scene.client.request(Method::OPTIONS, &path).header("origin", "https://ui");
            let answer = scene.client.send(request.header("access-control-request-method", "GET")).await;
            assert_eq!(answer.status, StatusCode::NO_CONTENT, "{face:?} {path}");
            assert_eq!(answer.header("access-control-allow-origin"), "https://ui", "{face:?} {path}");
            assert_eq!(asked(&upstream).last().unwrap().line, format!("OPTIONS {path} HTTP/1.1"), "{face:?}");
        }
    }
}
