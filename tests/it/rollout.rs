//! The guide for rolling out, as it stands there, in front of a real registry.

use std::process::Command;

use crate::support::{Registry, about, binary, fill};

/// The shell's blocks of the guide, without the first, which says where everything is.
fn commands() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/ROLLOUT.md");
    let guide = std::fs::read_to_string(path).unwrap();
    let blocks = guide.split("\n```sh\n").skip(2);
    blocks.map(|block| block.split("\n```").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// Ports that nobody listens on at this moment.
fn free_ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

#[tokio::test]
async fn every_step_of_the_guide_works_and_leads_back() {
    let registry = Registry::start();
    let direct = registry.client();
    fill(&direct, 3, 30, 14).await;
    let image = direct.image("app", "an image").await;
    direct.push_as("app", "v1", &image).await;
    let sbom = about(&image, &image, "sbom").changed(|manifest| {
        let subject = manifest.as_object_mut().unwrap().remove("reference").unwrap();
        manifest["subject"] = subject;
    });
    direct.push_as("app", "sbom", &sbom).await;
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(binary(), directory.path().join("refshim")).unwrap();
    let [listen, admin] = free_ports();
    let script = format!(
        "set -euxo pipefail\ntrap 'kill \"${{serving:-}}\" 2>/dev/null || true' EXIT\n\
         REGISTRY={} REFSHIM=127.0.0.1:{listen} ADMIN=http://127.0.0.1:{admin}\n{}",
        registry.url(),
        commands()
    );
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
    let command = move || {
        let mut bash = Command::new("bash");
        bash.args(["-c", &script])
            .current_dir(directory.path())
            .env("HOME", directory.path())
            .env("PATH", path);
        let ended = bash.output().unwrap();
        drop(directory);
        ended
    };
    let ended = tokio::task::spawn_blocking(command).await.unwrap();
    let told = [ended.stdout, ended.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(ended.status.success(), "{}", told.join("\n"));
    let count = told[0].matches(&sbom.digest).count();
    // The JSON of a list names each twice: its digest, and where it is.
    assert_eq!(count, 5, "compared, in the cluster, everywhere, and after it: {}", told[0]);
}
