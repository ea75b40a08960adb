//! What is watched: the metrics of a running refshim, their list in `deploy/METRICS.md`, and the dashboard and alerts
//! that are made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use regex::Regex;
use serde_json::Value;

use crate::support::{Authority, Client, Http, Refshim, Registry, about, binary};

/// Long enough for a busy machine; reaching it is a failure.
const LIMIT: Duration = Duration::from_secs(60);

/// The samples of an exposition: their names with the labels of each.
struct Samples(Vec<(String, BTreeMap<String, String>, f64)>);

impl Samples {
    async fn of(refshim: &Refshim) -> Self {
        Self::read(&Client::new(refshim.admin).text("/metrics").await)
    }

    fn read(text: &str) -> Self {
        let sample = Regex::new(r"^([a-z_]+)(?:\{(.*)\})? (\S+)$").unwrap();
        let label = Regex::new(r#"([a-z_]+)="([^"]*)""#).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(
            lines
                .map(|line| {
                    let found = sample.captures(line).unwrap_or_else(|| panic!("no sample: {line}"));
                    let labels = found.get(2).map_or("", |labels| labels.as_str());
                    let labels =
                        label.captures_iter(labels).map(|one| (one[1].to_owned(), one[2].to_owned()));
                    (found[1].to_owned(), labels.collect(), found[3].parse().unwrap())
                })
                .collect(),
        )
    }

    /// The values of the samples of this name that have this label.
    fn values(&self, name: &str, label: Option<(&str, &str)>) -> Vec<f64> {
        let is_it = |labels: &BTreeMap<String, String>| {
            label.is_none_or(|(key, value)| labels.get(key).is_some_and(|found| found == value))
        };
        let found = self.0.iter().filter(|(found, labels, _)| found == name && is_it(labels));
        found.map(|(_, _, value)| *value).collect()
    }

    #[track_caller]
    fn value(&self, name: &str) -> f64 {
        let values = self.values(name, None);
        assert_eq!(values.len(), 1, "{name}: {values:?}");
        values[0]
    }

    /// The labels of all samples of a metric.
    fn labels(&self, name: &str) -> BTreeSet<&str> {
        let of = self.0.iter().filter(|(found, ..)| found == name);
        of.flat_map(|(_, labels, _)| labels.keys().map(String::as_str)).collect()
    }
}

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// A refshim that has all metrics: with TLS, notifications, sweeps and referrers tags, after a backfill and a sweep.
struct Everything {
    refshim: Refshim,
    certificate: std::path::PathBuf,
    authority: Authority,
    _registry: Registry,
    _directory: tempfile::TempDir,
}

impl Everything {
    async fn start() -> Self {
        let (registry, directory, authority) =
            (Registry::start(), tempfile::tempdir().unwrap(), Authority::new());
        let identity = authority.server("refshim", &["127.0.0.1"]);
        // Before the first sweep: one of an empty registry, or of one that gets its first image meanwhile, is not whole.
        let direct = registry.client();
        let image = direct.image("a", "one").await;
        direct.push("a", &image).await;
        let start = Refshim::prepare(registry.address, directory.path()).with_tls(&identity);
        let start =
            start.with("TLS_RELOAD", "1h").with("SWEEP_INTERVAL", "1s").with("REFERRERS_WRITE_TAGS", "push");
        let start = start.with("NOTIFICATIONS_EVENTS_KIND", "distribution");
        let refshim = start.with("NOTIFICATIONS_EVENTS_ALLOW_ANONYMOUS", "true").launch().await;
        let url = format!("https://{}", refshim.address);
        let client = Client::to(&url, Http::One, Some(&authority.certificate()));
        client.push("a", &about(&image, &image, "sig")).await;
        client.referrers("a", &image.digest, "").await;
        let certificate = identity.certificate;
        let everything = Self { refshim, certificate, authority, _registry: registry, _directory: directory };
        everything.has("refshim_coverage_swept_timestamp_seconds").await;
        let mut backfill = Command::new(binary());
        backfill.args(["backfill", "--admin", &format!("http://{}", everything.refshim.admin)]);
        let output = backfill.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        everything
    }

