//! Senders and recipients that go on whatever happens to the nodes, and the ledger of what they saw.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use iris::client::{Client, ClientConfig, ClientEvent, Incoming, OutgoingMessage, Ticket};
use iris::core::ids::{Coord, Origin, SessionId};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::common::{client_config, user, within};
use crate::processes::Processes;

/// Between two sends of a sender while nothing strikes.
const PACE: Duration = Duration::from_millis(40);
/// Sent at once right before a node is killed, so that deposits are under way.
const BURST: u64 = 100;
/// Messages that a sender leaves unanswered at most before it pauses.
const UNANSWERED: usize = 500;
/// When nothing came for so long, nothing will.
const STALL: Duration = Duration::from_secs(30);

/// A message of the test: its body names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub sender: String,
    pub recipient: String,
    /// Rises with each message from this sender to this recipient.
    pub number: u64,
}

/// What all of them saw.
#[derive(Debug, Default)]
pub struct Ledger {
    /// And where each stands.
    accepted: BTreeMap<Name, Coord>,
    refused: Vec<String>,
    /// The region in which an incarnation of a store was seen to accept.
    origins: BTreeMap<Origin, String>,
    /// By recipient and device, in the order in which they were handed over.
    delivered: BTreeMap<(String, String), Vec<Delivered>>,
    /// The clients of the devices, and the last that they told of their connections.
    clients: BTreeMap<(String, String), (Client, String)>,
}

#[derive(Debug)]
struct Delivered {
    name: Name,
    origin: Origin,
    seq: u64,
    session: SessionId,
    session_seq: u64,
}

/// Shared between tasks.
pub type Book = Arc<Mutex<Ledger>>;

pub fn lock(book: &Book) -> MutexGuard<'_, Ledger> {
    book.lock().unwrap()
}

impl Ledger {
    pub fn accepted(&self) -> usize {
        self.accepted.len()
    }

    pub fn deliveries(&self) -> usize {
        self.delivered.values().map(Vec::len).sum()
    }

    /// Accepted messages that have not reached every device of their recipient.
    fn missing(&self) -> BTreeMap<(String, String), Vec<(&Name, &Coord)>> {
        let mut missing = BTreeMap::new();
        for (device, delivered) in &self.delivered {
            let have: BTreeSet<&Name> = delivered.iter().map(|one| &one.name).collect();
            let lack: Vec<_> = self
                .accepted
                .iter()
                .filter(|(name, _)| name.recipient == device.0 && !have.contains(name))
                .collect();
            if !lack.is_empty() {
                missing.insert(device.clone(), lack);
            }
        }
        missing
    }

    /// Everything that was promised and not kept, for people; empty where all is well.
    pub fn faults(&self) -> String {
        let mut faults = String::new();
        for refused in self.refused.iter().take(5) {
            writeln!(faults, "refused: {refused}").unwrap();
        }
        for ((recipient, device), lack) in self.missing() {
            let some = &lack[..lack.len().min(5)];
            writeln!(
                faults,
                "{} accepted and not delivered to {recipient}/{device}: {some:?}",
                lack.len()
            )
            .unwrap();
        }
        for ((recipient, device), delivered) in &self.delivered {
            let mut seen = BTreeSet::new();
            let mut latest: BTreeMap<(SessionId, &str), &Delivered> = BTreeMap::new();
            for one in delivered {
                if !seen.insert(&one.name) {
                    writeln!(faults, "twice to {recipient}/{device}: {one:?}").unwrap();
                }
                // Order is promised for what one session sent and one region accepted.
                let region = self.origins.get(&one.origin).map_or("?", String::as_str);
                if let Some(before) = latest.insert((one.session, region), one)
                    && (before.session_seq >= one.session_seq || before.name.number >= one.name.number)
                {
                    writeln!(
                        faults,
                        "out of order at {recipient}/{device}, accepted in {region}: {before:?}, then {one:?}"
                    )
                    .unwrap();
                }
            }
        }
        faults
    }
}

/// Orders to the senders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Send,
    Rest,
    End,
}

struct Sender {
    user: String,
    region: String,
    task: JoinHandle<()>,
    burst: Arc<Notify>,
    client: Arc<Mutex<(Client, String)>>,
}

/// Senders at work.
pub struct Senders {
    all: Vec<Sender>,
    order: watch::Sender<Order>,
}

