//! What a client keeps over restarts, and the file that it is kept in.
//!
//! The file: magic `IRISCLNT`, version u16, length u64 and xxh3-64 of what follows (all big-endian), then MessagePack. It
//! is replaced as a whole: written beside, synced, renamed. A lock file beside it keeps a second process out.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::event::OutgoingMessage;
use crate::core::ids::{Coord, DeviceId, MessageId, UserId};
use crate::core::vector::Vector;
use crate::file_lock::{FileLock, FileLockError};

/// Version of the file.
pub const STATE_VERSION: u16 = 1;
const MAGIC: &[u8; 8] = b"IRISCLNT";
const HEADER: usize = 8 + 2 + 8 + 8;
/// Larger files are refused: the outbox is at most 64 MB by default, and a few MB are remembered.
const MAX_STATE_BYTES: u64 = 1 << 30;

/// What a client keeps over restarts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SavedState {
    /// The last connect epoch.
    pub connect_epoch: u64,
    /// What was consumed.
    pub cursor: Vector,
    /// Seed of the fingerprints; `None` for a new device.
    pub seed: Option<u64>,
    /// Fingerprints of consumed messages and where they stood, oldest first.
    pub remembered: Vec<(u128, Coord)>,
    /// The highest ticket given.
    pub last_ticket: u64,
    /// Messages that are not accepted, in order.
    pub outbox: Vec<SavedSend>,
}

/// A message that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedSend {
    /// Its ticket.
    pub ticket: u64,
    /// The message, with its id once it had one.
    pub message: OutgoingMessage,
}

/// A state file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system said no.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{} is in use by another process: end that one, or give another state file", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The bytes are not a state.
    #[error(
        "{} is not a usable client state: {problem}; move it away to begin anew (what was not accepted is lost, and what \
         is still stored comes again)",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// It belongs to somebody else: its cursor would skip messages.
    #[error("{} is the state of {found}, not of {expected}: give another state file", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose was expected.
        expected: String,
    },
}

/// Whose state it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The user, where the token tells.
    pub user: Option<UserId>,
    /// The device.
    pub device: DeviceId,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.user {
            Some(user) => write!(f, "device {} of user {user}", self.device),
            None => write!(f, "device {}", self.device),
        }
    }
}

/// A state file, locked for this process as long as this lives.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    owner: Owner,
    _lock: FileLock,
}

impl StateFile {
    /// Locks the file and reads it; one that does not exist is an empty state. Its folder is made where missing.
    ///
    /// # Errors
    /// [`StateError`] names the file.
    pub fn open(path: &Path, owner: Owner) -> Result<(Self, SavedState), StateError> {
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { what, path, source }
        };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(io("make the folder", folder))?;
        }
        let lock_path = beside(path, "lock");
        let lock = match FileLock::take(&lock_path) {
            Ok(lock) => lock,
            Err(FileLockError::Held { .. }) => return Err(StateError::InUse { path: path.into() }),
            Err(FileLockError::Io { tried, source }) => return Err(io(tried, &lock_path)(source)),
        };
        let state = match File::open(path) {
            Ok(file) => read(file, path, &owner)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => SavedState::default(),
            Err(source) => return Err(io("open", path)(source)),
        };
        let file = Self {
            path: path.into(),
            owner,
            _lock: lock,
        };
        Ok((file, state))
    }

    /// Replaces the file; durable when it returns.
    ///
    /// # Errors
    /// [`StateError::Io`]; the file is as before then.
    pub fn save(&self, state: &SavedState) -> Result<(), StateError> {
        let bytes = encode(&self.owner, state);
        let temporary = beside(&self.path, "tmp");
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { what, path, source }
        };
        let mut file = File::create(&temporary).map_err(io("create", &temporary))?;
        file.write_all(&bytes)
            .and_then(|()| file.sync_all())
            .map_err(io("write", &temporary))?;
        fs::rename(&temporary, &self.path).map_err(io("replace", &self.path))?;
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(io("sync the folder", folder))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The subject of a JWT, read without verifying it: only to tell state files apart.
pub fn token_subject(token: &str) -> Option<UserId> {
    let payload = token.split('.').nth(1)?;
    let bytes = base64url(payload)?;
    let claims: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    UserId::new(claims.get("sub")?.as_str()?).ok()
}

