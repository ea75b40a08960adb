//! Referrers in other repositories of the upstream (`scope=registry`): the 2021 proposal refers across repositories,
//! and people keep signatures in repositories of their own (`COSIGN_REPOSITORY`, distribution-spec #512).
//!
//! A repository's entries are listed only if the registry shows that the caller may read it. The others must leave no
//! trace, neither in the answer nor in its duration: a query always sends the same number of rows of requests, padded
//! with requests for nothing, and the cursor of the next page names no repository.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::str::FromStr;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::time::{Duration, Instant};

use super::{PageRequest, Placed, ReferrerPages};
use crate::index::{Order, Page, Repository};
use crate::oci::RepositoryName;
use crate::proxy::error::{BadQuery, Error};
use crate::registry::{Question, Verdict};

/// The annotation that says in which repository an entry from elsewhere is.
pub const REPOSITORY_ANNOTATION: &str = "io.refshim.repository";

/// The least bytes of a page that each repository gets.
const LEAST_BYTES: usize = 64 << 10;
/// About what the annotation adds to a descriptor besides the repository's name.
const ANNOTATION_BYTES: usize = 48;

/// A cursor over the repositories: all up to a place in an order that only this process knows, so that the cursor
/// names none of them. Another process rejects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beyond {
    process: u64,
    place: u64,
}

/// Searches other repositories.
#[derive(Debug)]
pub(super) struct Elsewhere {
    secret: RandomState,
    max_repositories: usize,
    concurrency: usize,
    page_bytes: usize,
}

/// The pages of other repositories.
pub(super) struct OtherPages {
    /// A page of each repository that the caller may read, with its question.
    pub(super) pages: Vec<(Question, Page)>,
    /// The cursor after these repositories, if there are more.
    pub(super) beyond: Option<Beyond>,
}

impl Elsewhere {
    pub(super) fn new(max_repositories: usize, concurrency: usize, page_bytes: usize) -> Self {
        Self { secret: RandomState::new(), max_repositories, concurrency, page_bytes }
    }

    /// Goes on from `before`, whose cursors it accepts.
    pub(super) fn following(self, before: &Self) -> Self {
        Self { secret: before.secret.clone(), ..self }
    }

    /// Pages of the other repositories in which something refers to the subject.
    ///
    /// The number of repositories that have links must not show in the duration of the answer, since the caller may
    /// not be allowed to read them. So there are always as many rows as one query may have, and a row without any
    /// repository lasts as long as the slowest row so far.
    pub(super) async fn pages(
        &self,
        here: &ReferrerPages,
        question: &Question,
        wanted: &PageRequest,
    ) -> Result<OtherPages, Error> {
        let home = &question.visit.repository;
        let names = here.index.repositories(home.upstream, question.subject.clone()).await;
        let mut names = names.map_err(Error::LookUp)?;
        names.retain(|name| *name != home.name);
        let (names, beyond) = self.window(names, wanted)?;
        // Independent of their number, which the length of each part would reveal.
        let bytes = (self.page_bytes / self.max_repositories).max(LEAST_BYTES);
        let rows = self.max_repositories.div_ceil(self.concurrency);
        let mut pages = Vec::new();
        let mut slowest = Duration::ZERO;
        let mut names = names.into_iter();
        for row in 0..rows {
            let began = Instant::now();
            let some: Vec<RepositoryName> = names.by_ref().take(self.concurrency).collect();
            if some.is_empty() && row > 0 {
                tokio::time::sleep(slowest).await;
                continue;
            }
            // Padded, so that the duration of a row does not reveal how full it is.
            let questions = (0..self.concurrency).map(|place| {
                let name = some.get(place);
                async move {
                    match name {
                        Some(name) => {
                            let (upstream, name) = (home.upstream, name.clone());
                            let question = here.elsewhere(question, Repository { upstream, name });
                            self.page(here, question, wanted, bytes).await
                        }
                        None => self.ask_for_nothing(here, question, place).await,
                    }
                }
            });
            let found: Vec<Option<(Question, Page)>> =
                stream::iter(questions).buffered(self.concurrency).try_collect().await?;
            pages.extend(found.into_iter().flatten());
            slowest = slowest.max(began.elapsed());
        }
        Ok(OtherPages { pages, beyond })
    }

