//! Several hosts of one database, of which one takes writes.
//!
//! tokio-postgres tries one after the other, but with a limit for the TCP connection alone: a machine that is gone, or a
//! server that hangs while its kernel still accepts, would take the time that the next one needs. So each is connected
//! to by itself, within its part of the time, and first the one that was right the last time.

use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// The configuration of each host by itself.
pub(super) fn each(config: &Config) -> Vec<Config> {
    let ports = config.get_ports();
    let of_host = |(place, host): (usize, &Host)| {
        let mut one = common(config);
        match host {
            Host::Tcp(name) => one.host(name),
            Host::Unix(path) => one.host_path(path),
        };
        // One port is that of all hosts.
        if let Some(port) = ports.get(place).or(ports.first()) {
            one.port(*port);
        }
        one
    };
    config.get_hosts().iter().enumerate().map(of_host).collect()
}

/// Everything but the hosts.
fn common(config: &Config) -> Config {
    let mut one = Config::new();
    if let Some(user) = config.get_user() {
        one.user(user);
    }
    if let Some(password) = config.get_password() {
        one.password(password);
    }
    if let Some(name) = config.get_dbname() {
        one.dbname(name);
    }
    if let Some(name) = config.get_application_name() {
        one.application_name(name);
    }
    if let Some(limit) = config.get_tcp_user_timeout() {
        one.tcp_user_timeout(*limit);
    }
    if let Some(interval) = config.get_keepalives_interval() {
        one.keepalives_interval(interval);
    }
    if let Some(retries) = config.get_keepalives_retries() {
        one.keepalives_retries(retries);
    }
    one.keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle())
        .ssl_mode(config.get_ssl_mode())
        .target_session_attrs(config.get_target_session_attrs());
    one
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ports of the hosts in this URL; all else is as in the whole.
    #[track_caller]
    fn check(hosts: &str, expected: &[(&str, u16)]) {
        let text = format!(
            "postgres://user:secret@{hosts}/base?sslmode=disable&application_name=x&keepalives_idle=7"
        );
        let url: crate::config::DatabaseUrl = text.parse().unwrap();
        let all = each(url.config());
        let found: Vec<_> =
            all.iter().map(|one| (one.get_hosts().to_vec(), one.get_ports().to_vec())).collect();
        let expected: Vec<_> =
            expected.iter().map(|(host, port)| (vec![Host::Tcp((*host).to_owned())], vec![*port])).collect();
        assert_eq!(found, expected);
        for one in &all {
            // With the hosts of the whole, each is the whole.
            let mut whole = common(url.config());
            whole.host("h").port(1);
            let mut this = common(one);
            this.host("h").port(1);
            assert_eq!(this, whole);
            assert_eq!((one.get_password(), one.get_dbname()), (Some(&b"secret"[..]), Some("base")));
        }
    }

    #[test]
    fn each_host_has_its_port_and_all_else_of_the_whole() {
        check("a", &[("a", 5432)]);
        check("a:1,b:2", &[("a", 1), ("b", 2)]);
        check("a,b:2,c", &[("a", 5432), ("b", 2), ("c", 5432)]);
    }
}
