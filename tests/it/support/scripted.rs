//! An upstream that says, byte for byte, what the test wants, and keeps what it was asked.

use std::io::{self, BufRead as _, BufReader, Read as _, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::Content;

/// A request as it arrived, a character a byte.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// The request that a script has to do with, and the connection that it came by.
pub(crate) struct Exchange<'a> {
    pub(crate) request: Request,
    pub(crate) stream: &'a mut TcpStream,
    kept: &'a Mutex<Vec<Request>>,
    place: usize,
}

/// Serves one request a connection with whatever the script makes of it, and then hangs up. Whether it is a registry
/// that answers is no question for the script, unless it wants to be asked.
pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Scripted {
    /// The script gets each request without its body, which it may read.
    pub(crate) fn start(script: impl Fn(&mut Exchange<'_>) + Send + Sync + 'static) -> Self {
        Self::serving(script, false)
    }

    /// The script gets the questions of the readiness probe as well.
    pub(crate) fn probed(script: impl Fn(&mut Exchange<'_>) + Send + Sync + 'static) -> Self {
        Self::serving(script, true)
    }

    fn serving(script: impl Fn(&mut Exchange<'_>) + Send + Sync + 'static, probed: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (script, kept) = (Arc::new(script), Arc::clone(&requests));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (script, kept) = (Arc::clone(&script), Arc::clone(&kept));
                std::thread::spawn(move || serve(&*script, stream, &kept, probed));
            }
        });
        Self { address, requests }
    }

    /// Answers every request alike, once its body was read.
    pub(crate) fn answering(answer: &'static str) -> Self {
        Self::start(move |exchange| {
            exchange.read_body();
            exchange.answer(answer);
        })
    }

    /// What came so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

const READY: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

fn serve(
    script: &dyn Fn(&mut Exchange<'_>),
    mut stream: TcpStream,
    kept: &Mutex<Vec<Request>>,
    probed: bool,
) {
    let Some(request) = Request::read(&mut stream) else { return };
    // A question over HTTP/2, which no script speaks.
    if request.line.starts_with("PRI ") {
        return;
    }
    if !probed && request.header("user-agent").is_some_and(|agent| agent.ends_with("(readiness)")) {
        let _gone = stream.write_all(READY);
        return;
    }
    let place = {
        let mut kept = kept.lock().unwrap();
        kept.push(request.clone());
        kept.len() - 1
    };
    script(&mut Exchange { request, stream: &mut stream, kept, place });
}

impl Request {
    fn read(stream: &mut TcpStream) -> Option<Self> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).ok()?;
            head.push(byte[0]);
        }
        let head: String = head.into_iter().map(char::from).collect();
        let mut lines = head.trim_end().split("\r\n");
        let line = lines.next()?.to_owned();
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        Some(Self { line, headers, body: Vec::new() })
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

impl Exchange<'_> {
    /// Reads the body to its end, or to where the client broke it off.
    pub(crate) fn read_body(&mut self) {
        let mut body = Vec::new();
        if let Some(length) = self.request.header("content-length") {
            body = vec![0; length.parse().unwrap()];
            if self.stream.read_exact(&mut body).is_err() {
                return;
            }
        } else if self.request.header("transfer-encoding").is_some() {
            let mut byte = [0];
            while !body.ends_with(b"\r\n\r\n") && self.stream.read_exact(&mut byte).is_ok() {
                body.push(byte[0]);
            }
        }
        self.kept.lock().unwrap()[self.place].body.clone_from(&body);
        self.request.body = body;
    }

    /// Reads a body of any length into `to`, without keeping it; how long it was.
    pub(crate) fn copy_body(&mut self, to: &mut impl Write) -> io::Result<u64> {
        if let Some(length) = self.request.header("content-length") {
            return io::copy(&mut self.stream.take(length.parse().unwrap()), to);
        }
        let mut from = BufReader::with_capacity(64 * 1024, &mut *self.stream);
        let mut all = 0;
        loop {
            let mut line = String::new();
            from.read_line(&mut line)?;
            let length = u64::from_str_radix(line.trim_end(), 16).map_err(io::Error::other)?;
            all += io::copy(&mut from.by_ref().take(length), to)?;
            from.read_line(&mut line)?;
            if length == 0 {
                return Ok(all);
            }
        }
    }

    /// Sends a whole answer and the end of the connection; to a client that is gone, nothing.
    pub(crate) fn answer(&mut self, answer: &str) {
        self.send(answer.as_bytes());
    }

    /// Sends more of an answer; to a client that is gone, nothing.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _gone = self.stream.write_all(bytes);
    }

    /// Sends a manifest as a registry does.
    pub(crate) fn answer_manifest(&mut self, content: &Content) {
        self.answer(&format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: {}\r\ncontent-length: {}\r\n\
             docker-content-digest: {}\r\n\r\n",
            content.media_type,
            content.bytes.len(),
            content.digest
        ));
        if !self.request.line.starts_with("HEAD") {
            self.send(&content.bytes);
        }
    }

    /// Sends a status without a body.
    pub(crate) fn answer_status(&mut self, status: &str) {
        self.answer(&format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"));
    }
}
