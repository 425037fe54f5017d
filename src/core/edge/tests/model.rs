//! Random interleavings of sends, refusals, lost lanes, moving shards and closing sessions, against owners that hold R21,
//! and clients that send again in order. See [`World::check`] and [`World::finish`] for what is demanded.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::core::edge::session::Item;

const NODES: [&str; 2] = ["one", "two"];
const RECIPIENTS: usize = 5;
const CLIENTS: usize = 4;

/// Small numbers so that every limit is met.
fn limits() -> CoreLimits {
    CoreLimits {
        sends_in_flight: 12,
        edge_bytes: 24 * (DEPOSIT_COST + 2),
        lane_deposits: 10,
        lane_bytes: 8 * (DEPOSIT_COST + 2),
        sends_per_second: 1_000,
        send_burst: 20,
        deposit_timeout_ms: 1_000,
        retry_ms: 20,
        attach_timeout_ms: 2_000,
        link_timeout_ms: 400,
        probe_ms: 100,
        idle_seconds: 3_600,
        ..CoreLimits::default()
    }
}

struct World {
    edge: Edge,
    now: Now,
    dice: u64,
    calm: bool,
    owners: [FakeOwner; 2],
    store: Store,
    /// Which owner the edge is told for each shard.
    placed: Vec<usize>,
    clients: BTreeMap<ConnId, Client>,
    next_conn: u64,

    /// Messages that an owner refused for good: when that answer is lost and the client sends them again, they may be
    /// taken behind those that passed them rightly.
    refused: BTreeSet<MessageId>,
}

/// What is durable, for both owners.
struct Store {
    /// The owner whose commits count.
    holder: Vec<usize>,
    ids: BTreeSet<MessageId>,
    /// Places in the sender's order, as logged.
    log: BTreeMap<(SessionId, UserId), Vec<u64>>,
    /// How many messages are there for a user.
    inbox: BTreeMap<UserId, u64>,
}

#[derive(Default)]
struct FakeOwner {
    generation: u64,
    up: bool,
    lane: Option<u64>,
    /// The shards that it believes to own.
    view: BTreeSet<ShardId>,
    inbound: VecDeque<(u64, ToOwner)>,
    outbound: VecDeque<(u64, ToEdge)>,
    /// Sessions on the lane: user, shard, and what was delivered.
    attached: BTreeMap<SessionId, (UserId, ShardId, u64)>,
    /// Shards for which it said `NotOwner` on this lane: ignored there from then on, or what was refused so would be
    /// passed by what followed it.
    refused: BTreeSet<ShardId>,
    order: BTreeMap<(SessionId, ShardId), Order>,
    committing: Vec<Deposit>,
}

/// R21 for one session and shard.
#[derive(Default)]
struct Order {
    attempt: u32,
    refused_from: Option<u64>,
    judged: u64,
    /// Refused for good.
    ended: BTreeSet<u64>,
}

struct Client {
    session: SessionId,
    user: UserId,
    welcomed: bool,
    uplink: VecDeque<ClientFrame>,
    downlink: VecDeque<ServerFrame>,
    next_seq: u64,
    /// In the order in which the application sent them.
    messages: Vec<Sent>,
    answered: BTreeSet<u64>,
    given: u64,
    acked: u64,
}

struct Sent {
    to: UserId,
    seq: u64,
    /// Accepted, or refused for good.
    done: bool,
}

fn message_id(session: SessionId, place: u64) -> MessageId {
    MessageId((u128::from(session.0) << 64 | u128::from(place)).to_be_bytes())
}

fn place_of(id: MessageId) -> u64 {
    u128::from_be_bytes(id.0) as u64
}

impl World {
    fn new() -> World {
        let holder = vec![0; SHARDS as usize];
        let mut world = World {
            edge: Edge::new(config(limits())),
            now: Now {
                mono: Mono(5),
                wall_ms: 1_700_000_000_000,
            },
            dice: 0,
            calm: false,
            owners: Default::default(),
            store: Store {
                holder: holder.clone(),
                ids: BTreeSet::new(),
                log: BTreeMap::new(),
                inbox: BTreeMap::new(),
            },
            placed: holder,
            clients: BTreeMap::new(),
            next_conn: 1,

            refused: BTreeSet::new(),
        };
        world.owners.iter_mut().for_each(|owner| owner.generation = 1);
        world.owners[0].view = (0..SHARDS).map(ShardId).collect();
        world.place();
        world
    }

