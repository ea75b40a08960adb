//! `refshim copy`: copies an image, with its referrers if wanted, to another repository or layout.

use std::path::PathBuf;

use clap::Args;
use indicatif::DecimalBytes;
use serde::Serialize;

use super::connection::Connection;
use super::entry::reference;
use super::output::{print, print_json, tell};
use super::progress::{Shown, with_lines};
use crate::client::{
    Client, CopiedTag, Copy, CopyTags, Credential, Error, ErrorKind, FailedTag, ImageName, Location, Node,
    Platform, Progress, Report, Repository, Result, TagsReport, Target, walk,
};
use crate::config::secret;
use crate::oci::{Digest, Tag, TagOrDigest};

/// How many blobs are transferred at a time.
pub(super) const JOBS: usize = 4;

/// Copies an image or index to another repository, registry or OCI layout.
///
/// Nothing is sent that is there already. Digests stay, so the links of what is attached hold at the other end; where
/// the registry there lists no referrers, their referrers tags are written.
#[derive(Debug, Args)]
pub(super) struct CopyImage {
    /// host/name[:tag][@digest] or oci:directory[:tag][@digest].
    source: ImageName,
    /// The same; without a tag, that of the source.
    destination: ImageName,
    /// With everything that refers to it, and to that, so many links far.
    #[arg(long, value_name = "DEPTH", num_args = 0..=1, require_equals = true, default_missing_value = UNLIMITED)]
    references: Option<usize>,
    /// Of an index, the image for this platform alone.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", conflicts_with = "all_tags")]
    platform: Option<Platform>,
    /// Everything that has a tag, one tag after the other. What fails is told at the end, and makes the exit code 1;
    /// all else is copied. The same command again does the rest.
    #[arg(long)]
    all_tags: bool,
    /// Give it this tag as well (repeatable).
    #[arg(long, value_name = "TAG", conflicts_with = "all_tags")]
    tag: Vec<Tag>,
    /// Say what would be sent, and send nothing.
    #[arg(long, conflicts_with = "all_tags")]
    dry_run: bool,
    /// What is shown meanwhile, on standard error; nothing with --quiet or --json.
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Shown::Auto)]
    progress: Shown,
    /// How many blobs are under way at a time.
    #[arg(long, value_name = "N", default_value_t = JOBS, value_parser = at_least_one)]
    jobs: usize,
    #[command(flatten)]
    logins: Logins,
    #[command(flatten)]
    connection: Connection,
}

/// Logins at either end, where those that are kept are not meant.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logins")]
struct Logins {
    /// Log in with this name where it is copied from.
    #[arg(long, value_name = "NAME", requires = "from_password_file")]
    from_username: Option<String>,
    /// The file with the password for it, one line.
    #[arg(long, value_name = "FILE", requires = "from_username")]
    from_password_file: Option<PathBuf>,
    /// Log in with this name where it is copied to, as --username does.
    #[arg(long, value_name = "NAME", requires = "to_password_file", conflicts_with = "username")]
    to_username: Option<String>,
    /// The file with the password for it, one line.
    #[arg(long, value_name = "FILE", requires = "to_username")]
    to_password_file: Option<PathBuf>,
}

/// A depth that no graph reaches, and that fits a `usize` of 32 bits.
const UNLIMITED: &str = "4294967295";

#[derive(Serialize)]
struct Copied<'a> {
    images: Vec<CopiedImage<'a>>,
    #[serde(flatten)]
    report: Report,
    #[serde(skip_serializing_if = "is_false")]
    dry_run: bool,
}

#[derive(Serialize)]
struct CopiedTags<'a> {
    images: Vec<CopiedImage<'a>>,
    copied: usize,
    skipped: usize,
    failed: &'a [FailedTag],
    #[serde(flatten)]
    report: Report,
}

#[derive(Serialize)]
struct CopiedImage<'a> {
    reference: String,
    digest: &'a Digest,
    tag: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

pub(super) fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least one is needed".to_owned()),
        Ok(jobs) => Ok(jobs),
        Err(error) => Err(format!("{error}")),
    }
}

