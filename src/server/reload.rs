//! Loads the configuration again on SIGHUP and on `POST /reload`, and looks at TLS files on these and at intervals.
//!
//! What is loaded is taken over as a whole or not at all: not if there is any mistake, and not if a setting changed
//! that takes a restart, since half of a file in force is what nobody wrote. Requests in progress go on with what they
//! began with, and connections on both sides stay.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot, watch};

use super::app::Parts;
use super::live::Live;
use super::{StartError, service_manager, warn_of_idle_settings};
use crate::admin::ReloadRequest;
use crate::config::{ConfigSources, Loaded, Mistakes};
use crate::http::limits::Connections;
use crate::notifications::Notifications;
use crate::proxy::upstream::Upstreams;
use crate::telemetry::LogFilter;
use crate::tls::{Acceptor, Reload};

/// A configuration, and what loads and takes over another one.
#[derive(Debug)]
pub struct Reloading {
    /// Where it is loaded from.
    pub sources: ConfigSources,
    /// What was loaded from there.
    pub loaded: Loaded,
    /// The log filter.
    pub filter: LogFilter,
}

/// Why a configuration is not taken over.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error("{0}")]
    Mistakes(#[from] Mistakes),
    #[error("{}", restart_needed(.0))]
    Restart(Vec<String>),
    #[error("{0}")]
    Start(#[from] StartError),
    #[error("it came from standard input, which cannot be read again; a restart takes another one")]
    Input,
    #[error("the configuration could not be loaded: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// Reloads what a server runs with.
#[derive(Debug)]
pub(super) struct Reloader {
    pub(super) sources: ConfigSources,
    pub(super) loaded: Mutex<Loaded>,
    pub(super) filter: LogFilter,
    pub(super) live: watch::Sender<Arc<Live>>,
    pub(super) upstreams: watch::Sender<Upstreams>,
    pub(super) acceptor: watch::Sender<Option<Arc<Acceptor>>>,
    pub(super) parts: Parts,
    pub(super) connections: Connections,
    pub(super) notifications: Arc<Notifications>,
}

/// What makes the server look at its files.
enum Cause {
    Interval,
    Hangup,
    Request(oneshot::Sender<Result<String, String>>),
}

impl Reloader {
    /// Reloads whenever there is a reason to, for ever.
    pub(super) async fn watch(
        self: Arc<Self>,
        mut hangup: Signal,
        mut requests: mpsc::Receiver<ReloadRequest>,
    ) {
        loop {
            let interval = self.live.borrow().tls_interval;
            let cause = tokio::select! {
                () = tokio::time::sleep(interval) => Cause::Interval,
                _ = hangup.recv() => Cause::Hangup,
                Some(ReloadRequest(answer)) = requests.recv() => Cause::Request(answer),
            };
            match cause {
                Cause::Interval => {}
                Cause::Hangup => {
                    service_manager::reloading().await;
                    drop(self.reload("SIGHUP").await);
                    service_manager::ready().await;
                }
                // Whoever asked may be gone.
                Cause::Request(answer) => drop(answer.send(self.reload("POST /reload").await)),
            }
            self.reload_tls().await;
        }
    }

    /// Looks at the TLS files of both sides.
    async fn reload_tls(&self) {
        let live = Arc::clone(&self.live.borrow());
        let (notifications, tags) = (Arc::clone(&self.notifications), Arc::clone(&self.parts.tags));
        // The files may be on a volume that hangs.
        let looked = tokio::task::spawn_blocking(move || {
            live.acceptor.iter().for_each(|acceptor| acceptor.reload());
            live.upstreams.iter().for_each(|upstream| upstream.reload());
            live.web.iter().for_each(Reload::reload);
            notifications.reload();
            tags.reload();
        });
        if let Err(error) = looked.await {
            tracing::error!(%error, "the TLS files could not be looked at");
        }
    }

    /// Loads the configuration and takes it over; in words what changed, or every reason why it is not taken over.
    async fn reload(self: &Arc<Self>, cause: &str) -> Result<String, String> {
        let reloader = Arc::clone(self);
        let loaded = tokio::task::spawn_blocking(move || reloader.take_over()).await;
        let outcome = loaded.unwrap_or_else(|error| Err(error.into()));
        self.parts.metrics.loaded_configuration(outcome.is_ok());
        match outcome {
            Ok(changed) if changed.is_empty() => {
                tracing::info!(cause, "the configuration was loaded again, nothing changed");
                Ok("nothing changed".to_owned())
            }
            Ok(changed) => {
                let changed = changed.join(", ");
                tracing::info!(cause, changed, "the configuration was loaded again");
                Ok(format!("changed: {changed}"))
            }
            Err(error) => {
                let reasons = error.to_string();
                for reason in reasons.lines() {
                    tracing::error!(cause, "the configuration is not taken over: {reason}");
                }
                Err(reasons)
            }
        }
    }

    /// The keys of what changed. Blocks on the disk.
    fn take_over(&self) -> Result<Vec<String>, ReloadError> {
        if self.sources.given.file().is_some_and(|file| file.as_os_str() == "-") {
            return Err(ReloadError::Input);
        }
        let new = self.sources.load()?;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changes = loaded.settings.changes(&new.settings);
        // Its files may change, but the listener speaks TLS or it does not.
        if loaded.config.tls.is_some() != new.config.tls.is_some() {
            changes.fixed.push("tls.certificate".to_owned());
        }
        if !changes.fixed.is_empty() {
            return Err(ReloadError::Restart(changes.fixed));
        }
        if !changes.live.is_empty() {
            let before = Arc::clone(&self.live.borrow());
            let live = Live::new(&new.config, &self.parts, Some(&before))?;
            self.connections.resize(new.config.limits.connections);
            self.upstreams.send_replace(live.upstreams.clone());
            self.acceptor.send_replace(live.acceptor.clone());
            self.live.send_replace(Arc::new(live));
            warn_of_idle_settings(&new.config);
        }
        // Also if it is the same in the file: it may have been changed by the admin listener.
        if let Err(error) = self.filter.set(&new.config.log.filter) {
            tracing::error!(%error, "the log filter cannot be changed");
        }
        *loaded = new;
        Ok(changes.live)
    }
}

fn restart_needed(keys: &[String]) -> String {
    format!("changed, and takes a restart: {} (nothing was taken over)", keys.join(", "))
}