    /// SplitMix64 (Steele, Lea, Flood, 2014).
    fn roll(&mut self, sides: u64) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn step(&mut self, action: u8, dice: u64) {
        self.dice = dice;
        match action % 32 {
            0 => self.login(),
            1..=8 => {
                for _ in 0..1 + self.roll(4) {
                    self.compose();
                }
            }
            9..=13 => self.uplink(),
            14..=16 => self.downlink(),
            17..=20 => self.owner_reads(),
            21 | 22 => self.owner_commits(),
            23 | 24 => self.edge_reads(),
            25 => {
                let time = [0, 1, 2, 5, 10, 20, 50, 500][self.roll(8) as usize];
                self.pass(time);
            }
            26 => self.deliver(),
            27 => self.connect(),
            28 => match self.roll(12) {
                0 => self.disconnect(),
                1 => self.restart(),
                2 | 3 => self.reset(),
                _ => self.connect(),
            },
            29 => match self.roll(8) {
                0 => self.place_some(),
                _ => self.owner_learns(),
            },
            30 => match self.roll(16) {
                0 => self.close_one(),
                1 => self.owner_ends_one(),
                _ => self.owner_probes_one(),
            },
            _ => self.client_acks(),
        }
        self.collect();
        self.check();
    }

    fn any_client(&mut self) -> Option<ConnId> {
        let count = self.clients.len() as u64;
        let at = if count == 0 {
            return None;
        } else {
            self.roll(count) as usize
        };
        self.clients.keys().nth(at).copied()
    }

    fn login(&mut self) {
        if self.clients.len() >= CLIENTS {
            return;
        }
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        let session = SessionId(conn.0 * 7_919 % 1_000);
        let user = user(&format!("to{}", self.roll(3)));
        self.edge
            .handle_hello(conn, user.clone(), hello("phone"), session, self.now);
        let client = Client {
            session,
            user,
            welcomed: false,
            uplink: VecDeque::new(),
            downlink: VecDeque::new(),
            next_seq: 1,
            messages: Vec::new(),
            answered: BTreeSet::new(),
            given: 0,
            acked: 0,
        };
        self.clients.insert(conn, client);
    }

    fn compose(&mut self) {
        let to = user(&format!("to{}", self.roll(RECIPIENTS as u64)));
        let Some(conn) = self.any_client() else { return };
        let client = self.clients.get_mut(&conn).unwrap();
        if client.welcomed && client.messages.len() < 60 {
            client.messages.push(Sent {
                to,
                seq: 0,
                done: false,
            });
            let place = client.messages.len() - 1;
            client.send(place);
        }
    }

    fn uplink(&mut self) {
        let Some(conn) = self.any_client() else { return };
        for _ in 0..1 + self.roll(4) {
            if let Some(frame) = self
                .clients
                .get_mut(&conn)
                .and_then(|client| client.uplink.pop_front())
            {
                self.edge.handle_frame(conn, frame, self.now);
            }
        }
    }

    fn downlink(&mut self) {
        let Some(conn) = self.any_client() else { return };

        for _ in 0..1 + self.roll(6) {
            let client = self.clients.get_mut(&conn).unwrap();
            if let Some(frame) = client.downlink.pop_front() {
                client.receive(frame, &self.store);
            }
        }
    }

    fn client_acks(&mut self) {
        let Some(conn) = self.any_client() else { return };
        let beyond = self.roll(5);
        let client = self.clients.get_mut(&conn).unwrap();
        if client.welcomed {
            client.acked = client.given;
            let seq = client.given + if beyond == 0 { 9 } else { 0 };
            let origin = Origin(1);
            client
                .uplink
                .push_back(ClientFrame::Ack(vec![Coord { origin, seq }]));
        }
    }

    fn owner_reads(&mut self) {
        let which = self.roll(2) as usize;
        for _ in 0..1 + self.roll(4) {
            let (silent, void) = (self.roll(2) == 0, self.roll(2) == 0);
            let refusal = if self.calm { 9 } else { self.roll(14) };
            let owner = &mut self.owners[which];
            if let Some((lane, body)) = owner.inbound.pop_front() {
                if matches!(body, ToOwner::Open { .. }) && silent {
                    owner.commit(which, &mut self.store, false);
                }
                let refused = owner.read(lane, body, refusal, void);
                self.refused.extend(refused);
            }
        }
    }

    fn owner_commits(&mut self) {
        let which = self.roll(2) as usize;
        self.owners[which].commit(which, &mut self.store, true);
    }

