//! The pages and their templates (`templates/`), which escape every text that is put into them.

use std::collections::HashSet;

use askama::Template;
use jiff::Timestamp;

use super::Web;
use super::commands::{Command, commands, tree_command};
use super::gather::{Part, Reader, Surroundings};
use super::graph::Drawing;
use super::item::{Below, Item, Relation, Signed};
use super::places::PLACES;
use super::respond::{Door, Failure, Shown};
use super::site::{Asked, Site};
use super::text::{Age, count, hostile, short, size};
use super::visitor::Visitor;
use crate::client::Manifest;
use crate::config::UpstreamName;
use crate::index::Covered;
use crate::oci::artifact::TITLE;
use crate::oci::{ArtifactKind, Digest, TagOrDigest};

/// Entries of a page.
const ENTRIES: usize = 100;
/// Entries that are drawn or counted into a group.
const DRAWN: usize = 1_000;
/// Annotations and files of a manifest that are shown.
const SHOWN: usize = 500;

/// The page to search on.
#[derive(Debug, Template)]
#[template(path = "search.html", config = "src/web/askama.toml")]
pub(super) struct SearchPage<'a> {
    /// The registries to choose from, if there are several.
    pub(super) choices: &'a [String],
}

/// Where something is attached to a digest.
#[derive(Debug, Template)]
#[template(path = "places.html", config = "src/web/askama.toml")]
struct PlacesPage<'a> {
    digest: &'a str,
    places: &'a [(String, String)],
    /// Whether the registry answered for all that it was asked about.
    is_whole: bool,
    most: usize,
    login: Option<String>,
}

/// Why there is no page.
#[derive(Debug, Template)]
#[template(path = "failure.html", config = "src/web/askama.toml")]
pub(super) struct FailurePage<'a> {
    pub(super) title: &'a str,
    pub(super) text: &'a str,
    pub(super) login: Option<&'a str>,
}

/// Which parts of refshim work.
#[derive(Debug, Template)]
#[template(path = "health.html", config = "src/web/askama.toml")]
pub(super) struct HealthPage<'a> {
    pub(super) parts: &'a [(String, bool)],
    pub(super) replicas: Option<u64>,
}

/// What the pages about one manifest say first.
#[derive(Debug)]
struct Head {
    image: String,
    digest: String,
    kind: &'static str,
    raw_type: String,
    /// Of the manifest and of what it lists.
    size: Option<String>,
    age: Option<Age>,
    is_there: bool,
    image_page: String,
    graph_page: String,
    details_page: String,
    coverage_page: String,
    /// For a visitor without credentials.
    login_page: Option<String>,
}

/// A line of a table of manifests.
#[derive(Debug)]
enum Row {
    Entry(Box<Entry>),
    /// More is attached than has room here.
    More {
        level: usize,
        page: String,
    },
}

#[derive(Debug)]
struct Entry {
    level: usize,
    kind: &'static str,
    raw_type: String,
    predicates: Vec<String>,
    short: String,
    page: String,
    platform: String,
    size: String,
    age: Option<Age>,
    relation: String,
    signed: Option<Signed>,
}

#[derive(Debug, Template)]
#[template(path = "image.html", config = "src/web/askama.toml")]
struct ImagePage<'a> {
    head: &'a Head,
    signed: Signed,
    since: Option<String>,
    rows: &'a [Row],
    parents: &'a [Row],
    more_parents: bool,
    more_children: usize,
    kind: Option<ArtifactKind>,
    is_first: bool,
    next: Option<String>,
    commands: &'a [Command],
}

#[derive(Debug, Template)]
#[template(path = "graph.html", config = "src/web/askama.toml")]
struct GraphPage<'a> {
    head: &'a Head,
    since: Option<String>,
    summary: String,
    drawing: &'a Drawing,
    is_whole: bool,
}

#[derive(Debug, Template)]
#[template(path = "referrer.html", config = "src/web/askama.toml")]
struct ReferrerPage<'a> {
    head: &'a Head,
    predicates: &'a [String],
    subjects: &'a [(String, String)],
    annotations: &'a [(String, String)],
    files: &'a [File],
    left_out: usize,
    commands: &'a [Command],
}

/// A blob that a manifest lists.
#[derive(Debug)]
struct File {
    name: String,
    media_type: String,
    size: String,
    digest: String,
}

#[derive(Debug, Template)]
#[template(path = "coverage.html", config = "src/web/askama.toml")]
struct CoveragePage<'a> {
    head: &'a Head,
    repository: String,
    since: Option<String>,
    times: &'a [(&'static str, Option<String>)],
}

