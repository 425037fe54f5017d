//! The client protocol as documented: every kind of frame has a fixture of bytes that the code must write and read, and
//! `docs/protocol.md` must name every kind, code and limit as the code has it.
//!
//! `IRIS_TEST_WRITE_FIXTURES=1 cargo test --test protocol` writes the fixtures anew. Do that for a new frame only: bytes that
//! change break every client that is out there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use iris::core::ids::{
    Coord, DeviceId, MAX_DEVICE_LEN, MAX_NAME_LEN, MAX_USER_LEN, MessageId, Origin, RegionId, SessionId,
    UserId,
};
use iris::core::op::{Envelope, LoggedOp, MAX_BODY, MAX_TRACE, Op};
use iris::core::time::Hlc;
use iris::core::vector::{MAX_ORIGINS, Vector};
use iris::core::wire::{
    Accepted, ClientFrame, ClientLimits, Code, Durability, Hello, Hole, HoleReason, MAX_CLIENT_CONTROL,
    MAX_CLIENT_FRAME, MAX_STATUS_TEXT, MAX_TOKEN, MAX_WATCH_BATCH, MOVES_IN_ORDER, PresenceEvent,
    RegionEndpoints, Rejected, SENDS_ONLY, Send, SendControl, ServerFrame, Status, WIRE_VERSION, Welcome,
    WireError,
};
use iris::net::CloseCode;

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn region(name: &str) -> RegionId {
    RegionId::new(name).unwrap()
}

fn coord(origin: u64, seq: u64) -> Coord {
    Coord {
        origin: Origin(origin),
        seq,
    }
}

fn id() -> MessageId {
    "0190b5c4-7d1e-7a52-8f10-3d2c1b0a9f8e".parse().unwrap()
}

fn client_frames() -> Vec<(&'static str, ClientFrame)> {
    let hello = Hello {
        token: "eyJhbGciOiJFZERTQSJ9.e30.c2ln".into(),
        device: DeviceId::new("phone").unwrap(),
        capabilities: 0,
        cursor: [(Origin(0x1111_2222_3333_4444), 7), (Origin(9), 300)]
            .into_iter()
            .collect(),
        connect_epoch: 3,
        status: Status::Online,
        text: "at lunch".into(),
        agent: "example/1.0".into(),
        memory: 0x0102_0304_0506_0708,
        after: Vector::new(),
    };
    let moved = Hello {
        capabilities: MOVES_IN_ORDER,
        after: [(Origin(11), 40)].into_iter().collect(),
        ..hello.clone()
    };
    let sends_only = Hello {
        capabilities: SENDS_ONLY,
        cursor: Vector::new(),
        ..hello.clone()
    };
    let send = Send {
        id: id(),
        session_seq: 5,
        control: SendControl {
            to: user("bob"),
            kind: 1,
            ttl_ms: 60_000,
            trace: vec![0xaa, 0xbb],
        },
        body: Bytes::from_static(b"hello"),
    };
    vec![
        // Several of one kind: the last one names it.
        ("hello-sends-only", ClientFrame::Hello(Box::new(sends_only))),
        ("hello-moved", ClientFrame::Hello(Box::new(moved))),
        ("hello", ClientFrame::Hello(Box::new(hello))),
        ("send", ClientFrame::Send(send)),
        ("ack", ClientFrame::Ack(vec![coord(9, 301), coord(11, 1)])),
        (
            "set-status",
            ClientFrame::SetStatus {
                status: Status::Away,
                text: "back at 3".into(),
            },
        ),
        ("watch", ClientFrame::Watch(vec![user("bob"), user("zoë")])),
        ("unwatch", ClientFrame::Unwatch(vec![user("bob")])),
        ("ping", ClientFrame::Ping(0x0102_0304_0506_0708)),
        ("bye", ClientFrame::Bye),
        ("probe-reply", ClientFrame::ProbeReply(42)),
    ]
}

