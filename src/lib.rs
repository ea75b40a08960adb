//! refshim stands in front of an unmodified container registry and gives it references: which
//! manifests (signatures, SBOMs, attestations) are about which image.
//!
//! # The way of a request
//! [`server`] accepts a connection, over [`tls`] or not, and gives each request to [`app`], where
//! [`selection`] names the upstream and one `match` shows all ways there are:
//! - Nearly everything is passed on by [`forward`], both bodies streaming, through the one client in
//!   [`upstream`].
//! - The PUT of a manifest goes through [`manifests`]: its links ([`oci::links_of`]) are written to
//!   the [`index`] as pending, it goes upstream as it came, and the upstream's yes confirms them.
//! - The GET of a manifest goes through [`learning`]: it is copied on its way, and its links are recorded
//!   once it has passed.
//! - A query ([`references`], [`referrers`]) is answered by [`listing`] from the index, after [`registry`] has
//!   had the upstream show that this caller may read the repository, and has put into the index what the
//!   upstream itself lists.
//!
//! # The way of a command
//! Every other command than `serve` is a client's: [`cli`] reads it, [`client`] opens the registries and OCI
//! layouts it names and does it. A client uses nothing of the server's, and works with any registry.
//!
//! # The modules, innermost first
//! Each uses only those before it; a test holds the order.
//! [`oci`] (names, digests, links; pure) → [`link_header`] (pages of lists; pure) → [`coding`] (content codings;
//! pure) → [`limits`] → [`body`] → [`framing`] → [`config`] → [`route`] (path to route; pure) → [`selection`]
//! (request to upstream; pure) → [`index`] (journal and sled) → [`telemetry`] → [`tls`] → [`client`] (registries
//! and layouts as a client sees them; used by [`cli`] alone) → [`upstream`] → [`error`] → [`forward`] →
//! [`reading`] (bytes of a manifest to what is kept) → [`registry`] (refshim's own questions, and what is
//! remembered of the answers) → [`learning`] → [`manifests`] → [`listing`] → [`references`] → [`referrers`] →
//! [`admin`] → [`app`] → [`server`] → [`cli`].
//!
//! # What always holds
//! - The bytes of a manifest are never changed. A body is sent again only if the upstream certainly processed
//!   nothing of it.
//! - A PUT that carries links is answered with success only when its links are on disk.
//! - Credentials go to the upstream that the request is for, and to no other host.
//! - A link is listed only after the upstream said that it took the referrer, and only to a caller
//!   whom the upstream let read the repository.
//! - A question of refshim's own is its client's request in all that a registry may decide by, and its answer
//!   counts for exactly such requests.
//! - A look-up that fails is an error, never an empty list. What the registry does not show is left out while it
//!   does not, and forgotten only after it has long shown nothing but 404.
//! - What somebody claims of a manifest counts only once the registry took it, or as its bytes say it.
//! - What a list at a referrers tag says counts only where the manifest it names says so itself.
//! - Nothing but manifests and refshim's own answers is held in memory, and those only up to a limit.
//! - Whatever is done for a request counts as this request until it is done, also when the client is gone.
//! - Only requests in progress can keep other clients out. A connection without one is closed in time, or
//!   earlier when another client needs its place; what a client leaves undone ends after its time-out.

pub mod admin;
pub mod cli;
pub mod client;
pub mod config;
#[doc(hidden)]
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod http;
pub mod index;
pub mod oci;
pub mod proxy;
pub mod queries;
pub mod recording;
pub mod registry;
pub mod server;
pub mod telemetry;
pub mod tls;
