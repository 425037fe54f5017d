//! What clients print: a line for each thing that happens, for people or as JSON. Talk about connections goes to stderr.

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::cli::output::{Format, say};
use crate::client::{Client, ClientEvent, CloseCause, DisconnectReason, Incoming};
use crate::core::wire::{Code, Hole, HoleReason, PresenceEvent, Status};

/// Whether the reader of stdout is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Printed {
    Yes,
    /// It went away: what was to be printed was not read.
    Gone,
}

/// Prints a line; JSON goes on one line.
pub fn line(
    format: Format,
    people: impl FnOnce() -> String,
    json: impl FnOnce() -> Value,
) -> anyhow::Result<Printed> {
    let text = match format {
        Format::Table => people(),
        Format::Json => json().to_string(),
    };
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Ok(()) => Ok(Printed::Yes),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Printed::Gone),
        Err(error) => Err(error).context("cannot write to stdout"),
    }
}

/// A message.
pub fn message(format: Format, message: &Incoming) -> anyhow::Result<Printed> {
    let people = || {
        let text = String::from_utf8_lossy(&message.body);
        format!(
            "{} {}: {}",
            time(message.sent_ms),
            visible(message.from.as_str()),
            visible(&text)
        )
    };
    line(format, people, || {
        let mut object = json!({
            "type": "message",
            "id": message.id.to_string(),
            "from": message.from,
            "from_device": message.from_device,
            "sent_ms": message.sent_ms,
            "kind": message.kind,
            "origin": format!("{:016x}", message.at.origin.0),
            "seq": message.at.seq,
        });
        match std::str::from_utf8(&message.body) {
            Ok(text) => object["body"] = text.into(),
            Err(_) => object["body_hex"] = hex(&message.body).into(),
        }
        object
    })
}

/// Messages that are gone.
pub fn hole(format: Format, hole: &Hole) -> anyhow::Result<Printed> {
    let reason = match hole.reason {
        HoleReason::BeforeRegistration => "removed once every device that was known then had read them",
        HoleReason::Expired => "expired",
        HoleReason::Overflow => "the inbox overflowed",
    };
    line(
        format,
        || hole_for_people(hole, reason),
        || {
            json!({
                "type": "hole",
                "origin": format!("{:016x}", hole.origin.0),
                "from_seq": hole.from,
                "to_seq": hole.to,
                "count": hole.count,
                "reason": reason,
            })
        },
    )
}

fn hole_for_people(hole: &Hole, reason: &str) -> String {
    let Hole { from, to, .. } = hole;
    let messages = match hole.count {
        0 => "messages are".to_owned(),
        1 => "1 message is".to_owned(),
        count => format!("{count} messages are"),
    };
    let origin = hole.origin.0;
    format!("-- {messages} gone: {reason} (origin {origin:016x}, {from} to {to}) --")
}

/// A presence change.
pub fn presence(format: Format, event: &PresenceEvent) -> anyhow::Result<Printed> {
    let status = match event.status {
        _ if event.unreachable_since_ms.is_some() => "unreachable",
        Status::Offline => "offline",
        Status::Away => "away",
        Status::Dnd => "dnd",
        Status::Online => "online",
    };
    let people = || {
        let mut text = format!("{} {status}", visible(event.user.as_str()));
        if !event.text.is_empty() {
            text.push_str(&format!(" \"{}\"", visible(&event.text)));
        }
        if let Some(region) = &event.region {
            text.push_str(&format!(" in {region}"));
        }
        if event.devices > 1 {
            text.push_str(&format!(" ({} devices)", event.devices));
        }
        match event.unreachable_since_ms.unwrap_or(event.since_ms) {
            0 => text,
            since => text + &format!(" since {}", time(since)),
        }
    };
    line(format, people, || {
        json!({
            "type": "presence",
            "user": event.user,
            "status": status,
            "text": event.text,
            "since_ms": event.since_ms,
            "region": event.region,
            "unreachable_since_ms": event.unreachable_since_ms,
            "devices": event.devices,
        })
    })
}

/// Tells on stderr what happens to the connection; other events are left alone.
pub fn notice(event: &ClientEvent) {
    match event {
        ClientEvent::Connected {
            region,
            node,
            endpoint,
            ..
        } => say!("connected to {node} of {region} at {endpoint}"),
        ClientEvent::Disconnected {
            endpoint,
            reason,
            retry_in,
        } => say!(
            "{endpoint}: {}; trying again in {:.1} s",
            visible(&reason.to_string()),
            retry_in.as_secs_f64()
        ),
        ClientEvent::TooManyWatches { wanted, limit } => {
            say!("warning: {wanted} users are to be watched, and the server allows {limit}");
        }
        ClientEvent::StateNotSaved(reason) => say!("warning: the state was not saved: {reason}"),
        _ => {}
    }
}

/// What to say when a client ended by itself.
pub fn ended(cause: &CloseCause) -> anyhow::Error {
    let next = match cause {
        CloseCause::Superseded => {
            "another process uses the same user and device: end it, or give another --device"
        }
        CloseCause::Unauthorized(_) => {
            "was the data folder made anew since `iris dev` started? Otherwise give --token"
        }
        CloseCause::Refused {
            code: Code::TooManyDevices,
            ..
        } => "use a --device that was used before",
        _ => return anyhow::anyhow!("{cause}"),
    };
    anyhow::anyhow!("{cause}; {next}")
}

/// Whether a failure to connect will not go away by trying again elsewhere: the server is not who it must be.
pub fn is_wrong_server(reason: &DisconnectReason) -> bool {
    matches!(reason, DisconnectReason::ConnectFailed(text) if text.contains("certificate"))
}

/// Closes in order, within a few seconds.
pub async fn close(client: &Client) {
    let _ = tokio::time::timeout(Duration::from_secs(5), client.close()).await;
}

/// Text of others on a terminal: control characters could move its cursor or change its title.
fn visible(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// `HH:MM:SS` in UTC.
fn time(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000 % 86_400;
    format!(
        "{:02}:{:02}:{:02}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::Origin;

    #[test]
    fn a_hole_names_its_range() {
        let mut hole = Hole {
            origin: Origin(0x2a),
            from: 3,
            to: 9,
            count: 0,
            reason: HoleReason::Expired,
        };
        let range = "(origin 000000000000002a, 3 to 9) --";
        for (count, messages) in [(0, "messages are"), (1, "1 message is"), (5, "5 messages are")] {
            hole.count = count;
            let found = hole_for_people(&hole, "expired");
            assert_eq!(found, format!("-- {messages} gone: expired {range}"));
        }
    }

    #[test]
    fn what_others_wrote_cannot_steer_a_terminal() {
        assert_eq!(
            visible("a\x1b[2Jb\r\n\u{9b}c"),
            "a\u{fffd}[2Jb\u{fffd}\u{fffd}\u{fffd}c"
        );
        assert_eq!(time(86_400_000 + 3_723_999), "01:02:03Z");
        assert_eq!(hex(&[0, 255]), "00ff");
    }
}
