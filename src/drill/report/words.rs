//! Numbers and times in words.

use crate::drill::log::Micros;

/// What stands where there is nothing.
pub const NOTHING: &str = "–";

/// A time, as exact as it is worth.
pub fn duration(micros: Micros) -> String {
    let millis = micros as f64 / 1e3;
    match micros {
        0 => "0 s".to_owned(),
        1..10_000 => format!("{millis:.2} ms"),
        10_000..100_000 => format!("{millis:.1} ms"),
        100_000..1_000_000 => format!("{millis:.0} ms"),
        1_000_000..120_000_000 => format!("{:.2} s", millis / 1e3),
        120_000_000..7_200_000_000 => {
            let seconds = micros / 1_000_000;
            format!("{} min {} s", seconds / 60, seconds % 60)
        }
        _ => format!("{:.1} h", millis / 3.6e6),
    }
}

/// A time, if there is one.
pub fn maybe(micros: Option<Micros>) -> String {
    micros.map_or_else(|| NOTHING.to_owned(), duration)
}

/// A moment of a drill.
pub fn moment(at: Micros) -> String {
    match at as f64 / 1e6 {
        seconds if seconds >= 7200.0 => format!("{:.2} h", seconds / 3600.0),
        seconds if seconds.fract() == 0.0 => format!("{seconds:.0} s"),
        seconds => format!("{seconds:.1} s"),
    }
}

/// A fault's number for people, who count from 1.
pub fn ordinal(fault: usize) -> usize {
    fault + 1
}

/// A number with its thousands apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A date of the calendar, UTC, from milliseconds since 1970.
pub fn date(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}

/// Year, month and day of a number of days since 1970-01-01 (Hinnant's `civil_from_days`, for days that are not negative).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (
        day - (153 * month + 2) / 5 + 1,
        if month < 10 { month + 3 } else { month - 9 },
    );
    (era * 400 + year + u64::from(month <= 2), month, day)
}

/// Text that is safe within HTML.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}
