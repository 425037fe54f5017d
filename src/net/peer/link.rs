//! One outgoing connection that is kept up: dial, exchange hellos, carry queues, and after a break back off and
//! dial again.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, RecvStream, WriteError};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    Breaker, Direction, GOSSIP_QUEUE_BYTES, Lane, LinkStatus, MAX_CLASSES, PeerEvent, PeerHello,
    PeerSendError, Refusal, RefusalCode, Shared, StreamClass,
    hello::{Answer, MAX_HANDSHAKE_FRAME, decode, encode_class},
    lock, stop_reason,
};
use crate::{
    core::ids::{Generation, NodeKey, RegionId},
    net::{
        CloseCode, CloseReason, EventSink,
        certs::PEER_NAME,
        client::ClosedBy,
        frame::{Frame, FrameDecoder, coalesce},
        outbox::{Next, Outbox, TrySendError},
        supervise::CloseOnPanic,
    },
};

/// Failures in a row from which the breaker counts as open.
const OPEN_AFTER: u32 = 3;
/// Small chunks are packed into buffers of this size before they are given to quinn.
const WRITE_BUFFER_BYTES: usize = 64 * 1024;
/// A refusal that was sent has this long to arrive before the connection is closed.
const REFUSAL_LINGER: Duration = Duration::from_millis(500);
/// On a stop, queues have this long to go out.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Whom a link must find at its address.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// This node and no other.
    Node(NodeKey),
    /// Any node of this region (a seed is known by its address alone).
    Region(RegionId),
}

#[derive(Debug)]
pub(super) struct Link {
    target: Target,
    lane: Lane,
    state: Mutex<State>,
    /// The address changed or the link is to stop.
    wake: Notify,
}

#[derive(Debug)]
struct State {
    addr: SocketAddr,
    stopped: bool,
    attempting: bool,
    failures: u32,
    connects: u64,
    last_error: Option<String>,
    last_hello: Option<PeerHello>,
    last_used: Instant,
    live: Option<Live>,
}

#[derive(Debug)]
struct Live {
    incarnation: u64,
    connection: Connection,
    classes: BTreeMap<StreamClass, Arc<Outbox>>,
    writers: JoinSet<()>,
}

enum Failure {
    Refused(Refusal),
    Other(String),
}

impl Link {
    pub(super) fn new(target: Target, lane: Lane, addr: SocketAddr) -> Self {
        let state = State {
            addr,
            stopped: false,
            attempting: false,
            failures: 0,
            connects: 0,
            last_error: None,
            last_hello: None,
            last_used: Instant::now(),
            live: None,
        };
        Self {
            target,
            lane,
            state: Mutex::new(state),
            wake: Notify::new(),
        }
    }

    /// For people.
    pub(super) fn name(&self) -> String {
        match &self.target {
            Target::Node(node) => format!("peer link to {node}"),
            Target::Region(_) => format!("gossip link to {}", lock(&self.state).addr),
        }
    }

    pub(super) fn set_addr(&self, addr: SocketAddr) {
        let mut state = lock(&self.state);
        if state.addr != addr {
            state.addr = addr;
            drop(state);
            self.wake.notify_one();
        }
    }

    pub(super) fn stop(&self) {
        lock(&self.state).stopped = true;
        self.wake.notify_one();
    }

    pub(super) fn touch(&self) {
        lock(&self.state).last_used = Instant::now();
    }

    pub(super) fn idle_for(&self) -> Duration {
        lock(&self.state).last_used.elapsed()
    }

    pub(super) fn saw_generation(&self, generation: Generation) {
        let state = lock(&self.state);
        if let (Some(live), Some(hello)) = (&state.live, &state.last_hello)
            && hello.generation < generation
        {
            CloseReason::new(CloseCode::NORMAL, "the peer was started again").close(&live.connection);
        }
    }

