//! What must hold in the end: after everything healed, all is delivered, equal everywhere, and then nothing is said.

use std::collections::{BTreeMap, BTreeSet};

use super::case::{Case, Clients, MILLI, SECOND};
use super::defect::Defect;
use super::expiry;
use super::fault::Kind;
use super::trace::Micros;
use super::world::{Event, Stage, Task, World};
use crate::core::commit::{Outcome, StoreOp};
use crate::core::ids::{
    Addr, ConnId, Coord, DeviceId, Epoch, Generation, NodeKey, RegionId, SessionId, ShardId, UserId,
};
use crate::core::op::kind;
use crate::core::presence::{Presence, VisibleStatus};
use crate::core::state::{ShardRow, UserRow};
use crate::core::storage::{LogPage, Read, ReadReply};
use crate::core::vector::Vector;
use crate::core::wire::Status;

/// Confirmations that may stand in a log at rest, for each region: R8 lets so many pile up.
const RESTING_CONFIRMS: usize = 10;

/// The longest that a client waits before it tries again: for an answer, for a connection, between attempts.
const CLIENT_PATIENCE: Micros = 21 * SECOND;
/// The same of one as it is shipped.
const SHIPPED_PATIENCE: Micros = 64 * SECOND;
/// The longest until an edge notices that a client is gone that did not say so.
const UNNOTICED: Micros = 12 * SECOND;
/// How often a client says that it is there.
const CLIENT_PING: Micros = 5 * SECOND;

/// How long the stages of the end may take, by what the case sets.
#[derive(Debug)]
pub(super) struct Bounds {
    /// All must be settled this long after everything healed, or after the last message that was handled: what is silent is
    /// noticed, what waits for it is given up and tried again, twice in a row. A backlog through a window of one message takes
    /// its time, but must move.
    settle: Micros,
    /// After the last devices left, presence has so long.
    leave: Micros,
    /// Between being settled and silence: confirmations of confirmations die out, what was lost several times arrives.
    grace: Micros,
    /// As much more where a region is gone for good: who began to look for it last then asks the others for what it had.
    missed: Micros,
    /// How long nothing may be said: no period of the machines is longer.
    silence: Micros,
}

impl Bounds {
    pub(super) fn new(plan: &Case) -> Self {
        let (limits, members, network) = (&plan.limits, &plan.membership, &plan.network);
        let ms = |ms: u64| ms.saturating_mul(MILLI);
        let sum = |spans: &[Micros]| {
            spans
                .iter()
                .fold(0, |sum: Micros, span| sum.saturating_add(*span))
        };
        let places = 0..plan.places.len();
        let ways = places
            .clone()
            .flat_map(|from| places.clone().map(move |to| plan.delay(from, to)));
        let way = ways.max().unwrap_or(0).saturating_add(network.jitter);
        let slow = sum(&[way, plan.store.latency]).saturating_mul(20);
        let noticed = sum(&[
            members.death_max.max(members.seen_max.saturating_mul(3)),
            network.idle,
        ]);
        let patience = ms(limits.attach_timeout_ms)
            .max(ms(limits.deposit_timeout_ms))
            .max(ms(limits.link_timeout_ms));
        let ended = sum(&[ms(limits.session_grace_ms), ms(limits.probe_ms).saturating_mul(2)]);
        // An edge waits longer each time for its own region.
        let home = ms(limits.fallback_ms).saturating_mul(20);
        let period = ms(limits.confirm_ms)
            .max(ms(limits.cursor_ms))
            .max(ms(limits.presence_ms));
        let rounds = period.saturating_mul(8);
        let client_patience = match plan.clients {
            Clients::Hasty => CLIENT_PATIENCE,
            Clients::AsShipped => SHIPPED_PATIENCE,
        };
        let late = match network.loss {
            0 => 0,
            _ => network.idle.saturating_mul(2),
        };
        // What nobody saw was not told is found by digests, in two rounds of them.
        let loses = plan.faults.iter().any(|fault| fault.kind == Kind::PresenceLost);
        let lost = match loses {
            true => ms(limits.presence_repair_ms).saturating_mul(2),
            false => 0,
        };
        Self {
            settle: sum(&[
                noticed,
                noticed,
                patience,
                client_patience,
                ended,
                rounds,
                slow,
                home,
            ]),
            leave: sum(&[UNNOTICED, noticed, patience, ended, rounds, slow, home]),
            grace: sum(&[period.saturating_mul(3), late, lost]),
            missed: sum(&[ms(limits.link_timeout_ms), ms(limits.ping_ms), slow]),
            silence: sum(&[
                period
                    .max(ms(limits.ping_ms))
                    .max(ms(limits.session_grace_ms))
                    .max(ms(limits.presence_repair_ms))
                    .max(ms(limits.link_timeout_ms))
                    .max(CLIENT_PING),
                SECOND,
            ]),
        }
    }
}

