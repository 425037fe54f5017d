//! Connections between nodes, and between clients and edges, as the driver has them.
//!
//! What is sent on a connection arrives in order or not at all. A lost packet only shows as delay; a cut shows as silence,
//! and after the idle timeout each side, at its own time, sees its connection break. Every connection has an incarnation:
//! nothing of an old one arrives on a new one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::case::{MILLI, SECOND};
use super::trace::Micros;
use super::world::{Event, Stage, World};
use crate::core::node::Input;

/// The least time after which a lost packet is sent again.
const RETRANSMIT: Micros = 30 * MILLI;
/// A way of limited bandwidth that is behind by so much breaks, as a full queue of a connection does.
const BEHIND: Micros = 20 * SECOND;
/// Pause between attempts to connect two nodes.
const REDIAL: Micros = SECOND;

/// The partition that sends, the one it is for, and which of the streams between them.
type Stream = (u8, u8, u8);

/// One side of a connection between two nodes.
#[derive(Debug, Default)]
pub(super) struct End {
    /// The incarnation that this side has; 0 = none.
    pub(super) inc: u64,
    /// The last that this side saw break: it does not come back.
    broken: u64,
    /// When the last message from this side arrives there, for each pair of partitions and stream between them: order is
    /// kept within one, not among them.
    last: BTreeMap<Stream, Micros>,
    /// The last incarnation on which something that this side sent is lost, and the number of that: nothing arrives behind it.
    torn: (u64, u64),
    /// Numbers what this side sends.
    sent: u64,
    /// When what it sent has left, where the bandwidth is limited.
    busy_until: Micros,
    /// What of it a cut holds up, by number.
    stalled: BTreeMap<u64, Stalled>,
    /// What of it was held up and is under way again, by stream and number: what left later waits for it.
    again: BTreeSet<(Stream, u64)>,
    /// Counts the cuts of the way from this side, to tell whether a silence lasted.
    silent: u64,
}

/// A message on its way.
#[derive(Debug)]
pub(super) struct Stalled {
    pub(super) from: u8,
    pub(super) to: u8,
    /// Which of the streams between the two partitions.
    pub(super) stream: u8,
    pub(super) inc: u64,
    pub(super) bytes: Bytes,
}

impl End {
    /// Whether a message is lost, as it left after one that is.
    fn is_lost(&self, inc: u64, number: u64) -> bool {
        let (torn, lost) = self.torn;
        torn == inc && inc != 0 && number > lost
    }
}

impl Stalled {
    fn stream(&self) -> Stream {
        (self.from, self.to, self.stream)
    }
}

/// Two nodes that keep a connection.
#[derive(Debug)]
pub(super) struct Pair {
    nodes: [usize; 2],
    ends: [End; 2],
    /// The latest incarnation.
    inc: u64,
    dialing: bool,
}

impl Pair {
    pub(super) fn new(a: usize, b: usize) -> Self {
        Self {
            nodes: [a, b],
            ends: [End::default(), End::default()],
            inc: 0,
            dialing: false,
        }
    }

    pub(super) fn has(&self, node: usize) -> bool {
        self.nodes.contains(&node)
    }

    pub(super) fn joins(&self, a: usize, b: usize) -> bool {
        self.nodes == [a, b] || self.nodes == [b, a]
    }
}

impl World {
    /// Whether nothing gets from one node to another.
    fn blocked(&self, from: usize, to: usize) -> bool {
        self.wrong.cut(from, to)
    }

    pub(super) fn pair_of(&self, a: usize, b: usize) -> Option<usize> {
        self.pairs.iter().position(|pair| pair.joins(a, b))
    }

    /// How long a message takes; `None` where so many retransmissions in a row are lost that the connection is dead.
    fn way(&mut self, from: usize, to: usize) -> Option<Micros> {
        let now = self.now;
        let slow = self.wrong.slowness(from, to, now);
        let base = self.plan.delay(self.nodes[from].region, self.nodes[to].region);
        let base = base * Micros::from(slow.factor) + slow.extra;
        let jitter = self.rng.below(self.plan.network.jitter + 1);
        // What is lost often in a row ends a lane, so nothing is lost any more when silence is near.
        let loss = match self.silence_from {
            0 => self.plan.network.loss.max(slow.loss),
            _ => 0,
        };
        let (mut late, mut timeout) = (0, 2 * base + RETRANSMIT);
        while loss > 0 && self.rng.chance(loss.into()) {
            late += timeout;
            timeout *= 2;
            // Once everything healed, connections stand.
            let stands = self.stage > Stage::Work;
            if late > self.plan.network.idle {
                return stands.then_some(base + jitter + self.plan.network.idle);
            }
        }
        Some(base + jitter + late)
    }

