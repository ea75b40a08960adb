//! TLS on both sides: which certificate is shown to whom, who is let in, whom refshim believes, and
//! certificates that change while it runs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::{Method, StatusCode};
use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{
    Authority, Client, Http, Identity, Refshim, Registry, Scripted, TlsClient, TlsConnection,
};

const NOTHING: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
const RELOADED: &str = "TLS files changed, new connections use them";
const VERSIONS: [&[&SupportedProtocolVersion]; 2] = [&[&TLS12], &[&TLS13]];
const REFUSED: &str = "TLS files changed but cannot be loaded";

/// A refshim with TLS, and the authority that vouches for it.
struct Scene {
    refshim: Refshim,
    authority: Authority,
    identity: Identity,
    _upstream: Scripted,
    _directory: tempfile::TempDir,
}

async fn scene(settings: &[(&'static str, &str)]) -> Scene {
    let authority = Authority::new();
    let identity = authority.server("refshim", &["127.0.0.1"]);
    let upstream = Scripted::answering(NOTHING);
    let directory = tempfile::tempdir().unwrap();
    let start = Refshim::prepare(upstream.address, directory.path()).with_tls(&identity);
    let refshim = settings.iter().fold(start, |start, (name, value)| start.with(name, value)).launch().await;
    Scene { refshim, authority, identity, _upstream: upstream, _directory: directory }
}

impl Scene {
    /// The certificate and key that the running refshim has, replaced by others.
    fn renew(&self) -> Identity {
        self.authority.server("refshim", &["127.0.0.1"])
    }

    async fn connect(&self) -> TlsConnection {
        TlsClient::trusting(&self.authority).connect(self.refshim.address, "127.0.0.1").await.unwrap()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn the_server_name_chooses_its_certificate_and_the_first_one_serves_all_others() {
    let authority = Authority::new();
    let first = authority.server("first", &["first.example", "127.0.0.1"]);
    let second = authority.server("second", &["second.example", "*.wild.example"]);
    let third = authority.server("third", &["first.example", "third.example"]);
    let upstream = Scripted::answering(NOTHING);
    let directory = tempfile::tempdir().unwrap();
    let certificates = [&first, &second, &third].map(|identity| text(&identity.certificate)).join(",");
    let keys = [&first, &second, &third].map(|identity| text(&identity.key)).join(",");
    let refshim = Refshim::prepare(upstream.address, directory.path())
        .with("TLS_CERTIFICATE", &certificates)
        .with("TLS_KEY", &keys)
        .launch()
        .await;
    for versions in VERSIONS {
        let client = TlsClient::trusting(&authority).speaking(versions);
        for (host, expected) in [
            ("first.example", &first),
            ("127.0.0.1", &first),
            ("second.example", &second),
            ("SECOND.example", &second),
            ("any.wild.example", &second),
            ("third.example", &third),
        ] {
            let mut connection = client.connect(refshim.address, host).await.unwrap();
            assert_eq!(connection.shown(), expected.der(), "{host}");
            assert_eq!(connection.get().await.unwrap().status, 200);
        }
        for host in ["unknown.example", "one.more.wild.example"] {
            let refused = client.connect(refshim.address, host).await.err().unwrap().to_string();
            assert!(refused.contains("first.example") && !refused.contains("third"), "{host}: {refused}");
        }
    }
}

#[tokio::test]
async fn a_client_certificate_is_asked_for_or_required_and_always_checked() {
    let (clients, others) = (Authority::new(), Authority::new());
    let known = clients.client("alice");
    let stranger = others.client("alice");
    let server = clients.server("server", &["127.0.0.1"]);
    for (auth, without) in [("required", false), ("optional", true)] {
        let ca = clients.certificate();
        let scene = scene(&[("TLS_CLIENT_CA", text(&ca)), ("TLS_CLIENT_AUTH", auth)]).await;
        for versions in VERSIONS {
            let client = TlsClient::trusting(&scene.authority).speaking(versions);
            for (shown, expected) in
                [(None, without), (Some(&known), true), (Some(&stranger), false), (Some(&server), false)]
            {
                let client = shown.map_or(client.clone(), |identity| client.clone().showing(identity));
                let answer = client.get(scene.refshim.address, "127.0.0.1").await;
                assert_eq!(answer.is_ok_and(|answer| answer.status == 200), expected, "{auth} {shown:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_new_certificate_is_shown_after_a_signal_and_open_connections_go_on() {
    let scene = scene(&[("TLS_RELOAD", "1h")]).await;
    let mut open = scene.connect().await;
    assert_eq!(open.get().await.unwrap().status, 200);
    let renewed = scene.renew();
    assert_eq!(scene.connect().await.shown(), open.shown(), "nobody told it yet");
    scene.refshim.hang_up();
    scene.refshim.logs(RELOADED, 1).await;
    let mut new = scene.connect().await;
    assert_eq!(new.shown(), renewed.der());
    assert_ne!(new.shown(), open.shown());
    for connection in [&mut open, &mut new] {
        assert_eq!(connection.get().await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn a_new_certificate_is_found_without_a_signal_and_a_client_authority_too() {
    let clients = Authority::new();
    let ca = clients.certificate();
    let scene = scene(&[("TLS_RELOAD", "100ms"), ("TLS_CLIENT_CA", text(&ca))]).await;
    let known = TlsClient::trusting(&scene.authority).showing(&clients.client("alice"));
    let renewed = scene.renew();
    let shown = async || known.connect(scene.refshim.address, "127.0.0.1").await.unwrap().shown();
    while shown().await != renewed.der() {
        scene.refshim.logs(RELOADED, 1).await;
    }

    let others = Authority::new();
    let before = scene.refshim.count(RELOADED);
    std::fs::copy(others.certificate(), &ca).unwrap();
    scene.refshim.logs(RELOADED, before + 1).await;
    let status = async |client: &TlsClient| {
        client.get(scene.refshim.address, "127.0.0.1").await.ok().map(|answer| answer.status)
    };
    assert_eq!(status(&known).await, None);
    assert_eq!(status(&known.clone().showing(&others.client("bob"))).await, Some(200));
}

#[tokio::test]
async fn files_that_do_not_fit_leave_the_old_certificate_in_use_and_the_log_says_why() {
    let scene = scene(&[("TLS_RELOAD", "1h")]).await;
    let Identity { certificate, key } = &scene.identity;
    let (first, another) = (scene.identity.der(), scene.authority.server("another", &["127.0.0.1"]));
    let whole = std::fs::read(certificate).unwrap();
    let mut refusals = 0;
    let mut refused = async |spoil: &dyn Fn(), file: &Path, why: &str| {
        spoil();
        scene.refshim.hang_up();
        refusals += 1;
        let line = scene.refshim.logs(REFUSED, refusals).await;
        assert!(line.contains("ERROR") && line.contains("towards clients"), "{line}");
        assert!(line.contains(text(file)) && line.contains(why), "no {why:?} in {line}");
        assert_eq!(scene.connect().await.shown(), first);
    };
    refused(&|| std::fs::write(certificate, "").unwrap(), certificate, "no certificate in it").await;
    refused(&|| std::fs::write(certificate, &whole[..whole.len() / 2]).unwrap(), certificate, "").await;
    let other_key = || {
        std::fs::write(certificate, &whole).unwrap();
        std::fs::copy(&another.key, key).unwrap();
    };
    refused(&other_key, key, "not that of the certificate").await;
    refused(&|| std::fs::remove_file(key).unwrap(), key, "No such file").await;

    let renewed = scene.renew();
    scene.refshim.hang_up();
    scene.refshim.logs(RELOADED, 1).await;
    assert_eq!(scene.connect().await.shown(), renewed.der());
}

#[tokio::test]
async fn a_handshake_that_stalls_holds_nobody_up_and_comes_to_an_end() {
    let scene = scene(&[("TIMEOUTS_CLIENT_HEADERS", "3s")]).await;
    let mut stalled = Vec::new();
    for begun in [&b""[..], b"\x16\x03\x01\x02\x00\x01", b"\x16"].repeat(20) {
        let mut stream = TcpStream::connect(scene.refshim.address).await.unwrap();
        stream.write_all(begun).await.unwrap();
        stalled.push(stream);
    }
    assert_eq!(scene.connect().await.get().await.unwrap().status, 200);
    for mut stream in stalled {
        let mut rest = Vec::new();
        // Closed, or reset with what it sent unread: either is the end.
        if stream.read_to_end(&mut rest).await.is_ok() {
            assert_eq!(rest, b"");
        }
    }
}

#[tokio::test]
async fn alpn_chooses_http2_before_http1_and_needs_none() {
    let scene = scene(&[]).await;
    let client = TlsClient::trusting(&scene.authority);
    for (offered, expected) in [
        (&[&b"http/1.1"[..], b"h2"][..], Some(&b"h2"[..])),
        (&[b"h2"], Some(b"h2")),
        (&[b"http/1.1"], Some(b"http/1.1")),
        (&[b"spdy/3", b"http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        let client = client.clone().offering(offered);
        let mut connection = client.connect(scene.refshim.address, "127.0.0.1").await.unwrap();
        assert_eq!(connection.protocol(), expected);
        if expected != Some(b"h2") {
            assert_eq!(connection.get().await.unwrap().status, 200);
        }
    }
    let unknown = client.offering(&[b"spdy/3"]).connect(scene.refshim.address, "127.0.0.1").await;
    assert!(unknown.is_err());
}

/// What a client gets through a refshim with these settings.
async fn through(registry: &Registry, settings: &[(&'static str, &Path)]) -> (Refshim, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let start = Refshim::in_front_of(&registry.url(), directory.path()).with("TLS_RELOAD", "1h");
    let start = settings.iter().fold(start, |start, (name, value)| start.with(name, text(value)));
    (start.launch().await, directory)
}

/// Expects that the upstream is not spoken to, that the client hears so, and the log why.
async fn expect_unreachable(refshim: &Refshim, why: &str) {
    for path in ["/v2/", "/v2/a/manifests/latest/references"] {
        let answer = refshim.client().get(path).await;
        assert_eq!((answer.status, &*answer.error_code()), (StatusCode::BAD_GATEWAY, "UNAVAILABLE"));
    }
    refshim.logs(why, 1).await;
}

#[tokio::test]
async fn an_upstream_is_believed_by_its_own_authority_and_by_no_other() {
    let (authority, other) = (Authority::new(), Authority::new());
    let registry = Registry::variant().tls(&authority).start();
    let (refshim, _directory) =
        through(&registry, &[("UPSTREAMS_DEFAULT_CA", &authority.certificate())]).await;
    assert_eq!(refshim.client().get("/v2/").await.status, StatusCode::OK);

    let (refshim, _directory) = through(&registry, &[]).await;
    expect_unreachable(&refshim, "invalid peer certificate").await;

    let ca = other.certificate();
    let (refshim, _directory) = through(&registry, &[("UPSTREAMS_DEFAULT_CA", &ca)]).await;
    expect_unreachable(&refshim, "invalid peer certificate").await;
    std::fs::copy(authority.certificate(), &ca).unwrap();
    refshim.hang_up();
    refshim.logs(RELOADED, 1).await;
    assert_eq!(refshim.client().get("/v2/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_upstream_that_asks_for_a_certificate_is_shown_refshims() {
    let authority = Authority::new();
    let registry = Registry::variant().tls(&authority).for_clients_of(&authority).start();
    let ca = authority.certificate();
    let (refshim, _directory) = through(&registry, &[("UPSTREAMS_DEFAULT_CA", &ca)]).await;
    assert_eq!(refshim.client().get("/v2/").await.status, StatusCode::BAD_GATEWAY);

    let own = authority.client("refshim");
    let settings = [
        ("UPSTREAMS_DEFAULT_CA", &*ca),
        ("UPSTREAMS_DEFAULT_CERTIFICATE", &own.certificate),
        ("UPSTREAMS_DEFAULT_KEY", &own.key),
    ];
    let (refshim, _directory) = through(&registry, &settings).await;
    assert_eq!(refshim.client().get("/v2/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_upstream_may_have_another_name_in_its_certificate_if_it_is_configured() {
    let authority = Authority::new();
    let identity = authority.server("registry", &["registry.internal"]);
    let registry = Registry::variant().showing(&identity, authority.certificate()).start();
    let ca = authority.certificate();
    let (refshim, _directory) = through(&registry, &[("UPSTREAMS_DEFAULT_CA", &ca)]).await;
    expect_unreachable(&refshim, "certificate not valid for name").await;

    let name = Path::new("registry.internal");
    let settings = [("UPSTREAMS_DEFAULT_CA", &*ca), ("UPSTREAMS_DEFAULT_SERVER_NAME", name)];
    let (refshim, _directory) = through(&registry, &settings).await;
    assert_eq!(refshim.client().get("/v2/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_self_signed_upstream_needs_a_setting_that_refshim_warns_of() {
    let files = tempfile::tempdir().unwrap();
    let identity = Identity::of_its_own(files.path(), &["127.0.0.1"]);
    let registry = Registry::variant().showing(&identity, identity.certificate.clone()).start();
    let (refshim, _directory) = through(&registry, &[]).await;
    expect_unreachable(&refshim, "invalid peer certificate").await;
    assert!(!refshim.logged("insecure_skip_verify"));

    let settings = [("UPSTREAMS_DEFAULT_INSECURE_SKIP_VERIFY", Path::new("true"))];
    let (refshim, _directory) = through(&registry, &settings).await;
    assert_eq!(refshim.client().get("/v2/").await.status, StatusCode::OK);
    let warning = refshim.logs("insecure_skip_verify", 1).await;
    assert!(warning.contains("WARN") && warning.contains(r#""upstream":"default""#), "{warning}");
}

/// HTTP/1.1 has no length for a 204, and the registry none in it: that one comes tells how it was spoken to.
#[tokio::test]
async fn http2_that_tls_agrees_on_with_the_upstream_carries_what_the_registry_says() {
    let authority = Authority::new();
    let registry = Registry::variant().tls(&authority).start();
    let identity = authority.server("refshim", &["127.0.0.1"]);
    let ca = authority.certificate();
    for (http2, expected) in [("auto", Some("0")), ("never", None)] {
        let settings = [
            ("UPSTREAMS_DEFAULT_CA", &*ca),
            ("UPSTREAMS_DEFAULT_HTTP2", Path::new(http2)),
            ("TLS_CERTIFICATE", &identity.certificate),
            ("TLS_KEY", &identity.key),
        ];
        let (refshim, _directory) = through(&registry, &settings).await;
        let client = Client::to(&format!("https://{}", refshim.address), Http::Two, Some(&ca));
        let started = client.send(client.request(Method::POST, "/v2/a/blobs/uploads/")).await;
        let status = client.get(started.header("location")).await;
        let length = status.headers.get("content-length").map(|length| length.to_str().unwrap());
        assert_eq!((status.status, length), (StatusCode::NO_CONTENT, expected), "{http2}");
        client.image("a", http2).await;
    }
}

/// Requests until so many were sent by all, one connection for each or one for all.
async fn load(scene: Arc<Scene>, sent: Arc<AtomicUsize>, fresh: bool) {
    let mut kept = scene.connect().await;
    while sent.fetch_add(1, Ordering::SeqCst) < REQUESTS {
        if fresh {
            kept = scene.connect().await;
        }
        assert_eq!(kept.get().await.unwrap().status, 200);
    }
}

const REQUESTS: usize = 2_000;
const RENEWALS: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_the_certificate_is_renewed_again_and_again() {
    let scene = Arc::new(scene(&[("TLS_RELOAD", "100ms")]).await);
    let sent = Arc::new(AtomicUsize::new(0));
    let clients = [true, false, true, false];
    let clients = clients.map(|fresh| tokio::spawn(load(Arc::clone(&scene), Arc::clone(&sent), fresh)));
    for renewal in 1..=RENEWALS {
        while sent.load(Ordering::SeqCst) < REQUESTS * renewal / (RENEWALS + 1) {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let renewed = scene.renew();
        while scene.connect().await.shown() != renewed.der() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    for client in clients {
        client.await.unwrap();
    }
    assert!(scene.refshim.count(RELOADED) >= RENEWALS);
}