impl Senders {
    /// `each` senders in every region, for these recipients. Every sixteenth message goes to the last of them.
    pub fn start(cluster: &Processes, book: &Book, each: usize, recipients: &[&str]) -> Self {
        let (order, orders) = watch::channel(Order::Send);
        let mut all = Vec::new();
        for region in cluster.dev.regions.ids() {
            for index in 0..each {
                let name = format!("sender-{region}-{index}");
                let mut config = client_config(&cluster.dev, &cluster.connector, region, &name, "laptop");
                quick(&mut config);
                config.region = Some(region.parse().unwrap());
                config.state_file = Some(cluster.path().join("clients").join(&name));
                let client = Client::connect(config.clone()).unwrap();
                let shared = Arc::new(Mutex::new((client.clone(), String::new())));
                let burst = Arc::new(Notify::new());
                let task = Sending {
                    user: name.clone(),
                    home: region.to_owned(),
                    config,
                    client,
                    shared: shared.clone(),
                    recipients: recipients.iter().map(|name| name.to_string()).collect(),
                    turn: index as u64,
                    numbers: BTreeMap::new(),
                    waiting: BTreeMap::new(),
                    region: String::new(),
                    book: book.clone(),
                };
                all.push(Sender {
                    user: name,
                    region: region.to_owned(),
                    task: tokio::spawn(task.run(orders.clone(), burst.clone())),
                    burst,
                    client: shared,
                });
            }
        }
        Self { all, order }
    }