    /// How long a message waits until a way of limited bandwidth has room for it.
    fn queue(&mut self, pair: usize, side: usize, bytes: usize) -> Micros {
        let [from, to] = [self.pairs[pair].nodes[side], self.pairs[pair].nodes[1 - side]];
        let slow = self.wrong.slowness(from, to, self.now).bandwidth;
        let far = self.nodes[from].region != self.nodes[to].region;
        let bandwidth = match (far, self.plan.network.bandwidth) {
            (true, limit) if limit > 0 && (slow == 0 || limit < slow) => limit,
            _ => slow,
        };
        let end = &mut self.pairs[pair].ends[side];
        let begins = end.busy_until.max(self.now);
        let takes = (bytes as u64 * SECOND).checked_div(bandwidth).unwrap_or(0);
        end.busy_until = begins + takes;
        end.busy_until - self.now
    }

    /// Sends a message on the connection to another node; without one it is lost, as the machines expect.
    pub(super) fn peer_send(
        &mut self,
        from: usize,
        to: usize,
        (from_partition, to_partition, stream): Stream,
        bytes: Bytes,
    ) {
        let Some(pair) = self.pair_of(from, to) else {
            let detail = format!(
                "{} writes to {}, to which it has no connection",
                self.nodes[from].key, self.nodes[to].key
            );
            return self.fail("addresses", detail, Vec::new());
        };
        let side = usize::from(self.pairs[pair].nodes[1] == from);
        let inc = self.pairs[pair].ends[side].inc;
        if inc == 0 {
            return;
        }
        let stalled = Stalled {
            from: from_partition,
            to: to_partition,
            stream,
            inc,
            bytes,
        };
        let end = &mut self.pairs[pair].ends[side];
        end.sent += 1;
        let number = end.sent;
        if self.blocked(from, to) {
            self.pairs[pair].ends[side].stalled.insert(number, stalled);
            return;
        }
        self.peer_schedule(pair, side, number, stalled, 0);
    }

    /// What was held up, or came before what was, is under way again.
    fn peer_schedule_again(
        &mut self,
        pair: usize,
        side: usize,
        number: u64,
        message: Stalled,
        extra: Micros,
    ) {
        let stream = message.stream();
        if self.peer_schedule(pair, side, number, message, extra) {
            self.pairs[pair].ends[side].again.insert((stream, number));
        }
    }

    /// Whether it will arrive, unless its connection breaks.
    fn peer_schedule(
        &mut self,
        pair: usize,
        side: usize,
        number: u64,
        message: Stalled,
        extra: Micros,
    ) -> bool {
        if self.pairs[pair].ends[side].is_lost(message.inc, number) {
            return false;
        }
        let [from, to] = [self.pairs[pair].nodes[side], self.pairs[pair].nodes[1 - side]];
        let queued = self.queue(pair, side, message.bytes.len());
        let way = self.way(from, to).filter(|_| queued < BEHIND);
        let Some(way) = way else {
            let end = &mut self.pairs[pair].ends[side];
            end.busy_until = self.now;
            // What was held up may be lost before what left later is.
            end.torn = match end.torn {
                (inc, lost) if inc == message.inc => (inc, lost.min(number)),
                _ => (message.inc, number),
            };
            self.peer_break(pair);
            return false;
        };
        let arrives = self.now + way + queued + extra;
        let stream = message.stream();
        let last = self.pairs[pair].ends[side].last.entry(stream).or_default();
        let arrives = arrives.max(*last + 1);
        *last = arrives;
        self.at(
            arrives,
            Event::Peer {
                pair,
                side: 1 - side,
                inc: message.inc,
                number,
                from: message.from,
                to: message.to,
                stream: message.stream,
                bytes: message.bytes,
            },
        );
        true
    }

