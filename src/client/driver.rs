//! The one task of a client: connects, reads, writes, keeps time and saves, as the machine says.
//!
//! Each turn locks the machine once: gives it what came, takes what it put out, encodes frames into one buffer. Reading
//! and writing go on side by side; while a write is under way, no more than [`WRITE_BYTES`] gather behind it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::task::JoinHandle;
use tokio::time::{Sleep, sleep_until};

use super::event::ClientEvent;
use super::machine::{Input, Output, Target};
use super::shared::{Inner, IoStats, Shared};
use super::state::{StateError, StateFile};
use super::{Renew, clock};
use crate::core::wire::{Code, ServerFrame, WireError};
use crate::net::client::ClosedBy;
use crate::net::connect::{ClientStream, Connector, FrameReceiver, FrameSender};
use crate::net::frame::Frame;
use crate::net::{CloseCode, CloseReason};

/// Sends are taken from the machine while fewer bytes than this wait to be written.
const WRITE_BYTES: usize = 64 * 1024;
/// Last frames have so long to reach the server when a connection is given up in order.
const FLUSH: Duration = Duration::from_secs(1);
/// The state is saved at most so often.
const SAVE_EVERY: Duration = Duration::from_millis(200);
/// Saving takes at most one part in so many of the time, however large the state is.
const SAVE_SHARE: u32 = 10;
/// After a failed save.
const SAVE_RETRY: Duration = Duration::from_secs(1);
/// Addresses of one endpoint that are tried.
const MAX_ADDRESSES: usize = 4;
/// Far enough for "no timeout".
const NEVER: Duration = Duration::from_secs(3600);

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

pub(super) struct Driver {
    shared: Arc<Shared>,
    connector: Connector,
    server_name: Option<String>,
    renew: Option<Renew>,
    renewing: Option<BoxFuture<Result<String, String>>>,
    link: Link,
    /// Encoded frames that wait for the writer.
    out: BytesMut,
    /// What was read and written since the last turn.
    io: IoStats,
    keeper: Option<Keeper>,
    timer: Pin<Box<Sleep>>,
    armed: tokio::time::Instant,
}

enum Link {
    None,
    Connecting {
        attempt: u64,
        future: BoxFuture<Result<ClientStream, String>>,
    },
    Up {
        attempt: u64,
        receiver: FrameReceiver,
        writer: Writer,
    },
}

enum Writer {
    Idle(FrameSender),
    Busy(BoxFuture<(FrameSender, Result<(), ClosedBy>)>),
}