impl World {
    /// Looks whether all is as it must be, and goes on to the next stage if so.
    pub(super) fn settle(&mut self) {
        let now = self.now;
        self.trace.event(now, 18, self.stage as u64, &[]);
        let done = self.check.stats.handled + self.check.stats.accepted;
        if self.progress.1 != done {
            self.progress = (now, done);
        }
        self.after(SECOND, Event::Settle);
        match self.stage {
            Stage::Work | Stage::Done => {}
            Stage::Settle => match self.unsettled() {
                None => {
                    self.check.stats.settled = now - self.healed_at;
                    self.leave();
                }
                Some((what, detail, words))
                    if now
                        > self
                            .progress
                            .0
                            .max(self.healed_at)
                            .saturating_add(self.bounds.settle) =>
                {
                    self.fail(what, detail, words);
                }
                Some((what, detail, _)) => self.not_yet(what, &detail),
            },
            Stage::Leave => match self.unsettled().or_else(|| self.unsettled_connections()) {
                None if self.silence_from == 0 => {
                    let missed = match self.wrong.gone.is_empty() {
                        true => 0,
                        false => self.bounds.missed,
                    };
                    self.silence_from = now.saturating_add(self.bounds.grace).saturating_add(missed);
                }
                None if now >= self.silence_from && self.plan.devices_expire() => {
                    self.check_dedup();
                    self.check_expected();
                    self.stage = Stage::Done;
                }
                None if now >= self.silence_from => {
                    self.stage = Stage::Silence;
                    self.trace
                        .chapter(now, || "all is settled: now silence".to_owned());
                }
                None => {}
                Some((what, detail, words)) if now > self.healed_at.saturating_add(self.bounds.leave) => {
                    self.fail(what, detail, words);
                }
                Some((what, detail, _)) => {
                    self.silence_from = 0;
                    self.not_yet(what, &detail);
                }
            },
            Stage::Silence if now >= self.silence_from.saturating_add(self.bounds.silence) => {
                if let Some((what, detail, words)) = self.unsettled() {
                    self.fail(what, detail, words);
                }
                self.check_dedup();
                self.check_expected();
                self.stage = Stage::Done;
            }
            Stage::Silence => {}
        }
    }

    fn not_yet(&mut self, what: &str, detail: &str) {
        let now = self.now;
        self.trace.tell_once(now, || format!("not yet: {what}: {detail}"));
    }

    /// Some devices go away, so that presence has both kinds.
    fn leave(&mut self) {
        self.stage = Stage::Leave;
        self.witness_leaves();
        self.healed_at = self.now;
        self.silence_from = 0;
        let now = self.now;
        self.trace
            .chapter(now, || "all is settled: some devices leave".to_owned());
        for device in 0..self.devices.len() {
            if self.rng.chance(350) {
                let told = self.rng.chance(600);
                self.device_leaves(device, told);
            }
        }
    }

    /// What is not as it must be in the end: which promise, how, and words of the story.
    fn unsettled(&mut self) -> Option<(&'static str, String, Vec<String>)> {
        let change = self.unsettled_holders();
        let change = change.map(|detail| ("everything comes to an end", detail, Vec::new()));
        change
            .or_else(|| self.unsettled_nodes())
            .or_else(|| self.unsettled_messages())
            .or_else(|| self.unsettled_stores())
            .or_else(|| self.unsettled_generations())
            .or_else(|| self.unsettled_presence())
    }

