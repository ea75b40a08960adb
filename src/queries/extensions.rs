//! `GET /v2/_oci/ext/discover` (distribution-spec, `extensions/_oci.md`): the extensions that the registry names, and
//! refshim's own.

use std::sync::Arc;

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::{Map, Value, json};

use crate::http::body::Body;
use crate::http::route::EXTENSION;
use crate::proxy::error::Error;
use crate::proxy::forward::{self, Origin, question_headers};
use crate::proxy::upstream::{Upstream, question};

/// Bytes of the registry's own list that are read.
const LIST_BYTES: usize = 1 << 20;
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Answers what extensions there are.
#[derive(Debug)]
pub struct ExtensionsHandler {
    upstream: Arc<Upstream>,
}

impl ExtensionsHandler {
    /// Of this registry.
    #[must_use]
    pub fn new(upstream: Arc<Upstream>) -> Self {
        Self { upstream }
    }

    /// The list. What the registry refuses this client, or fails to answer, is its answer; where it knows no extensions,
    /// refshim's are all there are.
    pub async fn answer(
        &self,
        origin: &Origin,
        request: Box<Request<Incoming>>,
    ) -> Result<Response<Body>, Error> {
        let mut asked = question(Method::GET, request.uri().clone());
        *asked.headers_mut() = question_headers(request.headers(), origin);
        asked.headers_mut().insert(ACCEPT, JSON);
        let answer = forward::send(&self.upstream, origin, Box::new(asked)).await?;
        let list = match answer.status() {
            StatusCode::OK => {
                let body = Limited::new(answer.into_body(), LIST_BYTES).collect().await;
                let body = body.map_err(|_| Error::UpstreamBody)?.to_bytes();
                // Else a page of whatever answers everything with 200.
                serde_json::from_slice(&body).unwrap_or_default()
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => {
                return Ok(answer);
            }
            // It knows none.
            status if status.is_client_error() || status == StatusCode::NOT_IMPLEMENTED => Map::new(),
            _ => return Ok(answer),
        };
        let mut response = Response::new(Body::whole(with_own(list).to_string()));
        response.headers_mut().insert(CONTENT_TYPE, JSON);
        Ok(response)
    }
}

/// The list with refshim's extensions in it; what stands beside them is kept.
fn with_own(mut list: Map<String, Value>) -> Value {
    let own = [
        json!({
            "name": "_oci",
            "description": "which extensions there are",
            "url": "https://github.com/opencontainers/distribution-spec/blob/main/extensions/_oci.md",
            "endpoints": ["/v2/_oci/ext/discover"],
        }),
        json!({
            "name": EXTENSION,
            "description": "what refers to a manifest, by every kind of link",
            "url": "https://github.com/opencontainers/distribution-spec/blob/main/extensions/README.md",
            "endpoints": [format!("/v2/<name>/{EXTENSION}/references/<digest>")],
        }),
    ];
    let extensions = list.entry("extensions").or_insert_with(|| json!([]));
    if !extensions.is_array() {
        *extensions = json!([]);
    }
    if let Value::Array(known) = extensions {
        for extension in own {
            if known.iter().all(|known| known.get("name") != extension.get("name")) {
                known.push(extension);
            }
        }
    }
    Value::Object(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(list: &str, names: &[&str]) {
        let list = serde_json::from_str(list).unwrap_or_default();
        let found = with_own(list);
        let found: Vec<&Value> =
            found["extensions"].as_array().unwrap().iter().map(|known| &known["name"]).collect();
        assert_eq!(found, names);
    }

    #[test]
    fn refshims_extensions_stand_beside_the_registrys() {
        check("{}", &["_oci", "_refshim"]);
        check("<html>", &["_oci", "_refshim"]);
        check(r#"{"extensions":[]}"#, &["_oci", "_refshim"]);
        check(r#"{"extensions":[{"name":"_zot","x":1},{"name":"_oci"}]}"#, &["_zot", "_oci", "_refshim"]);
        check(r#"{"extensions":[{"name":"_refshim"}]}"#, &["_refshim", "_oci"]);
    }
}
