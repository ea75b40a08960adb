//! A registry that does as it is told in the worst way: the real one behind a door that breaks.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::it::support::scripted::Exchange;
use crate::support::Scripted;

/// What happens to the manifest that is pushed, or to the answer about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    ClosedBeforeStoring,
    ClosedAfterStoring,
    BrokenOffInTheHead,
    BrokenOffInTheBody,
    StalledInTheBody,
    Silent,
    ServerErrorAfterStoring,
    TooLongALength,
    TooShortALength,
    WrongDigest,
    NoDigest,
    EndlessHead,
    EndlessBody,
    NoHttp,
}

impl Fault {
    pub(crate) const ALL: [Self; 14] = [
        Self::ClosedBeforeStoring,
        Self::ClosedAfterStoring,
        Self::BrokenOffInTheHead,
        Self::BrokenOffInTheBody,
        Self::StalledInTheBody,
        Self::Silent,
        Self::ServerErrorAfterStoring,
        Self::TooLongALength,
        Self::TooShortALength,
        Self::WrongDigest,
        Self::NoDigest,
        Self::EndlessHead,
        Self::EndlessBody,
        Self::NoHttp,
    ];
}

/// Which requests the fault befalls; the others are answered by the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Befallen {
    Pushes,
    /// What refshim asks for itself, and clients who pull.
    Questions,
}

/// Closes each connection after one answer, without having said so.
pub(crate) struct Unreliable {
    server: Scripted,
    fault: Arc<Mutex<(Befallen, Fault)>>,
}

impl Unreliable {
    pub(crate) fn before(registry: SocketAddr) -> Self {
        let fault = Arc::new(Mutex::new((Befallen::Pushes, Fault::None)));
        let current = Arc::clone(&fault);
        let server = Scripted::start(move |exchange| {
            exchange.read_body();
            let (befallen, fault) = *current.lock().unwrap();
            let is_push = exchange.request.line.starts_with("PUT ");
            let is_befallen = is_push == (befallen == Befallen::Pushes);
            let is_manifest = exchange.request.line.contains("/manifests/");
            let fault = if is_befallen && is_manifest { fault } else { Fault::None };
            answer(exchange, registry, fault);
        });
        Self { server, fault }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address
    }

    pub(crate) fn set(&self, befallen: Befallen, fault: Fault) {
        *self.fault.lock().unwrap() = (befallen, fault);
    }
}

/// The registry's answer to the request, its head without the empty line at its end.
fn ask(exchange: &Exchange<'_>, registry: SocketAddr) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(registry).unwrap();
    let fields = exchange.request.headers.iter();
    let fields = fields
        .filter(|(name, _)| !["connection", "transfer-encoding", "content-length"].contains(&name.as_str()));
    let fields: Vec<String> = fields.map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let (line, fields, length) = (&exchange.request.line, fields.concat(), exchange.request.body.len());
    let head = format!("{line}\r\nconnection: close\r\n{fields}content-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&exchange.request.body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    let body = answer.split_off(end + 4);
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    (head.replace("\r\nConnection: close", ""), body)
}

fn with_field(head: &str, name: &str, value: Option<&str>) -> String {
    let is_it = |line: &&str| line.to_lowercase().starts_with(&format!("{name}: "));
    let mut lines: Vec<String> = head.lines().filter(|line| !is_it(line)).map(str::to_owned).collect();
    lines.extend(value.map(|value| format!("{name}: {value}")));
    lines.join("\r\n")
}

fn answer(exchange: &mut Exchange<'_>, registry: SocketAddr, fault: Fault) {
    if fault == Fault::ClosedBeforeStoring {
        return;
    }
    let (head, body) = ask(exchange, registry);
    let mut send = |head: &str, body: &[u8]| exchange.send(&[head.as_bytes(), b"\r\n\r\n", body].concat());
    let longer = |by: usize| with_field(&head, "content-length", Some(&(body.len() + by).to_string()));
    match fault {
        Fault::None => send(&head, &body),
        Fault::ClosedBeforeStoring | Fault::ClosedAfterStoring => {}
        Fault::BrokenOffInTheHead => exchange.send(&head.as_bytes()[..head.len() / 2]),
        Fault::BrokenOffInTheBody => send(&longer(100), &[&body[..], b"and"].concat()),
        Fault::StalledInTheBody => {
            send(&longer(100), &body);
            exchange.wait_for_end();
        }
        Fault::Silent => exchange.wait_for_end(),
        Fault::ServerErrorAfterStoring => send("HTTP/1.1 500 Failed\r\ncontent-length: 0", b""),
        Fault::TooLongALength => send(&longer(7), &body),
        Fault::TooShortALength => {
            send(
                &with_field(&head, "content-length", Some("0")),
                b"HTTP/1.1 200 OK\r\n\r\nmore than was said",
            );
        }
        Fault::WrongDigest => {
            let wrong = format!("sha256:{}", "0123456789abcdef".repeat(4));
            send(&with_field(&head, "docker-content-digest", Some(&wrong)), &body);
        }
        Fault::NoDigest => send(&with_field(&head, "docker-content-digest", None), &body),
        Fault::EndlessHead => {
            exchange.send(head.as_bytes());
            exchange.send_for_ever(format!("\r\nx: {}", "x".repeat(1000)).as_bytes());
        }
        Fault::EndlessBody => {
            let head = with_field(&head, "content-length", None);
            send(&with_field(&head, "transfer-encoding", Some("chunked")), b"");
            exchange.send_for_ever(format!("400\r\n{}\r\n", "x".repeat(1024)).as_bytes());
        }
        Fault::NoHttp => exchange.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    }
}

/// How much comes of what has no end, in bytes; more than refshim can be willing to take.
const FOR_EVER: usize = 64 << 20;

impl Exchange<'_> {
    /// Waits until the client hangs up.
    fn wait_for_end(&mut self) {
        self.stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let _gone = self.stream.read(&mut [0]);
    }

    fn send_for_ever(&mut self, bytes: &[u8]) {
        let mut sent = 0;
        while sent < FOR_EVER && self.stream.write_all(bytes).is_ok() {
            sent += bytes.len();
        }
        let _gone = self.stream.shutdown(Shutdown::Both);
    }
}
