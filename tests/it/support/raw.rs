//! Requests byte for byte, over a connection of the test's own.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// An answer of HTTP/1.1 as it arrived, its head a character a byte.
#[derive(Debug)]
pub(crate) struct RawAnswer {
    pub(crate) status: u16,
    /// With the status line, without the empty line at its end.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

/// Sends a request and reads the answer to it.
pub(crate) async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: impl AsRef<[u8]>,
) -> io::Result<RawAnswer> {
    stream.write_all(request.as_ref()).await?;
    stream.flush().await?;
    RawAnswer::read(stream).await
}

impl RawAnswer {
    /// The next answer of a connection; without a length it goes to the connection's end.
    pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        head.truncate(head.len() - 4);
        let head: String = head.into_iter().map(char::from).collect();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(head.clone()))?;
        let mut answer = Self { status, head, body: Vec::new() };
        match answer.header("content-length").map(|length| length.parse().map_err(io::Error::other)) {
            Some(length) => {
                answer.body.resize(length?, 0);
                stream.read_exact(&mut answer.body).await?;
            }
            None if status == 101 || status == 204 || status == 304 => {}
            None => {
                stream.read_to_end(&mut answer.body).await?;
            }
        }
        Ok(answer)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}
