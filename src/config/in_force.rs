//! The settings in force: each value, and where it comes from. `config show` prints them, and a reload compares them
//! with those before.

use std::fmt::{self, Write as _};

use serde_json::{Map, Value as Json, json};
use toml::Value;

use super::Config;
use super::draft::Draft;
use super::settings::KnownSetting;
use super::tls_files::Places;

/// A configuration, and its settings one by one.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What they give together.
    pub config: Config,
    /// Each of them.
    pub settings: SettingsInForce,
}

/// Every setting that has a value. Displayed as a TOML file that gives the same configuration, but for secrets.
#[derive(Clone)]
pub struct SettingsInForce(Vec<SettingInForce>);

#[derive(Clone)]
struct SettingInForce {
    /// `upstreams.hub.connect`
    key: String,
    value: Value,
    /// The value without its secrets.
    masked: Value,
    source: ValueSource,
    is_live: bool,
}

/// Where a value comes from.
#[derive(Clone, PartialEq, Eq)]
enum ValueSource {
    /// A file with its line, a variable or a flag.
    Stated(String),
    Default,
    /// An upstream has the common value of this key.
    Common(String),
}

/// What differs between two configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The keys of settings that a reload changes.
    pub live: Vec<String>,
    /// The keys of settings that a restart changes.
    pub fixed: Vec<String>,
}

impl SettingsInForce {
    pub(super) fn of(draft: &mut Draft, places: &Places) -> Self {
        let mut all: Vec<SettingInForce> = Vec::new();
        for setting in KnownSetting::all(draft) {
            let key = setting.key();
            let (mut value, mut source) = (setting.value(draft), stated(places, &key));
            if let (None, KnownSetting::OfUpstream(_, own)) = (&value, &setting) {
                let common = format!("timeouts.{}", own.key);
                value = KnownSetting::with_key(&common).and_then(|common| common.value(draft));
                source = ValueSource::Common(common);
            }
            if let Some((value, masked)) = value {
                all.push(SettingInForce { key, value, masked, source, is_live: setting.is_live() });
            }
        }
        Self(all)
    }

    /// What is different in `new`. Of an upstream that is new or gone, only what was said of it; what follows a common
    /// setting is told with that.
    #[must_use]
    pub fn changes(&self, new: &Self) -> Changes {
        let mut changes = Changes::default();
        for key in new.0.iter().chain(&self.0).map(|it| it.key.as_str()) {
            let different = match (self.find(key), new.find(key)) {
                (Some(before), Some(after)) => {
                    let follow = [before, after].iter().all(|it| matches!(it.source, ValueSource::Common(_)));
                    (before.value != after.value && !follow).then_some(after)
                }
                (Some(one), None) | (None, Some(one)) => Some(one).filter(|it| it.is_stated()),
                (None, None) => None,
            };
            let Some(setting) = different else { continue };
            let keys = if setting.is_live { &mut changes.live } else { &mut changes.fixed };
            if !keys.contains(&setting.key) {
                keys.push(setting.key.clone());
            }
        }
        changes
    }

    fn find(&self, key: &str) -> Option<&SettingInForce> {
        self.0.iter().find(|it| it.key == key)
    }

    /// Each setting by its key, with value, source, and whether a change takes a restart.
    #[must_use]
    pub fn to_json(&self) -> Json {
        let shown = self.0.iter().map(|it| {
            let value = json!({
                "value": it.masked,
                "source": it.source.to_string(),
                "restart": !it.is_live,
            });
            (it.key.clone(), value)
        });
        Json::Object(shown.collect::<Map<_, _>>())
    }

    #[cfg(test)]
    pub(super) fn with_secrets(&self) -> String {
        let bare = |it: &SettingInForce| SettingInForce { masked: it.value.clone(), ..it.clone() };
        Self(self.0.iter().map(bare).collect()).to_string()
    }
}

impl fmt::Display for SettingsInForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut table, mut text) = ("", String::new());
        for setting in &self.0 {
            let (of, key) = setting.table_and_key();
            if of != table {
                write!(text, "\n[{of}]\n")?;
                table = of;
            }
            write!(text, "{key} = {}  # {}", setting.masked, setting.source)?;
            text.push_str(if setting.masked == setting.value {
                "\n"
            } else {
                "; its password is not shown\n"
            });
        }
        f.write_str(&text)
    }
}

/// Without the values: they may be secret.
impl fmt::Debug for SettingsInForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|it| &it.key)).finish()
    }
}

impl SettingInForce {
    fn is_stated(&self) -> bool {
        matches!(self.source, ValueSource::Stated(_))
    }

    /// The table of the file that it stands in, and its key there. In the table of an upstream the keys have dots,
    /// since a table of its own for some of them would end the other's.
    fn table_and_key(&self) -> (&str, &str) {
        let names = if self.key.starts_with("upstreams.") { 2 } else { self.key.matches('.').count() };
        let dot = |number: usize| self.key.match_indices('.').nth(number).map(|(at, _)| at);
        let end = names.checked_sub(1).and_then(dot);
        end.and_then(|end| Some((self.key.get(..end)?, self.key.get(end + 1..)?))).unwrap_or(("", &self.key))
    }
}

impl fmt::Display for ValueSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stated(place) => f.write_str(place),
            Self::Default => f.write_str("default"),
            Self::Common(key) => write!(f, "as {key}"),
        }
    }
}

/// The source without the key, which stands behind a file's line.
fn stated(places: &Places, key: &str) -> ValueSource {
    let place =
        places.get(key).map(|place| place.rsplit_once(": ").map_or(place.as_str(), |(place, _)| place));
    // It is shown in a comment, which a line break in the file's name would end.
    let on_one_line = |place: &str| place.replace(char::is_control, "\u{fffd}");
    place.map_or(ValueSource::Default, |place| ValueSource::Stated(on_one_line(place)))
}
