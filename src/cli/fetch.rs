//! `refshim fetch`: downloads the files of what is attached to an image.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::connection::Connection;
use super::output::{print, print_json};
use crate::client::{
    Error, ErrorKind, ImageName, Manifest, Part, Platform, Referrers, Result, Wanted, write_file,
};
use crate::oci::Digest;
use crate::oci::artifact::TITLE;

/// How many digits of a digest are appended to tell two files of the same name apart.
const DISTINCT: usize = 12;

/// Writes the files of what is attached to an image, each checked by its digest. Prints their paths.
#[derive(Debug, Args)]
pub(super) struct Fetch {
    /// host/name[:tag][@digest] or oci:directory[:tag][@digest].
    image: ImageName,
    /// Only artifacts of this type, as refshim references calls it (repeatable).
    #[arg(long, value_name = "TYPE", required = true)]
    artifact_type: Vec<String>,
    /// Where the files go.
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    output: PathBuf,
    /// Of an index, the image for this platform.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Serialize)]
struct Fetched<'a> {
    path: &'a Path,
    digest: &'a Digest,
    artifact: &'a Digest,
}

impl Fetch {
    pub(super) async fn run(self) -> Result<()> {
        let repository = self.connection.client(&self.image.location)?.open(&self.image.location)?;
        let image = repository.image(&self.image.target, self.platform.as_ref()).await?;
        let wanted = Wanted { artifact_types: self.artifact_type.clone(), ..Wanted::attached() };
        let Referrers { found: referrers, vanished } = repository.referrers(&image.digest, &wanted).await?;
        self.connection.warn_that_vanished(&vanished);
        if referrers.is_empty() {
            let asked = format!("fetching {} of {}", self.artifact_type.join(", "), self.image);
            return Err(Error::new(ErrorKind::NotFound, asked, "nothing of that type refers to it")
                .advise("refshim references shows what does"));
        }
        std::fs::create_dir_all(&self.output)
            .map_err(|error| Error::io(format!("making {}", self.output.display()), &error))?;
        let manifests: Vec<&Manifest> = referrers.iter().map(|referrer| &referrer.manifest).collect();
        let files = self.files(&manifests);
        let progress = self.connection.progress();
        progress.expect(files.iter().map(|(_, part, _)| part.descriptor.size).sum());
        for (path, part, _) in &files {
            write_file(path, progress.watch(part, repository.blob(part).await?)).await?;
        }
        progress.finish();
        self.report(&files)
    }

    /// Each file with its path: named by its title, or by its digest if it has none.
    fn files<'m>(&self, manifests: &[&'m Manifest]) -> Vec<(PathBuf, &'m Part, &'m Digest)> {
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
            });
            return print_json(&fetched.collect::<Vec<_>>());
        }
        files.iter().try_for_each(|(path, _, _)| print(&path.display().to_string()))
    }
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
