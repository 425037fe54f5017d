//! A log put in order: each message's fate, each client's sessions, what each watcher was shown.

use std::collections::BTreeMap;

use crate::drill::log::{Client, Entry, Micros, Shown, What};

/// One whole second.
pub const SECOND: Micros = 1_000_000;

/// A log put in order.
#[derive(Debug)]
pub struct Track<'a> {
    /// Who takes part.
    pub clients: &'a [Client],
    /// The time of the last entry.
    pub end: Micros,
    /// Each message that was sent.
    pub messages: BTreeMap<u64, Message>,
    /// Entries about messages that nobody sent, and messages handled by another than their recipient.
    pub stray: Vec<u64>,
    /// Each client's sessions, in order.
    sessions: Vec<Vec<Session<'a>>>,
    /// What a watcher (first) was shown of a client (second): from when, what.
    pub shown: BTreeMap<(usize, usize), Vec<(Micros, Shown)>>,
    /// When faults and steps began, with their text.
    pub begins: BTreeMap<usize, (Micros, &'a str)>,
    /// When faults had ended.
    pub ends: BTreeMap<usize, Micros>,
    /// When the load ended.
    pub load_ends: Option<Micros>,
    /// When and why the drill was broken off.
    pub aborted: Option<(Micros, &'a str)>,
    /// How often a client was told that messages are gone, and how many that were where the server knew.
    pub gone: (u64, u64),
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who sent it.
    pub from: usize,
    /// For whom.
    pub to: usize,
    /// Its place among all that were sent.
    pub place: usize,
    /// When it was sent.
    pub sent: Micros,
    /// When its sender was first told that it is accepted.
    pub accepted: Option<Micros>,
    /// Its sender was told that it is durable in another region, too.
    pub geo: bool,
    /// The server recognised it as one that it had accepted before.
    pub recognised: bool,
    /// When it was refused for good.
    pub rejected: Option<Micros>,
    /// When its recipient handled it: once, if all is well.
    pub handled: Vec<Micros>,
}

impl Message {
    /// When its sender heard of it, be it yes or no.
    pub fn answered(&self) -> Option<Micros> {
        match (self.accepted, self.rejected) {
            (Some(accepted), Some(rejected)) => Some(accepted.min(rejected)),
            (accepted, rejected) => accepted.or(rejected),
        }
    }

    /// From its sending until it was accepted.
    pub fn until_accepted(&self) -> Option<Micros> {
        Some(self.accepted?.saturating_sub(self.sent))
    }

    /// From its sending until it was first handled.
    pub fn until_handled(&self) -> Option<Micros> {
        Some(self.handled.first()?.saturating_sub(self.sent))
    }

    /// It was accepted and never handled.
    pub fn lost(&self) -> bool {
        self.accepted.is_some() && self.handled.is_empty()
    }
}

/// A session of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session<'a> {
    /// Since when it stands.
    pub from: Micros,
    /// When it ended; none if it stands at the log's end.
    pub to: Option<Micros>,
    /// Another session took its place: no time passed between them.
    pub moved: bool,
    /// The region.
    pub region: &'a str,
    /// The node.
    pub node: &'a str,
}

impl Session<'_> {
    fn stands_at(&self, at: Micros) -> bool {
        self.from <= at && self.to.is_none_or(|to| to > at)
    }
}

/// A fault's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// When it began.
    pub begins: Micros,
    /// When it had ended; none if it never did.
    pub ends: Option<Micros>,
    /// Until when what happens is put down to it: the next beginning after its end, or the log's end.
    pub until: Micros,
}

impl<'a> Track<'a> {
    /// Puts a log in order.
    pub fn of(clients: &'a [Client], log: &'a [Entry]) -> Self {
        let mut track = Self {
            clients,
            end: log.last().map_or(0, |last| last.at),
            messages: BTreeMap::new(),
            stray: Vec::new(),
            sessions: vec![Vec::new(); clients.len()],
            shown: BTreeMap::new(),
            begins: BTreeMap::new(),
            ends: BTreeMap::new(),
            load_ends: None,
            aborted: None,
            gone: (0, 0),
        };
        // First all that was sent: entries of one time may stand in any order.
        for (place, entry) in log.iter().enumerate() {
            if let What::Sent { number, from, to } = entry.what {
                track.messages.entry(number).or_insert(Message {
                    from,
                    to,
                    place,
                    sent: entry.at,
                    accepted: None,
                    geo: false,
                    recognised: false,
                    rejected: None,
                    handled: Vec::new(),
                });
            }
        }
        for entry in log {
            track.enter(entry);
        }
        track
    }

