//! Sessions of this region at the owner of their shard: who writes what, and what follows when a live one loses a merge.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::record::{Edge, Live, StatusText, Version};
use super::table::{Context, MergeOutcome, Presence, Register, Slot, Source, merge_register};
use super::{MAX_EPOCH_CLAIM, MAX_LIVE_DEVICES, MAX_RIVALS};
use crate::core::defect::{self, Defect};
use crate::core::ids::{DeviceId, RegionId, SessionId, UserId};
use crate::core::wire::Status;

/// A session that its edge attaches to this owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// Whose.
    pub user: UserId,
    /// On which device.
    pub device: DeviceId,
    /// The session, a random number of its edge.
    pub session: SessionId,
    /// Where it is connected.
    pub edge: Edge,
    /// When it began, unix milliseconds; fixed by the edge.
    pub since_ms: u64,
    /// The edge's count of changes of this session.
    pub counter: u64,
    /// Its status as of that count.
    pub status: Status,
    /// The text as of that count.
    pub text: StatusText,
    /// For the first time, or again.
    pub claim: Claim,
}

/// What an attach says about the connect epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// A new session; the client remembers this epoch (0: none).
    New {
        /// From its `Hello`.
        remembered: u64,
    },
    /// Admitted by an earlier owner under this epoch.
    Resume {
        /// As given to the edge then.
        connect_epoch: u64,
    },
}

/// Why a session is not admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// The user has too many live devices. Nothing was changed.
    #[error("user {user} has {live} live devices; expected under {MAX_LIVE_DEVICES}: disconnect one first")]
    Devices {
        /// The user.
        user: UserId,
        /// How many.
        live: usize,
    },
    /// A newer session of the same device is attached already: close this one as superseded. Nothing was changed.
    #[error("session {session} of {user}/{device} gave way to the newer session {by}")]
    Superseded {
        /// The user.
        user: UserId,
        /// The device.
        device: DeviceId,
        /// The session that came too late.
        session: SessionId,
        /// The newer one.
        by: SessionId,
    },
}

/// What became of a status change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusOutcome {
    /// It is in the record.
    Written,
    /// Kept with the session, whose record has lost to a rival: it is in the record once the session re-asserts itself.
    Held,
    /// Its counter is not above the last: known already.
    Stale,
    /// That session is not attached here.
    NoSession,
}

/// A session, and where to reach it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionRef {
    /// Whose.
    pub user: UserId,
    /// On which device.
    pub device: DeviceId,
    /// The session.
    pub session: SessionId,
    /// Its edge.
    pub edge: Edge,
}

/// What the owner has to do about a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Its connect epoch is another now: tell its edge, which gives it with the next attach.
    Reasserted {
        /// The session.
        at: SessionRef,
        /// The new epoch.
        connect_epoch: u64,
    },
    /// Ask its client whether it is there; at the latest after `probe_ms` of the limits call
    /// [`Presence::probe_answered`] or [`Presence::probe_unanswered`].
    Probe {
        /// The session.
        at: SessionRef,
    },
    /// Close it as superseded; it is not attached any more.
    Superseded {
        /// The session.
        at: SessionRef,
        /// The one it gave way to.
        by: SessionId,
    },
}

/// A session attached to this owner.
#[derive(Debug, Clone)]
pub(super) struct Local {
    /// Version of its own record.
    pub(super) version: Version,
    /// Value of its own record.
    pub(super) live: Arc<Live>,
    /// Live sessions of other regions that it lost to.
    rivals: BTreeMap<SessionId, Rival>,
}

/// A contest with one rival.
#[derive(Debug, Clone, Copy)]
struct Rival {
    /// The rival's connect epoch when the contest began.
    first_epoch: u64,
    /// Whether our client answered a probe since.
    answered: bool,
}

/// The connect epoch of a new session: one more than the greater of what the client remembers, cut to
/// [`MAX_EPOCH_CLAIM`] above what is known, and what is known. Also says whether it was cut.
pub fn next_connect_epoch(remembered: u64, known: u64) -> (u64, bool) {
    let most = known.saturating_add(MAX_EPOCH_CLAIM);
    (
        remembered.min(most).max(known).saturating_add(1),
        remembered > most,
    )
}

