//! Attestations as docker buildx writes them: an index entry whose annotations say that it is about
//! another entry. The referrer is the manifest that the entry names, not the index.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::json::{annotations, parse_raw, text};
use super::{Descriptor, DescriptorMembers, Digest, RefusalReason, subject};

const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";
const ATTESTATION: &str = "attestation-manifest";

/// A link of another manifest, stated by an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    /// The manifest that refers, with the index's descriptor of it.
    pub referrer: Descriptor,
    /// The manifest that it refers to.
    pub subject: Digest,
}

/// The attestation in an index entry, if the entry is annotated as one.
pub(super) fn of(entry: &DescriptorMembers<'_>) -> Option<Result<Attestation, RefusalReason>> {
    let annotations = entry.annotations.map(annotations)?;
    if annotations.get(REFERENCE_TYPE).map(String::as_str) != Some(ATTESTATION) {
        return None;
    }
    Some(attested(entry, annotations))
}

fn attested(
    entry: &DescriptorMembers<'_>,
    annotations: BTreeMap<String, String>,
) -> Result<Attestation, RefusalReason> {
    let about = annotations.get(REFERENCE_DIGEST).ok_or(RefusalReason::NoAttested)?.parse()?;
    let referrer = Descriptor {
        media_type: text(entry.media_type).ok_or(RefusalReason::MediaType)?.into_owned(),
        digest: subject(entry)?,
        size: entry.size.and_then(parse_raw).ok_or(RefusalReason::Size)?,
        artifact_type: text(entry.artifact_type).map(Cow::into_owned),
        annotations,
        data: None,
    };
    Ok(Attestation { referrer, subject: about })
}
