//! Settings as people write them: durations (`"250ms"`, `"5m"`), sizes (`65536`, `"64KiB"`), counts, hexadecimal ids.

use std::fmt;
use std::time::Duration;

use serde::de::{Error as _, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// 1,024 bytes.
pub const KIB: u64 = 1 << 10;
/// 1,048,576 bytes.
pub const MIB: u64 = 1 << 20;
/// 1,073,741,824 bytes.
pub const GIB: u64 = 1 << 30;

const DURATION_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];
const SIZE_UNITS: [(&str, u64); 4] = [("GiB", GIB), ("MiB", MIB), ("KiB", KIB), ("B", 1)];

/// A type of setting: the type decides how it is written. `u64` is a size in bytes, `u32` a count.
pub trait Setting: Copy + PartialOrd + Sized {
    /// What is expected of a value, for errors.
    const EXPECTED: &'static str;
    /// From text with a unit.
    fn from_text(text: &str) -> Option<Self>;
    /// From a bare number.
    fn from_number(number: u64) -> Option<Self>;
    /// As it is written.
    fn show(self) -> String;
    /// As a number, for the types that are written as one.
    fn number(self) -> Option<u64>;
}

impl Setting for Duration {
    const EXPECTED: &'static str = "a duration such as \"250ms\", \"5s\", \"10m\", \"24h\" or \"7d\"";

    fn from_text(text: &str) -> Option<Self> {
        scaled(text, &DURATION_UNITS).map(Duration::from_millis)
    }

    fn from_number(_: u64) -> Option<Self> {
        None
    }

    fn show(self) -> String {
        show_scaled(
            u64::try_from(self.as_millis()).unwrap_or(u64::MAX),
            &DURATION_UNITS,
            "0s",
        )
    }

    fn number(self) -> Option<u64> {
        None
    }
}

impl Setting for u64 {
    const EXPECTED: &'static str = "a number of bytes, or a size such as \"64KiB\", \"16MiB\" or \"2GiB\"";

    fn from_text(text: &str) -> Option<Self> {
        scaled(text, &SIZE_UNITS)
    }

    fn from_number(number: u64) -> Option<Self> {
        Some(number)
    }

    fn show(self) -> String {
        show_scaled(self, &SIZE_UNITS, "0B")
    }

    fn number(self) -> Option<u64> {
        None
    }
}

impl Setting for u32 {
    const EXPECTED: &'static str = "a whole number";

    fn from_text(_: &str) -> Option<Self> {
        None
    }

    fn from_number(number: u64) -> Option<Self> {
        u32::try_from(number).ok()
    }

    fn show(self) -> String {
        self.to_string()
    }

    fn number(self) -> Option<u64> {
        Some(self.into())
    }
}

/// For `#[serde(with = "setting")]` on a field of a type that is a [`Setting`].
pub mod setting {
    use super::*;

    /// Writes a setting as people write it.
    pub fn serialize<T: Setting, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        match value.number() {
            Some(number) => to.serialize_u64(number),
            None => to.serialize_str(&value.show()),
        }
    }

    /// Reads a setting; the error says what is expected.
    pub fn deserialize<'de, T: Setting, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        from.deserialize_any(SettingVisitor(std::marker::PhantomData))
    }
}

struct SettingVisitor<T>(std::marker::PhantomData<T>);

impl<T: Setting> Visitor<'_> for SettingVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
        T::from_number(number).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
        let value = u64::try_from(number).ok().and_then(T::from_number);
        value.ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        T::from_text(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// Declares an id that is written as hexadecimal digits in quotes: TOML has no unsigned integers of its width.
macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $digits:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:0width$x}", self.0, width = $digits)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                let digits = (1..=$digits).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
                match <$inner>::from_str_radix(&text, 16) {
                    Ok(id) if digits => Ok($name(id)),
                    _ => Err(D::Error::invalid_value(Unexpected::Str(&text), &$expected)),
                }
            }
        }
    };
}

hex_id!(
    /// A cluster's id.
    ClusterId(u128), 32, "1 to 32 hexadecimal digits in quotes, such as \"00c0ffee\""
);
hex_id!(
    /// A seed.
    Seed(u64), 16, "1 to 16 hexadecimal digits in quotes, such as \"00c0ffee\""
);

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let unit = text[digits..].trim_start();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*factor)
}

fn show_scaled(value: u64, units: &[(&str, u64)], zero: &str) -> String {
    let unit = units
        .iter()
        .find(|(_, factor)| value != 0 && value.is_multiple_of(*factor));
    unit.map_or_else(
        || zero.to_owned(),
        |(name, factor)| format!("{}{name}", value / factor),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_people_write_is_read() {
        assert_eq!(Duration::from_text("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(Duration::from_text("5m"), Some(Duration::from_secs(300)));
        assert_eq!(Duration::from_text("7d"), Some(Duration::from_secs(7 * 86_400)));
        assert_eq!(u64::from_text("64KiB"), Some(65_536));
        assert_eq!(u64::from_text("2 GiB"), Some(2 * GIB));
        for wrong in [
            "",
            "5",
            "s",
            "-5s",
            "1.5s",
            "5 parsecs",
            "99999999999999999999s",
            "9999999999999999999d",
        ] {
            assert_eq!(Duration::from_text(wrong), None, "{wrong}");
        }
        assert_eq!(u64::from_text("64kb"), None);
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(millis in 0u64..1 << 50, bytes: u64) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(Duration::from_text(&duration.show()), Some(duration));
            prop_assert_eq!(u64::from_text(&bytes.show()), Some(bytes));
        }
    }
}
