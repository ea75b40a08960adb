//! What was pushed, what the client was told of it, and what is listed after a fault.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::{Answer, Client, Content, about};
use crate::table::Row;

pub(crate) const REPOSITORY: &str = "a";

/// Pushes of referrers of one subject.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    pub(crate) subject: Content,
    pub(crate) acknowledged: BTreeSet<String>,
    /// Sent without an answer, or with one that leaves it open.
    pub(crate) unknown: Vec<Content>,
    /// What of that the registry turned out to have.
    held: BTreeSet<String>,
    /// Answered with a 4xx.
    pub(crate) refused: BTreeSet<String>,
}

/// What one push came to.
#[derive(Clone, Copy)]
enum Outcome {
    Acknowledged,
    Unknown,
    Refused,
}

impl Ledger {
    pub(crate) fn new(subject: Content) -> Self {
        Self {
            subject,
            acknowledged: BTreeSet::new(),
            unknown: Vec::new(),
            held: BTreeSet::new(),
            refused: BTreeSet::new(),
        }
    }

    /// A ledger about another manifest that has the image's blobs, which is pushed straight to the registry.
    pub(crate) async fn about(registry: &Client, image: &Content, name: &str) -> Self {
        let subject = image.changed(|manifest| manifest["annotations"] = serde_json::json!({"name": name}));
        registry.push(REPOSITORY, &subject).await;
        Self::new(subject)
    }

    /// The `n`th referrer of the subject.
    pub(crate) fn referrer(&self, n: usize) -> Content {
        about(&self.subject, &self.subject, &format!("{} {n}", self.subject.digest))
    }

    /// Pushes these by so many writers at a time; each writer ends at the first push without an answer.
    /// `progress` counts the acknowledged ones.
    pub(crate) async fn push(
        &mut self,
        client: &Client,
        referrers: Vec<Content>,
        writers: usize,
        progress: &Arc<AtomicUsize>,
    ) {
        let referrers = Arc::new(referrers);
        let next = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..writers {
            let (client, referrers) = (client.clone(), Arc::clone(&referrers));
            let (next, progress) = (Arc::clone(&next), Arc::clone(progress));
            tasks.spawn(async move {
                let mut outcomes = Vec::new();
                while let Some(content) = referrers.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let answer = put(&client, content).await;
                    let gone = answer.is_none();
                    let outcome = Outcome::of(answer.as_ref());
                    if matches!(outcome, Outcome::Acknowledged) {
                        progress.fetch_add(1, Ordering::SeqCst);
                    }
                    outcomes.push((content.clone(), outcome));
                    if gone {
                        break;
                    }
                }
                outcomes
            });
        }
        for (content, outcome) in tasks.join_all().await.into_iter().flatten() {
            self.note(content, outcome);
        }
    }

    /// Takes note of an answer, or that there was none.
    pub(crate) fn take(&mut self, content: Content, answer: Option<&Answer>) {
        self.note(content, Outcome::of(answer));
    }

    fn note(&mut self, content: Content, outcome: Outcome) {
        match outcome {
            Outcome::Acknowledged => drop(self.acknowledged.insert(content.digest)),
            Outcome::Unknown => self.unknown.push(content),
            Outcome::Refused => drop(self.refused.insert(content.digest)),
        }
    }

    /// Asks the registry what it has, now that nothing is under way any more.
    pub(crate) async fn settle(&mut self, registry: &Client) {
        for content in std::mem::take(&mut self.unknown) {
            if holds(registry, &content).await {
                self.held.insert(content.digest);
            }
        }
    }

    /// Asks for the list: acknowledged links are on it, and so is, of the others that were sent, just what
    /// the registry has.
    pub(crate) async fn check(&self, row: &mut Row, refshim: &Client, registry: &Client) {
        for digest in self.check_acknowledged(row, refshim, registry).await {
            row.mistake(format!("the registry has {digest}, and it is not listed"));
        }
    }

    /// The same, but for what is not listed though the registry has it: that is returned.
    pub(crate) async fn check_acknowledged(
        &self,
        row: &mut Row,
        refshim: &Client,
        registry: &Client,
    ) -> Vec<String> {
        let mut settled = self.clone();
        settled.settle(registry).await;
        let answer = refshim.referrers(REPOSITORY, &self.subject.digest, "").await;
        let listed: BTreeSet<String> = answer.iter().cloned().collect();
        if listed.len() != answer.len() {
            row.mistake("listed twice".to_owned());
        }
        for digest in settled.acknowledged.difference(&listed) {
            row.lose(format!("{digest} was acknowledged and is not listed"));
        }
        for digest in &listed {
            if settled.acknowledged.contains(digest) || settled.held.contains(digest) {
                continue;
            }
            // What was still under way may have arrived since.
            let sent = self.unknown.iter().find(|content| content.digest == *digest);
            match sent {
                Some(content) if holds(registry, content).await => {}
                _ => row.mistake(format!("{digest} is listed")),
            }
        }
        settled.held.difference(&listed).cloned().collect()
    }
}

impl Ledger {
    /// Asks for the list of a refshim that may be unable to give it: it is whole, or it is no list.
    pub(crate) async fn check_failing(&self, row: &mut Row, refshim: &Client) {
        let path = format!("/v2/{REPOSITORY}/manifests/{}/references", self.subject.digest);
        let Ok(answer) = refshim.try_send(refshim.request(Method::GET, &path)).await else {
            row.ended += 1;
            return;
        };
        match answer.status {
            StatusCode::OK => {
                let unknown = self.unknown.iter().map(|content| &content.digest);
                let sent: BTreeSet<String> =
                    unknown.chain(&self.held).chain(&self.acknowledged).cloned().collect();
                let listed: BTreeSet<String> = digests(&answer.json()).collect();
                listed.difference(&sent).for_each(|digest| row.mistake(format!("{digest} is listed")));
                let missing = self.acknowledged.difference(&listed);
                missing.for_each(|digest| row.lose(format!("{digest} is not on the list for now")));
            }
            status if status.is_server_error() => {}
            _ => row.mistake(format!("{answer:?}")),
        }
    }
}

/// The digests that an image index lists.
fn digests(index: &Value) -> impl Iterator<Item = String> {
    let manifests = index["manifests"].as_array().unwrap().iter();
    manifests.map(|descriptor| descriptor["digest"].as_str().unwrap().to_owned())
}

impl Outcome {
    fn of(answer: Option<&Answer>) -> Self {
        match answer.map(|answer| answer.status) {
            Some(StatusCode::CREATED) => Self::Acknowledged,
            Some(status) if status.is_client_error() => Self::Refused,
            Some(_) | None => Self::Unknown,
        }
    }
}

/// Pushes a manifest by its digest; nothing if the connection broke.
pub(crate) async fn put(client: &Client, content: &Content) -> Option<Answer> {
    let path = format!("/v2/{REPOSITORY}/manifests/{}", content.digest);
    let request = client.request(Method::PUT, &path).header("content-type", &content.media_type);
    client.try_send(request.body(content.bytes.clone())).await.ok()
}

/// Whether the registry itself has it.
async fn holds(registry: &Client, content: &Content) -> bool {
    let path = format!("/v2/{REPOSITORY}/manifests/{}", content.digest);
    let request = registry.request(Method::HEAD, &path).header("accept", &content.media_type);
    registry.send(request).await.status == StatusCode::OK
}
