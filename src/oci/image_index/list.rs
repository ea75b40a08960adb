//! The list at a referrers tag (distribution-spec, "Referrers Tag Schema"), read to be written again: what nobody
//! changes in it stays as its writer had it, with members that no specification knows.

use serde_json::{Map, Value, json};

use super::Entry;
use crate::oci::{Descriptor, Digest, media_type};

/// A list of referrers that can be changed.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferrersList {
    /// The members of the image index but `manifests`.
    members: Map<String, Value>,
    entries: Vec<ListEntry>,
}

/// An entry of a list, as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct ListEntry {
    value: Value,
    /// None if it is no descriptor, or has an unknown digest algorithm. Nobody can say that it is wrong, so it stays.
    descriptor: Option<Descriptor>,
}

impl Default for ReferrersList {
    /// An empty list.
    fn default() -> Self {
        let members = [("schemaVersion", json!(2)), ("mediaType", json!(media_type::IMAGE_INDEX))];
        let members = members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { members, entries: Vec::new() }
    }
}

impl ReferrersList {
    /// Reads a list that came with this Content-Type; without one its own `mediaType` counts. None if it is no image
    /// index.
    #[must_use]
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Option<Self> {
        let mut members: Map<String, Value> = serde_json::from_slice(bytes).ok()?;
        let own = members.get("mediaType").and_then(Value::as_str);
        if !media_type::is_one(content_type.or(own)?, media_type::IMAGE_INDEX) {
            return None;
        }
        let entries = match members.remove("manifests")? {
            Value::Array(entries) => entries.into_iter().map(ListEntry::of).collect(),
            // What clients in Go make of an empty list.
            Value::Null => Vec::new(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => return None,
        };
        Some(Self { members, entries })
    }

    /// The entries that are descriptors.
    pub fn descriptors(&self) -> impl Iterator<Item = &Descriptor> {
        self.entries.iter().filter_map(|entry| entry.descriptor.as_ref())
    }

    /// Whether a manifest is on the list.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.descriptors().any(|descriptor| descriptor.digest == *digest)
    }

    /// Adds an entry, or corrects the one with its digest. A second one with that digest goes.
    pub fn put(&mut self, descriptor: &Descriptor) {
        let mut is_there = false;
        self.entries.retain_mut(|entry| {
            if !entry.is(&descriptor.digest) {
                return true;
            }
            entry.correct(descriptor);
            !std::mem::replace(&mut is_there, true)
        });
        if !is_there {
            let mut entry = ListEntry { value: json!({}), descriptor: None };
            entry.correct(descriptor);
            self.entries.push(entry);
        }
    }

    /// Removes the entry of a manifest.
    pub fn remove(&mut self, digest: &Digest) {
        self.entries.retain(|entry| !entry.is(digest));
    }

    /// The entries that another list lacks.
    pub fn missing_in<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a ListEntry> {
        self.entries.iter().filter(|entry| match &entry.descriptor {
            Some(descriptor) => !other.has(&descriptor.digest),
            None => !other.entries.contains(entry),
        })
    }

    /// Adds an entry of another list.
    pub fn add(&mut self, entry: ListEntry) {
        self.entries.push(entry);
    }

    /// The image index.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut members = self.members.clone();
        members
            .insert("manifests".to_owned(), self.entries.iter().map(|entry| entry.value.clone()).collect());
        Value::Object(members).to_string().into_bytes()
    }
}

impl ListEntry {
    fn of(value: Value) -> Self {
        let descriptor = serde_json::from_value::<Entry>(value.clone()).ok().map(Descriptor::from);
        Self { value, descriptor }
    }

