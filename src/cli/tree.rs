//! `refshim tree`: draws the graph around an image.

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::connection::Connection;
use super::output::{Styles, print, print_json};
use super::table::{age, aligned, kinds, short, size};
use crate::client::{ImageName, Node, Platform, Result, walk};
use crate::oci::{Descriptor, LinkKind};

/// Draws what refers to an image, and what refers to that; an index with its children and what is attached to
/// each. The size is that of a manifest and the blobs it lists, the age by its annotation
/// org.opencontainers.image.created.
#[derive(Debug, Args)]
pub(super) struct Tree {
    /// host/name[:tag][@digest] or oci:directory[:tag][@digest].
    image: ImageName,
    /// Follow so many links.
    #[arg(long, value_name = "N", default_value_t = usize::MAX, hide_default_value = true)]
    depth: usize,
    /// Of an index, the image for this platform.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Serialize)]
struct JsonNode {
    #[serde(flatten)]
    descriptor: Descriptor,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<Platform>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kinds: Vec<LinkKind>,
    children: Vec<JsonNode>,
    referrers: Vec<JsonNode>,
}

/// The branch before the label, the label, digest, size, age and kinds.
type Row = [String; 6];

impl Tree {
    pub(super) async fn run(self) -> Result<()> {
        let repository = self.connection.client(&self.image.location)?.open(&self.image.location)?;
        let image = repository.image(&self.image.target, self.platform.as_ref()).await?;
        let tree = walk(&repository, image, self.depth).await?;
        self.connection.warn_of_vanished(&tree);
        if self.connection.output.json {
            return print_json(&json(&tree));
        }
        let mut rows = Vec::new();
        draw(&tree, "", "", Timestamp::now(), &mut rows);
        lines(&rows).iter().try_for_each(|line| print(line))
    }
}

fn json(node: &Node) -> JsonNode {
    JsonNode {
        descriptor: node.manifest.descriptor(),
        platform: node.platform.clone(),
        kinds: node.kinds.iter().collect(),
        children: node.children.iter().map(json).collect(),
        referrers: node.referrers.iter().map(json).collect(),
    }
}

/// Adds the row of a node, and then those of everything below it, each indented by `below`.
fn draw(node: &Node, before: &str, below: &str, now: Timestamp, rows: &mut Vec<Row>) {
    let Node { manifest, platform, .. } = node;
    rows.push([
        before.to_owned(),
        platform.as_ref().map_or_else(|| manifest.type_name().to_owned(), ToString::to_string),
        short(&manifest.digest),
        size(manifest.content_size()),
        age(manifest, now),
        kinds(node.kinds),
    ]);
    // The missing ones count, too: only the last of all gets the corner.
    let hanging: Vec<&Node> = node.children.iter().chain(&node.referrers).collect();
    let mut left = hanging.len() + node.missing.len();
    let mut branch = || {
        left -= 1;
        if left == 0 { ("└─ ", "   ") } else { ("├─ ", "│  ") }
    };
    for missing in &node.missing {
        let (corner, _) = branch();
        let platform = missing.platform.as_ref().map_or_else(|| "manifest".to_owned(), ToString::to_string);
        let digest = short(&missing.descriptor.digest);
        let [unknown, absent] = ["-", "not there"].map(str::to_owned);
        rows.push([format!("{below}{corner}"), platform, digest, unknown.clone(), unknown, absent]);
    }
    for node in hanging {
        let (corner, line) = branch();
        draw(node, &format!("{below}{corner}"), &format!("{below}{line}"), now, rows);
    }
}

fn lines(rows: &[Row]) -> Vec<String> {
    let Styles { strong, faint, kind } = Styles::of_stdout();
    // Aligned before it is styled: escape sequences would count as width, and `aligned` escapes them.
    let joined: Vec<[String; 5]> = rows
        .iter()
        .map(|[before, label, digest, size, age, kinds]| {
            [format!("{before}{label}"), digest.clone(), size.clone(), age.clone(), kinds.clone()]
        })
        .collect();
    let styled = |([before, ..], [label, digest, size, age, kinds]): (&Row, [String; 5])| {
        let label = label.strip_prefix(before.as_str()).unwrap_or(&label).to_owned();
        let line = format!(
            "{faint}{before}{faint:#}{strong}{label}{strong:#}  {digest}  {size}  {age}  {kind}{kinds}{kind:#}"
        );
        line.trim_end().to_owned()
    };
    rows.iter().zip(aligned(&joined)).map(styled).collect()
}
