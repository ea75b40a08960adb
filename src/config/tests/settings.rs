//! Every setting: its default, its field, and its place in the example file.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::notifications::SOURCE_SETTINGS;
use super::super::settings::{KnownSetting, SETTINGS, Setting};
use super::super::upstream::UPSTREAM_SETTINGS;
use super::super::{
    AccessLogConfig, AuditConfig, ClientAuth, CommandLine, Config, Http2, IndexConfig, LimitsConfig,
    LogConfig, LogFormat, LogOutput, ManifestsConfig, ReferencesConfig, ReferrersConfig, ServiceConfig,
    Share, SweepConfig, TimeoutsConfig, TlsConfig, TracesConfig, UpstreamConfig, UpstreamTls, WebConfig,
    WriteTags, file,
};
use super::{EXAMPLE, defaults, from_file, upstream};
use crate::config::{NotificationSource, NotificationsConfig, SourceCredentials, SourceKind, UpstreamName};
use crate::oci::LinkKind;

#[test]
fn an_upstream_is_enough() {
    let config = defaults();
    assert_eq!(config.upstream.url.to_string(), "https://registry.example");
    assert_eq!(config.listen.to_string(), "127.0.0.1:5000");
    assert_eq!(config.admin_listen.to_string(), "127.0.0.1:5001");
    assert_eq!(config.data_dir, Path::new("./refshim-data"));
}

#[test]
fn the_example_file_loads_as_it_stands() {
    let given = CommandLine { config: Some(PathBuf::from(EXAMPLE)), ..CommandLine::default() };
    assert_eq!(Config::load(&given, []), Ok(defaults()));
}

#[test]
fn the_example_file_holds_every_setting_at_its_default() {
    let text = fs::read_to_string(EXAMPLE).unwrap();
    let uncommented = text.lines().map(|line| line_of(line, "#")).collect::<Vec<_>>().join("\n");
    assert_eq!(from_file(&uncommented).load(), Ok(defaults()));
}

#[test]
fn the_example_file_shows_every_setting() {
    let text = fs::read_to_string(EXAMPLE).unwrap();
    let shown = text.lines().map(|line| line_of(line_of(line, "# "), "#")).collect::<Vec<_>>().join("\n");
    let contents = file::read(Path::new(EXAMPLE), &shown);
    let said = contents.said.into_iter().map(|said| said.unwrap().setting);
    let (of_source, others): (Vec<KnownSetting>, Vec<KnownSetting>) =
        said.partition(|setting| matches!(setting, KnownSetting::OfSource(..)));
    let (of_upstream, common): (Vec<KnownSetting>, Vec<KnownSetting>) =
        others.into_iter().partition(|setting| matches!(setting, KnownSetting::OfUpstream(..)));
    let keys = |found: Vec<KnownSetting>| -> Vec<&str> {
        let key = |known| match known {
            KnownSetting::Common(setting) => setting.key,
            KnownSetting::OfUpstream(_, setting) => setting.key,
            KnownSetting::OfSource(_, setting) => setting.key,
        };
        // Settings that exclude each other are shown at several upstreams.
        let mut seen = BTreeSet::new();
        found.into_iter().map(key).filter(|key| seen.insert(*key)).collect()
    };
    assert_eq!(keys(common), SETTINGS.iter().map(|setting| setting.key).collect::<Vec<_>>());
    let expected: Vec<&str> = UPSTREAM_SETTINGS.iter().map(|setting| setting.key).collect();
    assert_eq!(keys(of_upstream), expected);
    let expected: Vec<&str> = SOURCE_SETTINGS.iter().map(|setting| setting.key).collect();
    assert_eq!(keys(of_source), expected);
    assert!(from_file(&shown).load().is_ok());
}

/// A setting or a table behind this mark; any other line as it is.
fn line_of<'a>(line: &'a str, mark: &str) -> &'a str {
    let is_setting = |rest: &&str| {
        let (key, _) = rest.split_once(" = ").unwrap_or((rest, ""));
        let is_table = key.starts_with('[') && key.ends_with(']');
        is_table
            || (rest.contains(" = ")
                && key.chars().all(|c| c.is_ascii_lowercase() || matches!(c, '_' | '0'..='9')))
    };
    line.strip_prefix(mark).filter(is_setting).unwrap_or(line)
}

#[test]
fn every_setting_has_a_key_and_a_variable_of_its_own() {
    let keys: BTreeSet<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
    let variables: BTreeSet<String> = SETTINGS.iter().map(Setting::variable).collect();
    assert_eq!((keys.len(), variables.len()), (SETTINGS.len(), SETTINGS.len()));
}

