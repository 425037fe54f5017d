//! The layers of a configuration, lowest first: defaults, the region's file, the node's file, `IRIS_` environment, flags.
//!
//! figment merges them and knows for each value which layer it came from; this module names that layer with the file's line,
//! the variable or the flag.

use std::collections::BTreeMap;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::error::{ConfigError, Place, Problem};
use super::ranges::range;
use super::source::{TomlText, is_secret, join, said, shorten};

/// The prefix of environment variables; `__` separates tables from keys: `IRIS_LIMITS__MAX_BODY`.
pub const ENV_PREFIX: &str = "IRIS_";

/// Variables with the prefix that are not settings: the log filter, and what stands for flags of commands (the node's file, the
/// folder of `iris dev`, a client's token, an operator's socket).
const ENV_OTHER: [&str; 5] = [
    "IRIS_LOG",
    "IRIS_CONFIG",
    "IRIS_DATA",
    "IRIS_TOKEN",
    "IRIS_ADMIN_SOCKET",
];
/// Variables of tests begin so; they are no settings either.
const ENV_TEST_PREFIX: &str = "IRIS_TEST_";

/// Whether a variable is taken for a setting of a node; one that is none is refused then.
pub fn is_setting(variable: &str) -> bool {
    variable.starts_with(ENV_PREFIX)
        && !variable.starts_with(ENV_TEST_PREFIX)
        && !ENV_OTHER.contains(&variable)
}

/// The layers so far.
#[derive(Clone)]
pub(super) struct Layers {
    figment: Figment,
    /// By the name of the layer, which figment carries as metadata.
    sources: BTreeMap<String, Source>,
    /// Why the region's file says nothing about this node; told where something is missing that it could have said.
    pub(super) hint: String,
}

#[derive(Clone)]
enum Source {
    Place(Place),
    Text(TomlText),
    /// A table of the region's file that stands for keys of the configuration.
    Keys(BTreeMap<String, Place>),
}

impl Layers {
    pub(super) fn new() -> Self {
        Self {
            figment: Figment::new(),
            sources: BTreeMap::new(),
            hint: String::new(),
        }
    }

    /// Adds a file above what is there.
    pub(super) fn file(&mut self, text: TomlText) -> Result<(), ConfigError> {
        let values = text.parse()?;
        self.add(Source::Text(text), "file".to_owned(), values, true);
        Ok(())
    }

    /// Adds the variables with our prefix above what is there.
    pub(super) fn env(&mut self, variables: &[(String, String)]) {
        for (name, value) in variables {
            let Some(key) = name.strip_prefix(ENV_PREFIX).filter(|_| is_setting(name)) else {
                continue;
            };
            let key = key.to_ascii_lowercase().replace("__", ".");
            self.text_value(Place::Env(name.clone()), &key, value);
        }
    }

    /// Adds one flag above what is there.
    pub(super) fn flag(&mut self, flag: &str, key: &str, value: &str) {
        self.text_value(Place::Flag(flag.to_owned()), key, value);
    }

    /// Adds values below what is there, each with its own place.
    pub(super) fn below(&mut self, values: Vec<(&str, Value, Place)>) {
        let mut dict = Dict::new();
        let mut places = BTreeMap::new();
        for (key, value, place) in values {
            places.insert(key.to_owned(), place);
            merge(&mut dict, figment::util::nest(key, value));
        }
        self.add(Source::Keys(places), "region".to_owned(), dict, false);
    }

    pub(super) fn extract<T: serde::de::DeserializeOwned>(&self) -> Result<T, ConfigError> {
        self.figment.extract().map_err(|errors| {
            ConfigError::Problems(errors.into_iter().map(|error| self.describe(error)).collect())
        })
    }

    /// One value, where a layer sets it.
    pub(super) fn text_at(&self, key: &str) -> Option<String> {
        self.figment.find_value(key).ok()?.into_string()
    }