    fn edge_reads(&mut self) {
        let which = self.roll(2) as usize;
        for _ in 0..1 + self.roll(4) {
            if let Some((lane, body)) = self.owners[which].outbound.pop_front() {
                self.edge.handle_owner(&addr(NODES[which]), lane, body, self.now);
            }
        }
    }

    fn deliver(&mut self) {
        let which = self.roll(2) as usize;
        let more = user(&format!("to{}", self.roll(3)));
        if !self.calm {
            *self.store.inbox.entry(more).or_default() += 1;
        }
        self.owners[which].deliver(&self.store);
    }

    fn connect(&mut self) {
        let which = self.roll(2) as usize;
        self.owners[which].up = true;
        self.edge.handle_reachable(&node(NODES[which]), true, self.now);
    }

    fn disconnect(&mut self) {
        let which = self.roll(2) as usize;
        let owner = &mut self.owners[which];
        owner.up = false;
        owner.inbound.clear();
        owner.outbound.clear();
        self.edge.handle_reachable(&node(NODES[which]), false, self.now);
        self.collect();
        assert!(
            self.owners[which].inbound.is_empty(),
            "nothing goes to who cannot be reached"
        );
    }

    fn restart(&mut self) {
        let which = self.roll(2) as usize;
        let told_first = self.roll(2) == 0;
        let owner = &mut self.owners[which];
        *owner = FakeOwner {
            generation: owner.generation + 1,
            view: std::mem::take(&mut owner.view),
            ..FakeOwner::default()
        };
        if told_first {
            self.place();
        }
        self.edge.handle_reachable(&node(NODES[which]), false, self.now);
        self.place();
        self.collect();
        self.owners[which].inbound.clear();
    }

    fn reset(&mut self) {
        let which = self.roll(2) as usize;
        let owner = &mut self.owners[which];
        if let Some(lane) = owner.lane.take() {
            owner.attached.clear();

            owner.committing.clear();
            owner.order.clear();
            owner.outbound.push_back((lane, ToEdge::Reset));
        }
    }

    fn place(&mut self) {
        let owner = |which: usize| Owner {
            addr: addr(NODES[which]),
            generation: Generation(self.owners[which].generation),
        };
        let owners = (0..SHARDS)
            .map(|n| (ShardId(n), owner(self.placed[n as usize])))
            .collect();
        self.edge.handle_placement(&owners, self.now);
    }

    fn place_some(&mut self) {
        for shard in 0..SHARDS as usize {
            if self.roll(3) == 0 {
                self.placed[shard] = self.roll(2) as usize;
            }
        }
        self.place();
    }

    /// An owner learns of the placement: it gives shards up, and takes those that are its own now. Taking one needs a
    /// commit, and what was sent before is read while that lasts: else a copy on a lane that died long ago could be
    /// taken for new by an owner that lost the shard and got it back.
    fn owner_learns(&mut self) {
        let which = self.roll(2) as usize;
        while let Some((lane, body)) = self.owners[which].inbound.pop_front() {
            self.owners[which].read(lane, body, 9, true);
        }
        let shards = (0..SHARDS).map(ShardId);
        let mine: BTreeSet<ShardId> = shards
            .filter(|shard| self.placed[shard.0 as usize] == which)
            .collect();
        let owner = &mut self.owners[which];
        for shard in &mine - &owner.view {
            self.store.holder[shard.0 as usize] = which;
        }
        let lost = &owner.view - &mine;
        owner.lose(lost);
        owner.view = mine;
    }

    fn close_one(&mut self) {
        if let Some(conn) = self.any_client() {
            self.close(conn);
        }
    }

    fn close(&mut self, conn: ConnId) {
        self.edge.handle_closed(conn, self.now);
        self.clients.remove(&conn);
    }

    fn some_attached(&mut self) -> Option<(usize, u64, SessionId)> {
        let which = self.roll(2) as usize;
        let session = *self.owners[which].attached.keys().next()?;
        Some((which, self.owners[which].lane?, session))
    }

    fn owner_ends_one(&mut self) {
        if let Some((which, lane, session)) = self.some_attached() {
            let (code, detail) = (Code::Superseded, String::new());
            let owner = &mut self.owners[which];
            owner.attached.remove(&session);
            owner.outbound.push_back((
                lane,
                ToEdge::Ended {
                    session,
                    code,
                    detail,
                },
            ));
        }
    }

    fn owner_probes_one(&mut self) {
        if let Some((which, lane, session)) = self.some_attached() {
            self.owners[which]
                .outbound
                .push_back((lane, ToEdge::Probe { session }));
        }
    }

