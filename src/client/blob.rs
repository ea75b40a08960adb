//! Blobs as streams that are verified on the way: a stream ends in an error if its content does not match its
//! descriptor.

use std::path::Path;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use tokio::io::{AsyncRead, AsyncWriteExt as _};
use tokio_util::io::ReaderStream;

use super::manifest::mismatch;
use super::{Error, Part, Result};
use crate::oci::{Digest, Hasher};

/// The content of a blob, in chunks.
pub type BlobStream = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

/// How much of a file is read at once, in bytes.
const READ_SIZE: usize = 256 << 10;

/// The same content, but with an error in place of the last chunk if size or digest are not the descriptor's.
/// In place of it and not after it: a receiver that knows the size may not ask for more, and would have it
/// all.
pub(super) fn verified(content: BlobStream, part: &Part) -> BlobStream {
    checked(content, part, |error| error)
}

/// The content of a file whose descriptor was computed before, with an error in place of the last chunk if the
/// file changed since then.
pub(super) fn unchanged(content: BlobStream, part: &Part, path: &Path) -> BlobStream {
    let asked = format!("reading {}", path.display());
    checked(content, part, move |_| {
        Error::failed(asked.as_str(), "the file changed while it was read")
            .advise("retry when nothing writes to it any more")
    })
}

fn checked(content: BlobStream, part: &Part, refuse: impl Fn(Error) -> Error + Send + 'static) -> BlobStream {
    let check = Check {
        hasher: Some(Hasher::new(part.descriptor.digest.algorithm())),
        digest: part.descriptor.digest.clone(),
        size: part.descriptor.size,
        seen: 0,
    };
    let state = (content, check, refuse);
    let checked = stream::try_unfold(state, |(mut content, mut check, refuse)| async move {
        match content.next().await.transpose()? {
            Some(bytes) => {
                check.take(&bytes).map_err(&refuse)?;
                Ok(Some((bytes, (content, check, refuse))))
            }
            None => check.end().map(|()| None).map_err(&refuse),
        }
    });
    Box::pin(checked)
}

struct Check {
    /// Gone once the digest was compared.
    hasher: Option<Hasher>,
    digest: Digest,
    size: u64,
    seen: u64,
}

impl Check {
    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.seen += bytes.len() as u64;
        // At once: content without an end would fill the disk before its digest could be compared.
        if self.seen > self.size {
            return Err(wrong_size(&self.digest, self.size, "more"));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        if self.seen == self.size { self.compare() } else { Ok(()) }
    }

    fn end(&mut self) -> Result<()> {
        if self.seen < self.size { Err(wrong_size(&self.digest, self.size, "less")) } else { self.compare() }
    }

    fn compare(&mut self) -> Result<()> {
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        let found = hasher.finish();
        if found == self.digest { Ok(()) } else { Err(mismatch(&self.digest, &found)) }
    }
}

fn wrong_size(digest: &Digest, size: u64, how: &str) -> Error {
    Error::failed(
        format!("checking {digest}"),
        format!("there is {how} than the {size} bytes that its descriptor says"),
    )
}

/// The content of a file or another reader.
pub(super) fn read(name: &str, reader: impl AsyncRead + Send + 'static) -> BlobStream {
    let asked = format!("reading {name}");
    let content = ReaderStream::with_capacity(reader, READ_SIZE);
    Box::pin(content.map(move |bytes| bytes.map_err(|error| Error::io(asked.as_str(), &error))))
}

/// Writes content to a file that gets its name only when it is complete. If writing ends early, also by
/// Ctrl-C, the temporary file is removed.
pub async fn write_file(path: &Path, mut content: BlobStream) -> Result<()> {
    let asked = format!("writing {}", path.display());
    let failed = |error: std::io::Error| Error::io(asked.as_str(), &error);
    // In the same directory: a rename does not cross file systems.
    let directory = path.parent().unwrap_or(Path::new("."));
    let (file, temporary) = temporary_in(directory).map_err(failed)?.into_parts();
    let mut file = tokio::fs::File::from_std(file);
    while let Some(bytes) = content.next().await.transpose()? {
        file.write_all(&bytes).await.map_err(failed)?;
    }
    // tokio writes in the background: only a flush reports the failure of the last write.
    file.flush().await.map_err(failed)?;
    temporary.persist(path).map_err(|error| failed(error.error))
}

/// A temporary file with the permissions of an ordinary one.
fn temporary_in(directory: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    use std::os::unix::fs::PermissionsExt as _;
    // The umask applies. The default of temporary files, 0600, would stay when the file gets its name.
    let permissions = std::fs::Permissions::from_mode(0o666);
    tempfile::Builder::new().prefix(".refshim-").permissions(permissions).tempfile_in(directory)
}
