//! The index against a model of it, under random use.

mod expected;

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::oci::LinkKinds;
use expected::Model;

/// What somebody says of a referrer: its subjects, and which of its descriptors is the right one.
#[derive(Clone, Debug)]
struct Said {
    referrer: u32,
    subjects: Vec<u32>,
    variant: u8,
}

#[derive(Clone, Debug)]
enum Step {
    /// To a cosign tag of `tagged`.
    Begin {
        said: Said,
        tagged: Option<u32>,
    },
    Confirm {
        place: usize,
    },
    Refuse {
        place: usize,
    },
    Abandon {
        place: usize,
    },
    Learn {
        said: Said,
        claimed: bool,
        removed: Option<u32>,
    },
    Settle {
        said: Said,
        seen: bool,
    },
    Remove {
        referrer: u32,
        seen: bool,
    },
    Absent {
        referrer: u32,
        seen: bool,
    },
    Doubt {
        referrer: u32,
    },
    Reopen,
    Rebuild,
    /// What is on disk is all that is left.
    Kill,
    /// Bytes of a file of sled are others, from this place on.
    DamageSled {
        place: usize,
    },
    /// A bit of the snapshot is another one, for a while.
    DamageSnapshot {
        place: usize,
    },
}

fn referrer_number() -> std::ops::Range<u32> {
    10..14
}

fn said() -> impl Strategy<Value = Said> {
    (referrer_number(), prop::collection::vec(0..3u32, 0..3), 0..3u8)
        .prop_map(|(referrer, subjects, variant)| Said { referrer, subjects, variant })
}

fn step() -> impl Strategy<Value = Step> {
    let place = any::<usize>;
    let seen = || prop::bool::weighted(0.7);
    prop_oneof![
        5 => (said(), prop::option::of(0..3u32)).prop_map(|(said, tagged)| Step::Begin { said, tagged }),
        3 => place().prop_map(|place| Step::Confirm { place }),
        3 => place().prop_map(|place| Step::Refuse { place }),
        2 => place().prop_map(|place| Step::Abandon { place }),
        3 => (said(), any::<bool>(), prop::option::weighted(0.3, referrer_number()))
            .prop_map(|(said, claimed, removed)| Step::Learn { said, claimed, removed }),
        3 => (said(), seen()).prop_map(|(said, seen)| Step::Settle { said, seen }),
        2 => (referrer_number(), seen()).prop_map(|(referrer, seen)| Step::Remove { referrer, seen }),
        4 => (referrer_number(), seen()).prop_map(|(referrer, seen)| Step::Absent { referrer, seen }),
        2 => referrer_number().prop_map(|referrer| Step::Doubt { referrer }),
        1 => Just(Step::Reopen),
        1 => Just(Step::Rebuild),
        1 => Just(Step::Kill),
        1 => place().prop_map(|place| Step::DamageSled { place }),
        1 => place().prop_map(|place| Step::DamageSnapshot { place }),
    ]
}

fn described(said: &Said) -> Referrer {
    let Said { referrer: number, subjects, variant } = said;
    Referrer { descriptor: format!("{number} {variant}"), ..referrer(*number, subjects) }
}

/// The version that the referrer has, if it is to be the right one.
async fn version_if(seen: bool, index: &Index, referrer: u32) -> Version {
    version(index, referrer).await.filter(|_| seen).unwrap_or(Version::UNKNOWN)
}

/// What the model says of a referrer in a list.
type ModelListed = (Digest, (bool, bool), String, LinkKinds);

fn listed_as(entries: Vec<Entry>) -> Vec<ModelListed> {
    let listed =
        |entry: Entry| (entry.digest, (entry.pending, entry.was_confirmed), entry.descriptor, entry.kinds);
    entries.into_iter().map(listed).collect()
}

/// Overwrites some of one of the files of a closed sled.
fn damage_sled(bench: &Bench, place: usize) {
    let deltas = files_in(&bench.sled());
    let files: Vec<_> =
        deltas.iter().flat_map(|delta| files_in(delta)).filter(|path| path.is_file()).collect();
    let path = &files[place % files.len()];
    let mut bytes = fs::read(path).unwrap();
    let at = (place >> 8) % bytes.len().max(1);
    let noise = (place >> 3).to_be_bytes().into_iter().cycle();
    bytes.iter_mut().skip(at).take(1 + place % 100).zip(noise).for_each(|(byte, noise)| *byte ^= noise);
    fs::write(path, bytes).unwrap();
}

