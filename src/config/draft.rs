//! The configuration while it is parsed: what each setting is so far, and what all of them give together.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::consistency::inconsistencies;
use super::database::DatabaseDraft;
use super::logs;
use super::mistake::Mistake;
use super::notifications::{SourceDraft, SourceName};
use super::tls_files::{Places, TlsChecks, TlsFiles};
use super::upstream::{UpstreamDraft, UpstreamName};
use super::{
    AccessLogConfig, AuditConfig, ClientAuth, Config, IndexConfig, LimitsConfig, LogConfig, ManifestsConfig,
    NotificationsConfig, ReferencesConfig, ReferrersConfig, RegistryUrl, SweepConfig, TimeoutsConfig,
    TlsConfig, TracesConfig, WebConfig,
};

/// The configuration while it is parsed: the upstream may still be missing.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) upstreams: BTreeMap<UpstreamName, UpstreamDraft>,
    pub(super) external_url: Option<RegistryUrl>,
    pub(super) trusted_proxies: Vec<IpNet>,
    pub(super) listen: SocketAddr,
    pub(super) admin_listen: SocketAddr,
    pub(super) web: WebConfig,
    pub(super) data_dir: PathBuf,
    pub(super) tls: TlsConfig,
    pub(super) tls_reload: Duration,
    pub(super) timeouts: TimeoutsConfig,
    pub(super) manifests: ManifestsConfig,
    pub(super) references: ReferencesConfig,
    pub(super) referrers: ReferrersConfig,
    pub(super) limits: LimitsConfig,
    pub(super) notifications: NotificationsConfig,
    pub(super) sweep: SweepConfig,
    pub(super) sources: BTreeMap<SourceName, SourceDraft>,
    pub(super) index: IndexConfig,
    pub(super) database: DatabaseDraft,
    pub(super) traces: TracesConfig,
    pub(super) log: LogConfig,
    pub(super) access_log: AccessLogConfig,
    pub(super) audit: AuditConfig,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            upstreams: BTreeMap::new(),
            external_url: None,
            trusted_proxies: Vec::new(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 5000)),
            admin_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 5001)),
            web: WebConfig::default(),
            data_dir: PathBuf::from("./refshim-data"),
            tls: TlsConfig {
                certificates: Vec::new(),
                keys: Vec::new(),
                client_ca: None,
                client_auth: ClientAuth::Required,
            },
            tls_reload: Duration::from_secs(10),
            timeouts: TimeoutsConfig::default(),
            manifests: ManifestsConfig::default(),
            references: ReferencesConfig::default(),
            referrers: ReferrersConfig::default(),
            limits: LimitsConfig::default(),
            notifications: NotificationsConfig::default(),
            sweep: SweepConfig::default(),
            sources: BTreeMap::new(),
            index: IndexConfig::default(),
            database: DatabaseDraft::default(),
            traces: TracesConfig::default(),
            log: LogConfig::default(),
            access_log: AccessLogConfig::default(),
            audit: AuditConfig::default(),
        }
    }
}

impl Draft {
    pub(super) fn default_upstream(&mut self) -> &mut UpstreamDraft {
        self.upstream(&UpstreamName::default_upstream())
    }

    pub(super) fn upstream(&mut self, name: &UpstreamName) -> &mut UpstreamDraft {
        self.upstreams.entry(name.clone()).or_default()
    }

    pub(super) fn source(&mut self, name: &SourceName) -> &mut SourceDraft {
        self.sources.entry(name.clone()).or_default()
    }

    /// The mistakes in the files that the settings name.
    pub(super) fn file_mistakes(&self, checks: &TlsChecks, places: &Places) -> Vec<Mistake> {
        let upstreams =
            self.upstreams.iter().map(|(name, draft)| TlsFiles::towards_upstream(name, &draft.tls));
        let database = TlsFiles::towards_database(&self.database.tls);
        let all = [TlsFiles::towards_clients(&self.tls), database].into_iter().chain(upstreams);
        let services = self.upstreams.iter().flat_map(|(name, draft)| draft.service.mistakes(name, places));
        let sources = self.sources.iter().flat_map(|(name, draft)| draft.mistakes(name, places));
        let secrets = services.chain(sources).chain(self.database.mistake(places));
        all.flat_map(|files| files.mistakes(checks, places)).chain(secrets).collect()
    }

    /// The mistakes in the files that the settings of the database name.
    pub(super) fn database_mistakes(&self, checks: &TlsChecks, places: &Places) -> Vec<Mistake> {
        let of_tls = TlsFiles::towards_database(&self.database.tls).mistakes(checks, places);
        of_tls.into_iter().chain(self.database.mistake(places)).collect()
    }

    /// The configuration, if it has an upstream and its settings are consistent; else the mistakes.
    pub(super) fn finish(self) -> Result<Config, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let mut upstreams = Vec::new();
        for (name, draft) in self.upstreams {
            let problem = |problem| mistakes.push(Mistake::new(format!("upstreams.{name}"), problem));
            upstreams.extend(draft.finish(&name, &self.timeouts, problem));
        }
        let names: Vec<UpstreamName> = upstreams.iter().map(|upstream| upstream.name.clone()).collect();
        let mut sources = Vec::new();
        for (name, draft) in self.sources {
            let problem = |problem| mistakes.push(Mistake::new(format!("notifications.{name}"), problem));
            sources.extend(draft.finish(&name, &names, problem));
        }
        let problem = |key, problem| mistakes.push(Mistake::new(key, problem));
        let database = self.database.finish(&self.index, problem);
        mistakes.extend(inconsistencies(&upstreams, &self.tls, &self.limits, &self.manifests));
        mistakes.extend(logs::mistake(&self.access_log, &self.audit));
        let default = upstreams.iter().position(|upstream| upstream.name.is_default());
        let (Some(default), true) = (default, mistakes.is_empty()) else { return Err(mistakes) };
        Ok(Config {
            upstream: upstreams.remove(default),
            further_upstreams: upstreams,
            external_url: self.external_url,
            trusted_proxies: self.trusted_proxies,
            listen: self.listen,
            admin_listen: self.admin_listen,
            web: self.web,
            data_dir: self.data_dir,
            tls: Some(self.tls).filter(|tls| !tls.certificates.is_empty()),
            tls_reload: self.tls_reload,
            timeouts: self.timeouts,
            manifests: self.manifests,
            references: self.references,
            referrers: self.referrers,
            limits: self.limits,
            notifications: NotificationsConfig { sources, ..self.notifications },
            sweep: self.sweep,
            index: IndexConfig { database, ..self.index },
            traces: self.traces,
            log: self.log,
            access_log: self.access_log,
            audit: self.audit,
        })
    }
}
