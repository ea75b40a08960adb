//! `login` and `logout`, and copies between two ends as two users.

use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::credentials::layout;
use super::{Ended, Scene, Shell, read};
use crate::support::{Content, Refshim, Registry, Rules, USER};

const CONFIG: &str = ".docker/config.json";

fn log_in(shell: &Shell, host: &str, password: &str) -> Ended {
    let command = ["login", host, "--username", USER.0, "--password-stdin"];
    shell.run_with_input(&command, format!("{password}\n").as_bytes())
}

fn encoded() -> String {
    STANDARD.encode(format!("{}:{}", USER.0, USER.1))
}

fn config(shell: &Shell, file: &str) -> Value {
    serde_json::from_slice(&read(shell.path(file))).unwrap()
}

#[tokio::test]
async fn a_login_is_checked_kept_and_forgotten() {
    let (registry, data) = (Registry::with_user(), tempfile::tempdir().unwrap());
    let refshim = Refshim::start(registry.address, data.path()).await;
    let host = refshim.address.to_string();
    let shell = Shell::new();
    layout(&shell);
    let to = format!("{host}/a:v1");
    let copy = || shell.run(&["copy", "oci:layout:v1", &to]);
    copy().failed(4, &["401", "refshim login"]);

    log_in(&shell, &host, "wrong").failed(4, &["logging in at", &host, "401"]);
    assert!(!shell.path(CONFIG).exists(), "nothing is kept that is not right");
    let done = log_in(&shell, &host, USER.1);
    assert!(done.err.contains(CONFIG) && !done.err.contains(USER.1), "{}", done.err);
    assert_eq!(done.ok(), "");
    assert_eq!(config(&shell, CONFIG), json!({"auths": {host.as_str(): {"auth": encoded()}}}));
    let mode = |name: &str| std::fs::metadata(shell.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(CONFIG), mode(".docker")), (0o600, 0o700));
    copy().ok();

    shell.ok(&["logout", &host]);
    assert_eq!(config(&shell, CONFIG), json!({"auths": {}}));
    copy().failed(4, &["401"]);
    shell.run(&["logout", &host]).failed(3, &["there is no login for it"]);
}

#[test]
fn what_the_files_have_besides_stays_and_a_newer_login_is_the_one_that_is_found() {
    let registry = Registry::with_user();
    let host = registry.address.to_string();
    let shell = Shell::new();
    let old = STANDARD.encode("alice:old");
    let podman = ".config/containers/auth.json";
    let other = json!({"auth": STANDARD.encode("a:b")});
    shell.write(podman, json!({"auths": {host.as_str(): {"auth": old}, "quay.io/team": other}}).to_string());
    shell.write(CONFIG, json!({"HttpHeaders": {"x": "y"}, "auths": {"other.example": other}}).to_string());
    log_in(&shell, &host, USER.1).ok();
    // There, and not in docker's file: the old one would be found before it.
    assert_eq!(
        config(&shell, podman),
        json!({"auths": {"quay.io/team": other, host.as_str(): {"auth": encoded()}}})
    );
    layout(&shell);
    shell.ok(&["copy", "oci:layout:v1", &format!("{host}/a:v1")]);

    let both = format!("https://{host}/v2/");
    shell.write(CONFIG, json!({"HttpHeaders": {"x": "y"}, "auths": {both: other}, "z": [1]}).to_string());
    let told = shell.json(&["logout", &host, "--json"]);
    assert_eq!(told.as_array().unwrap().len(), 2, "{told}");
    assert_eq!(config(&shell, podman), json!({"auths": {"quay.io/team": other}}));
    assert_eq!(config(&shell, CONFIG), json!({"HttpHeaders": {"x": "y"}, "auths": {}, "z": [1]}));

    let elsewhere = Shell::new().with("REGISTRY_AUTH_FILE", "mine.json");
    log_in(&elsewhere, &host, USER.1).ok();
    assert_eq!(config(&elsewhere, "mine.json")["auths"][&host]["auth"], encoded());

    // A file that is kept somewhere else is written there.
    let linked = Shell::new();
    linked.write("real/config.json", "{}");
    std::fs::create_dir(linked.path(".docker")).unwrap();
    std::os::unix::fs::symlink(linked.path("real/config.json"), linked.path(CONFIG)).unwrap();
    log_in(&linked, &host, USER.1).ok();
    assert!(linked.path(CONFIG).is_symlink());
    assert_eq!(config(&linked, "real/config.json")["auths"][&host]["auth"], encoded());

    for malformed in ["{", "[]", r#"{"auths": 1}"#, r#"{"credsStore": {}}"#] {
        let broken = Shell::new();
        broken.write(CONFIG, malformed);
        log_in(&broken, &host, USER.1).failed(1, &["config.json"]);
        assert_eq!(read(broken.path(CONFIG)), malformed.as_bytes(), "nothing is lost");
    }
}

