//! Names of repositories in a file.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::path::Path;

use crate::client::{Error, ErrorKind, Result};
use crate::oci::RepositoryName;

/// The names in a file, each once. Empty lines and `#` comments are skipped.
pub(super) fn listed(file: &Path) -> Result<Vec<RepositoryName>> {
    let reading = || format!("reading {}", file.display());
    let mut text = String::new();
    let read = if file == Path::new("-") {
        io::stdin().read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|mut file| file.read_to_string(&mut text))
    };
    read.map_err(|error| Error::io(reading(), &error))?;
    let mut names = BTreeSet::new();
    for (number, line) in text.lines().enumerate() {
        let name = line.split('#').next().unwrap_or_default().trim();
        if name.is_empty() {
            continue;
        }
        let name: RepositoryName = name.parse().map_err(|error| {
            Error::new(ErrorKind::Usage, reading(), format!("line {}: {name:?}: {error}", number + 1))
        })?;
        names.insert(name);
    }
    Ok(names.into_iter().collect())
}
