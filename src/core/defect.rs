//! Deliberate defects of the machines, to show that the simulator's checkers find them.
//!
//! Each leaves out a rule, or does what another system was seen to do wrong. They exist only in builds for tests
//! (`cfg(test)`, or the feature `defects`); in all others [`on`] is `false` when compiled, and nothing is left of them.
//! A defect holds for the thread that sets it: a simulated world runs on one thread.

/// A defect of the machines. The rules are those of `docs/architecture.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Defect {
    /// What a commit will hold is shipped before it is durable (R5).
    ShipBeforeCommit,
    /// A region asks others only for their own logs (R6).
    NoRelay,
    /// Logs are trimmed when they are some seconds old (R9, R20).
    TrimByTime,
    /// A user without devices counts as one of whom every device has consumed (R10).
    TrimWithoutDevices,
    /// A session reads its inbox by hybrid time, with one position for all origins (R14).
    OneReadPosition,
    /// Of two copies of a message only the one that came first is kept (R15).
    FirstCopyOnly,
    /// Every copy of a message has to be acknowledged (R15).
    AllCopies,
    /// A device begins with what is applied when it registers (R17).
    DeviceStartsAtApplied,
    /// What a device says that it consumed counts only as far as it is applied when it attaches (R17).
    ClaimClamped,
    /// A confirmation is news that asks for a confirmation (R8).
    ConfirmOnConfirm,
    /// Who was moved here from another region is given what is here at once (R22).
    MovedAtOnce,
    /// A deposit is judged although an earlier one of its session was refused (R21).
    LaterPasses,
    /// The end of a session is written above everything known, whose record it may be.
    EndsAnyone,
    /// Only those who see an edge die end its sessions.
    DeathIsAnEvent,
    /// An edge that started again is taken for the one before.
    GenerationForgotten,
    /// A status change makes no new version, and a merge of equal versions keeps what is there.
    KeepsOwn,
    /// An owner writes the records of its region again and again, to show that they live.
    LeaseIsAWrite,
    /// A commit under an old epoch is taken (R2).
    NoFencing,
    /// A deposit that finds the queue full is dropped.
    DropsWhenFull,
    /// A device is not told what is gone behind messages that wait (R11).
    GapUntold,
    /// A store that is opened again goes on under the origin of before (R1).
    OriginReused,
    /// A snapshot leaves out what the holders confirmed (R11).
    SnapshotWithoutConfirmations,
    /// What a snapshot brings does not know of its copies (R11, R15).
    SnapshotWithoutSiblings,
    /// An origin is retired although a holder still has more of it, or needs it (R23).
    RetiredEarly,
    /// A store that lists an origin forgets that a snapshot said it is retired (R23).
    WordForgotten,
    /// A snapshot leaves out that expiries of devices were vetoed, or the devices registered again (R11, R19).
    SnapshotWithoutVetoes,
    /// A region lets devices expire that are attached there (R19).
    NoVeto,
    /// A hole forgets the copies of the messages that it replaces (R15, R18).
    HoleForgetsSiblings,
    /// Messages and devices expire whatever the clocks of the other regions say (R20).
    ExpiresAlone,
    /// Dedup records are dropped as soon as they are stable, window or not (R16).
    DedupDroppedEarly,
    /// A provider ships what its subscriber gave no credit for.
    CreditIgnored,
    /// A session is given what its window has no room for.
    WindowIgnored,
    /// An edge deposits more than a lane takes.
    LaneIgnored,
    /// Deliveries do not wait until an edge took the ones before.
    RoomIgnored,
    /// All that is to be read is asked at once.
    ReadsAtOnce,
    /// Presence does not wait until it was merged.
    PresenceUncredited,
    /// Digests of presence that differ are taken for equal.
    DigestsIgnored,
    /// Where digests of presence differ, all of the shard is sent.
    RepairsWhole,
    /// An owner takes every deposit, whatever waits.
    NeverFull,
    /// An acknowledgement counts for all that was given (R14).
    CursorJumps,
    /// Who is away is marked as needing a snapshot although the logs are within the limits (R12).
    MarkedEarly,
    /// A change of the holders does not count the old set together with the new one (R13).
    NewSetAtOnce,
    /// Nobody waits for what a region that is removed took before it knew (R13).
    LeaverForgotten,
    /// A message is called durable elsewhere as soon as it is durable here.
    GeoEarly,
}

#[cfg(any(test, feature = "defects"))]
mod switch {
    use std::cell::Cell;

    use super::Defect;

    thread_local! {
        static ON: Cell<Option<Defect>> = const { Cell::new(None) };
    }

    /// Sets the defect of this thread.
    pub fn set(defect: Option<Defect>) {
        ON.set(defect);
    }

    /// Whether this thread has the defect.
    pub fn on(defect: Defect) -> bool {
        ON.get() == Some(defect)
    }
}

#[cfg(any(test, feature = "defects"))]
pub use switch::{on, set};

/// Never, in this build.
#[cfg(not(any(test, feature = "defects")))]
pub const fn on(_: Defect) -> bool {
    false
}