impl Presence {
    /// Attaches a session of this region. A new one replaces the device's session here at once ([`Effect::Superseded`]).
    /// Gives its connect epoch, for `Welcome` and the edge. Attaching it twice is harmless.
    ///
    /// # Errors
    /// [`AdmitError`].
    pub fn admit(&mut self, admission: Admission) -> Result<u64, AdmitError> {
        let Admission {
            user,
            device,
            session,
            ..
        } = &admission;
        let (user, device, session) = (user.clone(), device.clone(), *session);
        let new_device = !self.slot(&user, &device).is_some_and(Slot::is_live);
        if new_device && matches!(admission.claim, Claim::New { .. }) {
            let live = self.slots_of(&user).filter(|(_, slot)| slot.is_live()).count();
            if live >= MAX_LIVE_DEVICES {
                self.counters_mut().refused += 1;
                return Err(AdmitError::Devices { user, live });
            }
        }
        self.with_slot((user.clone(), device.clone()), |slot, context| {
            let attached = slot.local.as_ref().map(|local| local.version);
            let again = attached.filter(|version| version.session == session);
            let connect_epoch = match (admission.claim, again) {
                (Claim::New { .. }, Some(version)) => version.connect_epoch,
                (Claim::New { remembered }, None) => {
                    let known = slot.register.marker.connect_epoch;
                    let (epoch, cut) = next_connect_epoch(remembered, known);
                    context.counters.epochs_cut += u64::from(cut);
                    epoch
                }
                (Claim::Resume { connect_epoch }, Some(version)) => connect_epoch.max(version.connect_epoch),
                (Claim::Resume { connect_epoch }, None) => connect_epoch,
            };
            if let Some(other) = attached.filter(|version| version.session != session) {
                if (connect_epoch, session) < (other.connect_epoch, other.session) {
                    context.counters.superseded += 1;
                    return Err(AdmitError::Superseded {
                        user: user.clone(),
                        device: device.clone(),
                        session,
                        by: other.session,
                    });
                }
                slot.supersede(&user, &device, session, context);
            }
            slot.attach(connect_epoch, admission, context);
            slot.settle(&user, &device, context);
            context.counters.admitted += 1;
            Ok(slot
                .local
                .as_ref()
                .map_or(connect_epoch, |local| local.version.connect_epoch))
        })
    }

    /// Changes the status of an attached session. `counter` is its edge's and must rise.
    pub fn set_status(
        &mut self,
        user: &UserId,
        device: &DeviceId,
        session: SessionId,
        counter: u64,
        (status, text): (Status, StatusText),
    ) -> StatusOutcome {
        if !self.is_attached(user, device, session) {
            return StatusOutcome::NoSession;
        }
        self.with_slot((user.clone(), device.clone()), |slot, context| {
            let Some(local) = &mut slot.local else {
                return StatusOutcome::NoSession;
            };
            if local.version.counter() >= Some(counter) {
                return StatusOutcome::Stale;
            }
            let version = local.version;
            let counter = match version.counter() {
                Some(same) if defect::on(Defect::KeepsOwn) => same,
                _ => counter,
            };
            local.version = Version::live(version.connect_epoch, session, counter, version.is_proved());
            let live = Arc::make_mut(&mut local.live);
            live.status = status;
            live.text = text;
            context.counters.status_changes += 1;
            match slot.write(context) {
                MergeOutcome::Older => StatusOutcome::Held,
                _ => StatusOutcome::Written,
            }
        })
    }

    /// Ends a session of this region: writes the terminal record if the device's record is still that session's, and
    /// nothing otherwise. Says whether the session was known as live here.
    pub fn end(&mut self, user: &UserId, device: &DeviceId, session: SessionId) -> bool {
        if self.slot(user, device).is_none() {
            return false;
        }
        self.with_slot((user.clone(), device.clone()), |slot, context| {
            let attached = slot
                .local
                .take_if(|local| local.version.session == session)
                .is_some();
            let marker = slot.register.marker;
            let own = slot
                .register
                .val
                .as_ref()
                .is_some_and(|live| live.region == *context.region);
            let anyone = slot.register.val.is_some() && defect::on(Defect::EndsAnyone);
            let written = (own && marker.session == session) || anyone;
            if written {
                let ahead = if anyone { 1_000 } else { 0 };
                let terminal = Register {
                    val: None,
                    marker: Version::ended(marker.connect_epoch + ahead, session),
                };
                merge_register(&mut slot.register, terminal);
                context.source = Source::Local;
                context.counters.ended += 1;
            }
            slot.settle(user, device, context);
            attached || written
        })
    }

