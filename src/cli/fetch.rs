//! `refshim fetch`: downloads the files of what is attached to an image.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use futures_util::StreamExt as _;
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;

use super::connection::Connection;
use super::entry::reference;
use super::image::ImageArgs;
use super::names::link_kind;
use super::output::{print, print_json};
use super::selection::Selection;
use crate::client::{
    BlobStream, Error, ErrorKind, ListScope, ListedReferrer, Manifest, Part, Repository, Result, Wanted,
    write_file,
};
use crate::oci::artifact::TITLE;
use crate::oci::{Digest, DigestPrefix, LinkKind, TagOrDigest};

/// How many digits of a digest are appended to tell two files of the same name apart.
const DISTINCT: usize = 12;

/// Writes the files of what is attached to an image, each checked by its digest.
///
/// Prints their paths.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").args(WHICH).required(true).multiple(true)))]
pub(super) struct Fetch {
    #[command(flatten)]
    subject: ImageArgs,
    /// Only artifacts of this type, a media type or a word, as for refshim references (repeatable).
    #[arg(long, value_name = "TYPE")]
    artifact_type: Vec<String>,
    /// Only what is linked like this: reference, subject, attestation, cosign or fallback (repeatable).
    #[arg(long, value_name = "KIND", value_parser = link_kind())]
    kind: Vec<LinkKind>,
    /// Only this one: its digest, or the beginning of it, as refshim tree prints it (repeatable).
    #[arg(long, value_name = "DIGEST")]
    referrer: Vec<DigestPrefix>,
    /// Everything that is attached.
    #[arg(long, conflicts_with_all = ["artifact_type", "kind", "referrer"])]
    all: bool,
    #[command(flatten)]
    selection: Selection,
    /// Where the files go; - is standard output, for a single file.
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    output: PathBuf,
    #[command(flatten)]
    connection: Connection,
}

/// Something has to be chosen, so that nobody downloads everything by accident.
const WHICH: [&str; 6] = ["artifact_type", "kind", "referrer", "all", "limit", "latest"];
#[derive(Serialize)]
struct Fetched<'a> {
    path: &'a Path,
    digest: &'a Digest,
    /// What the file belongs to, and its full name.
    artifact: &'a Digest,
    reference: String,
}

impl Fetch {
    pub(super) async fn run(self) -> Result<()> {
        let (repository, image) = self.subject.open(&self.connection).await?;
        let manifests = self.manifests(&repository, &image.digest).await?;
        let files = self.files(&manifests);
        let progress = self.connection.progress();
        progress.expect(files.iter().map(|(_, part, _)| part.descriptor.size).sum());
        if self.is_to_standard_output() {
            let [(_, part, _)] = &files[..] else {
                let answer = format!("there are {} files, and standard output takes one", files.len());
                return Err(Error::new(ErrorKind::Usage, self.asked(), answer)
                    .advise("choose with --artifact-type, --referrer or --latest, or name a directory"));
            };
            let content = repository.blob(part).await?;
            progress.finish();
            return print_content(content).await;
        }
        std::fs::create_dir_all(&self.output)
            .map_err(|error| Error::io(format!("making {}", self.output.display()), &error))?;
        for (path, part, _) in &files {
            write_file(path, progress.watch(part, repository.blob(part).await?)).await?;
        }
        progress.finish();
        self.report(&files)
    }