impl Web {
    /// An image, its parts, and all that is attached, as a table.
    pub(super) async fn image(
        &self,
        site: &Site<'_>,
        asked: &Asked<'_>,
        visitor: &Visitor,
    ) -> Result<Shown, Failure> {
        let reader = Reader::open(self, asked, visitor).await?;
        let part = Part { after: site.after, count: ENTRIES, kind: site.kind };
        let found = reader.surroundings(part).await?;
        let head = Head::of(asked, visitor, &found.digest, found.manifest.as_ref());
        let now = Timestamp::now();
        let mut rows = Vec::new();
        // Parts of an index stand on the first page alone.
        let children = if site.after.is_none() && site.kind.is_none() { &found.children[..] } else { &[] };
        put_rows(children, 0, asked, now, &mut rows);
        put_rows(&found.attached, 0, asked, now, &mut rows);
        let mut parents = Vec::new();
        put_rows(&found.parents, 0, asked, now, &mut parents);
        let next = found.next.map(|next| {
            let kind = site.kind.map(ArtifactKind::slug);
            let (next, target) = (next.to_string(), TagOrDigest::Digest(found.digest.clone()));
            let more = [Some(("after", next.as_str())), kind.map(|kind| ("kind", kind))];
            asked.page("/image", &target, &more.into_iter().flatten().collect::<Vec<_>>())
        });
        let commands = [tree_command(&asked.for_clients(self), &found.digest)];
        Shown::page(&ImagePage {
            head: &head,
            signed: found.signed,
            since: found.since.map(|since| day(&since)),
            rows: &rows,
            parents: &parents,
            more_parents: found.more_parents,
            more_children: if site.after.is_none() && site.kind.is_none() { found.more_children } else { 0 },
            kind: site.kind,
            is_first: site.after.is_none(),
            next,
            commands: &commands,
        })
    }

    /// The same as a drawing.
    pub(super) async fn graph(&self, asked: &Asked<'_>, visitor: &Visitor) -> Result<Shown, Failure> {
        let reader = Reader::open(self, asked, visitor).await?;
        let found = reader.surroundings(Part { after: None, count: DRAWN, kind: None }).await?;
        let head = Head::of(asked, visitor, &found.digest, found.manifest.as_ref());
        Shown::page(&GraphPage {
            head: &head,
            since: found.since.map(|since| day(&since)),
            summary: summary(&found),
            drawing: &Drawing::of(&found, asked, head.kind),
            is_whole: found.next.is_none(),
        })
    }

    /// A manifest by itself: what it says, and the files in it.
    pub(super) async fn referrer(&self, asked: &Asked<'_>, visitor: &Visitor) -> Result<Shown, Failure> {
        let reader = Reader::open(self, asked, visitor).await?;
        let manifest = reader.manifest().await?.ok_or(Failure::NothingKnown)?;
        let head = Head::of(asked, visitor, &reader.digest, Some(&manifest));
        let mut item = Item::of(manifest.descriptor(), Relation::Child);
        item.clear_up(&manifest);
        let subjects: Vec<Digest> = subjects_of(&manifest);
        let pages: Vec<(String, String)> =
            subjects.iter().map(|digest| (digest.to_string(), asked.page_of("/image", digest))).collect();
        let annotations: Vec<(String, String)> = manifest
            .annotations()
            .iter()
            .take(SHOWN)
            .map(|(key, value)| (hostile(key), hostile(value)))
            .collect();
        let files: Vec<File> = manifest.layers().iter().take(SHOWN).map(File::of).collect();
        let left_out =
            (manifest.annotations().len() - annotations.len()) + (manifest.layers().len() - files.len());
        let predicates: Vec<String> =
            item.what.predicates.iter().map(|predicate| hostile(predicate)).collect();
        let head = Head { kind: item.what.kind.name(), ..head };
        Shown::page(&ReferrerPage {
            head: &head,
            predicates: &predicates,
            subjects: &pages,
            annotations: &annotations,
            files: &files,
            left_out,
            commands: &commands(&asked.for_clients(self), &item, subjects.first()),
        })
    }

    /// The repositories in which something is attached to a digest.
    pub(super) async fn digest(
        &self,
        site: &Site<'_>,
        upstream: &UpstreamName,
        door: &Door<'_>,
        visitor: &Visitor,
    ) -> Result<Shown, Failure> {
        let (place, at, digest) = site.digest_at(upstream)?;
        let (names, is_whole) = self.places(at, &digest, visitor).await?;
        let mut places = Vec::with_capacity(names.len());
        for name in names {
            let asked = site.asked(place, name, TagOrDigest::Digest(digest.clone()))?;
            places.push((asked.name.to_string(), asked.page("/image", &asked.target, &[])));
        }
        Shown::page(&PlacesPage {
            digest: &digest.to_string(),
            places: &places,
            is_whole,
            most: PLACES,
            login: door.login(),
        })
    }

