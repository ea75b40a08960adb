//! `refshim tree`: draws the graph around an image.

use std::collections::{BTreeMap, HashSet};

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::connection::Connection;
use super::entry::{Entry, located, reference};
use super::format::{Format, FormatArgs};
use super::image::ImageArgs;
use super::output::{Styles, print, print_json, printable};
use super::selection::ScopeArgs;
use super::table::{age, aligned, kinds, short, size};
use crate::client::{Location, Node, Part, Platform, Result, Target, walk_in};
use crate::oci::{ArtifactKind, Digest, TagOrDigest};

/// Draws what refers to an image, and what refers to that; an index with its children and what is attached to each.
///
/// The size is that of a manifest and the blobs it lists, the age by its annotation
/// org.opencontainers.image.created. What was drawn before is named (above). The last line counts what is below the
/// image, everything once. With --scope registry, what is in another repository than the image says so.
#[derive(Debug, Args)]
pub(super) struct Tree {
    #[command(flatten)]
    subject: ImageArgs,
    /// Follow so many links.
    #[arg(long, value_name = "N", default_value_t = usize::MAX, hide_default_value = true)]
    depth: usize,
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    format: FormatArgs,
    /// Also the artifact type (or media type) that each states.
    #[arg(long)]
    wide: bool,
    /// Whole digests.
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Serialize)]
struct JsonNode {
    #[serde(flatten)]
    entry: Entry,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<Platform>,
    children: Vec<JsonNode>,
    referrers: Vec<JsonNode>,
}

/// The branch before the label, the label, raw type, digest, size, age and kinds.
type Row = [String; 7];

/// Draws one tree.
struct Drawing<'a> {
    tree: &'a Tree,
    now: Timestamp,
    drawn: HashSet<Digest>,
    rows: Vec<Row>,
    counts: BTreeMap<ArtifactKind, usize>,
    missing: usize,
}

impl Tree {
    pub(super) async fn run(self) -> Result<()> {
        let (repository, image) = self.subject.open(&self.connection).await?;
        let tree = walk_in(self.scope.scope(), &repository, image, self.depth).await?;
        self.connection.warn_of_vanished(&tree, self.format.errors(&self.connection.output));
        let location = &self.subject.image.location;
        match self.format.of(&self.connection.output) {
            Format::Json => print_json(&json(&tree, location)),
            format @ (Format::Table | Format::Digest | Format::Template(_)) => {
                let mut seen = HashSet::new();
                let nodes = tree.all().filter(|node| seen.insert(&node.manifest.digest));
                let entries: Vec<Entry> = nodes.map(|node| entry(node, location)).collect();
                format.print(&entries, Entry::digest, || self.print(&tree))
            }
        }
    }

    fn print(&self, root: &Node) -> Result<()> {
        let mut drawing = Drawing {
            tree: self,
            now: Timestamp::now(),
            drawn: HashSet::new(),
            rows: Vec::new(),
            counts: BTreeMap::new(),
            missing: 0,
        };
        // Not in the columns: the name may be long, and is whole, so that it can be typed again.
        print(&drawing.root(root))?;
        drawing.below(root, "");
        drawing.lines().iter().try_for_each(|line| print(line))?;
        match drawing.count() {
            Some(count) => print(&count),
            None if self.depth == 0 => Ok(()),
            None => {
                self.connection.tell(&format!("nothing refers to {}", self.subject.image));
                Ok(())
            }
        }
    }

    fn root_name(&self, digest: &Digest) -> String {
        let location = &self.subject.image.location;
        match &self.subject.image.target {
            Target::Named(TagOrDigest::Tag(tag)) => format!("{location}:{tag}@{digest}"),
            Target::Unnamed | Target::Named(TagOrDigest::Digest(_)) | Target::Abbreviated { .. } => {
                reference(location, digest)
            }
        }
    }
}

/// The entry of a node in a tree whose root is at this location.
fn entry(node: &Node, location: &Location) -> Entry {
    Entry::of(&node.manifest, node.kinds, &located(node.repository.as_ref(), location))
}

fn json(node: &Node, location: &Location) -> JsonNode {
    let all = |nodes: &[Node]| nodes.iter().map(|node| json(node, location)).collect();
    JsonNode {
        entry: entry(node, location),
        platform: node.platform.clone(),
        children: all(&node.children),
        referrers: all(&node.referrers),
    }
}

