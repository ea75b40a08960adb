//! `refshim attach`: attaches files to an image, as an artifact.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};

use super::connection::Connection;
use super::output::{print, print_json};
use super::tagging::Tagging;
use crate::client::{Artifact, Error, ErrorKind, FileToAttach, ImageName, Platform, Result};
use crate::oci::artifact::SubjectMember;
use crate::oci::{Tag, TagOrDigest};

/// Attaches files to an image: pushes them as an artifact that says what it is about. Prints its digest.
#[derive(Debug, Args)]
pub(super) struct Attach {
    /// What the files are about: host/name[:tag][@digest] or oci:directory[:tag][@digest].
    subject: ImageName,
    /// The files, each with its media type behind a colon; - is standard input (with a media type: -- -:text/plain).
    #[arg(required = true, value_name = "FILE[:MEDIA-TYPE]")]
    files: Vec<FileToAttach>,
    /// What they are, a media type.
    #[arg(long, value_name = "TYPE")]
    artifact_type: String,
    /// An annotation of the artifact (repeatable). Without one for it, the time is noted.
    #[arg(long, value_name = "KEY=VALUE", value_parser = annotation)]
    annotation: Vec<(String, String)>,
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
    #[command(flatten)]
    connection: Connection,
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

fn annotation(text: &str) -> std::result::Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("an annotation is key=value"),
    }
}

impl Attach {
    pub(super) async fn run(self) -> Result<()> {
        // Before the password is read, which would use standard input up.
        self.refuse_input_twice()?;
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
            annotations: BTreeMap::from_iter(self.annotation),
            member: self.field.into(),
        };
        let progress = self.connection.progress();
        let tag = self.tag.map(TagOrDigest::Tag);
        let target = |digest: &_| tag.unwrap_or_else(|| TagOrDigest::Digest(Clone::clone(digest)));
        let manifest = artifact.push(&repository, &self.files, target, &progress).await?;
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
