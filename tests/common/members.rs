//! Clients that send to each other and handle what they are given, whatever happens to their region.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use iris::client::{Client, ClientConfig, ClientEvent};

use super::{LOOK_EVERY, number_in, padded, until, user, within};

/// Between two messages of one of them.
const SEND_EVERY: Duration = Duration::from_millis(15);
/// Messages that each sends at least before the load counts as one.
const AT_LEAST: u64 = 20;

/// A client that handles what it is given, and remembers where its sessions were.
pub struct Member {
    pub client: Client,
    pub name: String,
    handled: Arc<Mutex<Vec<u64>>>,
    sessions: Arc<Mutex<Vec<(Instant, String)>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Member {
    pub async fn start(name: &str, config: impl Fn(&str) -> ClientConfig) -> Self {
        let client = Client::connect(config(name)).unwrap();
        let handled = Arc::<Mutex<Vec<u64>>>::default();
        let sessions = Arc::<Mutex<Vec<(Instant, String)>>>::default();
        let task = {
            let (client, handled, sessions) = (client.clone(), handled.clone(), sessions.clone());
            tokio::spawn(async move {
                while let Some(event) = client.next().await {
                    match event {
                        ClientEvent::Message(message) => {
                            handled.lock().unwrap().push(number_in(&message.body));
                            client.consumed(message.at);
                        }
                        ClientEvent::Connected { region, .. } => {
                            let session = (Instant::now(), region.to_string());
                            sessions.lock().unwrap().push(session);
                        }
                        ClientEvent::Rejected { .. } | ClientEvent::Hole(_) => panic!("{event:?}"),
                        _ => {}
                    }
                }
            })
        };
        assert!(within("connected", client.connected()).await);
        Self {
            client,
            name: name.to_owned(),
            handled,
            sessions,
            task,
        }
    }

    /// Where its latest session was.
    pub fn region(&self) -> String {
        let sessions = self.sessions.lock().unwrap();
        sessions
            .last()
            .map(|(_, region)| region.clone())
            .unwrap_or_default()
    }

    /// When it first had a session after an instant.
    pub fn session_after(&self, instant: Instant) -> Option<Instant> {
        let sessions = self.sessions.lock().unwrap();
        let mut after = sessions.iter().filter(|(at, _)| *at > instant);
        after.next().map(|(at, _)| *at)
    }

    /// Whether it handled the messages below a number.
    fn has(&self, count: u64) -> bool {
        let handled = self.handled.lock().unwrap();
        let below: std::collections::BTreeSet<u64> =
            handled.iter().copied().filter(|number| *number < count).collect();
        below.len() as u64 == count
    }
}

/// Waits until the latest session of each is in such a region.
pub async fn all_in(members: &[Member], what: &str, is: impl Fn(&str) -> bool) {
    until(what, async || members.iter().all(|member| is(&member.region()))).await;
}

/// Each sends to the next one, the last to the first.
pub struct Load {
    stop: Arc<AtomicBool>,
    senders: Vec<Sender>,
}

struct Sender {
    accepted: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Vec<Duration>>,
}

impl Load {
    pub fn begin(members: &[Member]) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let senders = members.iter().enumerate().map(|(n, member)| {
            let to = members[(n + 1) % members.len()].name.clone();
            let accepted = Arc::<AtomicU64>::default();
            let sending = send(member.client.clone(), to, stop.clone(), accepted.clone());
            let task = tokio::spawn(sending);
            Sender { accepted, task }
        });
        Self {
            senders: senders.collect(),
            stop,
        }
    }

    /// How many messages of each were accepted.
    pub fn accepted(&self) -> Vec<u64> {
        let accepted = self.senders.iter();
        accepted
            .map(|sender| sender.accepted.load(Ordering::Relaxed))
            .collect()
    }

    /// Waits until so many of each are handled by the one they are for.
    pub async fn handled(&self, members: &[Member], accepted: &[u64]) {
        until("what was accepted is handled", async || {
            let mut each = accepted.iter().enumerate();
            each.all(|(n, count)| members[(n + 1) % members.len()].has(*count))
        })
        .await;
    }

    /// Waits until each has sent enough to count.
    pub async fn under_way(&self) {
        until("each has sent", async || {
            self.accepted().iter().all(|count| *count >= AT_LEAST)
        })
        .await;
    }

    /// Stops, and checks that each message was handled, and once. Says how long they took to be accepted.
    pub async fn settle(self, members: Vec<Member>) -> Took {
        self.stop.store(true, Ordering::Relaxed);
        let mut took = Vec::new();
        let mut counts = Vec::new();
        for sender in self.senders {
            took.extend(within("it stops", sender.task).await.unwrap());
            let count = sender.accepted.load(Ordering::Relaxed);
            assert!(count >= AT_LEAST, "{count} messages");
            counts.push(count);
        }
        for (n, count) in counts.iter().enumerate() {
            let to = &members[(n + 1) % members.len()];
            until(
                &format!("all {count} that were accepted for {} are handled", to.name),
                async || to.has(*count),
            )
            .await;
        }
        // What would come twice had time to.
        tokio::time::sleep(10 * LOOK_EVERY).await;
        for (n, member) in members.iter().enumerate() {
            let count = counts[(n + members.len() - 1) % members.len()];
            let mut times: BTreeMap<u64, u32> = BTreeMap::new();
            for number in member.handled.lock().unwrap().iter() {
                *times.entry(*number).or_default() += 1;
            }
            let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
            assert!(twice.is_empty(), "{}: {twice:?}", member.name);
            assert_eq!(times.len() as u64, count, "of {}", member.name);
        }
        for member in members {
            member.client.close().await;
            within("its events end", member.task).await.unwrap();
        }
        took.sort_unstable();
        Took(took)
    }
}

/// Sends numbered messages until told to stop; how long each took to be accepted.
async fn send(client: Client, to: String, stop: Arc<AtomicBool>, accepted: Arc<AtomicU64>) -> Vec<Duration> {
    let mut took = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let began = Instant::now();
        let sent = client.send(user(&to), padded(number, 64)).unwrap();
        within("accepted", sent).await.unwrap();
        took.push(began.elapsed());
        accepted.store(number + 1, Ordering::Relaxed);
        tokio::time::sleep(SEND_EVERY).await;
    }
    took
}

/// How long messages took to be accepted, in order.
pub struct Took(Vec<Duration>);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |share: usize| self.0[(self.0.len() - 1) * share / 1000];
        write!(
            f,
            "{} messages: p50 {:?}, p99 {:?}, longest {:?}",
            self.0.len(),
            at(500),
            at(990),
            at(1000)
        )
    }
}
