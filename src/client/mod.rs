//! The client library: one [`Client`] is one device of one user, connected to wherever it is served.
//!
//! ```text
//! application --send, consumed, watch--> Shared: the machine behind a lock <--frames, time-- Driver: one task <--> QUIC
//!             <-- events, results ------         (machine.rs: no IO)                                  state file
//! ```
//!
//! | part | what it does |
//! |---|---|
//! | [`machine`] | decides everything: connecting, sending in order, resuming, acknowledging; deterministic |
//! | [`event`] | what application and library tell each other |
//! | [`state`] | what is kept over restarts, in a file where wanted |
//! | `shared`, `queue`, `driver` | the handles' side, the events that wait, the task that runs the machine |
//!
//! What it promises: a message that was queued is sent until it is accepted or refused for good, always with the same id,
//! and never passes an earlier one to the same recipient; a message that arrives is handed over once as long as the state
//! is kept, and acknowledged only after the application said that it was handled. What is at stake when the process dies
//! is the last 200 ms of the state file.
//!
//! ```no_run
//! # async fn example(connector: iris::net::connect::Connector, token: String) -> Result<(), Box<dyn std::error::Error>> {
//! use iris::client::{Client, ClientConfig, ClientEvent};
//!
//! let mut config = ClientConfig::new(connector, token, "phone".parse()?);
//! config.endpoints_of("us-east".parse()?, ["127.0.0.1:7101"]);
//! let client = Client::connect(config)?;
//! let accepted = client.send("bob".parse()?, "hello")?.await?;
//! println!("{} is durable", accepted.id);
//! while let Some(event) = client.next().await {
//!     if let ClientEvent::Message(message) = event {
//!         println!("{}: {:?}", message.from, message.body);
//!         client.consumed(message.at);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod driver;
pub mod event;
pub mod machine;
mod queue;
mod shared;
pub mod state;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use ring::rand::SecureRandom;
use tokio::sync::oneshot;

use self::driver::Driver;
pub use self::event::{
    ClientEvent, CloseCause, DisconnectReason, Incoming, OutgoingMessage, SendError, Ticket,
};
use self::machine::{ClientStats, Input, Machine, MachineConfig, Tuning};
pub use self::shared::IoStats;
use self::shared::Shared;
use self::state::{Owner, SavedState, StateError, StateFile, token_subject};
use crate::core::ids::{Coord, DeviceId, MessageId, RegionId, UserId};
use crate::core::time::{Mono, Now};
use crate::core::wire::{Code, Durability, MAX_CLIENT_FRAME, RegionEndpoints, Rejected, Status};
use crate::net::certs::Roots;
use crate::net::connect::{ConnectError, ConnectOptions, Connector};

/// A future that gives another token, or says for people why there is none.
pub type TokenFuture = Pin<Box<dyn Future<Output = Result<String, String>> + Send>>;
/// Asked for another token when one is refused.
pub type Renew = Arc<dyn Fn() -> TokenFuture + Send + Sync>;

/// How a client is set up.
#[derive(Clone)]
pub struct ClientConfig {
    /// Makes connections; one serves any number of clients.
    pub connector: Connector,
    /// The name that servers' certificates must have; the host of each endpoint otherwise.
    pub server_name: Option<String>,
    /// A JWT; its `sub` is the user.
    pub token: String,
    /// Gives another token when one is refused; without it the client closes then.
    pub renew: Option<Renew>,
    /// The device: one name for each place where messages are to arrive.
    pub device: DeviceId,
    /// Whether messages are to be delivered to this device. One that only sends and watches is not registered, so that
    /// nothing waits for it in the user's inbox.
    pub receives: bool,
    /// Where to connect first, in order of preference; servers tell more.
    pub endpoints: Vec<RegionEndpoints>,
    /// The region to begin with; the first of `endpoints` otherwise.
    pub region: Option<RegionId>,
    /// First status.
    pub status: Status,
    /// First status text, at most 256 bytes.
    pub status_text: String,
    /// Name and version for the server's log.
    pub agent: String,
    /// A file for what must survive a restart; without it, it lives as long as the client.
    pub state_file: Option<PathBuf>,
    /// Limits and intervals.
    pub tuning: Tuning,
}

impl ClientConfig {
    /// A client without endpoints yet, online, keeping no file.
    pub fn new(connector: Connector, token: impl Into<String>, device: DeviceId) -> Self {
        Self {
            connector,
            server_name: None,
            token: token.into(),
            renew: None,
            device,
            receives: true,
            endpoints: Vec::new(),
            region: None,
            status: Status::Online,
            status_text: String::new(),
            agent: concat!("iris-rust/", env!("CARGO_PKG_VERSION")).to_owned(),
            state_file: None,
            tuning: Tuning::default(),
        }
    }