fn server_frames() -> Vec<(&'static str, ServerFrame)> {
    let endpoints = || {
        vec![
            RegionEndpoints {
                region: region("us-east"),
                endpoints: vec!["127.0.0.1:7101".into(), "127.0.0.1:7102".into()],
            },
            RegionEndpoints {
                region: region("eu-west"),
                endpoints: vec!["127.0.0.1:7201".into()],
            },
        ]
    };
    let welcome = Welcome {
        session: SessionId(0xdead_beef),
        connect_epoch: 4,
        server_ms: 1_720_000_000_000,
        region: region("us-east"),
        node: "us-east-edge-1".into(),
        limits: ClientLimits {
            max_body: 65_536,
            sends_in_flight: 1_024,
            watches: 1_000,
            idle_seconds: 300,
        },
        regions: endpoints(),
        stable: [(Origin(9), 250)].into_iter().collect(),
    };
    let envelope = Envelope {
        to: user("bob"),
        from: user("alice"),
        from_device: DeviceId::new("laptop").unwrap(),
        connect_epoch: 2,
        session: SessionId(77),
        session_seq: 5,
        id: id(),
        kind: 1,
        expires_ms: 0,
        trace: vec![],
    };
    let hlc = Hlc {
        ms: 1_720_000_000_123,
        logical: 2,
    };
    let op = LoggedOp::encode(&Op::Append(envelope, Bytes::from_static(b"hello")), hlc);
    let accepted = Accepted {
        id: id(),
        session_seq: 5,
        at: coord(9, 301),
        duplicate: false,
        durability: Durability::Region,
    };
    let rejected = Rejected {
        id: id(),
        session_seq: 5,
        code: Code::InboxFull,
        detail: "the inbox of bob is full".into(),
        server_ms: 1_720_000_000_000,
    };
    let hole = Hole {
        origin: Origin(9),
        from: 1,
        to: 20,
        reason: HoleReason::BeforeRegistration,
        count: 12,
    };
    let presence = PresenceEvent {
        user: user("bob"),
        status: Status::Dnd,
        text: "in a meeting".into(),
        since_ms: 1_720_000_000_000,
        region: Some(region("eu-west")),
        unreachable_since_ms: None,
        devices: 2,
    };
    vec![
        ("welcome", ServerFrame::Welcome(Box::new(welcome))),
        ("accepted", ServerFrame::Accepted(accepted)),
        ("rejected", ServerFrame::Rejected(rejected)),
        (
            "deliver",
            ServerFrame::Deliver {
                at: coord(9, 301),
                op,
            },
        ),
        ("hole", ServerFrame::Hole(hole)),
        ("presence", ServerFrame::Presence(Box::new(presence))),
        (
            "after",
            ServerFrame::After([(Origin(9), 301)].into_iter().collect()),
        ),
        (
            "go-away",
            ServerFrame::GoAway {
                code: Code::Draining,
                regions: endpoints(),
            },
        ),
        (
            "pong",
            ServerFrame::Pong {
                nonce: 0x0102_0304_0506_0708,
                server_ms: 1_720_000_000_000,
            },
        ),
        (
            "error",
            ServerFrame::Error {
                code: Code::Unauthorized,
                detail: "the token expired 5 s ago".into(),
            },
        ),
        ("probe", ServerFrame::Probe { nonce: 42 }),
    ]
}

#[test]
fn every_frame_is_written_and_read_as_its_fixture() {
    let mut kinds = BTreeSet::new();
    let frames = client_frames().len() + server_frames().len();
    for (name, frame) in client_frames() {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        let bytes = fixture(&format!("client-{name}"), &out);
        assert_eq!(
            ClientFrame::decode(bytes[5], bytes.slice(6..)),
            Ok(frame),
            "{name}"
        );
        kinds.insert(bytes[5]);
    }
    for (name, frame) in server_frames() {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        let bytes = fixture(&format!("server-{name}"), &out);
        assert_eq!(
            ServerFrame::decode(bytes[5], bytes.slice(6..)),
            Ok(frame),
            "{name}"
        );
        kinds.insert(bytes[5]);
    }
    assert_eq!(
        kinds,
        known_kinds().into_keys().collect(),
        "each kind has a fixture"
    );
    let files = std::fs::read_dir(fixtures()).unwrap().count();
    assert_eq!(files, frames, "a fixture without a frame in {:?}", fixtures());
}

