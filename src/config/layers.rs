//! The layers that settings come from, each over the one before: defaults, a TOML file, the
//! environment, flags. What is in force, and where each value came from.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider, Source};
use toml::Spanned;

use crate::key::{KEYS, Key};
use crate::topic::TopicSettings;

/// What begins a variable of ours.
const PREFIX: &str = "QUORATE_";
/// Variables that other commands read, and the compose file.
const OTHER_VARIABLES: [&str; 9] = [
    "QUORATE_BOOTSTRAP",
    "QUORATE_OUTPUT",
    "QUORATE_CONFIG",
    "QUORATE_IMAGE",
    "QUORATE_PUBLISH",
    "QUORATE_ADVERTISE_HOST",
    "QUORATE_PORT_1",
    "QUORATE_PORT_2",
    "QUORATE_PORT_3",
];

/// A setting that stops the start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct ConfigError {
    /// Where it stands: a file and line, a variable, a flag.
    pub place: String,
    /// What is wrong, with the setting's name.
    pub what: String,
    /// What would help.
    pub hint: Option<String>,
}

impl ConfigError {
    fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            what: what.into(),
            hint: None,
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A value that `name` cannot have.
    pub(crate) fn value(place: &str, name: &str, value: &str, why: &str) -> Self {
        let hint = Key::find(name).map(|key| key.help.to_owned());
        Self {
            place: place.to_owned(),
            what: format!("{name} = {value:?}: {why}"),
            hint,
        }
    }
}

/// A value in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The value, as it would be written in a file.
    pub value: String,
    /// Where it came from: `default`, a file and line, a variable, a flag.
    pub source: String,
}

/// Settings in the making: later layers win.
#[derive(Debug, Clone)]
pub struct Layers {
    figment: Figment,
    topic: BTreeMap<String, Setting>,
}

/// Every setting in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// A node's settings by name.
    pub node: BTreeMap<&'static str, Setting>,
    /// Settings of new topics by Kafka's names, where the file has any.
    pub topic: BTreeMap<String, Setting>,
}

/// One value with its place.
struct One {
    name: String,
    value: String,
    place: String,
}

impl Provider for One {
    fn metadata(&self) -> Metadata {
        Metadata::from("setting", Source::Custom(self.place.clone()))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let value = Value::from(self.value.clone());
        let dict = Dict::from([(self.name.clone(), value)]);
        Ok(Map::from([(Profile::Default, dict)]))
    }
}

impl Default for Layers {
    /// The defaults.
    fn default() -> Self {
        let mut figment = Figment::new();
        for key in &KEYS {
            if let Some(default) = key.default {
                figment = figment.merge(One {
                    name: key.name.to_owned(),
                    value: default.to_owned(),
                    place: "default".to_owned(),
                });
            }
        }
        Self {
            figment,
            topic: BTreeMap::new(),
        }
    }
}

impl Layers {
    fn set(mut self, name: &str, value: &str, place: String) -> Result<Self, ConfigError> {
        let Some(key) = Key::find(name) else {
            let unknown = ConfigError::new(place, format!("{name}: unknown setting"));
            return Err(unknown.hint(nearest(name)));
        };
        let value = key
            .check(value)
            .map_err(|why| ConfigError::value(&place, name, value, &why))?;
        self.figment = self.figment.merge(One {
            name: name.to_owned(),
            value,
            place,
        });
        Ok(self)
    }

