//! The web page in Chromium: clicked through without script, and looked at by axe in light, dark and narrow.
//! `WEB_SHOTS` names a directory for pictures of every page.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::content;
use crate::clients::installed;
use crate::support::{Refshim, Registry, USER};

#[tokio::test]
async fn people_find_their_way_with_any_eyes_and_without_script() {
    let registry = Registry::with_user();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, directory.path()).with_web().launch().await;
    let owner = refshim.client().as_user(USER.0, USER.1);
    let app = content::app(&owner).await;
    let hostile = content::hostile(&owner).await;
    let shots = std::env::var("WEB_SHOTS").ok();
    // For the pictures more than for what is clicked.
    content::many(&owner, if shots.is_some() { 500 } else { 110 }).await;
    let empty = owner.image("empty", "empty").await;
    owner.push_as("empty", "v1", &empty).await;
    let argument = json!({
        "base": refshim.web_url(""),
        "user": {"username": USER.0, "password": USER.1},
        "index": app.index.digest,
        "sbom": app.sbom.digest,
        "hostile": hostile.referrer.digest,
        "shots": shots,
    });
    let node_modules = installed("node/node_modules");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/browse.mjs");
    let mut node = Command::new("node");
    node.arg(script).arg(argument.to_string()).current_dir(node_modules.parent().unwrap());
    let output = node.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
