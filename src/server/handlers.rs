//! The handlers of the requests for one upstream.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderName, Request, Response};
use hyper::body::Incoming;

use crate::attach::Attacher;
use crate::config::Config;
use crate::http::body::{Body, PushLimits};
use crate::http::limits::Pushes;
use crate::index::Repository;
use crate::oci::RepositoryName;
use crate::proxy::error::Error;
use crate::proxy::forward::Origin;
use crate::proxy::upstream::Upstream;
use crate::queries::extensions::ExtensionsHandler;
use crate::queries::pages::ReferrerPages;
use crate::queries::references::ReferencesHandler;
use crate::queries::referrers::ReferrersHandler;
use crate::recording::pulls::PullRecorder;
use crate::recording::pushes::PushRecorder;
use crate::recording::unlisted::UnlistedSubjects;
use crate::recording::watched::PushWatcher;
use crate::registry::reader::ManifestReader;
use crate::registry::{Caller, Merger, Registry, Visit};
use crate::telemetry::{Audit, Metrics};

use super::app::Parts;

/// One upstream and its handlers.
#[derive(Debug)]
pub(super) struct Handlers {
    pub(super) upstream: Arc<Upstream>,
    pub(super) registry: Arc<Registry>,
    pub(super) attacher: Attacher,
    pub(super) pushes: PushRecorder,
    pub(super) watched: PushWatcher,
    pub(super) pulls: Arc<PullRecorder>,
    pub(super) pages: Arc<ReferrerPages>,
    pub(super) references: ReferencesHandler,
    pub(super) extensions: ExtensionsHandler,
    pub(super) referrers: ReferrersHandler,
    pub(super) metrics: Arc<Metrics>,
    /// The memory of manifests that are being pushed.
    held: Pushes,
    pub(super) audit: Audit,
}

/// The handlers that others go on from, or remember together with.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kin<'a> {
    /// Of the same registry.
    pub(super) same: Option<&'a Handlers>,
    /// Of the same upstream under the configuration before.
    pub(super) before: Option<&'a Handlers>,
}

impl Handlers {
    /// The handlers of an upstream.
    pub(super) fn new(config: &Config, upstream: &Arc<Upstream>, kin: Kin<'_>, parts: &Parts) -> Self {
        let before = kin.before;
        let Parts { index, tags, metrics, logs, tasks, .. } = parts;
        let audit = &logs.audit;
        let metrics = Arc::new(metrics.of_upstream(upstream.name()));
        let unlisted = UnlistedSubjects::new(tags.queue(upstream.name()), Arc::clone(&metrics));
        let registry = Arc::new(registry(config, upstream, kin, &metrics));
        let held = before.map_or_else(|| Pushes::new(config.limits.manifest_bytes), |it| it.held.clone());
        held.resize(config.limits.manifest_bytes);
        let pushed = PushLimits {
            bytes: config.manifests.max_bytes,
            idle: upstream.body_idle(),
            whole: config.timeouts.manifest,
            pushes: held.clone(),
        };
        let reader = ManifestReader::new(Arc::clone(&metrics), config.manifests.max_links_bytes, pushed);
        let pulls = Arc::new(pulls(config, kin, &registry, &reader, &metrics, parts));
        let watched = PushWatcher::new(
            Arc::clone(&registry),
            index.clone(),
            reader.clone(),
            Arc::clone(&metrics),
            (tasks.clone(), audit.clone()),
            config.limits.manifest_bytes,
        );
        let watched = match before {
            Some(before) => watched.following(&before.watched),
            None => watched,
        };
        let merger = Arc::new(Merger::new(Arc::clone(&registry), index.clone(), reader.clone(), config));
        let (asked, read) = (Arc::clone(&registry), reader.clone());
        let pages = ReferrerPages::new(asked, merger, read, index.clone(), &config.references);
        let pages = Arc::new(match before {
            Some(before) => pages.following(&before.pages),
            None => pages,
        });
        let recorder = PushRecorder::new(
            Arc::clone(&registry),
            Arc::clone(&pulls),
            index.clone(),
            reader,
            unlisted,
            (tasks.clone(), audit.clone()),
        );
        Self {
            attacher: Attacher::new(Arc::clone(&registry), recorder.clone(), index.clone(), tasks.clone()),
            pushes: recorder,
            watched,
            pulls,
            references: ReferencesHandler::new(Arc::clone(&pages)),
            extensions: ExtensionsHandler::new(Arc::clone(upstream)),
            referrers: ReferrersHandler::new(Arc::clone(&pages), &config.referrers),
            pages,
            upstream: Arc::clone(upstream),
            registry,
            metrics,
            held,
            audit: audit.clone(),
        }
    }

    /// The visit of a query's caller to its repository.
    pub(super) fn visit(&self, name: RepositoryName, origin: &Origin, request: &Request<Incoming>) -> Visit {
        let caller = self.registry.caller(request.headers(), request.uri(), origin);
        self.registry.visit(&caller, self.repository(name))
    }

    pub(super) fn count_query(&self, began: Instant, result: &Result<Response<Body>, Error>) {
        match result {
            Ok(_) => self.metrics.query(began.elapsed()),
            Err(error) => self.metrics.query_refused(self.upstream.name(), error.query_refused()),
        }
    }

    /// Lets web pages of other origins read refshim's own answers as far as they may read the registry's
    /// (CORS; Fetch standard, section 3.2).
    pub(super) fn let_origins_read(&self, response: &mut Response<Body>, caller: &Caller) {
        let Some(fields) = self.registry.access_control(caller) else { return };
        let headers = response.headers_mut();
        // A refusal passed on from the registry has them already. Looked up before any is added: a second
        // value of a field would otherwise be taken for present.
        let missing = |name: &HeaderName| !headers.contains_key(name);
        let missing: Vec<_> = fields.iter().filter(|(name, _)| missing(name)).collect();
        for (name, value) in missing {
            headers.append(name, value.clone());
        }
    }

    pub(super) fn repository(&self, name: RepositoryName) -> Repository {
        Repository { upstream: self.upstream.number(), name }
    }
}

fn registry(config: &Config, upstream: &Arc<Upstream>, kin: Kin<'_>, metrics: &Metrics) -> Registry {
    let registry = Registry::new(Arc::clone(upstream), config, metrics.clone());
    let registry = match kin.before {
        Some(before) => registry.following(&before.registry, config),
        None => registry,
    };
    match kin.same {
        Some(other) => registry.sharing(&other.registry),
        None => registry,
    }
}

fn pulls(
    config: &Config,
    kin: Kin<'_>,
    registry: &Arc<Registry>,
    reader: &ManifestReader,
    metrics: &Arc<Metrics>,
    parts: &Parts,
) -> PullRecorder {
    let pulls = PullRecorder::new(
        Arc::clone(registry),
        parts.index.clone(),
        reader.clone(),
        Arc::clone(metrics),
        parts.tasks.clone(),
        config.manifests.learn_bytes,
    );
    let pulls = match kin.before {
        Some(before) => pulls.following(&before.pulls),
        None => pulls,
    };
    match kin.same {
        Some(other) => pulls.sharing(&other.pulls),
        None => pulls,
    }
}
