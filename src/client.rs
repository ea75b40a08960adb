//! The client side: registries and OCI layouts as places that hold manifests, blobs and links, and what is
//! done with them. Knows nothing of the server; [`crate::oci`] is what the two have in common.
//!
//! It speaks HTTP through hyper, as the server does to its upstreams, and not through oci-client, which follows no
//! pages, knows neither `/references` nor DELETE nor identity tokens, and whose errors do not tell who answered what.
//! Manifests are kept as the bytes that they are: the links of the proposal stand in members that
//! oci-spec's types would lose.

mod access;
mod admin;
mod artifact;
mod blob;
mod copy;
mod credentials;
mod error;
mod graph;
mod image;
mod layout;
mod logins;
mod manifest;
mod pace;
mod progress;
mod referrer;
mod referrers_api;
mod registry;
mod repository;
mod session;
mod transport;
mod whole_digest;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

pub use access::UpstreamAccess;
pub use admin::AdminClient;
pub use artifact::{Artifact, FileToAttach, referring_copy};
pub use blob::{BlobStream, write_file};
pub use copy::{CopiedTag, Copy, CopyTags, FailedTag, Report, TagsReport};
pub use credentials::Credential;
pub use error::{Error, ErrorKind, Result};
pub use graph::{Node, walk, walk_in};
pub use image::{ImageName, InvalidImageName, Location, Target};
pub use logins::{KeptLogin, forget_login, keep_login};
pub use manifest::{Manifest, Part, Platform};
pub use pace::Pace;
pub use progress::Progress;
pub use referrer::{ListScope, ListedReferrer, Referrer, ReferrerList, Referrers, Wanted};
pub use referrers_api::ReferrersApi;
pub use registry::ListChange;
pub use repository::Repository;
pub use session::{LoginOutcome, VisitorLogin};

use crate::tls::ClientTls;
use layout::Layout;
use registry::Registry;
use session::Session;
use transport::Transport;

/// How registries are spoken to.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Credentials given by hand, and the host that they are for.
    pub credential: Option<(String, Credential)>,
    /// HTTP without TLS also to hosts that are not this machine.
    pub plain_http: bool,
    /// Which certificates to accept, if not just those of the platform's authorities; registries on this machine
    /// are then spoken to in TLS as well.
    pub tls: Option<ClientTls>,
    /// How fast requests may follow each other, for commands that send very many. A registry that asks for patience is
    /// then waited for.
    pub pace: Option<Arc<Pace>>,
    /// The upstream of refshim's that is spoken to with its own settings ([`Options::towards`]).
    pub upstream: Option<UpstreamAccess>,
    /// Whether stored credentials (`docker login`) are left alone.
    pub is_anonymous: bool,
}

/// All registries of one command: each host is logged in to once.
#[derive(Debug, Default)]
pub struct Client {
    options: Options,
    opened: Mutex<Opened>,
}

/// What a command has opened so far.
#[derive(Debug, Default)]
struct Opened {
    /// Made with the first session: OCI layouts need none.
    transport: Option<Transport>,
    sessions: HashMap<String, Arc<Session>>,
}

impl Client {
    /// A client that has spoken to nobody yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self { options, opened: Mutex::default() }
    }

    /// The repository at a location. Nothing is asked yet.
    pub fn open(&self, location: &Location) -> Result<Repository> {
        match location {
            Location::Layout(directory) => Ok(Repository::Layout(Arc::new(Layout::new(directory)))),
            Location::Registry { host, name } => {
                let session = self.session(host)?;
                Ok(Repository::Registry(Arc::new(Registry::new(session, name.clone()))))
            }
        }
    }

    /// The repositories of a registry by its catalog, each once, as it tells them.
    ///
    /// # Errors
    /// It has no catalog, or not for this user.
    pub async fn catalog(&self, host: &str) -> Result<BTreeSet<String>> {
        registry::catalog(&*self.session(host)?).await
    }

    /// Logs in at a registry with the credentials of the options; whether it asked for any.
    ///
    /// # Errors
    /// It, or its token service, rejects them; or it is none.
    pub async fn log_in(&self, host: &str) -> Result<bool> {
        self.session(host)?.check_login().await
    }

    fn session(&self, host: &str) -> Result<Arc<Session>> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = opened.sessions.get(host) {
            return Ok(Arc::clone(session));
        }
        let transport = match &opened.transport {
            Some(transport) => transport.clone(),
            None => opened.transport.insert(self.transport()?).clone(),
        };
        let session = Arc::new(Session::new(host, &self.options, transport)?);
        opened.sessions.insert(host.to_owned(), Arc::clone(&session));
        Ok(session)
    }

    fn transport(&self) -> Result<Transport> {
        let tls = self.options.tls.clone().map_or_else(ClientTls::platform, Ok);
        let tls = tls.map_err(|error| Error::failed("setting up TLS", error.to_string()))?;
        let upstream = self.options.upstream.as_ref();
        let own = upstream.and_then(|upstream| Some((upstream.authority(), upstream.connector.clone()?)));
        Ok(Transport::new(&tls, own))
    }
}
