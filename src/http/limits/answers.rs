//! `limits.answer_bytes`: memory of refshim's own answers, from when they are made until clients have read them.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ahash::AHashMap;

use super::{ClientNetwork, Limit};

/// One client may hold a quarter of the budget, so that a client that does not read its answers cannot lock out
/// the others.
const CLIENTS_SHARE: usize = 4;

/// Counts the bytes of answers that clients have not read yet.
#[derive(Debug)]
pub struct Answers {
    most: AtomicUsize,
    held: Mutex<HeldAnswer>,
}

#[derive(Debug, Default)]
struct HeldAnswer {
    all: usize,
    by_client: AHashMap<ClientNetwork, usize>,
}

/// The bytes of one answer, released on drop.
#[derive(Debug)]
pub struct AnswerGuard {
    answers: Arc<Answers>,
    client: ClientNetwork,
    bytes: usize,
}

impl Answers {
    /// A limit of `most` bytes for all clients together.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most: AtomicUsize::new(most), held: Mutex::default() })
    }

    /// Changes the limit for the answers that are made from now on.
    pub fn resize(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Counts an answer of this length. A client without another answer may have one over its share, as long as all
    /// clients together are below the limit: otherwise a long answer could never be given.
    ///
    /// # Errors
    /// The limit is reached.
    pub fn take(self: &Arc<Self>, client: IpAddr, bytes: usize) -> Result<AnswerGuard, Limit> {
        let client = ClientNetwork::from(client);
        let limit = self.most.load(Ordering::Relaxed);
        let mut held = self.lock();
        let before = held.by_client.get(&client).copied().unwrap_or_default();
        let is_over = |held: usize, most: usize| held > 0 && held.saturating_add(bytes) > most;
        if is_over(held.all, limit) || is_over(before, limit / CLIENTS_SHARE) {
            return Err(Limit::AnswerBytes);
        }
        held.all += bytes;
        held.by_client.insert(client, before + bytes);
        Ok(AnswerGuard { answers: Arc::clone(self), client, bytes })
    }

    fn lock(&self) -> MutexGuard<'_, HeldAnswer> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AnswerGuard {
    fn drop(&mut self) {
        let mut held = self.answers.lock();
        held.all -= self.bytes;
        if let Some(bytes) = held.by_client.get_mut(&self.client) {
            *bytes -= self.bytes;
            if *bytes == 0 {
                held.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_holds_a_quarter_and_all_hold_the_whole() {
        let answers = Answers::new(100);
        let client = |number: u8| IpAddr::from([10, 0, 0, number]);
        let mut held: Vec<_> = (0..4).map(|number| answers.take(client(number), 25).unwrap()).collect();
        assert_eq!(answers.take(client(0), 1).unwrap_err(), Limit::AnswerBytes);
        assert_eq!(answers.take(client(9), 1).unwrap_err(), Limit::AnswerBytes);
        held.pop();
        let one = answers.take(client(9), 20).unwrap();
        assert_eq!(answers.take(client(9), 6).unwrap_err(), Limit::AnswerBytes);
        assert_eq!(answers.take(client(0), 1).unwrap_err(), Limit::AnswerBytes);
        drop((held, one));
        assert!(answers.lock().by_client.is_empty());
        assert!(answers.take(client(0), 1_000).is_ok());
    }
}
