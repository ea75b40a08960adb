//! Others write the same lists: nobody's entry is lost.

use std::sync::Mutex;

use super::*;

/// What happens to a list that is not on the specification's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Race {
    /// Somebody else writes between our last read and our write, and the registry honours `If-Match`.
    Conditional,
    /// Somebody who read before our write writes after it, and takes everybody's entries back.
    Stale,
    /// Somebody writes between our first read and the second.
    Before,
    /// The registry takes no condition for what it is.
    NoConditions,
}

/// An image with one signature of ours and a list with one of somebody else's, in a registry where this happens; the
/// names of those that are listed in the end.
async fn listed_after(race: Race) -> Vec<String> {
    let (content, data, shell) = (Shelf::default(), tempfile::tempdir().unwrap(), Shell::new());
    let image = Content::image("image", "layer");
    let [ours, theirs, late] = ["ours", "theirs", "late"].map(|name| about(&image, name));
    let tag = referrers_tag(&image.digest);
    put(&content, "app", &["v1"], &image);
    put(&content, "app", &[], &theirs);
    put(&content, "app", &[], &late);
    put(&content, "app", &[&tag], &Content::index(&[&theirs]));
    let fair = shelf_registry(&content, |turn| Some(turn.right.clone()));
    pushed(fair.address, data.path(), &[("app", &ours)]).await;

    let (manifests, happened) = (Shelf::clone(&content), Mutex::new((0, 0)));
    let (with_late, only_late) = (Content::index(&[&theirs, &late]), Content::index(&[&late]));
    let list_tag = tag.clone();
    let registry = shelf_registry(&content, move |turn| {
        let mut right = turn.right.clone();
        if turn.target != Target::ReferrersTag {
            return Some(right);
        }
        let is_put = turn.request.line.starts_with("PUT ");
        let mut happened = happened.lock().unwrap();
        let (reads, writes) = &mut *happened;
        *(if is_put { &mut *writes } else { &mut *reads }) += 1;
        let now = manifests.lock().unwrap().get(&("app".to_owned(), list_tag.clone())).cloned().unwrap();
        let etag = format!("\"{}\"", now.digest);
        match race {
            Race::Conditional if is_put => {
                if *writes == 1 {
                    put(&manifests, "app", &[&list_tag], &with_late);
                    return Some(Said::status("412 Precondition Failed"));
                }
                assert_eq!(turn.request.header("if-match"), Some(etag.as_str()));
            }
            Race::Stale if !is_put && *reads == 3 => {
                put(&manifests, "app", &[&list_tag], &only_late);
                right = Said::manifest(&only_late);
            }
            Race::Before if !is_put && *reads == 2 => {
                put(&manifests, "app", &[&list_tag], &with_late);
                right = Said::manifest(&with_late);
            }
            Race::NoConditions if is_put && turn.request.header("if-match").is_some() => {
                return Some(Said::status("412 Precondition Failed"));
            }
            Race::Conditional | Race::Stale | Race::Before | Race::NoConditions => {}
        }
        let is_tagged = matches!(race, Race::Conditional | Race::NoConditions) && !is_put;
        Some(if is_tagged { right.with("etag", &etag) } else { right })
    });
    report(shell.export(&format!("http://{}", registry.address), data.path(), &[]));
    let list = content.lock().unwrap()[&("app".to_owned(), tag)].value.clone();
    let entries = list["manifests"].as_array().unwrap().iter();
    let mut names: Vec<String> =
        entries.map(|entry| entry["annotations"]["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn an_entry_that_comes_at_the_wrong_moment_stays() {
    let all = ["late", "ours", "theirs"];
    assert_eq!(listed_after(Race::Conditional).await, all);
    assert_eq!(listed_after(Race::Before).await, all);
    assert_eq!(listed_after(Race::Stale).await, all, "and what a stale write took is put back");
    assert_eq!(listed_after(Race::NoConditions).await, ["ours", "theirs"]);
}

/// Real processes on a real registry, which has no conditions.
#[tokio::test]
async fn an_export_and_many_who_attach_lose_nothing_of_each_other() {
    let (data, shell) = (tempfile::tempdir().unwrap(), Shell::new());
    let (registry, image, signatures) = signed(data.path(), 5).await;
    // docker-registry itself refuses manifests while several put the first copy of one blob.
    registry.client().push_blob("app", b"{}").await;
    let name = format!("{}/app:v1", registry.address);
    let attach = |n: usize| {
        let file = format!("file {n}");
        shell.write(&file, &file);
        let arguments = ["attach", &name, &file, "--artifact-type", SIGNATURE];
        shell.command(&arguments).spawn().unwrap()
    };
    let mut running: Vec<_> = (0..6).map(attach).collect();
    let url = registry.url();
    let export = ["export", "--upstream", &url, "--data-dir", data.path().to_str().unwrap(), "--json"];
    let export = shell.command(&export).spawn().unwrap();
    running.extend((6..9).map(attach));
    let mut expected = digests(&signatures);
    expected.extend(running.into_iter().map(|child| Ended::of(child).ok()));
    report(Ended::of(export));
    expected.sort();
    assert_eq!(keys(tagged(&registry.client(), "app", &image.digest).await), expected);
}

/// docker-registry takes no list that names what it does not have.
#[tokio::test]
async fn what_was_deleted_and_is_still_listed_is_in_nobodys_way() {
    let registry = Registry::start();
    let (client, shell) = (registry.client(), Shell::new());
    let image = client.image("app", "image").await;
    client.push_as("app", "v1", &image).await;
    let gone = about(&image, "gone");
    client.push("app", &gone).await;
    client.push_as("app", &referrers_tag(&image.digest), &Content::index(&[&gone])).await;
    assert_eq!(
        client.delete(&format!("/v2/app/manifests/{}", gone.digest)).await.status,
        StatusCode::ACCEPTED
    );
    shell.write("file", "file");
    let attach = ["attach", &format!("{}/app:v1", registry.address), "file", "--artifact-type", SIGNATURE];
    let attached = shell.ok(&attach);
    assert_eq!(keys(tagged(&client, "app", &image.digest).await), [attached]);
}
