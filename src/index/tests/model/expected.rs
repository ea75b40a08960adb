//! What the index is to hold: the same rules, without a disk.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// What is known of a referrer, its place among the others by `born`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each changes without the others, as in the index")]
pub(super) struct Modelled {
    pub(super) born: u32,
    pub(super) pending: bool,
    pub(super) was_confirmed: bool,
    pub(super) absent: bool,
    pub(super) claimed: bool,
    pub(super) variant: u8,
    /// What its bytes refer to.
    pub(super) own: BTreeSet<u32>,
    /// What a tag says that it refers to.
    pub(super) tagged: BTreeSet<u32>,
}

/// PUTs of a referrer that overlap.
#[derive(Debug, Default)]
pub(super) struct Puts {
    pub(super) in_flight: usize,
    pub(super) made_it: bool,
    pub(super) all_refused: bool,
    pub(super) doubted: bool,
    /// When the last of them began, if that was recorded.
    pub(super) began: Option<u32>,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) time: u32,
    /// Each with when it was last recorded.
    pub(super) referrers: BTreeMap<u32, (u32, Modelled)>,
    pub(super) puts: BTreeMap<u32, Puts>,
    pub(super) forgets_at_once: bool,
}

impl Model {
    pub(super) fn tick(&mut self) -> u32 {
        self.time += 1;
        self.time
    }

    pub(super) fn get(&self, referrer: u32) -> Option<Modelled> {
        self.referrers.get(&referrer).map(|(_, state)| state.clone())
    }

    pub(super) fn set(&mut self, referrer: u32, state: Option<Modelled>) {
        let now = self.tick();
        match state.filter(|state| !state.own.is_empty() || !state.tagged.is_empty()) {
            Some(state) => self.referrers.insert(referrer, (now, state)),
            None => self.referrers.remove(&referrer),
        };
    }

    /// Adds what is said to what is known.
    pub(super) fn add(
        &mut self,
        born: u32,
        said: &Said,
        tagged: Option<u32>,
        (pending, claimed): (bool, bool),
    ) {
        let mut state = self.get(said.referrer).unwrap_or(Modelled {
            born,
            pending: true,
            was_confirmed: false,
            absent: false,
            claimed,
            variant: said.variant,
            own: BTreeSet::new(),
            tagged: BTreeSet::new(),
        });
        let better = if state.claimed == claimed { state.pending && !pending } else { state.claimed };
        if better {
            (state.variant, state.claimed) = (said.variant, claimed);
        }
        state.pending &= pending;
        state.was_confirmed |= !state.pending;
        state.absent = false;
        state.own.extend(&said.subjects);
        state.tagged.extend(tagged);
        self.set(said.referrer, Some(state));
    }

    /// Puts what is said of the bytes in the place of what is known of them.
    pub(super) fn replace(&mut self, said: &Said, tagged: Option<u32>, pending: bool) {
        let before = self.get(said.referrer).unwrap();
        let own = said.subjects.iter().copied().collect();
        let variant = said.variant;
        let mut state = Modelled { pending, absent: false, claimed: false, variant, own, ..before.clone() };
        state.was_confirmed |= !pending;
        state.tagged.extend(tagged);
        if state != before {
            self.set(said.referrer, Some(state));
        }
    }

    /// Begins a PUT; gives the place in the order that its referrer has, or would have.
    pub(super) fn begin(&mut self, said: &Said) -> u32 {
        let now = self.tick();
        let before = self.referrers.get(&said.referrer).map(|(at, _)| *at);
        let state = self.get(said.referrer);
        match &state {
            Some(state) if !state.pending => self.set(said.referrer, Some(state.clone())),
            None if said.subjects.is_empty() => {}
            Some(_) | None => self.add(now, said, None, (true, false)),
        }
        let recorded = state.is_some() || !said.subjects.is_empty();
        let fresh = Puts { all_refused: true, ..Puts::default() };
        let puts = self.puts.entry(said.referrer).or_insert(fresh);
        puts.in_flight += 1;
        puts.made_it &= before.is_some() && before == puts.began;
        puts.made_it |= state.is_none() && recorded;
        puts.began = if recorded { Some(self.time) } else { puts.began };
        state.map_or(now, |state| state.born)
    }

    pub(super) fn confirm(&mut self, born: u32, said: &Said, tagged: Option<u32>) {
        let doubted = self.puts[&said.referrer].doubted;
        match self.get(said.referrer) {
            Some(state) if state.pending => self.replace(said, tagged, doubted),
            Some(state)
                if said.subjects.iter().all(|subject| state.own.contains(subject))
                    && tagged.is_none_or(|tagged| state.tagged.contains(&tagged)) => {}
            Some(_) | None => self.add(born, said, tagged, (doubted, false)),
        }
        self.end(said.referrer, false);
    }

