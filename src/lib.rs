//! refshim stands in front of an unmodified container registry and adds the OCI 1.1 referrers API to it: which
//! manifests (signatures, SBOMs, attestations) are about which image.
//!
//! # The way of a request
//! [`server`] accepts a connection, over [`tls`] or not, and hands each request to [`server::app`], where every layer
//! stands in the order in which a request meets it, and behind them one `match` on the [route](http::route).
//! - **Nearly everything** is passed on by [`proxy::forward`], both bodies streaming, through the one client in
//!   [`proxy::upstream`]. [`proxy::selection`] names the upstream where there are several.
//! - **A push**, the PUT of a manifest, goes through [`recording::pushes`]. The links in its bytes
//!   ([`oci::links_of`]) are written to the [`index`] as pending, the manifest goes upstream as it came, and the
//!   upstream's 201 confirms them. A DELETE removes the links of its manifest.
//! - **A pull**, the GET of a manifest, goes through [`recording::pulls`]: the manifest is copied on its way, and its
//!   links are recorded once it has passed.
//! - **A query** is answered by [`queries`]. First [`registry`] has the upstream show that this caller may read the
//!   repository, and merges into the index what the registry itself lists (its own API, the referrers tag). Then a
//!   page of the index is read, and what is pending on it is asked for.
//! - **An attachment**, the POST of any body to a manifest's references, becomes an artifact that [`attach`] pushes on
//!   behalf of the client.
//!
//! A visitor of the web page comes in by a listener of its own. [`web`] asks [`registry`] and [`queries`] what a query
//! would ask, with the visitor's credentials, and makes HTML of it.
//!
//! # The way of a command
//! Every command but `serve` is a client: [`cli`] parses it, [`client`] opens the registries and OCI layouts that it
//! names. A client shares the connector of [`tls`] with the server and nothing else, and works with any registry. While
//! serving, [`notifications`] use it with refshim's own credentials.
//!
//! # The rooms, innermost first
//! Each uses only those before it; a test holds the order.
//!
//! | room | what is in it |
//! |---|---|
//! | [`oci`] | names, tags, digests, media types, descriptors, the links of a manifest; pure |
//! | [`config`] | the settings: file, environment, command line, all mistakes at once; what is in force; the schema |
//! | [`http`] | what HTTP and the registry's API look like, without a registry: bodies, limits, paths, `Link` |
//! | [`tls`] | certificates, trust, the acceptor towards clients, the connectors towards registries and the database |
//! | [`index`] | which manifest refers to which: the interface, and its engines (journal and sled; PostgreSQL) |
//! | [`queue`] | what is to be done in the background, and survives the process |
//! | [`telemetry`] | logs and metrics |
//! | [`client`] | registries and layouts as a client sees them; not by the way of a request |
//! | [`proxy`] | the upstream's connections, which upstream, what a proxy does to heads, errors |
//! | [`registry`] | refshim's own questions to a registry, and all that is remembered of the answers |
//! | [`recording`] | what passes, or was fetched, and is recorded |
//! | [`notifications`] | what registries tell of: queued on disk, and worked off |
//! | [`backfill`] | what the registry held before: walks it and records it |
//! | [`export`] | the way out: writes referrers tags into the registry |
//! | [`referrers_tags`] | brings the referrers tag of each pushed referrer's subject level, in the background |
//! | [`garbage`] | referrers whose subjects are gone: finds and deletes them |
//! | [`compare`] | what refshim knows, beside what the registry lists by itself |
//! | [`jobs`] | what goes through a whole registry, by a command or a serving refshim |
//! | [`queries`] | `references` and `referrers`, in one repository or across repositories |
//! | [`attach`] | attaching with one request, and single references |
//! | [`web`] | the web page: what is attached to an image, for people |
//! | [`admin`] | health, readiness, metrics |
//! | [`server`] | listeners, connections, the layers, the end; loads the configuration again |
//! | [`cli`] | the command line |
//!
//! # Words
//! - **Link**: a *referrer* (a signature, an SBOM) refers to a *subject* (an image). It has a kind: `reference` of the
//!   2021 proposal, OCI's `subject`, the parent of an image index, and what only a tag or another manifest says
//!   (cosign's tags, the referrers tag, `BuildKit`'s attestations).
//! - **Referrers tag**, or fallback tag: `sha256-<hex>`, at which clients keep a list of referrers in a registry
//!   without the API.
//! - **Pending**: a referrer of which it is not known whether the upstream has it. Asked for before it is listed.
//! - **Confirmed**: the upstream accepted it, or served it.
//! - **Claimed**: known by somebody's word alone: a PUT that has not been answered, or a list that names it. The
//!   manifest's own bytes, as the upstream serves them, replace a claim.
//! - **Doubted**: confirmed once, and pending again, since somebody was answered 404 for it.
//! - **Absent**: doubted since the upstream answered 404 to a caller who can read the repository. Removed once it was
//!   so for `index.forget_after`.
//! - **Version**: changes with each record of a referrer. A removal names the version that it was decided on, so that
//!   a stale decision is detected.
//! - **Caller**: a client as the registry sees it: all of its request that a registry may decide by.
//! - **Verdict**: whether the registry showed that a caller may read a repository.
//! - **Witness**: a manifest that is asked for to get a verdict, where the subject itself is 404.
//! - **Foreign**: of another namespace (`ns=`) than the upstream stands for.
//! - **Epoch**: a repository between two writes. What is remembered counts within one.
//!
//! # What always holds
//! - The bytes of a manifest are never changed. A request is sent again only if the upstream certainly processed
//!   nothing of it.
//! - A PUT that carries links is answered with success only when its links are on disk.
//! - Credentials go to the upstream that the request is for, and to no other host.
//! - A link is listed only after the upstream accepted or served the referrer, and only to a caller whom the
//!   upstream let read the repository. Nobody is answered from another caller's rights.
//! - A question of refshim's own is its client's request in all that a registry may decide by, and its answer
//!   counts for exactly such requests.
//! - A failed look-up is an error, never an empty list. What the registry does not show is left out while it does
//!   not, and forgotten only after it has long answered nothing but 404.
//! - A claim counts only once the upstream accepted or served the manifest, and then as its bytes say it.
//! - Nothing but manifests and refshim's own answers is held in memory, and those only up to a limit.
//! - Whatever is done for a request counts as this request until it is done, also when the client is gone.
//! - A request sees one configuration. Another one is taken over as a whole or not at all.
//! - Only requests in progress can keep other clients out. A connection without one is closed in time, or
//!   earlier when another client needs its place; what a client leaves undone ends after its time-out.

pub mod admin;
pub mod attach;
pub mod backfill;
pub mod cli;
pub mod client;
pub mod compare;
pub mod config;
pub mod export;
#[doc(hidden)]
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod garbage;
pub mod http;
pub mod index;
pub mod jobs;
pub mod notifications;
pub mod oci;
pub mod proxy;
pub mod queries;
pub mod queue;
pub mod recording;
pub mod referrers_tags;
pub mod registry;
pub mod server;
pub mod telemetry;
pub mod tls;
pub mod web;

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "the integration tests use the rest")]
#[path = "../tests/it/support/postgres.rs"]
mod test_database;
