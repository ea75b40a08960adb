//! `refshim gc`: what refers to images that are gone, and nothing else, is found and deleted.

use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::backfill::catalogued;
use super::exporting::{about, by_digest, failed, has, pushed, referrers_tag, report, tagged};
use super::{CREATED, Ended, Shell};
use crate::support::{Content, Refshim, Registry, Said, Shelf, Turn, put};

impl Shell {
    fn gc(&self, registry: &str, data_dir: &Path, more: &[&str]) -> Ended {
        let arguments = ["gc", "--upstream", registry, "--data-dir", data_dir.to_str().unwrap(), "--json"];
        self.run(&[&arguments, more].concat())
    }
}

fn found(report: &Value) -> Vec<String> {
    let garbage = report["garbage"].as_array().unwrap().iter();
    garbage.map(|it| it["digest"].as_str().unwrap().to_owned()).collect()
}

fn sorted<'a>(contents: impl IntoIterator<Item = &'a Content>) -> Vec<String> {
    let mut digests: Vec<String> = contents.into_iter().map(|content| content.digest.clone()).collect();
    digests.sort();
    digests
}

/// What there is about an image that is gone.
struct Left {
    image: Content,
    sbom: Content,
    /// Of the SBOM.
    signature: Content,
    cosign: Content,
    /// What has to stay: it is about another image as well, has a tag, or is in an index.
    kept: Vec<Content>,
}

impl Left {
    fn garbage(&self) -> Vec<String> {
        sorted([&self.sbom, &self.signature, &self.cosign])
    }
}

/// A registry that an image was deleted from, and whose lists are exported.
async fn left(data_dir: &Path, shell: &Shell) -> (Registry, Left) {
    let registry = Registry::start();
    let refshim = Refshim::start(registry.address, data_dir).await;
    let client = refshim.client();
    let (other, image) = (client.image("app", "other").await, client.image("app", "image").await);
    client.push_as("app", "v1", &other).await;
    client.push_as("app", "v2", &image).await;
    let sbom = about(&image, "sbom")
        .changed(|manifest| manifest["annotations"][CREATED] = json!("2020-02-02T02:02:02Z"));
    let signature = about(&sbom, "signature");
    let cosign = image.changed(|manifest| manifest["annotations"] = json!({"name": "cosign"}));
    let both = about(&image, "both").changed(|manifest| manifest["reference"] = other.descriptor());
    let [of_other, with_tag, in_index] =
        [about(&other, "of other"), about(&image, "with tag"), about(&image, "in index")];
    for content in [&sbom, &signature, &both, &of_other, &in_index] {
        client.push("app", content).await;
    }
    client.push_as("app", &format!("{}.sig", referrers_tag(&image.digest)), &cosign).await;
    client.push_as("app", "mine", &with_tag).await;
    let bundle = Content::index(&[&in_index]);
    client.push_as("app", "bundle", &bundle).await;
    refshim.stop();
    report(shell.export(&registry.url(), data_dir, &["--tag-referrers"]));
    let deleted = registry.client().delete(&format!("/v2/app/manifests/{}", image.digest)).await;
    assert_eq!(deleted.status, StatusCode::ACCEPTED);
    let kept = vec![other, both, of_other, with_tag, in_index, bundle];
    (registry, Left { image, sbom, signature, cosign, kept })
}

