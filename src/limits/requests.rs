//! `limits.requests_per_client`: requests in progress, by the address of the client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Busy, Limit};

/// Requests in progress, by the address of the client.
#[derive(Debug)]
pub struct Requests {
    most: usize,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

/// One request in progress, until the last clone is dropped. Whatever works for a request keeps a clone: a
/// client that resets its request over and over would otherwise start more work than its limit allows.
#[derive(Clone, Debug)]
pub struct RequestGuard {
    _shared: Arc<(Counted, Busy)>,
}

#[derive(Debug)]
struct Counted {
    requests: Arc<Requests>,
    client: IpAddr,
}

impl Requests {
    /// At most `most` for each address.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, counts: Mutex::default() })
    }

    /// Counts one more of this client, on a connection that is `busy` with it.
    pub fn begin(self: &Arc<Self>, client: IpAddr, busy: Busy) -> Result<RequestGuard, Limit> {
        let mut counts = self.lock();
        let count = counts.entry(client).or_default();
        if *count >= self.most {
            return Err(Limit::RequestsPerClient);
        }
        *count += 1;
        drop(counts);
        let counted = Counted { requests: Arc::clone(self), client };
        Ok(RequestGuard { _shared: Arc::new((counted, busy)) })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
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
        let requests = Requests::new(2);
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
