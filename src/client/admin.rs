//! The admin listener of a serving refshim, for the commands that have their work done there.

use http::Method;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::transport::{Request, Transport};
use super::{Error, ErrorKind, Result};
use crate::tls::ClientTls;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Speaks to one admin listener.
#[derive(Debug)]
pub struct AdminClient {
    url: Url,
    transport: Transport,
}

impl AdminClient {
    /// For `http://host:port`. Nothing is asked yet.
    ///
    /// # Errors
    /// It is no such URL.
    pub fn new(url: &str) -> Result<Self> {
        let asked = format!("speaking to the refshim at {url}");
        let parsed = Url::parse(url).ok().filter(|url| url.scheme() == "http" && url.has_host());
        let wrong = || Error::new(ErrorKind::Usage, &asked, "the URL is not of the form http://host:port");
        let tls = ClientTls::insecure().map_err(|error| Error::failed(&asked, error.to_string()))?;
        // No proxy: the listener is on this machine or near it, and would take nothing through one.
        Ok(Self { url: parsed.ok_or_else(wrong)?, transport: Transport::direct(&tls) })
    }

    /// Whether a GET is a success, and the text that refshim says.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn look(&self, asked: &str, path: &str) -> Result<(bool, String)> {
        let url = self.url.join(path).map_err(|error| Error::failed(asked, error.to_string()))?;
        let response = self.transport.send(asked, Request::new(Method::GET, url)).await?;
        let status = response.status();
        let body = response.read(asked).await?;
        Ok((status.is_success(), String::from_utf8_lossy(&body).into_owned()))
    }

    /// The answer to a request with this JSON, if that is a success; nothing if it is 404 without a reason.
    ///
    /// # Errors
    /// There is no answer, or it is an error; then with what refshim says of it.
    pub async fn ask<R: DeserializeOwned>(
        &self,
        asked: &str,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<R> {
        let failed = |error: &dyn std::fmt::Display| Error::failed(asked, error.to_string());
        let url = self.url.join(path).map_err(|error| failed(&error))?;
        let mut request = Request::new(method, url);
        request.headers_mut().insert(ACCEPT, JSON);
        // Always: a web page in somebody's browser cannot send this without being asked first.
        request.headers_mut().insert(CONTENT_TYPE, JSON);
        if let Some(body) = body {
            request = request.with_body(serde_json::to_vec(body).map_err(|error| failed(&error))?);
        }
        let advise = |error: Error| {
            error.advise(format!(
                "is refshim serving, with its admin listener at {}? Else say --upstream URL --data-dir DIRECTORY, or --config FILE",
                self.url
            ))
        };
        let response = self.transport.send(asked, request).await.map_err(advise)?;
        let status = response.status();
        let body = response.read(asked).await?;
        if !status.is_success() {
            let told = String::from_utf8_lossy(&body);
            let told = if told.trim().is_empty() { status.to_string() } else { told.trim().to_owned() };
            return Err(Error::failed(asked, told));
        }
        serde_json::from_slice(&body).map_err(|error| failed(&error))
    }
}