    pub(super) fn refuse(&mut self, referrer: u32) {
        let began = self.puts[&referrer].began;
        if !self.end(referrer, true) {
            return;
        }
        if self.referrers.get(&referrer).is_some_and(|(at, state)| state.pending && Some(*at) == began) {
            self.set(referrer, None);
        }
    }

    /// Ends a PUT; tells whether nothing but refused PUTs made the referrer.
    pub(super) fn end(&mut self, referrer: u32, refused: bool) -> bool {
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

    pub(super) fn abandon(&mut self, referrer: u32) {
        self.end(referrer, false);
        self.doubt(referrer);
    }

    pub(super) fn doubt(&mut self, referrer: u32) {
        if let Some(state) = self.get(referrer).filter(|state| !state.pending) {
            self.set(referrer, Some(Modelled { pending: true, ..state }));
        }
    }

    pub(super) fn learn(&mut self, said: &Said, claimed: bool, deletion: bool) {
        let now = self.tick();
        let unsure = claimed || deletion;
        if let Some(puts) = self.puts.get_mut(&said.referrer) {
            puts.made_it = false;
        }
        let Some(state) = self.get(said.referrer) else {
            if !said.subjects.is_empty() {
                self.add(now, said, None, (unsure, claimed));
            }
            return;
        };
        let subjects: BTreeSet<u32> = said.subjects.iter().copied().collect();
        let pending = unsure || (state.pending && !state.own.is_subset(&subjects));
        let news = !subjects.is_subset(&state.own)
            || (state.claimed && !claimed)
            || (state.pending && !pending)
            || (state.absent && !unsure);
        if news {
            self.add(now, said, None, (pending, claimed));
        }
    }

    pub(super) fn settle(&mut self, said: &Said, seen: bool) {
        if seen && self.get(said.referrer).is_some() {
            self.replace(said, None, false);
        }
    }

    /// What may be removed; else what becomes of the removal.
    pub(super) fn unchanged(&mut self, referrer: u32, seen: bool) -> Result<Modelled, Removed> {
        let puts = self.puts.get_mut(&referrer);
        let in_flight = puts.map(|puts| puts.doubted = true).is_some();
        let Some(state) = self.get(referrer) else { return Err(Removed::Unknown) };
        if seen && !in_flight {
            return Ok(state);
        }
        self.set(referrer, Some(Modelled { pending: true, ..state }));
        Err(Removed::Doubted)
    }

    pub(super) fn remove(&mut self, referrer: u32, seen: bool) -> Removed {
        if let Err(removed) = self.unchanged(referrer, seen) {
            if let Some((_, state)) = self.referrers.get_mut(&referrer) {
                state.was_confirmed = false;
            }
            return removed;
        }
        self.set(referrer, None);
        Removed::Gone
    }

    pub(super) fn absent(&mut self, referrer: u32, seen: bool) -> Removed {
        match self.unchanged(referrer, seen) {
            Ok(state) if !state.absent => {
                self.set(referrer, Some(Modelled { pending: true, absent: true, ..state }));
                Removed::Doubted
            }
            Ok(_) if self.forgets_at_once => {
                self.set(referrer, None);
                Removed::Gone
            }
            Ok(_) => Removed::Doubted,
            Err(removed) => removed,
        }
    }

    /// The referrers of `subject`, oldest first; of each whether it is pending, and whether it ever was confirmed.
    pub(super) fn list(&self, subject: u32) -> Vec<(Digest, (bool, bool), String, LinkKinds)> {
        let kinds = |state: &Modelled| -> LinkKinds {
            let own = state.own.contains(&subject).then_some(LinkKind::Reference);
            let tagged = state.tagged.contains(&subject).then_some(LinkKind::Cosign);
            own.into_iter().chain(tagged).collect()
        };
        let mut found: Vec<_> = self
            .referrers
            .iter()
            .map(|(number, (_, state))| (state.born, *number, state, kinds(state)))
            .filter(|(_, _, _, kinds)| *kinds != LinkKinds::default())
            .collect();
        found.sort_by_key(|(born, ..)| *born);
        let entry = |(_, number, state, kinds): (u32, u32, &Modelled, LinkKinds)| {
            let confirmation = (state.pending, state.was_confirmed);
            (digest(number), confirmation, format!("{number} {}", state.variant), kinds)
        };
        found.into_iter().map(entry).collect()
    }
}
