//! The kinds of values that are texts or words: addresses, files, URLs, modes. Texts from the file, a variable or a
//! flag are parsed alike.

use std::borrow::Cow;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use http::uri::Authority;
use ipnet::IpNet;
use tracing_subscriber::filter::{Directive, LevelFilter};

use super::kind::{Text, Words};
use super::logs::log_output;
use super::{
    ClientAuth, DatabaseUrl, Http2, InvalidDatabaseUrl, InvalidRegistryUrl, LogFormat, LogOutput, Mode,
    RegistryUrl, Share, SourceKind, Statements, UpstreamName, WriteTags,
};
use crate::oci::{InvalidName, LinkKind, RepositoryName};

/// A text that is not empty.
const SOME: &str = ".";
/// A name of an upstream or a source of notifications.
pub(super) const NAME_PATTERN: &str = "^[a-z][a-z0-9]*$";

/// The URL of a registry.
pub(super) const REGISTRY: Text<RegistryUrl> = text_of(|text| Ok(text.parse()?), "^[A-Za-z]+://[^@]+$");
/// Scheme, host and port of a URL.
pub(super) const ORIGIN: Text<RegistryUrl> =
    text_of(|text| Ok(text.parse::<RegistryUrl>()?.without_path()?), "^[A-Za-z]+://[^@]+$");
/// The URL of a database, the only setting that may have a secret in it.
pub(super) const DATABASE: Text<DatabaseUrl> = Text {
    parse: |text| Ok(text.parse()?),
    write: DatabaseUrl::with_password,
    mask: Some(DatabaseUrl::masked),
    pattern: "^postgres(ql)?://",
};
/// A share of a whole.
pub(super) const SHARE: Text<Share> = text_of(share, r"^[0-9]{1,3}(\.[0-9]{1,4})?%$");
/// An address to listen on.
pub(super) const ADDRESS: Text<SocketAddr> = text_of(address, ":[0-9]+$");
/// A directory, which need not exist.
pub(super) const DIRECTORY: Text<PathBuf> = path(directory);
/// A file, which need not exist.
pub(super) const FILE: Text<PathBuf> = path(file);
/// An address or a network of addresses.
pub(super) const NETWORK: Text<IpNet> = text_of(network, "^[0-9A-Fa-f.:/]+$");
/// A host name, perhaps with a port, in lower case.
pub(super) const HOST: Text<String> = text_of(host, "^[^@]+$");
/// A name in a certificate: a host name or an IP address.
pub(super) const SERVER_NAME: Text<String> = text_of(server_name, "^[0-9A-Za-z._:-]+$");
/// Any text that is not empty.
pub(super) const ANYTHING: Text<String> = text_of(anything, SOME);
/// The name of an upstream.
pub(super) const UPSTREAM: Text<UpstreamName> = text_of(upstream_name, NAME_PATTERN);
/// The name of a repository, or of a part of it.
pub(super) const REPOSITORY: Text<RepositoryName> = text_of(|text| Ok(text.parse()?), SOME);
/// The log filter.
pub(super) const LOG_FILTER: Text<String> = text_of(log_filter, SOME);

/// Whether a client must have a certificate.
pub(super) const CLIENT_AUTH: Words<ClientAuth> = Words {
    what: "a way of client authentication",
    words: &[("required", ClientAuth::Required), ("optional", ClientAuth::Optional)],
};
/// When refshim writes referrers tags.
pub(super) const WRITE_TAGS: Words<WriteTags> = Words {
    what: "a time to write referrers tags",
    words: &[("never", WriteTags::Never), ("push", WriteTags::Push)],
};
/// How statements are sent to the database.
pub(super) const STATEMENTS: Words<Statements> = Words {
    what: "a way of sending statements",
    words: &[("prepared", Statements::Prepared), ("unnamed", Statements::Unnamed)],
};
/// HTTP/2 towards an upstream.
pub(super) const HTTP2: Words<Http2> = Words {
    what: "a use of HTTP/2",
    words: &[("never", Http2::Never), ("auto", Http2::Auto), ("always", Http2::Always)],
};
/// What refshim does with the requests for an upstream.
pub(super) const MODE: Words<Mode> =
    Words { what: "a mode", words: &[Mode::Full.word(), Mode::Learn.word(), Mode::Pass.word()] };
/// The registry that sends notifications.
pub(super) const SOURCE_KIND: Words<SourceKind> = Words {
    what: "a kind of notifications",
    words: &[
        ("distribution", SourceKind::Distribution),
        ("harbor", SourceKind::Harbor),
        ("zot", SourceKind::Zot),
        ("quay", SourceKind::Quay),
        ("gitlab", SourceKind::Gitlab),
    ],
};
/// A kind of link.
pub(super) const LINK_KIND: Words<LinkKind> = Words { what: "a kind of link", words: &LinkKind::WORDS };
/// Where lines of a log are written.
pub(super) const LOG_OUTPUT: Text<LogOutput> = text_of(log_output, "^(off|stdout|stderr|.*/.*[^/])$");
/// The format of the log.
pub(super) const LOG_FORMAT: Words<LogFormat> =
    Words { what: "a log format", words: &[("text", LogFormat::Text), ("json", LogFormat::Json)] };

