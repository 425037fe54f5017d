//! Spans of virtual time as people write them: `"250ms"`, `"1.5s"`, `"2m"`, `"1d"`. Kept in microseconds.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

use super::trace::Micros;

/// What is expected, for errors.
pub const EXPECTED: &str = "a span of time such as \"250ms\", \"1.5s\", \"2m\", \"24h\" or \"1d\"";

/// Longest span: a year. A scenario that asks for more is a slip.
const MAX: f64 = 365.0 * 86_400e6;

const UNITS: [(&str, u64); 6] = [
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

/// The span that a text names.
pub fn parse(text: &str) -> Option<Micros> {
    let at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(at);
    let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let plain = number.chars().all(|c| c.is_ascii_digit() || c == '.');
    let micros = number.parse::<f64>().ok().filter(|_| plain)? * *scale as f64;
    (micros <= MAX).then_some(micros.round() as Micros)
}

/// As it is written: exact, with the largest unit that divides it.
pub fn show(span: Micros) -> String {
    let unit = UNITS
        .iter()
        .find(|(_, scale)| span != 0 && span.is_multiple_of(*scale));
    match unit {
        Some((name, scale)) => format!("{}{name}", span / scale),
        None => "0s".to_owned(),
    }
}

/// Writes a span; for `#[serde(with = "span")]`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(span: &Micros, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&show(*span))
}

/// Reads a span.
///
/// # Errors
/// With what was expected.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Micros, D::Error> {
    let text = String::deserialize(from)?;
    parse(&text).ok_or_else(|| D::Error::custom(format!("expected {EXPECTED}")))
}

/// The same for a span that may be absent.
pub mod option {
    use super::{Deserializer, Micros, Serializer};

    /// Writes it, where there is one.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(span: &Option<Micros>, to: S) -> Result<S::Ok, S::Error> {
        match span {
            Some(span) => to.serialize_some(&super::show(*span)),
            None => to.serialize_none(),
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// With what was expected.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Micros>, D::Error> {
        super::deserialize(from).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written() {
        for (text, span) in [
            ("250ms", 250_000),
            ("1500ms", 1_500_000),
            ("2s", 2_000_000),
            ("90s", 90_000_000),
            ("1d", 86_400_000_000),
            ("7us", 7),
        ] {
            assert_eq!(parse(text), Some(span), "{text}");
            assert_eq!(parse(&show(span)), Some(span), "{text}");
        }
        assert_eq!(parse("1.5s"), Some(1_500_000));
        assert_eq!(parse(&show(0)), Some(0));
        for wrong in ["", "5", "s", "-1s", "1e3s", "5 s", "1w", "NaNs", "infs", "400d"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
