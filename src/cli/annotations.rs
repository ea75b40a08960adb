//! Annotations that the command line gives, or a file that it names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use crate::client::{Error, ErrorKind, FileToAttach, Result};

/// The member of a file of annotations that has those of the manifest; those of a file stand under its name.
const OF_MANIFEST: &str = "$manifest";

#[derive(Debug, Args)]
pub(super) struct AnnotationArgs {
    /// An annotation of the artifact (repeatable). Without one for it, the time is noted.
    #[arg(long, value_name = "KEY=VALUE", value_parser = annotation)]
    annotation: Vec<(String, String)>,
    /// A JSON file of annotations, as of oras: {"$manifest": {KEY: VALUE}, "FILE": {KEY: VALUE}}; or {KEY: VALUE} for
    /// the artifact alone. --annotation comes before it.
    #[arg(long, value_name = "FILE")]
    annotation_file: Option<PathBuf>,
}

type Annotations = BTreeMap<String, String>;

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    OfManifest(Annotations),
    OfEach(BTreeMap<String, Annotations>),
}

fn annotation(text: &str) -> std::result::Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("an annotation is key=value"),
    }
}

impl AnnotationArgs {
    /// The annotations of the artifact. Gives the files theirs.
    pub(super) fn give(&self, files: &mut [FileToAttach]) -> Result<Annotations> {
        let mut of_manifest = Annotations::new();
        if let Some(file) = &self.annotation_file {
            let reading = || format!("reading {}", file.display());
            match read(file)? {
                Written::OfManifest(annotations) => of_manifest = annotations,
                Written::OfEach(mut each) => {
                    of_manifest = each.remove(OF_MANIFEST).unwrap_or_default();
                    for (name, annotations) in each {
                        let found = files.iter_mut().find(|file| file.title() == Some(&name));
                        let Some(found) = found else {
                            // Not left out without a word: a name that is mistyped would say nothing.
                            let answer = format!("{name:?} is none of the files that are attached");
                            return Err(Error::new(ErrorKind::Usage, reading(), answer));
                        };
                        found.annotate(annotations);
                    }
                }
            }
        }
        of_manifest.extend(self.annotation.iter().cloned());
        Ok(of_manifest)
    }
}

fn read(file: &Path) -> Result<Written> {
    let reading = || format!("reading {}", file.display());
    let text = std::fs::read(file).map_err(|error| Error::io(reading(), &error))?;
    // Apart from what it has to be, for the line and column of what is no JSON at all.
    let value: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|error| Error::new(ErrorKind::Usage, reading(), error.to_string()))?;
    serde_json::from_value(value).map_err(|_| {
        let answer = format!(
            "it has to be {{KEY: VALUE}}, or {{\"{OF_MANIFEST}\": {{KEY: VALUE}}, \"FILE\": {{KEY: VALUE}}}}"
        );
        Error::new(ErrorKind::Usage, reading(), answer).advise("all values are strings in quotes")
    })
}