    fn pass(&mut self, milliseconds: u64) {
        let end = self.now.mono + ms(milliseconds);
        while let Some(at) = self.edge.poll_timeout().filter(|at| *at <= end) {
            self.now.mono = self.now.mono.max(at);
            self.edge.handle_timeout(self.now);
            self.collect();
        }
        self.now.mono = end;
    }

    /// Takes every output to where it belongs.
    fn collect(&mut self) {
        while let Some(output) = self.edge.poll_output() {
            match output {
                EdgeOutput::Client { conn, frames } => {
                    self.clients
                        .get_mut(&conn)
                        .expect("frames go to who is there")
                        .downlink
                        .extend(frames);
                }
                EdgeOutput::Close { conn, .. } => {
                    self.clients.remove(&conn).expect("closed once");
                    self.edge.handle_closed(conn, self.now);
                }
                EdgeOutput::ToOwner { to, lane, body } => {
                    let which = NODES.iter().position(|name| addr(name) == to).unwrap();
                    assert!(self.owners[which].up, "nothing goes to who cannot be reached");
                    self.owners[which].inbound.push_back((lane, body));
                }
            }
        }
    }

    /// What holds after every step.
    fn check(&self) {
        let streams = || {
            self.edge
                .sessions
                .values()
                .flat_map(|session| session.streams.values())
        };
        let sent: usize = streams().map(|stream| stream.sent).sum();
        assert_eq!(self.edge.routing.in_flight(), sent);
        let bytes: usize = streams().map(|stream| stream.in_flight().bytes).sum();
        assert_eq!(self.edge.routing.bytes_in_flight(), bytes);
        let attaching = self
            .edge
            .sessions
            .values()
            .filter(|session| session.attaching)
            .count();
        assert_eq!(self.edge.routing.attaching(), attaching);
        let stats = self.edge.stats();
        assert_eq!(
            stats.deposits,
            streams().map(|stream| stream.items.len()).sum::<usize>()
        );
        assert_eq!(
            stats.bytes,
            streams().flat_map(|s| &s.items).map(Item::cost).sum::<usize>()
        );
        assert!(stats.bytes <= limits().edge_bytes);
        assert_eq!(stats.sessions, self.edge.sessions.len());
        assert_eq!(self.edge.wakes.len(), self.edge.sessions.len());
        assert_eq!(
            self.edge.retries.len(),
            streams().filter(|stream| stream.paused.is_some()).count()
        );
        for session in self.edge.sessions.values() {
            let unanswered: usize = session.streams.values().map(|stream| stream.items.len()).sum();
            assert_eq!(session.unanswered as usize, unanswered);
            assert!(session.unanswered <= limits().sends_in_flight);
        }
        for ((session, _), places) in &self.store.log {
            let wanted = places
                .iter()
                .filter(|place| !self.refused.contains(&message_id(*session, **place)));
            assert!(wanted.is_sorted(), "session {session} is logged as {places:?}");
        }
    }

    /// Heals everything and demands that all comes to its end, and that nothing is left.
    fn finish(&mut self) {
        self.calm = true;
        for (which, name) in NODES.iter().enumerate() {
            self.owners[which].up = true;
            self.edge.handle_reachable(&node(name), true, self.now);
        }
        self.place();
        for round in 0..4_000 {
            self.dice = round;
            self.owner_learns();
            self.collect();
            for action in [9, 14, 17, 21, 23, 26] {
                for _ in 0..4 {
                    let dice = self.roll(u64::MAX);
                    self.step(action, dice);
                }
            }
            self.pass(20);
            if round % 5 == 4 && self.settled() {
                break;
            }
        }
        for (conn, client) in &self.clients {
            assert!(client.welcomed, "{conn} was never welcomed");
            let open: Vec<u64> = client
                .messages
                .iter()
                .filter(|m| !m.done)
                .map(|m| m.seq)
                .collect();
            assert!(open.is_empty(), "{conn} waits for {open:?}");
            assert_eq!(
                client.given,
                self.store.inbox.get(&client.user).copied().unwrap_or(0)
            );
        }
        for (which, owner) in self.owners.iter().enumerate() {
            let there: BTreeSet<SessionId> = owner.attached.keys().copied().collect();
            let here = self.edge.sessions.iter();
            let here = here.filter(|(_, session)| self.placed[session.shard.0 as usize] == which);
            assert_eq!(
                there,
                here.map(|(id, _)| *id).collect(),
                "sessions at owner {which}"
            );
        }
        let stats = self.edge.stats().clone();
        let rejected: u64 = stats.rejected.values().sum();
        assert_eq!(
            stats.sends,
            stats.accepted + rejected + stats.forgotten + stats.deposits as u64
        );
        for conn in self.clients.keys().copied().collect::<Vec<_>>() {
            self.close(conn);
        }
        self.collect();
        self.pass(1_000);
        assert_empty(&self.edge);
    }

