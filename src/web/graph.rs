//! The surroundings of a manifest as a drawing: who lists it on the left, the manifest itself, what is attached on the
//! right, and what is attached to that further right. Pure: positions and texts, which the template writes as SVG.

use super::gather::Surroundings;
use super::item::{Below, Item, Relation};
use super::site::Asked;
use super::text::{count, label, short};
use crate::oci::{ArtifactKind, Digest, TagOrDigest};

/// More of one kind in one list are drawn as one node.
const OF_A_KIND: usize = 40;
/// Sizes, in the drawing's own units.
const WIDTH: usize = 240;
const HEIGHT: usize = 44;
const COLUMN: usize = 320;
const ROW: usize = 56;
const MARGIN: usize = 8;
/// Characters that fit into a node.
const LABEL: usize = 26;
/// The manifest itself stands no further down than the middle of so many rows, to be seen at once.
const HIGHEST: usize = 14;

/// A drawing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Drawing {
    pub(super) width: usize,
    pub(super) height: usize,
    /// Of every node: width and height.
    pub(super) node: (usize, usize),
    pub(super) nodes: Vec<Node>,
    pub(super) edges: Vec<Edge>,
}

/// A manifest, or a group of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) x: usize,
    pub(super) y: usize,
    /// How it looks: the manifest itself, an artifact, an image, a group.
    pub(super) class: &'static str,
    pub(super) first: String,
    pub(super) second: String,
    pub(super) page: String,
}

/// A line from a referrer to what it refers to, or from an index to its part.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Edge {
    /// The path, as SVG writes it, from the one that states the link.
    pub(super) path: String,
    pub(super) is_part: bool,
}

/// One item, or a group of them, that is drawn as a node.
enum Drawn<'a> {
    One(&'a Item),
    Group(ArtifactKind, usize),
    /// There are more than are listed.
    More,
}

/// What a list belongs to: the column of its node, and its digest.
#[derive(Clone, Copy)]
struct From<'a> {
    column: usize,
    digest: &'a Digest,
}

impl Drawing {
    /// Draws these surroundings.
    pub(super) fn of(found: &Surroundings, asked: &Asked<'_>, kind: &str) -> Self {
        let mut drawing = Self { node: (WIDTH, HEIGHT), ..Self::default() };
        let middle = usize::from(!found.parents.is_empty());
        let page = asked.page_of("/image", &found.digest);
        let children = grouped(&found.children).into_iter();
        let mut right: Vec<Drawn<'_>> = children.chain(grouped(&found.attached)).collect();
        if found.next.is_some() || found.more_children > 0 {
            right.push(Drawn::More);
        }
        let left = grouped(&found.parents);
        // Each list is as high as its leaves, and the shorter one stands in the middle of the longer.
        let rows = leaves(&right).max(left.len()).max(1);
        let mut row = (rows - leaves(&right).max(1)) / 2;
        let center = middle_of(rows.min(HIGHEST));
        let from = From { column: middle, digest: &found.digest };
        for drawn in &right {
            drawing.put(drawn, &from, center, asked, &mut row);
        }
        for (place, drawn) in left.iter().enumerate() {
            let row = rows.min(HIGHEST).saturating_sub(left.len()) / 2 + place;
            drawing.put_parent(drawn, &found.digest, center, asked, row);
        }
        drawing.nodes.push(Node {
            x: x_of(middle),
            y: center - HEIGHT / 2,
            class: "subject",
            first: label(kind, LABEL),
            second: short(&found.digest),
            page,
        });
        drawing.width = drawing.nodes.iter().map(|node| node.x).max().unwrap_or_default() + WIDTH + MARGIN;
        drawing.height = rows * ROW + 2 * MARGIN;
        drawing
    }

    /// Puts a node, all that is below it, and the line that leads to what it belongs to.
    fn put(&mut self, drawn: &Drawn<'_>, from: &From<'_>, parent: usize, asked: &Asked<'_>, row: &mut usize) {
        let column = from.column + 1;
        let below = match drawn {
            Drawn::One(item) => below(item),
            Drawn::Group(..) | Drawn::More => Vec::new(),
        };
        let height = leaves(&below).max(1);
        let y = MARGIN + *row * ROW + height * ROW / 2;
        let node = Node::of(drawn, from, asked, (x_of(column), y - HEIGHT / 2));
        let (own, other) = ((x_of(column), y), (x_of(from.column) + WIDTH, parent));
        let is_part = matches!(drawn, Drawn::One(item) if item.relation == Relation::Child);
        // An index states its parts, a referrer states what it refers to.
        self.edges.push(if is_part {
            Edge::between(other, own, true)
        } else {
            Edge::between(own, other, false)
        });
        self.nodes.push(node);
        let digest = if let Drawn::One(item) = drawn { &item.digest } else { from.digest };
        let from = From { column, digest };
        let end = *row + height;
        for drawn in &below {
            self.put(drawn, &from, y, asked, row);
        }
        *row = end;
    }