    /// Adds a TOML file.
    ///
    /// # Errors
    /// [`ConfigError`] with the line, for a file that cannot be read, an unknown name, a bad value.
    pub fn file(self, path: &Path) -> Result<Self, ConfigError> {
        let place = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::new(&place, format!("cannot be read: {error}")))?;
        self.toml(&place, &text)
    }

    fn toml(mut self, file: &str, text: &str) -> Result<Self, ConfigError> {
        type Table = BTreeMap<Spanned<String>, Spanned<toml::Value>>;
        let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
        let table: Table = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(1, |span| line(span.start));
            ConfigError::new(format!("{file}:{at}"), error.message().to_owned())
        })?;
        for (name, value) in table {
            let place = format!("{file}:{}", line(name.span().start));
            let name = name.into_inner();
            let plain = plain(value.get_ref()).ok_or_else(|| {
                let what = format!("{name}: must be a text, a number or a list of texts");
                let hint = "a topic setting stands in quotes: \"segment.bytes\" = 1048576";
                ConfigError::new(&place, what).hint(hint)
            })?;
            if TopicSettings::KEYS.contains(&name.as_str()) {
                let one = BTreeMap::from([(name.clone(), plain.clone())]);
                TopicSettings::parse(&one)
                    .map_err(|invalid| ConfigError::new(&place, invalid.to_string()))?;
                let setting = Setting {
                    value: plain,
                    source: place,
                };
                self.topic.insert(name, setting);
            } else {
                self = self.set(&name, &plain, place)?;
            }
        }
        Ok(self)
    }

    /// Adds the environment: variables that begin with `QUORATE_`.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn environment(
        mut self,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        for (variable, value) in variables {
            let Some(variable) = variable.to_str().filter(|name| name.starts_with(PREFIX)) else {
                continue;
            };
            let rest = &variable[PREFIX.len()..];
            if OTHER_VARIABLES.contains(&variable) || is_service_link(rest, &value) {
                continue;
            }
            let name = rest.to_lowercase().replace('_', "-");
            let place = format!("environment, {variable}");
            let value = value
                .to_str()
                .ok_or_else(|| ConfigError::new(&place, format!("{name}: is not UTF-8")))?;
            let topic = name.replace('-', ".");
            if TopicSettings::KEYS.contains(&topic.as_str()) {
                let what = format!("{topic}: a topic setting can stand only in the file");
                let hint = "or give it to one topic: `quorate topic create NAME --config …`";
                return Err(ConfigError::new(place, what).hint(hint));
            }
            self = self.set(&name, value, place)?;
        }
        Ok(self)
    }

    /// Adds flags, by the settings' names.
    ///
    /// # Errors
    /// [`ConfigError`] naming the flag.
    pub fn flags(
        mut self,
        flags: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<Self, ConfigError> {
        for (name, value) in flags {
            self = self.set(name, &value, format!("flag --{name}"))?;
        }
        Ok(self)
    }

    /// What is in force.
    pub fn resolve(&self) -> Resolved {
        let mut node = BTreeMap::new();
        for key in &KEYS {
            let Ok(value) = self.figment.find_value(key.name) else {
                continue;
            };
            let source = self.figment.get_metadata(value.tag());
            let source = match source.and_then(|metadata| metadata.source.as_ref()) {
                Some(Source::Custom(place)) => place.clone(),
                _ => "default".to_owned(),
            };
            let value = value.into_string().unwrap_or_default();
            node.insert(key.name, Setting { value, source });
        }
        Resolved {
            node,
            topic: self.topic.clone(),
        }
    }
}

/// A value as a flag would have it.
fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(yes) => Some(yes.to_string()),
        toml::Value::Array(items) => {
            let items: Option<Vec<String>> = items.iter().map(plain).collect();
            items.map(|items| items.join(","))
        }
        _ => None,
    }
}

/// What Kubernetes sets for each service of its namespace, some of which are named `quorate-…`: none
/// of ours. `rest` is what follows the prefix.
fn is_service_link(rest: &str, value: &OsStr) -> bool {
    let words: Vec<&str> = rest.split('_').collect();
    let is_link = |at: usize| match &words[at..] {
        ["SERVICE", "HOST"] | ["SERVICE", "PORT", ..] => true,
        ["PORT", port, "TCP" | "UDP" | "SCTP", ..] => port.parse::<u16>().is_ok(),
        // Only the value tells it from a setting's name, written wrongly.
        ["PORT"] => value.to_str().is_some_and(|value| value.contains("://")),
        _ => false,
    };
    (0..words.len()).any(is_link)
}