/// Every setting that is not an upstream's, each at another value than its default.
pub(super) const EVERY_SETTING: &str = r#"
    upstream = "http://10.0.0.5"
    listen = "[::]:0"
    admin_listen = "0.0.0.0:0"
    data_dir = "/data"
    external_url = "https://hub.example.com"
    trusted_proxies = ["10.0.0.0/8", "::1"]
    tls = { certificate = ["a.crt", "b.crt"], key = "a.key, b.key", client_ca = "ca", client_auth = "optional", reload = "6s" }
    timeouts.connect = "1s"
    timeouts.response = "2s"
    timeouts.body_idle = "3m"
    timeouts.client_headers = "4h"
    timeouts.pool_idle = "5ms"
    timeouts.shutdown = "0s"
    timeouts.manifest = "7s"
    timeouts.index = "6s"
    web.listen = "[::1]:0"
    manifests = { max_bytes = 1, max_links_bytes = "2KiB", learn_bytes = 0 }
    referrers = { include = ["cosign", "parent"], upstream_ttl = "3s", stale_for = "4s", write_tags = "push" }
    [references]
    page_bytes = 0x1_0000
    access_ttl = "0s"
    concurrency = "9"
    scope_repositories = 7
    cache_bytes = 8
    [limits]
    connections = 11
    requests_per_client = 12
    manifest_bytes = "13MiB"
    answer_bytes = "17MiB"
    questions = 14
    repository_referrers = 15
    [sweep]
    interval = "24h"
    rate = 21
    [index]
    cache_bytes = "1GiB"
    compact_bytes = "3MiB"
    forget_after = "2h"
    [traces]
    endpoint = "http://collector:4318"
    sample = "0.5%"
    [log]
    format = "json"
    filter = "debug"
    [access_log]
    output = "stdout"
    [audit]
    output = "/var/log/refshim/audit.jsonl"
    max_bytes = "2MiB"
    keep = 3
"#;

#[test]
fn every_setting_reaches_its_field() {
    let timeouts = TimeoutsConfig {
        connect: Duration::from_secs(1),
        response: Duration::from_secs(2),
        body_idle: Duration::from_secs(3 * 60),
        client_headers: Duration::from_secs(4 * 3600),
        pool_idle: Duration::from_millis(5),
        shutdown: Duration::ZERO,
        manifest: Duration::from_secs(7),
        index: Duration::from_secs(6),
    };
    let expected = Config {
        upstream: upstream("default", "http://10.0.0.5", &timeouts),
        further_upstreams: Vec::new(),
        external_url: Some("https://hub.example.com".parse().unwrap()),
        trusted_proxies: vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
        tls: Some(TlsConfig {
            certificates: vec!["a.crt".into(), "b.crt".into()],
            keys: vec!["a.key".into(), "b.key".into()],
            client_ca: Some("ca".into()),
            client_auth: ClientAuth::Optional,
        }),
        tls_reload: Duration::from_secs(6),
        listen: "[::]:0".parse().unwrap(),
        admin_listen: "0.0.0.0:0".parse().unwrap(),
        web: WebConfig { listen: Some("[::1]:0".parse().unwrap()) },
        data_dir: PathBuf::from("/data"),
        timeouts,
        manifests: ManifestsConfig { max_bytes: 1, max_links_bytes: 2 << 10, learn_bytes: 0 },
        references: ReferencesConfig {
            page_bytes: 1 << 16,
            access_ttl: Duration::ZERO,
            concurrency: 9,
            scope_repositories: 7,
            cache_bytes: 8,
        },
        referrers: ReferrersConfig {
            include: [LinkKind::Cosign, LinkKind::Parent].into_iter().collect(),
            upstream_ttl: Duration::from_secs(3),
            stale_for: Duration::from_secs(4),
            write_tags: WriteTags::Push,
        },
        limits: LimitsConfig {
            connections: 11,
            requests_per_client: 12,
            manifest_bytes: 13 << 20,
            answer_bytes: 17 << 20,
            questions: 14,
            repository_referrers: 15,
        },
        notifications: NotificationsConfig::default(),
        sweep: SweepConfig { interval: Duration::from_secs(24 * 3600), rate: 21 },
        index: IndexConfig {
            database: None,
            cache_bytes: 1 << 30,
            compact_bytes: 3 << 20,
            forget_after: Duration::from_secs(2 * 3600),
        },
        traces: TracesConfig {
            endpoint: Some("http://collector:4318".parse().unwrap()),
            sample: Share(5_000),
        },
        log: LogConfig { format: LogFormat::Json, filter: "debug".to_owned() },
        access_log: AccessLogConfig { output: LogOutput::Stdout },
        audit: AuditConfig {
            output: LogOutput::File("/var/log/refshim/audit.jsonl".into()),
            max_bytes: 2 << 20,
            keep: 3,
        },
    };
    assert_eq!(from_file(EVERY_SETTING).load(), Ok(expected));
}

fn source(name: &str, kind: SourceKind, credentials: SourceCredentials) -> NotificationSource {
    let upstream = UpstreamName::default_upstream();
    NotificationSource { name: name.parse().unwrap(), kind, upstream, credentials }
}

