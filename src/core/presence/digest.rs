//! Digests of a shard's presence: whether two regions show the same, and where they differ.
//!
//! A record's **place** is a hash of its user and device, so records are spread evenly; what counts of it is a hash of all
//! that travels ([`Entry::encode`]), and nothing that only one region knows. The digest of some records is the sum of their
//! hashes: it does not depend on the order in which they came, and a change costs an addition and a subtraction.
//!
//! ```text
//! shard      sum of all                    bits of the place:  0 0 | 1 0 | 1 1 | ...
//! node       all whose places begin so     children of a node: two bits more
//! item       one live record: the upper half of its place, and its version in short
//! ```
//!
//! Only live records count. The end of a session is a record that others may have dropped already, each region for itself
//! (see [`super::table`]): two regions that show the same are equal, whatever ends they remember. Where one has a live record
//! and the other remembers its end, their digests differ, and the one that knows of the end tells it.
//!
//! Digests of nodes are cut to 24 bits, those of lists to 16, under a salt that is another one each time: what is taken for equal
//! by chance, a record or two where a hundred thousand differ, is not taken for equal in the next round.
//!
//! This is set reconciliation by ranges: A. Meyer, "Range-Based Set Reconciliation", 2023; the tree is that of
//! R. Merkle, "A digital signature based on a conventional encryption function", 1987.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::record::{Entry, Stage, Version};
use super::table::{Key, Presence};
use crate::core::ids::{DeviceId, ShardId, UserId};

/// Bits that a node's children have more than it.
const STEP: u32 = 2;
/// Most bits of a node: those of an item's key.
const MAX_BITS: u32 = 32;
/// With so many live records or fewer a node is told by its items: about where a level more costs as many bytes.
const FEW: usize = 3;

/// Most items that are told of one key. That two records have one is rare; where it ever were so many, all of them are sent.
const MAX_UNDER_KEY: usize = 1024;

/// What two regions compare of a shard first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Sum of the live records' hashes.
    pub sum: u64,
    /// Nothing at all is known, no ended session either: whatever the other has is missing here.
    pub blank: bool,
}

/// All places that begin with the same bits: those bits below a leading one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Node(u64);

impl Node {
    /// All places.
    pub const ROOT: Node = Node(1);

    /// Whether there is such a node.
    pub fn is_valid(self) -> bool {
        self.0 > 0 && self.bits() <= MAX_BITS && self.bits().is_multiple_of(STEP)
    }

    /// The nodes below it; it has none where a place's upper half is all known.
    pub fn children(self) -> Option<[Node; 4]> {
        (self.is_valid() && self.bits() < MAX_BITS).then(|| [0, 1, 2, 3].map(|at| Node(self.0 << STEP | at)))
    }

    fn bits(self) -> u32 {
        63_u32.saturating_sub(self.0.leading_zeros())
    }

    /// The first place and the last.
    fn places(self) -> (u64, u64) {
        let rest = 64 - self.bits();
        let all = u64::MAX.checked_shr(self.bits()).unwrap_or(0);
        let first = self.0.checked_shl(rest).unwrap_or(0);
        (first, first | all)
    }

    /// All places of a key.
    fn of(key: u32) -> Node {
        Node(1 << MAX_BITS | u64::from(key))
    }
}

/// A live record in short: enough to say which of two is the newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Item {
    /// The upper half of its place.
    pub key: u32,
    /// Connect epoch of its version.
    pub epoch: u64,
    /// The upper half of its session.
    pub session: u32,
    /// Its counter.
    pub counter: u64,
}

/// Digests of a node's four children, three bytes each.
pub type Sums = ByteArray<12>;

/// A part of the comparison of a shard: what its teller has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Comparison {
    /// The shard.
    pub shard: ShardId,
    /// It has nothing at all: send everything.
    pub blank: bool,
    /// Nodes, with the digests of their four children.
    pub sums: Vec<(Node, Sums)>,
    /// Nodes, with their digests and all their items.
    pub lists: Vec<(Node, u16, Vec<Item>)>,
    /// Some of its items, which the other did not list.
    pub items: Vec<Item>,
    /// Keys of which it wants the records.
    pub wants: Vec<u32>,
}

impl Comparison {
    /// How much it holds.
    pub fn parts(&self) -> usize {
        let listed = self.lists.iter().map(|(.., items)| 1 + items.len());
        self.sums.len() + listed.sum::<usize>() + self.items.len() + self.wants.len()
    }
}

/// What is to be told of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The digests of its children.
    Sums(Sums),
    /// Its digest and its items, which are few.
    List(u16, Vec<Item>),
}

/// What follows from an item of the other region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It is known here.
    Same,
    /// Something newer is known here.
    Older,
    /// It is not known here.
    Newer,
    /// Both, where several records have one key.
    Both,
}

/// Where a record stands among the others: by its place, then its key. Without a key it is before all of that place.
pub type At = (u64, Option<Key>);

/// The places of a shard's records. A record whose session ended has the hash 0.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    hashes: BTreeMap<At, u64>,
    sum: u64,
}

impl Places {
    /// A record is as told now.
    pub(super) fn set(&mut self, key: &Key, hash: Option<u64>) {
        let hash = hash.unwrap_or(0);
        let old = self.hashes.insert(at(key), hash);
        self.sum = self.sum.wrapping_sub(old.unwrap_or(0)).wrapping_add(hash);
    }

    /// A record is gone.
    pub(super) fn remove(&mut self, key: &Key) {
        let old = self.hashes.remove(&at(key));
        self.sum = self.sum.wrapping_sub(old.unwrap_or(0));
    }

