//! What waits, in memory: by event, and by when it is due.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::SystemTime;

use tokio::time::Instant;

use super::store::Batch;
use super::{Event, Job};

#[derive(Debug)]
pub(super) struct Waiting<E> {
    events: HashMap<E, Entry<E>>,
    /// The same events, by when they are due.
    due: BTreeMap<(Instant, u64), E>,
    /// Events that are being worked off, and those that came meanwhile and are equal to one of them.
    taken: HashSet<E>,
    held: HashMap<E, Job<E>>,
    /// How many events of each file are not worked off.
    files: HashMap<u64, usize>,
    /// Events that are being written, or worked off.
    pub(super) elsewhere: usize,
    /// The number of the next entry, and of the next file.
    pub(super) next: u64,
}

#[derive(Debug)]
struct Entry<E> {
    due: (Instant, u64),
    job: Job<E>,
}

impl<E> Default for Waiting<E> {
    fn default() -> Self {
        Self {
            events: HashMap::new(),
            due: BTreeMap::new(),
            taken: HashSet::new(),
            held: HashMap::new(),
            files: HashMap::new(),
            elsewhere: 0,
            next: 0,
        }
    }
}

impl<E: Event> Waiting<E> {
    pub(super) fn len(&self) -> usize {
        self.events.len() + self.held.len() + self.elsewhere
    }

    /// Whether its equal waits that was not tried yet.
    pub(super) fn has_untried(&self, event: &E) -> bool {
        self.events.get(event).is_some_and(|entry| entry.job.tried == 0) || self.held.contains_key(event)
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first_key_value().map(|((due, _), _)| *due)
    }

    /// Since when the oldest one waits.
    pub(super) fn oldest(&self) -> Option<SystemTime> {
        let jobs = self.events.values().map(|entry| &entry.job).chain(self.held.values());
        jobs.map(|job| job.received).min()
    }

    /// The events of a file, due at once.
    pub(super) fn add(&mut self, Batch { number, received, events }: Batch<E>) {
        self.files.insert(number, events.len());
        for event in events {
            let job = Job { event, received, tried: 0, files: vec![number] };
            // Its equal may have looked already at what this one tells of, so it is worked off, too, but after it.
            if !self.taken.contains(&job.event) {
                self.put(job, Instant::now());
            } else if let Some(other) = self.held.get_mut(&job.event) {
                other.join(job);
            } else {
                self.held.insert(job.event.clone(), job);
            }
        }
    }

    /// With an equal one that waits, it is worked off once, and at the earlier time.
    pub(super) fn put(&mut self, mut job: Job<E>, at: Instant) {
        let mut due = (at, self.next);
        self.next += 1;
        if let Some(Entry { due: other_due, job: other }) = self.events.remove(&job.event) {
            self.due.remove(&other_due);
            due = due.min(other_due);
            job.join(other);
        }
        self.due.insert(due, job.event.clone());
        self.events.insert(job.event.clone(), Entry { due, job });
    }

    pub(super) fn take(&mut self) -> Option<Job<E>> {
        let (_, event) = self.due.pop_first()?;
        let Entry { job, .. } = self.events.remove(&event)?;
        self.elsewhere += 1;
        self.taken.insert(event);
        Some(job)
    }

    /// An event is not being worked off any more; its equal is due now.
    pub(super) fn release(&mut self, event: &E) {
        self.elsewhere -= 1;
        self.taken.remove(event);
        if let Some(held) = self.held.remove(event) {
            self.put(held, Instant::now());
        }
    }

    /// Takes an event out of its files; gives those that have no other.
    pub(super) fn leave(&mut self, files: Vec<u64>) -> Vec<u64> {
        let mut finished = Vec::new();
        for number in files {
            let Some(left) = self.files.get_mut(&number) else { continue };
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.files.remove(&number);
                finished.push(number);
            }
        }
        finished
    }
}

impl<E> Job<E> {
    /// Both are one from now on.
    fn join(&mut self, other: Self) {
        self.files.extend(other.files);
        self.received = self.received.max(other.received);
        self.tried = self.tried.min(other.tried);
    }
}
