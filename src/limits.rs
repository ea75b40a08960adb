//! How much at once: what one client, or all together, may take of this process before they are told to come
//! back later. Nobody waits for long, and what is counted is given back when its guard goes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What there is too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Limit {
    /// Connections of clients.
    #[error("there are too many connections")]
    Connections,
    /// Requests of one client that are not answered to the end.
    #[error("too many requests of this client are in progress")]
    RequestsPerClient,
    /// Bytes of manifests that are held to be read.
    #[error("too many manifests are being pushed")]
    ManifestBytes,
    /// Questions of refshim's own to one upstream.
    #[error("too many questions to the registry are open")]
    Questions,
}

/// Requests that are not answered to the end, by the address of the client.
#[derive(Debug)]
pub struct Requests {
    most: usize,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

/// One of [`Requests`], as long as it is kept.
#[derive(Debug)]
pub struct RequestGuard {
    requests: Arc<Requests>,
    client: IpAddr,
}

/// A number of things that may be had at once.
#[derive(Clone, Debug)]
pub struct Budget {
    limit: Limit,
    permits: Arc<Semaphore>,
}

/// A part of a [`Budget`], as long as it is kept.
#[derive(Debug)]
pub struct BudgetGuard {
    _permit: OwnedSemaphorePermit,
}

/// Connections that are served, and further ones that are only told that they are too many.
#[derive(Clone, Debug)]
pub struct Connections {
    served: Budget,
    refused: Budget,
}

/// What becomes of a connection, and its place as long as it is kept.
#[derive(Debug)]
pub enum Admission {
    /// Its requests are served.
    Served(BudgetGuard),
    /// They are refused.
    Refused(BudgetGuard),
}

impl Connections {
    /// Serves `most` of them, and tells a tenth as many.
    #[must_use]
    pub fn new(most: usize) -> Self {
        let budget = |most| Budget::new(Limit::Connections, most);
        Self { served: budget(most), refused: budget(most.div_ceil(10)) }
    }

    /// What becomes of one more; none if it is to be closed without a word.
    #[must_use]
    pub fn admit(&self) -> Option<Admission> {
        let served = self.served.take(1).map(Admission::Served);
        served.or_else(|_| self.refused.take(1).map(Admission::Refused)).ok()
    }
}

impl Admission {
    /// Whether its requests are served.
    #[must_use]
    pub fn is_served(&self) -> bool {
        matches!(self, Self::Served(_))
    }
}

impl Requests {
    /// At most so many for each address.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, counts: Mutex::default() })
    }

    /// Counts one more, if there is room for it.
    pub fn begin(self: &Arc<Self>, client: IpAddr) -> Result<RequestGuard, Limit> {
        let mut counts = self.lock();
        let count = counts.entry(client).or_default();
        if *count >= self.most {
            return Err(Limit::RequestsPerClient);
        }
        *count += 1;
        Ok(RequestGuard { requests: Arc::clone(self), client })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RequestGuard {
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

impl Budget {
    /// `most` of what `limit` names.
    #[must_use]
    pub fn new(limit: Limit, most: usize) -> Self {
        Self { limit, permits: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))) }
    }

    /// So many, if they are there now.
    pub fn take(&self, count: usize) -> Result<BudgetGuard, Limit> {
        let count = u32::try_from(count).map_err(|_| self.limit)?;
        let permit = Arc::clone(&self.permits).try_acquire_many_owned(count).map_err(|_| self.limit)?;
        Ok(BudgetGuard { _permit: permit })
    }

    /// One, if it is there within `patience`.
    pub async fn wait_for_one(&self, patience: Duration) -> Result<BudgetGuard, Limit> {
        let permit = tokio::time::timeout(patience, Arc::clone(&self.permits).acquire_owned()).await;
        let permit = permit.map_err(|_| self.limit)?.map_err(|_| self.limit)?;
        Ok(BudgetGuard { _permit: permit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_for_each_client_until_they_end() {
        let requests = Requests::new(2);
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|address| address.parse().unwrap());
        let first = requests.begin(one).unwrap();
        let _second = requests.begin(one).unwrap();
        assert_eq!(requests.begin(one).unwrap_err(), Limit::RequestsPerClient);
        drop(requests.begin(other).unwrap());
        assert_eq!(requests.lock().len(), 1);
        drop(first);
        assert!(requests.begin(one).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_of_a_budget_is_given_back() {
        let budget = Budget::new(Limit::ManifestBytes, 10);
        let most = budget.take(9).unwrap();
        assert_eq!(budget.take(2).unwrap_err(), Limit::ManifestBytes);
        let last = budget.wait_for_one(Duration::from_secs(1)).await.unwrap();
        assert_eq!(budget.wait_for_one(Duration::from_secs(1)).await.unwrap_err(), Limit::ManifestBytes);
        drop((most, last));
        assert!(budget.take(10).is_ok());
    }
}
