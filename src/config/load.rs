//! Loads the configuration: the file, overridden by the variables, overridden by the flags. An unknown key or variable
//! is a mistake, not ignored: a misspelt limit would otherwise have no effect without anybody noticing.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::database::DatabaseDraft;
use super::database_url::DatabaseUrl;
use super::draft::Draft;
use super::file::{self, Contents};
use super::in_force::{Loaded, SettingsInForce};
use super::mistake::{Mistake, Mistakes};
use super::settings::{KnownSetting, SETTINGS, Setting};
use super::tls_files::{Places, TlsChecks};
use super::{Config, DatabaseConfig, IndexConfig};

const PREFIX: &str = "REFSHIM_";
const FILE_VARIABLE: &str = "REFSHIM_CONFIG";
const FILE_FLAG: &str = "--config";

/// The settings on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// `--upstream`
    pub upstream: Option<String>,
    /// `--listen`
    pub listen: Option<String>,
    /// `--admin-listen`
    pub admin_listen: Option<String>,
    /// `--data-dir`
    pub data_dir: Option<String>,
    /// `--config`, the TOML file; `-` for standard input.
    pub config: Option<PathBuf>,
    /// `--url`, the database of the index (`index.url`). A password in it takes the place of `index.password_file`.
    pub index_url: Option<String>,
}

impl CommandLine {
    /// The TOML file: `--config`, or what `REFSHIM_CONFIG` names.
    #[must_use]
    pub fn file(&self) -> Option<PathBuf> {
        self.config.clone().or_else(|| std::env::var_os(FILE_VARIABLE).map(PathBuf::from))
    }
}

/// Where a configuration is loaded from, as often as it is asked for.
#[derive(Clone, Debug)]
pub struct ConfigSources {
    /// The flags.
    pub given: CommandLine,
    /// How the files that the settings name are checked.
    pub tls: TlsChecks,
}

impl ConfigSources {
    /// Loads the configuration from the flags, the environment and the file that one of them names, with the files
    /// that it names checked as well. Blocks on the disk.
    pub fn load(&self) -> Result<Loaded, Mistakes> {
        Config::load_with(&self.given, std::env::vars_os(), Some(&self.tls))
    }
}

/// Where the index is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexPlace {
    /// In a data directory.
    Directory(PathBuf),
    /// In a database.
    Database(Box<DatabaseConfig>),
}

/// A setting as one source states it.
#[derive(Debug)]
pub(super) struct StatedValue {
    /// Its place in mistakes: a file with line and key, a variable or a flag.
    pub(super) place: String,
    pub(super) setting: KnownSetting,
    pub(super) text: String,
}

