//! `limits.requests_per_client`: requests in progress of each client address.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ahash::AHashMap;

use super::{Busy, ClientNetwork, Limit, ReadSize};

/// Counts the requests in progress of each client address.
#[derive(Debug)]
pub struct Requests {
    most: AtomicUsize,
    load: Load,
    counts: Mutex<AHashMap<ClientNetwork, usize>>,
}

/// Number of requests in progress of all clients together. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Load(Arc<AtomicUsize>);

impl Load {
    /// How much of its answer a request may read at once.
    #[must_use]
    pub fn read_size(&self) -> ReadSize {
        ReadSize::for_one_of(self.0.load(Ordering::Relaxed))
    }
}

/// One request in progress, until the last clone is dropped. All work for a request keeps a clone: otherwise a client
/// that resets its requests over and over could start more work than its limit allows (as in CVE-2023-44487).
#[derive(Clone, Debug)]
pub struct RequestGuard {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    _counted: CountedRequest,
    _busy: Busy,
    carried: Mutex<Option<Carried>>,
}

/// Whatever is to be dropped when the request has ended.
struct Carried {
    _it: Box<dyn Send>,
}

impl fmt::Debug for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Carried")
    }
}

impl RequestGuard {
    /// Keeps this until the last clone is dropped.
    pub fn carry(&self, it: impl Send + 'static) {
        *self.shared.carried.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Carried { _it: Box::new(it) });
    }
}

#[derive(Debug)]
struct CountedRequest {
    requests: Arc<Requests>,
    client: ClientNetwork,
}

impl Requests {
    /// A limit of `most` requests for each client.
    #[must_use]
    pub fn new(most: usize, load: Load) -> Arc<Self> {
        Arc::new(Self { most: AtomicUsize::new(most), load, counts: Mutex::default() })
    }

    /// Changes the limit for the requests that begin from now on.
    pub fn resize(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Counts a request of this client, and keeps its connection `busy`.
    ///
    /// # Errors
    /// The client's limit is reached.
    pub fn begin(self: &Arc<Self>, client: IpAddr, busy: Busy) -> Result<RequestGuard, Limit> {
        let client = ClientNetwork::from(client);
        let mut counts = self.lock();
        let count = counts.entry(client).or_default();
        if *count >= self.most.load(Ordering::Relaxed) {
            return Err(Limit::RequestsPerClient);
        }
        *count += 1;
        drop(counts);
        self.load.0.fetch_add(1, Ordering::Relaxed);
        let counted = CountedRequest { requests: Arc::clone(self), client };
        let shared = Shared { _counted: counted, _busy: busy, carried: Mutex::new(None) };
        Ok(RequestGuard { shared: Arc::new(shared) })
    }

    fn lock(&self) -> MutexGuard<'_, AHashMap<ClientNetwork, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CountedRequest {
    fn drop(&mut self) {
        self.requests.load.0.fetch_sub(1, Ordering::Relaxed);
        let mut counts = self.requests.lock();
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Connections;
    use super::*;

    #[tokio::test]
    async fn requests_are_counted_for_each_client_until_they_end() {
        let requests = Requests::new(2, Load::default());
        let connections = Connections::new(1);
        let place = connections.admit().await.unwrap();
        let begin = |client| requests.begin(client, place.begin().unwrap());
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|address| address.parse().unwrap());
        let first = begin(one).unwrap();
        let _second = begin(one).unwrap();
        assert_eq!(begin(one).unwrap_err(), Limit::RequestsPerClient);
        drop(begin(other).unwrap());
        assert_eq!(requests.lock().len(), 1);
        let again = first.clone();
        drop(first);
        assert_eq!(begin(one).unwrap_err(), Limit::RequestsPerClient);
        drop(again);
        assert!(begin(one).is_ok());
    }
}
