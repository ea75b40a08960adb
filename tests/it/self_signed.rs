//! Certificates that vouch for themselves, as `openssl req -x509` makes them, trusted by name: towards upstreams and
//! by the client commands. And TLS spoken to plain ports, and the other way round.

use std::path::Path;
use std::process::Command;

use reqwest::StatusCode;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::support::{Authority, Client, Http, Identity, Refshim, Registry, Scripted, exchange};

/// What `openssl req -x509` makes of these further arguments.
fn made_by_openssl(directory: &Path, arguments: &[&str]) -> Identity {
    let identity = Identity { certificate: directory.join("own.crt"), key: directory.join("own.key") };
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", identity.key.to_str().unwrap()])
        .args(["-out", identity.certificate.to_str().unwrap()])
        .args(arguments)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    identity
}

/// What a client gets through a refshim that trusts this file, and what `refshim tree` says of the registry itself.
async fn believed(registry: &Registry, trusted: &Path, home: &Path) -> (StatusCode, String) {
    let data = tempfile::tempdir().unwrap();
    let trusted = trusted.to_str().unwrap();
    let refshim = Refshim::in_front_of(&registry.url(), data.path()).with("UPSTREAMS_DEFAULT_CA", trusted);
    let refshim = refshim.launch().await;
    let status = refshim.client().get("/v2/").await.status;
    let tree = Command::new(env!("CARGO_BIN_EXE_refshim"))
        .args(["tree", &format!("{}/none", registry.address), "--ca-file", trusted])
        .env("HOME", home)
        .output()
        .unwrap();
    (status, String::from_utf8(tree.stderr).unwrap())
}

#[tokio::test]
async fn a_certificate_of_openssl_is_trusted_by_name() {
    let not_ca = "basicConstraints=critical,CA:FALSE";
    for (arguments, trusted) in [
        (&["-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1"][..], true),
        (&["-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", not_ca], true),
        (&["-subj", "/O=x/CN=127.0.0.1", "-days", "1"], true),
        (&["-subj", "/CN=127.0.0.1", "-addext", not_ca], true),
        (&["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=DNS:registry"], false),
        (&["-subj", "/CN=127.0.0.2"], false),
        (&["-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.2"], false),
        (&["-subj", "/CN=127.0.0.1", "-addext", "extendedKeyUsage=clientAuth", "-addext", not_ca], false),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let identity = made_by_openssl(directory.path(), arguments);
        let registry = Registry::variant().showing(&identity, identity.certificate.clone()).start();
        let (status, said) = believed(&registry, &identity.certificate, directory.path()).await;
        let expected = if trusted { StatusCode::OK } else { StatusCode::BAD_GATEWAY };
        assert_eq!(status, expected, "{arguments:?}");
        assert_eq!(said.contains("there is no such manifest"), trusted, "{arguments:?} {said}");
        // The same names without being the same certificate are nobody.
        if trusted {
            let other = tempfile::tempdir().unwrap();
            let other = made_by_openssl(other.path(), arguments);
            let (status, said) = believed(&registry, &other.certificate, directory.path()).await;
            assert_eq!(status, StatusCode::BAD_GATEWAY, "{arguments:?}");
            assert!(said.contains("certificate"), "{arguments:?} {said}");
        }
    }
}

#[tokio::test]
async fn a_pinned_certificate_that_expired_or_has_another_issuer_is_what_it_is() {
    let authority = Authority::new();
    let home = tempfile::tempdir().unwrap();
    for is_ca in [false, true] {
        let expired = Identity::expired(home.path(), &["127.0.0.1"], is_ca);
        let registry = Registry::variant().showing(&expired, expired.certificate.clone()).start();
        let (status, said) = believed(&registry, &expired.certificate, home.path()).await;
        assert_eq!(status, StatusCode::BAD_GATEWAY);
        assert!(said.contains("expired"), "{said}");
    }
    // One of a known authority can be pinned without it, and the authority's is still an authority's.
    let issued = authority.server("issued", &["127.0.0.1"]);
    let registry = Registry::variant().showing(&issued, authority.certificate()).start();
    for trusted in [&issued.certificate, &authority.certificate()] {
        assert_eq!(believed(&registry, trusted, home.path()).await.0, StatusCode::OK);
    }
}

fn tree(home: &Path, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_refshim"));
    let ended = command.arg("tree").args(arguments).env("HOME", home).output().unwrap();
    (ended.status.code().unwrap(), String::from_utf8(ended.stderr).unwrap())
}

