//! A repository of a registry, over the distribution API.

mod catalog;
mod pages;
mod referrer_list;
mod referrers;
mod tag_list;
mod tagged_list;
mod upload;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{Method, StatusCode};
use url::Url;

pub(super) use catalog::catalog;
pub use tagged_list::ListChange;

use super::blob::verified;
use super::session::{Ask, Scope, Session};
use super::transport::{Request, Response, header};
use super::{BlobStream, Error, ErrorKind, Manifest, Part, Result};
use crate::oci::artifact::TITLE;
use crate::oci::{Descriptor, Digest, RepositoryName, Tag, TagOrDigest, media_type};

const CONTENT_DIGEST: &str = "docker-content-digest";
const OCI_SUBJECT: &str = "oci-subject";

/// One repository.
#[derive(Debug)]
pub struct Registry {
    session: Arc<Session>,
    name: RepositoryName,
}

impl fmt::Display for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.session.host(), self.name)
    }
}

impl Registry {
    pub(super) fn new(session: Arc<Session>, name: RepositoryName) -> Self {
        Self { session, name }
    }

    pub(super) fn beside(&self, name: RepositoryName) -> Self {
        Self::new(Arc::clone(&self.session), name)
    }

    pub(super) fn repository(&self) -> &RepositoryName {
        &self.name
    }