impl Config {
    /// Loads the configuration from the command line, the environment (`std::env::vars_os`), the file that one of
    /// them names, and the defaults. Overridden values are checked too. Files that it names are not opened.
    pub fn load(
        given: &CommandLine,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Mistakes> {
        Ok(Self::load_with(given, variables, None)?.config)
    }

    /// [`Config::load`], which also loads the files that it names (TLS, credentials) and reports their mistakes with
    /// the rest.
    pub fn load_and_check(
        given: &CommandLine,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        tls: &TlsChecks,
    ) -> Result<Self, Mistakes> {
        Ok(Self::load_with(given, variables, Some(tls))?.config)
    }

    pub(super) fn load_with(
        given: &CommandLine,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        tls: Option<&TlsChecks>,
    ) -> Result<Loaded, Mistakes> {
        let Contents { mut said, is_whole } = all_said(given, variables);
        let upstream_is_said = said.iter().flatten().any(|said| said.setting.is_upstream());
        if is_whole && !upstream_is_said {
            said.push(Err(no_upstream()));
        }
        settle(said, tls)
    }

    /// Where the index is: the database that `--url` or `index.url` names, unless `--data-dir` is said; else
    /// `data_dir`. All but the settings of the database may be missing or inconsistent.
    pub fn index_place(
        given: &CommandLine,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        tls: &TlsChecks,
    ) -> Result<IndexPlace, Mistakes> {
        let (mut draft, mut places) = (Draft::default(), Places::new());
        let said = all_said(given, variables).said;
        let mut mistakes = put_all(said, &mut draft, &mut places);
        if given.data_dir.is_some() {
            draft.database = DatabaseDraft::default();
        }
        if given.index_url.is_some() && draft.database.url.as_ref().is_some_and(DatabaseUrl::has_password) {
            draft.database.password_file = None;
        }
        if mistakes.is_empty() {
            mistakes.extend(draft.database_mistakes(tls, &places));
        }
        let problem = |key, problem| mistakes.push(Mistake::new(key, problem));
        let database = draft.database.finish(&IndexConfig::default(), problem);
        if !mistakes.is_empty() {
            return Err(Mistakes::new(mistakes));
        }
        let in_directory = IndexPlace::Directory(draft.data_dir);
        Ok(database.map_or(in_directory, |database| IndexPlace::Database(Box::new(database))))
    }
}

fn all_said(given: &CommandLine, variables: impl IntoIterator<Item = (OsString, OsString)>) -> Contents {
    let variables = ours(variables);
    let Contents { mut said, is_whole } = match file_named(given, &variables) {
        Some((place, path)) => said_by_file(place, &path),
        None => Contents { said: Vec::new(), is_whole: true },
    };
    said.extend(variables.iter().filter_map(|(name, value)| said_by_variable(name, value)));
    said.extend(said_by_flags(given).map(Ok));
    Contents { said, is_whole }
}

fn put_all(said: Vec<Result<StatedValue, Mistake>>, draft: &mut Draft, places: &mut Places) -> Vec<Mistake> {
    let mut put = |said: StatedValue| {
        let (key, place, is_upstream) = (said.setting.key(), said.place.clone(), said.setting.is_upstream());
        said.put_into(draft)?;
        if is_upstream {
            // It has two keys, and the last one stated counts.
            places.insert("upstream".to_owned(), place.clone());
        }
        places.insert(key, place);
        Ok(())
    };
    said.into_iter().filter_map(|said| said.and_then(&mut put).err()).collect()
}

pub(super) fn settle(
    said: Vec<Result<StatedValue, Mistake>>,
    tls: Option<&TlsChecks>,
) -> Result<Loaded, Mistakes> {
    let (mut draft, mut places) = (Draft::default(), Places::new());
    let mut mistakes = put_all(said, &mut draft, &mut places);
    let of_files = tls.map_or_else(Vec::new, |tls| draft.file_mistakes(tls, &places));
    let settings = SettingsInForce::of(&mut draft, &places);
    match draft.finish() {
        Ok(config) if mistakes.is_empty() && of_files.is_empty() => return Ok(Loaded { config, settings }),
        // `finish` without mistakes of its own fails only for want of an upstream, which is a mistake already.
        Err(unfit) if mistakes.is_empty() => mistakes.extend(unfit),
        // Inconsistencies may follow from the mistakes in single settings, so they are not reported with those.
        Ok(_) | Err(_) => {}
    }
    mistakes.extend(of_files);
    Err(Mistakes::new(mistakes))
}

impl StatedValue {
    fn put_into(self, draft: &mut Draft) -> Result<(), Mistake> {
        self.setting.put(draft, &self.text).map_err(|invalid| Mistake::new(self.place, invalid))
    }
}

fn no_upstream() -> Mistake {
    Mistake::new(
        "upstream",
        "not given (write --upstream https://registry.example, \
         REFSHIM_UPSTREAM=https://registry.example or, in the file that --config names, \
         upstream = \"https://registry.example\")",
    )
}

/// The `REFSHIM_` variables, by name.
fn ours(variables: impl IntoIterator<Item = (OsString, OsString)>) -> BTreeMap<String, OsString> {
    let named = variables.into_iter().map(|(name, value)| (name.to_string_lossy().into_owned(), value));
    named.filter(|(name, _)| name.starts_with(PREFIX)).collect()
}

/// The file, and the flag or variable that names it.
fn file_named(
    given: &CommandLine,
    variables: &BTreeMap<String, OsString>,
) -> Option<(&'static str, PathBuf)> {
    let by_flag = given.config.clone().map(|path| (FILE_FLAG, path));
    by_flag.or_else(|| variables.get(FILE_VARIABLE).map(|path| (FILE_VARIABLE, path.into())))
}

fn said_by_file(place: &str, path: &Path) -> Contents {
    let (shown, text) = if path == Path::new("-") {
        let mut text = String::new();
        (Path::new("standard input"), io::stdin().read_to_string(&mut text).map(|_| text))
    } else {
        (path, fs::read_to_string(path))
    };
    match text {
        Ok(text) => file::read(shown, &text),
        Err(error) => {
            let mistake = Mistake::new(place, format!("cannot read \"{}\": {error}", path.display()));
            Contents { said: vec![Err(mistake)], is_whole: false }
        }
    }
}

fn said_by_variable(name: &str, value: &OsStr) -> Option<Result<StatedValue, Mistake>> {
    match (KnownSetting::with_variable(name), value.to_str()) {
        (Some(setting), Some(text)) => {
            Some(Ok(StatedValue { place: name.to_owned(), setting, text: text.to_owned() }))
        }
        (Some(_), None) => Some(Err(Mistake::new(name, format!("not UTF-8: \"{}\"", value.display())))),
        (None, _) if name == FILE_VARIABLE || is_set_by_kubernetes(name) => None,
        (None, _) => Some(Err(unknown_variable(name))),
    }
}

fn unknown_variable(name: &str) -> Mistake {
    let known = SETTINGS.iter().map(Setting::variable).chain([FILE_VARIABLE.to_owned()]);
    Mistake::unknown(name, "variable", name, known)
}

/// For a Service named `refshim` or `refshim-…`, Kubernetes sets `REFSHIM_SERVICE_HOST`,
/// `REFSHIM_SERVICE_PORT_HTTP`, `REFSHIM_PORT_5000_TCP_ADDR` and the like in every container of the
/// namespace. They are not mistakes of the operator's.
fn is_set_by_kubernetes(name: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.contains("_PORT_")
}

fn said_by_flags(given: &CommandLine) -> impl Iterator<Item = StatedValue> {
    let flags = [
        ("--upstream", "upstream", given.upstream.as_ref()),
        ("--listen", "listen", given.listen.as_ref()),
        ("--admin-listen", "admin_listen", given.admin_listen.as_ref()),
        ("--data-dir", "data_dir", given.data_dir.as_ref()),
        ("--url", "index.url", given.index_url.as_ref()),
    ];
    flags.into_iter().filter_map(|(flag, key, text)| {
        Some(StatedValue {
            place: flag.to_owned(),
            setting: KnownSetting::with_key(key)?,
            text: text?.clone(),
        })
    })
}
