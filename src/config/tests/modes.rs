//! Modes, and upstreams that share.

use super::super::{Config, Mode, UpstreamConfig};
use super::from_file;

fn config(rest: &str) -> Config {
    from_file(&format!("upstream = \"https://registry.example\"\n{rest}")).load().unwrap()
}

#[test]
fn upstreams_that_share_have_one_number() {
    let all = config(
        "[upstreams.a]\nurl = \"https://registry.example\"\nhosts = [\"a\"]\nshares = \"default\"\n\
         mode = \"learn\"\n[upstreams.b]\nurl = \"https://registry.example\"\nhosts = [\"b\"]",
    );
    let numbers: Vec<u32> = all.upstreams().map(UpstreamConfig::number).collect();
    assert!(matches!(numbers[..], [0, 0, other] if other != 0));
    assert_eq!(all.upstreams().map(|it| it.mode).collect::<Vec<_>>(), [Mode::Full, Mode::Learn, Mode::Full]);
    assert!(all.is_recorded(0) && all.is_recorded(numbers[2]));
    let one_passes = config(
        "[upstreams.a]\nurl = \"https://registry.example\"\nhosts = [\"a\"]\nshares = \"default\"\n\
         mode = \"pass\"",
    );
    assert!(!one_passes.is_recorded(0));
}

#[test]
fn what_no_mode_uses_is_without_effect() {
    let check = |mode: &str, expected: &[&str]| {
        let tables = "referrers.stale_for = \"1s\"\nmanifests.learn_bytes = 0\nreferences.concurrency = 9";
        let text = format!("{tables}\n[upstreams.default]\nmode = \"{mode}\"");
        assert_eq!(config(&text).without_effect(), expected, "{mode}");
        let alone = format!("[upstreams.default]\nmode = \"{mode}\"");
        assert!(config(&alone).without_effect().is_empty(), "{mode}");
    };
    check("full", &[]);
    check("learn", &["references", "referrers"]);
    check("pass", &["references", "referrers", "manifests"]);
}
