//! The events of one upstream that are still to be worked off. Bounded; equal ones wait once.
//!
//! Whatever is in here is on disk as well ([`Store`]), and stays there until it is worked off or given up. Events that
//! come at the same time share one file and one sync.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::event::Event;
use super::store::{Batch, Store};

/// Requests whose events share a file, at most.
const GROUP: usize = 256;

#[derive(Debug)]
pub(super) struct Queue {
    shared: Arc<Shared>,
    commits: mpsc::Sender<Commit>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    most: usize,
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    events: HashMap<Event, Entry>,
    /// The same events, by when they are due.
    due: BTreeMap<(Instant, u64), Event>,
    /// How many events of each file are not worked off.
    files: HashMap<u64, usize>,
    /// Events that are being written, or worked off.
    elsewhere: usize,
    /// The number of the next entry, and of the next file.
    next: u64,
}

#[derive(Debug)]
struct Entry {
    due: (Instant, u64),
    job: Job,
}

/// An event to be worked off. Dropped, it stays on disk.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) event: Event,
    /// When it was told last.
    pub(super) received: SystemTime,
    /// How often it was tried.
    pub(super) tried: u32,
    /// The files that it stands in.
    files: Vec<u64>,
}

/// Events that wait to be written.
#[derive(Debug)]
struct Commit {
    events: Vec<Event>,
    written: oneshot::Sender<Result<(), NotQueued>>,
}

/// Events were not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotQueued {
    /// There are too many.
    Full,
    /// The disk did not take them; the log says why.
    NotWritten,
}

impl Queue {
    /// The queue in a directory, for at most so many events; those that are there already come first, however many.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub(super) fn open(directory: PathBuf, most: usize) -> io::Result<Self> {
        let (store, batches) = Store::open(directory)?;
        let mut waiting = Waiting::default();
        for batch in batches {
            waiting.next = waiting.next.max(batch.number + 1);
            waiting.add(batch);
        }
        let (waiting, changed) = (Mutex::new(waiting), Notify::new());
        let shared = Arc::new(Shared { store, most, waiting, changed });
        let (commits, commits_to_do) = mpsc::channel(GROUP);
        // Ends with the queue.
        tokio::spawn(commit(Arc::clone(&shared), commits_to_do));
        Ok(Self { shared, commits })
    }

    /// Queues events. They are on disk when this returns.
    ///
    /// # Errors
    /// None of them is queued.
    pub(super) async fn add(&self, mut events: Vec<Event>) -> Result<(), NotQueued> {
        let count = {
            let mut waiting = self.shared.waiting();
            // One that waits will be looked at after this, and is on disk.
            events.retain(|event| !waiting.events.contains_key(event));
            if waiting.len() + events.len() > self.shared.most {
                return Err(NotQueued::Full);
            }
            waiting.elsewhere += events.len();
            events.len()
        };
        if count == 0 {
            return Ok(());
        }
        let (written, answer) = oneshot::channel();
        // Whoever sent it may go away: the commit is made all the same.
        let sent = self.commits.send(Commit { events, written }).await;
        if sent.is_err() {
            self.shared.waiting().elsewhere -= count;
        }
        answer.await.unwrap_or(Err(NotQueued::NotWritten))
    }

    /// The next event that is due, when there is one.
    pub(super) async fn next(&self) -> Job {
        loop {
            let changed = self.shared.changed.notified();
            let due = {
                let mut waiting = self.shared.waiting();
                match waiting.due.first_key_value().map(|((due, _), _)| *due) {
                    Some(due) if due <= Instant::now() => match waiting.take() {
                        Some(job) => return job,
                        None => None,
                    },
                    due => due,
                }
            };
            let come = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = changed => {}
                () = come => {}
            }
        }
    }

    /// The event was worked off, or given up.
    pub(super) async fn done(&self, job: Job) {
        let finished = {
            let mut waiting = self.shared.waiting();
            waiting.elsewhere -= 1;
            waiting.leave(job.files)
        };
        if finished.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let removed = tokio::task::spawn_blocking(move || {
            for number in finished {
                shared.store.remove(number);
            }
        });
        // Only cancelled with the runtime; the file is then read once more.
        let _removed = removed.await;
    }

    /// The event is to be worked off again, after a pause.
    pub(super) fn again(&self, job: Job, pause: Duration) {
        let mut waiting = self.shared.waiting();
        waiting.elsewhere -= 1;
        waiting.put(Job { tried: job.tried + 1, ..job }, Instant::now() + pause);
        drop(waiting);
        self.shared.changed.notify_one();
    }

    /// How many events are not worked off, and since when the oldest one waits.
    pub(super) fn measure(&self) -> (usize, Option<SystemTime>) {
        let waiting = self.shared.waiting();
        (waiting.len(), waiting.events.values().map(|entry| entry.job.received).min())
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn len(&self) -> usize {
        self.events.len() + self.elsewhere
    }

    /// The events of a file, due at once.
    fn add(&mut self, Batch { number, received, events }: Batch) {
        self.files.insert(number, events.len());
        for event in events {
            self.put(Job { event, received, tried: 0, files: vec![number] }, Instant::now());
        }
    }

    /// With an equal one that waits, it is worked off once, and at the earlier time.
    fn put(&mut self, mut job: Job, at: Instant) {
        let mut due = (at, self.next);
        self.next += 1;
        if let Some(Entry { due: other_due, job: other }) = self.events.remove(&job.event) {
            self.due.remove(&other_due);
            due = due.min(other_due);
            job.files.extend(other.files);
            job.received = job.received.max(other.received);
            job.tried = job.tried.min(other.tried);
        }
        self.due.insert(due, job.event.clone());
        self.events.insert(job.event.clone(), Entry { due, job });
    }

    fn take(&mut self) -> Option<Job> {
        let (_, event) = self.due.pop_first()?;
        let Entry { job, .. } = self.events.remove(&event)?;
        self.elsewhere += 1;
        Some(job)
    }

    /// Takes an event out of its files; gives those that have no other.
    fn leave(&mut self, files: Vec<u64>) -> Vec<u64> {
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

/// Writes what is to be queued: all that came during one sync with the next one.
async fn commit(shared: Arc<Shared>, mut commits: mpsc::Receiver<Commit>) {
    let mut group = Vec::new();
    while commits.recv_many(&mut group, GROUP).await > 0 {
        let (events, answers): (Vec<_>, Vec<_>) =
            group.drain(..).map(|Commit { events, written }| (events, written)).unzip();
        let events: Vec<Event> = events.into_iter().flatten().collect();
        let (count, received) = (events.len(), SystemTime::now());
        let number = {
            let mut waiting = shared.waiting();
            waiting.next += 1;
            waiting.next - 1
        };
        let (batch, store) = (Batch { number, received, events }, Arc::clone(&shared));
        let written = tokio::task::spawn_blocking(move || store.store.write(&batch).map(|()| batch)).await;
        let written = written.unwrap_or_else(|error| Err(io::Error::other(error)));
        let mut waiting = shared.waiting();
        waiting.elsewhere -= count;
        let outcome = match written {
            Ok(batch) => {
                waiting.add(batch);
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, events = count, "notifications cannot be written to disk");
                Err(NotQueued::NotWritten)
            }
        };
        drop(waiting);
        shared.changed.notify_one();
        for answer in answers {
            // Whoever sent it may have gone away.
            let _gone = answer.send(outcome);
        }
    }
}

#[cfg(test)]
mod tests;