    /// See `PeerPool::send`; without an incarnation whatever connection there is will do.
    pub(super) fn send(
        &self,
        shared: &Arc<Shared>,
        incarnation: Option<u64>,
        class: StreamClass,
        batch: Vec<Bytes>,
    ) -> Result<(), PeerSendError> {
        let mut state = lock(&self.state);
        let live = state.live.as_mut().ok_or(PeerSendError::NotConnected)?;
        if let Some(given) = incarnation
            && given != live.incarnation
        {
            return Err(PeerSendError::Stale {
                given,
                current: live.incarnation,
            });
        }
        let outbox = match live.classes.get(&class) {
            Some(outbox) => outbox.clone(),
            None if live.classes.len() >= MAX_CLASSES => return Err(PeerSendError::TooManyClasses { class }),
            None => {
                let limit = match self.lane {
                    Lane::Traffic => shared.limits.queue_bytes,
                    Lane::Gossip => GOSSIP_QUEUE_BYTES,
                };
                let outbox = Arc::new(Outbox::new(limit, limit));
                live.classes.insert(class, outbox.clone());
                live.writers.spawn_on(
                    write_class(
                        shared.clone(),
                        live.connection.clone(),
                        self.lane,
                        class,
                        outbox.clone(),
                    ),
                    &shared.runtime,
                );
                outbox
            }
        };
        drop(state);
        outbox.try_send(batch).map_err(|error| match error {
            TrySendError::Full(batch) => {
                shared.counters.full.fetch_add(1, Relaxed);
                PeerSendError::Full(batch)
            }
            TrySendError::TooLarge { cost, limit } => PeerSendError::TooLarge { cost, limit },
            TrySendError::Closed => PeerSendError::NotConnected,
        })
    }

    pub(super) fn status(&self) -> LinkStatus {
        let state = lock(&self.state);
        let live = state.live.as_ref();
        let hello = state.last_hello.as_ref();
        LinkStatus {
            peer: match &self.target {
                Target::Node(node) => Some(node.clone()),
                Target::Region(_) => hello.map(|hello| hello.node.clone()),
            },
            addr: state.addr,
            lane: self.lane,
            incarnation: live.map(|live| live.incarnation),
            generation: hello.map(|hello| hello.generation),
            breaker: match (state.failures >= OPEN_AFTER, state.attempting) {
                (false, _) => Breaker::Closed,
                (true, true) => Breaker::HalfOpen,
                (true, false) => Breaker::Open,
            },
            failures: state.failures,
            connects: state.connects,
            last_error: state.last_error.clone(),
            rtt: live.map(|live| live.connection.rtt()),
            lost_packets: live.map_or(0, |live| live.connection.stats().path.lost_packets),
            queued: live
                .map(|live| {
                    live.classes
                        .iter()
                        .map(|(class, outbox)| (*class, outbox.cost()))
                        .collect()
                })
                .unwrap_or_default(),
        }
    }

    fn stopped(&self) -> bool {
        lock(&self.state).stopped
    }

    fn begin(&self) -> SocketAddr {
        let mut state = lock(&self.state);
        state.attempting = true;
        state.addr
    }

    fn is_last_error(&self, error: &str) -> bool {
        lock(&self.state).last_error.as_deref() == Some(error)
    }

    fn failed(&self, error: String) -> u32 {
        let mut state = lock(&self.state);
        state.attempting = false;
        state.failures = state.failures.saturating_add(1);
        state.last_error = Some(error);
        state.failures
    }

    fn up(&self, incarnation: u64, connection: Connection, hello: PeerHello) {
        let mut state = lock(&self.state);
        state.attempting = false;
        state.failures = 0;
        state.connects += 1;
        state.last_hello = Some(hello);
        state.live = Some(Live {
            incarnation,
            connection,
            classes: BTreeMap::new(),
            writers: JoinSet::new(),
        });
    }

    fn down(&self, error: Option<String>) -> Option<Live> {
        let mut state = lock(&self.state);
        if error.is_some() {
            state.last_error = error;
        }
        state.live.take()
    }
}