#[tokio::test]
async fn what_refers_to_what_is_gone_is_found_and_deleted_and_all_else_stays() {
    let (data, shell) = (tempfile::tempdir().unwrap(), Shell::new());
    let (registry, left) = left(data.path(), &shell).await;
    let url = registry.url();
    let told = report(shell.gc(&url, data.path(), &[]));
    assert_eq!(found(&told), left.garbage(), "{told}");
    let of = |digest: &str| {
        let garbage = told["garbage"].as_array().unwrap().iter();
        garbage.clone().find(|it| it["digest"] == digest).unwrap().clone()
    };
    assert_eq!(of(&left.sbom.digest)["created"], "2020-02-02T02:02:02Z");
    assert_eq!(of(&left.sbom.digest)["subjects"], json!([left.image.digest]));
    assert!(of(&left.cosign.digest)["size"].as_u64().unwrap() > left.cosign.bytes.len() as u64);
    let old = report(shell.gc(&url, data.path(), &["--older-than", "100d", "--dry-run"]));
    assert_eq!(found(&old), [left.sbom.digest.clone()]);
    let ended = shell.gc(&url, data.path(), &["--delete"]);
    ended.failed(2, &["no terminal", "--yes"]);
    for digest in left.garbage() {
        assert!(has(&registry.client(), "app", &digest).await, "nothing was deleted");
    }

    let told = report(shell.gc(&url, data.path(), &["--delete", "--yes"]));
    assert_eq!(told["deleted"], json!(3));
    for digest in left.garbage() {
        assert!(!has(&registry.client(), "app", &digest).await);
    }
    for content in &left.kept {
        assert!(has(&registry.client(), "app", &content.digest).await, "{}", content.value);
    }
    let list = tagged(&registry.client(), "app", &left.image.digest).await.unwrap();
    assert_eq!(
        list.into_keys().collect::<Vec<_>>(),
        sorted(&left.kept[1..2].iter().chain(&left.kept[3..5]).cloned().collect::<Vec<_>>())
    );
    assert_eq!(found(&report(shell.gc(&url, data.path(), &[]))), [""; 0]);
    let refshim = Refshim::start(registry.address, data.path()).await;
    let listed = refshim.client().get(&format!("/v2/app/referrers/{}", left.image.digest)).await.json();
    assert!(!by_digest(&listed).contains_key(&left.sbom.digest), "{listed}");
    assert!(by_digest(&listed).contains_key(&left.kept[1].digest), "{listed}");
}

#[tokio::test]
async fn what_the_registry_does_not_delete_is_told_and_found_again() {
    let (data, shell) = (tempfile::tempdir().unwrap(), Shell::new());
    let (registry, left) = left(data.path(), &shell).await;
    let closed = Registry::variant().read_only(&registry).start();
    let told = failed(&shell.gc(&closed.url(), data.path(), &["--delete", "--yes"]), &["405", "3 failed"]);
    assert_eq!((found(&told), &told["deleted"]), (left.garbage(), &json!(0)));
    let told = report(shell.gc(&registry.url(), data.path(), &["--delete", "--yes"]));
    assert_eq!(told["deleted"], json!(3));
}

/// As cosign does with `COSIGN_REPOSITORY`.
#[tokio::test]
async fn a_repository_of_signatures_alone_is_no_garbage() {
    let (data, shell) = (tempfile::tempdir().unwrap(), Shell::new());
    let registry = Registry::start();
    let refshim = Refshim::start(registry.address, data.path()).await;
    let client = refshim.client();
    let image = client.image("app", "image").await;
    client.push_as("app", "v1", &image).await;
    let signature = about(&client.image("signatures", "image").await, "signature");
    client.push("signatures", &signature).await;
    refshim.stop();
    let url = registry.url();
    assert_eq!(found(&report(shell.gc(&url, data.path(), &[]))), [""; 0]);
    let names = shell.write("names", "signatures\n");
    let from = ["--repositories-from", names.to_str().unwrap()];
    assert_eq!(found(&report(shell.gc(&url, data.path(), &from))), [signature.digest.clone()]);
    assert_eq!(
        registry.client().delete(&format!("/v2/app/manifests/{}", image.digest)).await.status,
        StatusCode::ACCEPTED
    );
    assert_eq!(found(&report(shell.gc(&url, data.path(), &[]))), [signature.digest]);
}