fn base64url(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

fn read(file: File, path: &Path, owner: &Owner) -> Result<SavedState, StateError> {
    let damaged = |problem: String| StateError::Damaged {
        path: path.into(),
        problem,
    };
    let mut bytes = Vec::new();
    file.take(MAX_STATE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| StateError::Io {
            what: "read",
            path: path.into(),
            source,
        })?;
    if bytes.len() as u64 > MAX_STATE_BYTES {
        return Err(damaged(format!("it is longer than {MAX_STATE_BYTES} bytes")));
    }
    let (found, state) = decode(&bytes).map_err(damaged)?;
    let other_user = matches!((&found.user, &owner.user), (Some(a), Some(b)) if a != b);
    if other_user || found.device != owner.device {
        return Err(StateError::Foreign {
            path: path.into(),
            found: found.to_string(),
            expected: owner.to_string(),
        });
    }
    Ok(state)
}

/// The file's form of a state.
#[derive(Serialize, Deserialize)]
struct Stored {
    owner: Owner,
    connect_epoch: u64,
    cursor: Vector,
    seed: u64,
    /// Fingerprint as two halves.
    remembered: Vec<(u64, u64, Coord)>,
    last_ticket: u64,
    outbox: Vec<StoredSend>,
}

#[derive(Serialize, Deserialize)]
struct StoredSend {
    ticket: u64,
    to: UserId,
    kind: u16,
    ttl_ms: u64,
    #[serde(with = "serde_bytes")]
    trace: Vec<u8>,
    id: Option<MessageId>,
    body: Bytes,
}

fn encode(owner: &Owner, state: &SavedState) -> Vec<u8> {
    let stored = Stored {
        owner: owner.clone(),
        connect_epoch: state.connect_epoch,
        cursor: state.cursor.clone(),
        seed: state.seed.unwrap_or_default(),
        remembered: state
            .remembered
            .iter()
            .map(|(print, at)| ((print >> 64) as u64, *print as u64, *at))
            .collect(),
        last_ticket: state.last_ticket,
        outbox: state
            .outbox
            .iter()
            .map(|SavedSend { ticket, message }| StoredSend {
                ticket: *ticket,
                to: message.to.clone(),
                kind: message.kind,
                ttl_ms: message.ttl_ms,
                trace: message.trace.clone(),
                id: message.id,
                body: message.body.clone(),
            })
            .collect(),
    };
    let mut out = vec![0; HEADER];
    rmp_serde::encode::write(&mut out, &stored).expect("plain data in memory always encodes");
    let hash = xxh3_64(&out[HEADER..]);
    let len = (out.len() - HEADER) as u64;
    out[..8].copy_from_slice(MAGIC);
    out[8..10].copy_from_slice(&STATE_VERSION.to_be_bytes());
    out[10..18].copy_from_slice(&len.to_be_bytes());
    out[18..26].copy_from_slice(&hash.to_be_bytes());
    out
}

fn decode(bytes: &[u8]) -> Result<(Owner, SavedState), String> {
    let Some((header, content)) = bytes.split_at_checked(HEADER) else {
        return Err(format!("it has {} bytes, fewer than a header", bytes.len()));
    };
    if &header[..8] != MAGIC {
        return Err("it does not begin with IRISCLNT".to_owned());
    }
    let number = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("8 bytes"));
    let version = u16::from_be_bytes(header[8..10].try_into().expect("2 bytes"));
    if version != STATE_VERSION {
        return Err(format!(
            "it has version {version}; this build knows {STATE_VERSION}"
        ));
    }
    if number(10) != content.len() as u64 {
        return Err(format!(
            "{} bytes follow the header, which says {}",
            content.len(),
            number(10)
        ));
    }
    if number(18) != xxh3_64(content) {
        return Err("its checksum does not match".to_owned());
    }
    let stored: Stored = rmp_serde::from_slice(content).map_err(|error| error.to_string())?;
    let state = SavedState {
        connect_epoch: stored.connect_epoch,
        cursor: stored.cursor,
        seed: Some(stored.seed),
        remembered: stored
            .remembered
            .into_iter()
            .map(|(high, low, at)| (u128::from(high) << 64 | u128::from(low), at))
            .collect(),
        last_ticket: stored.last_ticket,
        outbox: stored
            .outbox
            .into_iter()
            .map(|send| SavedSend {
                ticket: send.ticket,
                message: OutgoingMessage {
                    to: send.to,
                    kind: send.kind,
                    ttl_ms: send.ttl_ms,
                    trace: send.trace,
                    id: send.id,
                    body: send.body,
                },
            })
            .collect(),
    };
    Ok((stored.owner, state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::Origin;

    fn owner(user: &str) -> Owner {
        Owner {
            user: Some(UserId::new(user).unwrap()),
            device: DeviceId::new("phone").unwrap(),
        }
    }

    fn state() -> SavedState {
        let at = Coord {
            origin: Origin(1),
            seq: 4,
        };
        SavedState {
            connect_epoch: 3,
            cursor: [(Origin(1), 4), (Origin(9), 2)].into_iter().collect(),
            seed: Some(77),
            remembered: vec![(u128::MAX - 5, at)],
            last_ticket: 12,
            outbox: vec![SavedSend {
                ticket: 11,
                message: OutgoingMessage {
                    id: Some(MessageId::v7(1, [2; 10])),
                    kind: 4,
                    ttl_ms: 5,
                    trace: vec![1],
                    ..OutgoingMessage::new(UserId::new("bob").unwrap(), &b"hello"[..])
                },
            }],
        }
    }

    #[test]
    fn a_saved_state_comes_back_and_a_second_process_is_kept_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/alice.state");
        let (file, empty) = StateFile::open(&path, owner("alice")).unwrap();
        assert_eq!(empty, SavedState::default());
        assert!(
            matches!(StateFile::open(&path, owner("alice")), Err(StateError::InUse { path: p }) if p == path)
        );
        file.save(&state()).unwrap();
        file.save(&state()).unwrap();
        drop(file);
        let (file, again) = StateFile::open(&path, owner("alice")).unwrap();
        assert_eq!(again, state());
        drop(file);
        let error = StateFile::open(&path, owner("bob")).unwrap_err().to_string();
        assert!(
            error.contains("alice.state") && error.contains("alice") && error.contains("bob"),
            "{error}"
        );
    }

    /// A file that a client has kept must stay readable: never change these bytes. A field that `Stored` gains is to have a
    /// default, or the file a new version and a fixture of its own.
    #[test]
    fn the_format_is_that_of_the_fixture() {
        let anyone = Owner {
            user: None,
            ..owner("alice")
        };
        let fresh = SavedState {
            seed: Some(1),
            outbox: vec![SavedSend {
                ticket: 1,
                message: OutgoingMessage::new(UserId::new("bob").unwrap(), &b""[..]),
            }],
            ..SavedState::default()
        };
        let states = [("all", owner("alice"), state()), ("least", anyone, fresh)];
        let hex = |bytes: Vec<u8>| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
        let text: String = states
            .iter()
            .map(|(name, owner, state)| format!("{name}\n  {}\n", hex(encode(owner, state))))
            .collect();
        let fixture = include_str!("../../tests/fixtures/client-state-v1.txt");
        assert_eq!(text, fixture, "now:\n{text}");
        let stored = fixture.lines().filter_map(|line| line.strip_prefix("  "));
        for (stored, (name, owner, state)) in stored.zip(states) {
            let byte = |at| u8::from_str_radix(&stored[at..at + 2], 16).unwrap();
            let bytes: Vec<u8> = (0..stored.len()).step_by(2).map(byte).collect();
            assert_eq!(decode(&bytes), Ok((owner, state)), "{name}");
        }
    }

    #[test]
    fn every_damage_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let good = encode(&owner("alice"), &state());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x41;
            assert!(decode(&bad).is_err(), "flipped byte {at}");
            assert!(decode(&good[..at]).is_err(), "cut at {at}");
        }
        fs::write(&path, &good[..40]).unwrap();
        let error = StateFile::open(&path, owner("alice")).unwrap_err().to_string();
        assert!(
            error.contains(&path.display().to_string()) && error.contains("move it away"),
            "{error}"
        );
    }

    #[test]
    fn the_subject_of_a_token_is_read() {
        // {"alg":"none"} . {"sub":"bob"}
        assert_eq!(
            token_subject("eyJhbGciOiJub25lIn0.eyJzdWIiOiJib2IifQ.x"),
            UserId::new("bob").ok()
        );
        for bad in ["", "a.b", "a.!!.c", "a.eyJzdWIiOjF9.c"] {
            assert_eq!(token_subject(bad), None);
        }
    }
}