pub(super) async fn run_link<S: EventSink<PeerEvent>>(shared: Arc<Shared>, link: Arc<Link>, sink: S) {
    // Connections that broke soon after they were made, in a row: a peer that accepts and then closes must not be
    // dialled twenty times a second.
    let mut short = 0;
    over_after_a_panic(&link, &sink).await;
    while !shared.stopping() && !link.stopped() {
        let addr = link.begin();
        let attempt = tokio::select! {
            attempt = timeout(shared.limits.connect_timeout, dial(&shared, &link, addr)) => attempt,
            () = shared.stopped() => return,
        };
        let failure = match attempt {
            Ok(Ok((connection, hello))) => {
                let since = Instant::now();
                carry(&shared, &link, &sink, connection, hello).await;
                short = if since.elapsed() < shared.limits.idle_timeout {
                    short + 1
                } else {
                    0
                };
                pause(&shared, &link, short).await;
                continue;
            }
            Ok(Err(failure)) => failure,
            Err(_) => Failure::Other(format!("no answer within {:?}", shared.limits.connect_timeout)),
        };
        let failures = match failure {
            Failure::Other(error) => link.failed(error),
            Failure::Refused(refusal) => {
                shared.counters.refused.fetch_add(1, Relaxed);
                // Dialling goes on, and the same again is no news.
                if link.is_last_error(&refusal.to_string()) {
                    tracing::debug!(%addr, %refusal, "a peer and this node still do not fit together");
                } else {
                    tracing::warn!(%addr, %refusal, "a peer and this node do not fit together");
                }
                let failures = link.failed(refusal.to_string());
                if let (Target::Node(peer), Lane::Traffic) = (&link.target, link.lane) {
                    let event = PeerEvent::Refused {
                        peer: peer.clone(),
                        addr,
                        refusal,
                    };
                    if sink.deliver(event).await.is_err() {
                        return;
                    }
                }
                failures
            }
        };
        pause(&shared, &link, failures).await;
    }
}

/// Ends what an earlier run of the link left when it panicked: whoever sends must learn that something may be lost.
async fn over_after_a_panic<S: EventSink<PeerEvent>>(link: &Link, sink: &S) {
    let reason = CloseReason::new(CloseCode::INTERNAL, "the task of the connection panicked");
    let Some(live) = link.down(Some(reason.to_string())) else {
        return;
    };
    reason.close(&live.connection);
    for outbox in live.classes.values() {
        outbox.gone();
    }
    let peer = lock(&link.state)
        .last_hello
        .as_ref()
        .map(|hello| hello.node.clone());
    if let (Some(peer), Lane::Traffic) = (peer, link.lane) {
        let lost = PeerEvent::Lost {
            peer,
            direction: Direction::Out,
            incarnation: live.incarnation,
            reason: ClosedBy::Local(reason),
        };
        let _ = sink.deliver(lost).await;
    }
}

/// Waits before the next attempt, shorter when there is a reason to try at once.
async fn pause(shared: &Shared, link: &Link, failures: u32) {
    let limits = &shared.limits;
    let doubled = limits
        .backoff_min
        .saturating_mul(1 << failures.saturating_sub(1).min(16));
    let mut random = [0; 2];
    // Without randomness the pause is merely not spread.
    let _ = SystemRandom::new().fill(&mut random);
    let spread = 0.5 + f64::from(u16::from_be_bytes(random)) / f64::from(u16::MAX) / 2.0;
    tokio::select! {
        () = sleep(doubled.min(limits.backoff_max).mul_f64(spread)) => {}
        () = link.wake.notified() => {}
        () = shared.stopped() => {}
    }
}

async fn dial(shared: &Shared, link: &Link, addr: SocketAddr) -> Result<(Connection, PeerHello), Failure> {
    let other = |error: ConnectionError| Failure::Other(ClosedBy::from(error).to_string());
    let connecting = shared
        .endpoint
        .connect_with(shared.client.clone(), addr, PEER_NAME)
        .map_err(|error| Failure::Other(error.to_string()))?;
    let connection = connecting.await.map_err(other)?;
    let closing = CloseOnDrop(Some(connection.clone()));
    let (mut send, mut recv) = connection.open_bi().await.map_err(other)?;
    send.write_chunk(shared.hello.encode(link.lane))
        .await
        .map_err(|error| Failure::Other(error.to_string()))?;
    let judged = match read_handshake(&mut recv).await? {
        Ok(Answer::Refused(refusal)) => {
            shared.was_refused(addr, &refusal);
            return Err(Failure::Refused(refusal));
        }
        Ok(Answer::Hello(hello, lane)) => judge_answer(shared, link, &connection, hello, lane),
        Err(refusal) => Err(refusal),
    };
    match judged {
        Ok(hello) => {
            let _ = send.finish();
            closing.keep();
            Ok((connection, hello))
        }
        Err(refusal) => {
            refuse(&connection, &mut send, &refusal).await;
            Err(Failure::Refused(refusal))
        }
    }
}

