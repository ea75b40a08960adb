//! What the tests have in common: the processes, a client, and manifests to push.

mod certificates;
mod client;
mod content;
mod process;
mod registry;
mod scripted;
mod storage;
mod token;

pub(crate) use certificates::{Authority, Identity};
pub(crate) use client::{Answer, Client, Http};
pub(crate) use content::{
    Content, DOCKER_LIST, DOCKER_MANIFEST, IMAGE_MANIFEST, about, descriptor, digest_of,
};
pub(crate) use process::{Logged, Refshim};
pub(crate) use registry::{Registry, USER, Variant};
pub(crate) use scripted::Scripted;
pub(crate) use storage::Storage;
pub(crate) use token::{Rules, SERVICE, TokenService};
