//! One reference: the way to its manifest and to its content, and its deletion. Only if it refers to the manifest in whose
//! place it is asked for, as its own bytes or the index say it.

use bytes::Bytes;
use http::header::LOCATION;
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use serde::Deserialize;

use super::{Attacher, present};
use crate::http::body::Body;
use crate::http::limits::RequestGuard;
use crate::http::route;
use crate::index::Scan;
use crate::oci::artifact::TITLE;
use crate::oci::{Descriptor, Digest, TagOrDigest, links_of};
use crate::proxy::error::{BadAttachment, Error};
use crate::proxy::forward::Origin;
use crate::registry::Visit;

/// What is asked for of a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Manifest,
    /// Its only file, or that of this name or digest.
    Content(Option<String>),
}

/// The files of a manifest.
#[derive(Debug, Default, Deserialize)]
struct Listed {
    #[serde(default)]
    layers: Vec<Descriptor>,
    /// Of the artifact manifests before OCI 1.1.
    #[serde(default)]
    blobs: Vec<Descriptor>,
}

impl Attacher {
    /// `GET /v2/<name>/manifests/<ref>/references/<digest>`: the way to the manifest, with `content` to its only file, with
    /// `content=NAME` to that one.
    pub async fn lead(
        &self,
        visit: Visit,
        (manifest, referrer): (TagOrDigest, Digest),
        request: &Request<Incoming>,
    ) -> Result<Response<Body>, Error> {
        let wanted = Wanted::of(request.uri().query().unwrap_or_default());
        let bytes = self.referring(&visit, &manifest, &referrer).await?;
        let name = &visit.repository.name;
        let path = match wanted {
            Wanted::Manifest => route::manifest_path(name, &referrer),
            Wanted::Content(file) => route::blob_path(name, &file_of(&bytes, file.as_deref())?),
        };
        // As the client's own request selected the mirrored registry.
        let path = visit.caller.with_namespace_alone(path);
        let mut response = Response::new(Body::empty());
        // 307, since a client is to repeat the method: HEAD asks for the head alone.
        *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
        let location = HeaderValue::try_from(path).map_err(|_| Error::Handler)?;
        response.headers_mut().insert(LOCATION, location);
        Ok(response)
    }

    /// `DELETE /v2/<name>/manifests/<ref>/references/<digest>`: deletes that manifest at the registry, with this client's
    /// rights; the answer is the registry's.
    pub async fn detach(
        &self,
        visit: Visit,
        (manifest, referrer): (TagOrDigest, Digest),
        origin: &Origin,
        mut request: Box<Request<Incoming>>,
        in_progress: RequestGuard,
    ) -> Result<Response<Body>, Error> {
        self.referring(&visit, &manifest, &referrer).await?;
        let path = route::manifest_path(&visit.repository.name, &referrer);
        *request.uri_mut() = Uri::try_from(path).map_err(|_| Error::Handler)?;
        let referrer = TagOrDigest::Digest(referrer);
        self.pushes.delete(visit.repository, referrer, origin.clone(), request, in_progress).await
    }

    /// The bytes of a manifest that this client may read and that refers to the other one.
    async fn referring(
        &self,
        visit: &Visit,
        manifest: &TagOrDigest,
        referrer: &Digest,
    ) -> Result<Bytes, Error> {
        let subject = self.resolve(visit, manifest).await?;
        let fetched = self.registry.fetch(visit, &TagOrDigest::Digest(referrer.clone())).await?;
        let not_one =
            || BadAttachment::NotAReferrer { referrer: referrer.to_string(), subject: manifest.to_string() };
        let fetched = match present(fetched) {
            Err(Error::Attachment(BadAttachment::NoSubject)) => return Err(not_one().into()),
            fetched => fetched?,
        };
        let found = links_of(&fetched.bytes, fetched.content_type.as_deref(), None);
        let says_so = found.links.iter().any(|link| link.subject == subject);
        if says_so || self.is_known(visit, &subject, referrer).await? {
            Ok(fetched.bytes)
        } else {
            Err(not_one().into())
        }
    }

    /// Whether the index has the link, which only a tag or another manifest may say.
    async fn is_known(&self, visit: &Visit, subject: &Digest, referrer: &Digest) -> Result<bool, Error> {
        let referrer = referrer.clone();
        let scan = Scan {
            after: None,
            max_entries: 1,
            max_bytes: 0,
            max_claims: 1,
            accepts: Box::new(move |entry| entry.digest == referrer),
        };
        let page = self.index.referrers(visit.repository.clone(), subject.clone(), scan).await;
        Ok(!page.map_err(Error::LookUp)?.entries.is_empty())
    }
}

impl Wanted {
    fn of(query: &str) -> Self {
        let content = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "content");
        match content {
            None => Self::Manifest,
            Some((_, name)) => Self::Content((!name.is_empty()).then(|| name.into_owned())),
        }
    }
}

/// The digest of a manifest's only file, or of the one of this name or digest.
fn file_of(manifest: &[u8], name: Option<&str>) -> Result<Digest, BadAttachment> {
    let Listed { layers, blobs } = serde_json::from_slice(manifest).unwrap_or_default();
    let title = |file: &Descriptor| file.annotations.get(TITLE).cloned();
    let files: Vec<&Descriptor> = layers.iter().chain(&blobs).collect();
    let is_it = |file: &&&Descriptor| {
        name.is_none_or(|name| title(file).as_deref() == Some(name) || file.digest.to_string() == name)
    };
    let mut found: Vec<&&Descriptor> = files.iter().filter(is_it).collect();
    found.dedup_by(|one, other| one.digest == other.digest);
    match *found {
        [only] => Ok(only.digest.clone()),
        [] => Err(BadAttachment::WhichFile(Vec::new())),
        _ => {
            let names = found.iter().map(|file| title(file).unwrap_or_else(|| file.digest.to_string()));
            Err(BadAttachment::WhichFile(names.collect()))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_only_file_needs_no_name() {
        let digest = |n| Digest::Sha256([n; 32]);
        let file = |n, title: Option<&str>| {
            let annotations = title.map_or_else(|| json!({}), |title| json!({ TITLE: title }));
            json!({"mediaType": "a/b", "digest": digest(n), "size": 1, "annotations": annotations})
        };
        let of = |files: &[serde_json::Value], name: Option<&str>| {
            let manifest = json!({"layers": files}).to_string();
            file_of(manifest.as_bytes(), name).map_err(|error| error.to_string())
        };
        let (one, other) = (file(1, Some("sbom.json")), file(2, None));
        assert_eq!(of(std::slice::from_ref(&one), None), Ok(digest(1)));
        assert_eq!(of(&[one.clone(), one.clone()], None), Ok(digest(1)));
        let both = [one, other];
        assert_eq!(of(&both, Some("sbom.json")), Ok(digest(1)));
        assert_eq!(of(&both, Some(&digest(2).to_string())), Ok(digest(2)));
        let told = of(&both, None).unwrap_err();
        assert!(told.contains("several files") && told.contains("sbom.json, sha256:0202"), "{told}");
        assert!(of(&both, Some("x")).unwrap_err().contains("no file of that name"));
        assert!(of(&[], None).is_err());
        assert_eq!(Wanted::of("a=b"), Wanted::Manifest);
        assert_eq!(Wanted::of("content"), Wanted::Content(None));
        assert_eq!(Wanted::of("content=a%20b"), Wanted::Content(Some("a b".to_owned())));
    }
}
