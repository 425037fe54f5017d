//! What it costs to make presence equal again where regions have it differently, and what that difference weighs.
//!
//! The difference is read from the tables of both regions, at the moment at which one of them tells the other the digests of a
//! link that is new: of each device the record that the other lacks, in bytes as it is sent. An end that only one of them
//! remembers is no difference. It counts from the first fault on. What is spent is counted from the messages themselves, both ways.

use std::collections::BTreeMap;

use super::world::World;
use crate::core::ids::{DeviceId, ShardId, UserId};
use crate::core::msg::{Message, ToSubscriber};
use crate::core::presence::{Entry, Presence};

impl World {
    /// A message leaves a node for another one, in so many bytes.
    pub(super) fn note_repair(&mut self, node: usize, target: usize, message: &Message, bytes: usize) {
        let Message::ToSubscriber { body, .. } = message else {
            return;
        };
        // At the start everybody comes while links open: that is no repair.
        if self.struck.is_empty() {
            return;
        }
        let bytes = bytes as u64;
        match body {
            ToSubscriber::PresenceDigests {
                at_once: true,
                shards,
            } => {
                let [here, there] = [node, target].map(|node| self.nodes[node].region);
                let shards: Vec<ShardId> = shards.iter().map(|(shard, _)| *shard).collect();
                let differs: u64 = shards
                    .into_iter()
                    .map(|shard| self.presence_differs(here, there, shard))
                    .sum();
                self.check.stats.presence_differed += differs;
                self.check.stats.presence_repair_bytes += bytes;
                let names = [here, there].map(|region| self.region_name(region).clone());
                if differs > 0 {
                    self.trace.chapter(self.now, || {
                        let [here, there] = names;
                        format!("{here} and {there} compare presence: {differs} bytes of it differ")
                    });
                }
            }
            ToSubscriber::PresenceDigests { .. } => self.check.stats.presence_digest_bytes += bytes,
            ToSubscriber::PresenceCompared { .. } => self.check.stats.presence_repair_bytes += bytes,
            ToSubscriber::PresenceRepair(records) => {
                self.check.stats.presence_repaired += records.len() as u64;
                self.check.stats.presence_repair_bytes += bytes;
            }
            _ => {}
        }
    }

    /// Bytes of what either region lacks of a shard's presence.
    fn presence_differs(&self, here: usize, there: usize, shard: ShardId) -> u64 {
        let users = self.check.users.get(&shard).into_iter().flatten();
        // A region where nobody owns the shard yet has nothing of it.
        let nothing = Presence::new(self.region_name(here).clone());
        let [ours, theirs] = [here, there].map(|region| self.presence_in(region, shard));
        let [ours, theirs] = [ours, theirs].map(|table| table.unwrap_or(&nothing));
        users.map(|user| weight(ours, theirs, user)).sum()
    }
}

/// Bytes of what either of two tables lacks of a user's devices.
fn weight(ours: &Presence, theirs: &Presence, user: &UserId) -> u64 {
    let records = |table: &Presence| -> BTreeMap<DeviceId, Entry> {
        let all = table.records_of(user);
        all.map(|entry| (entry.device().clone(), entry)).collect()
    };
    let (ours, theirs) = (records(ours), records(theirs));
    let mut all = ours.clone();
    for (device, entry) in &theirs {
        let known = all.entry(device.clone()).or_insert_with(|| entry.clone());
        if known.version() < entry.version() {
            *known = entry.clone();
        }
    }
    let live = |entry: Option<&Entry>| entry.is_some_and(|entry| entry.value().is_some());
    let differs = all.iter().filter(|(device, _)| {
        let (ours, theirs) = (ours.get(*device), theirs.get(*device));
        ours != theirs && (live(ours) || live(theirs))
    });
    differs.map(|(_, entry)| entry.encode().len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::{Generation, NodeKey, NodeName, RegionId, SessionId};
    use crate::core::presence::{Edge, Live, StatusText};
    use crate::core::wire::Status;

    fn table(entries: &[&Entry]) -> Presence {
        let mut table = Presence::new(RegionId::new("here").unwrap());
        for entry in entries {
            table.merge((*entry).clone());
        }
        table
    }

    #[test]
    fn a_difference_is_what_one_lacks_of_what_is_live() {
        let (user, device) = (UserId::new("alice").unwrap(), DeviceId::new("phone").unwrap());
        let region = RegionId::new("there").unwrap();
        let edge = Edge {
            node: NodeKey {
                region: region.clone(),
                node: NodeName::new("edge").unwrap(),
            },
            generation: Generation(1),
        };
        let value = Live {
            status: Status::Online,
            text: StatusText::default(),
            region,
            edge,
            since_ms: 1,
        };
        let live = |epoch| {
            let version = (epoch, SessionId(1), 0, false);
            Entry::live(user.clone(), device.clone(), version, value.clone()).unwrap()
        };
        let ended = |epoch| Entry::ended(user.clone(), device.clone(), epoch, SessionId(1)).unwrap();
        let len = |entry: &Entry| entry.encode().len() as u64;
        let (one, two, over) = (live(1), live(2), ended(2));
        let cases: [(&[&Entry], &[&Entry], u64); 6] = [
            (&[], &[], 0),
            (&[&one], &[&one], 0),
            (&[&one], &[], len(&one)),
            (&[&one], &[&two], len(&two)),
            (&[&two], &[&over], len(&over)),
            (&[], &[&over], 0),
        ];
        for (ours, theirs, expected) in cases {
            let (ours, theirs) = (table(ours), table(theirs));
            assert_eq!(weight(&ours, &theirs, &user), expected);
            assert_eq!(weight(&theirs, &ours, &user), expected);
        }
    }
}