    /// The next repositories, as many as one query may search, and the cursor after them if there are more.
    fn window(
        &self,
        names: Vec<RepositoryName>,
        wanted: &PageRequest,
    ) -> Result<(Vec<RepositoryName>, Option<Beyond>), Error> {
        let process = self.secret.hash_one(0u8);
        let after = match wanted.scope {
            super::QueryScope::Registry(Some(beyond)) if beyond.process != process => {
                return Err(Error::Query(BadQuery::Beyond));
            }
            super::QueryScope::Registry(Some(beyond)) => Some(beyond.place),
            super::QueryScope::Registry(None) | super::QueryScope::Repository => None,
        };
        let mut places: Vec<(u64, RepositoryName)> =
            names.into_iter().map(|name| (self.secret.hash_one(name.as_str()), name)).collect();
        places.retain(|(place, _)| after.is_none_or(|after| *place > after));
        places.sort_unstable();
        let more = places.len() > self.max_repositories;
        places.truncate(self.max_repositories);
        let last = places.last().filter(|_| more).map(|(place, _)| Beyond { process, place: *place });
        Ok((places.into_iter().map(|(_, name)| name).collect(), last))
    }

    async fn page(
        &self,
        here: &ReferrerPages,
        question: Question,
        wanted: &PageRequest,
        bytes: usize,
    ) -> Result<Option<(Question, Page)>, Error> {
        let page = here.scan(&question, wanted, bytes).await?;
        match here.registry.may_list(&question.visit, super::witnesses(&page)).await {
            Ok(Verdict::Readable) => Ok(Some((question, page))),
            Ok(Verdict::Unproven | Verdict::Odd(_)) => Ok(None),
            Err(error) if error.is_about_rights() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends the same requests for a repository that does not exist. Only a failure counts.
    async fn ask_for_nothing(
        &self,
        here: &ReferrerPages,
        question: &Question,
        place: usize,
    ) -> Result<Option<(Question, Page)>, Error> {
        let name = format!("refshim-{:016x}/nothing", self.secret.hash_one(place));
        let name = name.parse().map_err(|_| Error::Handler)?;
        let repository = Repository { upstream: question.visit.repository.upstream, name };
        let nothing = here.elsewhere(question, repository);
        match here.registry.may_read_one_of(&nothing.visit, std::iter::empty()).await {
            // Fails like a real one, or success would reveal that there was no repository to fail.
            Err(error) if !error.is_about_rights() => Err(error),
            _ => Ok(None),
        }
    }
}

/// Merges the pages of several repositories, oldest first, and gives the last entry if there are more.
pub(super) fn merge(
    pages: Vec<Page>,
    places: &[&RepositoryName],
    max_bytes: usize,
    max_entries: Option<usize>,
) -> (Vec<Placed>, Option<Order>) {
    // Unread entries of a page that has more may belong before entries of other pages, so none of those that are
    // younger than its last entry may be listed yet.
    let known_up_to = pages.iter().filter(|page| page.more);
    let known_up_to = known_up_to.filter_map(|page| page.entries.last()).map(|last| last.order).min();
    let numbered = |(place, page): (usize, Page)| page.entries.into_iter().map(move |entry| (place, entry));
    let mut all: Vec<Placed> = pages.into_iter().enumerate().flat_map(numbered).collect();
    all.sort_unstable_by_key(|(_, entry)| entry.order);
    let mut bytes = 0;
    let fits = |(count, (place, entry)): (usize, &Placed)| {
        let elsewhere = places.get(*place).filter(|_| *place > 0);
        bytes += entry.descriptor.len() + 1;
        bytes += elsewhere.map_or(0, |name| name.as_str().len() + ANNOTATION_BYTES);
        known_up_to.is_none_or(|known| entry.order <= known)
            && max_entries.is_none_or(|most| count < most)
            && (bytes <= max_bytes || count == 0)
    };
    let count = all.iter().enumerate().map(fits).take_while(|fits| *fits).count();
    let more = count < all.len() || known_up_to.is_some();
    all.truncate(count);
    let last = all.last().filter(|_| more).map(|(_, entry)| entry.order);
    (all, last)
}

impl fmt::Display for Beyond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.process, self.place)
    }
}