impl CopyImage {
    pub(super) async fn run(self) -> Result<()> {
        let (from, to) = self.ends()?;
        let progress = Progress::new(self.connection.tells() && self.progress.is_bars());
        let copy = Copy { from: &from, to: &to, jobs: self.jobs, progress: &progress };
        if self.all_tags {
            let report = self.watched(&progress, Box::pin(self.every_tag(copy))).await?;
            return self.report_tags(&progress, &report);
        }
        let image = self.image(&from).await?;
        self.connection.warn_of_vanished(&image.0, self.connection.output.errors());
        let image = [image];
        let report = if self.dry_run {
            self.rehearse(&copy, &image).await?
        } else {
            self.watched(&progress, Box::pin(self.copy(&copy, &image))).await?
        };
        // Before the result: a bar would be drawn over it.
        progress.finish();
        let [(node, tag)] = image;
        self.report(&node, tag.as_ref(), report)
    }

    fn ends(&self) -> Result<(Repository, Repository)> {
        let (source, destination) = (&self.source.location, &self.destination.location);
        let Logins { from_username, from_password_file, to_username, to_password_file } = &self.logins;
        let to = match login(to_username.as_ref(), to_password_file.as_ref(), destination)? {
            Some(login) => Client::new(self.connection.options_with(Some(login))?),
            None => self.connection.client(destination)?,
        };
        let from = match login(from_username.as_ref(), from_password_file.as_ref(), source)? {
            // Apart, since the two ends may be the same registry, as two users.
            Some(login) => Client::new(self.connection.options_with(Some(login))?).open(source)?,
            None => to.open(source)?,
        };
        Ok((from, to.open(destination)?))
    }

    async fn copy(&self, copy: &Copy<'_>, image: &[(Node, Option<Tag>); 1]) -> Result<Report> {
        let mut report = copy.run(image).await?;
        let [(node, _)] = image;
        for tag in &self.tag {
            report.tags += usize::from(copy.tag(&node.manifest, tag).await?);
        }
        Ok(report)
    }

    async fn rehearse(&self, copy: &Copy<'_>, image: &[(Node, Option<Tag>); 1]) -> Result<Report> {
        let mut report = copy.rehearse(image).await?;
        let [(node, _)] = image;
        for tag in &self.tag {
            report.tags += usize::from(!copy.leads_to(tag, &node.manifest).await?);
        }
        Ok(report)
    }

    /// Tells how far it is, where there are no bars.
    async fn watched<R>(&self, progress: &Progress, run: impl Future<Output = R>) -> R {
        if !(self.connection.tells() && self.progress.is_lines()) {
            return run.await;
        }
        let line = || {
            let (sent, all) = (DecimalBytes(progress.sent()), DecimalBytes(progress.expected()));
            tell(&format!("{sent} of {all}"));
        };
        with_lines(run, line).await
    }

    async fn image(&self, from: &Repository) -> Result<(Node, Option<Tag>)> {
        let image = from.image(&self.source.target, self.platform.as_ref()).await?;
        let tag = match (&self.destination.target, &self.source.target) {
            // A digest at the destination can only confirm the source's: a copy never changes it.
            (Target::Named(TagOrDigest::Digest(digest)), _) if *digest != image.digest => {
                let asked = format!("copying to {}", self.destination);
                return Err(Error::new(ErrorKind::Usage, asked, format!("the source is {}", image.digest)));
            }
            (Target::Abbreviated { .. }, _) => {
                let asked = format!("copying to {}", self.destination);
                return Err(Error::new(ErrorKind::Usage, asked, "name a tag, or the whole digest"));
            }
            (Target::Named(TagOrDigest::Digest(_)), _)
            | (Target::Unnamed, Target::Named(TagOrDigest::Digest(_)) | Target::Abbreviated { .. }) => None,
            (Target::Named(TagOrDigest::Tag(tag)), _)
            | (Target::Unnamed, Target::Named(TagOrDigest::Tag(tag))) => Some(tag.clone()),
            (Target::Unnamed, Target::Unnamed) => Some(Tag::latest()),
        };
        Ok((walk(from, image, self.references.unwrap_or_default()).await?, tag))
    }