    /// Waits until every sender of the region is connected to it.
    pub async fn at_work(&self, region: &str) {
        let all = self.all.iter().filter(|sender| sender.region == region).count();
        let connected = async {
            while self.connected(region).count() < all {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within(&format!("the senders are connected to {region}"), connected).await;
    }

    /// Waits until messages are under way in the region.
    pub async fn busy(&self, region: &str) {
        let busy = async {
            while self.under_way(region) == 0 {
                tokio::task::yield_now().await;
            }
        };
        within(&format!("messages are under way in {region}"), busy).await;
    }

    /// Makes the senders of a region send many messages at once.
    pub fn burst(&self, region: &str) {
        for sender in self.all.iter().filter(|sender| sender.region == region) {
            sender.burst.notify_one();
        }
    }

    /// Messages that clients connected to this region sent and that are not answered.
    pub fn under_way(&self, region: &str) -> usize {
        self.connected(region).map(|client| client.outbox().0).sum()
    }

    fn connected(&self, region: &str) -> impl Iterator<Item = Client> {
        self.all.iter().filter_map(move |sender| {
            let (client, at) = &*sender.client.lock().unwrap();
            (at == region && client.is_connected()).then(|| client.clone())
        })
    }

    /// Lets them send no more, and waits until everything is answered.
    pub async fn rest(&self) {
        self.order.send_replace(Order::Rest);
        for sender in &self.all {
            let flushed = async {
                loop {
                    // The client may be another one each time: senders go home.
                    let client = sender.client.lock().unwrap().0.clone();
                    if client.flush().await {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            within(&format!("everything of {} is answered", sender.user), flushed).await;
        }
    }

    /// Sends some more messages to each recipient: those that arrive behind them show what came twice.
    pub async fn once_more(&self, book: &Book) {
        let wanted = lock(book).accepted() + self.all.len() * BURST as usize;
        for sender in &self.all {
            sender.burst.notify_one();
        }
        let accepted = async {
            while lock(book).accepted() < wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within("some more are accepted", accepted).await;
    }

    pub async fn end(self) {
        self.order.send_replace(Order::End);
        for sender in self.all {
            within("a sender ends", sender.task).await.unwrap();
        }
    }
}

struct Sending {
    user: String,
    home: String,
    config: ClientConfig,
    client: Client,
    shared: Arc<Mutex<(Client, String)>>,
    recipients: Vec<String>,
    turn: u64,
    numbers: BTreeMap<String, u64>,
    waiting: BTreeMap<Ticket, Name>,
    /// Where the session stands.
    region: String,
    book: Book,
}

impl Sending {
    async fn run(mut self, mut orders: watch::Receiver<Order>, burst: Arc<Notify>) {
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let order = *orders.borrow_and_update();
            tokio::select! {
                event = self.client.next() => match event {
                    Some(event) => self.note(event),
                    None => panic!("{} closed", self.user),
                },
                _ = pace.tick(), if order == Order::Send => {
                    self.send();
                    if !self.region.is_empty() && self.region != self.home {
                        self.go_home().await;
                    }
                }
                () = burst.notified() => for _ in 0..BURST {
                    self.send();
                },
                _ = orders.changed() => {}
            }
            if *orders.borrow() == Order::End {
                self.client.close().await;
                return;
            }
        }
    }

    fn send(&mut self) {
        if self.waiting.len() >= UNANSWERED {
            return;
        }
        self.turn += 1;
        let often = self.recipients.len() - 1;
        let place = if self.turn.is_multiple_of(16) {
            often
        } else {
            self.turn as usize % often
        };
        let recipient = self.recipients[place].clone();
        let number = self.numbers.entry(recipient.clone()).or_default();
        *number += 1;
        let name = Name {
            sender: self.user.clone(),
            recipient,
            number: *number,
        };
        let message = OutgoingMessage::new(user(&name.recipient), name.number.to_string());
        let ticket = self.client.try_send(message).unwrap();
        self.waiting.insert(ticket, name);
    }

    fn note(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::Connected { region, .. } => {
                self.region = region.to_string();
                self.shared.lock().unwrap().1.clone_from(&self.region);
            }
            ClientEvent::Accepted {
                ticket,
                at,
                duplicate,
                ..
            } => {
                let name = self.waiting.remove(&ticket).expect("one answer for each ticket");
                let mut book = self.book.lock().unwrap();
                if !duplicate {
                    book.origins
                        .entry(at.origin)
                        .or_insert_with(|| self.region.clone());
                }
                book.accepted.insert(name, at);
            }
            ClientEvent::Rejected {
                ticket, code, detail, ..
            } => {
                let name = self.waiting.remove(&ticket).expect("one answer for each ticket");
                lock(&self.book)
                    .refused
                    .push(format!("{name:?}: {code:?}: {detail}"));
            }
            ClientEvent::Closed(cause) => panic!("{} closed: {cause}", self.user),
            _ => {}
        }
    }

    /// The library stays where it was served last: a new client with the same state begins at home again, and sends
    /// what was not answered with the same ids.
    async fn go_home(&mut self) {
        self.client.close().await;
        while let Some(event) = self.client.try_next() {
            if !matches!(event, ClientEvent::Closed(_)) {
                self.note(event);
            }
        }
        self.region.clear();
        self.client = Client::connect(self.config.clone()).unwrap();
        *self.shared.lock().unwrap() = (self.client.clone(), String::new());
    }
}

/// How a recipient lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Connected all the time.
    Steady,
    /// Comes and goes, each time to another region.
    Wandering,
    /// Comes online only at the end.
    Away,
}

/// A device that receives.
pub struct Recipient {
    task: JoinHandle<()>,
}

/// Starts a device; `end` is told when no one must be away any more, and then that it is over.
pub fn receive(
    cluster: &Processes,
    book: &Book,
    (name, device, region): (&str, &str, &str),
    life: Life,
    end: watch::Receiver<Phase>,
    seed: u64,
) -> Recipient {
    lock(book)
        .delivered
        .insert((name.to_owned(), device.to_owned()), Vec::new());
    let mut config = client_config(&cluster.dev, &cluster.connector, region, name, device);
    quick(&mut config);
    let file = format!("{name}-{device}");
    config.state_file = Some(cluster.path().join("clients").join(file));
    let regions: Vec<String> = cluster.dev.regions.ids().map(str::to_owned).collect();
    let receiving = Receiving {
        config,
        regions,
        key: (name.to_owned(), device.to_owned()),
        book: book.clone(),
        rng: ChaCha8Rng::seed_from_u64(seed),
    };
    Recipient {
        task: tokio::spawn(receiving.run(life, end)),
    }
}

impl Recipient {
    pub async fn ended(self) {
        within("a recipient ends", self.task).await.unwrap();
    }
}

/// What recipients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// As each of them likes.
    Free,
    /// All stay online.
    Gather,
    /// Over.
    End,
}

async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    let _ = phase.wait_for(|phase| *phase >= wanted).await;
}

struct Receiving {
    config: ClientConfig,
    regions: Vec<String>,
    key: (String, String),
    book: Book,
    rng: ChaCha8Rng,
}

impl Receiving {
    async fn run(mut self, life: Life, mut phase: watch::Receiver<Phase>) {
        if life == Life::Away {
            reached(&mut phase, Phase::Gather).await;
        }
        loop {
            let stay = Duration::from_millis(300 + self.rng.next_u64() % 1500);
            let away = Duration::from_millis(self.rng.next_u64() % 1000);
            let client = Client::connect(self.config.clone()).unwrap();
            let leaves = life == Life::Wandering && *phase.borrow() == Phase::Free;
            let left = tokio::time::sleep(stay);
            tokio::pin!(left);
            loop {
                tokio::select! {
                    event = client.next() => match event {
                        Some(ClientEvent::Message(message)) => {
                            self.note(&message);
                            client.consumed(message.at);
                        }
                        Some(ClientEvent::Hole(hole)) => panic!("{:?} was told of {hole:?}", self.key),
                        Some(ClientEvent::Closed(cause)) => panic!("{:?} closed: {cause}", self.key),
                        Some(other) => self.place(&client, &other),
                        None => panic!("{:?} closed", self.key),
                    },
                    () = &mut left, if leaves => break,
                    () = reached(&mut phase, Phase::End) => {
                        client.close().await;
                        return;
                    }
                }
            }
            client.close().await;
            // What it had handed over and was not looked at comes again.
            let next = self.rng.next_u64() as usize % self.regions.len();
            self.config.region = Some(self.regions[next].parse().unwrap());
            tokio::time::sleep(away).await;
        }
    }