    /// An edge will speak of a client that is gone once it notices, also where another session took its place.
    fn unsettled_connections(&self) -> Option<(&'static str, String, Vec<String>)> {
        let device = self.unnoticed_loss()?;
        let detail = format!("an edge has not noticed that a connection of {device} is gone");
        Some(("everything comes to an end", detail, vec![device]))
    }

    fn unsettled_nodes(&mut self) -> Option<(&'static str, String, Vec<String>)> {
        let what = "everything comes to an end";
        let idle = self.nodes.iter().find(|node| {
            let away = self.wrong.gone.contains(&node.region) || self.parts.out.contains(&node.region);
            node.process.is_none() && !away
        });
        if let Some(node) = idle {
            return Some((what, format!("{} does not run", node.key), Vec::new()));
        }
        let away = (0..self.nodes.len()).find_map(|node| Some((node, self.served_elsewhere(node)?)));
        if let Some((node, by)) =
            away.filter(|(node, _)| !self.wrong.gone.contains(&self.nodes[*node].region))
        {
            let detail = format!("{} is served by {by}", self.nodes[node].key);
            return Some((what, detail, Vec::new()));
        }
        let regions: Vec<usize> = self.regions_there().collect();
        for region in regions {
            let name = self.region_name(region).clone();
            for shard in (0..self.plan.shards).map(ShardId) {
                let owners: Vec<(Addr, Epoch)> = self.owners(region, shard).collect();
                let [(owner, epoch)] = owners.as_slice() else {
                    let detail = format!("shard {shard} has the owners {owners:?} in {name}");
                    return Some((what, detail, Vec::new()));
                };
                let stored = self.shard_row(region, shard).map(|row| row.epoch);
                if stored.is_some_and(|stored| stored != *epoch) {
                    let detail =
                        format!("{owner} owns shard {shard} under {epoch:?}, and its store has {stored:?}");
                    return Some((what, detail, Vec::new()));
                }
            }
        }
        for device in &self.devices {
            if device.machine.is_some() && !device.is_live() {
                return Some((
                    what,
                    format!("{} has no session", device.name()),
                    vec![device.name()],
                ));
            }
        }
        None
    }

    /// Who owns a shard in a region, and under which epoch: the partitions where it is active.
    fn owners(&self, region: usize, shard: ShardId) -> impl Iterator<Item = (Addr, Epoch)> {
        self.tasks_in(region).filter_map(move |(addr, task)| {
            let owner = task.machine.owner();
            let epoch = owner.epoch(shard)?;
            owner
                .active_shards()
                .any(|active| active == shard)
                .then_some((addr, epoch))
        })
    }

    /// The presence of a shard at its owner in a region, where it is active.
    pub(super) fn presence_in(&self, region: usize, shard: ShardId) -> Option<&Presence> {
        let owns = |task: &&Task| {
            let mut active = task.machine.owner().active_shards();
            active.any(|active| active == shard)
        };
        let mut tasks = self.tasks_in(region).map(|(_, task)| task);
        tasks.find(owns)?.machine.owner().presence(shard)
    }

    /// The partitions that run in a region.
    fn tasks_in(&self, region: usize) -> impl Iterator<Item = (Addr, &Task)> {
        let nodes = 0..self.nodes.len();
        nodes
            .filter(move |node| self.nodes[*node].region == region)
            .flat_map(move |node| {
                let process = self.nodes[node].process.iter();
                let tasks = process.flat_map(|process| (0..).zip(&process.tasks));
                tasks.map(move |(partition, task)| (self.addr(node, partition), task))
            })
    }