    /// The records of a node, with their hashes.
    fn of(&self, node: Node) -> impl Iterator<Item = (u64, &Key, u64)> {
        let (first, last) = node.places();
        let from = (first, None);
        self.hashes
            .range::<At, _>((Bound::Included(&from), Bound::Unbounded))
            .take_while(move |((place, _), _)| *place <= last)
            .filter_map(|((place, key), hash)| Some((*place, key.as_ref()?, *hash)))
    }
}

impl Presence {
    /// The digest of all that is live.
    pub fn digest(&self) -> Digest {
        Digest {
            sum: self.places.sum,
            blank: self.places.hashes.is_empty(),
        }
    }

    /// The digest of a node that is told by its items.
    pub fn sum_of(&self, node: Node, salt: u32) -> u16 {
        self.salted(node, salt) as u16
    }

    /// The digest of a node that is told by its parent.
    fn child_sum(&self, node: Node, salt: u32) -> [u8; 3] {
        let [.., a, b, c] = self.salted(node, salt).to_be_bytes();
        [a, b, c]
    }

    fn salted(&self, node: Node, salt: u32) -> u64 {
        let hashes = self.places.of(node).map(|(.., hash)| hash);
        let sum = hashes.fold(0, u64::wrapping_add);
        xxh3_64_with_seed(&sum.to_be_bytes(), salt.into())
    }

    /// What another region is to be told of a node.
    pub fn tell(&self, node: Node, salt: u32) -> Told {
        let few: Vec<Item> = self.items_of(node).take(FEW + 1).collect();
        match node.children() {
            Some(children) if few.len() > FEW => {
                let mut sums = Sums::default();
                for (child, sum) in children.into_iter().zip(sums.chunks_mut(3)) {
                    sum.copy_from_slice(&self.child_sum(child, salt));
                }
                Told::Sums(sums)
            }
            _ => Told::List(
                self.sum_of(node, salt),
                self.items_of(node).take(MAX_UNDER_KEY).collect(),
            ),
        }
    }

    /// The children of a node that differ from what another region told of them.
    pub fn differing(&self, node: Node, told: &Sums, salt: u32) -> Vec<Node> {
        let children = node.children().into_iter().flatten();
        let pairs = children.zip(told.chunks(3));
        pairs
            .filter(|(child, sum)| self.child_sum(*child, salt) != **sum)
            .map(|(child, _)| child)
            .collect()
    }

    /// The live records of a node.
    pub fn items_of(&self, node: Node) -> impl Iterator<Item = Item> {
        let live = self.places.of(node).filter(|(.., hash)| *hash != 0);
        live.filter_map(|(place, (user, device), _)| {
            let version = self.slot(user, device)?.register.marker;
            Some(Item {
                key: key_of(place),
                epoch: version.connect_epoch,
                session: (version.session.0 >> 32) as u32,
                counter: version.counter()?,
            })
        })
    }

    /// What follows from an item of another region.
    pub fn judge(&self, item: &Item) -> Judgement {
        let known = self.places.of(Node::of(item.key));
        let orders = known.filter_map(|(_, (user, device), _)| {
            let version = self.slot(user, device)?.register.marker;
            Some(order(version, item))
        });
        let (mut older, mut newer) = (false, false);
        for order in orders {
            match order {
                Ordering::Equal => return Judgement::Same,
                Ordering::Greater => older = true,
                Ordering::Less => newer = true,
            }
        }
        match (older, newer) {
            (true, false) => Judgement::Older,
            (true, true) => Judgement::Both,
            (false, _) => Judgement::Newer,
        }
    }

    /// The live records under a key, items of them.
    pub fn items_under(&self, key: u32) -> impl Iterator<Item = Item> {
        self.items_of(Node::of(key)).take(MAX_UNDER_KEY)
    }

    /// The records under a key, ended ones too.
    pub fn records_under(&self, key: u32) -> impl Iterator<Item = Entry> {
        let known = self.places.of(Node::of(key));
        known.filter_map(|(_, (user, device), _)| self.record(user, device))
    }

    /// A page of all live records above a place, with the place of each.
    pub fn live_above(&self, after: Option<&At>, limit: usize) -> Vec<(At, Entry)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let records = self.places.hashes.range::<At, _>((from, Bound::Unbounded));
        let live = records.filter(|(_, hash)| **hash != 0);
        live.filter_map(|(at, _)| {
            let (user, device) = at.1.as_ref()?;
            Some((at.clone(), self.record(user, device)?))
        })
        .take(limit)
        .collect()
    }
}

/// The hash of a record, as it counts in digests: all that travels, none of an ended session.
pub(super) fn hash_of(entry: &Entry) -> Option<u64> {
    entry.value()?;
    Some(xxh3_64(&entry.encode()).max(1))
}

/// Whether what is known under a key is the newer one.
fn order(version: Version, item: &Item) -> Ordering {
    let known = (version.connect_epoch, (version.session.0 >> 32) as u32);
    let stage = match version.stage {
        Stage::Ended => Ordering::Greater,
        Stage::Live { counter, .. } => counter.cmp(&item.counter),
    };
    known.cmp(&(item.epoch, item.session)).then(stage)
}

fn at(key: &Key) -> At {
    (place(&key.0, &key.1), Some(key.clone()))
}

fn place(user: &UserId, device: &DeviceId) -> u64 {
    let mut bytes = Vec::with_capacity(user.as_str().len() + device.as_str().len() + 1);
    bytes.extend_from_slice(user.as_str().as_bytes());
    // In no user's name.
    bytes.push(0);
    bytes.extend_from_slice(device.as_str().as_bytes());
    xxh3_64(&bytes)
}

fn key_of(place: u64) -> u32 {
    (place >> 32) as u32
}
