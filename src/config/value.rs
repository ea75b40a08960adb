//! Parses the value of one setting: durations, sizes, addresses. Texts from the file, a variable or a flag are parsed
//! alike.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use http::uri::Authority;
use ipnet::IpNet;
use tracing_subscriber::filter::{Directive, LevelFilter};

use super::{
    ClientAuth, Http2, InvalidDatabaseUrl, InvalidRegistryUrl, LogFormat, Mode, Share, SourceKind,
    Statements, UpstreamName, WriteTags,
};
use crate::oci::{InvalidName, LinkKind, UnknownLinkKind};

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;

/// Durations are bounded in milliseconds.
const SECOND: u64 = 1_000;
pub(super) const MINUTE: u64 = 60 * SECOND;
pub(super) const HOUR: u64 = 60 * MINUTE;

const DURATION: Quantity = Quantity {
    name: "a duration",
    example: "500ms, 5s, 2m or 1h",
    units: &[("h", HOUR), ("m", MINUTE), ("s", SECOND), ("ms", 1)],
};
const SIZE: Quantity = Quantity {
    name: "a size",
    example: "512KiB, 4MiB, 1GiB or a number of bytes",
    units: &[("GiB", GIB), ("MiB", MIB), ("KiB", KIB), ("", 1)],
};
const COUNT: Quantity = Quantity { name: "a number", example: "8", units: &[("", 1)] };

/// The text is not a value of its setting: what is wrong, the text, and what to write instead.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Invalid {
    #[error("not {what}: {text:?} (write {example})")]
    Form { what: &'static str, text: String, example: &'static str },
    #[error("out of bounds: {text:?} (write {least} to {most})")]
    Bounds { text: String, least: String, most: String },
    #[error(transparent)]
    Url(#[from] InvalidRegistryUrl),
    #[error(transparent)]
    Database(#[from] InvalidDatabaseUrl),
    #[error(transparent)]
    Repository(#[from] InvalidName),
}

/// A whole number with a unit.
struct Quantity {
    name: &'static str,
    example: &'static str,
    /// Largest first; the last is 1.
    units: &'static [(&'static str, u64)],
}

impl Quantity {
    fn read<T: TryFrom<u64>>(&self, text: &str, bounds: &RangeInclusive<u64>) -> Result<T, Invalid> {
        let amount = self.amount(text).ok_or_else(|| form(self.name, text, self.example))?;
        let value = if bounds.contains(&amount) { T::try_from(amount).ok() } else { None };
        value.ok_or_else(|| Invalid::Bounds {
            text: text.to_owned(),
            least: self.write(*bounds.start()),
            most: self.write(*bounds.end()),
        })
    }

    fn amount(&self, text: &str) -> Option<u64> {
        let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        let (_, factor) = self.units.iter().find(|(name, _)| *name == unit)?;
        number.checked_mul(*factor)
    }

    fn write(&self, amount: u64) -> String {
        let fits = |(_, factor): &&(&str, u64)| amount >= *factor && amount.is_multiple_of(*factor);
        match self.units.iter().find(fits) {
            Some((unit, factor)) => format!("{}{unit}", amount / factor),
            None => format!("{amount}{}", self.units.last().map_or("", |(unit, _)| unit)),
        }
    }
}

/// A duration within bounds given in milliseconds.
pub(super) fn duration(text: &str, bounds: RangeInclusive<u64>) -> Result<Duration, Invalid> {
    DURATION.read(text, &bounds).map(Duration::from_millis)
}

/// A size within bounds given in bytes.
pub(super) fn size<T: TryFrom<u64>>(text: &str, bounds: RangeInclusive<u64>) -> Result<T, Invalid> {
    SIZE.read(text, &bounds)
}

/// A number of things.
pub(super) fn count(text: &str, bounds: RangeInclusive<u64>) -> Result<usize, Invalid> {
    COUNT.read(text, &bounds)
}

/// A share of a whole.
pub(super) fn share(text: &str) -> Result<Share, Invalid> {
    let share = text.strip_suffix('%').and_then(Share::of_percent);
    share.ok_or_else(|| form("a percentage up to 100%", text, "100%, 10% or 0.5%"))
}

