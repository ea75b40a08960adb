//! Which subjects to compare where nobody names any: half of them those that were last referred to, since those are
//! what clients ask for now, and the others at random.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

use super::{LISTED, Subjects};
use crate::export::each_referrer;
use crate::index::{Index, Order, ReadError, Repository};
use crate::oci::{Digest, LinkKinds, RepositoryName};

type Subject = (RepositoryName, Digest);

/// Those with the highest ranks of all that were met; holds at most twice as many as are wanted, however many there
/// are.
struct Highest<R> {
    wanted: usize,
    met: HashMap<Subject, R>,
}

/// At most so many subjects in these repositories.
///
/// # Errors
/// The index cannot be read.
pub async fn sample(
    index: &Index,
    upstream: u32,
    names: Vec<RepositoryName>,
    most: usize,
) -> Result<Subjects, ReadError> {
    let listed: LinkKinds = LISTED.into_iter().collect();
    let mut newest: Highest<Order> = Highest::of(most.div_ceil(2));
    // The ranks of a random order; the same for all referrers of a subject, so that those of many are no likelier.
    let (random, mut any) = (RandomState::new(), Highest::of(most));
    for name in names {
        let repository = Repository { upstream, name };
        each_referrer(index, &repository, |referrer| {
            let order = referrer.order;
            for (subject, _) in referrer.links.into_iter().filter(|(_, kinds)| kinds.intersects(listed)) {
                let subject = (repository.name.clone(), subject);
                any.meet(&subject, random.hash_one(&subject));
                newest.meet(&subject, order);
            }
        })
        .await?;
    }
    let mut chosen = Subjects::new();
    for (name, subject) in newest.chosen().into_iter().chain(any.chosen()) {
        if chosen.values().map(std::collections::BTreeSet::len).sum::<usize>() == most {
            break;
        }
        chosen.entry(name).or_default().insert(subject);
    }
    Ok(chosen)
}

impl<R: Ord + Copy> Highest<R> {
    fn of(wanted: usize) -> Self {
        Self { wanted, met: HashMap::new() }
    }

    fn meet(&mut self, subject: &Subject, rank: R) {
        match self.met.get_mut(subject) {
            Some(known) => *known = rank.max(*known),
            None => {
                self.met.insert(subject.clone(), rank);
            }
        }
        if self.met.len() > self.wanted.saturating_mul(2) {
            let kept = std::mem::take(&mut self.met);
            self.met = highest(kept, self.wanted).into_iter().collect();
        }
    }

    fn chosen(self) -> Vec<Subject> {
        highest(self.met, self.wanted).into_iter().map(|(subject, _)| subject).collect()
    }
}

fn highest<R: Ord + Copy>(met: HashMap<Subject, R>, wanted: usize) -> Vec<(Subject, R)> {
    let mut all: Vec<_> = met.into_iter().collect();
    all.sort_by(|(_, one), (_, other)| other.cmp(one));
    all.truncate(wanted);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn subject(number: u64) -> Subject {
        ("a".parse().unwrap(), Digest::of(Algorithm::Sha256, &number.to_be_bytes()))
    }

    #[test]
    fn the_highest_are_chosen_whatever_their_order_each_once() {
        let mut highest = Highest::of(5);
        for round in 0..3_u64 {
            for number in 0..100 {
                let number = (number * 37) % 100;
                highest.meet(&subject(number), number + 1_000 * round * u64::from(number == 7));
                assert!(highest.met.len() <= 10);
            }
        }
        assert_eq!(highest.chosen(), [7, 99, 98, 97, 96].map(subject));
    }
}
