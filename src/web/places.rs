//! In which repositories a digest is that something is attached to, for who knows no more of an image than that.
//!
//! Each repository is asked about with the visitor's own rights, and one that the registry does not show leaves no
//! trace, also not in how long the answer takes: as many are asked about as there may be, if need be some that nobody
//! has.

use futures_util::{StreamExt as _, stream};

use super::respond::Failure;
use super::visitor::Visitor;
use super::{Web, WebRegistry};
use crate::oci::{Digest, RepositoryName, TagOrDigest};
use crate::proxy::error::Error;
use crate::registry::{Answer, FoundManifest};

/// Repositories that are asked about.
pub(super) const PLACES: usize = 16;
/// How many of them at the same time.
const CONCURRENCY: usize = 8;

impl Web {
    /// The repositories, at most [`PLACES`] of them, in which something refers to the digest and the visitor may read
    /// it, and whether the registry answered for all; a failure if there are none.
    pub(super) async fn places(
        &self,
        at: &WebRegistry,
        digest: &Digest,
        visitor: &Visitor,
    ) -> Result<(Vec<RepositoryName>, bool), Failure> {
        let known = self.index.repositories(at.upstream.number(), digest.clone()).await;
        let known = known.map_err(Error::LookUp)?;
        let nobodys = (0..PLACES).map(|place| format!("refshim-nobodys-{place}/nothing").parse());
        let nobodys: Vec<RepositoryName> =
            nobodys.collect::<Result<_, _>>().map_err(|_| Failure::NoSuchPage)?;
        let asked = known.into_iter().chain(nobodys).take(PLACES);
        let manifest = TagOrDigest::Digest(digest.clone());
        let asked = asked.map(|name| async {
            let found = visitor.find(at, &name, &manifest).await;
            (name, found.map(|(_visit, answer)| answer))
        });
        let answers: Vec<_> = stream::iter(asked).buffered(CONCURRENCY).collect().await;
        let (mut places, mut failure, mut is_whole) = (Vec::new(), None, true);
        for (name, answer) in answers {
            match answer {
                Ok(Answer::Present(FoundManifest { is_proof: true, .. })) => places.push(name),
                Ok(Answer::Present(_) | Answer::Absent) | Err(Failure::Denied) => {}
                Ok(Answer::Odd(_)) => is_whole = false,
                // Who has not logged in is asked to, wherever the registry wants it.
                Err(Failure::Login) => failure = failure.or(Some(Failure::Login)),
                Err(Failure::Question(error)) if error.is_about_rights() => {}
                // The registry's trouble with one says nothing of the others.
                Err(other) => {
                    is_whole = false;
                    failure = Some(other);
                }
            }
        }
        if places.is_empty() { Err(failure.unwrap_or(Failure::NothingKnown)) } else { Ok((places, is_whole)) }
    }
}