    /// Waits for a metric.
    async fn has(&self, name: &str) {
        let began = Instant::now();
        while Samples::of(&self.refshim).await.values(name, None).is_empty() {
            assert!(began.elapsed() < LIMIT, "no {name}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn the_list_of_metrics_is_that_of_a_running_refshim() {
    let everything = Everything::start().await;
    let text = Client::new(everything.refshim.admin).text("/metrics").await;
    let samples = Samples::read(&text);
    let types = Regex::new(r"(?m)^# TYPE ([a-z_]+) ([a-z]+)$").unwrap();
    let exposed: BTreeSet<(String, String)> = types
        .captures_iter(&text)
        .map(|one| match &one[2] {
            "counter" => (format!("{}_total", &one[1]), "counter".to_owned()),
            // What Prometheus makes of it.
            "info" => (format!("{}_info", &one[1]), "gauge".to_owned()),
            kind => (one[1].to_owned(), kind.to_owned()),
        })
        .collect();
    let rows = Regex::new(r"(?m)^\| `([a-z_]+)` \| (counter|gauge|histogram) \| (.*?) ?\| .+ \|$").unwrap();
    let list = read("deploy/METRICS.md");
    let listed: BTreeSet<_> =
        rows.captures_iter(&list).map(|row| (row[1].to_owned(), row[2].to_owned())).collect();
    assert_eq!(listed, exposed);
    for row in rows.captures_iter(&list) {
        let name = if &row[2] == "histogram" { format!("{}_count", &row[1]) } else { row[1].to_owned() };
        let labels =
            row[3].split(", ").map(|label| label.trim_matches('`')).filter(|label| !label.is_empty());
        assert_eq!(samples.labels(&name), labels.collect(), "{name}");
    }
}

/// Each metric in a query with the labels that are matched or grouped by, and their values where they are equal.
fn uses(query: &str) -> Vec<(String, BTreeMap<String, Option<String>>)> {
    let metric = Regex::new(r"\b((?:refshim|process)_[a-z_]+)(?:\{([^}]*)\})?").unwrap();
    let matcher = Regex::new(r#"([a-z_]+)\s*(=~|!~|!=|=)\s*"([^"]*)""#).unwrap();
    let grouping = Regex::new(r"\bby \(([a-z_, ]*)\)").unwrap();
    // All metrics of a query with groups have the labels that it groups by.
    let groups: BTreeSet<String> = grouping
        .captures_iter(query)
        .flat_map(|group| group[1].split(", ").map(str::to_owned).collect::<Vec<_>>())
        .collect();
    metric
        .captures_iter(query)
        .map(|found| {
            let matchers = found.get(2).map_or("", |matchers| matchers.as_str());
            let mut labels: BTreeMap<_, _> = groups.iter().map(|label| (label.clone(), None)).collect();
            labels.extend(matcher.captures_iter(matchers).map(|one| {
                let value = (&one[2] == "=" || &one[2] == "!=").then(|| one[3].to_owned());
                (one[1].to_owned(), value)
            }));
            (found[1].to_owned(), labels)
        })
        .collect()
}

#[track_caller]
fn check_query(samples: &Samples, query: &str) {
    // Those that Prometheus adds.
    let added = ["instance", "job"];
    for (name, labels) in uses(query) {
        assert!(!samples.values(&name, None).is_empty(), "there is no {name}: {query}");
        let known = samples.labels(&name);
        for (label, value) in labels {
            // A query of two metrics may group only one of them by a label.
            let is_known = known.contains(label.as_str()) || added.contains(&label.as_str());
            assert!(is_known || query.contains("group_left"), "{name} has no {label}: {query}");
            if let Some(value) = value {
                let found = samples.values(&name, Some((&label, &value)));
                assert!(!found.is_empty(), "no {name} has {label}=\"{value}\": {query}");
            }
        }
    }
}

#[tokio::test]
async fn dashboard_and_alerts_ask_for_metrics_that_exist() {
    let everything = Everything::start().await;
    let samples = Samples::of(&everything.refshim).await;
    let dashboard: Value = serde_json::from_str(&read("deploy/observability/dashboard.json")).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert_eq!(panel["type"] != "row", panel["targets"].is_array(), "{panel}");
        for target in panel["targets"].as_array().into_iter().flatten() {
            let (query, legend) =
                (target["expr"].as_str().unwrap(), target["legendFormat"].as_str().unwrap());
            // What the legend names is among the labels.
            for label in legend.split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap()) {
                let named = uses(query).iter().any(|(name, _)| samples.labels(name).contains(label));
                assert!(named || label == "instance", "{legend}: {query}");
            }
            queries.push(query.to_owned());
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        queries.push(annotation["expr"].as_str().unwrap().to_owned());
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        queries.extend(variable["definition"].as_str().map(str::to_owned));
    }
    let alerts = read("deploy/observability/alerts.yaml");
    // An expression ends where the next key begins.
    let expression = Regex::new(r"(?ms)^        expr: (?:>-)?(.*?)^        (?:for|labels):").unwrap();
    queries.extend(
        expression.captures_iter(&alerts).map(|one| one[1].split_whitespace().collect::<Vec<_>>().join(" ")),
    );
    assert!(queries.len() > 60, "{}", queries.len());
    for query in &queries {
        check_query(&samples, query);
    }
    // The dashboard leaves nothing out.
    let all: String = queries.join("\n");
    for (name, ..) in samples.0.iter().filter(|(name, ..)| name.starts_with("refshim_")) {
        let name = name.trim_end_matches("_bucket").trim_end_matches("_sum").trim_end_matches("_count");
        assert!(all.contains(name), "nothing asks for {name}");
    }
}

#[tokio::test]
async fn counters_are_there_from_the_start_at_zero() {
    let directory = tempfile::tempdir().unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refshim = Refshim::prepare(closed, directory.path());
    let refshim = refshim.with("UPSTREAMS_HUB_URL", "http://127.0.0.1:9");
    let refshim = refshim.with("UPSTREAMS_HUB_PREFIXES", "hub").launch().await;
    let samples = Samples::of(&refshim).await;
    for upstream in ["default", "hub"] {
        for (name, count) in [
            ("refshim_links_total", 6 * 4),
            ("refshim_unrecorded_total", 5),
            ("refshim_queries_refused_total", 11),
            ("refshim_queries_stale_total", 3),
            ("refshim_notification_failures_total", 5 * 2),
            ("refshim_referrers_tag_failures_total", 6 * 2),
            ("refshim_sweeps_total", 3),
            ("refshim_query_seconds_count", 1),
        ] {
            let values = samples.values(name, Some(("upstream", upstream)));
            assert_eq!(values, vec![0.0; count], "{name}");
        }
        let requests = samples.values("refshim_requests_total", Some(("upstream", upstream)));
        assert!(requests.len() > 50 && requests.iter().all(|value| *value == 0.0), "{requests:?}");
    }
    assert_eq!(samples.values("refshim_refused_total", None), [0.0; 5]);
    assert_eq!(samples.values("refshim_log_lines_lost_total", None), [0.0; 2]);
    let version = Some(("version", env!("CARGO_PKG_VERSION")));
    assert_eq!(samples.values("refshim_build_info", version), [1.0]);
}

#[tokio::test]
async fn the_process_is_measured() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let samples = Samples::of(&refshim).await;
    let resident = samples.value("process_resident_memory_bytes");
    let read = refshim.memory();
    assert!((0.5..2.0).contains(&(resident / f64::from(u32::try_from(read).unwrap()))), "{resident} {read}");
    let open = std::fs::read_dir(format!("/proc/{}/fd", refshim.pid())).unwrap().count();
    let told = samples.value("process_open_fds");
    assert!((told - f64::from(u32::try_from(open).unwrap())).abs() < 10.0, "{told} {open}");
    assert!(samples.value("process_max_fds") >= told);
    assert!(samples.value("process_threads") >= 1.0);
    assert!(samples.value("process_cpu_seconds_total") > 0.0);
    let now = jiff::Timestamp::now().as_second();
    let age = f64::from(u32::try_from(now).unwrap()) - samples.value("process_start_time_seconds");
    assert!((-2.0..120.0).contains(&age), "{age}");
}

#[tokio::test]
async fn the_expiry_of_a_certificate_is_that_of_the_one_in_use() {
    let everything = Everything::start().await;
    let Everything { refshim, certificate, authority, .. } = &everything;
    let file = certificate.to_str().unwrap();
    let expires = async || {
        let samples = Samples::of(refshim).await;
        let values = samples.values("refshim_certificate_expiry_timestamp_seconds", Some(("file", file)));
        assert_eq!(values.len(), 1);
        values[0].to_string()
    };
    let openssl = || {
        let mut openssl = Command::new("openssl");
        openssl.args(["x509", "-noout", "-enddate", "-dateopt", "iso_8601", "-in", file]);
        let said = String::from_utf8(openssl.output().unwrap().stdout).unwrap();
        let time = said.trim().trim_start_matches("notAfter=").replace(' ', "T");
        let time: jiff::Timestamp = time.parse().unwrap_or_else(|error| panic!("{said}: {error}"));
        time.as_second().to_string()
    };
    let first = openssl();
    assert_eq!(expires().await, first);
    authority.server_until("refshim", &["127.0.0.1"], 2030);
    assert_ne!(openssl(), first);
    refshim.hang_up();
    refshim.logs("TLS files changed, new connections use them", 1).await;
    assert_eq!(expires().await, openssl());
}
