//! The proxies that the environment names.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use super::Shell;
use super::credentials::layout;
use crate::support::{Authority, Registry, Scripted};

/// `Basic` for the name `me` and the password `p@ss`.
const AUTHORIZATION: &str = "Basic bWU6cEBzcw==";

/// A proxy to which every host is at this address.
fn proxy_to(address: SocketAddr) -> Scripted {
    Scripted::start(move |exchange| {
        let mut server = TcpStream::connect(address).unwrap();
        if exchange.request.line.starts_with("CONNECT ") {
            exchange.answer("HTTP/1.1 200 Connection established\r\nproxy-agent: test\r\n\r\n");
        } else {
            let mut head = format!("{}\r\nconnection: close\r\n", exchange.request.line).into_bytes();
            for (name, value) in &exchange.request.headers {
                write!(head, "{name}: {value}\r\n").unwrap();
            }
            server.write_all(&[head.as_slice(), b"\r\n"].concat()).unwrap();
        }
        let (mut from_client, mut to_server) =
            (exchange.stream.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || {
            let _gone = io::copy(&mut from_client, &mut to_server);
            let _gone = to_server.shutdown(std::net::Shutdown::Write);
        });
        let _gone = io::copy(&mut server, exchange.stream);
        let _gone = exchange.stream.shutdown(std::net::Shutdown::Both);
    })
}

fn url_of(proxy: &Scripted) -> String {
    format!("http://me:p%40ss@{}", proxy.address)
}

#[test]
fn tls_goes_through_a_tunnel_and_names_are_left_to_the_proxy() {
    let authority = Authority::new();
    let identity = authority.server("registry", &["127.0.0.1", "registry.invalid"]);
    let registry = Registry::variant().showing(&identity, authority.certificate()).start();
    let ca = authority.certificate();
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        let proxy = proxy_to(registry.address);
        let shell = Shell::new().with(variable, &url_of(&proxy));
        layout(&shell);
        let trust = ["--ca-file", ca.to_str().unwrap()];
        let copy = ["copy", "oci:layout:v1", "registry.invalid/a:v1"];
        shell.ok(&[&copy[..], &trust].concat());
        shell.ok(&[&["tree", "registry.invalid:8443/a:v1"][..], &trust].concat());
        let requests = proxy.requests();
        let lines: Vec<&str> = requests.iter().map(|request| request.line.as_str()).collect();
        assert!(lines.contains(&"CONNECT registry.invalid:443 HTTP/1.1"), "{variable} {lines:?}");
        assert!(lines.contains(&"CONNECT registry.invalid:8443 HTTP/1.1"), "{variable} {lines:?}");
        for request in &requests {
            assert_eq!(request.header("proxy-authorization"), Some(AUTHORIZATION), "{request:?}");
            assert!(request.header("user-agent").unwrap().starts_with("refshim/"), "{request:?}");
        }
        // A stranger at the end of the tunnel is one all the same.
        shell
            .run(&["tree", "registry.invalid/a:v1"])
            .failed(1, &[&format!("through the proxy http://{}", proxy.address), "certificate"]);
    }
}

#[test]
fn plain_http_is_forwarded_by_the_proxy() {
    for variable in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        let registry = Registry::start();
        let proxy = proxy_to(registry.address);
        let shell = Shell::new().with(variable, &url_of(&proxy)).with("NO_PROXY", "other.invalid,10.0.0.0/8");
        layout(&shell);
        shell.ok(&["copy", "oci:layout:v1", "registry.invalid/a:v1", "--plain-http"]);
        shell.ok(&["tree", "registry.invalid/a:v1", "--plain-http"]);
        let requests = proxy.requests();
        assert!(requests.iter().any(|request| request.line.starts_with("PUT ")), "{variable} {requests:?}");
        for request in &requests {
            let target = request.line.split(' ').nth(1).unwrap();
            assert!(target.starts_with("http://registry.invalid/v2/a/"), "{request:?}");
            assert_eq!(request.header("host"), Some("registry.invalid"), "{request:?}");
            assert_eq!(request.header("proxy-authorization"), Some(AUTHORIZATION), "{request:?}");
        }
    }
}

#[test]
fn hosts_without_a_proxy_are_connected_to_directly() {
    let registry = Registry::start();
    let image = format!("{}/a:v1", registry.address);
    let by_name = format!("localhost:{}/a:v1", registry.address.port());
    for (no_proxy, image) in [
        ("127.0.0.1", &image),
        ("example.com, 127.0.0.0/8", &image),
        (".localhost", &by_name),
        ("*", &by_name),
    ] {
        let proxy = proxy_to(registry.address);
        for variable in ["NO_PROXY", "no_proxy"] {
            let shell = Shell::new().with("ALL_PROXY", &url_of(&proxy)).with(variable, no_proxy);
            shell.run(&["tree", image]).failed(3, &["there is no such manifest"]);
        }
        assert_eq!(proxy.requests().len(), 0, "{no_proxy}");
    }
    // Another scheme's proxy is none.
    let proxy = proxy_to(registry.address);
    Shell::new().with("HTTPS_PROXY", &url_of(&proxy)).run(&["tree", &image]).failed(3, &[]);
    assert_eq!(proxy.requests().len(), 0);
}

#[test]
fn a_proxy_that_does_not_help_is_named() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let check = |proxy: &str, more: &[&str], said: &[&str]| {
        let shell = Shell::new().with("ALL_PROXY", proxy);
        shell.run(&[&["tree", "registry.invalid/a:v1"], more].concat()).failed(1, said);
    };
    let down = format!("http://{free}");
    for plain in [&[][..], &["--plain-http"]] {
        let through = format!("through the proxy {down}");
        check(&down, plain, &["registry.invalid", &through, "Connection refused", "HTTPS_PROXY", "NO_PROXY"]);
    }
    let strict = Scripted::answering(
        "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    );
    let strict = strict.address.to_string();
    check(&strict, &[], &[&strict, "proxy authorization required", "NAME:PASSWORD"]);
    check(&strict, &["--plain-http"], &["407", "NAME:PASSWORD"]);
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = plain.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in plain.incoming().map_while(Result::ok) {
            let _gone = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            let _gone = io::copy(&mut stream, &mut io::sink());
        }
    });
    let mixed_up = format!("https://{address} was spoken to in TLS, but it speaks plain HTTP");
    check(&format!("https://{address}"), &[], &["through the proxy", &mixed_up]);
    check(&format!("socks5://{strict}"), &[], &["socks5://", "only proxies at http://"]);
}
