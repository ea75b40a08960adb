//! What a request to attach something says beside its body: the parameters of its URI.

use std::collections::BTreeMap;

use crate::oci::{Digest, media_type};
use crate::proxy::error::BadAttachment;

/// The parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AttachQuery {
    /// What is attached, a media type.
    pub(super) artifact_type: String,
    /// Of the manifest.
    pub(super) annotations: BTreeMap<String, String>,
    /// The name of a single file.
    pub(super) title: Option<String>,
    /// That the body must have.
    pub(super) digest: Option<Digest>,
    /// That the manifest must have which is made of it.
    pub(super) manifest: Option<Digest>,
}

impl AttachQuery {
    /// Parses a query. Unknown parameters are ignored, as in all queries.
    pub(super) fn parse(query: &str) -> Result<Self, BadAttachment> {
        let (mut artifact_type, mut title, mut digest, mut manifest) = (None, None, None, None);
        let mut annotations = BTreeMap::new();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "artifactType" => once("artifactType", &mut artifact_type, typed(&value)?)?,
                "annotation" => {
                    let (key, value) = value.split_once('=').ok_or(BadAttachment::Annotation)?;
                    let is_new = annotations.insert(key.to_owned(), value.to_owned()).is_none();
                    if key.is_empty() || !is_new {
                        return Err(BadAttachment::Annotation);
                    }
                }
                "title" => once("title", &mut title, file_name(&value)?)?,
                "digest" => once("digest", &mut digest, digest_in("digest", &value)?)?,
                "manifest" => once("manifest", &mut manifest, digest_in("manifest", &value)?)?,
                _ => {}
            }
        }
        let artifact_type = artifact_type.ok_or(BadAttachment::NoType)?;
        Ok(Self { artifact_type, annotations, title, digest, manifest })
    }
}

/// A file's name: clients that download it must not be led to other directories.
pub(super) fn file_name(name: &str) -> Result<String, BadAttachment> {
    let is_one = !matches!(name, "" | "." | "..")
        && !name.contains(|letter: char| matches!(letter, '/' | '\\') || letter.is_control());
    if is_one { Ok(name.to_owned()) } else { Err(BadAttachment::Title) }
}

/// A media type. A `+` that was not encoded came as a space.
fn typed(value: &str) -> Result<String, BadAttachment> {
    let value = value.replace(' ', "+");
    if media_type::is_valid(&value) {
        Ok(value)
    } else {
        Err(BadAttachment::NotAType { place: "artifactType", given: value })
    }
}

fn digest_in(name: &'static str, value: &str) -> Result<Digest, BadAttachment> {
    value.parse().map_err(|_| BadAttachment::Digest(name))
}

fn once<T>(name: &'static str, place: &mut Option<T>, value: T) -> Result<(), BadAttachment> {
    if place.replace(value).is_some() { Err(BadAttachment::Repeated(name)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_fails(query: &str, expected: &str) {
        let error = AttachQuery::parse(query).unwrap_err().to_string();
        assert!(error.contains(expected), "{query}: {error}");
    }

    #[test]
    fn parameters_are_parsed_and_nothing_is_guessed() {
        let digest = Digest::Sha256([7; 32]);
        let query = format!(
            "artifactType=application/spdx+json&annotation=a%3D1%3D2&annotation=b=&title=s%20bom.json&digest={digest}&manifest={digest}&n=1"
        );
        let annotations = [("a", "1=2"), ("b", "")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let expected = AttachQuery {
            artifact_type: "application/spdx+json".to_owned(),
            annotations: annotations.into(),
            title: Some("s bom.json".to_owned()),
            digest: Some(digest.clone()),
            manifest: Some(digest.clone()),
        };
        assert_eq!(AttachQuery::parse(&query).unwrap(), expected);
        let ty = "artifactType=a/b";
        check_fails("", "artifactType is missing");
        check_fails("artifactType=sbom", "\"sbom\"");
        check_fails("artifactType=", "media type");
        check_fails("artifactType=a/b&artifactType=a/b", "only once");
        check_fails(&format!("{ty}&annotation=a"), "key=value");
        check_fails(&format!("{ty}&annotation==a"), "key=value");
        check_fails(&format!("{ty}&annotation=a%3D1&annotation=a%3D2"), "each key once");
        check_fails(&format!("{ty}&title=a/b"), "without directories");
        check_fails(&format!("{ty}&title=.."), "without directories");
        check_fails(&format!("{ty}&title=%0A"), "without directories");
        check_fails(&format!("{ty}&digest=sha256:0"), "digest must be");
        check_fails(&format!("{ty}&manifest="), "manifest must be");
        check_fails(&format!("{ty}&manifest={digest}&manifest={digest}"), "only once");
    }
}
