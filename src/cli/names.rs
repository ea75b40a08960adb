//! Names that are typed: kinds of link, and lists in a file, of repositories or of images by digest.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::Read as _;
use std::path::Path;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::terminal;
use crate::client::{Error, ErrorKind, Result};
use crate::oci::{Digest, LinkKind, RepositoryName};

/// One of the kinds of link, which a shell can complete.
pub(super) fn link_kind() -> impl TypedValueParser<Value = LinkKind> {
    PossibleValuesParser::new(LinkKind::WORDS.map(|(word, _)| word)).try_map(|word| word.parse::<LinkKind>())
}

/// The names of repositories in a file, each once. Empty lines and `#` comments are skipped.
pub(super) fn listed(file: &Path) -> Result<Vec<RepositoryName>> {
    Ok(lines(file, |line| RepositoryName::from_str(line).map_err(|error| error.to_string()))?
        .into_iter()
        .collect())
}

/// The images in a file, `repository@digest` a line, like [`listed`].
pub(super) fn images(file: &Path) -> Result<BTreeSet<(RepositoryName, Digest)>> {
    lines(file, |line| {
        let (name, digest) = line.split_once('@').ok_or("not repository@digest")?;
        let told = |error: &dyn Display| error.to_string();
        Ok((name.parse().map_err(|error| told(&error))?, digest.parse().map_err(|error| told(&error))?))
    })
}

fn lines<T: Ord>(file: &Path, parse: impl Fn(&str) -> std::result::Result<T, String>) -> Result<BTreeSet<T>> {
    let reading = || format!("reading {}", file.display());
    let mut text = String::new();
    let read = if file == Path::new("-") {
        terminal::read(|input| input.read_to_string(&mut text))
    } else {
        std::fs::File::open(file).and_then(|mut file| file.read_to_string(&mut text))
    };
    read.map_err(|error| Error::io(reading(), &error))?;
    let mut found = BTreeSet::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        found.insert(parse(line).map_err(|error| {
            Error::new(ErrorKind::Usage, reading(), format!("line {}: {line:?}: {error}", number + 1))
        })?);
    }
    Ok(found)
}