/// While a bit of the snapshot is another one, each list is right, or an error.
async fn damage_snapshot(bench: &Bench, model: &Model, place: usize) {
    let Some(path) = bench.journal_files("snapshot").pop() else { return };
    let intact = fs::read(&path).unwrap();
    let mut bytes = intact.clone();
    // Behind the header: damage in there is damage of all.
    let place = 48 + place % (bytes.len() - 48);
    bytes[place] ^= 4;
    fs::write(&path, bytes).unwrap();
    // Of a copy, in which anything may be written.
    let copy = bench.after_crash();
    fs::write(&path, intact).unwrap();
    let index = copy.try_open().unwrap();
    index.opened().await;
    for subject in 0..3 {
        match index.referrers(repository("a"), digest(subject), everything()).await {
            Ok(page) => assert_eq!(listed_as(page.entries), model.list(subject), "{place}"),
            Err(error) => assert_eq!(error, ReadError::Damaged, "{place}"),
        }
    }
    index.close().await;
}

async fn compare(index: &Index, model: &Model) {
    for subject in 0..3 {
        let listed = listed_as(entries(index, subject).await);
        let expected = model.list(subject);
        assert_eq!(listed, expected, "{subject}");
        let holders = index.repositories(0, digest(subject)).await.unwrap();
        let expected = if expected.is_empty() { vec![] } else { vec![repository("a").name] };
        assert_eq!(holders, expected, "{subject}");
    }
    let state = || model.referrers.values().map(|(_, state)| state);
    let pending = state().filter(|state| state.pending).count();
    let links: usize = state().map(|state| state.own.union(&state.tagged).count()).sum();
    assert_eq!(counts(index).await, (model.referrers.len(), links, pending));
    if let Some(statistics) = index.statistics() {
        assert_eq!(statistics.in_flight, model.puts.len() as u64);
    }
}

/// A PUT that is under way.
struct InFlight {
    born: u32,
    said: Said,
    tagged: Option<u32>,
    put: PutInFlight,
}

/// The index and the model, used alike.
struct Pair {
    bench: Bench,
    index: Index,
    model: Model,
    puts: Vec<InFlight>,
    killed: bool,
}

impl Pair {
    fn take(&mut self, place: usize) -> Option<InFlight> {
        (!self.puts.is_empty()).then(|| self.puts.swap_remove(place % self.puts.len()))
    }

