//! The ways in which a client may speak to refshim, and refshim to the upstream.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::{Authority, Client, Http, Refshim, TlsClient};

/// How a client's requests reach a scripted upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Face {
    Http1,
    Http2,
    TlsHttp1,
    TlsHttp2,
    /// HTTP/1.1 from the client, and HTTP/2 from refshim to what it takes for the upstream.
    Http2Upstream,
}

/// A refshim that is spoken to in one of these ways.
pub(crate) struct Scene {
    pub(crate) client: Client,
    face: Face,
    authority: Authority,
    /// The one that the client speaks to.
    pub(crate) refshim: Refshim,
    /// Is spoken to in HTTP/2 by the first one, and speaks HTTP/1.1 to the upstream.
    _second: Option<Refshim>,
    _directories: [tempfile::TempDir; 2],
}

impl Face {
    pub(crate) const ALL: [Self; 5] =
        [Self::Http1, Self::Http2, Self::TlsHttp1, Self::TlsHttp2, Self::Http2Upstream];

    /// In front of this upstream, with these settings besides.
    pub(crate) async fn before(self, upstream: SocketAddr, settings: &[(&'static str, &str)]) -> Scene {
        self.before_url(&format!("http://{upstream}"), settings).await
    }

    /// In front of whatever is at this URL.
    pub(crate) async fn before_url(self, upstream: &str, settings: &[(&'static str, &str)]) -> Scene {
        let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let authority = Authority::new();
        let second = match self {
            Self::Http2Upstream => Some(Refshim::in_front_of(upstream, directories[1].path()).launch().await),
            Self::Http1 | Self::Http2 | Self::TlsHttp1 | Self::TlsHttp2 => None,
        };
        let second_url = second.as_ref().map(|second| format!("http://{}", second.address));
        let start = Refshim::in_front_of(second_url.as_deref().unwrap_or(upstream), directories[0].path());
        let start = settings.iter().fold(start, |start, (name, value)| start.with(name, value));
        let start = match self {
            Self::Http1 | Self::Http2 => start,
            Self::TlsHttp1 | Self::TlsHttp2 => start.with_tls(&authority.server("refshim", &["127.0.0.1"])),
            Self::Http2Upstream => start.with("UPSTREAMS_DEFAULT_HTTP2", "always"),
        };
        let refshim = start.launch().await;
        let client = self.client(&refshim, &authority);
        Scene { client, face: self, authority, refshim, _second: second, _directories: directories }
    }

    fn client(self, refshim: &Refshim, authority: &Authority) -> Client {
        match self {
            Self::Http1 | Self::Http2Upstream => refshim.client(),
            Self::Http2 => Client::http2(refshim.address),
            Self::TlsHttp1 | Self::TlsHttp2 => {
                let version = if self == Self::TlsHttp1 { Http::One } else { Http::Two };
                Client::to(&format!("https://{}", refshim.address), version, Some(&authority.certificate()))
            }
        }
    }

    /// Whether clients speak HTTP/2 here.
    pub(crate) fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::TlsHttp2)
    }
}

/// A connection, whatever it goes over.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What a request over [`Scene::http2`] may carry.
pub(crate) type AnyBody = BoxBody<Bytes, io::Error>;

impl Scene {
    /// A client with connections of its own.
    pub(crate) fn another_client(&self) -> Client {
        self.face.client(&self.refshim, &self.authority)
    }

    /// A connection on which nothing was said yet, after the handshake where there is one.
    pub(crate) async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let tls = TlsClient::trusting(&self.authority);
        let tls = match self.face {
            Face::Http1 | Face::Http2 | Face::Http2Upstream => {
                return Ok(Box::new(TcpStream::connect(self.refshim.address).await?));
            }
            Face::TlsHttp1 => tls.offering(&[b"http/1.1"]),
            Face::TlsHttp2 => tls.offering(&[b"h2"]),
        };
        Ok(Box::new(tls.connect(self.refshim.address, "127.0.0.1").await?.0))
    }

    /// An HTTP/2 connection that takes so many bytes of each answer before it is read, and its end.
    pub(crate) async fn http2(
        &self,
        window: u32,
    ) -> io::Result<(SendRequest<AnyBody>, JoinHandle<hyper::Result<()>>)> {
        let stream = TokioIo::new(self.connect().await?);
        let mut builder = http2::Builder::new(TokioExecutor::new());
        let (sender, connection) =
            builder.initial_stream_window_size(window).handshake(stream).await.map_err(io::Error::other)?;
        Ok((sender, tokio::spawn(connection)))
    }
}