/// An address to listen on.
pub(super) fn address(text: &str) -> Result<SocketAddr, Invalid> {
    let example = "127.0.0.1:5000, 0.0.0.0:5000 or [::]:5000";
    text.parse().map_err(|_| form("an IP address and port", text, example))
}

/// A directory, which need not exist.
pub(super) fn directory(text: &str) -> Result<PathBuf, Invalid> {
    if text.is_empty() { Err(form("a directory", text, "/var/lib/refshim")) } else { Ok(text.into()) }
}

/// A file, which need not exist.
pub(super) fn file(text: &str) -> Result<PathBuf, Invalid> {
    if text.is_empty() { Err(form("a file", text, "/etc/refshim/tls.crt")) } else { Ok(text.into()) }
}

/// Elements separated by commas, each parsed by `element`.
pub(super) fn list<T, E: Into<Invalid>>(
    text: &str,
    element: impl Fn(&str) -> Result<T, E>,
) -> Result<Vec<T>, Invalid> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.split(',').map(|part| element(part.trim()).map_err(Into::into)).collect()
}

/// Any text that is not empty.
pub(super) fn text(text: &str) -> Result<String, Invalid> {
    if text.is_empty() { Err(form("a text", text, "docker.io")) } else { Ok(text.to_owned()) }
}

/// `true` or `false`.
pub(super) fn yes_or_no(text: &str) -> Result<bool, Invalid> {
    text.parse().map_err(|_| form("true or false", text, "true or false"))
}

/// An address or a network of addresses.
pub(super) fn network(text: &str) -> Result<IpNet, Invalid> {
    let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    network.ok_or_else(|| form("an IP address or network", text, "10.0.0.0/8, 192.0.2.7 or fd00::/8"))
}

/// A host name, perhaps with a port, in lower case.
pub(super) fn host(text: &str) -> Result<String, Invalid> {
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

/// Whether a client must have a certificate.
pub(super) fn client_auth(text: &str) -> Result<ClientAuth, Invalid> {
    match text {
        "required" => Ok(ClientAuth::Required),
        "optional" => Ok(ClientAuth::Optional),
        _ => Err(form("a way of client authentication", text, "required or optional")),
    }
}

/// When refshim writes referrers tags.
pub(super) fn write_tags(text: &str) -> Result<WriteTags, Invalid> {
    match text {
        "never" => Ok(WriteTags::Never),
        "push" => Ok(WriteTags::Push),
        _ => Err(form("a time to write referrers tags", text, "never or push")),
    }
}

/// How statements are sent to the database.
pub(super) fn statements(text: &str) -> Result<Statements, Invalid> {
    match text {
        "prepared" => Ok(Statements::Prepared),
        "unnamed" => Ok(Statements::Unnamed),
        _ => Err(form("a way of sending statements", text, "prepared or unnamed")),
    }
}

/// HTTP/2 towards an upstream.
pub(super) fn http2(text: &str) -> Result<Http2, Invalid> {
    match text {
        "never" => Ok(Http2::Never),
        "auto" => Ok(Http2::Auto),
        "always" => Ok(Http2::Always),
        _ => Err(form("a use of HTTP/2", text, "never, auto or always")),
    }
}

/// What refshim does with the requests for an upstream.
pub(super) fn mode(text: &str) -> Result<Mode, Invalid> {
    let known = [Mode::Full, Mode::Learn, Mode::Pass].into_iter().find(|mode| mode.as_str() == text);
    known.ok_or_else(|| form("a mode", text, "full, learn or pass"))
}

/// The registry that sends notifications.
pub(super) fn source_kind(text: &str) -> Result<SourceKind, Invalid> {
    match text {
        "distribution" => Ok(SourceKind::Distribution),
        "harbor" => Ok(SourceKind::Harbor),
        "zot" => Ok(SourceKind::Zot),
        "quay" => Ok(SourceKind::Quay),
        "gitlab" => Ok(SourceKind::Gitlab),
        _ => Err(form("a kind of notifications", text, "distribution, harbor, zot, quay or gitlab")),
    }
}

/// The name of an upstream.
pub(super) fn upstream_name(text: &str) -> Result<UpstreamName, Invalid> {
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

/// A kind of link.
pub(super) fn link_kind(text: &str) -> Result<LinkKind, Invalid> {
    text.parse().map_err(|UnknownLinkKind| form("a kind of link", text, "cosign"))
}

/// The format of the log.
pub(super) fn log_format(text: &str) -> Result<LogFormat, Invalid> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(form("a log format", text, "text or json")),
    }
}

