//! Names of images: `host/name:tag`, `host/name@digest`, `oci:directory:tag`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::oci::{Digest, DigestPrefix, InvalidName, InvalidTag, RepositoryName, Tag, TagOrDigest};

const DOCKER_HUB: &str = "docker.io";
const LAYOUT_SCHEME: &str = "oci:";

/// An image as it is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    /// The repository or layout.
    pub location: Location,
    /// The image in it.
    pub target: Target,
}

/// A place that holds images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A repository of a registry.
    Registry {
        /// `host` or `host:port`.
        host: String,
        /// The repository there.
        name: RepositoryName,
    },
    /// A directory in the OCI image layout.
    Layout(PathBuf),
}

/// An image of a repository or layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Not named: `latest`, or the only one of a layout.
    Unnamed,
    /// By this tag or digest.
    Named(TagOrDigest),
    /// By the beginning of its digest.
    Abbreviated {
        /// The beginning.
        prefix: DigestPrefix,
        /// Below this tag, or else below any.
        tag: Option<Tag>,
    },
}

/// The text names no image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidImageName {
    /// There is no repository in it.
    #[error("not an image: host/name[:tag][@digest] or oci:directory[:tag][@digest]")]
    Form,
    /// The repository name is malformed.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The tag or digest is malformed.
    #[error(transparent)]
    Target(#[from] InvalidTag),
}

impl Location {
    /// The registry's host, if it is one.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Registry { host, .. } => Some(host),
            Self::Layout(_) => None,
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry { host, name } => write!(f, "{host}/{name}"),
            Self::Layout(directory) => write!(f, "{LAYOUT_SCHEME}{}", directory.display()),
        }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.location.fmt(f)?;
        match &self.target {
            Target::Unnamed => Ok(()),
            Target::Named(TagOrDigest::Tag(tag)) => write!(f, ":{tag}"),
            Target::Named(TagOrDigest::Digest(digest)) => write!(f, "@{digest}"),
            Target::Abbreviated { prefix, .. } => write!(f, "@{prefix}"),
        }
    }
}

impl FromStr for ImageName {
    type Err = InvalidImageName;

    /// A tag before a digest is ignored, as all clients do; before the beginning of a digest it says where to look.
    fn from_str(text: &str) -> Result<Self, InvalidImageName> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        let (place, tag) = match rest.rsplit_once(':') {
            // With a slash behind it, the colon is that of a port: `localhost:5000/a`.
            Some((place, tag)) if !tag.contains('/') && place != LAYOUT_SCHEME.trim_end_matches(':') => {
                (place, Some(tag.parse::<Tag>()?))
            }
            Some(_) | None => (rest, None),
        };
        let target = match (digest.map(str::parse::<Digest>), tag) {
            (Some(Ok(digest)), _) => Target::Named(TagOrDigest::Digest(digest)),
            (Some(Err(error)), tag) => {
                let prefix = digest.and_then(|digest| digest.parse().ok());
                Target::Abbreviated { prefix: prefix.ok_or(InvalidTag::from(error))?, tag }
            }
            (None, Some(tag)) => Target::Named(TagOrDigest::Tag(tag)),
            (None, None) => Target::Unnamed,
        };
        Ok(Self { location: location(place)?, target })
    }
}

fn location(place: &str) -> Result<Location, InvalidImageName> {
    if let Some(directory) = place.strip_prefix(LAYOUT_SCHEME) {
        return if directory.is_empty() {
            Err(InvalidImageName::Form)
        } else {
            Ok(Location::Layout(directory.into()))
        };
    }
    // As docker tells `localhost/a` and `registry.example/a` from Docker Hub's `grafana/grafana`.
    let is_host = |part: &str| part.contains(['.', ':']) || part == "localhost";
    match place.split_once('/') {
        Some((host, name)) if is_host(host) && host != DOCKER_HUB => {
            Ok(Location::Registry { host: host.to_owned(), name: name.parse()? })
        }
        Some((DOCKER_HUB, name)) => on_docker_hub(name),
        Some(_) | None => on_docker_hub(place),
    }
}

fn on_docker_hub(name: &str) -> Result<Location, InvalidImageName> {
    // Docker Hub keeps official images in `library/`.
    let name = if name.contains('/') { name.parse()? } else { format!("library/{name}").parse()? };
    Ok(Location::Registry { host: DOCKER_HUB.to_owned(), name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(text.parse::<ImageName>().unwrap().to_string(), expected);
    }

    #[track_caller]
    fn refuse(text: &str) {
        assert!(text.parse::<ImageName>().is_err(), "{text}");
    }

    #[test]
    fn image_names_are_read_as_docker_reads_them() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        check("localhost:5000/a/b", "localhost:5000/a/b");
        check("localhost:5000/a:v1", "localhost:5000/a:v1");
        check("registry.example/a:v1", "registry.example/a:v1");
        check(&format!("localhost/a:v1@{digest}"), &format!("localhost/a@{digest}"));
        check("ubuntu", "docker.io/library/ubuntu");
        check("ubuntu:24.04", "docker.io/library/ubuntu:24.04");
        check("localhost/a:v1@sha256:0a0a0a0a0a0a", "localhost/a@sha256:0a0a0a0a0a0a");
        check("docker.io/ubuntu", "docker.io/library/ubuntu");
        check("grafana/grafana", "docker.io/grafana/grafana");
    }

    #[test]
    fn a_layout_is_named_by_its_directory() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        check("oci:dir", "oci:dir");
        check("oci:/tmp/dir.d:v1", "oci:/tmp/dir.d:v1");
        check(&format!("oci:dir@{digest}"), &format!("oci:dir@{digest}"));
    }

    #[test]
    fn malformed_image_names_are_refused() {
        refuse("");
        refuse("oci:");
        refuse("localhost:5000/");
        refuse("localhost:5000/A");
        refuse("a@sha256:b");
        refuse("localhost:5000/a:-");
    }
}
