//! Which dialects go to which repository.

use crate::support::random::Random;

/// What is pushed to one repository.
pub(super) struct Plan {
    pub(super) name: String,
    /// Of the choices within the repository.
    pub(super) seed: u64,
    pub(super) dialects: Vec<Dialect>,
}

/// Something to push.
#[derive(Clone, Copy, Debug)]
pub(super) enum Dialect {
    /// An image without links.
    Image,
    /// An image of Docker's media type, in which `subject` is no link.
    Docker,
    /// Another tag for what is there.
    SecondTag,
    /// An image and a referrer that are the same in every repository.
    Common,
    /// The proposal's member.
    Reference(Place),
    /// The proposal's member, with a digest that is none.
    Malformed,
    /// OCI 1.1, with a tag of its own.
    Subject(Shape),
    /// OCI 1.1, reachable from the referrers tag alone.
    Fallback,
    /// OCI 1.1, listed at the referrers tag and with a tag of its own.
    TaggedFallback(Shape),
    /// A referrers tag that lists what is about something else.
    Lie(Lie),
    /// A referrers tag that lists what was deleted.
    Gone,
    /// The manifest of this media type.
    Artifact(&'static str),
    /// Several platforms.
    Index,
    DockerList,
    /// An index in an index.
    NestedIndex,
    /// `BuildKit`'s.
    Attestation,
    /// At the tag with this suffix.
    Cosign(&'static str),
    /// A referrer of a referrer.
    Chain,
    /// Images that are deleted again, with their tags.
    Deleted,
}

/// Where `reference` stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Manifest,
    DockerManifest,
    Config,
    Layer,
    Blob,
    Index,
    IndexEntry,
}

/// What has a `subject`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    Manifest,
    Index,
}

/// What a referrers tag lists wrongly.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lie {
    /// A referrer of another manifest.
    AnotherSubject,
    /// An image that refers to nothing.
    NoSubject,
    /// One that refers to the subject, but by `reference`.
    Reference,
}

/// Each dialect, the common ones more than once.
const DECK: [Dialect; 37] = [
    Dialect::Image,
    Dialect::Image,
    Dialect::Image,
    Dialect::Docker,
    Dialect::SecondTag,
    Dialect::SecondTag,
    Dialect::Common,
    Dialect::Reference(Place::Manifest),
    Dialect::Reference(Place::DockerManifest),
    Dialect::Reference(Place::Config),
    Dialect::Reference(Place::Layer),
    Dialect::Reference(Place::Blob),
    Dialect::Reference(Place::Index),
    Dialect::Reference(Place::IndexEntry),
    Dialect::Malformed,
    Dialect::Subject(Shape::Manifest),
    Dialect::Subject(Shape::Manifest),
    Dialect::Subject(Shape::Index),
    Dialect::Fallback,
    Dialect::Fallback,
    Dialect::TaggedFallback(Shape::Manifest),
    Dialect::TaggedFallback(Shape::Index),
    Dialect::Lie(Lie::AnotherSubject),
    Dialect::Lie(Lie::NoSubject),
    Dialect::Lie(Lie::Reference),
    Dialect::Gone,
    Dialect::Artifact("application/vnd.cncf.oras.artifact.manifest.v1+json"),
    Dialect::Artifact("application/vnd.oci.artifact.manifest.v1+json"),
    Dialect::Index,
    Dialect::Index,
    Dialect::DockerList,
    Dialect::NestedIndex,
    Dialect::Attestation,
    Dialect::Cosign("sig"),
    Dialect::Cosign("att"),
    Dialect::Cosign("sbom"),
    Dialect::Chain,
];

impl Dialect {
    /// How many tags it leaves.
    fn tags(self) -> usize {
        match self {
            Self::Deleted => 0,
            Self::Common | Self::TaggedFallback(_) | Self::Chain => 2,
            Self::Image
            | Self::Docker
            | Self::SecondTag
            | Self::Reference(_)
            | Self::Malformed
            | Self::Subject(_)
            | Self::Fallback
            | Self::Lie(_)
            | Self::Gone
            | Self::Artifact(_)
            | Self::Index
            | Self::DockerList
            | Self::NestedIndex
            | Self::Attestation
            | Self::Cosign(_) => 1,
        }
    }
}

/// One for each repository. Each dialect is in one of them, if there are twice as many tags as dialects.
pub(super) fn plans(repositories: usize, tags: usize, seed: u64) -> Vec<Plan> {
    let mut random = Random::new(seed);
    let mut cards = Vec::new();
    let counts = counts(repositories, tags, &mut random).into_iter().enumerate();
    counts
        .map(|(number, tags)| {
            let mut dialects = vec![if tags == 0 { Dialect::Deleted } else { Dialect::Image }];
            let mut left = tags.saturating_sub(1);
            while left > 0 {
                let dialect = draw(&mut cards, left, &mut random);
                left -= dialect.tags();
                dialects.push(dialect);
            }
            Plan { name: name(number), seed: random.next(), dialects }
        })
        .collect()
}

/// How many tags each repository has: one of them none, a third of them one.
fn counts(repositories: usize, tags: usize, random: &mut Random) -> Vec<usize> {
    assert!(repositories >= 2 && tags >= repositories - 1, "{tags} tags in {repositories} repositories");
    let mut order: Vec<usize> = (0..repositories).collect();
    random.shuffle(&mut order);
    let mut counts = vec![1; repositories];
    counts[order[0]] = 0;
    let growing = &order[1..=(2 * (repositories - 1)).div_ceil(3)];
    for _ in 0..tags - (repositories - 1) {
        // Thrice, so that the first ones get most.
        let place = (0..3).fold(growing.len() - 1, |place, _| random.place(place));
        counts[growing[place]] += 1;
    }
    counts
}

/// The next dialect that leaves no more than so many tags.
fn draw(cards: &mut Vec<Dialect>, most: usize, random: &mut Random) -> Dialect {
    loop {
        if let Some(place) = cards.iter().position(|card| card.tags() <= most) {
            return cards.remove(place);
        }
        let mut deck = DECK;
        random.shuffle(&mut deck);
        cards.extend(deck);
    }
}

/// Flat names, nested ones, and some below another repository.
fn name(number: usize) -> String {
    let team = number / 5;
    match number % 5 {
        0 => format!("app-{number}"),
        3 => format!("team-{team}/group/app-{number}"),
        4 => format!("team-{team}/app-{}/debug", number - 2),
        _ => format!("team-{team}/app-{number}"),
    }
}