    /// What owners remember of edges is of those that run, and of their present lives: their lanes, the sessions that are
    /// attached on them, the presence of their clients. And an edge has a session for each of its clients, no other.
    fn unsettled_generations(&self) -> Option<(&'static str, String, Vec<String>)> {
        let what = "no state of a dead generation";
        let found = |detail: String| Some((what, detail, Vec::new()));
        let runs = |key: &NodeKey, generation: Generation| {
            let node = self.node_of(key).map(|node| &self.nodes[node]);
            node.is_some_and(|node| node.process.is_some() && node.generation == generation.0)
        };
        let lost = |name: &RegionId| {
            let region = self.plan.region(name);
            region.is_some_and(|region| self.wrong.gone.contains(&region))
        };
        for region in self.regions_there() {
            let mut expected: BTreeSet<(ShardId, SessionId, Addr)> = BTreeSet::new();
            for (addr, task) in self.tasks_in(region) {
                let sessions = || task.machine.edge().sessions();
                expected.extend(sessions().map(|(session, _, shard)| (shard, session, addr.clone())));
                let conns: BTreeSet<ConnId> = sessions().map(|(_, conn, _)| conn).collect();
                let clients = self.conns_at(&addr);
                if conns != clients {
                    return found(format!(
                        "{addr} has sessions for {conns:?}, its clients are {clients:?}"
                    ));
                }
            }
            let mut attached: BTreeSet<(ShardId, SessionId, Addr)> = BTreeSet::new();
            for (addr, task) in self.tasks_in(region) {
                let owner = task.machine.owner();
                if let Some((edge, generation)) = owner
                    .lanes()
                    .find(|(edge, generation)| !runs(&edge.node, *generation))
                {
                    return found(format!(
                        "{addr} keeps a lane of {edge}, generation {generation:?}"
                    ));
                }
                for shard in owner.active_shards() {
                    let edges = owner.presence(shard).into_iter().flat_map(Presence::edges);
                    let mut dead =
                        edges.filter(|edge| !lost(&edge.node.region) && !runs(&edge.node, edge.generation));
                    if let Some(edge) = dead.next() {
                        return found(format!("{addr} keeps presence of {edge:?} in shard {shard}"));
                    }
                    let sessions = owner.attached_in(shard);
                    attached.extend(sessions.map(|(session, edge, _)| (shard, session, edge.clone())));
                }
            }
            if attached != expected {
                let name = self.region_name(region);
                let more: Vec<_> = attached.difference(&expected).collect();
                let less: Vec<_> = expected.difference(&attached).collect();
                return found(format!(
                    "owners in {name} have {more:?} attached, which no edge has, and not {less:?}"
                ));
            }
        }
        None
    }

    fn unsettled_messages(&self) -> Option<(&'static str, String, Vec<String>)> {
        let mut devices: BTreeMap<&UserId, Vec<usize>> = BTreeMap::new();
        for (index, device) in self.devices.iter().enumerate() {
            devices.entry(&device.user).or_default().push(index);
        }
        for (number, sent) in self.check.sent.iter().enumerate() {
            let number = number as u64;
            let waits = sent
                .senders
                .iter()
                .find(|from| !sent.fates.contains_key(from) && self.devices[**from].machine.is_some());
            if let Some(from) = waits {
                let detail = format!("#{number} of {} has no answer", self.devices[*from].name());
                return Some(("every message is answered", detail, self.check.words(number)));
            }
            // What only regions had that are gone for good is gone with them.
            let shard = self.plan.sharding().of_user(&sent.to);
            let kept = self.regions_there().any(|region| {
                let mut coords = sent.coords.iter();
                coords.any(|at| self.check.is_durable(region, shard, *at))
            });
            if !kept {
                // Of one region, whichever, and it was told to be safe from that.
                let lost = self.check.losses.iter().filter(|(at, _)| *at >= sent.at);
                let lost: BTreeSet<usize> = lost.map(|(_, region)| *region).collect();
                if sent.geo && lost.len() < 2 {
                    let detail = format!(
                        "#{number} was accepted as Geo at {:?} and is nowhere, though only {lost:?} lost a store since",
                        sent.coords
                    );
                    return Some(("geo", detail, self.check.words(number)));
                }
                continue;
            }
            for index in devices.get(&sent.to).into_iter().flatten() {
                let (device, seen) = (&self.devices[*index], &self.check.seen[*index]);
                if seen.welcomed.is_none() || seen.consumed.contains(&number) {
                    continue;
                }
                if !self.told_gone(*index, number) {
                    let detail = format!("#{number} at {:?} did not reach {}", sent.coords, device.name());
                    let mut words = self.check.words(number);
                    words.push(device.name());
                    return Some(("accepted is delivered", detail, words));
                }
            }
        }
        None
    }