    /// Adds endpoints (`host:port`) of a region.
    pub fn endpoints_of<E: Into<String>>(
        &mut self,
        region: RegionId,
        endpoints: impl IntoIterator<Item = E>,
    ) {
        self.endpoints.push(RegionEndpoints {
            region,
            endpoints: endpoints.into_iter().map(Into::into).collect(),
        });
    }
}

/// A connector for clients: one UDP socket, IPv6 and IPv4 where the system has both. Inside a tokio runtime only.
///
/// # Errors
/// [`ConnectError::Bind`], [`ConnectError::Cert`].
pub fn connector(roots: &Roots) -> Result<Connector, ConnectError> {
    let options = ConnectOptions {
        max_frame: MAX_CLIENT_FRAME as u32,
        ..ConnectOptions::default()
    };
    let any_v6 = (std::net::Ipv6Addr::UNSPECIFIED, 0).into();
    let any_v4 = (std::net::Ipv4Addr::UNSPECIFIED, 0).into();
    Connector::new(any_v6, roots, options.clone()).or_else(|_| Connector::new(any_v4, roots, options))
}

/// A client could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state file cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// Called outside a tokio runtime.
    #[error("a client needs a tokio runtime: call this inside one")]
    NoRuntime,
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    NoRandomness,
}

/// A message is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Its id.
    pub id: MessageId,
    /// Where it stands in the recipient's log.
    pub at: Coord,
    /// Whether it had been accepted before.
    pub duplicate: bool,
    /// How durable it is.
    pub durability: Durability,
}

/// A queued message was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendFailed {
    /// Refused for good.
    #[error("message {id} was refused: {code:?}: {detail}")]
    Rejected {
        /// Its id.
        id: MessageId,
        /// Why.
        code: Code,
        /// For people.
        detail: String,
    },
    /// The client closed before an answer came. Whether it was accepted is not known; with a state file it is sent again
    /// by the next run.
    #[error("no answer before the client closed ({0}); whether the message was accepted is not known")]
    Closed(CloseCause),
}

/// The result of a send, to be awaited. Dropping it does not take the message back.
#[derive(Debug)]
pub struct SendHandle {
    ticket: Ticket,
    result: oneshot::Receiver<Result<Accepted, SendFailed>>,
    shared: Arc<Shared>,
}

impl SendHandle {
    /// Names the message.
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }
}

impl Future for SendHandle {
    type Output = Result<Accepted, SendFailed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.result)
            .poll(context)
            .map(|result| result.unwrap_or_else(|_| Err(SendFailed::Closed(self.shared.lock().cause()))))
    }
}

/// One device of one user. Cheap to clone; when the last clone is dropped it closes.
#[derive(Debug, Clone)]
pub struct Client(Arc<Handle>);

#[derive(Debug)]
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.input(Input::Close);
    }
}