fn form(what: &'static str, text: &str, example: &'static str) -> Invalid {
    Invalid::Form { what, text: text.to_owned(), example }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_duration(text: &str, expected: Result<u64, &str>) {
        let found = duration(text, 1..=24 * HOUR).map_err(|invalid| invalid.to_string());
        assert_eq!(found, expected.map(Duration::from_millis).map_err(str::to_owned));
    }

    #[test]
    fn durations_are_whole_numbers_with_a_unit() {
        check_duration("500ms", Ok(500));
        check_duration("5s", Ok(5_000));
        check_duration("2m", Ok(120_000));
        check_duration("1h", Ok(3_600_000));
        check_duration("24h", Ok(86_400_000));
        check_duration("25h", Err(r#"out of bounds: "25h" (write 1ms to 24h)"#));
        check_duration("0s", Err(r#"out of bounds: "0s" (write 1ms to 24h)"#));
        for text in ["", "5", "s", "5 s", "5S", "1.5s", "-5s", "+5s", "1m30s", "5 bananas", "٥s"] {
            check_duration(text, Err(&format!("not a duration: {text:?} (write 500ms, 5s, 2m or 1h)")));
        }
        for overflow in ["18446744073709551615h", "18446744073709551616ms"] {
            check_duration(
                overflow,
                Err(&format!("not a duration: {overflow:?} (write 500ms, 5s, 2m or 1h)")),
            );
        }
    }

    #[track_caller]
    fn check_size(text: &str, expected: Result<u64, &str>) {
        let found = size(text, 1..=4 * GIB).map_err(|invalid| invalid.to_string());
        assert_eq!(found, expected.map_err(str::to_owned));
    }

    #[test]
    fn sizes_are_whole_numbers_of_bytes_or_of_binary_units() {
        check_size("1", Ok(1));
        check_size("512KiB", Ok(512 * KIB));
        check_size("4MiB", Ok(4 * MIB));
        check_size("1GiB", Ok(GIB));
        check_size("0", Err(r#"out of bounds: "0" (write 1 to 4GiB)"#));
        check_size("5GiB", Err(r#"out of bounds: "5GiB" (write 1 to 4GiB)"#));
        for text in ["", "MiB", "4MB", "4M", "4 MiB", "0x10", "1_000"] {
            let message = format!("not a size: {text:?} (write 512KiB, 4MiB, 1GiB or a number of bytes)");
            check_size(text, Err(&message));
        }
    }

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
        assert_eq!(link_kind("cosign"), Ok(LinkKind::Cosign));
        for text in ["", "sbom", "Cosign", "cosign attestation"] {
            assert!(link_kind(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_size_that_its_type_cannot_hold_is_out_of_bounds() {
        assert_eq!(size::<u8>("255", 0..=KIB), Ok(255));
        assert!(matches!(size::<u8>("256", 0..=KIB), Err(Invalid::Bounds { .. })));
    }

    #[track_caller]
    fn check_written(quantity: &Quantity, amount: u64, expected: &str) {
        assert_eq!(quantity.write(amount), expected);
    }

    #[test]
    fn bounds_are_written_in_the_largest_unit_that_fits() {
        check_written(&DURATION, 0, "0ms");
        check_written(&DURATION, 1_500, "1500ms");
        check_written(&DURATION, 90 * SECOND, "90s");
        check_written(&SIZE, 0, "0");
        check_written(&SIZE, 64 * KIB, "64KiB");
        check_written(&COUNT, 256, "256");
    }
}