    fn settled(&self) -> bool {
        let there = |client: &Client| self.store.inbox.get(&client.user).copied().unwrap_or(0);
        self.clients.values().all(|client| {
            let idle = client.uplink.is_empty() && client.downlink.is_empty();
            idle && client.messages.iter().all(|m| m.done) && client.given == there(client)
        }) && self
            .owners
            .iter()
            .all(|owner| owner.inbound.is_empty() && owner.outbound.is_empty())
    }
}

impl FakeOwner {
    /// Says what it refused for good.
    fn read(&mut self, lane: u64, body: ToOwner, refusal: u64, forget: bool) -> Vec<MessageId> {
        let mut refused = Vec::new();
        if let ToOwner::Open { .. } = body {
            assert!(self.lane.is_none_or(|old| old < lane), "lanes rise");
            self.lane = Some(lane);
            self.attached.clear();
            self.refused.clear();
            self.committing.clear();
            if forget {
                self.order.clear();
            }
            return refused;
        }
        if self.lane != Some(lane) {
            return refused;
        }
        let mut elsewhere = BTreeSet::new();
        match body {
            ToOwner::Attach(attaches) => {
                for attach in attaches {
                    if !self.serves(attach.shard) {
                        elsewhere.insert(attach.shard);
                        continue;
                    }
                    assert!(attach.given.includes(&attach.acked));
                    let given = attach.given.of(Origin(1));
                    self.attached
                        .insert(attach.session, (attach.user, attach.shard, given));
                    let attached = ToEdge::Attached {
                        store: Origin(0),
                        session: attach.session,
                        connect_epoch: attach.connect_epoch.max(1),
                        stable: Vector::new(),
                    };
                    self.outbound.push_back((lane, attached));
                }
            }
            ToOwner::Synced(shards) => {
                elsewhere.extend(shards.into_iter().filter(|shard| !self.serves(*shard)));
            }
            ToOwner::Detach(some) => some.iter().for_each(|d| {
                self.attached.remove(&d.session);
            }),
            ToOwner::Ack(acks) => {
                for ack in acks {
                    if let Some((_, _, delivered)) = self.attached.get(&ack.session) {
                        assert!(ack.at.seq <= *delivered, "acknowledged what was never given");
                    }
                }
            }
            ToOwner::Deposit(deposits) => {
                for deposit in deposits {
                    if !self.serves(deposit.shard) {
                        elsewhere.insert(deposit.shard);
                        continue;
                    }
                    if let Some(code) = self.judge(&deposit, refusal) {
                        if !code.retryable() {
                            refused.push(deposit.envelope.id);
                        }
                        let answers = vec![answer(&deposit, refuse(code))];
                        self.outbound.push_back((lane, ToEdge::Answers(answers)));
                    } else {
                        self.committing.push(deposit);
                    }
                }
            }
            _ => {}
        }
        self.say_not_owner(elsewhere);
        refused
    }

    fn serves(&self, shard: ShardId) -> bool {
        self.view.contains(&shard) && !self.refused.contains(&shard)
    }

    fn say_not_owner(&mut self, shards: BTreeSet<ShardId>) {
        let news: Vec<ShardId> = (&shards - &self.refused).into_iter().collect();
        if let Some(lane) = self.lane
            && !news.is_empty()
        {
            self.refused.extend(news.iter());
            self.outbound.push_back((lane, ToEdge::NotOwner(news)));
        }
    }

    /// R21, with refusals of both kinds thrown in.
    fn judge(&mut self, deposit: &Deposit, refusal: u64) -> Option<Code> {
        let seq = deposit.envelope.session_seq;
        let order = self
            .order
            .entry((deposit.envelope.session, deposit.shard))
            .or_default();
        if deposit.attempt < order.attempt {
            return Some(Code::Blocked);
        }
        if deposit.attempt > order.attempt {
            order.attempt = deposit.attempt;
            order.refused_from = None;
        }
        if order.refused_from.is_some_and(|from| seq >= from) {
            return Some(Code::Blocked);
        }
        if refusal == 0 {
            order.refused_from = Some(seq);
            return Some(Code::Overloaded);
        }
        if order.ended.contains(&seq) {
            return Some(Code::OutOfOrder);
        }
        if refusal == 1 && seq > order.judged {
            order.judged = seq;
            order.ended.insert(seq);
            return Some(Code::InboxFull);
        }
        order.judged = order.judged.max(seq);
        None
    }