    /// A message arrives at a side, unless a cut holds it up or its connection is gone.
    pub(super) fn peer_arrives(&mut self, pair: usize, side: usize, number: u64, message: Stalled) {
        let [sender, receiver] = [self.pairs[pair].nodes[1 - side], self.pairs[pair].nodes[side]];
        let stream = message.stream();
        let end = &mut self.pairs[pair].ends[1 - side];
        end.again.remove(&(stream, number));
        if end.is_lost(message.inc, number) {
            return;
        }
        if self.blocked(sender, receiver) {
            self.pairs[pair].ends[1 - side].stalled.insert(number, message);
            return;
        }
        let again = &self.pairs[pair].ends[1 - side].again;
        if again.range((stream, 0)..(stream, number)).next().is_some() {
            return self.peer_schedule_again(pair, 1 - side, number, message, 0);
        }
        let Stalled {
            from, to, inc, bytes, ..
        } = message;
        if self.pairs[pair].ends[side].inc < inc && self.pairs[pair].inc == inc {
            self.peer_up(pair, side, inc);
        }
        if self.pairs[pair].ends[side].inc != inc || self.nodes[receiver].process.is_none() {
            return;
        }
        let now = self.now;
        self.trace.event(now, 7, (pair * 2 + side) as u64, &bytes);
        let from = self.addr(sender, from);
        self.peer_input(receiver, to, from, &bytes);
    }

    /// Connects a node that started with all that it keeps connections to.
    pub(super) fn dial_all(&mut self, node: usize) {
        for pair in 0..self.pairs.len() {
            if self.pairs[pair].nodes.contains(&node) {
                let delay = self.rng.between(5, 200) * MILLI;
                self.redial(pair, delay);
            }
        }
    }

    pub(super) fn redial(&mut self, pair: usize, delay: Micros) {
        if !std::mem::replace(&mut self.pairs[pair].dialing, true) {
            self.after(delay, Event::PeerDial { pair });
        }
    }

    /// A connection comes up if both nodes run and reach each other and one of them misses it.
    pub(super) fn peer_dial(&mut self, pair: usize) {
        let [a, b] = self.pairs[pair].nodes;
        let now = self.now;
        self.pairs[pair].dialing = false;
        let runs = |node: usize| self.nodes[node].process.is_some();
        let latest = self.pairs[pair].inc;
        let stands = latest != 0 && self.pairs[pair].ends.iter().all(|end| end.inc == latest);
        // Where one does not run, its start dials again.
        if stands || !runs(a) || !runs(b) {
            return;
        }
        let paused = |node: usize| self.nodes[node].paused_until > now;
        if paused(a) || paused(b) || self.blocked(a, b) || self.blocked(b, a) {
            return self.redial(pair, REDIAL);
        }
        self.pairs[pair].inc += 1;
        let inc = self.pairs[pair].inc;
        let Some(round) = self.way(a, b) else {
            self.pairs[pair].inc -= 1;
            return self.redial(pair, REDIAL);
        };
        for (side, delay) in [(0, 2 * round), (1, round + round / 2)] {
            self.after(delay, Event::PeerUp { pair, side, inc });
        }
        // Both have it by then, or it failed and there is another attempt.
        self.redial(pair, 2 * round + REDIAL);
    }

    /// One side has a new connection; what it had before is gone.
    pub(super) fn peer_up(&mut self, pair: usize, side: usize, inc: u64) {
        let node = self.pairs[pair].nodes[side];
        let end = &self.pairs[pair].ends[side];
        let late = self.pairs[pair].inc != inc || end.inc == inc || end.broken >= inc;
        if late || self.nodes[node].process.is_none() {
            return;
        }
        self.peer_down(pair, side);
        self.pairs[pair].ends[side].inc = inc;
        self.tell_reachable(pair, side, true);
        // A cut that began while the connection was made is noticed as any other.
        let other = self.pairs[pair].nodes[1 - side];
        if self.blocked(node, other) || self.blocked(other, node) {
            self.watch_silence(pair);
        }
    }

    /// One side sees its connection break.
    pub(super) fn peer_down(&mut self, pair: usize, side: usize) {
        let end = &mut self.pairs[pair].ends[side];
        if end.inc == 0 {
            return;
        }
        end.broken = std::mem::take(&mut end.inc);
        end.stalled.clear();
        end.again.clear();
        self.tell_reachable(pair, side, false);
    }

    fn tell_reachable(&mut self, pair: usize, side: usize, up: bool) {
        let [node, other] = [self.pairs[pair].nodes[side], self.pairs[pair].nodes[1 - side]];
        self.disturb_by_reach(node, other, up);
        let key = self.nodes[other].key.clone();
        let (now, me) = (self.now, self.nodes[node].key.clone());
        self.trace.tell(now, || {
            format!("{me} {} {key}", if up { "reaches" } else { "does not reach" })
        });
        for partition in 0..self.nodes[node].partitions {
            let node_key = key.clone();
            self.input(node, partition, Input::Reachable { node: node_key, up });
        }
    }