    /// The client answered a probe: the contest goes on.
    pub fn probe_answered(&mut self, user: &UserId, device: &DeviceId, session: SessionId) {
        if !self.is_attached(user, device, session) {
            return;
        }
        self.with_slot((user.clone(), device.clone()), |slot, context| {
            if let Some(local) = &mut slot.local {
                local.rivals.values_mut().for_each(|rival| rival.answered = true);
            }
            slot.settle(user, device, context);
        });
    }

    /// The client did not answer a probe: the session is ended, and the owner closes it. Says whether it was live here.
    pub fn probe_unanswered(&mut self, user: &UserId, device: &DeviceId, session: SessionId) -> bool {
        let ended = self.end(user, device, session);
        self.counters_mut().unanswered += u64::from(ended);
        ended
    }

    /// For a defect: writes every live record of this region again, under an epoch of its own.
    #[cfg(any(test, feature = "defects"))]
    pub fn refresh(&mut self) {
        let edges: Vec<Edge> = self.edges().cloned().collect();
        let live: Vec<SessionRef> = edges
            .iter()
            .flat_map(|edge| self.sessions_on(edge).map(|(at, _)| at).collect::<Vec<_>>())
            .collect();
        for at in live {
            self.with_slot((at.user.clone(), at.device.clone()), |slot, context| {
                let mut register = slot.register.clone();
                if register.val.is_some() {
                    let marker = register.marker;
                    let counter = marker.counter().unwrap_or_default();
                    register.marker = Version::live(marker.connect_epoch + 1, marker.session, counter, false);
                    merge_register(&mut slot.register, register);
                    context.source = Source::Local;
                    slot.settle(&at.user, &at.device, context);
                }
            });
        }
    }

    /// Whether this session is attached to this owner.
    pub fn is_attached(&self, user: &UserId, device: &DeviceId, session: SessionId) -> bool {
        self.slot(user, device)
            .and_then(|slot| slot.local.as_ref())
            .is_some_and(|local| local.version.session == session)
    }
}

impl Slot {
    /// The sessions of this region: the register's where it is not attached, and the attached one.
    pub(super) fn own_sessions(&self, region: &RegionId) -> [Option<(SessionId, &Edge, bool)>; 2] {
        let attached = self
            .local
            .as_ref()
            .map(|local| (local.version.session, &local.live.edge, true));
        let orphan = self
            .register
            .val
            .as_ref()
            .filter(|live| live.region == *region)
            .map(|live| (self.register.marker.session, &live.edge, false))
            .filter(|(session, ..)| attached.is_none_or(|(other, ..)| other != *session));
        [orphan, attached]
    }

    /// What follows from the register's state for the attached session. Called after each change.
    pub(super) fn settle(&mut self, user: &UserId, device: &DeviceId, context: &mut Context<'_>) {
        let Some(local) = &mut self.local else { return };
        let (marker, mine) = (self.register.marker, local.version);
        if marker <= mine {
            return;
        }
        let at = || SessionRef {
            user: user.clone(),
            device: device.clone(),
            session: mine.session,
            edge: local.live.edge.clone(),
        };
        match self.register.val.clone() {
            None if defect::on(Defect::EndsAnyone) => {}
            None => self.reassert(user, device, false, context),
            Some(winner) if winner.region == *context.region => {
                if marker.session == mine.session {
                    self.adopt(user, device, &winner, context);
                }
            }
            Some(winner) => match local.rivals.get(&marker.session) {
                None => {
                    context.counters.probes += 1;
                    context.effects.push_back(Effect::Probe { at: at() });
                    if local.rivals.len() >= MAX_RIVALS {
                        local.rivals.pop_first();
                    }
                    let first_epoch = marker.connect_epoch;
                    local.rivals.insert(
                        marker.session,
                        Rival {
                            first_epoch,
                            answered: false,
                        },
                    );
                }
                Some(rival) if !rival.answered => {}
                Some(rival) => {
                    let rival_is_alive = marker.is_proved() && marker.connect_epoch > rival.first_epoch;
                    let greater = (local.live.since_ms, mine.session) > (winner.since_ms, marker.session);
                    if greater || !rival_is_alive {
                        self.reassert(user, device, true, context);
                    } else {
                        self.supersede(user, device, marker.session, context);
                    }
                }
            },
        }
    }

