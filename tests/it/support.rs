//! What the tests have in common: the processes, a client, and manifests to push.

mod client;
mod content;
mod process;
mod scripted;

pub(crate) use client::{Answer, Client};
pub(crate) use content::{
    Content, DOCKER_LIST, DOCKER_MANIFEST, IMAGE_INDEX, IMAGE_MANIFEST, about, descriptor, digest_of,
};
pub(crate) use process::{Refshim, Registry, USER};
pub(crate) use scripted::Scripted;
