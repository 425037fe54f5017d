//! TOML text that remembers the line of each key, so that an error found after parsing can still name it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Place, Problem};

/// Bytes of a configuration or region file. A real one has a few kilobytes; a wrong path (a log, a disk image) must not be read whole.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// Characters of a value that an error repeats.
const SHOWN_VALUE_CHARS: usize = 80;

/// Keys whose values are never shown, whatever is wrong with them.
const SECRET_KEYS: [&str; 1] = ["secret"];

/// The text of a TOML file and where each of its keys stands.
#[derive(Debug, Clone)]
pub struct TomlText {
    file: PathBuf,
    text: String,
    keys: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    line: u32,
    /// Bytes of the key and of its value in the text.
    key: Range<usize>,
    value: Range<usize>,
    is_table: bool,
}

impl TomlText {
    /// Reads and parses `file`. A missing, unreadable or larger file than [`MAX_FILE_BYTES`] is an error.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read {
            file: file.to_owned(),
            source,
            hint: "check the path and that this user may read it",
        };
        let size = fs::metadata(file).map_err(failed)?.len();
        if size > MAX_FILE_BYTES {
            let text = format!("it has {size} bytes, at most {MAX_FILE_BYTES} are read");
            return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, text)));
        }
        Self::new(file, fs::read_to_string(file).map_err(failed)?)
    }

    /// Parses `text`, which errors attribute to `file`.
    pub fn new(file: impl Into<PathBuf>, text: String) -> Result<Self, ConfigError> {
        let file = file.into();
        let mut keys = BTreeMap::new();
        match DeTable::parse(&text) {
            Ok(table) => index_table(&text, "", table.get_ref(), &mut keys),
            Err(error) => {
                let line = error.span().map(|span| line_of(&text, span.start));
                return Err(Problem {
                    place: Place::File(file, line),
                    key: String::new(),
                    value: None,
                    message: format!("this is not TOML: {}", error.message()),
                }
                .into());
            }
        }
        Ok(Self { file, text, keys })
    }

    /// The file's path, as it was given.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Reads the text as a `T`; an error names line, key and value.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        toml::from_str(&self.text).map_err(|error| {
            let key = error
                .span()
                .and_then(|span| self.key_at(&span))
                .unwrap_or_default();
            let line = error.span().map(|span| line_of(&self.text, span.start));
            let message = if is_secret(&key) {
                "this secret has the wrong type"
            } else {
                error.message()
            };
            Problem {
                place: Place::File(self.file.clone(), line),
                value: self.value(&key),
                message: said(message),
                key,
            }
            .into()
        })
    }

    /// A problem with `key`, placed at its line, or at the line of the innermost table around it that exists.
    pub fn problem(&self, key: &str, message: impl Into<String>) -> Problem {
        Problem {
            place: self.place(key),
            key: key.to_owned(),
            value: self.value(key),
            message: message.into(),
        }
    }

    /// Where `key` (`nodes.0.name`) stands, or the innermost table around it that exists.
    pub fn place(&self, key: &str) -> Place {
        let mut key = key;
        loop {
            if let Some(entry) = self.keys.get(key) {
                return Place::File(self.file.clone(), Some(entry.line));
            }
            match key.rsplit_once('.') {
                Some((table, _)) => key = table,
                None => return Place::File(self.file.clone(), None),
            }
        }
    }

    /// The value of `key` as it is written, shortened, and `***` for a secret; none for a table or an absent key.
    pub fn value(&self, key: &str) -> Option<String> {
        let entry = self.keys.get(key).filter(|entry| !entry.is_table)?;
        if is_secret(key) {
            return Some("***".to_owned());
        }
        Some(shorten(self.text.get(entry.value.clone())?))
    }

    /// The innermost key whose name or value contains `span`.
    fn key_at(&self, span: &Range<usize>) -> Option<String> {
        let within = |outer: &Range<usize>| outer.start <= span.start && span.end <= outer.end;
        let found = self
            .keys
            .iter()
            .filter(|(_, entry)| within(&entry.key) || within(&entry.value));
        found
            .max_by_key(|(key, _)| key.split('.').count())
            .map(|(key, _)| key.clone())
    }
}

