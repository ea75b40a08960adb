//! `limits.requests_per_client`: requests in progress, by the address of the client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Busy, ClientNetwork, Limit};

/// Requests in progress, by the address of the client.
#[derive(Debug)]
pub struct Requests {
    most: usize,
    load: Load,
    counts: Mutex<HashMap<ClientNetwork, usize>>,
}

/// Requests in progress of all clients. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Load(Arc<AtomicUsize>);

/// More requests than that are many: with a megabyte of buffers each they would take 32 MiB.
const MANY: usize = 32;

impl Load {
    /// Whether there are so many that each should make do with small buffers.
    #[must_use]
    pub fn is_high(&self) -> bool {
        self.0.load(Ordering::Relaxed) > MANY
    }
}

/// One request in progress, until the last clone is dropped. Whatever works for a request keeps a clone: a
/// client that resets its request over and over would otherwise start more work than its limit allows.
#[derive(Clone, Debug)]
pub struct RequestGuard {
    _shared: Arc<(CountedRequest, Busy)>,
}

#[derive(Debug)]
struct CountedRequest {
    requests: Arc<Requests>,
    client: ClientNetwork,
}

impl Requests {
    /// At most `most` for each address.
    #[must_use]
    pub fn new(most: usize, load: Load) -> Arc<Self> {
        Arc::new(Self { most, load, counts: Mutex::default() })
    }

    /// Counts one more of this client, on a connection that is `busy` with it.
    pub fn begin(self: &Arc<Self>, client: IpAddr, busy: Busy) -> Result<RequestGuard, Limit> {
        let client = ClientNetwork::from(client);
        let mut counts = self.lock();
        let count = counts.entry(client).or_default();
        if *count >= self.most {
            return Err(Limit::RequestsPerClient);
        }
        *count += 1;
        drop(counts);
        self.load.0.fetch_add(1, Ordering::Relaxed);
        let counted = CountedRequest { requests: Arc::clone(self), client };
        Ok(RequestGuard { _shared: Arc::new((counted, busy)) })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClientNetwork, usize>> {
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