    /// Whether a blob of the other repository can be mounted here, without sending it: of the same registry, by a user who
    /// was let read it.
    pub(super) fn can_mount_from(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.session, &other.session)
    }

    pub(super) async fn manifest(&self, target: &TagOrDigest) -> Result<Option<Manifest>> {
        let asked = format!("reading {target} of {self}");
        let request = accepting(Method::GET, self.url(&format!("manifests/{target}"))?);
        let Some(response) = self.session.find(self.pull(&asked, request)).await? else { return Ok(None) };
        let content_type = header(response.headers(), CONTENT_TYPE.as_str()).map(str::to_owned);
        let bytes = response.read(&asked).await?;
        // Hashed here: `Docker-Content-Digest` says only what the registry believes that it sends.
        let manifest = match target {
            TagOrDigest::Digest(digest) => Manifest::verified(digest, bytes, content_type.as_deref()),
            TagOrDigest::Tag(_) => Manifest::new(bytes, content_type.as_deref()),
        };
        manifest.map(Some).map_err(|error| error.at(self))
    }

    /// The same, also where something in front of the registry answers HEAD with 404 and GET with the manifest. For
    /// those who conclude something from its absence.
    pub(super) async fn digest_for_sure(&self, target: &TagOrDigest) -> Result<Option<Digest>> {
        match self.digest(target).await? {
            Some(digest) => Ok(Some(digest)),
            None => Ok(self.manifest(target).await?.map(|manifest| manifest.digest)),
        }
    }

    pub(super) async fn digest(&self, target: &TagOrDigest) -> Result<Option<Digest>> {
        let asked = format!("looking for {target} in {self}");
        let request = accepting(Method::HEAD, self.url(&format!("manifests/{target}"))?);
        let Some(response) = self.session.find(self.pull(&asked, request)).await? else { return Ok(None) };
        if let TagOrDigest::Digest(digest) = target {
            return Ok(Some(digest.clone()));
        }
        // Some registries leave it out (distribution #2384); then the manifest itself has to be hashed.
        match header(response.headers(), CONTENT_DIGEST).and_then(|digest| digest.parse().ok()) {
            Some(digest) => Ok(Some(digest)),
            None => Ok(self.manifest(target).await?.map(|manifest| manifest.digest)),
        }
    }

    pub(super) async fn put_manifest(&self, target: &TagOrDigest, manifest: &Manifest) -> Result<()> {
        let asked = format!("putting {target} into {self}");
        let request = Request::new(Method::PUT, self.url(&format!("manifests/{target}"))?);
        let mut request = request.with_body(manifest.bytes.clone());
        let content_type = HeaderValue::try_from(&manifest.media_type)
            .map_err(|_| Error::new(ErrorKind::Usage, asked.as_str(), "the media type cannot be sent"))?;
        request.headers_mut().insert(CONTENT_TYPE, content_type);
        self.session.succeed(self.push(&asked, request)).await?;
        Ok(())
    }

    /// Tries to attach a file by one request, which refshim in front of a registry makes a manifest of. True if it was
    /// this one, and the registry lists it. Whatever else comes, the steps one by one will tell better; they push the
    /// same manifest.
    pub(super) async fn attach(
        &self,
        subject: &Digest,
        manifest: &Manifest,
        file: &Part,
        content: Bytes,
    ) -> bool {
        let asked = format!("attaching to {subject} of {self}");
        let Ok(request) = self.attachment(subject, manifest, file, content) else { return false };
        let Ok(response) = self.session.send(self.push(&asked, request)).await else { return false };
        let is_named = |name, digest: &Digest| {
            header(response.headers(), name).is_some_and(|named| named == digest.to_string())
        };
        response.status() == StatusCode::CREATED
            && is_named(CONTENT_DIGEST, &manifest.digest)
            && is_named(OCI_SUBJECT, subject)
    }

    fn attachment(
        &self,
        subject: &Digest,
        manifest: &Manifest,
        file: &Part,
        content: Bytes,
    ) -> Result<Request> {
        let Descriptor { digest, media_type, annotations, .. } = &file.descriptor;
        let mut url = self.url(&format!("manifests/{subject}/references"))?;
        let made = manifest.descriptor();
        let mut query = url.query_pairs_mut();
        query.append_pair("artifactType", made.artifact_type.as_deref().unwrap_or_default());
        for (key, value) in &made.annotations {
            query.append_pair("annotation", &format!("{key}={value}"));
        }
        query.extend_pairs(annotations.get(TITLE).map(|title| ("title", title)));
        query.append_pair("digest", &digest.to_string()).append_pair("manifest", &made.digest.to_string());
        drop(query);
        let mut request = Request::new(Method::POST, url).with_body(content);
        let content_type = HeaderValue::try_from(media_type)
            .map_err(|_| Error::new(ErrorKind::Usage, "attaching", "the media type cannot be sent"))?;
        request.headers_mut().insert(CONTENT_TYPE, content_type);
        Ok(request)
    }

    pub(super) async fn delete_manifest(&self, digest: &Digest) -> Result<()> {
        let asked = format!("deleting {digest} of {self}");
        let request = Request::new(Method::DELETE, self.url(&format!("manifests/{digest}"))?);
        let scope = Scope::delete(self.name.as_str());
        self.session.succeed(Ask { asked: &asked, scope, request }).await?;
        Ok(())
    }

    pub(super) async fn blob(&self, part: &Part) -> Result<BlobStream> {
        let digest = &part.descriptor.digest;
        let asked = format!("reading the blob {digest} of {self}");
        let request = Request::new(Method::GET, self.url(&format!("blobs/{digest}"))?);
        let response = self.session.succeed(self.pull(&asked, request)).await?;
        Ok(verified(body(asked, response), part))
    }

    fn url(&self, path: &str) -> Result<Url> {
        self.session.url(&format!("{}/{path}", self.name))
    }

    fn pull<'a>(&self, asked: &'a str, request: Request) -> Ask<'a> {
        Ask { asked, scope: Scope::pull(self.name.as_str()), request }
    }

    fn push<'a>(&self, asked: &'a str, request: Request) -> Ask<'a> {
        Ask { asked, scope: Scope::push(self.name.as_str()), request }
    }
}

fn accepting(method: Method, url: Url) -> Request {
    let mut request = Request::new(method, url);
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static(media_type::ACCEPT_EVERY_MANIFEST));
    request
}

/// The body of an answer, part by part.
fn body(asked: String, response: Response) -> BlobStream {
    let parts = stream::try_unfold((asked, response), |(asked, mut response)| async move {
        let part = response.chunk(&asked).await?;
        Ok(part.map(|part| (part, (asked, response))))
    });
    Box::pin(parts)
}

fn by_digest(digest: &Digest) -> TagOrDigest {
    TagOrDigest::Digest(digest.clone())
}

fn by_tag(tag: Tag) -> TagOrDigest {
    TagOrDigest::Tag(tag)
}
