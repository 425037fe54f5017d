//! Short words for tests of stores.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, Error as _, Visitor};

use crate::core::commit::{Outcome, StoreOp};
use crate::core::ids::{
    Coord, DeviceId, Epoch, MessageId, Origin, RegionId, Seq, SessionId, ShardId, Sharding, UserId,
};
use crate::core::op::{Envelope, LogEntry, LoggedOp, Op};
use crate::core::retire::Retirement;
use crate::core::state::{ShardRow, StoreIdentity, StoreLimits, UserRow};
use crate::core::time::Hlc;
use crate::core::vector::Vector;
use crate::store::engine::{Committed, Engine, InboxEntry, InboxPage, LogPage, Read, ReadReply};

/// The time at which tests begin, unix milliseconds.
pub(crate) const T0: u64 = 1_700_000_000_000;
/// The shard of most tests.
pub(crate) const S: ShardId = ShardId(3);
/// The region of the store under test.
pub(crate) const HERE: &str = "eu-west";
/// Another region.
pub(crate) const THERE: &str = "us-east";

pub(crate) fn region(name: &str) -> RegionId {
    RegionId::new(name).unwrap()
}

pub(crate) fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

pub(crate) fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

pub(crate) fn at(origin: u64, seq: Seq) -> Coord {
    Coord {
        origin: Origin(origin),
        seq,
    }
}

pub(crate) fn vector(items: &[(u64, Seq)]) -> Vector {
    items
        .iter()
        .map(|(origin, seq)| (Origin(*origin), *seq))
        .collect()
}

/// The store of [`HERE`] under this origin, with these holders.
pub(crate) fn identity(origin: u64, holders: &[&str]) -> StoreIdentity {
    StoreIdentity {
        cluster: 7,
        region: region(HERE),
        origin: Origin(origin),
        holders: holders.iter().map(|name| region(name)).collect(),
        sharding: Sharding { count: 8, seed: 1 },
        limits: StoreLimits::default(),
        joining: false,
    }
}

/// A message id of a time and a number.
pub(crate) fn id(ms: u64, number: u64) -> MessageId {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    MessageId::v7(ms, random)
}

pub(crate) fn envelope(to: &str, from: &str, id: MessageId) -> Envelope {
    Envelope {
        to: user(to),
        from: user(from),
        from_device: device("phone"),
        connect_epoch: 1,
        session: SessionId(1),
        session_seq: 1,
        id,
        kind: 1,
        expires_ms: 0,
        trace: Vec::new(),
    }
}

/// A store with one owner of [`S`], and a clock.
pub(crate) struct Store {
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) epoch: Epoch,
    pub(crate) now: u64,
}

impl Store {
    /// Takes [`S`] over.
    pub(crate) fn own(engine: Box<dyn Engine>) -> Self {
        let mut store = Self {
            engine,
            epoch: Epoch(0),
            now: T0,
        };
        match store.one(StoreOp::Bump { shard: S }) {
            Outcome::Bumped { epoch } => store.epoch = epoch,
            other => panic!("{other:?}"),
        }
        store
    }

    pub(crate) fn commit(&mut self, ops: Vec<StoreOp>) -> Committed {
        self.engine.commit(ops, self.now).unwrap()
    }

    pub(crate) fn one(&mut self, op: StoreOp) -> Outcome {
        let mut committed = self.commit(vec![op]);
        assert_eq!(committed.outcomes.len(), 1);
        committed.outcomes.remove(0)
    }

    pub(crate) fn append_op(&self, to: &str, id: MessageId, body: &str) -> StoreOp {
        StoreOp::Append {
            shard: S,
            epoch: self.epoch,
            envelope: Box::new(envelope(to, "alice", id)),
            body: Bytes::copy_from_slice(body.as_bytes()),
            seen_ms: 0,
            known_only: false,
        }
    }

    /// A message of alice with number `n`.
    pub(crate) fn append(&mut self, to: &str, n: u64) -> Outcome {
        self.one(self.append_op(to, id(T0, n), &format!("message {n}")))
    }