    fn place(&self, client: &Client, event: &ClientEvent) {
        let told = (client.clone(), format!("{event:?}"));
        lock(&self.book).clients.insert(self.key.clone(), told);
    }

    fn note(&self, message: &Incoming) {
        let number = std::str::from_utf8(&message.body).unwrap().parse().unwrap();
        let name = Name {
            sender: message.from.to_string(),
            recipient: self.key.0.clone(),
            number,
        };
        let one = Delivered {
            name,
            origin: message.at.origin,
            seq: message.at.seq,
            session: message.session,
            session_seq: message.session_seq,
        };
        lock(&self.book).delivered.get_mut(&self.key).unwrap().push(one);
    }
}

/// Waits until these devices are known to the servers: what came before a device was known is not kept for it.
pub async fn known(book: &Book, devices: usize) {
    let known = async {
        while lock(book).clients.len() < devices {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("the devices are known", known).await;
}

/// Waits until everything accepted has reached every device.
pub async fn all_delivered(cluster: &Processes, book: &Book) {
    let mut deadline = tokio::time::Instant::now() + STALL;
    let mut seen = 0;
    loop {
        let now = {
            let book = lock(book);
            if book.missing().is_empty() {
                return;
            }
            book.deliveries()
        };
        if now > seen {
            seen = now;
            deadline = tokio::time::Instant::now() + STALL;
        }
        if tokio::time::Instant::now() > deadline {
            panic!("nothing came for {STALL:?}:\n{}", diagnosis(cluster, book).await);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Where the messages are that do not come: what each device knows of its connection, and what a new device of the same
/// user is given in each region.
async fn diagnosis(cluster: &Processes, book: &Book) -> String {
    let mut text = lock(book).faults();
    let missing: Vec<(String, String)> = lock(book).missing().into_keys().collect();
    for key in missing {
        {
            let book = lock(book);
            let (client, told) = &book.clients[&key];
            writeln!(
                text,
                "{key:?}: connected {}, {:?}, last {told}",
                client.is_connected(),
                client.stats()
            )
            .unwrap();
            let mut spread: BTreeMap<Origin, (&str, u64, u64, u64)> = BTreeMap::new();
            for (_, at) in &book.missing()[&key] {
                let region = book.origins.get(&at.origin).map_or("?", String::as_str);
                let entry = spread.entry(at.origin).or_insert((region, at.seq, at.seq, 0));
                *entry = (region, entry.1.min(at.seq), entry.2.max(at.seq), entry.3 + 1);
            }
            writeln!(text, "missing by origin (region, first, last, count): {spread:?}").unwrap();
            let mut had: BTreeMap<Origin, (&str, u64, u64, u64)> = BTreeMap::new();
            for one in &book.delivered[&key] {
                let region = book.origins.get(&one.origin).map_or("?", String::as_str);
                let entry = had.entry(one.origin).or_insert((region, one.seq, one.seq, 0));
                *entry = (region, entry.1.min(one.seq), entry.2.max(one.seq), entry.3 + 1);
            }
            writeln!(text, "had by origin: {had:?}").unwrap();
        }
        for region in cluster.dev.regions.ids() {
            let device = format!("probe-{region}");
            let mut config = client_config(&cluster.dev, &cluster.connector, region, &key.0, &device);
            config.region = Some(region.parse().unwrap());
            let client = Client::connect(config).unwrap();
            let mut spread: BTreeMap<Origin, (u64, u64, u64)> = BTreeMap::new();
            let mut at = String::new();
            while let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(5), client.next()).await {
                match event {
                    ClientEvent::Message(message) => {
                        let seq = message.at.seq;
                        let entry = spread.entry(message.at.origin).or_insert((seq, seq, 0));
                        *entry = (entry.0.min(seq), entry.1.max(seq), entry.2 + 1);
                        client.consumed(message.at);
                    }
                    ClientEvent::Hole(hole) => {
                        at = format!("{at}{hole:?}; ");
                        client.consumed(Coord {
                            origin: hole.origin,
                            seq: hole.to,
                        });
                    }
                    other => at = format!("{at}{other:?}; "),
                }
            }
            writeln!(
                text,
                "a new device in {region} is given (first, last, count): {spread:?}; {at}"
            )
            .unwrap();
        }
    }
    text
}

/// Tries again soon, and remembers all: the test counts what comes twice.
fn quick(config: &mut ClientConfig) {
    config.tuning.backoff_max = Duration::from_millis(500);
    config.tuning.retry_max = Duration::from_millis(500);
    config.tuning.remembered = 1 << 20;
}
