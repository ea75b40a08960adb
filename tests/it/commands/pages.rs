//! Lists of several pages, whatever the `Link` between them looks like.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::Shell;
use crate::support::{Content, IMAGE_INDEX, IMAGE_MANIFEST, Scripted};

const REFERRERS: usize = 6;

/// A registry with an image `v1` and referrers of it, two a page. What `link` says to the number of a page, and to
/// the path of the list, is its `Link` field.
struct Paged {
    registry: Scripted,
    image: Content,
    referrers: Vec<Content>,
}

fn paged(link: impl Fn(usize, &str) -> Option<String> + Send + Sync + 'static) -> Paged {
    let image = Content::image("{}", "x");
    let referrer = |number: usize| {
        image.changed(|manifest| {
            manifest["subject"] = image.descriptor();
            manifest["artifactType"] = json!("a/b");
            manifest["annotations"] = json!({"number": number.to_string()});
        })
    };
    let referrers: Vec<Content> = (0..REFERRERS).map(referrer).collect();
    let list = format!("/v2/a/referrers/{}", image.digest);
    let (known, listed) = (image.clone(), referrers.clone());
    let registry = Scripted::start(move |exchange| {
        let target = exchange.request.line.split(' ').nth(1).unwrap().to_owned();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let all = || std::iter::once(&known).chain(&listed);
        if path == list {
            let page = query.split('&').find_map(|pair| pair.strip_prefix("page="));
            let page: usize = page.map_or(0, |page| page.parse().unwrap());
            let entries: Vec<Value> = listed.iter().skip(2 * page).take(2).map(Content::descriptor).collect();
            let body =
                json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": entries}).to_string();
            let link = link(page, &list).map_or(String::new(), |link| format!("{link}\r\n"));
            exchange.answer(&answer(IMAGE_INDEX, &link, &body));
        } else if path == "/v2/a/tags/list" {
            let link = link(0, path).map_or(String::new(), |link| format!("{link}\r\n"));
            exchange.answer(&answer("application/json", &link, r#"{"tags":["v1"]}"#));
        } else if let Some(content) = all().find(|content| path.ends_with(&content.digest)) {
            exchange.answer(&answer(IMAGE_MANIFEST, "", std::str::from_utf8(&content.bytes).unwrap()));
        } else if path.ends_with("/v1") {
            exchange.answer(&answer(IMAGE_MANIFEST, "", std::str::from_utf8(&known.bytes).unwrap()));
        } else {
            exchange.answer_status("404 Not Found");
        }
    });
    Paged { registry, image, referrers }
}

fn answer(media_type: &str, link: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\n{link}connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

impl Paged {
    fn name(&self) -> String {
        format!("{}/a:v1", self.registry.address)
    }

    /// How often the list was asked for.
    fn asked(&self) -> usize {
        let list = format!("/referrers/{}", self.image.digest);
        self.registry.requests().iter().filter(|request| request.line.contains(&list)).count()
    }
}

#[test]
fn all_pages_are_read_in_whatever_form_they_are_linked() {
    let targets: [fn(usize, &str) -> String; 5] = [
        |page, list| format!("{list}?page={page}"),
        |page, _| format!("?page={page}&x=a,b;c"),
        |page, list| format!("https://inner.invalid:1{list}?page={page}"),
        |page, list| format!("//inner.invalid{list}?page={page}"),
        |page, list| format!("./{}?page={page}", list.rsplit('/').next().unwrap()),
    ];
    let fields: [fn(&str) -> String; 6] = [
        |target| format!("link: <{target}>; rel=\"next\""),
        |target| format!("Link: <{target}>;rel=next"),
        |target| format!("link: <{target}>; title=\"a, <b>; c\"; REL=\"first Next\""),
        |target| format!("link: </v2/>; rel=\"first\", <{target}>; rel=\"next\""),
        |target| format!("link: </v2/>; rel=first\r\nlink: <{target}>; rel=next; x=y"),
        |target| format!("link: <{target}>; rel=\"next\", </v2/>; rel=prev"),
    ];
    for target in targets {
        for field in fields {
            let paged = paged(move |page, list| (page < 2).then(|| field(&target(page + 1, list))));
            let listed = Shell::new().ok(&["references", &paged.name(), "--format", "digest"]);
            let listed: BTreeSet<&str> = listed.lines().collect();
            let expected: BTreeSet<&str> =
                paged.referrers.iter().map(|referrer| referrer.digest.as_str()).collect();
            assert_eq!(listed, expected, "{}", field(&target(1, "/v2/a/referrers/D")));
            assert_eq!(paged.asked(), 3);
        }
    }
}

#[test]
fn a_list_that_leads_back_to_itself_ends_the_command() {
    let next = |page: usize, list: &str| Some(format!("link: <{list}?page={page}>; rel=\"next\""));
    let check = |paged: &Paged, asked: usize| {
        for command in ["references", "tree"] {
            let before = paged.asked();
            let failed = Shell::new().run(&[command, &paged.name()]);
            failed.failed(1, &["asking", "leads back to a page before"]);
            assert_eq!(paged.asked() - before, asked);
        }
    };
    check(&paged(move |page, list| next(page, list)), 2);
    check(&paged(|_, _| Some("link: <>; rel=next".to_owned())), 1);
    check(&paged(move |page, list| next(1 - page.min(1), list)), 3);
    check(&paged(move |page, list| next((page + 1) % 3, list)), 4);
    let tags = paged(move |page, list| next(page, list));
    let copy = ["copy", "--all-tags", &format!("{}/a", tags.registry.address), "oci:out"];
    Shell::new().run(&copy).failed(1, &["listing the tags of", "leads back"]);
}

#[test]
fn a_list_without_an_end_ends_the_command() {
    let endless = paged(|page, list| Some(format!("link: <{list}?page={}>; rel=\"next\"", page + 1)));
    Shell::new().run(&["references", &endless.name()]).failed(1, &["does not end within 2000 pages"]);
    assert_eq!(endless.asked(), 2_000);
}

#[test]
fn a_page_that_cannot_be_read_is_a_failure_and_no_shorter_list() {
    for link in
        ["link: <ftp://x/y>; rel=next", "link: <http://[::1/>; rel=next", "link: </v2/a/none>; rel=next"]
    {
        let paged = paged(move |_, _| Some(link.to_owned()));
        let failed = Shell::new().run(&["references", &paged.name()]);
        assert_ne!(failed.code, 0, "{link}");
        assert_eq!(failed.out, "", "{link}");
    }
}

#[test]
fn credentials_stay_with_the_registry_whatever_host_a_link_names() {
    let other = Scripted::answering("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let elsewhere = other.address;
    let paged = paged(move |page, list| {
        (page < 2).then(|| format!("link: <http://{elsewhere}{list}?page={}>; rel=\"next\"", page + 1))
    });
    let shell = Shell::new();
    let command =
        ["references", &paged.name(), "--format", "digest", "--username", "alice", "--password-stdin"];
    let listed = shell.run_with_input(&command, b"secret").ok();
    assert_eq!(listed.lines().count(), REFERRERS);
    assert_eq!(other.requests().len(), 0);
}

#[test]
fn a_plus_is_sent_so_that_no_registry_takes_it_for_a_blank() {
    let paged = paged(|_, _| None);
    let wanted = ["--artifact-type", "application/vnd.x.v0.3+json", "--annotation", "a b=c+d"];
    Shell::new().ok(&[&["references", &paged.name()], &wanted[..]].concat());
    let requests = paged.registry.requests();
    let query = requests.iter().find(|request| request.line.contains("/references?")).unwrap();
    assert!(!query.line.contains('+'), "{}", query.line);
    assert!(query.line.contains("v0%2E3%2Bjson") && query.line.contains("a%20b%3Dc%2Bd"), "{}", query.line);
}
