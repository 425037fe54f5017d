//! What a watcher sees of a user: the best over devices, with regions out of reach taken into account.
//!
//! That a region is out of reach is derived here and never written: its records stay as they are, and when it comes back
//! nothing has to be repaired.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::record::{Live, StatusText};
use super::table::Presence;
use crate::core::ids::{DeviceId, RegionId, SessionId, UserId};
use crate::core::wire::{PresenceEvent, Status};

/// A status as seen by others. In order, the greater is shown when devices differ. Someone who is online somewhere can be
/// reached; do-not-disturb comes next, for that person is there and chose it; away only tells that a device lies idle.
/// Each of these is known for sure and beats what is not known; that a user was there when a region was lost beats nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum VisibleStatus {
    /// No device shows itself.
    Offline,
    /// Was there when the region that knows went out of reach.
    Unreachable {
        /// Since when the region is out of reach, unix milliseconds.
        since_ms: u64,
    },
    /// Idle.
    Away,
    /// Do not disturb.
    Dnd,
    /// There.
    Online,
}

/// A user as seen by others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visible {
    /// The best over devices.
    pub status: VisibleStatus,
    /// The text of the device that has it (the latest of equals); empty when offline.
    pub text: StatusText,
    /// When that device's session began, unix milliseconds; 0 when offline.
    pub since_ms: u64,
    /// The region that knows that device; none when offline.
    pub region: Option<RegionId>,
    /// The devices that show themselves, in order of device.
    pub devices: Vec<VisibleDevice>,
}

/// A device that shows itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisibleDevice {
    /// The device.
    pub device: DeviceId,
    /// Its status.
    pub status: VisibleStatus,
    /// The region that knows.
    pub region: RegionId,
    /// When its session began, unix milliseconds.
    pub since_ms: u64,
}

impl Visible {
    /// As told to watchers of `user`.
    pub fn event(&self, user: UserId) -> PresenceEvent {
        let (status, unreachable_since_ms) = match self.status {
            VisibleStatus::Online => (Status::Online, None),
            VisibleStatus::Dnd => (Status::Dnd, None),
            VisibleStatus::Away => (Status::Away, None),
            VisibleStatus::Offline => (Status::Offline, None),
            VisibleStatus::Unreachable { since_ms } => (Status::Offline, Some(since_ms)),
        };
        PresenceEvent {
            user,
            status,
            text: self.text.as_str().to_owned(),
            since_ms: self.since_ms,
            region: self.region.clone(),
            unreachable_since_ms,
            devices: u32::try_from(self.devices.len()).unwrap_or(u32::MAX),
        }
    }
}

impl Presence {
    /// What is seen of a user while some regions are out of reach, each since a time in unix milliseconds.
    pub fn visible(&self, user: &UserId, unreachable: &BTreeMap<RegionId, u64>) -> Visible {
        let mut devices = Vec::new();
        let mut best: Option<((VisibleStatus, u64, SessionId), &Live)> = None;
        for (device, slot) in self.slots_of(user) {
            let Some(live) = slot.register.val.as_deref() else {
                continue;
            };
            let status = status_of(live, unreachable);
            if status == VisibleStatus::Offline {
                continue;
            }
            devices.push(VisibleDevice {
                device: device.clone(),
                status,
                region: live.region.clone(),
                since_ms: live.since_ms,
            });
            let rank = (status, live.since_ms, slot.register.marker.session);
            if best.is_none_or(|(other, _)| rank > other) {
                best = Some((rank, live));
            }
        }
        match best {
            Some(((status, since_ms, _), live)) => Visible {
                status,
                text: live.text.clone(),
                since_ms,
                region: Some(live.region.clone()),
                devices,
            },
            None => Visible {
                status: VisibleStatus::Offline,
                text: StatusText::default(),
                since_ms: 0,
                region: None,
                devices,
            },
        }
    }
}

pub(super) fn status_of(live: &Live, unreachable: &BTreeMap<RegionId, u64>) -> VisibleStatus {
    match (live.status, unreachable.get(&live.region)) {
        // One that hides must not be given away by a lost region.
        (Status::Offline, _) => VisibleStatus::Offline,
        (_, Some(since_ms)) => VisibleStatus::Unreachable { since_ms: *since_ms },
        (Status::Away, None) => VisibleStatus::Away,
        (Status::Dnd, None) => VisibleStatus::Dnd,
        (Status::Online, None) => VisibleStatus::Online,
    }
}