    fn enter(&mut self, entry: &'a Entry) {
        let at = entry.at;
        match &entry.what {
            What::Connected { client, region, node } => self.connected(at, *client, region, node),
            What::Disconnected { client, .. } => self.disconnected(at, *client),
            What::Sent { .. } => {}
            What::Accepted {
                number,
                geo,
                duplicate,
            } => {
                if let Some(message) = self.message(*number) {
                    message.accepted.get_or_insert(at);
                    message.geo |= geo;
                    message.recognised |= duplicate;
                }
            }
            What::Rejected { number, .. } => {
                if let Some(message) = self.message(*number) {
                    message.rejected.get_or_insert(at);
                }
            }
            What::Handled { number, client, .. } => match self.message(*number) {
                Some(message) if message.to == *client => message.handled.push(at),
                Some(_) => self.stray.push(*number),
                None => {}
            },
            What::Gone { count, .. } => self.gone = (self.gone.0 + 1, self.gone.1 + count),
            What::Shown {
                watcher,
                client,
                status,
            } => {
                let told = self.shown.entry((*watcher, *client)).or_default();
                if told.last().is_none_or(|(_, last)| last != status) {
                    told.push((at, *status));
                }
            }
            What::Begins { fault, text } => {
                self.begins.entry(*fault).or_insert((at, text));
            }
            What::Ends { fault } => {
                self.ends.insert(*fault, at);
            }
            What::LoadEnds => self.load_ends = Some(at),
            What::Aborted { why } => {
                self.aborted.get_or_insert((at, why));
            }
        }
    }

    fn message(&mut self, number: u64) -> Option<&mut Message> {
        let message = self.messages.get_mut(&number);
        if message.is_none() {
            self.stray.push(number);
        }
        message
    }

    fn connected(&mut self, at: Micros, client: usize, region: &'a str, node: &'a str) {
        if client >= self.sessions.len() {
            self.sessions.resize(client + 1, Vec::new());
        }
        let sessions = &mut self.sessions[client];
        if let Some(last) = sessions.last_mut().filter(|last| last.to.is_none()) {
            last.to = Some(at);
            last.moved = true;
        }
        sessions.push(Session {
            from: at,
            to: None,
            moved: false,
            region,
            node,
        });
    }

    fn disconnected(&mut self, at: Micros, client: usize) {
        let last = self.sessions.get_mut(client).and_then(|all| all.last_mut());
        // Without a session, it was an attempt that failed.
        if let Some(last) = last.filter(|last| last.to.is_none()) {
            last.to = Some(at);
        }
    }

    /// A client's sessions, in order.
    pub fn sessions(&self, client: usize) -> &[Session<'a>] {
        self.sessions.get(client).map_or(&[], Vec::as_slice)
    }

    /// The session that a client has at a time, by its place.
    pub fn session_at(&self, client: usize, at: Micros) -> Option<usize> {
        let sessions = self.sessions(client);
        sessions.iter().rposition(|session| session.stands_at(at))
    }

    /// The region whose client this is at a time: where its last session began, or the one that it prefers.
    pub fn region_at(&self, client: usize, at: Micros) -> &str {
        let before = self.sessions(client).iter().rfind(|session| session.from <= at);
        let home = || self.clients.get(client).map_or("", |client| client.home.as_str());
        before.map_or_else(home, |session| session.region)
    }

    /// When a client had a session: spans in order, without those that touch.
    pub fn standing(&self, client: usize) -> Vec<(Micros, Micros)> {
        let mut spans: Vec<(Micros, Micros)> = Vec::new();
        for session in self.sessions(client) {
            let to = session.to.unwrap_or(Micros::MAX);
            match spans.last_mut() {
                Some(last) if last.1 == session.from => last.1 = to,
                _ => spans.push((session.from, to)),
            }
        }
        spans
    }

    /// A client's name.
    pub fn name(&self, client: usize) -> String {
        let known = self.clients.get(client);
        known.map_or_else(|| format!("client {client}"), |client| client.name.clone())
    }

    /// A fault's time; none if it never began.
    pub fn window(&self, fault: usize) -> Option<Window> {
        let (begins, _) = *self.begins.get(&fault)?;
        let ends = self.ends.get(&fault).copied().filter(|ends| *ends >= begins);
        let next = |ends: Micros| {
            let others = self.begins.iter().filter(|(other, _)| **other != fault);
            others.map(|(_, (at, _))| *at).filter(|at| *at >= ends).min()
        };
        Some(Window {
            begins,
            ends,
            until: ends.and_then(next).unwrap_or(self.end),
        })
    }
}

/// What two lists of spans, each in order, have in common.
pub fn common(one: &[(Micros, Micros)], other: &[(Micros, Micros)]) -> Vec<(Micros, Micros)> {
    let (mut a, mut b, mut both) = (0, 0, Vec::new());
    while let (Some(left), Some(right)) = (one.get(a), other.get(b)) {
        let span = (left.0.max(right.0), left.1.min(right.1));
        if span.0 < span.1 {
            both.push(span);
        }
        if left.1 <= right.1 {
            a += 1;
        } else {
            b += 1;
        }
    }
    both
}

/// The rest of time.
pub fn complement(spans: &[(Micros, Micros)]) -> Vec<(Micros, Micros)> {
    let mut rest = Vec::new();
    let mut at = 0;
    for (from, to) in spans {
        if at < *from {
            rest.push((at, *from));
        }
        at = *to;
    }
    if at < Micros::MAX {
        rest.push((at, Micros::MAX));
    }
    rest
}
