//! The floor of the benchmark: hyper's server in front of hyper-util's pooled client, and nothing between.
//!
//! `bare_proxy LISTEN UPSTREAM`, both `address:port`. One worker, HTTP/1.1, bodies streamed both ways. No
//! header is touched, no failure gets an answer of its own: what refshim costs beyond this is refshim's own.

use std::{env, error::Error, io, net::SocketAddr};

use http::{Request, Response, Uri, uri::Scheme};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::net::{TcpListener, TcpStream};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Large enough that a blob costs few system calls.
const BUFFER: usize = 512 * 1024;

type Upstream = Client<HttpConnector, Incoming>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let (Some(listen), Some(upstream)) = (arguments.next(), arguments.next()) else {
        return Err("usage: bare_proxy LISTEN UPSTREAM".into());
    };
    let address: SocketAddr = upstream.parse()?;
    let listener = TcpListener::bind(listen.parse::<SocketAddr>()?).await?;
    let client = pooled_client();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(serve(stream, client.clone(), address));
    }
}

fn pooled_client() -> Upstream {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).http1_max_buf_size(BUFFER).build(connector)
}

/// Serves one client connection; how it ends is the load generator's to notice.
async fn serve(stream: TcpStream, client: Upstream, upstream: SocketAddr) {
    let service = service_fn(|request| forward(request, client.clone(), upstream));
    http1::Builder::new().max_buf_size(BUFFER).serve_connection(TokioIo::new(stream), service).await.ok();
}

async fn forward(
    mut request: Request<Incoming>,
    client: Upstream,
    upstream: SocketAddr,
) -> io::Result<Response<Incoming>> {
    *request.uri_mut() = at(upstream, request.uri()).map_err(io::Error::other)?;
    client.request(request).await.map_err(io::Error::other)
}

/// The same path and query at the upstream.
fn at(upstream: SocketAddr, uri: &Uri) -> Result<Uri, http::Error> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Uri::builder().scheme(Scheme::HTTP).authority(upstream.to_string()).path_and_query(path).build()
}
