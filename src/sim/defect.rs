//! Deliberate defects, to show that the checkers bite. All live in the harness: in the store below the machines, or in the
//! messages between them.

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
    /// Two deposits of one session change places between edge and owner.
    DepositsSwapped,
    /// An operation changes on its way to another region.
    OperationGarbled,
    /// Applied logs are forgotten by a crash although the store had answered.
    SyncIgnored,
    /// A deposit disappears from a full queue, and nobody knows.
    DepositLost,
}

impl Defect {
    /// All of them, with the names that the command takes.
    pub const ALL: [(Defect, &'static str); 9] = [
        (Defect::AckBeforeCommit, "ack-before-commit"),
        (Defect::DedupOff, "dedup-off"),
        (Defect::DeliverLost, "deliver-lost"),
        (Defect::TrimWithoutStable, "trim-without-stable"),
        (Defect::TerminalDropped, "terminal-dropped"),
        (Defect::DepositsSwapped, "deposits-swapped"),
        (Defect::OperationGarbled, "operation-garbled"),
        (Defect::SyncIgnored, "sync-ignored"),
        (Defect::DepositLost, "deposit-lost"),
    ];

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
        Self::ALL
            .iter()
            .find(|(_, name)| *name == text)
            .map(|(defect, _)| *defect)
            .ok_or_else(|| {
                let names: Vec<&str> = Self::ALL.iter().map(|(_, name)| *name).collect();
                format!("{text:?} is not a defect; expected one of {}", names.join(", "))
            })
    }
}
