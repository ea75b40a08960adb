//! A scripted registry that has its manifests in memory and says everything right, as far as a test does not
//! have it say something else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::Content;
use super::scripted::{Request, Scripted};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A manifest by its digest.
    Digest,
    /// By a tag that is no referrers tag.
    Tag,
    /// The referrers tag.
    ReferrersTag,
    /// The referrers API.
    Api,
    Other,
}

/// A request and the answer that a registry without a referrers API would give.
pub(crate) struct Turn<'a> {
    pub(crate) request: &'a Request,
    pub(crate) target: Target,
    pub(crate) right: Said,
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) status: String,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// The manifests by repository and what they are called there.
pub(crate) type Shelf = Arc<Mutex<HashMap<(String, String), Content>>>;

impl Turn<'_> {
    pub(crate) fn is_head(&self) -> bool {
        self.request.line.starts_with("HEAD ")
    }

    /// Whether it asks for something that is read, and no write.
    pub(crate) fn is_read(&self) -> bool {
        self.is_head() || self.request.line.starts_with("GET ")
    }

    pub(crate) fn is_found(&self) -> bool {
        self.right.status.starts_with("200")
    }

    pub(crate) fn path(&self) -> &str {
        self.request.line.split(' ').nth(1).unwrap()
    }
}

impl Said {
    pub(crate) fn status(status: &str) -> Self {
        Self { status: status.to_owned(), fields: Vec::new(), body: Vec::new() }
    }

    pub(crate) fn typed(content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::status("200 OK").with("content-type", content_type).holding(body)
    }

    /// A manifest as a registry serves it.
    pub(crate) fn manifest(content: &Content) -> Self {
        Self::typed(&content.media_type, content.bytes.clone()).with("docker-content-digest", &content.digest)
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.fields.retain(|(own, _)| own != name);
        self
    }

    pub(crate) fn holding(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    fn to_bytes(&self, is_head: bool) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {}\r\nconnection: close\r\n", self.status);
        for (name, value) in &self.fields {
            head.extend([name, ": ", value, "\r\n"]);
        }
        if !self.status.starts_with("204") && !self.status.starts_with("304") {
            head.extend(["content-length: ", &self.body.len().to_string(), "\r\n"]);
        }
        head += "\r\n";
        let mut bytes = head.into_bytes();
        if !is_head {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

/// A registry that has what is on the shelf, takes every PUT onto it, and says what `odd` makes of the right
/// answer; none hangs up.
pub(crate) fn shelf_registry(
    shelf: &Shelf,
    odd: impl Fn(&Turn<'_>) -> Option<Said> + Send + Sync + 'static,
) -> Scripted {
    let shelf = Arc::clone(shelf);
    Scripted::start(move |exchange| {
        exchange.read_body();
        let request = exchange.request.clone();
        let (right, target) = right_answer(&shelf, &request);
        let turn = Turn { request: &request, target, right };
        if let Some(said) = odd(&turn) {
            // Done before it is said, and only what is said to be done.
            if ["201", "202", "204"].iter().any(|done| said.status.starts_with(done)) {
                write(&shelf, turn.request);
            }
            exchange.send(&said.to_bytes(turn.is_head()));
        }
    })
}

pub(crate) fn put(shelf: &Shelf, repository: &str, names: &[&str], content: &Content) {
    let mut shelf = shelf.lock().unwrap();
    for name in names.iter().copied().chain([content.digest.as_str()]) {
        shelf.insert((repository.to_owned(), name.to_owned()), content.clone());
    }
}

pub(crate) fn take(shelf: &Shelf, repository: &str, name: &str) {
    shelf.lock().unwrap().remove(&(repository.to_owned(), name.to_owned()));
}

fn right_answer(shelf: &Shelf, request: &Request) -> (Said, Target) {
    let mut words = request.line.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let path = path.split('?').next().unwrap();
    let unknown = Said::status("404 Not Found")
        .with("content-type", "application/json")
        .holding(r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#);
    if path == "/v2/" {
        let base =
            Said::typed("application/json", "{}").with("docker-distribution-api-version", "registry/2.0");
        return (base, Target::Other);
    }
    if path.contains("/referrers/") {
        return (unknown, Target::Api);
    }
    let Some((name, reference)) = path.split_once("/manifests/") else { return (unknown, Target::Other) };
    let repository = name.trim_start_matches("/v2/").to_owned();
    let reference = reference.replace("%3A", ":");
    let target = match reference.as_str() {
        digest if digest.contains(':') => Target::Digest,
        tag if tag.starts_with("sha256-") => Target::ReferrersTag,
        _ => Target::Tag,
    };
    let found = shelf.lock().unwrap().get(&(repository, reference)).cloned();
    let said = match (method, found) {
        ("PUT", _) => {
            let digest = super::digest_of(&request.body);
            Said::status("201 Created").with("docker-content-digest", &digest)
        }
        ("DELETE", Some(_)) => Said::status("202 Accepted"),
        (_, Some(content)) => Said::manifest(&content),
        (_, None) => unknown,
    };
    (said, target)
}

/// What a PUT or a DELETE does.
fn write(shelf: &Shelf, request: &Request) {
    let mut words = request.line.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let Some((name, reference)) = path.split('?').next().unwrap().split_once("/manifests/") else { return };
    let (repository, reference) = (name.trim_start_matches("/v2/"), reference.replace("%3A", ":"));
    if method == "PUT" {
        let media_type = request.header("content-type").unwrap_or("application/octet-stream").to_owned();
        let value = serde_json::from_slice(&request.body).unwrap();
        let digest = super::digest_of(&request.body);
        let content = Content { media_type, bytes: request.body.clone(), digest, value };
        put(shelf, repository, &[&reference], &content);
    } else if method == "DELETE" {
        take(shelf, repository, &reference);
    }
}
