//! Object storage that a registry sends its clients to: the files below a directory, by GET and HEAD.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use super::scripted::{Request, Scripted};

/// Serves nothing until it has a directory.
pub(crate) struct Storage {
    server: Scripted,
    root: Arc<OnceLock<PathBuf>>,
}

impl Storage {
    pub(crate) fn start() -> Self {
        let root = Arc::new(OnceLock::<PathBuf>::new());
        let files = Arc::clone(&root);
        let server = Scripted::start(move |exchange| {
            let mut words = exchange.request.line.split(' ');
            let (is_get, path) = (words.next() == Some("GET"), words.next().unwrap_or("/"));
            match std::fs::read(files.get().unwrap().join(path.trim_start_matches('/'))) {
                Ok(content) => {
                    let length = content.len();
                    exchange.answer(&format!(
                        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/octet-stream\r\n\
                         content-length: {length}\r\n\r\n"
                    ));
                    exchange.send(if is_get { &content } else { b"" });
                }
                Err(_) => exchange.answer_status("404 Not Found"),
            }
        });
        Self { server, root }
    }

    /// Where it is, under a host name that no registry of the tests has.
    pub(crate) fn url(&self) -> String {
        format!("http://localhost:{}", self.server.address.port())
    }

    /// Serves the files below this directory from here on.
    pub(crate) fn serve(&self, root: PathBuf) {
        self.root.set(root).unwrap();
    }

    /// What it was asked so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.server.requests()
    }
}