/// The message of a parser, with what it leaves out.
pub(super) fn said(message: &str) -> String {
    // As the standard library says it of an address, without a word of what one looks like.
    if message.contains("invalid socket address syntax") {
        return "expected an IP address and a port, such as 10.0.0.5:7410 or [fd00::5]:7410; names are not looked up".to_owned();
    }
    message.to_owned()
}

/// Whether the value of `key` must not be shown.
pub fn is_secret(key: &str) -> bool {
    SECRET_KEYS.contains(&key.rsplit('.').next().unwrap_or(key))
}

/// `text` cut to what fits into an error, on one line.
pub fn shorten(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN_VALUE_CHARS) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None => line,
    }
}

fn index_table(text: &str, prefix: &str, table: &DeTable<'_>, keys: &mut BTreeMap<String, Entry>) {
    for (key, value) in table.iter() {
        let path = join(prefix, key.get_ref());
        index_value(text, path, key.span(), value.span(), value.get_ref(), keys);
    }
}

fn index_value(
    text: &str,
    path: String,
    key: Range<usize>,
    value_span: Range<usize>,
    value: &DeValue<'_>,
    keys: &mut BTreeMap<String, Entry>,
) {
    match value {
        DeValue::Table(table) => index_table(text, &path, table, keys),
        DeValue::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                index_value(
                    text,
                    join(&path, &i.to_string()),
                    item.span(),
                    item.span(),
                    item.get_ref(),
                    keys,
                );
            }
        }
        _ => {}
    }
    let is_table = matches!(value, DeValue::Table(_))
        || matches!(value, DeValue::Array(items) if items.iter().any(|item| item.get_ref().is_table()));
    keys.insert(
        path,
        Entry {
            line: line_of(text, key.start),
            key,
            value: value_span,
            is_table,
        },
    );
}

/// `key` within the table `prefix`, which is empty for the root.
pub fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() {
        key.to_owned()
    } else {
        format!("{prefix}.{key}")
    }
}

fn line_of(text: &str, at: usize) -> u32 {
    let newlines = text
        .as_bytes()
        .iter()
        .take(at)
        .filter(|byte| **byte == b'\n')
        .count();
    u32::try_from(newlines + 1).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_know_their_line_and_value() {
        let text = TomlText::new(
            "f.toml",
            "a = 1\n[t]\nb.c = [1,\n 2]\n[[n]]\nx = 1\n[[n]]\nx = 2\n".to_owned(),
        );
        let text = text.expect("valid TOML");
        let at = |key: &str| (text.place(key).to_string(), text.value(key));
        assert_eq!(at("a"), ("f.toml:1".to_owned(), Some("1".to_owned())));
        assert_eq!(at("t.b.c"), ("f.toml:3".to_owned(), Some("[1, 2]".to_owned())));
        assert_eq!(at("n.1.x"), ("f.toml:8".to_owned(), Some("2".to_owned())));
        assert_eq!(at("t.absent"), ("f.toml:2".to_owned(), None));
        assert_eq!(at("absent"), ("f.toml".to_owned(), None));
    }

    #[test]
    fn a_secret_is_never_repeated() {
        #[derive(Debug, serde::Deserialize)]
        struct T {
            #[expect(dead_code, reason = "only its parsing matters")]
            secret: String,
        }
        let text = TomlText::new("f.toml", "secret = 123456\n".to_owned()).expect("valid TOML");
        let error = text.parse::<T>().expect_err("a number is no string").to_string();
        assert!(!error.contains("123456"), "{error}");
        assert!(error.contains("f.toml:1: secret = ***"), "{error}");
    }

    #[test]
    fn text_that_is_not_toml_names_the_line() {
        let error = TomlText::new("f.toml", "a = 1\nb = = 2\n".to_owned())
            .expect_err("not TOML")
            .to_string();
        assert!(error.starts_with("f.toml:2: this is not TOML"), "{error}");
    }
}