fn judge_answer(
    shared: &Shared,
    link: &Link,
    connection: &Connection,
    hello: PeerHello,
    lane: Lane,
) -> Result<PeerHello, Refusal> {
    shared.judge(&hello, &presented_certificate(connection)?)?;
    shared.judge_generation(&hello)?;
    let unexpected = |detail| Err(Refusal::new(RefusalCode::Unexpected, detail));
    match &link.target {
        _ if lane != link.lane => unexpected("the answer is for another lane".to_owned()),
        Target::Node(node) if *node != hello.node => unexpected(format!("{} instead of {node}", hello.node)),
        Target::Region(region) if *region != hello.node.region => {
            unexpected(format!("region {} instead of {region}", hello.node.region))
        }
        _ => Ok(hello),
    }
}

/// The certificate of the other side; both sides must show one.
pub(super) fn presented_certificate(
    connection: &Connection,
) -> Result<rustls::pki_types::CertificateDer<'static>, Refusal> {
    connection
        .peer_identity()
        .and_then(|chain| {
            chain
                .downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>()
                .ok()
        })
        .and_then(|chain| chain.into_iter().next())
        .ok_or_else(|| Refusal::new(RefusalCode::NotInCertificate, "no certificate was shown"))
}

/// Tells the other side why, and closes once it had the chance to read it.
pub(super) async fn refuse(connection: &Connection, send: &mut quinn::SendStream, refusal: &Refusal) {
    let tell = async {
        if send.write_chunk(refusal.encode()).await.is_ok() && send.finish().is_ok() {
            let _ = send.stopped().await;
        }
    };
    let _ = timeout(REFUSAL_LINGER, tell).await;
    CloseReason::new(CloseCode::REFUSED, refusal.to_string()).close(connection);
}

/// Reads exactly one frame: nothing else may come on this stream before the answer.
async fn read_handshake(recv: &mut RecvStream) -> Result<Result<Answer, Refusal>, Failure> {
    match read_first_frame(recv).await {
        Ok(Some(frame)) => Ok(decode(&frame)),
        Ok(None) => Ok(Err(Refusal::new(
            RefusalCode::Malformed,
            "the stream holds no hello",
        ))),
        Err(error) => Err(Failure::Other(error.to_string())),
    }
}

pub(super) async fn read_first_frame(recv: &mut RecvStream) -> Result<Option<Frame>, ClosedBy> {
    let mut decoder = FrameDecoder::new(MAX_HANDSHAKE_FRAME);
    let mut frames = Vec::new();
    while frames.is_empty() {
        match recv.read_chunk(MAX_HANDSHAKE_FRAME as usize, true).await {
            Ok(Some(chunk)) => decoder.push(chunk.bytes, &mut frames).map_err(ClosedBy::Frame)?,
            Ok(None) => return Ok(None),
            Err(error) => return Err(crate::net::client::conn::closed_by_read(error)),
        }
    }
    Ok(frames.into_iter().next())
}

struct CloseOnDrop(Option<Connection>);

impl CloseOnDrop {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            CloseReason::new(CloseCode::NORMAL, "the handshake was given up").close(connection);
        }
    }
}