    pub(crate) fn appended(&mut self, to: &str, n: u64) -> Coord {
        match self.append(to, n) {
            Outcome::Appended(at) => at,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn cursor(&mut self, of: &str, with: &str, cursor: Vector) -> Outcome {
        self.one(StoreOp::Cursor {
            shard: S,
            epoch: self.epoch,
            user: user(of),
            device: device(with),
            cursor,
        })
    }

    pub(crate) fn register(&mut self, of: &str, with: &str, claim: Vector) -> Outcome {
        self.one(StoreOp::Register {
            shard: S,
            epoch: self.epoch,
            user: user(of),
            device: device(with),
            claim,
        })
    }

    pub(crate) fn confirm(&mut self) -> Outcome {
        let epoch = self.epoch;
        self.one(StoreOp::Confirm { shard: S, epoch })
    }

    pub(crate) fn trim(&mut self) -> Outcome {
        let epoch = self.epoch;
        self.one(StoreOp::Trim { shard: S, epoch })
    }

    pub(crate) fn remove(&mut self, of: &str) -> Outcome {
        self.one(StoreOp::Remove {
            shard: S,
            epoch: self.epoch,
            user: user(of),
        })
    }

    pub(crate) fn drop_dedup(&mut self, day: u32) -> Outcome {
        let epoch = self.epoch;
        self.one(StoreOp::DropDedup { shard: S, epoch, day })
    }

    /// Says that these old origins are not needed, and retires what may be.
    pub(crate) fn retire(&mut self, unneeded: &[u64]) -> Retirement {
        let op = StoreOp::Retire {
            shard: S,
            epoch: self.epoch,
            unneeded: unneeded.iter().copied().map(Origin).collect(),
        };
        match self.one(op) {
            Outcome::Retired(retirement) => retirement,
            other => panic!("{other:?}"),
        }
    }

    /// The users that need an origin.
    pub(crate) fn needed(&mut self, origin: u64, stored: bool) -> Vec<UserId> {
        let read = Read::Needed {
            shard: S,
            origins: [Origin(origin)].into(),
            stored,
            from: None,
        };
        match self.engine.read(&read).unwrap() {
            ReadReply::Needed(page) => page.users.into_iter().map(|(user, _)| user).collect(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn apply(&mut self, log: &Remote, first: Seq, last: Seq) -> Outcome {
        let op = log.run(self.epoch, first, last);
        self.one(op)
    }

    pub(crate) fn shard(&mut self) -> ShardRow {
        match self.engine.read(&Read::Shard(S)).unwrap() {
            ReadReply::Shard(row) => *row,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn user(&mut self, name: &str) -> UserRow {
        match self.engine.read(&Read::User(S, user(name))).unwrap() {
            ReadReply::User(row) => *row,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn inbox_page(
        &mut self,
        of: &str,
        after: Vector,
        max_items: usize,
        max_bytes: usize,
    ) -> InboxPage {
        let read = Read::Inbox {
            shard: S,
            user: user(of),
            after,
            max_items,
            max_bytes,
        };
        match self.engine.read(&read).unwrap() {
            ReadReply::Inbox(page) => page,
            other => panic!("{other:?}"),
        }
    }

    /// The whole inbox, page by page.
    pub(crate) fn inbox(&mut self, of: &str) -> Vec<InboxEntry> {
        let mut after = Vector::new();
        let mut out = Vec::new();
        loop {
            let page = self.inbox_page(of, after.clone(), 100, usize::MAX);
            for entry in page.entries {
                after.raise(entry.at.origin, entry.at.seq);
                out.push(entry);
            }
            if page.end {
                return out;
            }
        }
    }

    pub(crate) fn coords(&mut self, of: &str) -> Vec<Coord> {
        self.inbox(of).iter().map(|entry| entry.at).collect()
    }

    pub(crate) fn log_page(
        &mut self,
        origin: u64,
        after: Seq,
        max_items: usize,
        max_bytes: usize,
    ) -> LogPage {
        let read = Read::Log {
            shard: S,
            origin: Origin(origin),
            after,
            max_items,
            max_bytes,
        };
        match self.engine.read(&read).unwrap() {
            ReadReply::Log(page) => page,
            other => panic!("{other:?}"),
        }
    }

    /// A log from where it begins, page by page, its hashes checked.
    pub(crate) fn log(&mut self, origin: u64) -> Vec<LogEntry> {
        let row = self.shard();
        let Some(log) = row.logs.get(&Origin(origin)) else {
            return Vec::new();
        };
        let (mut after, mut hash) = (log.floor, log.floor_hash);
        let mut out = Vec::new();
        loop {
            let LogPage::Run { before, entries, end } = self.log_page(origin, after, 100, usize::MAX) else {
                panic!("trimmed above its floor");
            };
            assert_eq!(before, hash);
            for entry in entries {
                assert_eq!(entry.seq, after + 1);
                hash = entry.op.running_hash(hash);
                assert_eq!(entry.hash, hash);
                after = entry.seq;
                out.push(entry);
            }
            if end {
                assert_eq!((after, hash), (log.seq, log.hash));
                return out;
            }
        }
    }
}

/// A log of another region, as it would be shipped.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    pub(crate) origin: Origin,
    pub(crate) region: RegionId,
    pub(crate) ops: Vec<LoggedOp>,
    pub(crate) hlc: Hlc,
}

impl Remote {
    /// Begins with its start.
    pub(crate) fn new(name: &str, origin: u64, previous: Option<Coord>, ms: u64) -> Self {
        let mut log = Self {
            origin: Origin(origin),
            region: region(name),
            ops: Vec::new(),
            hlc: Hlc::default(),
        };
        let region = log.region.clone();
        log.push(ms, &Op::Start { region, previous });
        log
    }

    pub(crate) fn push(&mut self, ms: u64, op: &Op) -> Coord {
        self.hlc = self.hlc.tick(ms);
        self.ops.push(LoggedOp::encode(op, self.hlc));
        Coord {
            origin: self.origin,
            seq: self.ops.len() as Seq,
        }
    }

    pub(crate) fn append(&mut self, ms: u64, to: &str, n: u64) -> Coord {
        let body = Bytes::from(format!("message {n}"));
        self.push(ms, &Op::Append(envelope(to, "alice", id(T0, n)), body))
    }

    pub(crate) fn cursor(&mut self, ms: u64, of: &str, with: &str, cursor: Vector) -> Coord {
        let (user, device) = (user(of), device(with));
        self.push(ms, &Op::Cursor { user, device, cursor })
    }

    pub(crate) fn confirm(&mut self, ms: u64, applied: Vector) -> Coord {
        let holder = self.region.clone();
        let needed = Vec::new();
        self.push(
            ms,
            &Op::Confirm {
                holder,
                applied,
                needed,
                retired: Some(Vec::new()),
            },
        )
    }

    /// The running hash after a sequence.
    pub(crate) fn hash(&self, seq: Seq) -> u64 {
        let ops = self.ops[..seq as usize].iter();
        ops.fold(0, |hash, op| op.running_hash(hash))
    }

    pub(crate) fn run(&self, epoch: Epoch, first: Seq, last: Seq) -> StoreOp {
        StoreOp::ApplyRemote {
            shard: S,
            epoch,
            origin: self.origin,
            region: self.region.clone(),
            first,
            before: self.hash(first - 1),
            ops: self.ops[first as usize - 1..last as usize].to_vec(),
            attached: Vec::new(),
        }
    }
}

/// The names of an enum's variants as they are stored: those that it would read.
pub(crate) fn variants<'de, T: Deserialize<'de>>() -> BTreeSet<&'static str> {
    struct Asked(Option<&'static [&'static str]>);
    impl<'de> Deserializer<'de> for &mut Asked {
        type Error = serde::de::value::Error;
        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(Self::Error::custom("not an enum"))
        }
        fn deserialize_enum<V: Visitor<'de>>(
            self,
            _: &'static str,
            variants: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Self::Error> {
            self.0 = Some(variants);
            Err(Self::Error::custom("only asked"))
        }
        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map struct identifier ignored_any
        }
    }
    let mut asked = Asked(None);
    assert!(T::deserialize(&mut asked).is_err());
    asked.0.expect("an enum").iter().copied().collect()
}

/// Bytes as a fixture has them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of a fixture: its indented lines, in order.
pub(crate) fn unhex_lines(fixture: &str) -> Vec<Vec<u8>> {
    let lines = fixture.lines().filter_map(|line| line.strip_prefix("  "));
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    lines
        .map(|line| line.as_bytes().chunks(2).map(byte).collect())
        .collect()
}

pub(crate) fn done() -> Outcome {
    Outcome::Done { more: false }
}

pub(crate) fn applied(through: Seq) -> Outcome {
    Outcome::Applied {
        through,
        stopped: None,
    }
}