    /// Where `key` itself was set; none where no layer does. An item of an array is set where its array is.
    pub(super) fn set_at(&self, key: &str) -> Option<Place> {
        let is_index = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let whole: Vec<&str> = key.split('.').take_while(|part| !is_index(part)).collect();
        self.figment.find_metadata(&whole.join("."))?;
        Some(self.place(key))
    }

    /// Where `key` was set, or the table around it; [`Place::Default`] where no layer does.
    pub(super) fn place(&self, key: &str) -> Place {
        let mut found = key;
        loop {
            let metadata = self
                .figment
                .find_metadata(found)
                .and_then(|metadata| self.sources.get(&*metadata.name));
            match metadata {
                Some(Source::Place(place)) => return place.clone(),
                Some(Source::Text(text)) => return text.place(key),
                Some(Source::Keys(places)) => return places.get(found).cloned().unwrap_or(Place::Default),
                None => {}
            }
            match found.rsplit_once('.') {
                Some((table, _)) => found = table,
                None => return Place::Default,
            }
        }
    }

    /// A problem with `key`, with its place and its value as it was written.
    pub(super) fn problem(&self, key: &str, message: impl Into<String>) -> Problem {
        let written = match self.source(key) {
            Some(Source::Text(text)) => text.value(key),
            _ => None,
        };
        let merged = || match self.figment.find_value(key) {
            Ok(_) if is_secret(key) => Some("***".to_owned()),
            Ok(Value::Dict(..)) | Err(_) => None,
            // Tables, some of whose values may be secret.
            Ok(Value::Array(_, items)) if items.iter().any(|item| matches!(item, Value::Dict(..))) => None,
            Ok(Value::String(_, text)) => Some(format!("{text:?}")),
            Ok(value) => serde_json::to_string(&value).ok(),
        };
        let value = written.or_else(merged).map(|value| shorten(&value));
        Problem {
            place: self.place(key),
            key: key.to_owned(),
            value,
            message: message.into(),
        }
    }

    fn source(&self, key: &str) -> Option<&Source> {
        // Items of arrays carry no metadata of their own: the array's is theirs.
        let mut key = key;
        loop {
            if let Some(metadata) = self.figment.find_metadata(key) {
                return self.sources.get(&*metadata.name);
            }
            key = key.rsplit_once('.')?.0;
        }
    }

    fn text_value(&mut self, place: Place, key: &str, text: &str) {
        let value = read_value(text);
        let name = place.to_string();
        let dict = figment::util::nest(key, value).into_dict().unwrap_or_default();
        self.add(Source::Place(place), name, dict, true);
    }

    fn add(&mut self, source: Source, name: String, values: Dict, above: bool) {
        let layer = Layer {
            name: name.clone(),
            values,
        };
        let figment = std::mem::take(&mut self.figment);
        self.figment = if above {
            figment.merge(layer)
        } else {
            figment.join(layer)
        };
        self.sources.insert(name, source);
    }