    /// The regions that are not gone for good.
    fn regions_there(&self) -> impl Iterator<Item = usize> {
        let away = |region: &usize| self.wrong.gone.contains(region) || self.parts.out.contains(region);
        (0..self.stores.len()).filter(move |region| !away(region))
    }

    pub(super) fn shard_row(&mut self, region: usize, shard: ShardId) -> Option<ShardRow> {
        match self.engine(region)?.read(&Read::Shard(shard)) {
            Ok(ReadReply::Shard(row)) => Some(*row),
            _ => None,
        }
    }

    pub(super) fn user_row(&mut self, region: usize, shard: ShardId, user: &UserId) -> Option<UserRow> {
        match self.engine(region)?.read(&Read::User(shard, user.clone())) {
            Ok(ReadReply::User(row)) => Some(*row),
            _ => None,
        }
    }

    fn unsettled_stores(&mut self) -> Option<(&'static str, String, Vec<String>)> {
        let there: Vec<usize> = self.regions_there().collect();
        // What waits for a region that is gone stays.
        let rests = self.wrong.gone.is_empty();
        for region in there.iter().copied() {
            if self.engine(region).is_none() {
                let detail = format!("the store of {} does not run", self.region_name(region));
                return Some(("everything comes to an end", detail, Vec::new()));
            }
        }
        for (shard, users) in self.check.users.clone() {
            if let Some(detail) = self.unretired(&there, shard).filter(|_| rests) {
                return Some(("old origins are retired (R23)", detail, Vec::new()));
            }
            let first = self.shard_row(*there.first()?, shard)?;
            for region in there.iter().copied() {
                let row = self.shard_row(region, shard)?;
                let name = self.region_name(region).clone();
                if row.applied() != first.applied() && !self.plan.devices_expire() {
                    let detail = format!(
                        "shard {shard}: {name} has {:?}, not {:?}",
                        row.applied(),
                        first.applied()
                    );
                    return Some(("equal logs", detail, Vec::new()));
                }
                let rests = rests && !self.plan.devices_expire();
                if let Some(detail) = self.unrested_log(region, shard, &row).filter(|_| rests) {
                    return Some(("logs at rest", detail, Vec::new()));
                }
                for user in &users {
                    if let Some(found) = self.unsettled_user((there[0], region), shard, user) {
                        return Some(found);
                    }
                }
            }
        }
        None
    }

    /// At rest a log holds the last confirmations and nothing else.
    fn unrested_log(&mut self, region: usize, shard: ShardId, row: &ShardRow) -> Option<String> {
        let name = self.region_name(region).clone();
        let mut confirms = 0;
        for (origin, log) in &row.logs {
            let read = Read::Log {
                shard,
                origin: *origin,
                after: log.floor,
                max_items: 1000,
                max_bytes: usize::MAX,
            };
            let Ok(ReadReply::Log(LogPage::Run { entries, .. })) = self.engine(region)?.read(&read) else {
                return Some(format!(
                    "{name} cannot read the log of {origin:?} in shard {shard}"
                ));
            };
            for entry in entries {
                if entry.op.kind() != kind::CONFIRM {
                    let what = super::check::about(&entry.op);
                    return Some(format!(
                        "{name} keeps {origin:?}:{} in shard {shard}: {what}",
                        entry.seq
                    ));
                }
                confirms += 1;
            }
        }
        if row.holding.log_bytes > 0 || !row.holding.marked.is_empty() {
            return Some(format!("{name} counts {:?} in shard {shard}", row.holding));
        }
        let limit = RESTING_CONFIRMS * self.stores.len();
        (confirms > limit).then(|| format!("{name} keeps {confirms} confirmations in shard {shard}"))
    }

