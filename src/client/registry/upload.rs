//! Uploads of blobs. A blob is sent only if it is neither there nor can be mounted, and is never sent twice.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use http::{Method, StatusCode};
use tokio::sync::Notify;
use tokio::time::timeout;
use url::Url;

use super::Registry;
use crate::client::progress::Bar;
use crate::client::repository::Arrival;
use crate::client::session::{Ask, Scope};
use crate::client::transport::{Request, Response, SILENCE_LIMIT, header, silent};
use crate::client::{BlobStream, Error, Part, Progress, Result};
use crate::oci::{Digest, RepositoryName};

/// How long the registry may take to answer after the last byte. It may copy the blob to its place in object
/// storage first, and is silent meanwhile.
const STORING_LIMIT: Duration = Duration::from_secs(600);

impl Registry {
    /// Makes sure that a blob is here: it is there already, is mounted from `mount`, or is sent.
    pub(in crate::client) async fn take_blob<F: Future<Output = Result<BlobStream>>>(
        &self,
        part: &Part,
        mount: Option<&RepositoryName>,
        content: impl FnOnce() -> F,
        progress: &Progress,
    ) -> Result<Arrival> {
        let digest = &part.descriptor.digest;
        if self.has_blob(digest).await? {
            return Ok(Arrival::Already);
        }
        let location = match self.begin(digest, mount).await? {
            Begun::Mounted => return Ok(Arrival::Mounted),
            Begun::At(location) => location,
        };
        let bar = progress.blob(part);
        // The content is asked for only now: what is there or mounted is not downloaded from its source.
        self.send(part, location, content().await?, bar).await?;
        Ok(Arrival::Sent)
    }

    pub(in crate::client) async fn has_blob(&self, digest: &Digest) -> Result<bool> {
        let asked = format!("looking for the blob {digest} in {self}");
        let request = Request::new(Method::HEAD, self.url(&format!("blobs/{digest}"))?);
        // With the right to push, although a HEAD needs less: the upload's body can be sent only once, so its
        // 401 would come too late to log in.
        Ok(self.session.find(self.push(&asked, request)).await?.is_some())
    }

    async fn begin(&self, digest: &Digest, mount: Option<&RepositoryName>) -> Result<Begun> {
        let asked = format!("beginning to send the blob {digest} to {self}");
        let mut url = self.url("blobs/uploads/")?;
        let mut scope = Scope::push(self.name.as_str());
        if let Some(from) = mount {
            url.query_pairs_mut()
                .append_pair("mount", &digest.to_string())
                .append_pair("from", from.as_str());
            scope = scope.and_pull(from.as_str());
        }
        let request = Request::new(Method::POST, url);
        let response = self.session.succeed(Ask { asked: &asked, scope, request }).await?;
        // 201 is a mount; a registry that does not mount answers 202 and has begun an upload
        // (distribution-spec, "Mounting a blob from another repository").
        if mount.is_some() && response.status() == StatusCode::CREATED {
            return Ok(Begun::Mounted);
        }
        let location = header(response.headers(), LOCATION.as_str());
        let location = location
            .ok_or_else(|| Error::failed(asked.as_str(), "the answer does not say where to send it"))?;
        // Against the URL that answered (RFC 9110, section 10.2.2): after a redirect, that host has begun the
        // upload.
        self.session.resolve(response.url(), location).map(Begun::At)
    }

    async fn send(&self, part: &Part, mut location: Url, content: BlobStream, bar: Bar) -> Result<()> {
        let digest = &part.descriptor.digest;
        let asked = format!("sending the blob {digest} to {self}");
        // Added to the query and not in place of it: the upload's state is in there (`_state` of
        // distribution).
        location.query_pairs_mut().append_pair("digest", &digest.to_string());
        let flow = Arc::new(Flow::default());
        let content = flow.watching(content, part.descriptor.size, bar);
        let mut request = Request::new(Method::PUT, location).with_stream(content);
        // An upload in one PUT must have both fields (distribution-spec, "POST then PUT").
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(part.descriptor.size));
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        let sent = self.session.send(self.push(&asked, request));
        let answer = tokio::select! {
            answer = sent => answer,
            () = flow.dries_up() => Err(silent(&asked)),
        };
        self.stored(&asked, answer, &flow).await
    }

    /// The answer to an upload.
    async fn stored(&self, asked: &str, answer: Result<Response>, flow: &Flow) -> Result<()> {
        // First: that the source broke off says more than that the registry was left waiting for the rest.
        if let Some(broken) = flow.broken.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(broken);
        }
        let response = answer?;
        if response.status() == StatusCode::CREATED {
            Ok(())
        } else {
            Err(self.session.refused(asked, response).await)
        }
    }
}

enum Begun {
    Mounted,
    At(Url),
}

/// The progress of a body while it is sent.
#[derive(Debug, Default)]
struct Flow {
    moved: Notify,
    ended: Notify,
    broken: Mutex<Option<Error>>,
}

impl Flow {
    /// The same content, whose progress is reported here.
    fn watching(self: &Arc<Self>, content: BlobStream, size: u64, bar: Bar) -> BlobStream {
        let flow = Arc::clone(self);
        let mut left = size;
        if size == 0 {
            // No bytes will come that could say so.
            flow.ended.notify_one();
        }
        Box::pin(content.inspect(move |bytes| match bytes {
            Ok(bytes) => {
                bar.advance(bytes.len() as u64);
                left = left.saturating_sub(bytes.len() as u64);
                // By the size and not by the stream's end, for which HTTP/1.1 with a length does not ask.
                if left == 0 { flow.ended.notify_one() } else { flow.moved.notify_one() }
            }
            Err(error) => {
                *flow.broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
            }
        }))
    }

    /// Ends when the upload has stalled: no bytes were taken for too long, or after the last of them no
    /// answer came.
    async fn dries_up(&self) {
        loop {
            let step = async {
                tokio::select! {
                    () = self.moved.notified() => false,
                    () = self.ended.notified() => true,
                }
            };
            match timeout(SILENCE_LIMIT, step).await {
                Ok(false) => {}
                Ok(true) => return tokio::time::sleep(STORING_LIMIT).await,
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;
    use crate::oci::{Algorithm, Descriptor};

    /// How long the registry is waited for after this content was sent.
    async fn waited(content: &'static [u8]) -> Duration {
        let descriptor = Descriptor {
            media_type: "a/b".to_owned(),
            digest: Digest::of(Algorithm::Sha256, content),
            size: content.len() as u64,
            artifact_type: None,
            annotations: std::collections::BTreeMap::new(),
            data: None,
        };
        let bar = Progress::new(false).blob(&descriptor.clone().into());
        let flow = Arc::new(Flow::default());
        let chunks: Vec<_> = content.chunks(2).map(|chunk| Ok(chunk.into())).collect();
        let sent = flow.watching(Box::pin(stream::iter(chunks)), descriptor.size, bar);
        assert!(sent.all(|chunk| async move { chunk.is_ok() }).await);
        let began = tokio::time::Instant::now();
        flow.dries_up().await;
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn the_registry_has_time_to_store_what_was_sent_also_if_that_is_empty() {
        for content in [&b"content"[..], b"x", b""] {
            let waited = waited(content).await;
            assert!(
                waited >= STORING_LIMIT && waited < STORING_LIMIT + SILENCE_LIMIT,
                "{content:?} {waited:?}"
            );
        }
    }
}
