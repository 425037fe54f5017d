//! One store, on several engines that must say the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::Harness;
use super::super::kit::{S, user};
use super::USERS;
use crate::core::commit::StoreOp;
use crate::core::ids::{Epoch, Origin, Seq, UserId};
use crate::core::snapshot::{Cut, CutLog, SnapshotAt, SnapshotPage};
use crate::core::state::{ShardRow, StoreIdentity, UserRow};
use crate::core::time::Hlc;
use crate::core::vector::Vector;
use crate::store::engine::{Committed, Engine, InboxEntry, Read, ReadReply};

/// Something that a store did, to do it again.
pub(super) enum Past {
    Commit(Vec<StoreOp>, u64),
    Open(StoreIdentity),
}

/// One store, on several engines.
pub(super) struct Node<'a> {
    pub(super) harnesses: Vec<&'a mut dyn Harness>,
    pub(super) engines: Vec<Box<dyn Engine>>,
    pub(super) identity: StoreIdentity,
    pub(super) epoch: Epoch,
    pub(super) recovers: bool,
    pub(super) turns: usize,
    pub(super) past: Vec<Past>,
}

impl<'a> Node<'a> {
    pub(super) fn create(mut harnesses: Vec<&'a mut dyn Harness>, identity: StoreIdentity) -> Self {
        let engines = harnesses
            .iter_mut()
            .map(|harness| harness.create(identity.clone()));
        let engines = engines.collect();
        Self {
            harnesses,
            engines,
            identity,
            epoch: Epoch(0),
            recovers: false,
            turns: 0,
            past: Vec::new(),
        }
    }

    pub(super) fn commit(&mut self, ops: Vec<StoreOp>, now: u64) -> Committed {
        let engines = self.engines.iter_mut();
        let mut results = engines.map(|engine| engine.commit(ops.clone(), now).unwrap());
        let first = results.next().expect("an engine");
        for result in results {
            assert_eq!(result, first, "the engines differ: {ops:?}");
        }
        self.past.push(Past::Commit(ops, now));
        first
    }

    /// Ends as in a crash, and opens under another origin (R1).
    pub(super) fn open(&mut self, identity: StoreIdentity) {
        self.identity = identity.clone();
        let old = std::mem::take(&mut self.engines);
        for (harness, engine) in self.harnesses.iter_mut().zip(old) {
            self.engines.push(harness.reopen(engine, identity.clone()));
        }
        self.past.push(Past::Open(identity));
    }

    pub(super) fn read(&mut self, read: &Read) -> ReadReply {
        let mut replies = self.engines.iter_mut().map(|engine| engine.read(read).unwrap());
        let first = replies.next().expect("an engine");
        for reply in replies {
            assert_eq!(reply, first, "the engines differ: {read:?}");
        }
        first
    }

    pub(super) fn shard(&mut self) -> ShardRow {
        match self.read(&Read::Shard(S)) {
            ReadReply::Shard(row) => *row,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn user(&mut self, name: &UserId) -> UserRow {
        match self.read(&Read::User(S, name.clone())) {
            ReadReply::User(row) => *row,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn inbox(&mut self, user: &UserId) -> Vec<InboxEntry> {
        let read = Read::Inbox {
            shard: S,
            user: user.clone(),
            after: Vector::new(),
            max_items: 1_000,
            max_bytes: usize::MAX,
        };
        match self.read(&read) {
            ReadReply::Inbox(page) if page.end => page.entries,
            other => panic!("{other:?}"),
        }
    }

    /// A page from one of the engines, each in its turn: where one of them ended another goes on. How far dedup records of
    /// a page go is their own affair.
    pub(super) fn page(
        &mut self,
        cut: Option<Arc<Cut>>,
        after: SnapshotAt,
        items: usize,
        bytes: usize,
    ) -> (Arc<Cut>, SnapshotPage) {
        let read = Read::Snapshot {
            shard: S,
            cut,
            after,
            max_items: items,
            max_bytes: bytes,
        };
        let engines = self.engines.iter_mut();
        let mut found: Vec<(Arc<Cut>, SnapshotPage)> = engines
            .map(|engine| match engine.read(&read).unwrap() {
                ReadReply::Snapshot(cut, page) => (cut, *page),
                other => panic!("{other:?}"),
            })
            .collect();
        let longest = found
            .iter()
            .map(|(_, page)| &page.dedup)
            .max_by_key(|dedup| dedup.len());
        let longest = longest.expect("an engine").clone();
        for (cut, page) in &found {
            assert_eq!(
                (cut, &page.users),
                (&found[0].0, &found[0].1.users),
                "the engines differ: {read:?}"
            );
            assert_eq!(
                page.dedup,
                longest[..page.dedup.len()],
                "the engines differ: {read:?}"
            );
        }
        self.turns += 1;
        let turn = self.turns % found.len();
        found.swap_remove(turn)
    }

    /// Every row but the counts that only say when the next confirmation is due.
    pub(super) fn everything(&mut self) -> (ShardRow, Vec<UserRow>, SnapshotPage) {
        let mut row = self.shard();
        (row.news, row.confirms) = (0, 0);
        let all = |origin: &Origin, region: &_| {
            let log = CutLog {
                region: Clone::clone(region),
                seq: Seq::MAX,
                hash: 0,
                previous: None,
                hlc: Hlc::default(),
            };
            (*origin, log)
        };
        let logs = row.logs.iter().map(|(origin, log)| all(origin, &log.region));
        let cut = Arc::new(Cut {
            logs: logs.collect(),
            confirmed: BTreeMap::new(),
            forgotten: 0,
            retired: BTreeMap::new(),
            holders: None,
        });
        let mut pages = SnapshotPage::default();
        let mut at = Some(SnapshotAt::Start);
        while let Some(after) = at {
            let (_, page) = self.page(Some(cut.clone()), after, 1_000, usize::MAX);
            at = page.next;
            pages.dedup.extend(page.dedup);
            pages.users.extend(page.users);
        }
        let users = USERS.iter().map(|name| self.user(&user(name))).collect();
        (row, users, pages)
    }
}