    fn unsettled_user(
        &mut self,
        (first, region): (usize, usize),
        shard: ShardId,
        user: &UserId,
    ) -> Option<(&'static str, String, Vec<String>)> {
        let mut first = self.user_row(first, shard, user)?;
        let mut row = self.user_row(region, shard, user)?;
        if self.plan.devices_expire() {
            [&mut first, &mut row].into_iter().for_each(expiry::at_rest);
        }
        let name = self.region_name(region).clone();
        let words = vec![user.to_string()];
        // A region that removed a message before it knew of a device does not raise that device's cursor past it, one that
        // knew of it does (R10, R17): below what is removed a cursor says nothing.
        let devices = |row: &UserRow| {
            let mut devices = row.devices.clone();
            devices.values_mut().for_each(|device| {
                device.cursor.merge(&row.trimmed);
            });
            devices
        };
        if devices(&row) != devices(&first) {
            let detail = format!("{user} in {name}: {:?}, not {:?}", row.devices, first.devices);
            return Some(("equal devices", detail, words));
        }
        if row.siblings != first.siblings {
            let detail = format!("{user} in {name}: {:?}, not {:?}", row.siblings, first.siblings);
            return Some(("equal siblings", detail, words));
        }
        let Some(mut stored) = self.waiting_for(region, shard, user) else {
            return Some((
                "equal inboxes",
                format!("{name} cannot read the inbox of {user}"),
                words,
            ));
        };
        // A region replaces what is due when it comes to it: whether it did makes no difference.
        let holes = self.holes(region, shard, user)?;
        stored.extend(self.in_holes(user, &holes));
        if let Some(device) = self.expired_though_attached(user, &row) {
            let detail = format!("{device} expired in {name}, and has a session");
            return Some(("devices that are attached stay (R19)", detail, words));
        }
        if !row.devices.is_empty() && row.devices.values().all(|device| device.expired) {
            return None;
        }
        let expected: BTreeSet<Coord> = if row.devices.is_empty() {
            let numbers = 0..self.check.next_number();
            let sent = numbers.filter(|number| self.check.sent[*number as usize].to == *user);
            sent.flat_map(|number| self.check.coords(number)).collect()
        } else {
            BTreeSet::new()
        };
        if stored != expected && self.wrong.gone.is_empty() {
            let detail = format!("{user} in {name}: {stored:?} wait, expected {expected:?}");
            return Some(("equal inboxes", detail, words));
        }
        None
    }

    /// What a region keeps of a user's messages.
    fn waiting_for(&mut self, region: usize, shard: ShardId, user: &UserId) -> Option<BTreeSet<Coord>> {
        let (mut stored, mut after) = (BTreeSet::new(), Vector::new());
        loop {
            let read = Read::Inbox {
                shard,
                user: user.clone(),
                after: after.clone(),
                max_items: 1000,
                max_bytes: usize::MAX,
            };
            let Ok(ReadReply::Inbox(page)) = self.engine(region)?.read(&read) else {
                return None;
            };
            for entry in &page.entries {
                after.raise(entry.at.origin, entry.at.seq);
                stored.insert(entry.at);
            }
            if page.end || page.entries.is_empty() {
                return Some(stored);
            }
        }
    }

    /// Who is connected, where, and how, as the clients know.
    pub(super) fn truth(&self) -> BTreeMap<UserId, BTreeMap<DeviceId, (RegionId, Status)>> {
        let mut truth: BTreeMap<UserId, BTreeMap<DeviceId, (RegionId, Status)>> = BTreeMap::new();
        for device in self.devices.iter().filter(|device| device.is_live()) {
            let Some(client) = device.conn.and_then(|conn| self.clients.get(&conn)) else {
                continue;
            };
            let region = self.region_name(self.nodes[client.node].region).clone();
            let devices = truth.entry(device.user.clone()).or_default();
            devices.insert(device.device.clone(), (region, device.status));
        }
        truth
    }

    fn unsettled_presence(&self) -> Option<(&'static str, String, Vec<String>)> {
        let truth = self.truth();
        let nobody = BTreeMap::new();
        for region in self.regions_there() {
            for (shard, users) in &self.check.users {
                let table = self.presence_in(region, *shard)?;
                for user in users {
                    let lost = |name: &RegionId| {
                        let region = self.plan.region(name);
                        region.is_some_and(|region| self.wrong.gone.contains(&region))
                    };
                    let mut shown = shown(table, user);
                    shown.retain(|_, (region, _)| !lost(region));
                    let expected = truth.get(user).unwrap_or(&nobody);
                    if shown != *expected {
                        let name = self.region_name(region);
                        let detail = format!("{user} in {name}: {shown:?}, in truth {expected:?}");
                        return Some(("presence is the truth", detail, vec![user.to_string()]));
                    }
                }
            }
        }
        self.unsettled_watchers(&truth)
    }