/// What woke the task.
enum Woken {
    Asked,
    Connected(Result<ClientStream, String>),
    Read(Result<Vec<Frame>, ClosedBy>),
    Written(FrameSender, Result<(), ClosedBy>),
    Time,
    Saved(Result<(), StateError>, Duration),
    /// The runtime shuts down, or the save panicked.
    SaveCut(String),
    Token(Result<String, String>),
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        connector: Connector,
        server_name: Option<String>,
        renew: Option<Renew>,
        file: Option<StateFile>,
    ) -> Self {
        let armed = tokio::time::Instant::now();
        Self {
            shared,
            connector,
            server_name,
            renew,
            renewing: None,
            link: Link::None,
            out: BytesMut::new(),
            io: IoStats::default(),
            keeper: file.map(Keeper::new),
            timer: Box::pin(sleep_until(armed)),
            armed,
        }
    }

    pub(super) async fn run(mut self) {
        // Also when this task is cut or panics, nobody waits for it for ever.
        let _finished = Finished(self.shared.clone());
        let mut inputs = Vec::new();
        loop {
            let closed = self.turn(&mut inputs);
            if closed {
                break;
            }
            self.start_write();
            let woken = self.wait().await;
            self.take(woken, &mut inputs);
        }
        self.finish().await;
    }

    /// Gives the machine its inputs and carries out what it puts out; says whether it is closed.
    fn turn(&mut self, inputs: &mut Vec<Input>) -> bool {
        let shared = self.shared.clone();
        let mut inner = shared.lock();
        inner.wake_pending = false;
        let io = std::mem::take(&mut self.io);
        inner.io.reads += io.reads;
        inner.io.frames_read += io.frames_read;
        inner.io.writes += io.writes;
        let now = clock(shared.base);
        for input in inputs.drain(..) {
            inner.machine.handle(input, now);
        }
        if inner.machine.poll_timeout().is_some_and(|at| at <= now.mono) {
            inner.machine.handle_timeout(now);
        }
        let mut told = false;
        while let Some(output) = inner.machine.poll_output() {
            told |= self.carry_out(output, &mut inner);
        }
        if let Link::Up { .. } = self.link {
            while self.out.len() < WRITE_BYTES {
                let Some(frame) = inner.machine.poll_send() else {
                    break;
                };
                frame.encode(&mut self.out);
                inner.io.frames_written += 1;
            }
        }
        let closed = inner.machine.closed().is_some();
        if let Some(keeper) = &mut self.keeper
            && !closed
        {
            keeper.save_if_due(&mut inner);
        }
        let timeout = inner
            .machine
            .poll_timeout()
            .map(|at| shared.base + Duration::from_micros(at.0));
        let saves = self.keeper.as_ref().and_then(Keeper::due);
        drop(inner);
        self.arm(timeout.into_iter().chain(saves).min());
        if told {
            shared.tell();
        }
        closed
    }

    /// Carries out one output; says whether the application has something to see.
    fn carry_out(&mut self, output: Output, inner: &mut Inner) -> bool {
        match output {
            Output::Connect { attempt, target } => {
                let future = connect(self.connector.clone(), target, self.server_name.clone());
                self.link = Link::Connecting {
                    attempt,
                    future: Box::pin(future),
                };
                false
            }
            Output::Disconnect { flush, .. } => {
                let link = std::mem::replace(&mut self.link, Link::None);
                let rest = self.out.split().freeze();
                if let Link::Up { writer, .. } = link {
                    if flush {
                        let flushing = tokio::spawn(flush_and_close(writer, rest));
                        inner.flushing = Some(flushing);
                    } else if let Writer::Idle(sender) = writer {
                        sender.close(&CloseReason::new(CloseCode::NORMAL, "given up"));
                    }
                }
                false
            }
            Output::Frame(frame) => {
                frame.encode(&mut self.out);
                inner.io.frames_written += 1;
                false
            }
            Output::SaveState => {
                if let Some(keeper) = &mut self.keeper {
                    keeper.dirty = true;
                }
                false
            }
            Output::Event(ClientEvent::TokenNeeded) => {
                self.renewing = self.renew.as_ref().map(|renew| renew());
                false
            }
            Output::Event(event) => inner.tell(event),
        }
    }

    fn start_write(&mut self) {
        if self.out.is_empty() {
            return;
        }
        if let Link::Up { writer, .. } = &mut self.link {
            *writer = match std::mem::replace(writer, Writer::Busy(Box::pin(std::future::pending()))) {
                Writer::Idle(sender) => {
                    self.io.writes += 1;
                    Writer::Busy(Box::pin(write(sender, self.out.split().freeze())))
                }
                busy => busy,
            };
        }
    }

    async fn wait(&mut self) -> Woken {
        let (connecting, reading, writing) = match &mut self.link {
            Link::None => (None, None, None),
            Link::Connecting { future, .. } => (Some(future), None, None),
            Link::Up { receiver, writer, .. } => (
                None,
                Some(receiver),
                match writer {
                    Writer::Idle(_) => None,
                    Writer::Busy(future) => Some(future),
                },
            ),
        };
        let saving = self.keeper.as_mut().and_then(|keeper| keeper.saving.as_mut());
        tokio::select! {
            () = self.shared.wake.notified() => Woken::Asked,
            connected = maybe(connecting) => Woken::Connected(connected),
            read = async {
                match reading {
                    Some(receiver) => receiver.recv().await,
                    None => std::future::pending().await,
                }
            } => Woken::Read(read),
            (sender, written) = maybe(writing) => Woken::Written(sender, written),
            () = &mut self.timer => Woken::Time,
            saved = maybe(saving) => match saved {
                Ok((saved, took)) => Woken::Saved(saved, took),
                Err(error) => Woken::SaveCut(error.to_string()),
            },
            token = maybe(self.renewing.as_mut()) => Woken::Token(token),
        }
    }

    fn take(&mut self, woken: Woken, inputs: &mut Vec<Input>) {
        match woken {
            Woken::Asked => {}
            Woken::Time => self.armed = self.timer.deadline() + NEVER,
            Woken::Connected(result) => self.connected(result, inputs),
            Woken::Read(Ok(frames)) => {
                self.io.reads += 1;
                self.io.frames_read += frames.len() as u64;
                decode(frames, inputs);
            }
            Woken::Read(Err(reason)) => self.lost(reason, inputs),
            Woken::Written(sender, Ok(())) => {
                if let Link::Up { writer, .. } = &mut self.link {
                    *writer = Writer::Idle(sender);
                }
            }
            // The reader learns why, with the words of the server.
            Woken::Written(sender, Err(_)) => {
                if let Link::Up { writer, .. } = &mut self.link {
                    *writer = Writer::Idle(sender);
                }
                self.out.clear();
            }
            Woken::Saved(result, took) => {
                if let Some(error) = self.keeper.as_mut().and_then(|k| k.saved(result, took)) {
                    self.not_saved(error.to_string());
                }
            }
            Woken::SaveCut(reason) => {
                if let Some(keeper) = &mut self.keeper {
                    keeper.again();
                }
                self.not_saved(reason);
            }
            Woken::Token(result) => {
                self.renewing = None;
                inputs.push(match result {
                    Ok(token) => Input::Token(token),
                    Err(reason) => Input::NoToken(reason),
                });
            }
        }
    }

    fn not_saved(&self, reason: String) {
        self.shared.lock().tell(ClientEvent::StateNotSaved(reason));
        self.shared.tell();
    }

    fn connected(&mut self, result: Result<ClientStream, String>, inputs: &mut Vec<Input>) {
        let Link::Connecting { attempt, .. } = self.link else {
            return;
        };
        match result {
            Ok(stream) => {
                let (sender, receiver) = stream.split();
                self.out.clear();
                self.link = Link::Up {
                    attempt,
                    receiver,
                    writer: Writer::Idle(sender),
                };
                inputs.push(Input::Connected { attempt });
            }
            Err(reason) => {
                self.link = Link::None;
                inputs.push(Input::ConnectFailed { attempt, reason });
            }
        }
    }

    fn lost(&mut self, closed: ClosedBy, inputs: &mut Vec<Input>) {
        let Link::Up { attempt, .. } = self.link else {
            return;
        };
        self.link = Link::None;
        self.out.clear();
        // The frame that says so may not have arrived; the code of the close means the same.
        if let ClosedBy::Remote(reason) = &closed
            && let Some(code) = final_code(reason.code)
        {
            let detail = reason.text.clone();
            inputs.push(Input::Frame(ServerFrame::Error { code, detail }));
        }
        let reason = closed.to_string();
        inputs.push(Input::Disconnected { attempt, reason });
    }

    fn arm(&mut self, at: Option<Instant>) {
        let at = at.map_or_else(
            || tokio::time::Instant::now() + NEVER,
            tokio::time::Instant::from_std,
        );
        // One that is armed earlier fires for nothing now and then, which is cheaper than moving it each time.
        if at < self.armed || self.timer.is_elapsed() {
            self.armed = at;
            self.timer.as_mut().reset(at);
        }
    }

    async fn finish(mut self) {
        let flushing = self.shared.lock().flushing.take();
        if let Some(flushing) = flushing {
            let _ = flushing.await;
        }
        if let Some(keeper) = self.keeper.take()
            && let Err(error) = keeper.last(&self.shared).await
        {
            self.not_saved(error.to_string());
        }
    }
}

