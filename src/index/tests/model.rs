//! The index against a model of it, under random use.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// To a cosign tag of `tagged`.
    Begin {
        referrer: u32,
        subjects: Vec<u32>,
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
        referrer: u32,
        subjects: Vec<u32>,
        removed: Option<u32>,
    },
    Settle {
        referrer: u32,
        seen: bool,
    },
    Remove {
        referrer: u32,
        seen: bool,
    },
    Reopen,
    Rebuild,
    /// What is on disk is all that is left.
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    let referrer = || 10..14u32;
    prop_oneof![
        4 => (referrer(), prop::collection::vec(0..3u32, 0..3), prop::option::of(0..3u32))
            .prop_map(|(referrer, subjects, tagged)| Step::Begin { referrer, subjects, tagged }),
        3 => any::<usize>().prop_map(|place| Step::Confirm { place }),
        3 => any::<usize>().prop_map(|place| Step::Refuse { place }),
        1 => any::<usize>().prop_map(|place| Step::Abandon { place }),
        3 => (referrer(), prop::collection::vec(0..3u32, 0..3), prop::option::of(referrer()))
            .prop_map(|(referrer, subjects, removed)| Step::Learn { referrer, subjects, removed }),
        2 => (referrer(), any::<bool>()).prop_map(|(referrer, seen)| Step::Settle { referrer, seen }),
        3 => (referrer(), any::<bool>()).prop_map(|(referrer, seen)| Step::Remove { referrer, seen }),
        1 => Just(Step::Reopen),
        1 => Just(Step::Rebuild),
        1 => Just(Step::Kill),
    ]
}

/// What is known of a referrer, its place among the others by `born`.
#[derive(Debug)]
struct Modelled {
    born: u32,
    pending: bool,
    subjects: HashSet<u32>,
}

/// PUTs of a referrer that overlap.
#[derive(Debug, Default)]
struct Puts {
    in_flight: usize,
    made_it: bool,
    all_refused: bool,
    doubted: bool,
}

#[derive(Debug, Default)]
struct Model {
    time: u32,
    referrers: BTreeMap<u32, Modelled>,
    puts: BTreeMap<u32, Puts>,
}

impl Model {
    fn tick(&mut self) -> u32 {
        self.time += 1;
        self.time
    }

    fn record(&mut self, born: u32, referrer: u32, subjects: &[u32], pending: bool) {
        let fresh = Modelled { born, pending: true, subjects: HashSet::new() };
        let known = self.referrers.entry(referrer).or_insert(fresh);
        known.pending &= pending;
        known.subjects.extend(subjects);
    }

    /// Begins a PUT; when it would have made the referrer.
    fn begin(&mut self, referrer: u32, subjects: &[u32]) -> u32 {
        let is_known = self.referrers.contains_key(&referrer);
        let puts = self.puts.entry(referrer).or_insert(Puts { all_refused: true, ..Puts::default() });
        puts.in_flight += 1;
        puts.made_it |= !is_known && !subjects.is_empty();
        let now = self.tick();
        if is_known || !subjects.is_empty() {
            self.record(now, referrer, subjects, true);
        }
        now
    }

    /// Ends a PUT; tells whether nothing but refused PUTs made the referrer.
    fn end(&mut self, referrer: u32, refused: bool) -> bool {
        let puts = self.puts.get_mut(&referrer).unwrap();
        puts.in_flight -= 1;
        puts.all_refused &= refused;
        let last = puts.in_flight == 0;
        let nothing_left = last && puts.made_it && puts.all_refused;
        if last {
            self.puts.remove(&referrer);
        }
        nothing_left
    }

    fn learn(&mut self, referrer: u32, subjects: &[u32], pending: bool) {
        if !subjects.is_empty() || self.referrers.contains_key(&referrer) {
            let now = self.tick();
            self.record(now, referrer, subjects, pending);
        }
    }

    fn remove(&mut self, referrer: u32, seen: bool) -> Removed {
        let puts = self.puts.get_mut(&referrer);
        let in_flight = puts.map(|puts| puts.doubted = true).is_some();
        let Some(known) = self.referrers.get_mut(&referrer) else { return Removed::Unknown };
        if seen && !in_flight {
            self.referrers.remove(&referrer);
            return Removed::Gone;
        }
        known.pending = true;
        Removed::Doubted
    }

    /// The referrers of `subject`, oldest first, with whether they are pending.
    fn list(&self, subject: u32) -> Vec<(u32, bool)> {
        let mut found: Vec<_> =
            self.referrers.iter().filter(|(_, known)| known.subjects.contains(&subject)).collect();
        found.sort_by_key(|(_, known)| known.born);
        found.into_iter().map(|(referrer, known)| (*referrer, known.pending)).collect()
    }
}

