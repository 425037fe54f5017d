//! The clients of a drill: they send to each other, watch each other, and note what they see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::task::JoinHandle;

use super::log::{self, Entry, Micros, Shown, Stream, What};
use crate::client::{Client, ClientConfig, ClientEvent, OutgoingMessage};
use crate::core::ids::UserId;
use crate::core::wire::{Durability, PresenceEvent};

/// Bytes of each message: its number, and what a message of people has.
const BODY: usize = 100;

/// Notes what happens. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder(Arc<Notes>);

#[derive(Debug)]
struct Notes {
    began: Instant,
    entries: Mutex<Vec<Entry>>,
    numbers: AtomicU64,
}

/// How far the load is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Messages that were sent.
    pub sent: u64,
    /// Of those, accepted.
    pub accepted: u64,
    /// Of those, handled.
    pub handled: u64,
    /// Clients that have a session.
    pub connected: usize,
}

/// One of them, as it is to be made.
pub struct Place {
    /// Who it is.
    pub client: log::Client,
    /// How it connects.
    pub config: ClientConfig,
}

/// The clients of a drill.
pub struct Crew {
    recorder: Recorder,
    clients: Vec<log::Client>,
    handles: Vec<Client>,
    tasks: Vec<JoinHandle<()>>,
    senders: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Recorder {
    fn new() -> Self {
        Self(Arc::new(Notes {
            began: Instant::now(),
            entries: Mutex::default(),
            numbers: AtomicU64::new(0),
        }))
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        // What a task that panicked left is whole: entries are pushed at once.
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes something that happens now.
    pub fn note(&self, what: What) {
        let mut entries = self.entries();
        // Within the lock, so that the log is in order.
        let at = self.now();
        entries.push(Entry { at, what });
    }

    /// Microseconds since the clients began to connect.
    pub fn now(&self) -> Micros {
        u64::try_from(self.0.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// All that was noted so far.
    pub fn log(&self) -> Vec<Entry> {
        self.entries().clone()
    }

    /// Counts what was noted so far.
    pub fn progress(&self) -> Progress {
        let (mut progress, mut connected) = (Progress::default(), BTreeSet::new());
        let (mut accepted, mut handled) = (BTreeSet::new(), BTreeSet::new());
        for entry in self.entries().iter() {
            match &entry.what {
                What::Sent { .. } => progress.sent += 1,
                What::Accepted { number, .. } => _ = accepted.insert(*number),
                What::Handled { number, .. } => _ = handled.insert(*number),
                What::Connected { client, .. } => _ = connected.insert(*client),
                What::Disconnected { client, .. } => _ = connected.remove(client),
                _ => {}
            }
        }
        progress.accepted = accepted.len() as u64;
        progress.handled = accepted.intersection(&handled).count() as u64;
        progress.connected = connected.len();
        progress
    }
}

impl Crew {
    /// Begins to connect them; those that stay in their regions watch each other.
    ///
    /// # Errors
    /// Where a client cannot be set up at all.
    pub fn start(places: Vec<Place>) -> anyhow::Result<Self> {
        let recorder = Recorder::new();
        let clients: Vec<log::Client> = places.iter().map(|place| place.client.clone()).collect();
        let names: BTreeMap<String, usize> = clients
            .iter()
            .enumerate()
            .map(|(n, client)| (client.name.clone(), n))
            .collect();
        let names = Arc::new(names);
        let (mut handles, mut tasks) = (Vec::new(), Vec::new());
        for (n, place) in places.into_iter().enumerate() {
            let client = Client::connect(place.config)?;
            if place.client.pinned {
                let users = clients
                    .iter()
                    .filter(|other| other.pinned && other.name != place.client.name);
                let users = users.map(|other| UserId::new(&other.name));
                client.watch(users.collect::<Result<Vec<_>, _>>()?);
            }
            let attended = attend(n, client.clone(), recorder.clone(), names.clone());
            tasks.push(tokio::spawn(attended));
            handles.push(client);
        }
        Ok(Self {
            recorder,
            clients,
            handles,
            tasks,
            senders: Vec::new(),
            stop: Arc::default(),
        })
    }

    /// What notes for them.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Who they are.
    pub fn clients(&self) -> &[log::Client] {
        &self.clients
    }

    /// Waits until each has a session; who has none after so long.
    pub async fn connected(&self, within: Duration) -> Result<(), String> {
        let all = async {
            for client in &self.handles {
                client.connected().await;
            }
        };
        if tokio::time::timeout(within, all).await.is_ok() {
            return Ok(());
        }
        let without = self.handles.iter().zip(&self.clients);
        let without = without.filter(|(handle, _)| !handle.is_connected());
        let names: Vec<&str> = without.map(|(_, client)| client.name.as_str()).collect();
        Err(format!(
            "without a session after {within:?}: {}",
            names.join(", ")
        ))
    }

    /// Each that is not pinned sends to the next ones by turns, a message each `every`.
    pub fn send(&mut self, every: Duration) {
        let movable: Vec<usize> = (0..self.clients.len())
            .filter(|n| !self.clients[*n].pinned)
            .collect();
        for (turn, from) in movable.iter().copied().enumerate() {
            let to: Vec<(usize, String)> = (1..movable.len())
                .map(|step| movable[(turn + step) % movable.len()])
                .map(|to| (to, self.clients[to].name.clone()))
                .collect();
            let sending = Sending {
                from,
                to,
                // Not all at one moment.
                first: every * u32::try_from(turn).unwrap_or(0) / u32::try_from(movable.len()).unwrap_or(1),
                every,
                client: self.handles[from].clone(),
                recorder: self.recorder.clone(),
                stop: self.stop.clone(),
            };
            self.senders.push(tokio::spawn(sending.run()));
        }
    }

    /// Ends the load.
    pub async fn quiet(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for sender in self.senders.drain(..) {
            // One that panicked sends no more, either.
            let _ = sender.await;
        }
        self.recorder.note(What::LoadEnds);
    }

    /// Closes the clients; what they do last is noted no more.
    pub async fn close(self) -> (Vec<log::Client>, Vec<Entry>) {
        let log = self.recorder.log();
        for client in &self.handles {
            client.close().await;
        }
        for task in self.tasks {
            let _ = task.await;
        }
        (self.clients, log)
    }
}

/// A client that sends.
struct Sending {
    from: usize,
    to: Vec<(usize, String)>,
    first: Duration,
    every: Duration,
    client: Client,
    recorder: Recorder,
    stop: Arc<AtomicBool>,
}

impl Sending {
    async fn run(self) {
        tokio::time::sleep(self.first).await;
        let mut due = tokio::time::interval(self.every);
        // What was not sent in time because the machine stood still is not made up for at once.
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut turn = 0;
        while !self.stop.load(Ordering::Relaxed) && !self.to.is_empty() {
            due.tick().await;
            let (to, name) = &self.to[turn % self.to.len()];
            turn += 1;
            let Ok(user) = UserId::new(name) else { return };
            let number = self.recorder.0.numbers.fetch_add(1, Ordering::Relaxed);
            let mut body = BytesMut::zeroed(BODY - 8);
            body.put_u64(number);
            let message = OutgoingMessage::new(user, body.freeze());
            let (from, to) = (self.from, *to);
            // Noted first: the answer may be faster than the next line.
            self.recorder.note(What::Sent { number, from, to });
            match self.client.send_message(message) {
                Ok(handle) => {
                    let recorder = self.recorder.clone();
                    tokio::spawn(async move {
                        let what = match handle.await {
                            Ok(accepted) => What::Accepted {
                                number,
                                geo: accepted.durability == Durability::Geo,
                                duplicate: accepted.duplicate,
                            },
                            Err(error) => What::Rejected {
                                number,
                                why: error.to_string(),
                            },
                        };
                        recorder.note(what);
                    });
                }
                Err(error) => self.recorder.note(What::Rejected {
                    number,
                    why: format!("not sent: {error}"),
                }),
            }
        }
    }
}

async fn attend(n: usize, client: Client, recorder: Recorder, names: Arc<BTreeMap<String, usize>>) {
    while let Some(event) = client.next().await {
        let what = match event {
            ClientEvent::Message(message) => {
                let number = number_in(&message.body);
                client.consumed(message.at);
                let stream = Some(Stream {
                    session: message.session.0,
                    origin: message.at.origin.0,
                });
                number.map(|number| What::Handled {
                    number,
                    client: n,
                    stream,
                })
            }
            ClientEvent::Hole(hole) => {
                client.consumed_through(crate::core::ids::Coord {
                    origin: hole.origin,
                    seq: hole.to,
                });
                Some(What::Gone {
                    client: n,
                    count: hole.count,
                })
            }
            ClientEvent::Connected { region, node, .. } => Some(What::Connected {
                client: n,
                region: region.to_string(),
                node,
            }),
            ClientEvent::Disconnected { reason, .. } => Some(What::Disconnected {
                client: n,
                why: reason.to_string(),
            }),
            ClientEvent::Presence(event) => names.get(event.user.as_str()).map(|client| What::Shown {
                watcher: n,
                client: *client,
                status: shown(&event),
            }),
            _ => None,
        };
        if let Some(what) = what {
            recorder.note(what);
        }
    }
}

fn shown(event: &PresenceEvent) -> Shown {
    match (event.unreachable_since_ms, event.devices) {
        (Some(_), _) => Shown::Unreachable,
        (None, 0) => Shown::Offline,
        (None, _) => Shown::Online,
    }
}

fn number_in(body: &Bytes) -> Option<u64> {
    let raw = body.get(BODY - 8..BODY)?;
    Some(u64::from_be_bytes(raw.try_into().ok()?))
}
