//! `refshim attach`: attaches files to an image, as an artifact.

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::annotations::AnnotationArgs;
use super::connection::Connection;
use super::output::{print, print_json};
use super::tagging::Tagging;
use crate::client::{Artifact, Error, ErrorKind, FileToAttach, ImageName, Platform, Result};
use crate::oci::artifact::SubjectMember;
use crate::oci::{Tag, media_type};

/// Attaches files to an image.
///
/// They are pushed as an artifact that says what it is about. Prints its digest.
#[derive(Debug, Args)]
pub(super) struct Attach {
    /// What the files are about: host/name[:tag][@digest] or oci:directory[:tag][@digest].
    subject: ImageName,
    /// The files, each with its media type behind a colon; - is standard input (with a media type: -- -:text/plain).
    #[arg(required = true, value_name = "FILE[:MEDIA-TYPE]")]
    files: Vec<FileToAttach>,
    /// What they are, a media type.
    #[arg(long, value_name = "TYPE", value_parser = artifact_type)]
    artifact_type: String,
    #[command(flatten)]
    annotations: AnnotationArgs,
    /// The member by which it says what it is about.
    #[arg(long, value_enum, default_value_t = FieldName::Both)]
    field: FieldName,
    /// Give the artifact this tag.
    #[arg(long)]
    tag: Option<Tag>,
    #[command(flatten)]
    tagging: Tagging,
    /// Of an index, the image for this platform.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    /// Print the manifest that would be pushed, and send nothing. Its time will be another, and with it its digest.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connection: Connection,
}

/// What the words for artifacts mean as media types. There is more than one for most: whoever reads them decides.
const MEANT: [(&str, &str); 7] = [
    ("sbom", "application/spdx+json or application/vnd.cyclonedx+json"),
    ("signature", "application/vnd.cncf.notary.signature or application/vnd.dev.sigstore.bundle.v0.3+json"),
    ("attestation", "application/vnd.in-toto+json or application/vnd.dev.sigstore.bundle.v0.3+json"),
    ("provenance", "application/vnd.in-toto+json"),
    ("vulnerabilities", "application/sarif+json"),
    ("sarif", "application/sarif+json"),
    ("vex", "application/vnd.openvex+json"),
];

fn artifact_type(text: &str) -> std::result::Result<String, String> {
    if media_type::is_valid(text) {
        return Ok(text.to_owned());
    }
    let meant = MEANT.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
    let example =
        meant.map_or("such as application/spdx+json".to_owned(), |(_, types)| format!("such as {types}"));
    Err(format!("it has to be a media type, {example}"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FieldName {
    /// Of the 2021 proposal.
    Reference,
    /// Of OCI 1.1.
    Subject,
    /// So that old and new clients find it.
    Both,
}

impl From<FieldName> for SubjectMember {
    fn from(name: FieldName) -> Self {
        match name {
            FieldName::Reference => Self::Reference,
            FieldName::Subject => Self::Subject,
            FieldName::Both => Self::Both,
        }
    }
}

impl Attach {
    pub(super) async fn run(mut self) -> Result<()> {
        // Before the password is read, which would use standard input up.
        self.refuse_input_twice()?;
        let annotations = self.annotations.give(&mut self.files)?;
        let location = &self.subject.location;
        let repository = self.connection.client(location)?.open(location)?;
        let subject = repository.image(&self.subject.target, self.platform.as_ref()).await?;
        if let Some(tag) = &self.tag {
            // Before the files are sent, which may take long.
            self.tagging.check(&repository, tag, &subject.digest).await?;
        }
        let artifact = Artifact {
            subject: subject.as_subject(),
            artifact_type: self.artifact_type,
            annotations,
            member: self.field.into(),
        };
        if self.dry_run {
            let manifest = artifact.rehearse(&self.files).await?.bytes;
            let manifest: Value = serde_json::from_slice(&manifest)
                .map_err(|error| Error::failed("making the manifest", error.to_string()))?;
            return print_json(&manifest);
        }
        let progress = self.connection.progress();
        let manifest = artifact.push(&repository, &self.files, self.tag, &progress).await?;
        // Before the result: a bar would be drawn over it.
        progress.finish();
        if self.connection.output.json {
            print_json(&manifest.descriptor())
        } else {
            print(&manifest.digest.to_string())
        }
    }

    fn refuse_input_twice(&self) -> Result<()> {
        let inputs = self.files.iter().filter(|file| file.is_standard_input()).count();
        if inputs + usize::from(self.connection.reads_password()) > 1 {
            let answer = "it can be one file, or the password, but not more";
            return Err(Error::new(ErrorKind::Usage, "reading standard input", answer));
        }
        Ok(())
    }
}
