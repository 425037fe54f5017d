//! Why a user is seen as it is: each device's record, what it comes to, and which one decides.

use std::collections::BTreeMap;

use super::record::Stage;
use super::table::Presence;
use super::visible::{VisibleStatus, status_of};
use crate::core::ids::{RegionId, UserId};
use crate::core::inspect::{Digits, RecordFacts, Shown};

impl From<VisibleStatus> for Shown {
    fn from(status: VisibleStatus) -> Self {
        match status {
            VisibleStatus::Offline => Shown::Offline,
            VisibleStatus::Unreachable { .. } => Shown::Unreachable,
            VisibleStatus::Away => Shown::Away,
            VisibleStatus::Dnd => Shown::Dnd,
            VisibleStatus::Online => Shown::Online,
        }
    }
}

impl Presence {
    /// The records of a user in order of device, while some regions are out of reach, each since a time in unix milliseconds.
    pub fn explain(&self, user: &UserId, unreachable: &BTreeMap<RegionId, u64>) -> Vec<RecordFacts> {
        let ranks = self.slots_of(user).filter_map(|(device, slot)| {
            let live = slot.register.val.as_deref()?;
            let status = status_of(live, unreachable);
            let rank = (status, live.since_ms, slot.register.marker.session);
            (status != VisibleStatus::Offline).then_some((rank, device))
        });
        let best = ranks.max().map(|(_, device)| device.clone());
        let facts = self.slots_of(user).map(|(device, slot)| {
            let (marker, live) = (slot.register.marker, slot.register.val.as_deref());
            let shown = live.map_or(VisibleStatus::Offline, |live| status_of(live, unreachable));
            let decides = best.as_ref() == Some(device);
            let (counter, proved) = match marker.stage {
                Stage::Live { counter, proved } => (Some(counter), proved),
                Stage::Ended => (None, false),
            };
            let contested = slot
                .local
                .as_ref()
                .is_some_and(|local| live.is_none() || local.version.session != marker.session);
            RecordFacts {
                device: device.clone(),
                connect_epoch: marker.connect_epoch,
                session: Digits(marker.session.0),
                counter,
                proved,
                ended: live.is_none(),
                chosen: live.map(|live| live.status.into()),
                shown: shown.into(),
                text: live.map(|live| live.text.as_str().to_owned()).unwrap_or_default(),
                written_by: live.map(|live| live.region.clone()),
                edge: live.map(|live| live.edge.node.clone()),
                edge_generation: live.map(|live| live.edge.generation.0),
                since_ms: live.map(|live| live.since_ms),
                attached_here: slot.local.is_some(),
                contested,
                decides,
                why: why(
                    self.region(),
                    live.map(|live| &live.region),
                    shown,
                    decides,
                    contested,
                ),
            }
        });
        facts.collect()
    }
}

fn why(
    here: &RegionId,
    writer: Option<&RegionId>,
    shown: VisibleStatus,
    decides: bool,
    contested: bool,
) -> String {
    let Some(writer) = writer else {
        return "its session ended: the record is kept so that an older one cannot come back".to_owned();
    };
    let source = if writer == here {
        "written here, where its session is attached".to_owned()
    } else {
        format!("told by {writer}, which alone writes it")
    };
    let comes_to = match shown {
        VisibleStatus::Offline => "it hides itself".to_owned(),
        VisibleStatus::Unreachable { .. } => {
            format!("{writer} is out of reach, so what it last told is not taken for true")
        }
        _ if decides => "no other device shows more".to_owned(),
        _ => "another device shows more, or came later".to_owned(),
    };
    let contest = if contested {
        "; another session of this device contests it"
    } else {
        ""
    };
    format!("{source}; {comes_to}{contest}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::{Generation, SessionId};
    use crate::core::presence::{Edge, Entry, Live, StatusText};
    use crate::core::wire::Status;

    #[test]
    fn the_record_that_decides_is_the_one_that_is_seen() {
        let region = |id: &str| RegionId::new(id).unwrap();
        let user: UserId = "bob".parse().unwrap();
        let mut presence = Presence::new(region("us"));
        let mut tell = |device: &str, from: &str, session, status, since_ms| {
            let live = Live {
                status,
                text: StatusText::default(),
                region: region(from),
                edge: Edge {
                    node: crate::core::ids::NodeKey {
                        region: region(from),
                        node: "edge-1".parse().unwrap(),
                    },
                    generation: Generation(3),
                },
                since_ms,
            };
            let version = (1, SessionId(session), 0, false);
            let entry = Entry::live(user.clone(), device.parse().unwrap(), version, live).unwrap();
            presence.merge(entry);
        };
        tell("phone", "eu", 7, Status::Online, 50);
        tell("tablet", "ap", 8, Status::Away, 90);
        presence.merge(Entry::ended(user.clone(), "desk".parse().unwrap(), 4, SessionId(9)).unwrap());
        let explained = |unreachable: &BTreeMap<RegionId, u64>| {
            let records = presence.explain(&user, unreachable);
            let deciding: Vec<RecordFacts> =
                records.iter().filter(|record| record.decides).cloned().collect();
            let [one] = &deciding[..] else {
                panic!("one decides: {records:?}")
            };
            let seen = presence.visible(&user, unreachable);
            assert_eq!(
                (one.shown, one.written_by.clone()),
                (seen.status.into(), seen.region)
            );
            (records.clone(), one.device.to_string())
        };
        let (records, decides) = explained(&BTreeMap::new());
        assert_eq!((records.len(), decides.as_str()), (3, "phone"));
        assert!(records[0].ended && records[0].counter.is_none(), "{records:?}");
        assert_eq!(records[0].shown, Shown::Offline);
        let (records, decides) = explained(&BTreeMap::from([(region("eu"), 1_000)]));
        assert_eq!(
            (records[1].shown, decides.as_str()),
            (Shown::Unreachable, "tablet")
        );
        assert!(records[1].why.contains("out of reach"), "{}", records[1].why);
        assert_eq!(records[1].chosen, Some(Shown::Online));
    }
}
