//! A real registry that is told to send its notifications to refshim.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, OnceLock};
use std::thread;

use serde_json::json;

use super::{SECRET, holds, notified, refer, secret, worked_off};
use crate::support::{Content, Refshim, Registry, USER, Variant, about, fill};

/// Leads to refshim, which is started after the registry that is to know where it is.
struct Way {
    address: SocketAddr,
    end: Arc<OnceLock<SocketAddr>>,
}

impl Way {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, end) = (listener.local_addr().unwrap(), Arc::new(OnceLock::new()));
        let to = Arc::clone(&end);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // Refused until refshim is there: the registry tries again.
                let Some(Ok(onward)) = to.get().map(TcpStream::connect) else { continue };
                let copies = [(&stream, &onward), (&onward, &stream)]
                    .map(|(from, to)| (from.try_clone().unwrap(), to.try_clone().unwrap()));
                for (mut from, mut to) in copies {
                    thread::spawn(move || {
                        let _broken = std::io::copy(&mut from, &mut to);
                        let _closed = to.shutdown(std::net::Shutdown::Write);
                    });
                }
            }
        });
        Self { address, end }
    }

    fn leads_to(&self, refshim: &Refshim) {
        self.end.set(refshim.admin).unwrap();
    }

    /// A registry that sends what happens along this way.
    fn from(&self, registry: Variant) -> Registry {
        let settings = format!(
            "notifications: {{endpoints: [{{name: refshim, url: 'http://{}/notifications/events', timeout: 5s, \
             threshold: 3, backoff: 50ms, headers: {{Authorization: ['Bearer {SECRET}']}}}}]}}",
            self.address
        );
        registry.with(&settings).start()
    }
}

#[tokio::test]
async fn what_is_pushed_past_refshim_is_listed() {
    let (way, data) = (Way::start(), tempfile::tempdir().unwrap());
    let registry = way.from(Registry::variant());
    let refshim = notified(Refshim::before(&registry, data.path()), data.path()).launch().await;
    way.leads_to(&refshim);
    let past = registry.client();
    let image = past.image("team/app", "image").await;
    past.push_as("team/app", "v1", &image).await;
    let sbom = about(&image, &image, "sbom");
    past.push("team/app", &sbom).await;
    refer(&refshim, "team/app", &image, &[&sbom]).await;
    let signature = image.changed(|manifest| manifest["annotations"] = json!({"signed": "by cosign"}));
    let tag = format!("{}.sig", image.digest.replace(':', "-"));
    past.push_as("team/app", &tag, &signature).await;
    refer(&refshim, "team/app", &image, &[&sbom, &signature]).await;
    let attestation = image.changed(|manifest| manifest["annotations"] = json!({"built": "by buildx"}));
    past.push("team/app", &attestation).await;
    let index = Content::index(&[&image, &attestation]).changed(|index| {
        index["manifests"][1]["annotations"] = json!({
            "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": image.digest,
        });
    });
    past.push_as("team/app", "v2", &index).await;
    refer(&refshim, "team/app", &image, &[&sbom, &signature, &attestation, &index]).await;
    let deleted = past.delete(&format!("/v2/team/app/manifests/{}", sbom.digest)).await;
    assert!(deleted.status.is_success(), "{deleted:?}");
    refer(&refshim, "team/app", &image, &[&signature, &attestation, &index]).await;
    worked_off(&refshim).await;
}

#[tokio::test]
async fn every_dialect_is_listed_as_it_was_pushed() {
    let (way, data) = (Way::start(), tempfile::tempdir().unwrap());
    let registry = way.from(Registry::variant());
    let refshim = notified(Refshim::before(&registry, data.path()), data.path()).launch().await;
    way.leads_to(&refshim);
    let filled = fill(&registry.client(), 4, 60, 3).await;
    holds(&refshim, &filled).await;
}

#[tokio::test]
async fn a_registry_that_lets_nobody_in_is_asked_with_the_service_credentials() {
    let (way, data) = (Way::start(), tempfile::tempdir().unwrap());
    let registry = way.from(Registry::variant().passwords());
    let (user, password) = USER;
    let file = secret(data.path()).with_file_name("password");
    std::fs::write(&file, "not this one").unwrap();
    let refshim = notified(Refshim::before(&registry, data.path()), data.path())
        .with("UPSTREAMS_DEFAULT_SERVICE_USER", user)
        .with("UPSTREAMS_DEFAULT_SERVICE_PASSWORD_FILE", file.to_str().unwrap())
        .with("LOG_FILTER", "info,refshim::notifications=debug")
        .launch()
        .await;
    way.leads_to(&refshim);
    let past = registry.client().as_user(user, password);
    let image = past.image("team/app", "image").await;
    past.push_as("team/app", "v1", &image).await;
    let sbom = about(&image, &image, "sbom");
    past.push("team/app", &sbom).await;
    refshim.logs("upstreams.NAME.service", 1).await;
    // Rotated, without a restart.
    std::fs::write(&file, password).unwrap();
    worked_off(&refshim).await;
    let path = format!("/v2/team/app/manifests/{}/references", image.digest);
    let list = refshim.client().as_user(user, password).get(&path).await.json();
    assert_eq!(list["manifests"][0]["digest"], json!(sbom.digest), "{list}");
    // refshim may read it; a client without credentials still may not.
    assert_eq!(refshim.client().get(&path).await.status, reqwest::StatusCode::UNAUTHORIZED);
}
