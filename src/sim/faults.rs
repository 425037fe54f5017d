//! What goes wrong, and how it ends. Then everything heals.

use super::plan::{MILLI, SECOND};
use super::trace::Micros;
use super::world::{Event, Stage, World};

/// The end of something that went wrong.
#[derive(Debug)]
pub(super) enum Undo {
    /// Ways between nodes are open again.
    Cut(Vec<(usize, usize)>),
    /// A client reaches a region again.
    ClientCut(usize, usize),
    /// A client reads again.
    Read(usize),
    /// An application works again.
    Handle(usize),
    /// An observer sees a node again.
    See {
        observer: usize,
        boot: u64,
        subject: usize,
    },
    /// A store stopped, and its node with it.
    Crash { node: usize },
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Crash,
    CrashRegion,
    Pause,
    CutRegions,
    CutOneWay,
    CutNodes,
    Flap,
    Disconnect,
    Relocate,
    Amnesia,
    StallRead,
    StallApp,
    Leave,
    FalseDeath,
    StoreFatal,
    Clock,
}

impl World {
    /// Something goes wrong, and the next time is set.
    pub(super) fn fault(&mut self) {
        if self.stage != Stage::Work {
            return;
        }
        let gap = self.plan.fault_gap;
        let next = self.rng.between(gap / 4, 2 * gap);
        self.after(next, Event::Fault);
        if let Some(fault) = self.choose_fault() {
            let now = self.now;
            self.trace.event(now, 15, fault as u64, &[]);
            self.trace.tell(now, || format!("fault: {fault:?}"));
            self.inflict(fault);
        }
    }

    fn choose_fault(&mut self) -> Option<Fault> {
        let mix = &self.plan.faults;
        let weights = [
            (Fault::Crash, mix.crash),
            (Fault::CrashRegion, mix.crash_region),
            (Fault::Pause, mix.pause),
            (Fault::CutRegions, mix.cut_regions),
            (Fault::CutOneWay, mix.cut_one_way),
            (Fault::CutNodes, mix.cut_nodes),
            (Fault::Flap, mix.flap),
            (Fault::Disconnect, mix.disconnect),
            (Fault::Relocate, mix.relocate),
            (Fault::Amnesia, mix.amnesia),
            (Fault::StallRead, mix.stall_read),
            (Fault::StallApp, mix.stall_app),
            (Fault::Leave, mix.leave),
            (Fault::FalseDeath, mix.false_death),
            (Fault::StoreFatal, mix.store_fatal),
            (Fault::Clock, mix.clock),
        ];
        let total: u64 = weights.iter().map(|(_, weight)| weight).sum();
        let mut at = self.rng.below(total);
        for (fault, weight) in weights {
            if at < weight {
                return Some(fault);
            }
            at -= weight;
        }
        None
    }

    /// How long something lasts: mostly short, sometimes beyond every timeout.
    fn lasts(&mut self) -> Micros {
        if self.rng.chance(600) {
            self.rng.between(100, 2500) * MILLI
        } else {
            self.rng.between(2, 12) * SECOND
        }
    }

    fn inflict(&mut self, fault: Fault) {
        let lasts = self.lasts();
        let node = self.rng.index(self.nodes.len());
        let device = if self.devices.is_empty() {
            0
        } else {
            self.rng.index(self.devices.len())
        };
        let devices = !self.devices.is_empty();
        let there = devices && self.devices[device].machine.is_some();
        match fault {
            Fault::Crash => self.crash(node, lasts),
            Fault::CrashRegion => {
                let region = self.nodes[node].region;
                for node in 0..self.nodes.len() {
                    if self.nodes[node].region == region {
                        let skew = self.rng.below(500) * MILLI;
                        self.crash(node, lasts + skew);
                    }
                }
            }
            Fault::Pause => self.pause(node, lasts),
            Fault::CutRegions => self.cut_regions(lasts, true),
            Fault::CutOneWay => self.cut_regions(lasts, false),
            Fault::CutNodes => {
                let other = self.rng.index(self.nodes.len());
                if other != node && self.nodes[other].region == self.nodes[node].region {
                    let mut ways = vec![(node, other)];
                    if self.rng.chance(600) {
                        ways.push((other, node));
                    }
                    self.cut(ways, lasts);
                }
            }
            Fault::Flap if !self.pairs.is_empty() => {
                let pair = self.rng.index(self.pairs.len());
                self.peer_break(pair);
            }
            Fault::Disconnect if devices => {
                if let Some(conn) = self.devices[device].conn {
                    self.after(0, Event::ClientGone { conn });
                    let delay = self.rng.between(0, 10_000) * MILLI;
                    self.after(delay, Event::ServerGone { conn });
                }
            }
            Fault::Relocate if devices => {
                self.device_leaves(device, false);
                self.devices[device].home = self.rng.index(self.plan.places.len());
                let delay = self.rng.between(1, 1500) * MILLI;
                self.after(delay, Event::Arrive { device });
            }
            Fault::Amnesia if there => self.device_forgets(device),
            Fault::StallRead if devices => {
                self.devices[device].reading = false;
                self.after(lasts, Event::Undo(Undo::Read(device)));
            }
            Fault::StallApp if devices => {
                self.devices[device].handling = false;
                self.after(lasts, Event::Undo(Undo::Handle(device)));
            }
            Fault::Leave if there => {
                let told = self.rng.chance(500);
                self.device_leaves(device, told);
                let away = self.away();
                self.after(away, Event::Arrive { device });
            }
            Fault::FalseDeath => {
                let subject = self.rng.index(self.nodes.len());
                if subject != node && self.nodes[subject].region == self.nodes[node].region {
                    self.forget(node, subject);
                    let boot = self.nodes[node].boot;
                    let back = self.rng.between(300, 4000) * MILLI;
                    let observer = node;
                    self.after(
                        back,
                        Event::Undo(Undo::See {
                            observer,
                            boot,
                            subject,
                        }),
                    );
                }
            }
            Fault::StoreFatal if self.nodes[node].core => self.store_dies(node),
            Fault::Clock => {
                let step = self.rng.between(0, 60_000) as i64 - 30_000;
                self.nodes[node].wall_offset += step;
            }
            _ => {}
        }
    }