/// The version that the referrer has, if it is to be the right one.
async fn version_if(seen: bool, index: &Index, referrer: u32) -> Version {
    version(index, referrer).await.filter(|_| seen).unwrap_or(Version::UNKNOWN)
}

async fn compare(index: &Index, model: &Model) {
    for subject in 0..3 {
        assert_eq!(numbers(index, subject).await, model.list(subject), "{subject}");
        let holders = index.repositories(0, digest(subject)).await.unwrap();
        let expected = if model.list(subject).is_empty() { vec![] } else { vec![repository("a").name] };
        assert_eq!(holders, expected, "{subject}");
    }
    let statistics = index.statistics();
    let pending = model.referrers.values().filter(|known| known.pending).count();
    let links: usize = model.referrers.values().map(|known| known.subjects.len()).sum();
    assert_eq!(
        (statistics.referrers, statistics.links, statistics.pending, statistics.in_flight),
        (model.referrers.len() as u64, links as u64, pending as u64, model.puts.len() as u64),
    );
}

async fn run(steps: Vec<Step>) {
    let mut bench = Bench::new();
    bench.settings.segment_bytes = 1500;
    bench.settings.compact_bytes = 4000;
    let mut index = bench.open().await;
    let mut model = Model::default();
    let mut killed = false;
    let mut puts: Vec<(u32, u32, Vec<u32>, PutInFlight)> = Vec::new();
    for step in steps {
        let pick = |place: usize| (!puts.is_empty()).then(|| place % puts.len());
        match step {
            Step::Begin { referrer: n, mut subjects, tagged } => {
                let mut content = referrer(n, &subjects);
                content.links.extend(tagged.map(|tagged| link(tagged, LinkKind::Cosign)));
                if content.links.is_empty() {
                    continue;
                }
                let born = model.begin(n, &subjects);
                subjects.extend(tagged);
                let put = index.begin(repository("a"), content).await.unwrap();
                puts.push((n, born, subjects, put));
            }
            Step::Confirm { place } => {
                let Some(place) = pick(place) else { continue };
                let (referrer, born, subjects, put) = puts.swap_remove(place);
                put.confirm().await.unwrap();
                let doubted = model.puts[&referrer].doubted;
                model.record(born, referrer, &subjects, doubted);
                model.end(referrer, false);
            }
            Step::Refuse { place } => {
                let Some(place) = pick(place) else { continue };
                let (referrer, _, _, put) = puts.swap_remove(place);
                put.refuse().await.unwrap();
                if model.end(referrer, true)
                    && model.referrers.get(&referrer).is_some_and(|known| known.pending)
                {
                    model.referrers.remove(&referrer);
                }
            }
            Step::Abandon { place } => {
                let Some(place) = pick(place) else { continue };
                let (referrer, _, _, put) = puts.swap_remove(place);
                drop(put);
                model.end(referrer, false);
            }
            Step::Learn { referrer: n, subjects, removed } => {
                let watch = index.watch(repository("a"));
                if let Some(removed) = removed {
                    let version = version_if(true, &index, removed).await;
                    assert_eq!(remove(&index, removed, version).await, model.remove(removed, true));
                }
                let learnt = Learnt { referrer: referrer(n, &subjects), claimed: false };
                index.learn(&watch, vec![learnt]).await.unwrap();
                model.learn(n, &subjects, removed.is_some());
            }
            Step::Settle { referrer, seen } => {
                let version = version_if(seen, &index, referrer).await;
                settle(&index, referrer, version).await;
                if let Some(known) = model.referrers.get_mut(&referrer) {
                    known.pending &= !seen;
                }
            }
            Step::Remove { referrer, seen } => {
                let version = version_if(seen, &index, referrer).await;
                assert_eq!(remove(&index, referrer, version).await, model.remove(referrer, seen));
            }
            Step::Reopen | Step::Rebuild => {
                puts.clear();
                model.puts.clear();
                index.close().await;
                drop(index);
                if matches!(step, Step::Rebuild) {
                    fs::remove_dir_all(bench.sled()).unwrap();
                }
                index = bench.open().await;
            }
            Step::Kill => {
                let left = bench.after_crash();
                puts.clear();
                model.puts.clear();
                index.close().await;
                killed |= true;
                bench = left;
                index = bench.open().await;
            }
        }
        compare(&index, &model).await;
    }
    assert!(killed || bench.rebuilds() == 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_the_model(steps in prop::collection::vec(step(), 1..40)) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run(steps));
    }
}
