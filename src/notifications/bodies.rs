//! What registries send, each in its own form.
//!
//! A body that is not of its form is malformed as a whole. In one of several events, those that make no sense are left
//! out: distribution sends a body that is refused for ever, and would never come to the next one.

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::event::{Action, Event};
use super::field;
use crate::config::SourceKind;
use crate::oci::media_type;

/// What a blob is called that is pushed.
const BLOB: &str = "application/octet-stream";
const CLOUD_EVENT: &str = "application/cloudevents+json";

/// What a body tells.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) events: Vec<Event>,
    /// How many events tell of something else than a manifest that came or went.
    pub(super) ignored: usize,
    /// What is wrong with the others.
    pub(super) malformed: Vec<String>,
}

impl Told {
    pub(super) fn count(&self) -> usize {
        self.events.len() + self.ignored + self.malformed.len()
    }

    fn ignored() -> Self {
        Self { ignored: 1, ..Self::default() }
    }
}

impl FromIterator<Result<Event, String>> for Told {
    fn from_iter<I: IntoIterator<Item = Result<Event, String>>>(events: I) -> Self {
        let mut told = Self::default();
        for event in events {
            match event {
                Ok(event) => told.events.push(event),
                Err(problem) => told.malformed.push(problem),
            }
        }
        told
    }
}

/// Reads the body of a notification.
///
/// # Errors
/// It is not of the form.
pub(super) fn read(kind: SourceKind, headers: &HeaderMap, body: &[u8]) -> Result<Told, String> {
    match kind {
        // GitLab's registry is a distribution.
        SourceKind::Distribution | SourceKind::Gitlab => distribution(body),
        SourceKind::Harbor => harbor(body),
        SourceKind::Zot => zot(headers, body),
        SourceKind::Quay => quay(body),
    }
}

fn json<T: DeserializeOwned>(body: &[u8], what: &str) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| format!("not {what}: {error}"))
}

/// distribution's envelope (its documentation, "Work with notifications").
#[derive(Deserialize)]
struct Envelope {
    events: Vec<EnvelopeEvent>,
}

#[derive(Deserialize)]
struct EnvelopeEvent {
    #[serde(default)]
    action: String,
    #[serde(default)]
    target: EnvelopeTarget,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EnvelopeTarget {
    media_type: Option<String>,
    digest: Option<String>,
    repository: Option<String>,
    tag: Option<String>,
}

fn distribution(body: &[u8]) -> Result<Told, String> {
    let Envelope { events } = json(body, "an envelope of distribution's")?;
    let all = events.len();
    let told: Told = events.into_iter().filter_map(enveloped).collect();
    Ok(Told { ignored: all - told.count(), ..told })
}

fn enveloped(EnvelopeEvent { action, target }: EnvelopeEvent) -> Option<Result<Event, String>> {
    let EnvelopeTarget { media_type, digest, repository, tag } = target;
    let action = match action.as_str() {
        "push" if media_type.as_deref() != Some(BLOB) => Action::Push,
        // Of a tag alone it says nothing about the manifest.
        "delete" if digest.is_some() => Action::Delete,
        _ => return None,
    };
    Some(Event::told(action, &repository.unwrap_or_default(), digest.as_deref(), tag.as_deref()))
}

/// Harbor's two forms: its default one, and `CloudEvents` ("Configure Webhook Notifications").
#[derive(Deserialize)]
struct HarborEvent {
    r#type: String,
    #[serde(alias = "event_data")]
    data: Option<HarborData>,
}

#[derive(Deserialize)]
struct HarborData {
    #[serde(default)]
    resources: Vec<HarborResource>,
    repository: Option<HarborRepository>,
}

#[derive(Deserialize)]
struct HarborResource {
    digest: Option<String>,
    tag: Option<String>,
}

#[derive(Deserialize)]
struct HarborRepository {
    repo_full_name: String,
}

fn harbor(body: &[u8]) -> Result<Told, String> {
    let HarborEvent { r#type, data } = json(body, "a webhook of Harbor's")?;
    let action = match r#type.as_str() {
        "PUSH_ARTIFACT" | "harbor.artifact.pushed" => Action::Push,
        "DELETE_ARTIFACT" | "harbor.artifact.deleted" => Action::Delete,
        _ => return Ok(Told::ignored()),
    };
    let (Some(HarborRepository { repo_full_name }), resources) =
        data.map_or((None, Vec::new()), |data| (data.repository, data.resources))
    else {
        return Err(format!("not a webhook of Harbor's: a {type} without a repository"));
    };
    let told = |HarborResource { digest, tag }| {
        Event::told(action, &repo_full_name, digest.as_deref(), tag.as_deref())
    };
    Ok(resources.into_iter().map(told).collect())
}

/// A `CloudEvent` of zot's in the structured form; in the binary one, which zot uses, the body is the data alone.
#[derive(Deserialize)]
struct ZotEvent {
    r#type: String,
    data: Option<ZotData>,
}

#[derive(Deserialize)]
struct ZotData {
    name: String,
    digest: Option<String>,
    reference: Option<String>,
}

fn zot(headers: &HeaderMap, body: &[u8]) -> Result<Told, String> {
    let what = "an event of zot's";
    let is_structured = field(headers, CONTENT_TYPE.as_str()).map(media_type::essence) == Some(CLOUD_EVENT);
    let (r#type, data) = if is_structured {
        let ZotEvent { r#type, data } = json(body, what)?;
        (r#type, data)
    } else {
        let told = field(headers, "ce-type");
        let told = told.ok_or("not an event of zot's: no header Ce-Type (CloudEvents)")?.to_owned();
        let is_ours = matches!(told.as_str(), "zotregistry.image.updated" | "zotregistry.image.deleted");
        (told, if is_ours { Some(json(body, what)?) } else { None })
    };
    let action = match r#type.as_str() {
        "zotregistry.image.updated" => Action::Push,
        "zotregistry.image.deleted" => Action::Delete,
        _ => return Ok(Told::ignored()),
    };
    let ZotData { name, digest, reference } = data.ok_or("not an event of zot's: no data")?;
    Ok(std::iter::once(Event::told(action, &name, digest.as_deref(), reference.as_deref())).collect())
}

/// A `repo_push` of Quay's ("Repository notifications"). Its other webhooks have no such tags.
#[derive(Deserialize)]
struct QuayEvent {
    #[serde(default)]
    repository: String,
    updated_tags: Option<QuayTags>,
}

/// Quay's old form names an image with each tag.
#[derive(Deserialize)]
#[serde(untagged)]
enum QuayTags {
    List(Vec<String>),
    Map(serde_json::Map<String, serde_json::Value>),
}

fn quay(body: &[u8]) -> Result<Told, String> {
    let QuayEvent { repository, updated_tags } = json(body, "a webhook of Quay's")?;
    let tags = match updated_tags {
        None => return Ok(Told::ignored()),
        Some(QuayTags::List(tags)) => tags,
        Some(QuayTags::Map(tags)) => tags.into_iter().map(|(tag, _)| tag).collect(),
    };
    Ok(tags.into_iter().map(|tag| Event::told(Action::Push, &repository, None, Some(&tag))).collect())
}

#[cfg(test)]
mod tests;