    async fn every_tag(&self, copy: Copy<'_>) -> Result<TagsReport> {
        if (&self.source.target, &self.destination.target) != (&Target::Unnamed, &Target::Unnamed) {
            let answer = "--all-tags goes with names without a tag";
            return Err(Error::new(ErrorKind::Usage, format!("copying {}", self.source), answer));
        }
        let tags = copy.from.tags().await?;
        let meet = |node: &Node| self.connection.warn_of_vanished(node, self.connection.output.errors());
        let depth = self.references.unwrap_or_default();
        Ok(CopyTags { copy, depth, meet: &meet }.run(tags).await)
    }

    fn report(&self, node: &Node, tag: Option<&Tag>, report: Report) -> Result<()> {
        let digest = &node.manifest.digest;
        if self.connection.output.json {
            // One by the digest alone, if it got no tag.
            let tags: Vec<&Tag> = tag.into_iter().chain(&self.tag).collect();
            let images = if tags.is_empty() {
                vec![self.copied(digest, None)]
            } else {
                tags.into_iter().map(|tag| self.copied(digest, Some(tag.to_string()))).collect()
            };
            return print_json(&Copied { images, report, dry_run: self.dry_run });
        }
        let told = sent(&report);
        self.connection.tell(&if self.dry_run { format!("dry run, would have {told}") } else { told });
        print(&digest.to_string())
    }

    fn copied<'d>(&self, digest: &'d Digest, tag: Option<String>) -> CopiedImage<'d> {
        CopiedImage { reference: reference(&self.destination.location, digest), digest, tag }
    }

    fn report_tags(&self, progress: &Progress, told: &TagsReport) -> Result<()> {
        progress.finish();
        let TagsReport { images, copied, skipped, failed, report } = told;
        if self.connection.output.json {
            let images = images.iter().map(|copied| self.copied(&copied.digest, Some(copied.tag.clone())));
            let images = images.collect();
            let (copied, skipped, report) = (*copied, *skipped, *report);
            print_json(&CopiedTags { images, copied, skipped, failed, report })?;
        } else {
            let tags = format!("{copied} tags copied, {skipped} were there, {} failed", failed.len());
            self.connection.tell(&format!("{tags}; {}", sent(report)));
            for CopiedTag { digest, tag } in images {
                print(&format!("{digest} {tag}"))?;
            }
        }
        for FailedTag { tag, reason } in failed {
            tell(&format!("{tag}: {reason}"));
        }
        if failed.is_empty() {
            return Ok(());
        }
        let answer = format!("{} tags failed; all else is copied", failed.len());
        Err(Error::failed(format!("copying {}", self.source), answer)
            .advise("the same command again does the rest, and only that"))
    }
}

/// A login for one end, and the host that it is for.
fn login(
    username: Option<&String>,
    password_file: Option<&PathBuf>,
    place: &Location,
) -> Result<Option<(String, Credential)>> {
    let (Some(username), Some(file)) = (username, password_file) else { return Ok(None) };
    let asked = || format!("logging in as {username}");
    let Some(host) = place.host() else {
        return Err(Error::new(ErrorKind::Usage, asked(), format!("{place} takes no login")));
    };
    let password = secret(file).map_err(|problem| Error::new(ErrorKind::Usage, asked(), problem))?;
    Ok(Some((host.to_owned(), Credential::Password { username: username.clone(), password })))
}

fn sent(report: &Report) -> String {
    let Report { manifests, manifests_already, blobs, blobs_mounted, blobs_already, bytes, .. } = report;
    format!(
        "sent {blobs} blobs ({}) and {manifests} manifests; mounted {blobs_mounted} blobs; already there: \
         {blobs_already} blobs, {manifests_already} manifests",
        DecimalBytes(*bytes)
    )
}
