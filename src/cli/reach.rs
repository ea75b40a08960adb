//! How a command that works on what refshim knows comes to it: through the refshim that serves, or by opening the data
//! directory itself.

use std::path::PathBuf;

use clap::Args;
use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::client::{AdminClient, Error, ErrorKind, Result};
use crate::config::{CommandLine, Config, UpstreamConfig};
use crate::index::{Index, IndexSettings};
use crate::jobs::{UpstreamCoverage, coverage};
use crate::tls;

pub(super) const ADMIN: &str = "http://127.0.0.1:5001";
pub(super) const NO_BODY: Option<&()> = None;

/// Where refshim is. The refshim that serves is asked, unless --config, --data-dir or the URL of a registry says that
/// the command is to work by itself.
#[derive(Debug, Args)]
pub(super) struct Reach {
    /// The name of an upstream in the configuration [default: the default one]; or the registry itself,
    /// `http://host:port` or `https://host`.
    #[arg(long, value_name = "NAME|URL")]
    pub(super) upstream: Option<String>,
    /// The admin listener of the refshim that serves.
    #[arg(long, value_name = "URL", default_value = ADMIN, conflicts_with_all = ["data_dir", "config"])]
    admin: String,
    /// Where the index is kept [default: ./refshim-data].
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<String>,
    /// The TOML file that refshim is served with.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Reach {
    /// Whether the command works by itself.
    pub(super) fn is_alone(&self) -> bool {
        self.config.is_some() || self.data_dir.is_some() || self.names_registry()
    }

    pub(super) fn admin(&self) -> Result<AdminClient> {
        AdminClient::new(&self.admin)
    }

    /// A path of the admin listener, for the upstream.
    pub(super) fn path(&self, path: &str) -> String {
        let upstream = self.upstream.as_deref().unwrap_or("default");
        format!("{path}?upstream={}", utf8_percent_encode(upstream, NON_ALPHANUMERIC))
    }

    /// How far the upstreams are known; all, if none is named.
    pub(super) async fn coverage(&self) -> Result<Vec<UpstreamCoverage>> {
        const ASKED: &str = "asking how far the registries are known";
        if !self.is_alone() {
            let path = if self.upstream.is_some() { self.path("/coverage") } else { "/coverage".to_owned() };
            return self.admin()?.ask(ASKED, Method::GET, &path, NO_BODY).await;
        }
        let config = self.configuration(ASKED)?;
        let upstreams: Vec<&UpstreamConfig> = if self.upstream.is_some() {
            vec![self.upstream_of(&config, ASKED)?]
        } else {
            config.upstreams().collect()
        };
        let index = opened(&config, ASKED).await?;
        let mut all = Vec::new();
        for upstream in upstreams {
            let known = coverage(&index, upstream).await;
            all.push(known.map_err(|error| Error::failed(ASKED, error.to_string()))?);
        }
        index.close().await;
        Ok(all)
    }

    pub(super) fn configuration(&self, asked: &str) -> Result<Config> {
        let given = CommandLine {
            upstream: self.upstream.clone().filter(|_| self.names_registry()),
            data_dir: self.data_dir.clone(),
            config: self.config.clone(),
            ..CommandLine::default()
        };
        let config = Config::load_and_check(&given, std::env::vars_os(), &tls::checks());
        config.map_err(|mistakes| usage(asked, mistakes.to_string()))
    }

    pub(super) fn upstream_of<'c>(&self, config: &'c Config, asked: &str) -> Result<&'c UpstreamConfig> {
        let Some(name) = self.upstream.as_ref().filter(|_| !self.names_registry()) else {
            return Ok(&config.upstream);
        };
        let found = config.upstreams().find(|upstream| upstream.name.as_str() == name);
        found.ok_or_else(|| usage(asked, format!("there is no upstream {name:?} in the configuration")))
    }

    fn names_registry(&self) -> bool {
        self.upstream.as_ref().is_some_and(|upstream| upstream.contains("://"))
    }
}

/// The index, opened by the command itself. `asked` says in words what it is for.
pub(super) async fn opened(config: &Config, asked: &str) -> Result<Index> {
    let index = Index::open(IndexSettings::of(config)).map_err(|error| {
        let advice = "a refshim that serves from this directory does it itself: leave --upstream URL, --data-dir and \
                      --config out";
        Error::failed(asked, error.to_string()).advise(advice)
    })?;
    // Until then it is not known how much there is, and whether it can be read at all.
    index.opened().await;
    match index.write_failure() {
        Some(failure) => Err(Error::failed(asked, failure)),
        None => Ok(index),
    }
}

pub(super) fn usage(asked: &str, answer: String) -> Error {
    Error::new(ErrorKind::Usage, asked, answer)
}