/// The text is not a value of its setting: what is wrong, the text, and what to write instead.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Invalid {
    #[error("not {what}: {text:?} (write {example})")]
    Form { what: &'static str, text: String, example: Cow<'static, str> },
    #[error("out of bounds: {text:?} (write {least} to {most})")]
    Bounds { text: String, least: String, most: String },
    #[error(transparent)]
    Url(#[from] InvalidRegistryUrl),
    #[error(transparent)]
    Database(#[from] InvalidDatabaseUrl),
    #[error(transparent)]
    Repository(#[from] InvalidName),
}

const fn text_of<T: Display>(parse: fn(&str) -> Result<T, Invalid>, pattern: &'static str) -> Text<T> {
    Text { parse, write: |value| value.to_string(), mask: None, pattern }
}

const fn path(parse: fn(&str) -> Result<PathBuf, Invalid>) -> Text<PathBuf> {
    Text { parse, write: |path| path.display().to_string(), mask: None, pattern: SOME }
}

fn share(text: &str) -> Result<Share, Invalid> {
    let share = text.strip_suffix('%').and_then(Share::of_percent);
    share.ok_or_else(|| form("a percentage up to 100%", text, "100%, 10% or 0.5%"))
}

fn address(text: &str) -> Result<SocketAddr, Invalid> {
    let example = "127.0.0.1:5000, 0.0.0.0:5000 or [::]:5000";
    text.parse().map_err(|_| form("an IP address and port", text, example))
}

fn directory(text: &str) -> Result<PathBuf, Invalid> {
    if text.is_empty() { Err(form("a directory", text, "/var/lib/refshim")) } else { Ok(text.into()) }
}

fn file(text: &str) -> Result<PathBuf, Invalid> {
    if text.is_empty() { Err(form("a file", text, "/etc/refshim/tls.crt")) } else { Ok(text.into()) }
}

fn network(text: &str) -> Result<IpNet, Invalid> {
    let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    network.ok_or_else(|| form("an IP address or network", text, "10.0.0.0/8, 192.0.2.7 or fd00::/8"))
}

fn host(text: &str) -> Result<String, Invalid> {
    let authority = text.parse::<Authority>().ok().filter(|authority| !authority.as_str().contains('@'));
    let lower = authority.filter(|authority| !authority.host().is_empty());
    lower
        .map(|authority| authority.as_str().to_ascii_lowercase())
        .ok_or_else(|| form("a host", text, "hub.example.com or hub.example.com:8443"))
}

/// A name in a certificate: a host name or an IP address.
pub(super) fn server_name(text: &str) -> Result<String, Invalid> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    let valid = !text.is_empty() && text.chars().all(is_word);
    if valid { Ok(text.to_owned()) } else { Err(form("a server name", text, "registry.example")) }
}

fn anything(text: &str) -> Result<String, Invalid> {
    if text.is_empty() { Err(form("a text", text, "docker.io")) } else { Ok(text.to_owned()) }
}

fn upstream_name(text: &str) -> Result<UpstreamName, Invalid> {
    text.parse().map_err(|_| form("the name of an upstream", text, "default, or NAME of [upstreams.NAME]"))
}

/// The log filter. Each part must be a level or end in one: `EnvFilter` takes any other word for a module's name and
/// silences everything else, so that a misspelt level would log nothing.
pub(super) fn log_filter(text: &str) -> Result<String, Invalid> {
    let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let is_level = |text: &str| !text.is_empty() && text.parse::<LevelFilter>().is_ok();
    let is_sound = |part: &&str| {
        let level = part.rsplit_once('=').map_or(*part, |(_, level)| level);
        is_level(level) && part.parse::<Directive>().is_ok()
    };
    let example = "error, warn, info, debug, trace or off, or one of them for a module: warn,refshim=debug";
    match parts.iter().find(|part| !is_sound(part)) {
        Some(part) => Err(form("a log filter", part, example)),
        None if parts.is_empty() => Err(form("a log filter", text, example)),
        None => Ok(parts.join(",")),
    }
}

pub(super) fn form(what: &'static str, text: &str, example: impl Into<Cow<'static, str>>) -> Invalid {
    Invalid::Form { what, text: text.to_owned(), example: example.into() }
}

#[cfg(test)]
mod tests {
    use super::super::kind::Kind as _;
    use super::*;

    #[test]
    fn a_log_filter_names_levels() {
        let check = |text: &str, expected: &str| assert_eq!(log_filter(text), Ok(expected.to_owned()));
        for text in
            ["info", "OFF", "2", "warn,refshim=debug", "refshim::app[request]=trace", "[request{id=1}]=info"]
        {
            check(text, text);
        }
        check(" info , refshim=debug,", "info,refshim=debug");
        for text in
            ["", ",", "verbose", "info,foo=bar", "refshim", "refshim=", "info,verbose", "=?=[", "a=b=c"]
        {
            let wrong = log_filter(text).unwrap_err().to_string();
            assert!(wrong.contains("error, warn, info, debug, trace or off"), "{text}: {wrong}");
        }
    }

    #[test]
    fn a_kind_of_link_is_one_of_the_known_words() {
        assert_eq!(LINK_KIND.parse("cosign"), Ok(LinkKind::Cosign));
        for text in ["", "sbom", "Cosign", "cosign attestation"] {
            assert!(LINK_KIND.parse(text).is_err(), "{text}");
        }
    }
}
