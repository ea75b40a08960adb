//! An image index from the upstream, read no stricter than clients write them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::oci::{Descriptor, Digest, media_type};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    media_type: Option<String>,
    #[serde(borrow)]
    manifests: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDescriptor {
    media_type: String,
    digest: Digest,
    size: u64,
    artifact_type: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

/// The entries, if this is an image index that came as one. An entry that is no descriptor of a digest
/// that refshim knows is left out.
pub(super) fn entries(bytes: &[u8], content_type: Option<&str>) -> Option<Vec<Descriptor>> {
    let index: Wire<'_> = serde_json::from_slice(bytes).ok()?;
    let media_type = content_type.or(index.media_type.as_deref())?;
    if !media_type::is_one(media_type, media_type::IMAGE_INDEX) {
        return None;
    }
    let descriptor = |entry: &&RawValue| {
        let entry = serde_json::from_str::<WireDescriptor>(entry.get());
        entry.inspect_err(|error| tracing::warn!(%error, "a listed referrer is no descriptor")).ok()
    };
    let descriptors = index.manifests.iter().filter_map(descriptor).map(|entry| Descriptor {
        media_type: entry.media_type,
        digest: entry.digest,
        size: entry.size,
        artifact_type: entry.artifact_type.filter(|own| !own.is_empty()),
        annotations: entry.annotations.unwrap_or_default(),
        data: None,
    });
    Some(descriptors.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, content_type: Option<&str>, expected: Option<usize>) {
        assert_eq!(entries(text.as_bytes(), content_type).map(|entries| entries.len()), expected, "{text}");
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
}
