//! The ways in which a client may speak to refshim, and refshim to the upstream.

use std::net::SocketAddr;

use super::{Authority, Client, Http, Refshim};

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
        let client = match self {
            Self::Http1 | Self::Http2Upstream => refshim.client(),
            Self::Http2 => Client::http2(refshim.address),
            Self::TlsHttp1 | Self::TlsHttp2 => {
                let version = if self == Self::TlsHttp1 { Http::One } else { Http::Two };
                Client::to(&format!("https://{}", refshim.address), version, Some(&authority.certificate()))
            }
        };
        Scene { client, refshim, _second: second, _directories: directories }
    }
}