    /// A connection breaks: each side sees it at its own time.
    pub(super) fn peer_break(&mut self, pair: usize) {
        for side in 0..2 {
            let inc = self.pairs[pair].ends[side].inc;
            let silent = self.pairs[pair].ends[1 - side].silent;
            let delay = self.rng.below(2000) * MILLI;
            self.after(
                delay,
                Event::PeerIdle {
                    pair,
                    side,
                    inc,
                    silent: silent | BROKEN,
                },
            );
        }
        self.pairs[pair].inc += 1;
        self.redial(pair, REDIAL);
    }

    /// The ways between two nodes changed: what stood still goes on, or silence begins.
    pub(super) fn cut_changed(&mut self, from: usize, to: usize) {
        let Some(pair) = self.pair_of(from, to) else {
            return;
        };
        let side = usize::from(self.pairs[pair].nodes[1] == from);
        self.pairs[pair].ends[side].silent += 1;
        if self.blocked(from, to) {
            self.watch_silence(pair);
            return;
        }
        let extra = self.rng.between(20, 400) * MILLI;
        for (number, message) in std::mem::take(&mut self.pairs[pair].ends[side].stalled) {
            self.peer_schedule_again(pair, side, number, message, extra);
        }
    }

    /// Each side that hears nothing closes after the idle timeout; after that the other hears nothing either.
    fn watch_silence(&mut self, pair: usize) {
        for side in 0..2 {
            let [me, other] = [self.pairs[pair].nodes[side], self.pairs[pair].nodes[1 - side]];
            let hears = !self.blocked(other, me);
            let inc = self.pairs[pair].ends[side].inc;
            let silent = self.pairs[pair].ends[1 - side].silent;
            let idle = self.plan.network.idle + self.rng.below(300 * MILLI);
            if !hears && inc != 0 {
                self.after(
                    idle,
                    Event::PeerIdle {
                        pair,
                        side,
                        inc,
                        silent,
                    },
                );
            }
        }
    }

    pub(super) fn peer_idle(&mut self, pair: usize, side: usize, inc: u64, silent: u64) {
        let [me, other] = [self.pairs[pair].nodes[side], self.pairs[pair].nodes[1 - side]];
        let ends = &self.pairs[pair].ends;
        if inc == 0 || ends[side].inc != inc || self.nodes[me].process.is_none() {
            return;
        }
        let gone = ends[1 - side].inc != inc;
        let lasted = silent & BROKEN != 0 || (silent == ends[1 - side].silent && self.blocked(other, me));
        if !gone && !lasted {
            return;
        }
        let now = self.now;
        self.trace.event(now, 8, (pair * 2 + side) as u64, &[]);
        self.peer_down(pair, side);
        let theirs = self.pairs[pair].ends[1 - side].inc;
        if theirs == inc {
            let idle = self.plan.network.idle + self.rng.below(300 * MILLI);
            self.after(
                idle,
                Event::PeerIdle {
                    pair,
                    side: 1 - side,
                    inc: theirs,
                    silent: BROKEN,
                },
            );
        }
        self.redial(pair, REDIAL);
    }

    /// A node died: its sides are gone, the others notice later.
    pub(super) fn drop_peers(&mut self, node: usize) {
        for pair in 0..self.pairs.len() {
            let Some(side) = self.pairs[pair].nodes.iter().position(|at| *at == node) else {
                continue;
            };
            let end = &mut self.pairs[pair].ends[side];
            end.broken = end.broken.max(std::mem::take(&mut end.inc));
            end.stalled.clear();
            end.again.clear();
            // What was under way under the latest incarnation meets nobody.
            self.pairs[pair].inc += 1;
            let inc = self.pairs[pair].ends[1 - side].inc;
            let idle = self.rng.between(MILLI, self.plan.network.idle);
            self.after(
                idle,
                Event::PeerIdle {
                    pair,
                    side: 1 - side,
                    inc,
                    silent: BROKEN,
                },
            );
        }
    }
}

/// Marks a [`Event::PeerIdle`] of a connection that is dead for certain.
const BROKEN: u64 = 1 << 63;