    fn put_parent(
        &mut self,
        drawn: &Drawn<'_>,
        digest: &Digest,
        center: usize,
        asked: &Asked<'_>,
        row: usize,
    ) {
        let y = middle_of(2 * row + 1);
        let from = From { column: 0, digest };
        self.nodes.push(Node::of(drawn, &from, asked, (x_of(0), y - HEIGHT / 2)));
        self.edges.push(Edge::between((x_of(0) + WIDTH, y), (x_of(1), center), true));
    }
}

impl Node {
    fn of(drawn: &Drawn<'_>, from: &From<'_>, asked: &Asked<'_>, (x, y): (usize, usize)) -> Self {
        let (class, first, second, page) = match drawn {
            Drawn::One(item) => {
                let page = match item.relation {
                    Relation::Child | Relation::Parent => "/image",
                    Relation::Referrer(_) => "/referrer",
                };
                let name = item.platform.as_deref().or(item.what.predicates.first().map(String::as_str));
                let first = name.map_or_else(
                    || item.what.kind.name().to_owned(),
                    |name| format!("{}, {}", item.what.kind.name(), name.trim_start_matches("https://")),
                );
                let class = if matches!(item.what.kind, ArtifactKind::Image | ArtifactKind::Index) {
                    "image"
                } else {
                    "artifact"
                };
                (class, label(&first, LABEL), short(&item.digest), asked.page_of(page, &item.digest))
            }
            Drawn::Group(kind, number) => {
                let whose = TagOrDigest::Digest(from.digest.clone());
                let page = asked.page("/image", &whose, &[("kind", kind.slug())]);
                ("group", count(*number as u64, kind.name()), "as a table".to_owned(), page)
            }
            Drawn::More => {
                ("group", "more".to_owned(), "as a table".to_owned(), asked.page_of("/image", from.digest))
            }
        };
        Self { x, y, class, first, second, page }
    }
}

impl Edge {
    fn between((x1, y1): (usize, usize), (x2, y2): (usize, usize), is_part: bool) -> Self {
        let bend = usize::midpoint(x1, x2);
        Self { path: format!("M{x1} {y1}C{bend} {y1} {bend} {y2} {x2} {y2}"), is_part }
    }
}

/// What is drawn of a list: each item, or one node for more than [`OF_A_KIND`] of a kind.
fn grouped(items: &[Item]) -> Vec<Drawn<'_>> {
    let many = |kind: ArtifactKind| items.iter().filter(|item| item.what.kind == kind).count();
    let many: Vec<(ArtifactKind, usize)> = ArtifactKind::ALL
        .into_iter()
        .map(|kind| (kind, many(kind)))
        .filter(|(_, number)| *number > OF_A_KIND)
        .collect();
    let is_alone = |item: &&Item| !many.iter().any(|(kind, _)| *kind == item.what.kind);
    let groups = many.iter().map(|(kind, number)| Drawn::Group(*kind, *number));
    let mut alone: Vec<&Item> = items.iter().filter(is_alone).collect();
    // Stable: within a kind, the oldest first.
    alone.sort_by_key(|item| item.what.kind);
    alone.into_iter().map(Drawn::One).chain(groups).collect()
}

fn below(item: &Item) -> Vec<Drawn<'_>> {
    match &item.below {
        Below::Listed { items, more } => {
            let more = more.then_some(Drawn::More);
            grouped(items).into_iter().chain(more).collect()
        }
        Below::NotAsked => Vec::new(),
    }
}

/// Rows that these take, with all that is below them.
fn leaves(drawn: &[Drawn<'_>]) -> usize {
    let of = |drawn: &Drawn<'_>| match drawn {
        Drawn::One(item) => leaves(&below(item)).max(1),
        Drawn::Group(..) | Drawn::More => 1,
    };
    drawn.iter().map(of).sum()
}

fn x_of(column: usize) -> usize {
    MARGIN + column * COLUMN
}

/// The middle of so many rows.
fn middle_of(rows: usize) -> usize {
    MARGIN + rows * ROW / 2
}
