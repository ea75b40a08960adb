//! The OCI image index (image-spec, `image-index.md`), as lists of referrers have it: read no stricter than clients
//! write it, written as the distribution specification wants it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Descriptor, Digest, media_type};

mod list;

pub use list::{ListEntry, ReferrersList};

const OPENING: &str =
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":["#;
const CLOSING: &str = "]}";

/// What an image index lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageIndex {
    /// Its entries, in their order.
    pub entries: Vec<Descriptor>,
    /// How many entries were left out, because they are no descriptor or have an unknown digest algorithm.
    pub malformed: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IndexMembers<'a> {
    media_type: Option<String>,
    #[serde(borrow)]
    manifests: Vec<&'a RawValue>,
}

// Not `Descriptor` itself: `null` for the annotations, and an empty artifact type, occur in the wild.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    media_type: String,
    digest: Digest,
    size: u64,
    artifact_type: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

impl ImageIndex {
    /// Reads an image index that came with this Content-Type; without one its own `mediaType` counts. None if
    /// neither says that it is an image index: a login page may be JSON as well.
    #[must_use]
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Option<Self> {
        let index: IndexMembers<'_> = serde_json::from_slice(bytes).ok()?;
        let media_type = content_type.or(index.media_type.as_deref())?;
        if !media_type::is_one(media_type, media_type::IMAGE_INDEX) {
            return None;
        }
        // One bad entry must not hide the others: anybody may write a referrers tag.
        let parsed =
            index.manifests.iter().filter_map(|entry| serde_json::from_str::<Entry>(entry.get()).ok());
        let entries: Vec<Descriptor> = parsed.map(Descriptor::from).collect();
        Some(Self { malformed: index.manifests.len() - entries.len(), entries })
    }
}

/// An image index of these descriptors, each of which is JSON already: lists of thousands are not parsed again.
///
/// `manifests` is a list even if it is empty (distribution-spec, "Listing Referrers": never 404, never null), and
/// nothing follows the JSON, since containerd fails a pull on trailing bytes.
#[must_use]
pub fn image_index_of(descriptors: &[String]) -> String {
    [OPENING, &descriptors.join(","), CLOSING].concat()
}

impl From<Entry> for Descriptor {
    fn from(entry: Entry) -> Self {
        Self {
            media_type: entry.media_type,
            digest: entry.digest,
            size: entry.size,
            artifact_type: entry.artifact_type.filter(|own| !own.is_empty()),
            annotations: entry.annotations.unwrap_or_default(),
            data: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, content_type: Option<&str>, expected: Option<usize>) {
        let parsed = ImageIndex::parse(text.as_bytes(), content_type);
        assert_eq!(parsed.map(|index| index.entries.len()), expected, "{text}");
    }

    #[test]
    fn only_an_image_index_that_came_as_one_lists_anything() {
        let index = Some("application/vnd.oci.image.index.v1+json");
        let digest = Digest::Sha256([1; 32]);
        let entry = format!(r#"{{"mediaType":"m","digest":"{digest}","size":1,"annotations":null}}"#);
        check(r#"{"manifests":[]}"#, index, Some(0));
        check(&format!(r#"{{"manifests":[{entry}]}}"#), index, Some(1));
        check(&format!(r#"{{"manifests":[{entry}]}}"#), Some("text/html"), None);
        check(&format!(r#"{{"manifests":[{entry}]}}"#), None, None);
        let own = r#"{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
        check(own, None, Some(0));
        check(own, Some("application/vnd.oci.image.index.v1+json; charset=utf-8"), Some(0));
        check(r#"{"manifests":null}"#, index, None);
        check("{}", index, None);
        check("[]", index, None);
        check("<html>", index, None);
        check(&format!(r#"{{"manifests":[5,{{"digest":"x"}},{entry}]}}"#), index, Some(1));
    }

    #[test]
    fn an_index_reads_as_it_was_written() {
        let digest = Digest::Sha256([1; 32]);
        let entry = format!(r#"{{"mediaType":"m","digest":"{digest}","size":1}}"#);
        for count in 0..3 {
            let written = image_index_of(&vec![entry.clone(); count]);
            let read = ImageIndex::parse(written.as_bytes(), None).unwrap();
            assert_eq!((read.entries.len(), read.malformed), (count, 0));
        }
    }
}
