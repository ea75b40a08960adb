//! Commands for a visitor to copy. What others wrote stands in none of them unless it is harmless to a shell.

use super::item::Item;
use crate::oci::{ArtifactKind, Digest};

/// A command, and what it is for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) purpose: &'static str,
    pub(super) line: String,
}

/// Shows the same tree on a terminal.
pub(super) fn tree_command(repository: &str, digest: &Digest) -> Command {
    Command { purpose: "The same on a terminal", line: format!("refshim tree {repository}@{digest}") }
}

/// What can be done with an artifact that is about this subject.
pub(super) fn commands(repository: &str, item: &Item, subject: Option<&Digest>) -> Vec<Command> {
    let mut commands = Vec::new();
    let mut put = |purpose, line| commands.push(Command { purpose, line });
    if let Some(subject) = subject {
        let image = format!("{repository}@{subject}");
        let who = "--certificate-identity=WHO --certificate-oidc-issuer=ISSUER";
        match item.what.kind {
            ArtifactKind::Signature if item.what.raw_type.starts_with("application/vnd.cncf.notary.") => {
                put("Verify the signature", format!("notation verify {image}"));
            }
            ArtifactKind::Signature => put("Verify the signature", format!("cosign verify {who} {image}")),
            ArtifactKind::Provenance
            | ArtifactKind::Attestation
            | ArtifactKind::Vulnerabilities
            | ArtifactKind::Vex => {
                let kind = attestation_type(item);
                put(
                    "Verify the attestation",
                    format!("cosign verify-attestation --type {kind} {who} {image}"),
                );
            }
            ArtifactKind::Sbom
            | ArtifactKind::Image
            | ArtifactKind::Index
            | ArtifactKind::HelmChart
            | ArtifactKind::Wasm
            | ArtifactKind::Other => {}
        }
        if is_harmless(&item.what.raw_type) {
            let line = format!("refshim fetch --artifact-type {} {image}", item.what.raw_type);
            put("Download the files of everything of this type", line);
        }
    }
    put("Download the files of this one", format!("oras pull {repository}@{}", item.digest));
    commands
}

/// cosign's short name of a predicate type; a placeholder for one that it does not know.
fn attestation_type(item: &Item) -> &'static str {
    let is = |prefix: &str| item.what.predicates.iter().any(|predicate| predicate.starts_with(prefix));
    if is("https://slsa.dev/provenance/v1") {
        "slsaprovenance1"
    } else if is("https://slsa.dev/provenance/") {
        "slsaprovenance"
    } else if is("https://cosign.sigstore.dev/attestation/vuln/") {
        "vuln"
    } else if is("https://openvex.dev/ns") {
        "openvex"
    } else {
        "TYPE"
    }
}

/// Whether a text is one word to every shell, and no option.
fn is_harmless(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._+/-".contains(&byte);
    !text.is_empty() && text.len() <= 127 && !text.starts_with('-') && text.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::item::Relation;
    use super::*;
    use crate::oci::Descriptor;

    fn item(kind: ArtifactKind, raw_type: &str) -> Item {
        let described = Descriptor {
            media_type: raw_type.to_owned(),
            digest: Digest::Sha256([1; 32]),
            size: 1,
            artifact_type: None,
            annotations: BTreeMap::new(),
            data: None,
        };
        let mut item = Item::of(described, Relation::Child);
        item.what.kind = kind;
        item.what.predicates = vec!["https://slsa.dev/provenance/v1".to_owned()];
        item
    }

    #[track_caller]
    fn check(kind: ArtifactKind, raw_type: &str, expected: &[&str]) {
        let (own, subject) = (Digest::Sha256([1; 32]), Digest::Sha256([2; 32]));
        let expected: Vec<String> = expected
            .iter()
            .map(|line| line.replace("OWN", &own.to_string()).replace("SUBJECT", &subject.to_string()))
            .collect();
        let found = commands("h/a", &item(kind, raw_type), Some(&subject));
        assert_eq!(found.into_iter().map(|command| command.line).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn commands_are_those_of_the_tool_that_made_it() {
        let who = "--certificate-identity=WHO --certificate-oidc-issuer=ISSUER";
        check(
            ArtifactKind::Signature,
            "application/vnd.dev.sigstore.bundle.v0.3+json",
            &[
                &format!("cosign verify {who} h/a@SUBJECT"),
                "refshim fetch --artifact-type application/vnd.dev.sigstore.bundle.v0.3+json h/a@SUBJECT",
                "oras pull h/a@OWN",
            ],
        );
        check(
            ArtifactKind::Signature,
            "application/vnd.cncf.notary.signature",
            &[
                "notation verify h/a@SUBJECT",
                "refshim fetch --artifact-type application/vnd.cncf.notary.signature h/a@SUBJECT",
                "oras pull h/a@OWN",
            ],
        );
        let attestation = format!("cosign verify-attestation --type slsaprovenance1 {who} h/a@SUBJECT");
        check(
            ArtifactKind::Provenance,
            "x",
            &[&attestation, "refshim fetch --artifact-type x h/a@SUBJECT", "oras pull h/a@OWN"],
        );
    }

    #[test]
    fn nothing_that_a_shell_would_read_stands_in_a_command() {
        for raw_type in ["x; rm -rf ~", "$(id)", "a b", "--output=/etc", "a\nb", "a`id`", ""] {
            check(ArtifactKind::Other, raw_type, &["oras pull h/a@OWN"]);
        }
    }
}