    fn describe(&self, error: figment::Error) -> Problem {
        use figment::error::Kind;
        let path = error.path.join(".");
        let expected = |names: &[&str]| names.join(", ");
        match &error.kind {
            Kind::UnknownField(name, names) => {
                // The path of an unknown field ends in its name.
                let key = if path.ends_with(name.as_str()) {
                    path
                } else {
                    join(&path, name)
                };
                let message = format!("there is no such key; expected one of: {}", expected(names));
                let mut problem = self.problem(&key, message);
                if let Place::Env(variable) = &problem.place {
                    problem.message +=
                        &format!(". Each variable {ENV_PREFIX}... is a setting: rename or unset this one");
                    if may_be_secret(variable, &key) {
                        problem.value = None;
                        problem.message += " (its value may be a secret and is not shown)";
                    }
                }
                problem
            }
            Kind::MissingField(name) => {
                let key = join(&path, name);
                let region_says = key == "node.roles" || key.starts_with("listen");
                let hint = if region_says { &self.hint } else { "" };
                let message = format!("it is missing; {}{hint}", how_to_set(&key));
                Problem {
                    value: None,
                    ..self.problem(&key, message)
                }
            }
            Kind::UnknownVariant(_, names) if !is_secret(&path) => {
                self.problem(&path, format!("expected one of: {}", expected(names)))
            }
            kind if is_secret(&path) => {
                let what = if matches!(kind, Kind::InvalidType(..)) {
                    "wrong type, expected a string"
                } else {
                    "wrong"
                };
                self.problem(&path, what)
            }
            Kind::InvalidType(_, expected) if expected.contains("sequence") && self.is_text_layer(&path) => {
                self.problem(&path, format!("{}, such as [\"a\", \"b\"]", error.kind))
            }
            Kind::InvalidType(_, expected) if expected.contains("string") && self.is_text_layer(&path) => {
                let message = format!(
                    "{}; put the value in double quotes within the variable or flag",
                    error.kind
                );
                self.problem(&path, message)
            }
            kind => {
                let message = said(&kind.to_string());
                let message = match range(&path) {
                    // Of the type alone, for which nobody knows its range.
                    Some(range) if message.ends_with("expected u32") => {
                        message.replace("expected u32", &format!("expected a whole number, {range}"))
                    }
                    Some(range) => format!("{message}, {range}"),
                    None => message,
                };
                self.problem(&path, message)
            }
        }
    }

    fn is_text_layer(&self, key: &str) -> bool {
        matches!(
            self.source(key),
            Some(Source::Place(Place::Env(_) | Place::Flag(_)))
        )
    }
}

/// Where a missing key is set. A table is set by its keys: those that have no default.
fn how_to_set(key: &str) -> String {
    let keys: &[&str] = match key {
        "node" => &["node.name", "node.region"],
        "listen" => &["listen.peer", "listen.admin_http"],
        "tls" | "tls.peer" => &["tls.peer.ca", "tls.peer.cert", "tls.peer.key"],
        _ => &[key],
    };
    let variable = |key: &&str| format!("{ENV_PREFIX}{}", key.to_ascii_uppercase().replace('.', "__"));
    let flag = |key: &&str| format!("--set {key}=VALUE");
    let variables: Vec<String> = keys.iter().map(variable).collect();
    let flags: Vec<String> = keys.iter().map(flag).collect();
    let what = if *keys == [key] {
        "it".to_owned()
    } else {
        keys.join(", ")
    };
    format!(
        "set {what} in the file, or as {}, or by {}",
        variables.join(", "),
        flags.join(" ")
    )
}

/// Whether an unknown variable must be told without its value, since this goes into logs: it is perhaps another program's
/// and not one of our tables, or its name sounds like a secret.
fn may_be_secret(variable: &str, key: &str) -> bool {
    const SECRET_WORDS: [&str; 7] = ["SECRET", "PASS", "TOKEN", "KEY", "CRED", "AUTH", "PRIVATE"];
    let in_a_table = key.contains('.');
    !in_a_table
        || SECRET_WORDS
            .iter()
            .any(|word| variable.to_ascii_uppercase().contains(word))
}

/// A variable's or flag's text: a TOML value (number, boolean, list, table, quoted text), or else the text itself.
fn read_value(text: &str) -> Value {
    use toml::Value as Toml;
    match text.trim().parse::<Toml>() {
        // A name or an id may look like these: `nan`, `2026-01-01`.
        Err(_) | Ok(Toml::Datetime(_)) => Value::from(text),
        Ok(Toml::Float(float)) if !float.is_finite() => Value::from(text),
        Ok(value) => Value::serialize(value).unwrap_or_else(|_| Value::from(text)),
    }
}

struct Layer {
    name: String,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

fn merge(into: &mut Dict, from: Value) {
    for (key, value) in from.into_dict().unwrap_or_default() {
        match (into.get_mut(&key), value) {
            (Some(Value::Dict(_, inner)), value @ Value::Dict(..)) => merge(inner, value),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}
