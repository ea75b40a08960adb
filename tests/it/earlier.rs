//! Data directories that earlier builds wrote open in this one, and all that was in them is listed.
//!
//! `earlier/` holds one directory for each format of the journal, without the sled index, which is built from the
//! journal. Before a format changes, the build that still writes the old one adds its directory (a new one, named
//! `journal-<format>`):
//! `EARLIER_KEEP=$PWD/tests/it/earlier/journal-2 cargo nextest run -E 'test(earlier::)'`, with `TEST_BINARY` for
//! another build than this one, whose own lists need not be the ones compared here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use reqwest::StatusCode;
use serde_json::json;

use crate::referrers::referrers_tag;
use crate::support::{
    Client, Content, IMAGE_INDEX, Refshim, Said, Scripted, Shelf, about, binary, put, shelf_registry,
};

/// Where the directories are kept.
fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/earlier")
}

/// What the directories are about: one referrer of every kind, and states that a referrer may be in.
struct Contents {
    image: Content,
    reference: Content,
    signature: Content,
    list_about: Content,
    attestation: Content,
    parent: Content,
    cosign: Content,
    listed: Content,
    deleted: Content,
    pending: Content,
    elsewhere: Content,
    mirrored: Content,
}

impl Contents {
    fn new() -> Self {
        let image = Content::image("{}", "an image");
        let named = |name: &str| {
            image.changed(|manifest| manifest["annotations"] = json!({"org.example.name": name}))
        };
        let subject = |name: &str| {
            named(name).changed(|manifest| {
                manifest["subject"] = image.descriptor();
                manifest["artifactType"] = json!("application/vnd.example.signature");
            })
        };
        let attestation = named("attestation");
        let parent = Content::index(&[&image, &attestation]).changed(|index| {
            index["manifests"][1]["annotations"] = json!({
                "vnd.docker.reference.type": "attestation-manifest",
                "vnd.docker.reference.digest": image.digest,
            });
        });
        let list_about = Content::index(&[]).changed(|index| index["subject"] = image.descriptor());
        Self {
            reference: about(&image, &image, "reference"),
            signature: subject("signature"),
            list_about,
            parent,
            attestation,
            cosign: named("cosign"),
            listed: subject("listed"),
            deleted: subject("deleted"),
            pending: subject("pending"),
            elsewhere: about(&image, &image, "elsewhere"),
            mirrored: subject("mirrored"),
            image,
        }
    }

    /// What the registry has once all was pushed, and took the push that it answered with an error.
    fn put_on(&self, registry: &Shelf) {
        let tag = referrers_tag(&self.image);
        let all = [
            &self.reference,
            &self.signature,
            &self.list_about,
            &self.attestation,
            &self.parent,
            &self.listed,
            &self.pending,
        ];
        for content in all {
            put(registry, "hello", &[], content);
        }
        put(registry, "hello", &["v1"], &self.image);
        put(registry, "hello", &[&format!("{tag}.sig")], &self.cosign);
        put(registry, "hello", &[&tag], &Content::index(&[&self.listed]));
        put(registry, "signatures", &[], &self.elsewhere);
        put(registry, "mirror/hello", &["v1"], &self.image);
        put(registry, "mirror/hello", &[], &self.mirrored);
    }

    /// A list and what is on it, oldest first.
    fn lists(&self) -> Vec<(String, Vec<&Content>)> {
        let about = |query: &str| format!("/v2/hello/manifests/v1/references{query}");
        let Self { reference, signature, list_about, parent, attestation, cosign, listed, pending, .. } =
            self;
        let digest = &self.image.digest;
        vec![
            (about("?kind=reference"), vec![reference]),
            (about("?kind=subject"), vec![signature, list_about, listed, pending]),
            (about("?kind=parent"), vec![parent]),
            (about("?kind=attestation"), vec![attestation]),
            (about("?kind=cosign"), vec![cosign]),
            (about("?kind=fallback"), vec![listed]),
            (format!("/v2/hello/referrers/{digest}"), vec![signature, list_about, listed, pending]),
            (format!("/v2/hello/manifests/{}/references", attestation.digest), vec![parent]),
            (format!("/v2/signatures/manifests/{digest}/references"), vec![&self.elsewhere]),
            (format!("/v2/mirror/hello/referrers/{digest}"), vec![&self.mirrored]),
        ]
    }
}

