//! `limits.manifest_bytes`: memory of manifests while they are pushed, counted by the bytes received. When it is
//! full, the oldest push that is still incomplete is aborted: slow senders cannot block those who send at once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Limit;

/// Counts the bytes of manifests that are being pushed.
#[derive(Clone, Debug)]
pub struct Pushes(Arc<SharedPushes>);

#[derive(Debug)]
struct SharedPushes {
    most: AtomicUsize,
    held: Mutex<HeldPush>,
}

#[derive(Debug, Default)]
struct HeldPush {
    bytes: usize,
    begun: u64,
    /// Incomplete pushes, oldest first.
    unfinished: BTreeMap<u64, UnfinishedPush>,
}

#[derive(Debug)]
struct UnfinishedPush {
    bytes: usize,
    gives_way: Arc<Notify>,
}

/// The bytes received of one manifest, released on drop.
#[derive(Debug)]
pub struct PushGuard {
    shared: Arc<SharedPushes>,
    number: u64,
    /// Its length once it is complete, and no longer among the unfinished.
    finished: usize,
    gives_way: Arc<Notify>,
}

impl Pushes {
    /// A limit of `most` bytes for all pushes together.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self(Arc::new(SharedPushes { most: AtomicUsize::new(most), held: Mutex::default() }))
    }

    /// Changes the limit for the bytes that come from now on.
    pub fn resize(&self, most: usize) {
        self.0.most.store(most, Ordering::Relaxed);
    }

    /// Begins a push.
    #[must_use]
    pub fn begin(&self) -> PushGuard {
        let gives_way = Arc::new(Notify::new());
        let mut held = self.0.lock();
        let number = held.begun;
        held.begun += 1;
        held.unfinished.insert(number, UnfinishedPush { bytes: 0, gives_way: Arc::clone(&gives_way) });
        drop(held);
        PushGuard { shared: Arc::clone(&self.0), number, finished: 0, gives_way }
    }
}

impl PushGuard {
    /// Counts received bytes, aborting older incomplete pushes if there is no room.
    ///
    /// # Errors
    /// This push was itself aborted, or all others are complete and wait for the upstream.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Limit> {
        let mut held = self.shared.lock();
        if !held.unfinished.contains_key(&self.number) {
            // It was aborted itself, and its task does not know it yet: no other push is aborted for it.
            return Err(Limit::ManifestBytes);
        }
        while held.bytes.saturating_add(bytes) > self.shared.most.load(Ordering::Relaxed) {
            let others = held.unfinished.iter().filter(|(_, other)| other.bytes > 0);
            let mut others = others.map(|(number, _)| *number).filter(|number| *number != self.number);
            let first = others.next().ok_or(Limit::ManifestBytes)?;
            if let Some(slow) = held.unfinished.remove(&first) {
                // Released here, before its task drops the bytes: waiting for that would make this push as slow as
                // the slow one. Until that task runs, a little more than the limit is in memory.
                held.bytes -= slow.bytes;
                slow.gives_way.notify_one();
            }
        }
        let own = held.unfinished.get_mut(&self.number).ok_or(Limit::ManifestBytes)?;
        own.bytes += bytes;
        held.bytes += bytes;
        Ok(())
    }

    /// Marks the manifest as complete; from here on it is not aborted for others.
    ///
    /// # Errors
    /// It was already aborted.
    pub fn finish(&mut self) -> Result<(), Limit> {
        let own = self.shared.lock().unfinished.remove(&self.number).ok_or(Limit::ManifestBytes)?;
        self.finished = own.bytes;
        Ok(())
    }

    /// Waits until this push is aborted in favour of another.
    pub async fn gives_way(&self) {
        self.gives_way.notified().await;
    }
}

impl Drop for PushGuard {
    fn drop(&mut self) {
        let mut held = self.shared.lock();
        let unfinished = held.unfinished.remove(&self.number).map_or(0, |own| own.bytes);
        held.bytes -= unfinished + self.finished;
    }
}

impl SharedPushes {
    fn lock(&self) -> MutexGuard<'_, HeldPush> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_push_that_began_first_gives_way_and_a_complete_one_does_not() {
        let pushes = Pushes::new(10);
        let [mut first, mut second, mut third] = [(); 3].map(|()| pushes.begin());
        first.grow(4).unwrap();
        second.grow(4).unwrap();
        first.finish().unwrap();
        third.grow(6).unwrap();
        second.gives_way().await;
        assert_eq!(second.grow(0).unwrap_err(), Limit::ManifestBytes);
        assert_eq!(second.grow(1).unwrap_err(), Limit::ManifestBytes);
        third.grow(0).unwrap();
        assert_eq!(second.finish().unwrap_err(), Limit::ManifestBytes);
        third.finish().unwrap();
        assert_eq!(pushes.begin().grow(1).unwrap_err(), Limit::ManifestBytes);
        drop(second);
        drop(third);
        let mut fourth = pushes.begin();
        fourth.grow(6).unwrap();
        assert_eq!(fourth.grow(1).unwrap_err(), Limit::ManifestBytes);
        drop((first, fourth));
        assert_eq!(pushes.0.lock().bytes, 0);
        assert!(pushes.0.lock().unfinished.is_empty());
    }
}
