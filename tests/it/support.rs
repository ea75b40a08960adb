//! What the tests have in common: the processes, a client, and manifests to push.

#[allow(dead_code, reason = "the other suite uses it")]
mod balancer;
mod certificates;
mod client;
mod content;
mod faces;
mod filled;
#[allow(dead_code, reason = "the other suite does not use it")]
mod lines;
mod pattern;
#[allow(dead_code, reason = "the index's own tests use the rest")]
pub(crate) mod postgres;
mod process;
#[allow(dead_code, reason = "the other suite uses the rest")]
pub(crate) mod random;
mod raw;
mod registry;
pub(crate) mod scripted;
mod shelf;
mod storage;
mod tls;
mod token;

#[allow(unused_imports, reason = "the other suite uses it")]
pub(crate) use balancer::Balancer;
pub(crate) use certificates::{Authority, Identity};
pub(crate) use client::{Answer, Client, Http};
pub(crate) use content::{
    Content, DOCKER_LIST, DOCKER_MANIFEST, IMAGE_INDEX, IMAGE_MANIFEST, about, descriptor, digest_of,
};
pub(crate) use faces::{AnyBody, Face, Scene, Stream};
pub(crate) use filled::{Filled, Links, fill, listed};
#[allow(unused_imports, reason = "the other suite does not use it")]
pub(crate) use lines::json_lines;
pub(crate) use pattern::Pattern;
pub(crate) use process::{Refshim, Start, binary};
pub(crate) use random::Random;
pub(crate) use raw::{RawAnswer, exchange};
pub(crate) use registry::{Registry, USER, Variant};
pub(crate) use scripted::{Request, Scripted};
pub(crate) use shelf::{Said, Shelf, Target, Turn, put, shelf_registry, take};
pub(crate) use storage::Storage;
pub(crate) use tls::{TlsClient, TlsConnection};
pub(crate) use token::{Rules, SERVICE, TokenService};

/// What a variable of the environment says, for runs by hand; else the default, which is quick.
pub(crate) fn by_environment(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap())
}
