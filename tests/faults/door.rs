//! A way to a registry on which connections are refused, cut and held up, whatever they carry.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::random::Random;

/// What befalls connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    Calm,
    /// New connections are closed at once, and so is what there was.
    Refused,
    /// Half of what is sent is cut at any byte, and its connection with it.
    Cut,
    /// Half of what is sent is held up at any byte until the weather changes.
    HeldUp,
}

impl Weather {
    pub(crate) const STORMS: [Self; 3] = [Self::Refused, Self::Cut, Self::HeldUp];
}

pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    weather: watch::Sender<Weather>,
}

impl Door {
    pub(crate) async fn before(registry: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (weather, current) = watch::channel(Weather::Calm);
        tokio::spawn(async move {
            let connections = AtomicU64::new(1);
            while let Ok((client, _)) = listener.accept().await {
                if *current.borrow() != Weather::Refused {
                    let chance = Random::new(connections.fetch_add(1, Ordering::Relaxed));
                    tokio::spawn(connect(client, registry, current.clone(), chance));
                }
            }
        });
        Self { address, weather }
    }

    /// Every change but the one to [`Weather::Cut`] and [`Weather::HeldUp`] ends all connections.
    pub(crate) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

async fn connect(
    client: TcpStream,
    registry: SocketAddr,
    mut weather: watch::Receiver<Weather>,
    chance: Random,
) {
    weather.mark_unchanged();
    let Ok(registry) = TcpStream::connect(registry).await else { return };
    let ((from_client, to_client), (from_registry, to_registry)) =
        (client.into_split(), registry.into_split());
    let chance = Arc::new(std::sync::Mutex::new(chance));
    tokio::select! {
        () = pass(from_client, to_registry, weather.clone(), &chance) => {}
        () = pass(from_registry, to_client, weather, &chance) => {}
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    chance: &std::sync::Mutex<Random>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(length) if length > 0 => length,
                _ => return,
            },
            changed = weather.changed() => {
                let now = *weather.borrow_and_update();
                if changed.is_err() || matches!(now, Weather::Calm | Weather::Refused) {
                    return;
                }
                continue;
            }
        };
        let now = *weather.borrow();
        let (is_hit, place) = {
            let mut chance = chance.lock().unwrap();
            (now != Weather::Calm && chance.coin(), chance.place(length))
        };
        let sent = if is_hit { place } else { length };
        if to.write_all(&buffer[..sent]).await.is_err() {
            return;
        }
        if is_hit {
            if now == Weather::HeldUp {
                let _changed = weather.changed().await;
            }
            return;
        }
    }
}