    fn unsettled_watchers(
        &self,
        truth: &BTreeMap<UserId, BTreeMap<DeviceId, (RegionId, Status)>>,
    ) -> Option<(&'static str, String, Vec<String>)> {
        let what = "watchers see the truth";
        for device in self.devices.iter().filter(|device| device.is_live()) {
            for user in device.watched() {
                let expected = truth.get(user).map_or(0, BTreeMap::len);
                let best = truth
                    .get(user)
                    .into_iter()
                    .flatten()
                    .map(|(_, (_, status))| *status)
                    .max();
                let best = best.unwrap_or(Status::Offline);
                let words = vec![device.name(), user.to_string()];
                let Some(seen) = device.seen.get(user) else {
                    return Some((what, format!("{} knows nothing of {user}", device.name()), words));
                };
                // Devices of a region that is gone stay unreachable.
                let ghosts = seen.unreachable_since_ms.is_some() && !self.wrong.gone.is_empty();
                if ghosts {
                    continue;
                }
                if seen.devices as usize != expected
                    || seen.status != best
                    || seen.unreachable_since_ms.is_some()
                {
                    let detail = format!(
                        "{} sees {user} {:?} on {} devices (unreachable since {:?}); in truth {best:?} on {expected}",
                        device.name(),
                        seen.status,
                        seen.devices,
                        seen.unreachable_since_ms
                    );
                    return Some((what, detail, words));
                }
            }
        }
        None
    }

    /// Every region knows every message that was accepted: the same one again is a duplicate, with the same coordinates.
    fn check_dedup(&mut self) {
        if self.defect == Some(Defect::DedupOff) {
            return;
        }
        let there: Vec<usize> = self.regions_there().collect();
        for number in 0..self.check.sent.len() {
            let sent = &self.check.sent[number];
            let coords = self.check.coords(number as u64);
            let Some(at) = coords.first().copied() else {
                continue;
            };
            let shard = self.plan.sharding().of_user(&sent.to);
            let Some(entry) = self.check.ledger.get(&(shard, at.origin, at.seq)) else {
                continue;
            };
            let (Ok(envelope), body) = (entry.op.envelope(), entry.op.body()) else {
                continue;
            };
            for region in there.iter().copied() {
                let Some(row) = self.shard_row(region, shard) else {
                    continue;
                };
                let op = StoreOp::Append {
                    shard,
                    epoch: row.epoch,
                    envelope: Box::new(envelope.clone()),
                    body: body.clone(),
                    seen_ms: 0,
                    known_only: true,
                };
                let Some(engine) = self.engine(region) else {
                    continue;
                };
                let found = engine
                    .commit(vec![op], row.hlc.ms)
                    .map(|committed| committed.outcomes);
                let known = match found.as_deref() {
                    Ok([Outcome::Duplicate(known)]) => known.iter().copied().collect::<BTreeSet<Coord>>(),
                    _ => BTreeSet::new(),
                };
                let here = |at: &&Coord| self.check.is_durable(region, shard, **at);
                let coords: BTreeSet<Coord> = coords.iter().filter(here).copied().collect();
                if known != coords && !coords.is_empty() {
                    let detail = format!(
                        "{} answers #{number} with {found:?}, expected {coords:?}",
                        self.region_name(region)
                    );
                    return self.fail("equal dedup", detail, vec![format!("#{number} ")]);
                }
            }
        }
    }
}

/// Whom a region shows, where, and how, as if it reached every other.
pub(super) fn shown(table: &Presence, user: &UserId) -> BTreeMap<DeviceId, (RegionId, Status)> {
    let devices = table.visible(user, &BTreeMap::new()).devices;
    devices
        .into_iter()
        .map(|device| (device.device, (device.region, status(device.status))))
        .collect()
}

fn status(visible: VisibleStatus) -> Status {
    match visible {
        VisibleStatus::Offline | VisibleStatus::Unreachable { .. } => Status::Offline,
        VisibleStatus::Away => Status::Away,
        VisibleStatus::Dnd => Status::Dnd,
        VisibleStatus::Online => Status::Online,
    }
}
