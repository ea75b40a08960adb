//! What a notification tells, in one form for all registries, and as it stands on disk.

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, RepositoryName, Tag};
use crate::queue;

/// Something happened to a manifest. Equal ones that wait are worked off once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub(super) struct Event {
    pub(super) action: Action,
    pub(super) repository: RepositoryName,
    /// At least one of the two is there.
    pub(super) digest: Option<Digest>,
    pub(super) tag: Option<Tag>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Action {
    Push,
    Delete,
}

impl queue::Event for Event {
    const NAMED: &'static str = "notifications";
    const REMEDY: &'static str = "a backfill";
}

/// The event on disk.
#[derive(Serialize, Deserialize)]
struct Written {
    action: Action,
    repository: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
}

impl Event {
    /// An event as a registry tells it. An empty digest or tag is none, and some registries give the digest as the tag
    /// of what has none.
    ///
    /// # Errors
    /// A name is none, or nothing says which manifest is meant.
    pub(super) fn told(
        action: Action,
        repository: &str,
        digest: Option<&str>,
        tag: Option<&str>,
    ) -> Result<Self, String> {
        let name = repository.parse().map_err(|_| format!("{repository:?} is no name of a repository"))?;
        let given = digest.filter(|digest| !digest.is_empty());
        let given = given.or_else(|| tag.filter(|tag| tag.contains(':')));
        let digest = given.map(str::parse::<Digest>).transpose();
        let digest = digest.map_err(|_| format!("{:?} is no digest", given.unwrap_or_default()))?;
        let tag = tag.filter(|tag| !tag.is_empty() && !tag.contains(':'));
        let tag = tag.map(|tag| tag.parse::<Tag>().map_err(|_| format!("{tag:?} is no tag"))).transpose()?;
        if digest.is_none() && tag.is_none() {
            return Err(format!("an event of {repository} has neither digest nor tag"));
        }
        Ok(Self { action, repository: name, digest, tag })
    }
}

impl TryFrom<Written> for Event {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { action, repository, digest, tag } = written;
        Self::told(action, &repository, digest.as_deref(), tag.as_deref())
    }
}

impl From<Event> for Written {
    fn from(event: Event) -> Self {
        Self {
            action: event.action,
            repository: event.repository.to_string(),
            digest: event.digest.map(|digest| digest.to_string()),
            tag: event.tag.map(|tag| tag.to_string()),
        }
    }
}
