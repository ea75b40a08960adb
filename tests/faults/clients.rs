//! Clients that go away at each step of a PUT.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::ledger::{Ledger, REPOSITORY};
use crate::random::Random;
use crate::support::{Content, Refshim, Registry, by_environment};
use crate::table::Row;

/// Sends so much of the push and reads so many bytes of the answer.
fn broken_off(refshim: &Refshim, content: &Content, sent: usize, read: usize) {
    let mut stream = TcpStream::connect(refshim.address).unwrap();
    let request = request(content);
    stream.write_all(&request[..sent.min(request.len())]).unwrap();
    if sent >= request.len() {
        stream.read_exact(&mut vec![0; read]).unwrap();
    }
}

fn request(content: &Content) -> Vec<u8> {
    let head = format!(
        "PUT /v2/{REPOSITORY}/manifests/{} HTTP/1.1\r\nhost: h\r\ncontent-type: {}\r\ncontent-length: {}\r\n\r\n",
        content.digest,
        content.media_type,
        content.bytes.len()
    );
    [head.as_bytes(), &content.bytes].concat()
}

/// `FAULT_CLIENTS` is how many.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_leaves_what_the_registry_has() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::start(registry.address, directory.path()).await;
    let behind = registry.client();
    let image = behind.image(REPOSITORY, "image").await;
    let mut ledger = Ledger::about(&behind, &image, "subject").await;
    let mut random = Random::new(by_environment("FAULT_SEED", 1));
    let mut row = Row::new("client goes away at each step of a PUT");
    for n in 0..by_environment("FAULT_CLIENTS", 60) {
        let content = ledger.referrer(usize::try_from(n).unwrap());
        let length = request(&content).len();
        match n % 4 {
            0 => broken_off(&refshim, &content, random.place(length - 1), 0),
            1 => broken_off(&refshim, &content, length, 0),
            2 => broken_off(&refshim, &content, length, random.place(60)),
            _ => {
                // All but the end, so that the registry may be asked for it at the same moment.
                broken_off(&refshim, &content, length - 1, 0);
            }
        }
        ledger.take(content, None);
        row.tried += 1;
    }
    let other = ledger.referrer(100_000);
    ledger.push(&refshim.client(), vec![other], 1, &std::sync::Arc::default()).await;
    row.acknowledged = ledger.acknowledged.len() as u64;
    // What is under way without its client comes to its end before the process does.
    assert!(refshim.stop().success());
    let refshim = Refshim::start(registry.address, directory.path()).await;
    ledger.check(&mut row, &refshim.client(), &behind).await;
    row.close();
}
