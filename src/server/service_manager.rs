//! The service manager that refshim runs under, systemd or another with its protocols: the sockets that it hands over
//! (`sd_listen_fds(3)`), and what it is told (`sd_notify(3)`): ready, reloading, stopping, alive. Without one, nothing is
//! handed over and nobody told.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::net::TcpListener;

use super::StartError;

/// The longest wait for the manager: nothing here depends on what it hears.
const PATIENCE: Duration = Duration::from_secs(1);

/// Listening sockets that the process was started with. The manager keeps them while refshim restarts, so that no
/// connection is refused meanwhile.
#[derive(Debug, Default)]
pub struct Inherited(Vec<std::net::TcpListener>);

impl Inherited {
    /// Takes what `LISTEN_FDS` names, and removes the variable. To be called before there are other threads, which might
    /// read the environment at that moment.
    ///
    /// # Errors
    /// One of them is not a listening TCP socket.
    pub fn take() -> io::Result<Self> {
        let mut handed = ListenFd::from_env();
        let mut sockets = Vec::with_capacity(handed.len());
        for place in 0..handed.len() {
            sockets.extend(handed.take_tcp_listener(place)?);
        }
        Ok(Self(sockets))
    }

    /// The inherited socket of this address, or one of its port that is bound to all addresses; else a new one.
    pub(super) async fn listen(&mut self, address: SocketAddr) -> Result<TcpListener, StartError> {
        let failed = |source| StartError::Listen { address, source };
        let own: Vec<_> = self.0.iter().map(|socket| socket.local_addr().ok()).collect();
        let is_wider =
            |own: &SocketAddr| own.ip().is_unspecified() && own.port() == address.port() && *own != address;
        let exact = own.iter().position(|own| *own == Some(address));
        let place = exact.or_else(|| own.iter().position(|own| own.as_ref().is_some_and(is_wider)));
        let Some(place) = place else { return super::listen(address).await };
        let socket = self.0.swap_remove(place);
        if exact.is_none() {
            let all = socket.local_addr().map_err(failed)?;
            tracing::warn!(%address, %all, "the socket that was handed over is for all addresses, not for {address} alone");
        }
        socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket)).map_err(failed)
    }

    /// Once all that listens has its socket: one that is left would accept connections that nobody serves.
    pub(super) fn all_taken(self) -> Result<(), StartError> {
        let left = self.0.first().map(std::net::TcpListener::local_addr);
        left.map_or(Ok(()), |address| Err(StartError::Inherited(address.map_err(StartError::Unreadable)?)))
    }
}

/// Requests are served. With [`NotifyState::Reloading`] before it, a reload is over.
pub(super) async fn ready() {
    tell(vec![NotifyState::Ready]).await;
}

/// The configuration is being loaded again; [`ready`] says when that is done.
pub(super) async fn reloading() {
    // The time tells the manager which of two reloads the next `ready` belongs to.
    let now = NotifyState::monotonic_usec_now().ok();
    tell([NotifyState::Reloading].into_iter().chain(now).collect()).await;
}

/// No more connections are accepted.
pub(super) async fn stopping() {
    tell(vec![NotifyState::Stopping]).await;
}

/// Says again and again that the process is alive, if the manager wants to hear it (`WatchdogSec=`), for ever. To be
/// polled by the task that accepts connections: if that one hangs, the manager starts the process again.
pub async fn keep_alive() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    // sd_watchdog_enabled(3) recommends half of it.
    let mut moments = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
    loop {
        moments.tick().await;
        tell(vec![NotifyState::Watchdog]).await;
    }
}

async fn tell(states: Vec<NotifyState<'static>>) {
    // The manager may not read for a moment, and sending to it would wait.
    let telling = tokio::task::spawn_blocking(move || sd_notify::notify(&states));
    let told = tokio::time::timeout(PATIENCE, telling).await;
    let told = told.unwrap_or_else(|_elapsed| Ok(Err(io::Error::from(io::ErrorKind::TimedOut))));
    if let Err(error) = told.unwrap_or_else(|error| Err(io::Error::other(error))) {
        tracing::warn!(%error, "the service manager (NOTIFY_SOCKET) cannot be told");
    }
}