/// A refshim in front of one registry under two names.
async fn start(upstream: &Scripted, data: &Path, settings: &[(&'static str, &str)]) -> Refshim {
    let url = format!("http://{}", upstream.address);
    let mut start = Refshim::prepare(upstream.address, data);
    for (name, value) in [("UPSTREAMS_MIRROR_URL", &url[..]), ("UPSTREAMS_MIRROR_PREFIXES", "mirror")] {
        start = start.with(name, value);
    }
    for (name, value) in settings {
        start = start.with(name, value);
    }
    start.launch().await
}

/// Makes a data directory by pushing everything.
async fn write(data: &Path) {
    let (contents, shelf) = (Contents::new(), Shelf::default());
    let failing = contents.pending.digest.clone();
    let upstream = shelf_registry(&shelf, move |turn| {
        let fails = turn.path().contains(&failing) && !turn.is_read();
        Some(if fails { Said::status("500 Internal Server Error") } else { turn.right.clone() })
    });
    let small = [("INDEX_COMPACT_BYTES", "64KiB")];
    let refshim = start(&upstream, data, &small).await;
    let client = refshim.client();
    let Contents { image, .. } = &contents;
    client.push_as("hello", "v1", image).await;
    client.push("hello", &contents.reference).await;
    client.push("hello", &contents.signature).await;
    client.push("hello", &contents.deleted).await;
    compact(&client, data, image).await;
    client.push("hello", &contents.list_about).await;
    client.push("hello", &contents.attestation).await;
    client.push_as("hello", "all", &contents.parent).await;
    let tag = referrers_tag(image);
    client.push_as("hello", &format!("{tag}.sig"), &contents.cosign).await;
    client.push("hello", &contents.listed).await;
    client.push_as("hello", &tag, &Content::index(&[&contents.listed])).await;
    let deleted = client.delete(&format!("/v2/hello/manifests/{}", contents.deleted.digest)).await;
    assert_eq!(deleted.status, StatusCode::ACCEPTED);
    client.push("signatures", &contents.elsewhere).await;
    client.push_as("mirror/hello", "v1", image).await;
    client.push("mirror/hello", &contents.mirrored).await;
    // Pending, for the registry fails; no query asks for it here.
    let failed = client.put_manifest("hello", &contents.pending.digest, &contents.pending).await;
    assert_eq!(failed.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(refshim.stop().success());
}

/// Has the journal compacted, by referrers that are deleted at once and so leave nothing in the snapshot.
async fn compact(client: &Client, data: &Path, image: &Content) {
    for n in 0.. {
        assert!(n < 100, "it is not compacted");
        if files(&data.join("journal")).iter().any(|file| file.ends_with(".snapshot")) {
            break;
        }
        let long = about(image, image, &format!("{n}{}", "x".repeat(5_000)));
        client.push("hello", &long).await;
        client.delete(&format!("/v2/hello/manifests/{}", long.digest)).await;
    }
}

/// Opens a data directory and compares every list.
async fn read(data: &Path) {
    let (contents, shelf) = (Contents::new(), Shelf::default());
    contents.put_on(&shelf);
    let upstream = shelf_registry(&shelf, |turn| Some(turn.right.clone()));
    let refshim = start(&upstream, data, &[]).await;
    for (list, expected) in contents.lists() {
        let answer = refshim.client().get(&list).await;
        assert_eq!(answer.status, StatusCode::OK, "{list}: {answer:?}");
        assert_eq!(answer.header("content-type"), IMAGE_INDEX, "{list}");
        let index = answer.json();
        let found: Vec<_> = index["manifests"].as_array().unwrap().iter().collect();
        let digests: Vec<_> = found.iter().map(|entry| entry["digest"].as_str().unwrap()).collect();
        let wanted: Vec<_> = expected.iter().map(|content| content.digest.as_str()).collect();
        assert_eq!(digests, wanted, "{list}");
        for (entry, content) in found.iter().zip(expected) {
            assert_eq!(entry["mediaType"], content.media_type.as_str(), "{list}");
            assert_eq!(entry["size"], content.bytes.len(), "{list}");
            assert_eq!(entry["artifactType"].is_null(), content.media_type == IMAGE_INDEX, "{list}");
            assert_eq!(entry["annotations"], content.value["annotations"], "{list}");
        }
    }
    let across =
        format!("/v2/hello/manifests/{}/references?scope=registry&kind=reference", contents.image.digest);
    let across = refshim.client().get(&across).await.json();
    let across: Vec<_> =
        across["manifests"].as_array().unwrap().iter().map(|entry| &entry["digest"]).collect();
    assert_eq!(across, [&contents.reference.digest, &contents.elsewhere.digest]);
    assert!(refshim.stop().success());
    let check = Command::new(binary()).args(["index", "check", "--data-dir"]).arg(data).output().unwrap();
    assert!(check.status.success(), "{check:?}");
}

/// The names of the files in a directory.
fn files(directory: &Path) -> Vec<String> {
    let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut files: Vec<_> = files.collect();
    files.sort();
    files
}

/// Copies a journal.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("journal")).unwrap();
    for file in files(&from.join("journal")) {
        fs::copy(from.join("journal").join(&file), to.join("journal").join(&file)).unwrap();
    }
}

/// The formats of the files of a journal, which stand behind eight bytes that name refshim.
fn formats(data: &Path) -> Vec<u32> {
    let files = files(&data.join("journal")).into_iter().map(|file| data.join("journal").join(file));
    let format = |file| u32::from_be_bytes(fs::read::<PathBuf>(file).unwrap()[8..12].try_into().unwrap());
    files.map(format).collect()
}

#[tokio::test]
async fn directories_of_earlier_builds_list_all_that_was_in_them() {
    let directories = files(&kept());
    assert_eq!(directories, ["journal-1", "journal-2"]);
    for name in directories {
        let (from, data) = (kept().join(&name), tempfile::tempdir().unwrap());
        let format: u32 = name.trim_start_matches("journal-").parse().unwrap();
        assert_eq!(formats(&from), [format, format], "a snapshot and a segment");
        copy(&from, data.path());
        read(data.path()).await;
        // And once more, now that this build has written to it: what was pending is settled in a new file.
        assert!(formats(data.path()).into_iter().max() > Some(format));
        read(data.path()).await;
    }
}

#[tokio::test]
async fn this_build_opens_its_own_directory_with_sled_and_without() {
    let directory = tempfile::tempdir().unwrap();
    let (data, journal) = (directory.path().join("data"), directory.path().join("journal alone"));
    write(&data).await;
    copy(&data, &journal);
    if let Some(keep) = std::env::var_os("EARLIER_KEEP") {
        copy(&data, Path::new(&keep));
    }
    read(&data).await;
    read(&journal).await;
}