/// Marks the client as finished whatever way its task ends.
struct Finished(Arc<Shared>);

impl Drop for Finished {
    fn drop(&mut self) {
        self.0.finished();
    }
}

/// Saves the state, one save at a time.
struct Keeper {
    file: Arc<StateFile>,
    dirty: bool,
    next: Instant,
    saving: Option<JoinHandle<(Result<(), StateError>, Duration)>>,
}

impl Keeper {
    fn new(file: StateFile) -> Self {
        Self {
            file: Arc::new(file),
            dirty: false,
            next: Instant::now(),
            saving: None,
        }
    }

    fn due(&self) -> Option<Instant> {
        (self.dirty && self.saving.is_none()).then_some(self.next)
    }

    fn save_if_due(&mut self, inner: &mut Inner) {
        if self.due().is_some_and(|at| at <= Instant::now()) {
            self.dirty = false;
            self.next = Instant::now() + SAVE_EVERY;
            let (file, state) = (self.file.clone(), inner.machine.state());
            self.saving = Some(tokio::task::spawn_blocking(move || {
                let start = Instant::now();
                (file.save(&state), start.elapsed())
            }));
        }
    }

    fn saved(&mut self, result: Result<(), StateError>, took: Duration) -> Option<StateError> {
        self.saving = None;
        self.next = self.next.max(Instant::now() + took * SAVE_SHARE);
        let error = result.err()?;
        self.again();
        Some(error)
    }

