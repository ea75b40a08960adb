//! The list at a subject's referrers tag (distribution-spec, "Referrers Tag Schema"), changed while others change it
//! too.
//!
//! The specification has no conditional PUT, so of two clients that read, change and write the list at the same time,
//! one undoes the other's change (go-containerregistry #2205). Therefore:
//! - It is written only if it is still as it was read, a moment before; with `If-Match` where the registry has an
//!   `ETag`, for the registries that honour it.
//! - After a while it is read again, and written again if an entry is missing: one of ours, or one of others that was
//!   there before and whose manifest is there still. So whoever writes like this is undone by nobody whose own change
//!   takes less than that while.
//! - It is read before each write. Only a list, or a 404, says what is there; no other answer leads to a write.

mod access;

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::{Registry, by_digest};
use crate::client::{Error, Result};
use crate::oci::{Digest, ReferrersList};
use access::{Outcome, State, Tagged, Trouble, condition};

/// How often a list is written that others write too.
const ATTEMPTS: u32 = 16;
/// How many of them may fail.
const FAILURES: usize = 5;
/// How long after a write the list is read again, and at random up to as long once more, so that two that meet once do
/// not meet again and again.
const SETTLING: Duration = Duration::from_millis(300);
/// How often a list that was written may be read as it was before: a registry may take seconds to show what it took
/// (Quay, distribution on S3). Every third time it is written again, since somebody may have put the old one back; in
/// the end the registry's word counts, which took it.
const STALE: u32 = 6;

/// A change of a list of referrers. It is made again whenever the list turns out to be another than it was made to.
pub trait ListChange: Send {
    /// Changes the list; not at all, if it is as it should be.
    fn apply(&mut self, list: &mut ReferrersList) -> impl Future<Output = Result<()>> + Send;
}

/// What is to be at a tag.
#[derive(Default)]
struct Draft {
    is_written: bool,
    /// What the last write replaced, and how often that was read since.
    replaced: Option<State>,
    stale: u32,
    /// As it was to be written last.
    wanted: Option<ReferrersList>,
    /// Entries that the registry does not take, since it does not have their manifests.
    gone: HashSet<Digest>,
    /// The list to which the registry said that it is not what it was, although it was.
    misjudged: Option<State>,
}

impl Registry {
    /// The list at a subject's tag, if there is one.
    pub(in crate::client) async fn tagged_list(&self, subject: &Digest) -> Result<Option<ReferrersList>> {
        let Tagged { list, state } = self.tagged(subject).await.map_err(Trouble::into_error)?;
        Ok(matches!(state, State::Listed { .. }).then_some(list))
    }

    /// Changes the list at a subject's tag; true if it had to be written. `turns` limits how many do so at a time, the
    /// while after a write not included.
    pub(in crate::client) async fn change_list(
        &self,
        subject: &Digest,
        change: &mut impl ListChange,
        turns: Option<&Semaphore>,
    ) -> Result<bool> {
        let mut draft = Draft::default();
        let mut failures = 0;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                sleep(settling(attempt)).await;
            }
            // Never closed.
            let _turn = match turns {
                Some(turns) => turns.acquire().await.ok(),
                None => None,
            };
            match self.write_once(subject, change, &mut draft).await {
                Ok(None) => return Ok(draft.is_written),
                Ok(Some(Outcome::Written)) => draft.is_written = true,
                Ok(Some(Outcome::Overtaken)) => {}
                Ok(Some(Outcome::Refused(_))) | Err(Trouble::ForNow(_)) if failures < FAILURES => {
                    failures += 1;
                }
                Ok(Some(Outcome::Refused(error))) => return Err(error),
                Err(trouble) => return Err(trouble.into_error()),
            }
        }
        let answer = format!("others write it all the time; it was tried {ATTEMPTS} times");
        Err(Error::failed(self.writing(subject), answer).advise("wait a moment and retry"))
    }

    /// Reads the list, changes and writes it; nothing, if it is as it should be.
    async fn write_once(
        &self,
        subject: &Digest,
        change: &mut impl ListChange,
        draft: &mut Draft,
    ) -> std::result::Result<Option<Outcome>, Trouble> {
        let before = self.tagged(subject).await?;
        // Then what was written cannot be read by this name.
        if draft.is_written && before.state == State::Subject {
            return Ok(None);
        }
        if draft.replaced.as_ref() == Some(&before.state) {
            draft.stale += 1;
            if draft.stale >= STALE {
                return Ok(None);
            }
            if !draft.stale.is_multiple_of(3) {
                return Ok(Some(Outcome::Overtaken));
            }
        }
        let mut wanted = before.list.clone();
        self.restore(draft, &mut wanted).await;
        change.apply(&mut wanted).await?;
        draft.gone.iter().for_each(|gone| wanted.remove(gone));
        if wanted == before.list {
            return Ok(None);
        }
        draft.wanted = Some(wanted.clone());
        // The change may have taken long. What others write from here on is lost, unless the registry honours
        // `If-Match`.
        if before.state == State::Absent && !draft.is_written {
            // One 404 is no proof: a registry may show late what others wrote.
            sleep(SETTLING).await;
        }
        if self.tagged(subject).await?.state != before.state {
            return Ok(Some(Outcome::Overtaken));
        }
        let is_misjudged = draft.misjudged.as_ref() == Some(&before.state);
        let condition = if is_misjudged { None } else { condition(&before.state) };
        let outcome = self.put_list(subject, &wanted, condition).await?;
        match outcome {
            Outcome::Refused(error) => {
                let gone = self.absent(&wanted).await;
                // Once they are left out, another refusal is for something else.
                if gone.is_empty() {
                    return Err(error.into());
                }
                draft.gone.extend(gone);
                Ok(Some(Outcome::Refused(error)))
            }
            Outcome::Overtaken => {
                // Then the next write goes without the condition.
                let is_same = self.tagged(subject).await?.state == before.state;
                draft.misjudged = is_same.then_some(before.state);
                Ok(Some(Outcome::Overtaken))
            }
            Outcome::Written => {
                draft.replaced = Some(before.state);
                Ok(Some(outcome))
            }
        }
    }

    /// Puts back what somebody else's write took from the list, except for what is not there any more.
    async fn restore(&self, draft: &Draft, list: &mut ReferrersList) {
        let Some(wanted) = &draft.wanted else { return };
        let taken: Vec<_> = wanted.missing_in(list).cloned().collect();
        for entry in taken {
            // A manifest is deleted before it is taken from the list.
            let is_gone = match entry.digest() {
                Some(digest) => matches!(self.digest_for_sure(&by_digest(digest)).await, Ok(None)),
                None => false,
            };
            if !is_gone {
                list.add(entry);
            }
        }
    }

    /// The entries whose manifests are not there.
    async fn absent(&self, list: &ReferrersList) -> Vec<Digest> {
        let mut absent = Vec::new();
        sleep(SETTLING).await;
        for descriptor in list.descriptors() {
            if matches!(self.digest_for_sure(&by_digest(&descriptor.digest)).await, Ok(None)) {
                absent.push(descriptor.digest.clone());
            }
        }
        absent
    }
}

/// How long to wait before the list is read again.
fn settling(attempt: u32) -> Duration {
    let random = u32::try_from(RandomState::new().hash_one(attempt) & 0xff).unwrap_or_default();
    SETTLING + SETTLING * random / 0x100 * attempt.min(4)
}
