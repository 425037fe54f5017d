//! Deliberate defects, to show that the checkers bite: in the store below the machines, in the messages between them, or in
//! the machines themselves ([`crate::core::defect`], only in builds that have them).

use crate::core::defect::Defect as Core;

/// A deliberate defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Defect {
    /// The store answers before its commit is durable.
    AckBeforeCommit,
    /// A message that comes again is taken for a new one.
    DedupOff,
    /// A delivery disappears between owner and edge, and nobody knows.
    DeliverLost,
    /// Logs and inboxes are trimmed without asking what the other regions have.
    TrimWithoutStable,
    /// The end of a session is not told to other regions.
    TerminalDropped,
    /// The end of a session is not told to other regions as long as messages are sent; later it is.
    TerminalLate,
    /// That a session stands is not told to other regions as long as messages are sent; later it is.
    OnlineLate,
    /// Two deposits of one session change places between edge and owner.
    DepositsSwapped,
    /// An operation changes on its way to another region.
    OperationGarbled,
    /// Applied logs are forgotten by a crash although the store had answered.
    SyncIgnored,
    /// A deposit disappears on its way, and nobody knows.
    DepositLost,
    /// One of the machines' own.
    Core(Core),
}

impl Defect {
    /// All of them, with the names that the command takes.
    pub const ALL: [(Defect, &'static str); 50] = [
        (Defect::AckBeforeCommit, "ack-before-commit"),
        (Defect::DedupOff, "dedup-off"),
        (Defect::DeliverLost, "deliver-lost"),
        (Defect::TrimWithoutStable, "trim-without-stable"),
        (Defect::TerminalDropped, "terminal-dropped"),
        (Defect::TerminalLate, "terminal-late"),
        (Defect::OnlineLate, "online-late"),
        (Defect::DepositsSwapped, "deposits-swapped"),
        (Defect::OperationGarbled, "operation-garbled"),
        (Defect::SyncIgnored, "sync-ignored"),
        (Defect::DepositLost, "deposit-lost"),
        (Defect::Core(Core::ShipBeforeCommit), "ship-before-commit"),
        (Defect::Core(Core::NoRelay), "no-relay"),
        (Defect::Core(Core::TrimByTime), "trim-by-time"),
        (Defect::Core(Core::TrimWithoutDevices), "trim-without-devices"),
        (Defect::Core(Core::OneReadPosition), "one-read-position"),
        (Defect::Core(Core::FirstCopyOnly), "first-copy-only"),
        (Defect::Core(Core::AllCopies), "all-copies"),
        (
            Defect::Core(Core::DeviceStartsAtApplied),
            "device-starts-at-applied",
        ),
        (Defect::Core(Core::ClaimClamped), "claim-clamped"),
        (Defect::Core(Core::ConfirmOnConfirm), "confirm-on-confirm"),
        (Defect::Core(Core::LaterPasses), "later-passes"),
        (Defect::Core(Core::EndsAnyone), "ends-anyone"),
        (Defect::Core(Core::DeathIsAnEvent), "death-is-an-event"),
        (Defect::Core(Core::GenerationForgotten), "generation-forgotten"),
        (Defect::Core(Core::KeepsOwn), "keeps-own"),
        (Defect::Core(Core::LeaseIsAWrite), "lease-is-a-write"),
        (Defect::Core(Core::DropsWhenFull), "drops-when-full"),
        (Defect::Core(Core::NoFencing), "no-fencing"),
        (Defect::Core(Core::GapUntold), "gap-untold"),
        (Defect::Core(Core::OriginReused), "origin-reused"),
        (
            Defect::Core(Core::SnapshotWithoutConfirmations),
            "snapshot-without-confirmations",
        ),
        (
            Defect::Core(Core::SnapshotWithoutSiblings),
            "snapshot-without-siblings",
        ),
        (Defect::Core(Core::DedupDroppedEarly), "dedup-dropped-early"),
        (Defect::Core(Core::CreditIgnored), "credit-ignored"),
        (Defect::Core(Core::WindowIgnored), "window-ignored"),
        (Defect::Core(Core::LaneIgnored), "lane-ignored"),
        (Defect::Core(Core::RoomIgnored), "room-ignored"),
        (Defect::Core(Core::ReadsAtOnce), "reads-at-once"),
        (Defect::Core(Core::PresenceUncredited), "presence-uncredited"),
        (Defect::Core(Core::DigestsIgnored), "digests-ignored"),
        (Defect::Core(Core::RepairsWhole), "repairs-whole"),
        (Defect::Core(Core::NeverFull), "never-full"),
        (Defect::Core(Core::CursorJumps), "cursor-jumps"),
        (Defect::Core(Core::RetiredEarly), "retired-early"),
        (Defect::Core(Core::WordForgotten), "word-forgotten"),
        (
            Defect::Core(Core::SnapshotWithoutVetoes),
            "snapshot-without-vetoes",
        ),
        (Defect::Core(Core::NoVeto), "no-veto"),
        (Defect::Core(Core::HoleForgetsSiblings), "hole-forgets-siblings"),
        (Defect::Core(Core::ExpiresAlone), "expires-alone"),
    ];

    /// The one of the machines, if it is one.
    pub fn of_core(self) -> Option<Core> {
        match self {
            Defect::Core(defect) => Some(defect),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(defect, _)| *defect == self)
            .map_or("", |(_, name)| name)
    }
}

impl std::str::FromStr for Defect {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.iter().find(|(_, name)| *name == text);
        if !cfg!(any(test, feature = "defects"))
            && known.is_some_and(|(defect, _)| defect.of_core().is_some())
        {
            return Err(format!(
                "{text:?} is a defect of the machines, which this build does not have; build with `--features defects`"
            ));
        }
        known.map(|(defect, _)| *defect).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|(_, name)| *name).collect();
            format!("{text:?} is not a defect; expected one of {}", names.join(", "))
        })
    }
}