impl FromStr for Beyond {
    type Err = BadQuery;

    fn from_str(text: &str) -> Result<Self, BadQuery> {
        let is_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let (process, place) = text.split_at_checked(16).filter(|_| is_hex).ok_or(BadQuery::Beyond)?;
        let number = |hex: &str| u64::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 16);
        number(process)
            .zip(number(place))
            .map(|(process, place)| Self { process, place })
            .ok_or(BadQuery::Beyond)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{Entry, Version};
    use crate::oci::{Digest, LinkKinds};

    fn page(orders: &[u64], more: bool) -> Page {
        let entry = |order: &u64| Entry {
            order: Order(*order),
            digest: Digest::Sha256([0; 32]),
            kinds: LinkKinds::default(),
            pending: false,
            was_confirmed: true,
            version: Version(0),
            descriptor: "d".repeat(9),
        };
        Page { entries: orders.iter().map(entry).collect(), more }
    }

    #[track_caller]
    fn check(
        pages: &[(&[u64], bool)],
        max_bytes: usize,
        max_entries: Option<usize>,
        expected: &[(usize, u64)],
        more: bool,
    ) {
        let places: Vec<RepositoryName> = ["a", "b", "c"].map(|name| name.parse().unwrap()).into();
        let places: Vec<_> = places.iter().collect();
        let pages = pages.iter().map(|(orders, more)| page(orders, *more)).collect();
        let (merged, last) = merge(pages, &places, max_bytes, max_entries);
        let found: Vec<_> = merged.iter().map(|(place, entry)| (*place, entry.order.0)).collect();
        assert_eq!(found, expected);
        assert_eq!(last.map(|last| last.0), expected.last().filter(|_| more).map(|(_, order)| *order));
    }

    #[test]
    fn pages_merge_in_the_order_of_pushes_and_none_runs_ahead() {
        let all = usize::MAX;
        check(&[(&[], false)], all, None, &[], false);
        check(
            &[(&[1, 4], false), (&[2], false), (&[3], false)],
            all,
            None,
            &[(0, 1), (1, 2), (2, 3), (0, 4)],
            false,
        );
        check(&[(&[1, 4], true), (&[2, 5], false)], all, None, &[(0, 1), (1, 2), (0, 4)], true);
        check(&[(&[1, 4], false), (&[2, 3], true)], all, None, &[(0, 1), (1, 2), (1, 3)], true);
        check(&[(&[1, 4], false), (&[2], false)], all, Some(2), &[(0, 1), (1, 2)], true);
        check(&[(&[1, 4], false), (&[2], false)], all, Some(3), &[(0, 1), (1, 2), (0, 4)], false);
        check(&[(&[1, 4], false)], 10, None, &[(0, 1)], true);
        check(&[(&[1, 4], false)], 20, None, &[(0, 1), (0, 4)], false);
        check(&[(&[1], false), (&[4], false)], 20, None, &[(0, 1)], true);
        check(&[(&[], false), (&[4], false)], 0, None, &[(1, 4)], false);
    }

    #[test]
    fn where_a_page_begins_comes_back_as_it_was_written() {
        let beyond = Beyond { process: 1, place: u64::MAX };
        assert_eq!(beyond.to_string().parse::<Beyond>(), Ok(beyond));
        for text in ["", "0", &"0".repeat(31), &"0".repeat(33), &"g".repeat(32), &"+".repeat(32)] {
            assert_eq!(text.parse::<Beyond>(), Err(BadQuery::Beyond));
        }
    }
}
