//! `/reload` and `/log-filter` of the admin listener: loads the configuration again, and shows or changes the log
//! filter until then. From this machine alone, and not from web pages in a browser on it: with each request that a
//! page may send without asking first, the browser says which page it was.

use std::net::IpAddr;

use http::header::ORIGIN;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use tokio::sync::{mpsc, oneshot};

use super::{not_allowed, own_machine, text};
use crate::config::LogConfig;
use crate::http::body::Body;
use crate::telemetry::LogFilter;

/// The longest log filter.
const MOST_BYTES: usize = 16 << 10;

/// Asks the server to load the configuration again. The answer says what changed, or each reason why nothing did.
#[derive(Debug)]
pub struct ReloadRequest(pub oneshot::Sender<Result<String, String>>);

/// What can be changed of a serving refshim.
#[derive(Debug)]
pub struct Control {
    /// To the server.
    pub reloads: mpsc::Sender<ReloadRequest>,
    /// The log filter.
    pub filter: LogFilter,
}

impl Control {
    /// The answer to a request from `client`.
    pub(super) async fn answer(&self, client: IpAddr, request: Request<Incoming>) -> Response<Body> {
        let checked = own_machine::check(client, &request, "this is");
        let is_page = request.headers().contains_key(ORIGIN);
        if let Err(why) = checked.and(if is_page { Err("not from web pages".to_owned()) } else { Ok(()) }) {
            return text(StatusCode::FORBIDDEN, format!("{why}\n"));
        }
        let (status, told) = match (request.method(), request.uri().path()) {
            (&Method::POST, "/reload") => self.reload().await,
            (&Method::GET, "/log-filter") => (StatusCode::OK, self.filter.current()),
            (&Method::PUT, "/log-filter") => match self.put_filter(request).await {
                Ok(filter) => (StatusCode::OK, filter),
                Err(why) => (StatusCode::UNPROCESSABLE_ENTITY, why),
            },
            (_, "/reload") => return not_allowed("POST"),
            _ => return not_allowed("GET, PUT"),
        };
        text(status, format!("{told}\n"))
    }

    async fn reload(&self) -> (StatusCode, String) {
        let (answer, told) = oneshot::channel();
        // If this fails, the answer's sender is dropped with it, and there is no answer either.
        drop(self.reloads.send(ReloadRequest(answer)).await);
        match told.await {
            Ok(Ok(changed)) => (StatusCode::OK, changed),
            Ok(Err(reasons)) => (StatusCode::UNPROCESSABLE_ENTITY, reasons),
            Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "refshim is ending".to_owned()),
        }
    }

    async fn put_filter(&self, request: Request<Incoming>) -> Result<String, String> {
        let body = Limited::new(request.into_body(), MOST_BYTES).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        let filter = LogConfig::filter_of(String::from_utf8_lossy(&body).trim())?;
        self.filter.set(&filter).map_err(|error| error.to_string())?;
        tracing::info!(filter, "the log filter was changed, until the configuration is loaded again");
        Ok(filter)
    }
}
