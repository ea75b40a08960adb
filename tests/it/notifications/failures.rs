//! The registry fails while what it told of is looked at.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde_json::json;

use super::{event, metric, notified, refer, tell, worked_off};
use crate::support::{Content, Refshim, Said, Shelf, about, put, shelf_registry, take};

/// What refshim asks for itself, with credentials of its own, says who it is.
const OWN: &str = "refshim/";

#[tokio::test]
async fn a_registry_that_lags_fails_throttles_or_hangs_up_is_asked_again() {
    let (shelf, data) = (Shelf::default(), tempfile::tempdir().unwrap());
    let image = Content::image("config", "layer");
    put(&shelf, "a/b", &["v1"], &image);
    let sboms: Vec<Content> = (0..4).map(|number| about(&image, &image, &number.to_string())).collect();
    for sbom in &sboms {
        put(&shelf, "a/b", &[], sbom);
    }
    let asked: Mutex<BTreeMap<String, usize>> = Mutex::default();
    let first = sboms.iter().map(|sbom| sbom.digest.clone()).collect::<Vec<_>>();
    let registry = shelf_registry(&shelf, move |turn| {
        let is_own = turn.request.header("user-agent").is_some_and(|agent| agent.starts_with(OWN));
        let odd = first.iter().position(|digest| turn.path().ends_with(digest.as_str()));
        let (true, Some(odd)) = (is_own, odd) else { return Some(turn.right.clone()) };
        let mut asked = asked.lock().unwrap();
        let times = asked.entry(turn.path().to_owned()).or_default();
        *times += 1;
        match (odd, *times) {
            (0, 1 | 2) => Some(Said::status("404 Not Found")),
            (1, 1) => Some(Said::status("503 Service Unavailable")),
            (2, 1) => Some(Said::status("429 Too Many Requests").with("retry-after", "1")),
            (3, 1) => None,
            _ => Some(turn.right.clone()),
        }
    });
    let refshim = notified(Refshim::prepare(registry.address, data.path()), data.path()).launch().await;
    let events: Vec<_> = sboms.iter().map(|sbom| event("push", "a/b", sbom, None)).collect();
    tell(&refshim, &events).await;
    refer(&refshim, "a/b", &image, &sboms.iter().collect::<Vec<_>>()).await;
    worked_off(&refshim).await;
    let missing =
        "refshim_notification_failures_total{upstream=\"default\",reason=\"missing\",dropped=\"false\"}";
    assert_eq!(metric(refshim.admin, missing).await, 2);
    // Twice more, late, and in the wrong order: nothing changes. What is gone is not listed, whatever is told.
    take(&shelf, "a/b", &sboms[0].digest);
    let late =
        [event("delete", "a/b", &sboms[0], None), event("delete", "a/b", &sboms[1], None), events[1].clone()];
    tell(&refshim, &late).await;
    worked_off(&refshim).await;
    refer(&refshim, "a/b", &image, &sboms[1..].iter().collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn what_cannot_be_recorded_is_given_up_with_a_warning() {
    let (shelf, data) = (Shelf::default(), tempfile::tempdir().unwrap());
    let image = Content::image("config", "layer");
    let long = about(&image, &image, "long").changed(|manifest| {
        manifest["annotations"] = json!({"long": "x".repeat(4096)});
    });
    for content in [&image, &long] {
        put(&shelf, "a", &[], content);
    }
    let registry = shelf_registry(&shelf, |turn| Some(turn.right.clone()));
    let refshim = notified(Refshim::prepare(registry.address, data.path()), data.path())
        .with("MANIFESTS_MAX_BYTES", "4KiB")
        .launch()
        .await;
    tell(&refshim, &[event("push", "a", &long, None)]).await;
    refshim.logs("an event of a notification is given up", 1).await;
    worked_off(&refshim).await;
    let dropped =
        "refshim_notification_failures_total{upstream=\"default\",reason=\"unreadable\",dropped=\"true\"}";
    assert_eq!(metric(refshim.admin, dropped).await, 1);
}
