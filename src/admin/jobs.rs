//! `/jobs` and `/coverage` of the admin listener: what `refshim backfill`, `export`, `gc` and `coverage` have done by
//! the refshim that serves.
//!
//! Jobs write to registries with refshim's own credentials, and whoever reaches this listener needs none. So they are
//! taken from this machine alone (in a container: from its own processes, `kubectl exec`), and not from web pages in a
//! browser on it: those cannot send JSON without being asked first, and a name that leads here is none of ours.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use serde_json::Value;

use super::{not_allowed, own_machine, text};
use crate::http::body::Body;
use crate::index::Index;
use crate::jobs::{Desk, JobSpec, Refused, coverage};

/// The longest description of a job: a list of some hundred thousand repositories.
const MOST_BYTES: usize = 64 << 20;
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Takes jobs.
#[derive(Debug)]
pub(super) struct Jobs {
    pub(super) desk: Arc<Desk>,
    pub(super) index: Index,
}

impl Jobs {
    /// The answer to a request from `client`.
    pub(super) async fn answer(&self, client: IpAddr, request: Request<Incoming>) -> Response<Body> {
        if let Err(why) = check(client, &request) {
            return text(StatusCode::FORBIDDEN, format!("{why}\n"));
        }
        let upstream = upstream(request.uri().query().unwrap_or_default());
        let upstream = upstream.as_deref();
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/coverage") => self.coverage(upstream).await,
            (&Method::GET, "/jobs") => answered(self.desk.state(upstream)),
            (&Method::DELETE, "/jobs") => answered(self.desk.stop(upstream)),
            (&Method::POST, "/jobs") => match spec(request).await {
                Ok(spec) => answered(self.desk.begin(spec)),
                Err(why) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
            },
            (_, "/coverage") => not_allowed("GET"),
            _ => not_allowed("GET, POST, DELETE"),
        }
    }

    async fn coverage(&self, upstream: Option<&str>) -> Response<Body> {
        let mut all = Vec::new();
        let is_wanted = |name: &str| upstream.is_none_or(|wanted| wanted == name);
        for upstream in self.desk.upstreams().filter(|upstream| is_wanted(upstream.name.as_str())) {
            match coverage(&self.index, upstream).await {
                Ok(coverage) => all.push(coverage),
                Err(error) => return text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
            }
        }
        match upstream {
            Some(name) if all.is_empty() => answered::<Value>(Err(Refused::Upstream(name.to_owned()))),
            _ => answered(Ok(all)),
        }
    }
}

fn check(client: IpAddr, request: &Request<Incoming>) -> Result<(), String> {
    own_machine::check(client, request, "jobs are")?;
    if request.headers().get(CONTENT_TYPE) != Some(&JSON) {
        return Err("jobs are taken as application/json only".to_owned());
    }
    Ok(())
}

async fn spec(request: Request<Incoming>) -> Result<JobSpec, String> {
    let body = Limited::new(request.into_body(), MOST_BYTES).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| format!("not the description of a job: {error}"))
}

fn upstream(query: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find(|(name, _)| name == "upstream").map(|(_, value)| value.into_owned())
}

fn answered<T: Serialize>(result: Result<T, Refused>) -> Response<Body> {
    let status = match &result {
        Ok(_) => StatusCode::OK,
        Err(Refused::Upstream(_)) => StatusCode::NOT_FOUND,
        Err(Refused::Busy(_)) => StatusCode::CONFLICT,
        Err(Refused::Failed(_)) => StatusCode::BAD_REQUEST,
    };
    let rendered = result
        .map_err(|refused| refused.to_string())
        .and_then(|answer| serde_json::to_string(&answer).map_err(|error| error.to_string()));
    match rendered {
        Ok(json) => {
            let mut response = text(StatusCode::OK, json);
            response.headers_mut().insert(CONTENT_TYPE, JSON);
            response
        }
        Err(why) if status.is_success() => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
        Err(why) => text(status, format!("{why}\n")),
    }
}