#[test]
fn a_frame_that_is_cut_or_too_long_is_refused() {
    for file in std::fs::read_dir(fixtures()).unwrap() {
        let path = file.unwrap().path();
        let bytes = Bytes::from(parse(&std::fs::read_to_string(&path).unwrap()));
        let refused = |payload: Bytes| match bytes[5] {
            0..64 => ClientFrame::decode(bytes[5], payload).is_err(),
            _ => ServerFrame::decode(bytes[5], payload).is_err(),
        };
        // What ends in a body cannot tell that the body was cut.
        let body = match bytes[5] {
            2 | 68 => 5,
            _ => 0,
        };
        for cut in 6..bytes.len() - body {
            assert!(refused(bytes.slice(6..cut)), "{} cut at {cut}", path.display());
        }
        if body == 0 {
            let longer: Bytes = [&bytes[6..], &[0xc0]].concat().into();
            assert!(refused(longer), "{} with a byte behind its end", path.display());
        }
    }
}

#[test]
fn a_structure_with_another_number_of_fields_is_refused() {
    for name in ["client-hello", "server-welcome", "server-hole", "server-presence"] {
        let bytes = parse(&std::fs::read_to_string(fixtures().join(format!("{name}.hex"))).unwrap());
        let (kind, control) = (bytes[5], &bytes[10..]);
        assert_eq!(control[0] & 0xf0, 0x90, "{name} is a short array");
        let mut longer = vec![control[0] + 1];
        longer.extend_from_slice(&control[1..]);
        longer.push(0xc0);
        let mut payload = (longer.len() as u32).to_be_bytes().to_vec();
        payload.extend(longer);
        let refused = match kind {
            0..64 => ClientFrame::decode(kind, payload.into()).is_err(),
            _ => ServerFrame::decode(kind, payload.into()).is_err(),
        };
        assert!(refused, "{name} with one field more");
    }
}

/// Clients that were built before a `HELLO` told its memory leave the ninth field out.
#[test]
fn a_hello_without_the_field_that_may_be_left_out_is_taken() {
    const MEMORY: usize = 9; // an integer of 64 bits
    const AGENT: usize = 12; // a text of 11 bytes
    let bytes = parse(&std::fs::read_to_string(fixtures().join("client-hello.hex")).unwrap());
    let (kind, control) = (bytes[5], &bytes[10..]);
    assert_eq!(
        (control[0], control[control.len() - MEMORY]),
        (0x99, 0xcf),
        "nine fields, and the last is a long integer"
    );
    let with = |fields: u8, without: usize| {
        let mut payload = ((control.len() - without) as u32).to_be_bytes().to_vec();
        payload.push(0x90 | fields);
        payload.extend(&control[1..control.len() - without]);
        ClientFrame::decode(kind, payload.into())
    };
    let mut frames = client_frames().into_iter();
    let whole = frames.find(|(name, _)| *name == "hello");
    let (_, whole) = whole.expect("it has a fixture");
    let ClientFrame::Hello(mut hello) = whole.clone() else {
        panic!("{whole:?}")
    };
    assert_eq!(with(9, 0), Ok(whole));
    hello.memory = 0;
    assert_eq!(with(8, MEMORY), Ok(ClientFrame::Hello(hello)));
    let refused = with(7, MEMORY + AGENT).unwrap_err();
    assert!(matches!(refused, WireError::Malformed { .. }), "{refused:?}");
}

#[test]
fn the_page_names_every_kind() {
    let page = page();
    for (side, range) in [
        ("Frames from a client", 0..64u8),
        ("Frames from a server", 64..255),
    ] {
        let rows = table(&page, side);
        let documented: BTreeMap<u8, String> = rows
            .iter()
            .map(|row| (row[0].parse().unwrap(), row[1].clone()))
            .collect();
        let expected: BTreeMap<u8, String> = known_kinds()
            .into_iter()
            .filter(|(kind, _)| range.contains(kind))
            .collect();
        assert_eq!(documented, expected, "the table {side:?}");
        for row in &rows {
            let fixture = &row[row.len() - 1];
            assert!(
                fixtures().join(format!("{fixture}.hex")).exists(),
                "{fixture} of {side:?}"
            );
        }
    }
}

#[test]
fn the_page_names_every_code() {
    let documented: Vec<(u16, String, bool)> = table(&page(), "Codes")
        .into_iter()
        .map(|row| (row[0].parse().unwrap(), row[1].clone(), row[2] == "yes"))
        .collect();
    let expected: Vec<(u16, String, bool)> = {
        let mut all: Vec<_> = Code::all()
            .map(|(code, number)| (number, format!("{code:?}"), code.retryable()))
            .collect();
        all.sort();
        all
    };
    assert_eq!(documented, expected);
}