/// The known name that an unknown one is most like.
fn nearest(name: &str) -> String {
    let known = KEYS.iter().filter(|key| !key.hidden).map(|key| key.name);
    let known = known.chain(TopicSettings::KEYS);
    let like = |known: &&str| strsim::jaro_winkler(name, known);
    match known.max_by(|a, b| like(a).total_cmp(&like(b))) {
        Some(nearest) if like(&nearest) > 0.8 => format!("did you mean {nearest}?"),
        _ => "`quorate server --help` lists every setting".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(list: &[(&str, &str)]) -> impl Iterator<Item = (OsString, OsString)> {
        let owned: Vec<_> = list.iter().map(|(a, b)| (a.into(), b.into())).collect();
        owned.into_iter()
    }

    #[test]
    fn a_later_layer_wins_and_each_value_knows_its_source() {
        let text = "rack = \"a\"\nproduce-timeout = \"5s\"\n# more\nmax-requests = 9\n\
                    controllers = [\"1@a:1\", \"2@b:1\", \"3@c:1\"]\n\"segment.bytes\" = 4096\n";
        let resolved = Layers::default()
            .toml("q.toml", text)
            .and_then(|layers| {
                layers.environment(variables(&[
                    ("QUORATE_PRODUCE_TIMEOUT", "6s"),
                    ("QUORATE_MAX_REQUESTS", "10"),
                    ("QUORATE_BOOTSTRAP", "of another command"),
                    ("QUORATE_SERVICE_PORT_CLIENTS", "7070"),
                    ("QUORATE_PORT_7070_TCP_ADDR", "10.0.0.1"),
                    ("PATH", "/bin"),
                ]))
            })
            .and_then(|layers| layers.flags([("max-requests", "11".to_owned())]))
            .unwrap()
            .resolve();
        let of = |name: &str| {
            let setting = &resolved.node[name];
            (setting.value.as_str(), setting.source.as_str())
        };
        assert_eq!(of("rack"), ("a", "q.toml:1"));
        assert_eq!(of("controllers"), ("1@a:1,2@b:1,3@c:1", "q.toml:5"));
        assert_eq!(
            of("produce-timeout"),
            ("6s", "environment, QUORATE_PRODUCE_TIMEOUT")
        );
        assert_eq!(of("max-requests"), ("11", "flag --max-requests"));
        assert_eq!(of("heartbeat-interval"), ("500ms", "default"));
        assert!(!resolved.node.contains_key("node-id"));
        assert_eq!(resolved.topic["segment.bytes"].source, "q.toml:6");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place_and_a_hint() {
        let wrong = |text: &str| Layers::default().toml("q.toml", text).unwrap_err();
        let unknown = wrong("\nproduce-timout = \"5s\"");
        assert_eq!(
            unknown.to_string(),
            "q.toml:2: produce-timout: unknown setting"
        );
        assert_eq!(unknown.hint.unwrap(), "did you mean produce-timeout?");
        assert_eq!(
            wrong("produce-timeout = 5").to_string(),
            "q.toml:1: produce-timeout = \"5\": must be a whole number with a unit: 500ms, 3s, \
             2m, 1h"
        );
        let topic = wrong("segment.bytes = 4096");
        assert!(topic.hint.unwrap().contains("quotes"));
        assert_eq!(
            wrong("\"min.insync.replicas\" = 0").to_string(),
            "q.toml:1: min.insync.replicas=0: must be a number from 1 to 32"
        );
        assert!(
            wrong("rack = \"a\"\nrack = \"b\"")
                .place
                .starts_with("q.toml:")
        );
        let variable = variables(&[("QUORATE_MAX_CONECTIONS", "5")]);
        let unknown = Layers::default().environment(variable).unwrap_err();
        assert_eq!(unknown.place, "environment, QUORATE_MAX_CONECTIONS");
        assert_eq!(unknown.hint.unwrap(), "did you mean max-connections?");
        let variable = variables(&[("QUORATE_MIN_INSYNC_REPLICAS", "3")]);
        let elsewhere = Layers::default().environment(variable).unwrap_err();
        assert!(
            elsewhere.to_string().contains("only in the file"),
            "{elsewhere}"
        );
    }

    #[test]
    fn what_kubernetes_sets_for_services_is_no_setting() {
        let links = [
            ("QUORATE_PORT", "tcp://10.0.0.1:7070"),
            ("QUORATE_1_PORT", "udp://10.0.0.1:7070"),
            ("QUORATE_HEADLESS_SERVICE_HOST", "10.0.0.1"),
            ("QUORATE_HEADLESS_SERVICE_PORT", "7070"),
            ("QUORATE_HEADLESS_SERVICE_PORT_CLIENTS", "7070"),
            ("QUORATE_HEADLESS_PORT", "tcp://10.0.0.1:7070"),
            ("QUORATE_HEADLESS_PORT_7070_TCP", "tcp://10.0.0.1:7070"),
            ("QUORATE_HEADLESS_PORT_7070_TCP_ADDR", "10.0.0.1"),
        ];
        for (variable, value) in links {
            let read = Layers::default().environment(variables(&[(variable, value)]));
            assert!(read.is_ok(), "{variable}: {}", read.unwrap_err());
        }
        for variable in ["QUORATE_PORT", "QUORATE_LISTEN_PORT", "QUORATE_PORT_7070"] {
            let read = Layers::default().environment(variables(&[(variable, "7070")]));
            assert!(read.is_err(), "{variable} is taken for a link");
        }
    }
}
