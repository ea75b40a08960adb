//! The access log and the audit log: opened at the start, opened anew at each SIGHUP, closed last.

use std::sync::Arc;

use tokio::signal::unix::Signal;

use super::access_log::AccessLog;
use crate::config::Config;
use crate::telemetry::{Audit, LineLog, LineLogError, LogName, Metrics, Rotation};

/// Both logs, as far as they are on.
#[derive(Clone, Debug)]
pub(super) struct Logs {
    pub(super) access: Option<Arc<AccessLog>>,
    pub(super) audit: Audit,
    lines: Vec<Arc<LineLog>>,
}

impl Logs {
    /// Opens them.
    ///
    /// # Errors
    /// A file cannot be opened.
    pub(super) fn open(config: &Config, metrics: &Metrics) -> Result<Self, LineLogError> {
        // Not rotated here: as with any web server, that is logrotate's.
        let never = Rotation { max_bytes: 0, keep: 1 };
        let access = LineLog::open(LogName::Access, &config.access_log.output, never, metrics)?;
        let rotation = Rotation { max_bytes: config.audit.max_bytes, keep: config.audit.keep };
        let audit = LineLog::open(LogName::Audit, &config.audit.output, rotation, metrics)?;
        Ok(Self {
            lines: access.iter().chain(&audit).cloned().collect(),
            access: access.map(|lines| Arc::new(AccessLog::new(lines, config.log.format))),
            audit: Audit::new(audit),
        })
    }

    /// Opens the files anew at each SIGHUP, for ever.
    pub(super) async fn watch(&self, mut hangup: Signal) {
        while hangup.recv().await.is_some() {
            self.lines.iter().for_each(|lines| lines.reopen());
        }
        std::future::pending::<()>().await;
    }

    /// Waits until everything is written, but not for long.
    pub(super) async fn close(&self) {
        for lines in &self.lines {
            lines.close().await;
        }
    }
}