    async fn begin(&mut self, said: Said, tagged: Option<u32>) {
        let mut content = described(&said);
        content.links.extend(tagged.map(|tagged| link(tagged, LinkKind::Cosign)));
        // What only a tag tells of is not recorded before the confirmation. Of a deletion meanwhile the database knows
        // only in which repository it was: there it is pending more often than the model expects.
        if content.links.is_empty() || (said.subjects.is_empty() && !self.bench.is_local()) {
            return;
        }
        let born = self.model.begin(&said);
        let put = self.index.begin(repository("a"), content).await.unwrap();
        self.puts.push(InFlight { born, said, tagged, put });
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "the caller has sorted them")]
    async fn end(&mut self, step: &Step) {
        match *step {
            Step::Confirm { place } => {
                let Some(InFlight { born, said, tagged, put }) = self.take(place) else { return };
                put.confirm().await.unwrap();
                self.model.confirm(born, &said, tagged);
            }
            Step::Refuse { place } => {
                let Some(InFlight { said, put, .. }) = self.take(place) else { return };
                put.refuse().await.unwrap();
                self.model.refuse(said.referrer);
            }
            Step::Abandon { place } => {
                let Some(InFlight { said, put, .. }) = self.take(place) else { return };
                drop(put);
                // The doubt is written by the next write at the latest.
                self.index.probe().await.unwrap();
                self.model.abandon(said.referrer);
            }
            _ => unreachable!("{step:?}"),
        }
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "the caller has sorted them")]
    async fn tell(&mut self, step: &Step) {
        let (index, model) = (&self.index, &mut self.model);
        match *step {
            Step::Learn { ref said, claimed, removed } => {
                let read = index.begin_read(repository("a")).await;
                if let Some(removed) = removed {
                    let version = version_if(true, index, removed).await;
                    assert_eq!(remove(index, removed, version).await, model.remove(removed, true));
                }
                index.observe(&read, vec![Observation { referrer: described(said), claimed }]).await.unwrap();
                model.learn(said, claimed, removed.is_some());
            }
            Step::Settle { ref said, seen } => {
                // It takes the referrer away, and of a deletion meanwhile: as for a PUT.
                if said.subjects.is_empty() && !self.bench.is_local() && !self.puts.is_empty() {
                    return;
                }
                let version = version_if(seen, index, said.referrer).await;
                index.settle(repository("a"), version, described(said)).await.unwrap();
                model.settle(said, seen);
            }
            Step::Remove { referrer, seen } => {
                let version = version_if(seen, index, referrer).await;
                assert_eq!(remove(index, referrer, version).await, model.remove(referrer, seen));
            }
            Step::Absent { referrer, seen } => {
                let version = version_if(seen, index, referrer).await;
                assert_eq!(absent(index, referrer, version).await, model.absent(referrer, seen));
            }
            Step::Doubt { referrer } => {
                index.doubt(repository("a"), digest(referrer)).await.unwrap();
                model.doubt(referrer);
            }
            _ => unreachable!("{step:?}"),
        }
    }

    /// Opens the index again, from its files or from what a kill or damage leaves of them.
    #[allow(clippy::wildcard_enum_match_arm, reason = "the caller has sorted them")]
    async fn reopen(mut self, step: &Step) -> Self {
        // In a database everything is there after a kill, but the PUTs that were under way count until they expire;
        // `replicas` has the tests of that.
        let is_kill = matches!(step, Step::Kill) && self.bench.is_local();
        let left = is_kill.then(|| self.bench.after_crash());
        let in_flight: HashSet<u32> = self.puts.drain(..).map(|put| put.said.referrer).collect();
        self.index.close().await;
        drop(self.index);
        self.model.puts.clear();
        match left {
            Some(left) => {
                self.killed = true;
                self.bench = left;
            }
            // What was in flight has no outcome.
            None => in_flight.into_iter().for_each(|referrer| self.model.doubt(referrer)),
        }
        match *step {
            Step::Rebuild => self.bench.lose_sled(),
            Step::DamageSled { place } if self.bench.is_local() => {
                self.killed = true;
                damage_sled(&self.bench, place);
            }
            Step::DamageSnapshot { place } if self.bench.is_local() => {
                damage_snapshot(&self.bench, &self.model, place).await;
            }
            _ => {}
        }
        self.index = self.bench.open().await;
        self
    }
}

async fn run(mut bench: Bench, steps: Vec<Step>, forgets_at_once: bool) {
    bench.settings.segment_bytes = 1500;
    bench.settings.compact_bytes = 4000;
    bench.settings.forget_after = if forgets_at_once { Duration::ZERO } else { Duration::MAX };
    let index = bench.open().await;
    let model = Model { forgets_at_once, ..Model::default() };
    let mut pair = Pair { bench, index, model, puts: Vec::new(), killed: false };
    let mut kept: Option<(Stamp, Vec<Vec<ModelListed>>)> = None;
    for step in steps {
        match step {
            Step::Begin { said, tagged } => pair.begin(said, tagged).await,
            Step::Confirm { .. } | Step::Refuse { .. } | Step::Abandon { .. } => pair.end(&step).await,
            Step::Learn { .. }
            | Step::Settle { .. }
            | Step::Remove { .. }
            | Step::Absent { .. }
            | Step::Doubt { .. } => pair.tell(&step).await,
            Step::Reopen
            | Step::Rebuild
            | Step::Kill
            | Step::DamageSled { .. }
            | Step::DamageSnapshot { .. } => pair = pair.reopen(&step).await,
        }
        compare(&pair.index, &pair.model).await;
        // What was read under a stamp counts for as long as it is the same.
        let stamp = pair.index.stamp(&repository("a"));
        assert_eq!(stamp.is_some(), pair.bench.is_local());
        let lists: Vec<_> = (0..3).map(|subject| pair.model.list(subject)).collect();
        let is_same = |(before, _): &(Stamp, _)| Some(*before) == stamp;
        if let Some((_, kept)) = kept.as_ref().filter(|kept| is_same(kept)) {
            assert_eq!(*kept, lists);
        }
        kept = stamp.map(|stamp| (stamp, lists));
    }
    assert!(pair.killed || pair.bench.rebuilds() == 0);
}

/// How many, or what `MODEL_CASES` says: for an hour, some 2,000.
fn cases() -> u32 {
    std::env::var("MODEL_CASES").map_or(24, |cases| cases.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_the_model(steps in prop::collection::vec(step(), 1..60), forgets_at_once in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for bench in Bench::each() {
            runtime.block_on(run(bench, steps.clone(), forgets_at_once));
        }
    }
}