#[tokio::test]
async fn deleting_asks_on_a_terminal() {
    let (data, shell) = (tempfile::tempdir().unwrap(), Shell::new());
    let (registry, left) = left(data.path(), &shell).await;
    let gc = format!("gc --upstream {} --data-dir {}", registry.url(), data.path().display());
    assert_eq!(shell.run(&[&gc.split(' ').collect::<Vec<_>>()[..], &["--yes"]].concat()).code, 2);
    let answered = |answer: &str| {
        let typed = format!("{} {gc} --delete", env!("CARGO_BIN_EXE_refshim"));
        let mut command = std::process::Command::new("script");
        command.args(["--quiet", "--return", "--command", &typed, "/dev/null"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), answer.as_bytes()).unwrap();
        Ended::of(child)
    };
    let no = answered("n\n");
    assert_eq!(no.code, 1, "{no:?}");
    for said in ["Delete these 3 manifests", "[y/N]", "nothing was deleted", &left.sbom.digest] {
        assert!(no.out.contains(said), "{no:?}");
    }
    assert!(has(&registry.client(), "app", &left.sbom.digest).await);
    let yes = answered("y\n");
    assert_eq!(yes.code, 0, "{yes:?}");
    for digest in left.garbage() {
        assert!(!has(&registry.client(), "app", &digest).await);
    }
}

/// What comes of a signature of an image for which the registry says this.
async fn deleted_where(
    said: impl Fn(&Turn<'_>, &Content, usize) -> Option<Said> + Send + Sync + 'static,
) -> (Ended, bool) {
    let (content, data, shell) = (Shelf::default(), tempfile::tempdir().unwrap(), Shell::new());
    let image = Content::image("image", "layer");
    let signature = about(&image, "signature");
    put(&content, "app", &["v1"], &Content::image("other", "layer"));
    let fair = catalogued(&content, |turn| Some(turn.right.clone()));
    pushed(fair.address, data.path(), &[("app", &signature)]).await;
    let asked = Mutex::new(0);
    let registry = catalogued(&content, move |turn| {
        if turn.is_read() && turn.path().ends_with(&image.digest) {
            *asked.lock().unwrap() += 1;
        }
        let times = *asked.lock().unwrap();
        said(turn, &image, times)
    });
    let ended = shell.gc(&format!("http://{}", registry.address), data.path(), &["--delete", "--yes"]);
    let is_gone = !content.lock().unwrap().contains_key(&("app".to_owned(), signature.digest));
    (ended, is_gone)
}

#[tokio::test]
async fn whatever_is_in_doubt_is_kept() {
    let is_about = |turn: &Turn<'_>, image: &Content| turn.is_read() && turn.path().ends_with(&image.digest);
    let (ended, is_gone) = deleted_where(|turn, _, _| Some(turn.right.clone())).await;
    assert_eq!((report(ended)["deleted"].clone(), is_gone), (json!(1), true), "without a doubt it goes");
    // Each of the two looks asks by HEAD and by GET.
    for moment in 1..=4 {
        let (ended, is_gone) = deleted_where(move |turn, image, times| {
            let is_there = is_about(turn, image) && times > moment;
            Some(if is_there { Said::manifest(image) } else { turn.right.clone() })
        })
        .await;
        assert!(!is_gone, "it was gone for a moment");
        // Either it was not found, or it is told that it is kept.
        assert_eq!(ended.code == 1, ended.err.contains("it is kept"), "{ended:?}");
    }
    let (ended, is_gone) = deleted_where(move |turn, image, _| {
        Some(if is_about(turn, image) { Said::status("403 Forbidden") } else { turn.right.clone() })
    })
    .await;
    failed(&ended, &["403"]);
    assert!(!is_gone, "it is denied, not gone");
    let (ended, is_gone) = deleted_where(move |_, _, _| Some(Said::status("404 Not Found"))).await;
    failed(&ended, &["v1", "it is not there"]);
    assert!(!is_gone, "everything is 404");
    let (ended, is_gone) = deleted_where(move |turn, _, _| {
        let is_tags = turn.path().contains("/tags/list");
        Some(if is_tags { Said::status("403 Forbidden") } else { turn.right.clone() })
    })
    .await;
    failed(&ended, &["tags", "403"]);
    assert!(!is_gone, "it may have a tag");
}