    fn again(&mut self) {
        self.saving = None;
        self.dirty = true;
        self.next = Instant::now() + SAVE_RETRY;
    }

    async fn last(self, shared: &Shared) -> Result<(), StateError> {
        if let Some(saving) = self.saving {
            let _ = saving.await;
        }
        let (file, state) = (self.file, shared.lock().machine.state());
        match tokio::task::spawn_blocking(move || file.save(&state)).await {
            Ok(saved) => saved,
            // The runtime is being shut down: what was saved before stands.
            Err(_) => Ok(()),
        }
    }
}

async fn maybe<F: Future + Unpin>(future: Option<&mut F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn write(mut sender: FrameSender, bytes: Bytes) -> (FrameSender, Result<(), ClosedBy>) {
    let written = sender.send(vec![bytes]).await;
    (sender, written)
}

async fn flush_and_close(writer: Writer, rest: Bytes) {
    let all = async {
        let mut sender = match writer {
            Writer::Idle(sender) => sender,
            Writer::Busy(future) => future.await.0,
        };
        if sender.send(vec![rest]).await.is_ok() {
            sender.finish(FLUSH).await;
        }
    };
    let _ = tokio::time::timeout(FLUSH * 2, all).await;
}

async fn connect(
    connector: Connector,
    target: Target,
    server_name: Option<String>,
) -> Result<ClientStream, String> {
    let endpoint = &target.endpoint;
    let host = endpoint.rsplit_once(':').map_or("", |(host, _)| host);
    let name = server_name.unwrap_or_else(|| host.trim_matches(['[', ']']).to_owned());
    let addresses = tokio::net::lookup_host(endpoint.as_str())
        .await
        .map_err(|error| format!("{endpoint} is not found: {error}; expected host:port"))?;
    let mut last = format!("{endpoint} has no address");
    for address in addresses.take(MAX_ADDRESSES) {
        match connector.connect(address, &name).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

fn decode(frames: Vec<Frame>, inputs: &mut Vec<Input>) {
    for frame in frames {
        match ServerFrame::decode(frame.kind, frame.payload) {
            Ok(frame) => inputs.push(Input::Frame(frame)),
            // A later server may tell more than this build understands.
            Err(WireError::Kind(_)) => {}
            Err(error) => {
                inputs.push(Input::BadFrame(error.to_string()));
                return;
            }
        }
    }
}

fn final_code(code: CloseCode) -> Option<Code> {
    match code {
        CloseCode::SUPERSEDED => Some(Code::Superseded),
        CloseCode::UNAUTHENTICATED => Some(Code::Unauthorized),
        _ => None,
    }
}