    fn crash(&mut self, node: usize, lasts: Micros) {
        if self.nodes[node].process.is_some() {
            self.kill(node);
            self.after(lasts, Event::Start { node });
        }
    }

    /// A node stands still: it takes nothing in, and nothing of it goes out.
    fn pause(&mut self, node: usize, lasts: Micros) {
        if self.nodes[node].process.is_none() {
            return;
        }
        self.nodes[node].paused_until = self.now + lasts;
        for pair in 0..self.pairs.len() {
            if lasts > self.plan.peer_idle && self.pairs[pair].has(node) {
                self.peer_break(pair);
            }
        }
    }

    fn cut_regions(&mut self, lasts: Micros, both: bool) {
        let regions = self.plan.places.len();
        if regions < 2 {
            return;
        }
        let from = self.rng.index(regions);
        let to = (from + 1 + self.rng.index(regions - 1)) % regions;
        let mut ways = Vec::new();
        for a in 0..self.nodes.len() {
            for b in 0..self.nodes.len() {
                let (near, far) = (self.nodes[a].region, self.nodes[b].region);
                if (near, far) == (from, to) || (both && (far, near) == (from, to)) {
                    ways.push((a, b));
                }
            }
        }
        self.cut(ways, lasts);
        // Clients at home in the one region may lose the other too.
        for device in 0..self.devices.len() {
            if both && self.devices[device].home == from && self.rng.chance(700) {
                self.client_cut.insert((device, to));
                self.after(lasts, Event::Undo(Undo::ClientCut(device, to)));
            }
        }
    }

    fn cut(&mut self, ways: Vec<(usize, usize)>, lasts: Micros) {
        for (from, to) in &ways {
            if self.cut.insert((*from, *to)) {
                self.cut_changed(*from, *to);
            }
        }
        self.after(lasts, Event::Undo(Undo::Cut(ways)));
    }

    /// Something that went wrong ends.
    pub(super) fn undo(&mut self, undo: Undo) {
        let now = self.now;
        self.trace.event(now, 16, 0, &[]);
        match undo {
            Undo::Cut(ways) => {
                for (from, to) in ways {
                    if self.cut.remove(&(from, to)) {
                        self.cut_changed(from, to);
                    }
                }
            }
            Undo::ClientCut(device, region) => {
                self.client_cut.remove(&(device, region));
                self.clients_go_on();
            }
            Undo::Read(device) => {
                self.devices[device].reading = true;
                self.clients_go_on();
            }
            Undo::Handle(device) => self.handle_again(device),
            Undo::See {
                observer,
                boot,
                subject,
            } => {
                let generation = Some(self.nodes[subject].generation);
                if self.nodes[subject].process.is_some() {
                    self.after(
                        0,
                        Event::View {
                            observer,
                            boot,
                            subject,
                            generation,
                        },
                    );
                }
            }
            Undo::Crash { node } => {
                if self.nodes[node].process.is_some() {
                    self.kill(node);
                }
            }
        }
    }

    /// Nothing is wrong any more; everybody who was away comes.
    pub(super) fn heal(&mut self) {
        let now = self.now;
        self.trace.event(now, 17, 0, &[]);
        self.trace.tell(now, || "everything heals".to_owned());
        self.stage = Stage::Settle;
        self.healed_at = now;
        for (from, to) in std::mem::take(&mut self.cut) {
            self.cut_changed(from, to);
        }
        self.client_cut.clear();
        for node in 0..self.nodes.len() {
            let delay = self.rng.below(500) * MILLI;
            // A store that stopped takes its node with it a little later: the start after that must not be missed.
            self.after(delay, Event::Start { node });
            self.after(4 * SECOND, Event::Start { node });
            self.nodes[node].paused_until = now;
            self.resume(node);
        }
        for device in 0..self.devices.len() {
            self.devices[device].reading = true;
            self.handle_again(device);
            let delay = self.rng.below(2000) * MILLI;
            self.after(delay, Event::Arrive { device });
        }
        self.clients_go_on();
        self.after(SECOND, Event::Settle);
    }
}