    /// Writes the attached session's record anew, under an epoch above the register's.
    fn reassert(&mut self, user: &UserId, device: &DeviceId, proved: bool, context: &mut Context<'_>) {
        let Some(local) = &mut self.local else { return };
        let connect_epoch = self.register.marker.connect_epoch.saturating_add(1);
        local.take_epoch(connect_epoch, proved);
        context.counters.reasserted += 1;
        context.effects.push_back(local.reasserted(user, device));
        self.write(context);
    }

    /// An earlier owner of this region had re-asserted this session, or knew a later change: goes on from there.
    fn adopt(&mut self, user: &UserId, device: &DeviceId, winner: &Arc<Live>, context: &mut Context<'_>) {
        let Some(local) = &mut self.local else { return };
        let marker = self.register.marker;
        let epoch_changed = local.version.connect_epoch != marker.connect_epoch;
        local.take_epoch(marker.connect_epoch, marker.is_proved());
        if local.version <= marker {
            local.version = marker;
            local.live = winner.clone();
        } else {
            merge_register(&mut self.register, local.record());
            context.source = Source::Local;
        }
        if epoch_changed {
            context.effects.push_back(local.reasserted(user, device));
        }
    }

    /// Lets go of the attached session in favour of another.
    fn supersede(&mut self, user: &UserId, device: &DeviceId, by: SessionId, context: &mut Context<'_>) {
        let Some(local) = self.local.take() else { return };
        context.counters.superseded += 1;
        let at = local.at(user, device);
        context.effects.push_back(Effect::Superseded { at, by });
    }

    /// Makes an admitted session the attached one and writes its record.
    fn attach(&mut self, connect_epoch: u64, admission: Admission, context: &mut Context<'_>) {
        let known = self
            .local
            .as_mut()
            .filter(|local| local.version.session == admission.session);
        let proved = known
            .as_ref()
            .is_some_and(|local| local.version.connect_epoch == connect_epoch && local.version.is_proved());
        let version = Version::live(connect_epoch, admission.session, admission.counter, proved);
        match known {
            Some(local) if local.version.counter() >= version.counter() => {
                local.take_epoch(connect_epoch, proved);
            }
            known => {
                let rivals = known
                    .map(|local| std::mem::take(&mut local.rivals))
                    .unwrap_or_default();
                let live = Arc::new(Live {
                    status: admission.status,
                    text: admission.text,
                    region: context.region.clone(),
                    edge: admission.edge,
                    since_ms: admission.since_ms,
                });
                self.local = Some(Box::new(Local {
                    version,
                    live,
                    rivals,
                }));
            }
        }
        self.write(context);
    }

    /// Merges the attached session's record into the register.
    fn write(&mut self, context: &mut Context<'_>) -> MergeOutcome {
        let Some(local) = &self.local else {
            return MergeOutcome::Same;
        };
        let outcome = merge_register(&mut self.register, local.record());
        if let MergeOutcome::Invalid { .. } = outcome {
            context.counters.invalid += 1;
        }
        context.source = Source::Local;
        outcome
    }
}

impl Local {
    /// Goes on under a connect epoch, with or without a proof for it.
    fn take_epoch(&mut self, connect_epoch: u64, proved: bool) {
        let counter = self.version.counter().unwrap_or_default();
        self.version = Version::live(connect_epoch, self.version.session, counter, proved);
    }

    fn record(&self) -> Register {
        Register {
            val: Some(self.live.clone()),
            marker: self.version,
        }
    }

    fn at(&self, user: &UserId, device: &DeviceId) -> SessionRef {
        SessionRef {
            user: user.clone(),
            device: device.clone(),
            session: self.version.session,
            edge: self.live.edge.clone(),
        }
    }

    fn reasserted(&self, user: &UserId, device: &DeviceId) -> Effect {
        Effect::Reasserted {
            at: self.at(user, device),
            connect_epoch: self.version.connect_epoch,
        }
    }
}