impl Client {
    /// Starts a client; it connects by itself, and goes on trying until it is closed. Inside a tokio runtime only.
    ///
    /// # Errors
    /// [`StartError`], for instance where the state file is in use.
    pub fn connect(config: ClientConfig) -> Result<Self, StartError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        let mut seed = [0; 32];
        ring::rand::SystemRandom::new()
            .fill(&mut seed)
            .map_err(|_| StartError::NoRandomness)?;
        let (file, state) = match &config.state_file {
            Some(path) => {
                let owner = Owner {
                    user: token_subject(&config.token),
                    device: config.device.clone(),
                };
                let (file, state) = StateFile::open(path, owner)?;
                (Some(file), state)
            }
            None => (None, SavedState::default()),
        };
        let capacity = config.tuning.outbox_messages;
        let machine = Machine::new(
            MachineConfig {
                token: config.token,
                renews_token: config.renew.is_some(),
                device: config.device,
                receives: config.receives,
                endpoints: config.endpoints,
                region: config.region,
                status: config.status,
                status_text: config.status_text,
                agent: config.agent,
                tuning: config.tuning,
            },
            state,
            ChaCha8Rng::from_seed(seed),
        );
        let shared = Arc::new(Shared::new(machine, Instant::now(), capacity));
        let driver = Driver::new(
            shared.clone(),
            config.connector,
            config.server_name,
            config.renew,
            file,
        );
        runtime.spawn(driver.run());
        Ok(Self(Arc::new(Handle(shared))))
    }

    /// Queues a message and gives its result to be awaited.
    ///
    /// # Errors
    /// [`SendError`]; the message is not queued then.
    pub fn send(&self, to: UserId, body: impl Into<Bytes>) -> Result<SendHandle, SendError> {
        self.send_message(OutgoingMessage::new(to, body))
    }

    /// As [`Client::send`], for a message with more than a body.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub fn send_message(&self, message: OutgoingMessage) -> Result<SendHandle, SendError> {
        let (waiter, result) = oneshot::channel();
        let shared = self.shared();
        let ticket = shared.send(&mut shared.lock(), message, Some(waiter))?;
        Ok(SendHandle {
            ticket,
            result,
            shared: shared.clone(),
        })
    }

    /// Queues a message whose result comes as [`ClientEvent::Accepted`] or [`ClientEvent::Rejected`] with this ticket.
    ///
    /// # Errors
    /// As [`Client::send`]. Results that were not taken from the events count in the limit of the outbox.
    pub fn try_send(&self, message: OutgoingMessage) -> Result<Ticket, SendError> {
        let shared = self.shared();
        shared.send(&mut shared.lock(), message, None)
    }

    /// As [`Client::try_send`] for many, from the front, until one is not taken. The tickets follow each other; what was
    /// not queued stays in `messages`, with the reason why the first of it was not.
    pub fn send_batch(&self, messages: &mut VecDeque<OutgoingMessage>) -> (Range<u64>, Option<SendError>) {
        let shared = self.shared();
        let mut inner = shared.lock();
        let mut tickets = 0..0;
        let mut refused = None;
        while let Some(message) = messages.front() {
            if let Err(error) = shared.room(&inner).and_then(|()| inner.machine.check(message)) {
                refused = Some(error);
                break;
            }
            let message = messages.pop_front().expect("it was looked at");
            match shared.send(&mut inner, message, None) {
                Ok(Ticket(ticket)) if tickets.is_empty() => tickets = ticket..ticket + 1,
                Ok(Ticket(ticket)) => tickets.end = ticket + 1,
                Err(error) => refused = Some(error),
            }
        }
        (tickets, refused)
    }

    /// Waits until the outbox has room for at least a quarter of its limit, or the client is closed.
    pub async fn room(&self) {
        let shared = self.shared();
        self.until(|inner| {
            let (messages, bytes) = inner.machine.outbox();
            let (max_messages, max_bytes) = inner.machine.outbox_limits();
            shared.room(inner).is_ok()
                && (messages + inner.events.answers()) * 4 <= max_messages * 3
                && bytes / 3 <= max_bytes / 4
        })
        .await;
    }

    /// Waits until every queued message was accepted or refused for good; `false` where the client closed before.
    pub async fn flush(&self) -> bool {
        self.until(|inner| inner.machine.outbox().0 == 0).await
    }

    /// Waits until a session stands; `false` where the client closed.
    pub async fn connected(&self) -> bool {
        self.until(|inner| inner.machine.is_live()).await
    }

    /// Most bytes of a message's body: as the last server said, or as the protocol allows before one did.
    pub fn max_body(&self) -> usize {
        self.shared().lock().machine.max_body()
    }

    /// The messages that are not answered for good, in order: right after [`Client::connect`], those of the run before.
    pub fn unanswered(&self) -> Vec<(Ticket, OutgoingMessage)> {
        let inner = self.shared().lock();
        let unanswered = inner.machine.unanswered();
        unanswered
            .map(|(ticket, message)| (ticket, message.clone()))
            .collect()
    }

    /// What a server last refused for now, and why; the message is sent again.
    pub fn last_refusal(&self) -> Option<Rejected> {
        self.shared().lock().machine.last_refusal().cloned()
    }

    /// The next event; `None` after [`ClientEvent::Closed`]. Several tasks may wait; each event goes to one.
    pub async fn next(&self) -> Option<ClientEvent> {
        let mut events = Vec::with_capacity(1);
        self.next_batch(&mut events, 1).await;
        events.pop()
    }

    /// Waits for events and appends up to `max` of them; none after [`ClientEvent::Closed`].
    pub async fn next_batch(&self, events: &mut Vec<ClientEvent>, max: usize) {
        let shared = self.shared();
        loop {
            let told = shared.events.notified();
            if self.take_events(events, max) {
                return;
            }
            told.await;
        }
    }

    /// An event, if one is there.
    pub fn try_next(&self) -> Option<ClientEvent> {
        let mut events = Vec::with_capacity(1);
        self.take_events(&mut events, 1);
        events.pop()
    }

    /// The next message, with other events dropped; `None` when closed.
    pub async fn next_message(&self) -> Option<Incoming> {
        loop {
            match self.next().await? {
                ClientEvent::Message(message) => return Some(*message),
                ClientEvent::Closed(_) => return None,
                _ => {}
            }
        }
    }

    /// Hands each event to `handler`; a message or hole counts as consumed when it returned. Ends when the client is
    /// closed, with the cause.
    pub async fn handle<F: Future<Output = ()>>(
        &self,
        mut handler: impl FnMut(ClientEvent) -> F,
    ) -> CloseCause {
        while let Some(event) = self.next().await {
            let at = match &event {
                ClientEvent::Message(message) => Some(message.at),
                ClientEvent::Hole(hole) => Some(Coord {
                    origin: hole.origin,
                    seq: hole.to,
                }),
                _ => None,
            };
            handler(event).await;
            if let Some(at) = at {
                self.consumed(at);
            }
        }
        self.shared().lock().cause()
    }

    /// What was delivered there was handled: it may be acknowledged, and will not come again.
    pub fn consumed(&self, at: Coord) {
        self.input(Input::Consumed(at));
    }

    /// Everything of this origin that was handed over to there was handled.
    pub fn consumed_through(&self, at: Coord) {
        self.input(Input::ConsumedThrough(at));
    }

    /// Subscribes to the presence of users, over reconnects too.
    pub fn watch(&self, users: impl IntoIterator<Item = UserId>) {
        self.input(Input::Watch(users.into_iter().collect()));
    }

    /// Ends such subscriptions.
    pub fn unwatch(&self, users: impl IntoIterator<Item = UserId>) {
        self.input(Input::Unwatch(users.into_iter().collect()));
    }

    /// The own status; a text is cut at 256 bytes.
    pub fn set_status(&self, status: Status, text: impl Into<String>) {
        let text = text.into();
        self.input(Input::SetStatus { status, text });
    }

    /// Uses another token from the next connection on.
    pub fn set_token(&self, token: impl Into<String>) {
        self.input(Input::Token(token.into()));
    }

    /// Whether a session stands now.
    pub fn is_connected(&self) -> bool {
        self.shared().lock().machine.is_live()
    }

    /// Messages in the outbox and their cost in bytes.
    pub fn outbox(&self) -> (usize, usize) {
        self.shared().lock().machine.outbox()
    }

    /// Counters since the start.
    pub fn stats(&self) -> ClientStats {
        self.shared().lock().machine.stats()
    }

    /// Reads and writes since the start.
    pub fn io_stats(&self) -> IoStats {
        self.shared().lock().io
    }

    /// Acknowledges what was consumed, takes leave, saves the state, and ends. What is in the outbox stays in the state
    /// file; [`Client::flush`] waits for it before.
    pub async fn close(&self) {
        self.input(Input::Close);
        self.until(|inner| inner.finished).await;
    }

    fn input(&self, input: Input) {
        self.shared().input(input);
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }

    /// Takes events; says whether the caller is to return.
    fn take_events(&self, events: &mut Vec<ClientEvent>, max: usize) -> bool {
        let shared = self.shared();
        let mut inner = shared.lock();
        let before = events.len();
        while events.len() - before < max {
            match inner.events.pop() {
                Some(event) => events.push(event),
                None => break,
            }
        }
        let taken = events.len() > before;
        if !inner.events.is_empty() || inner.finished {
            // For others that wait.
            shared.events.notify_one();
        }
        let done = taken || inner.finished;
        drop(inner);
        if taken {
            shared.changes.notify_waiters();
        }
        done
    }

    /// Waits for a condition; `false` where the client finished without it.
    async fn until(&self, condition: impl Fn(&shared::Inner) -> bool) -> bool {
        let shared = self.shared();
        loop {
            let changed = shared.changes.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let inner = shared.lock();
                if condition(&inner) {
                    return true;
                }
                if inner.finished {
                    return false;
                }
            }
            changed.await;
        }
    }
}

/// The two clocks, of which the machine uses the wall clock only until a server told the time.
fn clock(base: Instant) -> Now {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Now {
        mono: Mono(u64::try_from(base.elapsed().as_micros()).unwrap_or(u64::MAX)),
        wall_ms: u64::try_from(wall.unwrap_or(Duration::ZERO).as_millis()).unwrap_or(u64::MAX),
    }
}