    /// The digest of its manifest.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.descriptor.as_ref().map(|descriptor| &descriptor.digest)
    }

    fn is(&self, digest: &Digest) -> bool {
        self.digest() == Some(digest)
    }

    /// Has it say what this descriptor says, if it does not yet.
    fn correct(&mut self, descriptor: &Descriptor) {
        if self.descriptor.as_ref() == Some(descriptor) {
            return;
        }
        let Value::Object(members) = &mut self.value else { return };
        let Descriptor { media_type, digest, size, artifact_type, annotations, .. } = descriptor;
        let annotations = (!annotations.is_empty()).then_some(annotations);
        let said = [
            ("mediaType", json!(media_type)),
            ("digest", json!(digest)),
            ("size", json!(size)),
            ("artifactType", json!(artifact_type)),
            ("annotations", json!(annotations)),
        ];
        for (name, value) in said {
            if value.is_null() {
                members.remove(name);
            } else {
                members.insert(name.to_owned(), value);
            }
        }
        self.descriptor = Some(descriptor.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(n: u8, annotation: Option<&str>) -> Descriptor {
        let annotations = annotation.map(|value| ("key".to_owned(), value.to_owned()));
        Descriptor {
            media_type: media_type::IMAGE_MANIFEST.to_owned(),
            digest: Digest::Sha256([n; 32]),
            size: 5,
            artifact_type: Some("a/b".to_owned()),
            annotations: annotations.into_iter().collect(),
            data: None,
        }
    }

    fn read(list: &Value) -> Option<ReferrersList> {
        ReferrersList::parse(list.to_string().as_bytes(), Some(media_type::IMAGE_INDEX))
    }

    fn written(list: &ReferrersList) -> Value {
        serde_json::from_slice(&list.to_bytes()).unwrap()
    }

    #[test]
    fn what_nobody_changes_stays_as_it_was() {
        let odd = json!({
            "schemaVersion": 2, "mediaType": media_type::IMAGE_INDEX, "annotations": {"of": "the list"}, "x": [1.5],
            "manifests": [
                {"mediaType": "m", "digest": Digest::Sha256([1; 32]), "size": 1, "platform": {"os": "linux"}},
                {"mediaType": "m", "digest": "blake3:00", "size": 1},
                "nonsense",
            ],
        });
        let mut list = read(&odd).unwrap();
        assert_eq!(written(&list), odd);
        list.put(&descriptor(2, None));
        assert!(list.has(&Digest::Sha256([2; 32])));
        list.remove(&Digest::Sha256([2; 32]));
        assert_eq!((written(&list), Some(&list)), (odd.clone(), read(&odd).as_ref()));
        list.put(&descriptor(1, Some("value")));
        let expected = json!({
            "mediaType": media_type::IMAGE_MANIFEST, "digest": Digest::Sha256([1; 32]), "size": 5,
            "artifactType": "a/b", "annotations": {"key": "value"}, "platform": {"os": "linux"},
        });
        assert_eq!(written(&list)["manifests"][0], expected);
        assert_eq!(written(&list)["manifests"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn an_entry_is_there_once_and_says_what_its_manifest_says() {
        let mut list = ReferrersList::default();
        list.put(&descriptor(1, Some("old")));
        list.add(list.entries[0].clone());
        list.put(&descriptor(2, None));
        list.put(&descriptor(1, None));
        assert_eq!(list.descriptors().collect::<Vec<_>>(), [&descriptor(1, None), &descriptor(2, None)]);
        let again = ReferrersList::parse(&list.to_bytes(), None).unwrap();
        assert_eq!(again, list);
        let mut same = list.clone();
        same.put(&descriptor(2, None));
        assert_eq!(same, list);
    }

    #[test]
    fn what_another_list_lacks_is_told_whether_it_is_a_descriptor_or_not() {
        let mut list = ReferrersList::default();
        list.put(&descriptor(1, None));
        list.put(&descriptor(2, None));
        list.add(ListEntry::of(json!("nonsense")));
        let mut other = ReferrersList::default();
        other.put(&descriptor(2, Some("differs in this alone")));
        let missing: Vec<_> = list.missing_in(&other).collect();
        assert_eq!(missing, [&list.entries[0], &list.entries[2]]);
        assert_eq!(other.missing_in(&list).count(), 0);
    }

    #[test]
    fn only_an_image_index_is_a_list() {
        let index = |manifests: Value| json!({"manifests": manifests});
        assert_eq!(read(&index(json!(null))).unwrap().entries, []);
        assert_eq!(read(&index(json!([]))).unwrap().entries, []);
        assert_eq!(read(&index(json!({}))), None);
        assert_eq!(read(&json!({})), None);
        assert_eq!(read(&json!([])), None);
        let of_docker = Some(media_type::DOCKER_MANIFEST_LIST);
        assert_eq!(ReferrersList::parse(br#"{"manifests":[]}"#, of_docker), None);
        assert_eq!(ReferrersList::parse(br#"{"manifests":[]}"#, None), None);
    }
}