    fn commit(&mut self, which: usize, store: &mut Store, answers: bool) {
        let mut out = Vec::new();
        let mut fenced = BTreeSet::new();
        for deposit in self.committing.drain(..) {
            let shard = deposit.shard;
            let session = deposit.envelope.session;
            if store.holder[shard.0 as usize] != which {
                fenced.insert(shard);
                out.push(answer(&deposit, refuse(Code::Unavailable)));
                continue;
            }
            if store.ids.insert(deposit.envelope.id) {
                let log = store
                    .log
                    .entry((session, deposit.envelope.to.clone()))
                    .or_default();
                log.push(place_of(deposit.envelope.id));
            }
            out.push(answer(&deposit, accept()));
        }
        if let Some(lane) = self.lane
            && answers
            && !out.is_empty()
        {
            self.outbound.push_back((lane, ToEdge::Answers(out)));
        }
        self.lose(fenced);
    }

    fn lose(&mut self, lost: BTreeSet<ShardId>) {
        self.view.retain(|shard| !lost.contains(shard));

        self.attached.retain(|_, (_, shard, _)| !lost.contains(shard));
        self.order.retain(|(_, shard), _| !lost.contains(shard));
        self.committing.retain(|deposit| !lost.contains(&deposit.shard));
        self.say_not_owner(lost);
    }

    fn deliver(&mut self, store: &Store) {
        let Some(lane) = self.lane else { return };
        let mut out = Vec::new();
        for (session, (user, _, delivered)) in &mut self.attached {
            for seq in *delivered + 1..=store.inbox.get(user).copied().unwrap_or(0) {
                out.push(delivery(*session, 1, seq));
                *delivered = seq;
            }
        }
        if !out.is_empty() {
            self.outbound.push_back((lane, ToEdge::Deliver(out)));
        }
    }
}

impl Client {
    fn send(&mut self, place: usize) {
        let message = &mut self.messages[place];
        message.seq = self.next_seq;
        self.next_seq += 1;
        self.uplink.push_back(ClientFrame::Send(Send {
            id: message_id(self.session, place as u64),
            session_seq: message.seq,
            control: SendControl {
                to: message.to.clone(),
                kind: 0,
                ttl_ms: 0,
                trace: Vec::new(),
            },
            body: Bytes::from_static(b"hi"),
        }));
    }

    fn receive(&mut self, frame: ServerFrame, store: &Store) {
        match frame {
            ServerFrame::Welcome(_) => {
                assert!(!std::mem::replace(&mut self.welcomed, true), "welcomed twice")
            }
            ServerFrame::Deliver { at, .. } => {
                assert_eq!(at.seq, self.given + 1, "each once, in order");
                self.given = at.seq;
            }
            ServerFrame::Accepted(accepted) => {
                assert!(store.ids.contains(&accepted.id), "accepted and not durable");
                assert!(self.answered.insert(accepted.session_seq), "answered twice");
                self.messages[place_of(accepted.id) as usize].done = true;
            }
            ServerFrame::Rejected(rejected) => {
                assert!(self.answered.insert(rejected.session_seq), "answered twice");
                let place = place_of(rejected.id) as usize;
                let message = &mut self.messages[place];
                if message.done || message.seq != rejected.session_seq {
                    return;
                }
                if !rejected.code.retryable() {
                    message.done = true;
                    return;
                }
                let to = message.to.clone();
                for later in place..self.messages.len() {
                    if !self.messages[later].done && self.messages[later].to == to {
                        self.send(later);
                    }
                }
            }
            ServerFrame::Probe { nonce } => self.uplink.push_back(ClientFrame::ProbeReply(nonce)),
            other => panic!("{other:?}"),
        }
    }
}

fn run(seed: u64, steps: u32) {
    let mut world = World::new();
    world.dice = seed;
    for _ in 0..steps {
        let (action, dice) = (world.roll(32) as u8, world.roll(u64::MAX));
        world.step(action, dice);
        world.dice = dice;
    }
    world.finish();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn order_answers_and_maps_hold_in_any_interleaving(seed in any::<u64>(), steps in 0..1_200u32) {
        run(seed, steps);
    }
}