/// Holds an established connection until it breaks or the link stops.
async fn carry<S: EventSink<PeerEvent>>(
    shared: &Shared,
    link: &Link,
    sink: &S,
    connection: Connection,
    hello: PeerHello,
) {
    let incarnation = shared.incarnation();
    let peer = hello.node.clone();
    shared.saw_generation(&peer, hello.generation, hello.addr);
    link.up(incarnation, connection.clone(), hello.clone());
    let traffic = link.lane == Lane::Traffic;
    tracing::debug!(%peer, incarnation, lane = ?link.lane, "connected to a peer");
    if traffic {
        let up = PeerEvent::Up {
            hello,
            direction: Direction::Out,
            incarnation,
        };
        if sink.deliver(up).await.is_err() {
            stop_reason().close(&connection);
        }
    }
    let reason = loop {
        tokio::select! {
            error = connection.closed() => break ClosedBy::from(error),
            () = shared.stopped() => {
                break flush(link, &connection, stop_reason()).await;
            }
            () = link.wake.notified() => if link.stopped() {
                let reason = CloseReason::new(CloseCode::NORMAL, "no longer wanted");
                break flush(link, &connection, reason).await;
            }
        }
    };
    if let Some(mut live) = link.down(Some(reason.to_string())) {
        for outbox in live.classes.values() {
            outbox.gone();
        }
        while live.writers.join_next().await.is_some() {}
    }
    tracing::debug!(%peer, incarnation, lane = ?link.lane, %reason, "lost a peer");
    if traffic {
        let lost = PeerEvent::Lost {
            peer,
            direction: Direction::Out,
            incarnation,
            reason,
        };
        let _ = sink.deliver(lost).await;
    }
}

/// Takes no more, writes what is queued, and closes.
async fn flush(link: &Link, connection: &Connection, reason: CloseReason) -> ClosedBy {
    // Gossip that was not sent is of no use to anybody.
    if link.lane == Lane::Traffic
        && let Some(mut live) = link.down(None)
    {
        for outbox in live.classes.values() {
            outbox.close(reason.clone());
        }
        let written = async { while live.writers.join_next().await.is_some() {} };
        let _ = timeout(FLUSH_TIMEOUT, written).await;
    }
    reason.close(connection);
    ClosedBy::Local(reason)
}

/// Writes one class until its connection is gone. A stream that stalls or is refused ends the whole connection:
/// its frames would be missing in the middle.
async fn write_class(
    shared: Arc<Shared>,
    connection: Connection,
    lane: Lane,
    class: StreamClass,
    outbox: Arc<Outbox>,
) {
    let _closes = CloseOnPanic(connection.clone());
    let end = |code, text: String| CloseReason::new(code, text).close(&connection);
    match write_stream(&shared, &connection, lane, class, &outbox).await {
        Ok(()) | Err(Fault::Gone) => {}
        Err(Fault::Stalled) => {
            let text = format!("class {class} took no byte for {:?}", shared.limits.stall_timeout);
            end(CloseCode::TOO_SLOW, text);
        }
        Err(Fault::Stopped) => end(CloseCode::PROTOCOL, format!("the peer stopped class {class}")),
    }
    outbox.gone();
}

enum Fault {
    Gone,
    Stalled,
    Stopped,
}

async fn write_stream(
    shared: &Shared,
    connection: &Connection,
    lane: Lane,
    class: StreamClass,
    outbox: &Outbox,
) -> Result<(), Fault> {
    let stall = shared.limits.stall_timeout;
    let mut stream = timeout(stall, connection.open_uni())
        .await
        .map_err(|_| Fault::Stalled)?
        .map_err(|_| Fault::Gone)?;
    let mut opening = Some(encode_class(class));
    loop {
        let batch = match outbox.next().await {
            Next::Write(batch) => batch,
            Next::Gone => return Ok(()),
            Next::Close(_) => {
                let _ = stream.finish();
                let _ = timeout(FLUSH_TIMEOUT, stream.stopped()).await;
                return Ok(());
            }
        };
        if lane == Lane::Traffic {
            // Each was queued as one chunk.
            let frames = batch.len() as u64;
            shared.counters.frames_out.fetch_add(frames, Relaxed);
            shared.counters.batches_out.fetch_add(1, Relaxed);
        }
        let mut chunks: Vec<Bytes> = opening.take().into_iter().collect();
        chunks.extend(batch);
        let mut chunks = coalesce(chunks, WRITE_BUFFER_BYTES);
        let bytes: usize = chunks.iter().map(Bytes::len).sum();
        shared.counters.bytes_out.fetch_add(bytes as u64, Relaxed);
        let mut rest = &mut chunks[..];
        while !rest.is_empty() {
            let written = timeout(stall, stream.write_chunks(rest))
                .await
                .map_err(|_| Fault::Stalled)?;
            let written = written.map_err(|error| match error {
                WriteError::Stopped(_) => Fault::Stopped,
                _ => Fault::Gone,
            })?;
            rest = &mut rest[written.chunks..];
        }
    }
}