#[test]
fn the_page_names_the_close_codes() {
    let documented: BTreeMap<u32, String> = table(&page(), "Close codes")
        .into_iter()
        .map(|row| (row[0].parse().unwrap(), row[1].clone()))
        .collect();
    let expected: BTreeMap<u32, String> = [
        (CloseCode::NORMAL, "NORMAL"),
        (CloseCode::FRAME_TOO_LONG, "FRAME_TOO_LONG"),
        (CloseCode::BAD_FRAME, "BAD_FRAME"),
        (CloseCode::PROTOCOL, "PROTOCOL"),
        (CloseCode::TOO_SLOW, "TOO_SLOW"),
        (CloseCode::OVERLOADED, "OVERLOADED"),
        (CloseCode::SHUTDOWN, "SHUTDOWN"),
        (CloseCode::INTERNAL, "INTERNAL"),
        (CloseCode::UNAUTHENTICATED, "UNAUTHENTICATED"),
        (CloseCode::SUPERSEDED, "SUPERSEDED"),
        (CloseCode::REFUSED, "REFUSED"),
        (CloseCode::BAD_MESSAGE, "BAD_MESSAGE"),
    ]
    .map(|(code, name)| (code.0, name.to_owned()))
    .into();
    assert_eq!(documented, expected);
}

#[test]
fn the_page_names_the_limits() {
    let documented: BTreeMap<String, usize> = table(&page(), "Limits")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].replace(',', "").parse().unwrap()))
        .collect();
    let expected: BTreeMap<String, usize> = [
        ("frame", MAX_CLIENT_FRAME),
        ("control part", MAX_CLIENT_CONTROL),
        ("body", MAX_BODY),
        ("token", MAX_TOKEN),
        ("user id", MAX_USER_LEN),
        ("device id", MAX_DEVICE_LEN),
        ("region or node name", MAX_NAME_LEN),
        ("status text, agent", MAX_STATUS_TEXT),
        ("trace context", MAX_TRACE),
        ("users in one WATCH or UNWATCH", MAX_WATCH_BATCH),
        ("origins in a cursor or ACK", MAX_ORIGINS),
    ]
    .map(|(what, limit)| (what.to_owned(), limit))
    .into();
    assert_eq!(documented, expected);
}

#[test]
fn the_page_shows_every_fixture_as_it_is() {
    let page = page();
    for file in std::fs::read_dir(fixtures()).unwrap() {
        let path = file.unwrap().path();
        let fixture = std::fs::read_to_string(&path).unwrap();
        assert_eq!(fixture, annotate(&parse(&fixture)), "{}", path.display());
        assert!(
            page.contains(fixture.trim_end()),
            "docs/protocol.md must show {} as it is",
            path.display()
        );
    }
}

/// The kinds that the decoders know, with their names in upper case.
fn known_kinds() -> BTreeMap<u8, String> {
    let by_client = |kind| ClientFrame::decode(kind, Bytes::new()) != Err(WireError::Kind(kind));
    let by_server = |kind| ServerFrame::decode(kind, Bytes::new()) != Err(WireError::Kind(kind));
    let mut names = BTreeMap::new();
    for (name, frame) in client_frames() {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        names.insert(out[5], name);
    }
    for (name, frame) in server_frames() {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        names.insert(out[5], name);
    }
    (0..=255)
        .filter(|kind| by_client(*kind) || by_server(*kind))
        .map(|kind| {
            let name = names
                .get(&kind)
                .unwrap_or_else(|| panic!("kind {kind} has no example in this test"));
            (kind, name.to_uppercase().replace('-', "_"))
        })
        .collect()
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wire")
}

/// The bytes of a fixture, which must be those that were encoded.
fn fixture(name: &str, encoded: &[u8]) -> Bytes {
    let path = fixtures().join(format!("{name}.hex"));
    if std::env::var_os("IRIS_TEST_WRITE_FIXTURES").is_some() {
        std::fs::write(&path, annotate(encoded)).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let bytes = parse(&text);
    assert_eq!(
        bytes,
        encoded,
        "{} differs from what is encoded now",
        path.display()
    );
    bytes.into()
}

/// Hexadecimal digits, white space, and remarks from `#` to the end of a line.
fn parse(text: &str) -> Vec<u8> {
    let digits: String = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .flat_map(str::chars)
        .filter(|c| !c.is_whitespace())
        .collect();
    (0..digits.len() / 2)
        .map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap())
        .collect()
}