    /// The manifests that were asked for. No others are read.
    async fn manifests(&self, repository: &Repository, image: &Digest) -> Result<Vec<Manifest>> {
        let kinds = if self.kind.is_empty() { LinkKind::ATTACHED.to_vec() } else { self.kind.clone() };
        let wanted = Wanted { kinds, artifact_types: self.artifact_type.clone(), ..Wanted::default() };
        let list = repository.referrer_list(image, &wanted, ListScope::Repository).await?;
        let mut vanished = list.vanished;
        let is_meant = |referrer: &ListedReferrer| {
            let digest = &referrer.descriptor.digest;
            self.referrer.is_empty() || self.referrer.iter().any(|prefix| prefix.matches(digest))
        };
        let mut found = list.found;
        found.retain(is_meant);
        let mut manifests = Vec::new();
        for referrer in self.selection.of(found) {
            let digest = referrer.descriptor.digest;
            match repository.find_manifest(&TagOrDigest::Digest(digest.clone())).await? {
                // A list is believed only as far as the manifest says the same.
                Some(manifest) if manifest.is_about(image, referrer.kinds) => manifests.push(manifest),
                Some(_) => {}
                None => vanished.push(digest),
            }
        }
        self.connection.warn_that_vanished(&vanished, self.connection.output.errors());
        if manifests.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, self.asked(), "nothing of that kind refers to it")
                .advise("refshim references shows what does"));
        }
        Ok(manifests)
    }

    fn asked(&self) -> String {
        let referrers = self.referrer.iter().map(ToString::to_string);
        let kinds = self.kind.iter().map(ToString::to_string);
        let which: Vec<String> = self.artifact_type.iter().cloned().chain(kinds).chain(referrers).collect();
        let which = if which.is_empty() { "what is attached".to_owned() } else { which.join(", ") };
        format!("fetching {which} of {}", self.subject.image)
    }

    fn is_to_standard_output(&self) -> bool {
        self.output.as_os_str() == "-"
    }

    /// Each file with its path: named by its title, or by its digest if it has none.
    fn files<'m>(&self, manifests: &'m [Manifest]) -> Vec<(PathBuf, &'m Part, &'m Digest)> {
        let mut taken: HashMap<String, &Digest> = HashMap::new();
        let mut files = Vec::new();
        for manifest in manifests {
            for part in manifest.layers() {
                let digest = &part.descriptor.digest;
                let mut name = name(part);
                // Artifacts of one type often share a title. The same content again is the same file.
                if taken.get(&name).is_some_and(|other| *other != digest) {
                    name = format!("{name}-{}", hex(digest).chars().take(DISTINCT).collect::<String>());
                }
                taken.insert(name.clone(), digest);
                files.push((self.output.join(name), part, &manifest.digest));
            }
        }
        files
    }

    fn report(&self, files: &[(PathBuf, &Part, &Digest)]) -> Result<()> {
        if self.connection.output.json {
            let fetched = files.iter().map(|(path, part, artifact)| Fetched {
                path,
                digest: &part.descriptor.digest,
                artifact,
                reference: reference(&self.subject.image.location, artifact),
            });
            return print_json(&fetched.collect::<Vec<_>>());
        }
        files.iter().try_for_each(|(path, _, _)| print(&path.display().to_string()))
    }
}

/// Writes a file to standard output, for another program: as it is, whatever is in it.
async fn print_content(mut content: BlobStream) -> Result<()> {
    let failed = |error: std::io::Error| Error::io("writing to standard output", &error);
    let mut stdout = tokio::io::stdout();
    while let Some(bytes) = content.next().await.transpose()? {
        stdout.write_all(&bytes).await.map_err(failed)?;
    }
    stdout.flush().await.map_err(failed)
}

/// The file name of a title, or else the digest.
fn name(part: &Part) -> String {
    let title = part.descriptor.annotations.get(TITLE).map(Path::new);
    // Without its directories: whoever pushed it must not choose where files are written (`../../.bashrc`).
    let name = title.and_then(Path::file_name).and_then(|name| name.to_str());
    // Control characters in a name would command the terminal of whoever lists the directory.
    let name = name.filter(|name| !name.contains(char::is_control));
    name.map_or_else(|| hex(&part.descriptor.digest), str::to_owned)
}

fn hex(digest: &Digest) -> String {
    digest.to_string().chars().skip_while(|c| *c != ':').skip(1).collect()
}