pub(super) const NOTIFICATIONS: &str = r#"
    upstream = "http://10.0.0.5"
    [notifications]
    queue = 16
    rate = 17
    give_up_after = "1h"
    [notifications.registry]
    kind = "distribution"
    user = "registry"
    password_file = "password"
    [notifications.harbor]
    kind = "harbor"
    upstream = "default"
    secret_file = "secret"
    [notifications.zot]
    kind = "zot"
    allow_anonymous = true
"#;

#[test]
fn every_setting_of_notifications_reaches_its_field() {
    let expected = NotificationsConfig {
        sources: vec![
            source("harbor", SourceKind::Harbor, SourceCredentials::Secret("secret".into())),
            source(
                "registry",
                SourceKind::Distribution,
                SourceCredentials::Password { user: "registry".to_owned(), password_file: "password".into() },
            ),
            source("zot", SourceKind::Zot, SourceCredentials::Anybody),
        ],
        queue: 16,
        rate: 17,
        give_up_after: Duration::from_secs(3600),
    };
    let mut sources = from_file(NOTIFICATIONS);
    assert_eq!(sources.load().unwrap().notifications, expected);
    sources.variables = vec![
        ("REFSHIM_NOTIFICATIONS_RATE".into(), "18".into()),
        ("REFSHIM_NOTIFICATIONS_HARBOR_KIND".into(), "zot".into()),
    ];
    let found = sources.load().unwrap().notifications;
    assert_eq!((found.rate, found.sources[0].kind), (18, SourceKind::Zot));
}

pub(super) const UPSTREAMS: &str = r#"
    upstream = "http://10.0.0.5"
    timeouts.response = "9s"
    [upstreams.default]
    http2 = "auto"
    [upstreams.hub]
    url = "https://hub.example/base"
    hosts = ["Hub.example.com", "hub:8443"]
    namespaces = "docker.io"
    prefixes = ["hub", "mirror/hub"]
    strip_prefix = true
    ca = "ca"
    certificate = "crt"
    key = "key"
    server_name = "inside"
    http2 = "always"
    rewrite_realm = "true"
    connect = "1s"
    body_idle = "3s"
    pool_idle = "4s"
    service.token_file = "token"
    [upstreams.default.service]
    user = "refshim"
    password_file = "password"
"#;

#[test]
fn every_setting_of_an_upstream_reaches_its_field() {
    let common = TimeoutsConfig { response: Duration::from_secs(9), ..TimeoutsConfig::default() };
    let own = TimeoutsConfig {
        connect: Duration::from_secs(1),
        body_idle: Duration::from_secs(3),
        pool_idle: Duration::from_secs(4),
        ..common.clone()
    };
    let hub = UpstreamConfig {
        hosts: vec!["hub.example.com".to_owned(), "hub:8443".to_owned()],
        namespaces: vec!["docker.io".to_owned()],
        prefixes: vec!["hub".parse().unwrap(), "mirror/hub".parse().unwrap()],
        strip_prefix: true,
        tls: UpstreamTls {
            ca: Some("ca".into()),
            certificate: Some("crt".into()),
            key: Some("key".into()),
            server_name: Some("inside".to_owned()),
            insecure_skip_verify: false,
        },
        service: Some(ServiceConfig::Token("token".into())),
        http2: Http2::Always,
        rewrite_realm: true,
        ..upstream("hub", "https://hub.example/base", &own)
    };
    let mut sources = from_file(UPSTREAMS);
    let config = sources.load().unwrap();
    assert_eq!(config.further_upstreams, [hub]);
    let service = ServiceConfig::Password { user: "refshim".to_owned(), password_file: "password".into() };
    let expected = UpstreamConfig {
        http2: Http2::Auto,
        service: Some(service),
        ..upstream("default", "http://10.0.0.5", &common)
    };
    assert_eq!(config.upstream, expected);
    sources.variables = vec![
        ("REFSHIM_UPSTREAMS_HUB_SERVER_NAME".into(), "outside".into()),
        ("REFSHIM_UPSTREAMS_HUB_HOSTS".into(), "a, b".into()),
        ("REFSHIM_UPSTREAMS_DEFAULT_INSECURE_SKIP_VERIFY".into(), "true".into()),
        ("REFSHIM_UPSTREAMS_DEFAULT_SERVICE_USER".into(), "other".into()),
    ];
    let config = sources.load().unwrap();
    let hub = &config.further_upstreams[0];
    assert_eq!(hub.tls.server_name.as_deref(), Some("outside"));
    assert_eq!(hub.hosts, ["a", "b"]);
    assert!(config.upstream.tls.insecure_skip_verify);
    let user = |service| match service {
        Some(ServiceConfig::Password { user, .. }) => user,
        _ => String::new(),
    };
    assert_eq!(user(config.upstream.service), "other");
}

#[test]
fn an_upstreams_number_follows_from_its_name_and_that_of_the_default_one_is_zero() {
    let number = |name| upstream(name, "http://a", &TimeoutsConfig::default()).number();
    assert_eq!((number("default"), number("hub")), (0, 0x08d3_3503));
}
