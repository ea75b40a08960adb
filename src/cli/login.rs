//! `refshim login` and `refshim logout`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::connection::{Connection, Output};
use super::output::{print_json, tell, warn};
use super::terminal;
use crate::client::{Client, Credential, Error, ErrorKind, KeptLogin, Result, forget_login, keep_login};

/// Logs in at a registry: checks a name and password there, and keeps them for later commands.
///
/// They are kept where docker, podman, oras and cosign find them too: where a login for the registry already is, else in
/// the file named by `REGISTRY_AUTH_FILE`, else in ~/.docker/config.json or with the credential helper that it names.
/// Without --username and --password-stdin they are asked for, on a terminal.
#[derive(Debug, Args)]
pub(super) struct Login {
    /// host or host:port; docker.io is Docker Hub.
    #[arg(value_parser = host)]
    registry: String,
    #[command(flatten)]
    connection: Connection,
}

/// Forgets the login for a registry, wherever it is kept.
#[derive(Debug, Args)]
pub(super) struct Logout {
    /// host or host:port, as it was logged in to.
    #[arg(value_parser = host)]
    registry: String,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Told<'a> {
    registry: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    helper: Option<String>,
}

fn host(text: &str) -> std::result::Result<String, &'static str> {
    let is_bare = !text.is_empty() && !text.contains(['/', '@', ' ']) && !text.contains(char::is_control);
    if is_bare { Ok(text.to_owned()) } else { Err("a registry is host or host:port") }
}

impl Login {
    pub(super) async fn run(self) -> Result<()> {
        let host = &self.registry;
        let credential = match self.connection.credential()? {
            Some(credential) => credential,
            None => asked_for(host)?,
        };
        let options = self.connection.options_with(Some((host.clone(), credential.clone())))?;
        let is_checked = Client::new(options).log_in(host).await?;
        let kept = keep_login(host, &credential)?;
        if !is_checked {
            let warning = format!("{host} did not ask who this is, so the password is kept unchecked");
            warn(&warning, self.connection.output.errors());
        }
        self.connection.tell(&match &kept {
            KeptLogin::File(file) => format!(
                "logged in to {host}; the password is in {}, not encrypted (a credential helper would: credsStore)",
                file.display()
            ),
            KeptLogin::Helper(helper) => format!("logged in to {host}; docker-credential-{helper} has the password"),
        });
        if self.connection.output.json { print_json(&told(host, kept)) } else { Ok(()) }
    }
}

impl Logout {
    pub(super) fn run(&self) -> Result<()> {
        let host = &self.registry;
        let forgotten = forget_login(host)?;
        if forgotten.is_empty() {
            let asked = format!("logging out of {host}");
            return Err(Error::new(ErrorKind::NotFound, asked, "there is no login for it"));
        }
        if self.output.json {
            return print_json(&forgotten.into_iter().map(|kept| told(host, kept)).collect::<Vec<_>>());
        }
        if self.output.tells() {
            tell(&format!("logged out of {host}"));
        }
        Ok(())
    }
}

fn told(registry: &str, kept: KeptLogin) -> Told<'_> {
    let (file, helper) = match kept {
        KeptLogin::File(file) => (Some(file), None),
        KeptLogin::Helper(helper) => (None, Some(helper)),
    };
    Told { registry, file, helper }
}

/// Asks on the terminal.
fn asked_for(host: &str) -> Result<Credential> {
    let asked = || format!("logging in to {host}");
    if !terminal::is_there() {
        let answer = "there is no terminal to ask on";
        return Err(
            Error::new(ErrorKind::Usage, asked(), answer).advise("give --username NAME --password-stdin")
        );
    }
    let typed = terminal::line(&format!("User name for {host}: "))
        .and_then(|username| Ok((username, terminal::secret("Password: ")?)));
    let (username, password) = typed.map_err(|error| Error::io(asked(), &error))?;
    if username.is_empty() || password.is_empty() {
        return Err(Error::new(ErrorKind::Usage, asked(), "nothing was typed"));
    }
    Ok(Credential::Password { username, password })
}