/// A frame, part by part.
fn annotate(frame: &[u8]) -> String {
    let id = ("message id", 16);
    let seq = ("session sequence", 8);
    let at = [("origin", 8), ("sequence", 8)];
    let header: Vec<(&str, usize)> = match frame[5] {
        2 | 67 => vec![id, seq],
        66 => vec![id, seq, at[0], at[1], ("duplicate", 1), ("durability", 1)],
        7 | 9 | 74 => vec![("nonce", 8)],
        72 => vec![("nonce", 8), ("server's time", 8)],
        68 => vec![
            at[0],
            at[1],
            ("operation: version", 1),
            ("operation: kind", 1),
            ("operation: clock, milliseconds", 8),
            ("operation: clock, logical", 4),
        ],
        _ => vec![],
    };
    let mut out = String::new();
    let mut rest = frame;
    let mut part = |name: &str, len: usize| {
        let (now, later) = rest.split_at(len);
        rest = later;
        for (i, line) in now.chunks(16).enumerate() {
            let hex: String = line.iter().map(|byte| format!("{byte:02x}")).collect();
            match i {
                0 => writeln!(out, "{hex:<34}# {name}").unwrap(),
                _ => writeln!(out, "{hex}").unwrap(),
            }
        }
        now.len()
    };
    part("length of what follows", 4);
    part("version", 1);
    part("kind", 1);
    let mut at = 6;
    for (name, len) in header {
        at += part(name, len);
    }
    let control = u32::from_be_bytes(frame[at..at + 4].try_into().unwrap()) as usize;
    part("length of the control part", 4);
    part("control part, MessagePack", control);
    let body = frame.len() - at - 4 - control;
    if body > 0 {
        part("body", body);
    }
    match notation(&mut &frame[at + 4..at + 4 + control]) {
        nothing if nothing == "nil" => out,
        values => out + "# control part: " + &values + "\n",
    }
}

/// The MessagePack value that `bytes` begin with, as people write it.
fn notation(bytes: &mut &[u8]) -> String {
    fn take<'a>(bytes: &mut &'a [u8], len: usize) -> &'a [u8] {
        bytes.split_off(..len).expect("a whole value")
    }
    fn number(bytes: &mut &[u8], len: usize) -> u64 {
        take(bytes, len)
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
    let text = |bytes: &[u8]| format!("{:?}", std::str::from_utf8(bytes).unwrap());
    let first = take(bytes, 1)[0];
    match first {
        0..0x80 => first.to_string(),
        0x90..0xa0 => {
            let values: Vec<String> = (0..first & 0x0f).map(|_| notation(bytes)).collect();
            format!("[{}]", values.join(", "))
        }
        0xa0..0xc0 => text(take(bytes, usize::from(first & 0x1f))),
        0xc0 => "nil".to_owned(),
        0xc4 => {
            let len = number(bytes, 1) as usize;
            let hex: String = take(bytes, len)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            format!("h'{hex}'")
        }
        0xcc..0xd0 => number(bytes, 1 << (first - 0xcc)).to_string(),
        0xd9 => {
            let len = number(bytes, 1) as usize;
            text(take(bytes, len))
        }
        other => panic!("{other:02x}: what the fixtures do not hold so far"),
    }
}

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/protocol.md");
    std::fs::read_to_string(path).unwrap()
}

/// The rows of the first table behind a heading, without backticks.
fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let mut lines = page
        .lines()
        .skip_while(|line| line.trim_start_matches('#').trim() != heading);
    assert!(
        lines.next().is_some(),
        "docs/protocol.md has no heading {heading:?}"
    );
    let rows: Vec<Vec<String>> = lines
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            line.trim_matches('|')
                .split('|')
                .map(|cell| cell.trim().replace('`', ""))
                .collect()
        })
        .collect();
    assert!(!rows.is_empty(), "no table behind {heading:?}");
    rows
}

#[test]
fn the_version_is_the_documented_one() {
    assert!(page().contains(&format!("frame version {WIRE_VERSION}")));
}
