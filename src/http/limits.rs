//! Concurrency limits, per client and overall. Exceeding one is answered at once with 429 or 503 and the name of the
//! setting. Requests are not queued for it: those that wait would hold the memory that the limit protects.
//!
//! Each limit hands out guards, and dropping the guard releases what it counted. A guard travels with the thing that
//! it counts (a task, a body, the bytes queued for a slow client), so that a client gains nothing by resetting its
//! requests or by not reading its answers. What is limited: connections ([`Connections`]), requests of a client
//! ([`Requests`]), bytes of manifests being pushed ([`Pushes`]), bytes of refshim's own answers ([`Answers`]), and
//! questions to an upstream ([`Budget`]). Blobs are not counted, since they stream; how much of them is in memory depends
//! on how much is read at once ([`ReadSize`]).

mod answers;
mod connections;
mod pushes;
mod read_size;
mod requests;

pub use answers::{AnswerGuard, Answers};
pub use connections::{Busy, Closing, Connections, Place};
pub use pushes::{PushGuard, Pushes};
pub use read_size::ReadSize;
pub use requests::{Load, RequestGuard, Requests};

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The limit that was exceeded. The message names the setting, for the log and for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Limit {
    /// Connections of clients.
    #[error("there are too many connections (limits.connections)")]
    Connections,
    /// Requests in progress of one client.
    #[error("too many requests of this client are in progress (limits.requests_per_client)")]
    RequestsPerClient,
    /// Bytes of manifests in memory that are being pushed.
    #[error("too many manifests are being pushed (limits.manifest_bytes)")]
    ManifestBytes,
    /// Bytes of answers that clients have not taken yet.
    #[error("too many answers wait to be read by their clients (limits.answer_bytes)")]
    AnswerBytes,
    /// Refshim's own requests to one upstream.
    #[error("too many questions to the registry are open (limits.questions)")]
    Questions,
}

impl Limit {
    /// Every limit.
    pub const ALL: [Self; 5] =
        [Self::Connections, Self::RequestsPerClient, Self::ManifestBytes, Self::AnswerBytes, Self::Questions];
}

/// What counts as one client: an IPv4 address, or the /64 network of an IPv6 address. A site usually gets all
/// addresses of a /64 (RFC 6177) and could otherwise pass for as many clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ClientNetwork(IpAddr);

impl From<IpAddr> for ClientNetwork {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        })
    }
}

/// A semaphore that fails with the name of its limit.
#[derive(Clone, Debug)]
pub struct Budget {
    limit: Limit,
    permits: Arc<Semaphore>,
    most: Arc<Mutex<usize>>,
}

/// Permits of a [`Budget`], released on drop.
#[derive(Debug)]
pub struct BudgetGuard {
    _permit: OwnedSemaphorePermit,
}

impl Budget {
    /// A budget of `most` permits; exceeding it is reported as `limit`.
    #[must_use]
    pub fn new(limit: Limit, most: usize) -> Self {
        let most = most.min(Semaphore::MAX_PERMITS);
        Self { limit, permits: Arc::new(Semaphore::new(most)), most: Arc::new(Mutex::new(most)) }
    }

    /// Changes the number of permits. Those that are taken stay so: a lower limit is reached as they are released, and
    /// nothing new is let in until then. How many those are.
    pub fn resize(&self, most: usize) -> usize {
        let most = most.min(Semaphore::MAX_PERMITS);
        let mut current = self.most.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *current, most);
        self.permits.add_permits(most.saturating_sub(before));
        let excess = before.saturating_sub(most);
        let rest = excess - self.permits.forget_permits(excess);
        if let Ok(taken @ 1..) = u32::try_from(rest) {
            // It waits ahead of everybody who asks later, so it gets each permit that is released.
            let permits = Arc::clone(&self.permits);
            tokio::spawn(
                async move { permits.acquire_many_owned(taken).await.map(OwnedSemaphorePermit::forget) },
            );
        }
        rest
    }

    /// Takes `count` permits if they are free now.
    pub fn take(&self, count: usize) -> Result<BudgetGuard, Limit> {
        let count = u32::try_from(count).map_err(|_| self.limit)?;
        let permit = Arc::clone(&self.permits).try_acquire_many_owned(count).map_err(|_| self.limit)?;
        Ok(BudgetGuard { _permit: permit })
    }

    /// Takes one permit, waiting for it for `patience` at most.
    pub async fn wait_for_one(&self, patience: Duration) -> Result<BudgetGuard, Limit> {
        let permit = tokio::time::timeout(patience, Arc::clone(&self.permits).acquire_owned()).await;
        let permit = permit.map_err(|_| self.limit)?.map_err(|_| self.limit)?;
        Ok(BudgetGuard { _permit: permit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_client(one: &str, other: &str, expected: bool) {
        let [one_client, other_client] =
            [one, other].map(|it| ClientNetwork::from(it.parse::<IpAddr>().unwrap()));
        assert_eq!(one_client == other_client, expected, "{one} {other}");
    }

    #[test]
    fn a_client_is_an_ipv4_address_or_an_ipv6_network() {
        check_client("192.0.2.1", "192.0.2.1", true);
        check_client("192.0.2.1", "192.0.2.2", false);
        check_client("192.0.2.1", "::ffff:192.0.2.1", true);
        check_client("::ffff:192.0.2.1", "::ffff:192.0.2.2", false);
        check_client("2001:db8::1", "2001:db8::ffff:1:2:3", true);
        check_client("2001:db8::1", "2001:db8:0:1::1", false);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_of_a_budget_is_given_back() {
        let budget = Budget::new(Limit::Questions, 10);
        let most = budget.take(9).unwrap();
        assert_eq!(budget.take(2).unwrap_err(), Limit::Questions);
        let last = budget.wait_for_one(Duration::from_secs(1)).await.unwrap();
        assert_eq!(budget.wait_for_one(Duration::from_secs(1)).await.unwrap_err(), Limit::Questions);
        drop((most, last));
        assert!(budget.take(10).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_grows_at_once_and_shrinks_as_permits_are_given_back() {
        let budget = Budget::new(Limit::Connections, 3);
        let mut taken: Vec<_> = (0..3).map(|_| budget.take(1).unwrap()).collect();
        budget.resize(4);
        taken.push(budget.take(1).unwrap());
        budget.resize(2);
        // What waits for the permits to give up is a task of its own.
        tokio::task::yield_now().await;
        for _ in 0..2 {
            taken.pop();
            assert_eq!(budget.take(1).unwrap_err(), Limit::Connections);
            tokio::task::yield_now().await;
        }
        taken.pop();
        taken.push(budget.take(1).unwrap());
        assert_eq!(budget.take(1).unwrap_err(), Limit::Connections);
        budget.resize(3);
        assert!(budget.take(1).is_ok());
    }
}
