//! The handlers of the requests for one upstream.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderName, Request, Response};
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::http::body::{Body, PushLimits};
use crate::http::limits::Pushes;
use crate::index::{Index, Repository};
use crate::oci::RepositoryName;
use crate::proxy::error::Error;
use crate::proxy::forward::Origin;
use crate::proxy::upstream::Upstream;
use crate::queries::pages::ReferrerPages;
use crate::queries::references::ReferencesHandler;
use crate::queries::referrers::ReferrersHandler;
use crate::recording::pulls::PullRecorder;
use crate::recording::pushes::PushRecorder;
use crate::recording::unlisted::UnlistedSubjects;
use crate::recording::watched::PushWatcher;
use crate::referrers_tags::ReferrersTags;
use crate::registry::reader::ManifestReader;
use crate::registry::{Caller, Merger, Registry, Visit};
use crate::telemetry::Metrics;

/// One upstream and its handlers.
#[derive(Debug)]
pub(super) struct Handlers {
    pub(super) upstream: Arc<Upstream>,
    pub(super) registry: Arc<Registry>,
    pub(super) pushes: PushRecorder,
    pub(super) watched: PushWatcher,
    pub(super) pulls: Arc<PullRecorder>,
    pub(super) pages: Arc<ReferrerPages>,
    pub(super) references: ReferencesHandler,
    pub(super) referrers: ReferrersHandler,
    pub(super) metrics: Arc<Metrics>,
}

impl Handlers {
    /// Handlers that remember together with those of the `same` registry, if there are any.
    pub(super) fn new(
        config: &Config,
        upstream: &Arc<Upstream>,
        same: Option<&Self>,
        (index, tags, metrics, tasks): (&Index, &ReferrersTags, &Metrics, &TaskTracker),
    ) -> Self {
        let metrics = Arc::new(metrics.of_upstream(upstream.name()));
        let unlisted = UnlistedSubjects::new(tags.queue(upstream.name()), Arc::clone(&metrics));
        let registry = Registry::new(Arc::clone(upstream), config, (*metrics).clone());
        let registry = Arc::new(match same {
            Some(other) => registry.sharing(&other.registry),
            None => registry,
        });
        let pushed = PushLimits {
            bytes: config.manifests.max_bytes,
            idle: upstream.body_idle(),
            whole: config.timeouts.manifest,
            pushes: Pushes::new(config.limits.manifest_bytes),
        };
        let reader = ManifestReader::new(Arc::clone(&metrics), config.manifests.max_links_bytes, pushed);
        let pulls = PullRecorder::new(
            Arc::clone(&registry),
            index.clone(),
            reader.clone(),
            Arc::clone(&metrics),
            tasks.clone(),
            config.manifests.learn_bytes,
        );
        let pulls = Arc::new(match same {
            Some(other) => pulls.sharing(&other.pulls),
            None => pulls,
        });
        let watched = PushWatcher::new(
            Arc::clone(&registry),
            index.clone(),
            reader.clone(),
            Arc::clone(&metrics),
            tasks.clone(),
            config.limits.manifest_bytes,
        );
        let merger = Merger::new(Arc::clone(&registry), index.clone(), reader.clone(), config);
        let merger = Arc::new(merger);
        let pages = Arc::new(ReferrerPages::new(
            Arc::clone(&registry),
            merger,
            reader.clone(),
            index.clone(),
            &config.references,
        ));
        Self {
            pushes: PushRecorder::new(
                Arc::clone(&registry),
                Arc::clone(&pulls),
                index.clone(),
                reader,
                unlisted,
                tasks.clone(),
            ),
            watched,
            pulls,
            references: ReferencesHandler::new(Arc::clone(&pages)),
            referrers: ReferrersHandler::new(Arc::clone(&pages), &config.referrers),
            pages,
            upstream: Arc::clone(upstream),
            registry,
            metrics,
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