#[test]
fn a_credential_helper_keeps_the_password_where_there_is_one() {
    let registry = Registry::with_user();
    let host = registry.address.to_string();
    let helper = "#!/bin/sh\ncase $1 in store) cat > kept;; get) grep -q \"$(cat)\" kept && cat kept;; \
                  erase) rm kept;; esac\n";
    for config_before in [json!({"credHelpers": {host.as_str(): "test"}}), json!({"credsStore": "test"})] {
        let shell = Shell::new();
        let program = shell.write("bin/docker-credential-test", helper);
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", shell.path("bin").display(), std::env::var("PATH").unwrap());
        let shell = shell.with("PATH", &path);
        shell.write(CONFIG, config_before.to_string());
        assert_eq!(log_in(&shell, &host, USER.1).code, 0);
        let kept: Value = serde_json::from_slice(&read(shell.path("kept"))).unwrap();
        assert_eq!(kept, json!({"ServerURL": host, "Username": USER.0, "Secret": USER.1}));
        assert_eq!(config(&shell, CONFIG)["auths"], json!({host.as_str(): {}}));
        layout(&shell);
        shell.ok(&["copy", "oci:layout:v1", &format!("{host}/a:v1")]);
        shell.ok(&["logout", &host]);
        assert!(!shell.path("kept").exists());
        assert_eq!(config(&shell, CONFIG)["auths"], json!({}));
        shell.run(&["logout", &host]).failed(3, &["there is no login for it"]);
        // Of one that somebody gave to the helper, the file says nothing.
        let secret = json!({"ServerURL": host, "Username": USER.0, "Secret": USER.1});
        shell.write("kept", secret.to_string());
        assert_eq!(shell.json(&["logout", &host, "--json"])[0]["helper"], "test");
        assert!(!shell.path("kept").exists());
    }
    let shell = Shell::new();
    shell.write(CONFIG, r#"{"credsStore": "missing"}"#);
    log_in(&shell, &host, USER.1).failed(3, &["docker-credential-missing", "installed"]);
}

#[tokio::test]
async fn a_token_service_is_asked_for_no_right() {
    let service = Rules::default().user(USER.0, USER.1).grant(USER.0, "repository:a", "pull,push").start();
    let registry = Registry::variant().tokens_of(&service).start();
    let host = registry.address.to_string();
    let shell = Shell::new();
    log_in(&shell, &host, "wrong").failed(4, &["401"]);
    log_in(&shell, &host, USER.1).ok();
    assert!(service.requests().iter().all(|request| request.scopes.iter().all(String::is_empty)));
    layout(&shell);
    shell.ok(&["copy", "oci:layout:v1", &format!("{host}/a:v1")]);
}

#[tokio::test]
async fn a_registry_that_asks_nobody_is_warned_of() {
    let scene = Scene::new().await;
    let host = scene.refshim.address.to_string();
    let done = log_in(&scene.shell, &host, "x");
    assert!(done.code == 0 && done.err.contains("unchecked"), "{done:?}");
    let command = ["login", &host, "--username", "a", "--password-stdin", "--json"];
    let done = scene.shell.run_with_input(&command, b"x");
    let warning: Value = serde_json::from_str(&done.err).unwrap();
    assert!(warning["warning"].as_str().unwrap().contains("unchecked"));
    let told: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(told["registry"], host);

    scene.shell.run(&["login", &host]).failed(2, &["no terminal", "--password-stdin"]);
    scene.shell.run(&["login", &host, "--username", "a"]).failed(2, &["--password-stdin"]);
    for registry in ["https://registry.example", "registry.example/a", "a@b", ""] {
        scene.shell.run(&["login", registry]).failed(2, &["a registry is host or host:port"]);
    }
}

#[tokio::test]
async fn a_copy_is_somebody_at_each_end() {
    let rules = Rules::default()
        .user("reader", "r")
        .user("writer", "w")
        .grant("reader", "repository:a", "pull")
        .grant("writer", "repository:b", "pull,push")
        .user("owner", "o")
        .grant("owner", "repository:a", "pull,push");
    let service = rules.start();
    let registry = Registry::variant().tokens_of(&service).start();
    let host = registry.address.to_string();
    let (a, b) = (format!("{host}/a:v1"), format!("{host}/b:v1"));
    let shell = Shell::new();
    for (name, password) in [("reader", "r"), ("writer", "w"), ("owner", "o")] {
        shell.write(name, password);
    }
    layout(&shell);
    shell.ok(&["copy", "oci:layout:v1", &a, "--to-username", "owner", "--to-password-file", "owner"]);
    let from = ["--from-username", "reader", "--from-password-file", "reader"];
    let to = ["--to-username", "writer", "--to-password-file", "writer"];
    let copy = |logins: &[&str]| shell.run(&[&["copy", &a, &b], logins].concat());
    copy(&from).failed(4, &["/b"]);
    copy(&to).failed(4, &["/a"]);
    copy(&[from, to].concat()).ok();
    // Stored ones are used where none is given.
    let auth = STANDARD.encode("writer:w");
    shell.write(CONFIG, json!({"auths": {host.as_str(): {"auth": auth}}}).to_string());
    let image = Content::image("{}", "x");
    assert_eq!(copy(&from).ok(), image.digest);

    copy(&["--from-username", "reader"]).failed(2, &["--from-password-file"]);
    copy(&["--from-username", "reader", "--from-password-file", "none"]).failed(2, &["none"]);
    let layout_login = ["copy", "oci:layout:v1", &b, from[0], from[1], from[2], from[3]];
    shell.run(&layout_login).failed(2, &["oci:layout", "takes no login"]);
    copy(&["--username", "a", "--password-stdin", to[0], to[1], to[2], to[3]]).failed(2, &["--to-username"]);
}