impl Drawing<'_> {
    fn root(&mut self, root: &Node) -> String {
        let Styles { strong, .. } = Styles::of_stdout();
        let manifest = &root.manifest;
        self.drawn.insert(manifest.digest.clone());
        let name = printable(&self.tree.root_name(&manifest.digest));
        let what = manifest.description(root.kinds);
        let raw_type = if self.tree.wide { format!("  {}", what.raw_type) } else { String::new() };
        let told = format!(
            "{}{raw_type}  {}  {}",
            what.label(),
            size(manifest.content_size()),
            age(manifest.created(), self.now)
        );
        format!("{strong}{name}{strong:#}  {}", printable(&told))
    }

    /// The rows of everything below a node, each indented by `indent`.
    fn below(&mut self, node: &Node, indent: &str) {
        // The missing ones count, too: only the last of all gets the corner.
        let hanging: Vec<&Node> = node.children.iter().chain(&node.referrers).collect();
        let mut left = hanging.len() + node.missing.len();
        let mut branch = || {
            left -= 1;
            if left == 0 { ("└─ ", "   ") } else { ("├─ ", "│  ") }
        };
        for missing in &node.missing {
            let (corner, _) = branch();
            self.push_missing(missing, format!("{indent}{corner}"));
        }
        for node in hanging {
            let (corner, line) = branch();
            if self.push(node, format!("{indent}{corner}")) {
                self.below(node, &format!("{indent}{line}"));
            }
        }
    }

    /// Adds the row of a node; whether it is the first of this manifest.
    fn push(&mut self, node: &Node, branch: String) -> bool {
        let Node { manifest, platform, kinds: links, repository, .. } = node;
        let what = manifest.description(*links);
        let is_new = self.drawn.insert(manifest.digest.clone());
        if is_new {
            *self.counts.entry(what.family()).or_default() += 1;
        }
        let label = platform.as_ref().map_or_else(|| what.label(), ToString::to_string);
        self.rows.push([
            branch,
            if is_new { label } else { format!("{label} (above)") },
            what.raw_type,
            self.digest(&manifest.digest),
            size(manifest.content_size()),
            age(manifest.created(), self.now),
            match repository {
                Some(name) => format!("{} in {name}", kinds(*links)).trim_start().to_owned(),
                None => kinds(*links),
            },
        ]);
        is_new
    }

    fn push_missing(&mut self, missing: &Part, branch: String) {
        self.missing += 1;
        let platform = missing.platform.as_ref().map_or_else(|| "manifest".to_owned(), ToString::to_string);
        let digest = self.digest(&missing.descriptor.digest);
        let [unknown, absent] = ["-", "not there"].map(str::to_owned);
        let raw_type = missing.descriptor.media_type.clone();
        self.rows.push([branch, platform, raw_type, digest, unknown.clone(), unknown, absent]);
    }

    fn digest(&self, digest: &Digest) -> String {
        if self.tree.no_trunc { digest.to_string() } else { short(digest) }
    }

    fn lines(&self) -> Vec<String> {
        let Styles { strong, faint, kind } = Styles::of_stdout();
        // Aligned before it is styled: escape sequences would count as width, and `aligned` escapes them.
        let joined: Vec<[String; 6]> = self
            .rows
            .iter()
            .map(|[branch, label, cells @ ..]| {
                let [raw_type, digest, size, age, kinds] = cells.clone();
                [format!("{branch}{label}"), raw_type, digest, size, age, kinds]
            })
            .collect();
        let styled = |([branch, ..], [label, raw_type, digest, size, age, kinds]): (&Row, [String; 6])| {
            let label = label.strip_prefix(branch.as_str()).unwrap_or(&label).to_owned();
            let raw_type = if self.tree.wide { format!("  {raw_type}") } else { String::new() };
            let line = format!(
                "{faint}{branch}{faint:#}{strong}{label}{strong:#}{raw_type}  {digest}  {size}  {age}  \
                 {kind}{kinds}{kind:#}"
            );
            line.trim_end().to_owned()
        };
        self.rows.iter().zip(aligned(&joined)).map(styled).collect()
    }

    /// How much is below the root; nothing if there is nothing.
    fn count(&self) -> Option<String> {
        let all: usize = self.counts.values().sum();
        let of_kinds = self.counts.iter().map(|(kind, count)| many(*count, kind.name()));
        let missing = Some(format!("{} not there", self.missing)).filter(|_| self.missing > 0);
        let parts: Vec<String> = of_kinds.chain(missing).collect();
        (!parts.is_empty()).then(|| format!("{}: {}", many(all, "manifest"), parts.join(", ")))
    }
}

/// A number of things, `2 signatures`.
fn many(count: usize, name: &str) -> String {
    let plural = match name {
        _ if count == 1 => "",
        "index" => "es",
        _ => "s",
    };
    format!("{count} {name}{plural}")
}
