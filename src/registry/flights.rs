//! Single flight: identical questions in progress share one request, and all who wait get its answer. It goes on as
//! long as anybody waits, also if the first one's client went away, and is cancelled when nobody does.
//!
//! Answers are not cached here; `memory` keeps those that may be kept. moka's `try_get_with` would cache all of them,
//! and send the question again when the first client goes away.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, WeakShared};

use crate::proxy::error::Error;
use crate::telemetry::within_this_request;

type Flight<V> = BoxFuture<'static, Result<V, Arc<Error>>>;
type Flying<K, V> = Arc<Mutex<HashMap<K, WeakShared<Flight<V>>>>>;

/// The questions in progress, by key.
pub(super) struct Flights<K, V>(Flying<K, V>);

/// Removes a question when it ended or was cancelled.
struct Landing<K: Hash + Eq, V>(K, Flying<K, V>);

impl<K, V> Flights<K, V>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The answer to the question in progress with this key; if there is none, `ask` starts it.
    pub(super) async fn join<F>(&self, key: K, ask: impl FnOnce() -> F) -> Result<V, Error>
    where
        F: Future<Output = Result<V, Error>> + Send + 'static,
    {
        let flight = {
            let mut flying = lock(&self.0);
            let under_way = flying.get(&key).and_then(WeakShared::upgrade);
            under_way.unwrap_or_else(|| {
                let (landing, question) = (Landing(key.clone(), Arc::clone(&self.0)), ask());
                let flight = question.map(move |answer| {
                    drop(landing);
                    answer.map_err(Arc::new)
                });
                let flight = within_this_request(flight).boxed().shared();
                // Held weakly, so that a question nobody waits for is cancelled. `downgrade` gives None only after
                // completion, and this one was not polled yet.
                if let Some(weak) = flight.downgrade() {
                    flying.insert(key, weak);
                }
                flight
            })
        };
        flight.await.map_err(Error::Shared)
    }
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, V> fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

impl<K: Hash + Eq, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        lock(&self.1).remove(&self.0);
    }
}

fn lock<K, V>(flying: &Flying<K, V>) -> MutexGuard<'_, HashMap<K, WeakShared<Flight<V>>>> {
    flying.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn a_question_is_asked_once_whoever_stays_to_hear_the_answer() {
        let (flights, asked) = (Arc::new(Flights::<u8, u8>::default()), Arc::new(AtomicUsize::new(0)));
        let gate = Arc::new(Semaphore::new(0));
        let join = |key| {
            let (flights, asked, gate) = (Arc::clone(&flights), Arc::clone(&asked), Arc::clone(&gate));
            tokio::spawn(async move {
                let ask = || async move {
                    asked.fetch_add(1, Ordering::SeqCst);
                    drop(gate.acquire().await);
                    Ok(key)
                };
                flights.join(key, ask).await.unwrap()
            })
        };
        let first = join(1);
        while asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..300).map(|_| join(1)).collect();
        tokio::task::yield_now().await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        gate.add_permits(1);
        for other in others {
            assert_eq!(other.await.unwrap(), 1);
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(lock(&flights.0).is_empty());
        // What nobody waits for any more is let go.
        gate.forget_permits(1);
        let alone = join(2);
        while asked.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        alone.abort();
        assert!(alone.await.is_err());
        assert!(lock(&flights.0).is_empty());
    }
}