#[tokio::test]
async fn a_command_says_which_of_tls_and_plain_http_it_spoke() {
    let home = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let identity = authority.server("refshim", &["127.0.0.1"]);
    let tls = Registry::variant().tls(&authority).start();
    let plain = Registry::start();
    let data = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let tls_shim = Refshim::prepare(plain.address, data[0].path()).with_tls(&identity).launch().await;
    let plain_shim = Refshim::start(plain.address, data[1].path()).await;
    let ca = authority.certificate();
    for address in [tls.address, tls_shim.address] {
        for plain_http in [&[][..], &["--plain-http"]] {
            let (code, said) = tree(home.path(), &[&[&*format!("{address}/a:v1")], plain_http].concat());
            assert_eq!(code, 1, "{said}");
            let mixed_up = format!("http://{address} was spoken to in plain HTTP, but it speaks TLS");
            assert!(said.contains(&mixed_up) && said.contains("--ca-file"), "{said}");
        }
    }
    for address in [plain.address, plain_shim.address] {
        for trust in [&["--insecure"][..], &["--ca-file", ca.to_str().unwrap()]] {
            let (code, said) = tree(home.path(), &[&[&*format!("{address}/a:v1")], trust].concat());
            assert_eq!(code, 1, "{said}");
            let mixed_up = format!("https://{address} was spoken to in TLS, but it speaks plain HTTP");
            assert!(said.contains(&mixed_up) && said.contains("--plain-http"), "{said}");
        }
    }
}

#[tokio::test]
async fn a_server_that_answers_plain_http_in_tls_is_recognised() {
    // The alert that TLS has for it, and nothing else.
    let alerting = Scripted::probed(|exchange| exchange.send(b"\x15\x03\x03\x00\x02\x02\x32"));
    let home = tempfile::tempdir().unwrap();
    let (code, said) = tree(home.path(), &[&format!("{}/a:v1", alerting.address)]);
    assert_eq!(code, 1);
    assert!(said.contains("but it speaks TLS"), "{said}");

    let data = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(alerting.address, data.path()).await;
    assert_eq!(refshim.client().get("/v2/").await.status, StatusCode::BAD_GATEWAY);
    let line = refshim.logs("a request failed", 1).await;
    let url = format!("http://{} was spoken to in plain HTTP, but it speaks TLS", alerting.address);
    assert!(line.contains(&url) && line.contains(&format!("https://{}", alerting.address)), "{line}");
}

#[tokio::test]
async fn an_upstream_that_is_spoken_to_in_the_other_one_is_told_in_the_log_and_by_readiness() {
    let authority = Authority::new();
    let (tls, plain) = (Registry::variant().tls(&authority).start(), Registry::start());
    for (url, told) in [
        (format!("https://{}", plain.address), "was spoken to in TLS, but it speaks plain HTTP"),
        (format!("http://{}", tls.address), "was spoken to in plain HTTP, but it speaks TLS"),
    ] {
        let data = tempfile::tempdir().unwrap();
        let refshim = Refshim::in_front_of(&url, data.path()).launch().await;
        let line = refshim.logs("is not ready", 1).await;
        assert!(line.contains("WARN") && line.contains(&format!("{url} {told}")), "{line}");
        let ready = Client::new(refshim.admin).get("/readyz").await;
        assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(String::from_utf8(ready.body).unwrap().contains(&format!("{url} {told}")));
    }
}

#[tokio::test]
async fn plain_http_on_a_port_that_speaks_tls_is_answered_in_plain_http() {
    let authority = Authority::new();
    let identity = authority.server("refshim", &["127.0.0.1"]);
    let upstream = Scripted::answering("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let data = tempfile::tempdir().unwrap();
    let refshim = Refshim::prepare(upstream.address, data.path()).with_tls(&identity).launch().await;
    for request in [
        "GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        "PUT /v2/a/manifests/x HTTP/1.1\r\nhost: x\r\ncontent-length: 20000\r\n\r\n".to_owned()
            + &"x".repeat(20_000),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
    ] {
        let mut stream = TcpStream::connect(refshim.address).await.unwrap();
        let answer = exchange(&mut stream, &request).await.unwrap();
        assert_eq!(answer.status, 400);
        let body = String::from_utf8(answer.body).unwrap();
        assert!(body.contains("this port speaks TLS: use https://"), "{body}");
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    }
    assert_eq!(upstream.requests().len(), 0);
    let client =
        Client::to(&format!("https://{}", refshim.address), Http::One, Some(&authority.certificate()));
    assert_eq!(client.get("/v2/").await.status, StatusCode::OK);
}
