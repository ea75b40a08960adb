//! Events that are still to be worked off, in the background: a queue that survives the process. Bounded; equal ones
//! wait once, and are not worked off by two at a time.
//!
//! Whatever is in here is on disk as well, and stays there until it is worked off or given up. Events that come at the
//! same time share one file and one sync. Where several replicas share an index, the queue is beside it, and what one
//! replica has taken is worked off by another one if it does not come back.

mod store;
mod waiting;

use std::fmt::Debug;
use std::hash::Hash;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::index::{Index, SharedQueue};
use store::{Batch, Files, Store};
use waiting::Waiting;

/// Requests whose events share a file, at most.
const GROUP: usize = 256;

/// What can be queued: on disk it is a line of JSON.
pub trait Event: Clone + Debug + Eq + Hash + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// What such events are, in the log.
    const NAMED: &'static str;
    /// What finds out again what they told of, should their file be damaged.
    const REMEDY: &'static str;
}

/// Where a queue is.
#[derive(Debug)]
pub enum Place {
    /// In a directory of this process's own.
    Directory(PathBuf),
    /// Beside an index that several replicas share.
    Shared(SharedQueue),
}

impl Place {
    /// Beside the index if it is shared, else in the directory.
    #[must_use]
    pub fn of(index: &Index, name: &str, directory: PathBuf) -> Self {
        index.shared_queue(name).map_or(Self::Directory(directory), Self::Shared)
    }
}

/// A queue of such events.
#[derive(Debug)]
pub struct Queue<E: Event> {
    shared: Arc<Shared<E>>,
    commits: mpsc::Sender<Commit<E>>,
}

#[derive(Debug)]
struct Shared<E> {
    store: Store<E>,
    most: usize,
    waiting: Mutex<Waiting<E>>,
    changed: Notify,
}

/// An event to be worked off. Dropped, it stays on disk.
#[derive(Debug)]
pub struct Job<E> {
    /// The event.
    pub event: E,
    /// When it came last.
    pub received: SystemTime,
    /// How often it was tried.
    pub tried: u32,
    /// The files that it stands in.
    files: Vec<u64>,
}

/// Events that wait to be written.
#[derive(Debug)]
struct Commit<E> {
    events: Vec<E>,
    written: oneshot::Sender<Result<(), NotQueued>>,
}

/// Why events were not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotQueued {
    /// There are too many.
    #[error("too much waits already")]
    Full,
    /// The disk did not take them; the log says why.
    #[error("the disk does not take it")]
    NotWritten,
}

/// How long to wait after so many tries: doubled with each.
#[must_use]
pub fn pause(first: Duration, longest: Duration, tried: u32) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(tried)).min(longest)
}

impl<E: Event> Queue<E> {
    /// The queue in a directory, or beside the index, for at most so many events; those that are there already come
    /// first, however many.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn open(place: Place, most: usize) -> io::Result<Self> {
        let (store, batches) = match place {
            Place::Directory(directory) => {
                let (files, batches) = Files::open(directory)?;
                (Store::Files(Arc::new(files)), batches)
            }
            Place::Shared(queue) => (Store::Shared { queue, names: Mutex::default() }, Vec::new()),
        };
        let mut waiting = Waiting::default();
        for batch in batches {
            waiting.next = waiting.next.max(batch.number + 1);
            waiting.add(batch);
        }
        let (waiting, changed) = (Mutex::new(waiting), Notify::new());
        let shared = Arc::new(Shared { store, most, waiting, changed });
        if shared.store.is_shared() {
            tokio::spawn(take_over(Arc::downgrade(&shared)));
        }
        let (commits, commits_to_do) = mpsc::channel(GROUP);
        // Ends with the queue.
        tokio::spawn(commit(Arc::clone(&shared), commits_to_do));
        Ok(Self { shared, commits })
    }

    /// Queues events. They are on disk when this returns.
    ///
    /// # Errors
    /// None of them is queued.
    pub async fn add(&self, mut events: Vec<E>) -> Result<(), NotQueued> {
        let count = {
            let mut waiting = self.shared.waiting();
            // One that waits will be looked at after this, and is on disk. Not one that failed: it is on its way to be
            // given up, and waits for long.
            events.retain(|event| !waiting.has_untried(event));
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

    /// Works events off as they come due, so many at a time, until `ending`. What is under way then is dropped: it is
    /// on disk. Each is to be [`Queue::done`] or to come [`Queue::again`] in the end.
    pub async fn work_off<W: Future<Output = ()>>(
        &self,
        at_a_time: usize,
        ending: &CancellationToken,
        work: impl Fn(Job<E>) -> W,
    ) {
        let mut running = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased;
                () = ending.cancelled() => return,
                Some(()) = running.next(), if !running.is_empty() => {}
                job = self.next(), if running.len() < at_a_time => running.push(work(job)),
            }
        }
    }

    /// The next event that is due, when there is one.
    async fn next(&self) -> Job<E> {
        loop {
            let changed = self.shared.changed.notified();
            let due = {
                let mut waiting = self.shared.waiting();
                match waiting.next_due() {
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
    pub async fn done(&self, job: Job<E>) {
        let finished = {
            let mut waiting = self.shared.waiting();
            waiting.release(&job.event);
            waiting.leave(job.files)
        };
        self.shared.changed.notify_one();
        if !finished.is_empty() {
            self.shared.store.remove(finished).await;
        }
    }

    /// The event is to be worked off again, after a pause.
    pub fn again(&self, job: Job<E>, pause: Duration) {
        let mut waiting = self.shared.waiting();
        let again = Job { event: job.event.clone(), tried: job.tried + 1, ..job };
        waiting.release(&again.event);
        waiting.put(again, Instant::now() + pause);
        drop(waiting);
        self.shared.changed.notify_one();
    }

    /// How many events are not worked off, and since when the oldest one waits.
    #[must_use]
    pub fn measure(&self) -> (usize, Option<SystemTime>) {
        let waiting = self.shared.waiting();
        (waiting.len(), waiting.oldest())
    }
}

impl<E> Shared<E> {
    fn waiting(&self) -> MutexGuard<'_, Waiting<E>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what is to be queued: all that came during one sync with the next one.
async fn commit<E: Event>(shared: Arc<Shared<E>>, mut commits: mpsc::Receiver<Commit<E>>) {
    let mut group = Vec::new();
    while commits.recv_many(&mut group, GROUP).await > 0 {
        let (events, answers): (Vec<_>, Vec<_>) =
            group.drain(..).map(|Commit { events, written }| (events, written)).unzip();
        let events: Vec<E> = events.into_iter().flatten().collect();
        let (count, received) = (events.len(), SystemTime::now());
        let number = {
            let mut waiting = shared.waiting();
            waiting.next += 1;
            waiting.next - 1
        };
        let written = shared.store.write(Batch { number, received, events }).await;
        let mut waiting = shared.waiting();
        waiting.elsewhere -= count;
        let outcome = match written {
            Ok(batch) => {
                waiting.add(batch);
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, events = count, "{} cannot be written down", E::NAMED);
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

/// Renews what this replica has of a shared queue, and takes over what others have left, as long as the queue is there.
async fn take_over<E: Event>(shared: Weak<Shared<E>>) {
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let number = || {
            let mut waiting = shared.waiting();
            waiting.next += 1;
            waiting.next - 1
        };
        for batch in shared.store.take(number).await {
            shared.waiting().add(batch);
            shared.changed.notify_one();
        }
        drop(shared);
        sleep(SharedQueue::RENEWED).await;
    }
}

#[cfg(test)]
mod tests;
