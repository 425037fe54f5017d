//! What can be injected, and within which limits.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::ids::{NodeKey, NodeName, RegionId};
use crate::server::config::Setting as _;

/// How long a fault lasts where nothing is said.
pub const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// The shortest life: less could be over before anybody sees it.
pub const MIN_LIFE: Duration = Duration::from_millis(100);
/// The longest: a drill that is forgotten must not last.
pub const MAX_LIFE: Duration = Duration::from_secs(3600);
/// Longest delay of packets, its jitter, and delay of a commit, milliseconds: beyond it everything is a cut.
pub const MAX_DELAY_MS: u64 = 10_000;
/// How far a clock may be shifted, milliseconds, each way: what a clock ahead stamps lasts until the real time has come, which
/// so is the longest life of a fault.
pub const MAX_CLOCK_MS: i64 = 3_600_000;

/// A fault that a node can have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Fault {
    /// Packets vanish.
    Cut {
        /// Between this node and whom.
        with: Selector,
        /// Which ones.
        #[serde(default)]
        direction: Direction,
    },
    /// Packets leave later.
    Delay {
        /// Those for whom.
        with: Selector,
        /// By so much, milliseconds.
        ms: u64,
        /// And by a random time of at most this, drawn for each.
        #[serde(default)]
        jitter_ms: u64,
    },
    /// Some packets vanish.
    Loss {
        /// Between this node and whom.
        with: Selector,
        /// So many of a hundred.
        percent: u8,
        /// Which ones.
        #[serde(default)]
        direction: Direction,
    },
    /// The process stands still (SIGSTOP).
    Pause,
    /// The process ends at once (SIGKILL), and a new one stays away for the fault's lifetime.
    Crash,
    /// Each commit takes longer.
    StoreSlow {
        /// By so much, milliseconds.
        ms: u64,
    },
    /// Each commit fails for the time being.
    StoreFail,
    /// Each commit fails as with a full disk.
    StoreFull,
    /// The wall clock is wrong.
    Clock {
        /// So far ahead, milliseconds; behind where it is negative.
        ms: i64,
    },
}

/// With whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selector {
    /// The other nodes of a region.
    Region(RegionId),
    /// One other node.
    Node(NodeName),
    /// The clients of the node.
    Clients,
}

/// Which packets, as the node sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// All.
    #[default]
    Both,
    /// Those that arrive.
    In,
    /// Those that leave.
    Out,
}

/// Why a fault was not injected or ended. Nothing was changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// The configuration does not allow it.
    #[error(
        "faults.allowed = false: node {0} takes no faults; where drills are wanted, set it to true in the node's configuration \
         and start the node again"
    )]
    NotAllowed(NodeName),
    /// A lifetime outside its limits.
    #[error("a fault for {}: expected {} to {}", .0.show(), MIN_LIFE.show(), MAX_LIFE.show())]
    Life(Duration),
    /// A value outside its limits.
    #[error("{what} = {given}: expected {expected}")]
    Value {
        /// Which.
        what: &'static str,
        /// As it is given.
        given: String,
        /// What would do.
        expected: String,
    },
    /// It names a region or node that is not there, or a fault.
    #[error("{0}")]
    NotFound(String),
    /// This node has nothing of that kind that could fail, or not now.
    #[error("{0}")]
    NotHere(String),
    /// The system refused what it takes.
    #[error("{what}: {why}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// Why it was not.
        why: String,
    },
}

impl Fault {
    /// Its kind, as it is written.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cut { .. } => "cut",
            Self::Delay { .. } => "delay",
            Self::Loss { .. } => "loss",
            Self::Pause => "pause",
            Self::Crash => "crash",
            Self::StoreSlow { .. } => "store-slow",
            Self::StoreFail => "store-fail",
            Self::StoreFull => "store-full",
            Self::Clock { .. } => "clock",
        }
    }

    /// With whom, where it is about packets.
    pub fn selector(&self) -> Option<&Selector> {
        match self {
            Self::Cut { with, .. } | Self::Delay { with, .. } | Self::Loss { with, .. } => Some(with),
            _ => None,
        }
    }

    /// Whether it needs a store.
    pub fn is_of_store(&self) -> bool {
        matches!(self, Self::StoreSlow { .. } | Self::StoreFail | Self::StoreFull)
    }

    /// Judges its values.
    ///
    /// # Errors
    /// [`FaultError::Value`].
    pub fn check(&self) -> Result<(), FaultError> {
        let within = |what, given: u64, least: u64, most: u64| {
            if (least..=most).contains(&given) {
                return Ok(());
            }
            Err(FaultError::Value {
                what,
                given: given.to_string(),
                expected: format!("{least} to {most}"),
            })
        };
        match self {
            Self::Delay { ms, jitter_ms, .. } => {
                within("jitter_ms", *jitter_ms, 0, MAX_DELAY_MS)?;
                // Jitter alone is a delay, too.
                within("ms", *ms, u64::from(*jitter_ms == 0), MAX_DELAY_MS)
            }
            Self::Loss { percent, .. } => within("percent", (*percent).into(), 1, 100),
            Self::StoreSlow { ms } => within("ms", *ms, 1, MAX_DELAY_MS),
            Self::Clock { ms } if *ms == 0 || ms.unsigned_abs() > MAX_CLOCK_MS.unsigned_abs() => {
                Err(FaultError::Value {
                    what: "ms",
                    given: ms.to_string(),
                    expected: format!("-{MAX_CLOCK_MS} to {MAX_CLOCK_MS}, and not 0"),
                })
            }
            _ => Ok(()),
        }
    }
}

impl Selector {
    /// Whether another node is meant.
    pub fn has(&self, node: &NodeKey) -> bool {
        match self {
            Self::Region(region) => node.region == *region,
            Self::Node(name) => node.node == *name,
            Self::Clients => false,
        }
    }
}

impl Direction {
    /// Whether packets that arrive are meant.
    pub fn is_in(self) -> bool {
        self != Self::Out
    }

    /// Whether packets that leave are meant.
    pub fn is_out(self) -> bool {
        self != Self::In
    }
}

/// Judges a lifetime.
///
/// # Errors
/// [`FaultError::Life`].
pub fn check_life(lasts: Duration) -> Result<(), FaultError> {
    if (MIN_LIFE..=MAX_LIFE).contains(&lasts) {
        return Ok(());
    }
    Err(FaultError::Life(lasts))
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut { with, direction } => write!(f, "cut with {with}, {direction}"),
            Self::Delay {
                with,
                ms,
                jitter_ms: 0,
            } => write!(f, "delay of {ms} ms to {with}"),
            Self::Delay { with, ms, jitter_ms } => {
                write!(f, "delay of {ms} ms and up to {jitter_ms} ms more to {with}")
            }
            Self::Loss {
                with,
                percent,
                direction,
            } => write!(f, "loss of {percent} % with {with}, {direction}"),
            Self::StoreSlow { ms } => write!(f, "store-slow by {ms} ms a commit"),
            Self::Clock { ms } => {
                let how = if *ms > 0 { "ahead" } else { "behind" };
                write!(f, "clock {} ms {how}", ms.unsigned_abs())
            }
            Self::Pause | Self::Crash | Self::StoreFail | Self::StoreFull => f.write_str(self.kind()),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Region(region) => write!(f, "region {region}"),
            Self::Node(node) => write!(f, "node {node}"),
            Self::Clients => f.write_str("clients"),
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Both => "both ways",
            Self::In => "what arrives",
            Self::Out => "what leaves",
        })
    }
}
