//! What a drill's clients saw, and what was done to the cluster.

use serde::{Deserialize, Serialize};

/// Microseconds since the drill's clients began to connect.
pub type Micros = u64;

/// Something that happened at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When; entries of one log are in the order of their times.
    pub at: Micros,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened. Clients are numbered from 0, messages too, over all clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum What {
    /// A session of a client stands.
    Connected {
        /// Whose.
        client: usize,
        /// Where.
        region: String,
        /// The node.
        node: String,
    },
    /// A client's connection, or an attempt to make one, ended.
    Disconnected {
        /// Whose.
        client: usize,
        /// Why.
        why: String,
    },
    /// A client's application gave a message to its client.
    Sent {
        /// Which.
        number: u64,
        /// By whom.
        from: usize,
        /// For whom.
        to: usize,
    },
    /// A client was told that a message is accepted.
    Accepted {
        /// Which.
        number: u64,
        /// It is durable in another region, too.
        geo: bool,
        /// The server had accepted it before, and said so.
        duplicate: bool,
    },
    /// A message was refused for good.
    Rejected {
        /// Which.
        number: u64,
        /// Why.
        why: String,
    },
    /// An application was given a message and handled it.
    Handled {
        /// Which.
        number: u64,
        /// By whom.
        client: usize,
        /// Within what its order is promised; all that its sender sent where it is not known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stream: Option<Stream>,
    },
    /// A client was told that messages are gone.
    Gone {
        /// Who.
        client: usize,
        /// How many, where the server knows; 0 otherwise.
        count: u64,
    },
    /// A watcher was told of a user's presence.
    Shown {
        /// Who was told.
        watcher: usize,
        /// Of whom.
        client: usize,
        /// What.
        status: Shown,
    },
    /// A fault begins, or a step of the plan.
    Begins {
        /// The fault's number in the plan, from 0.
        fault: usize,
        /// For people.
        text: String,
    },
    /// A fault has ended: what it broke is whole, nodes that died are ready again.
    Ends {
        /// The fault's number.
        fault: usize,
    },
    /// The load ends; what follows is waiting for what is left.
    LoadEnds,
    /// The drill was broken off, and everything restored.
    Aborted {
        /// Why.
        why: String,
    },
}

/// Messages from one sender to one recipient come in order where they agree in this: what two regions accepted of a session
/// may overtake each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stream {
    /// The session of the sender.
    pub session: u64,
    /// The origin of the region that accepted it.
    pub origin: u64,
}

/// Presence, as a watcher is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shown {
    /// The user has a device.
    Online,
    /// The user has none.
    Offline,
    /// The user's region cannot be reached.
    Unreachable,
}

/// Who takes part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Its user.
    pub name: String,
    /// The region that it prefers.
    pub home: String,
    /// Whether it stays there, come what may: its presence shows whether the region can be reached.
    pub pinned: bool,
}