    /// How far the repository of an image is known, for those who can read it.
    pub(super) async fn coverage(&self, asked: &Asked<'_>, visitor: &Visitor) -> Result<Shown, Failure> {
        let reader = Reader::open(self, asked, visitor).await?;
        if !reader.may_read() {
            return Err(Failure::NothingKnown);
        }
        let manifest = reader.manifest().await?;
        let head = Head::of(asked, visitor, &reader.digest, manifest.as_ref());
        let covered = reader.covered().await?;
        let time = |time: Option<Timestamp>| time.as_ref().map(day);
        let Covered { backfilled, swept, notified } = covered;
        Shown::page(&CoveragePage {
            head: &head,
            repository: asked.name.to_string(),
            since: reader.since().await?.as_ref().map(day),
            times: &[
                ("Last backfill that read all of it", time(backfilled)),
                ("Last sweep that read all of it", time(swept)),
                ("Last notification by the registry", time(notified)),
            ],
        })
    }
}

impl Head {
    fn of(asked: &Asked<'_>, visitor: &Visitor, digest: &Digest, manifest: Option<&Manifest>) -> Self {
        let item = manifest.map(|manifest| Item::of(manifest.descriptor(), Relation::Child));
        Self {
            image: asked.image(&asked.target),
            digest: digest.to_string(),
            kind: item.as_ref().map_or("manifest", |item| item.what.kind.name()),
            raw_type: item.as_ref().map(|item| hostile(&item.what.raw_type)).unwrap_or_default(),
            size: manifest.map(|manifest| size(manifest.content_size())),
            age: manifest.and_then(Manifest::created).and_then(|created| Age::of(created, Timestamp::now())),
            is_there: manifest.is_some(),
            image_page: asked.page_of("/image", digest),
            graph_page: asked.page_of("/graph", digest),
            details_page: asked.page_of("/referrer", digest),
            coverage_page: asked.page_of("/coverage", digest),
            login_page: visitor.is_anonymous().then(|| asked.page("/login", &asked.target, &[])),
        }
    }
}

/// Adds the rows of these items, and of what is below them.
fn put_rows(items: &[Item], level: usize, asked: &Asked<'_>, now: Timestamp, rows: &mut Vec<Row>) {
    for item in items {
        let page = match item.relation {
            Relation::Child | Relation::Parent => "/image",
            Relation::Referrer(_) => "/referrer",
        };
        rows.push(Row::Entry(Box::new(Entry {
            level,
            kind: item.what.kind.name(),
            raw_type: hostile(&item.what.raw_type),
            predicates: item.what.predicates.iter().map(|predicate| hostile(predicate)).collect(),
            short: short(&item.digest),
            page: asked.page_of(page, &item.digest),
            platform: item.platform.as_deref().map(hostile).unwrap_or_default(),
            size: size(item.size),
            age: item.created.as_deref().and_then(|created| Age::of(created, now)),
            relation: item.relation.words(),
            signed: item.signed(),
        })));
        put_rows(item.items_below(), level + 1, asked, now, rows);
        if let Below::Listed { more: true, .. } = item.below {
            rows.push(Row::More { level: level + 1, page: asked.page_of("/image", &item.digest) });
        }
    }
}

impl File {
    fn of(part: &crate::client::Part) -> Self {
        let descriptor = &part.descriptor;
        let title = descriptor.annotations.get(TITLE);
        Self {
            name: title.map(|title| hostile(title)).unwrap_or_default(),
            media_type: hostile(&descriptor.media_type),
            size: size(descriptor.size),
            digest: descriptor.digest.to_string(),
        }
    }
}

/// What a manifest refers to, by its own bytes, without what it lists as its parts.
fn subjects_of(manifest: &Manifest) -> Vec<Digest> {
    let links = manifest.links(None).links;
    let parts: HashSet<&Digest> = manifest.children().iter().map(|part| &part.descriptor.digest).collect();
    let mut subjects: Vec<Digest> = Vec::new();
    for link in links {
        if subjects.len() == SHOWN {
            break;
        }
        if !parts.contains(&link.subject) && !subjects.contains(&link.subject) {
            subjects.push(link.subject);
        }
    }
    subjects
}

/// What is drawn, in two sentences.
fn summary(found: &Surroundings) -> String {
    let kinds = ArtifactKind::ALL.into_iter().filter_map(|kind| {
        let items = found.attached.iter().filter(|item| item.what.kind == kind).count();
        (items > 0).then(|| count(items as u64, kind.name()))
    });
    let kinds: Vec<String> = kinds.collect();
    let attached = if kinds.is_empty() {
        "Nothing is known to be attached".to_owned()
    } else {
        format!("On the right is what is attached: {}", kinds.join(", "))
    };
    let children = match found.children.len() {
        0 => String::new(),
        some => format!(", and {} of the index", count(some as u64, "part")),
    };
    let parents = match found.parents.len() {
        0 => String::new(),
        1 => " The index that lists it is on the left.".to_owned(),
        several if found.more_parents => format!(" {several} of the indexes that list it are on the left."),
        several => format!(" The {several} indexes that list it are on the left."),
    };
    format!("{attached}{children}.{parents}")
}

fn day(time: &Timestamp) -> String {
    time.strftime("%F %T UTC").to_string()
}
