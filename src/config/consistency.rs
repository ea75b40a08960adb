//! What each setting allows by itself, and they do not allow together.

use std::collections::BTreeMap;

use super::mistake::Mistake;
use super::mode::unshareable;
use super::upstream::UpstreamName;
use super::{LimitsConfig, ManifestsConfig, TlsConfig, UpstreamConfig};

pub(super) fn inconsistencies(
    upstreams: &[UpstreamConfig],
    tls: &TlsConfig,
    limits: &LimitsConfig,
    manifests: &ManifestsConfig,
) -> Vec<Mistake> {
    let mut mistakes = clashes(upstreams);
    mistakes.extend(unshareable(upstreams));
    mistakes.extend(unpaired(tls));
    mistakes.extend(no_room(limits, manifests));
    mistakes
}

fn no_room(limits: &LimitsConfig, manifests: &ManifestsConfig) -> Option<Mistake> {
    let needed = manifests.max_bytes;
    (limits.manifest_bytes < needed).then(|| {
        Mistake::new("limits.manifest_bytes", format!("must be at least manifests.max_bytes ({needed})"))
    })
}

fn unpaired(tls: &TlsConfig) -> Option<Mistake> {
    if tls.certificates.len() != tls.keys.len() {
        return Some(Mistake::new(
            "tls",
            "certificate and key must have the same number of files, in the same order",
        ));
    }
    let needless = tls.certificates.is_empty() && tls.client_ca.is_some();
    needless.then(|| Mistake::new("tls", "client_ca needs certificate and key"))
}

/// Rules that two upstreams share, and names that give the same index number: links of the two would mix.
fn clashes(upstreams: &[UpstreamConfig]) -> Vec<Mistake> {
    let mut owners: BTreeMap<String, &UpstreamName> = BTreeMap::new();
    let mut mistakes = Vec::new();
    for upstream in upstreams {
        let hosts = upstream.hosts.iter().map(|host| format!("host {host}"));
        let namespaces = upstream.namespaces.iter().map(|namespace| format!("namespace {namespace}"));
        let prefixes = upstream.prefixes.iter().map(|prefix| format!("prefix {prefix}"));
        let number = format!("index number {} (computed from the name)", upstream.number());
        // Of one that shares, the number is another's with intent.
        let number = Some(number).filter(|_| upstream.shares.is_none());
        for claim in hosts.chain(namespaces).chain(prefixes).chain(number) {
            if let Some(other) = owners.insert(claim.clone(), &upstream.name) {
                let place = format!("upstreams.{}", upstream.name);
                mistakes
                    .push(Mistake::new(place, format!("the {claim} is already used by upstreams.{other}")));
            }
        }
    }
    mistakes
}
