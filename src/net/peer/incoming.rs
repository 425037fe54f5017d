//! Accepted connections: check who it is, replace an earlier connection of the same node, read its streams.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use quinn::{Connection, Incoming, RecvStream, SendStream};
use tokio::{
    sync::{mpsc::error::TrySendError, watch},
    task::JoinSet,
    time::timeout,
};

use super::{
    Direction, GOSSIP_MAX_FRAME, InboundStatus, Lane, PeerEvent, PeerHello, Refusal, RefusalCode, Shared,
    StreamClass, admin,
    hello::{Answer, decode, decode_class},
    link::{presented_certificate, read_first_frame, refuse},
    lock, log_panic, stop_reason,
};
use crate::{
    core::ids::{Generation, NodeKey},
    net::{
        CloseCode, CloseReason, EventSink, SinkError,
        client::{ClosedBy, conn::closed_by_read},
        frame::{FrameDecoder, FrameError},
        supervise::CloseOnPanic,
    },
};

/// Chunks taken from a stream at once, about a packet each: the batch of one event is at most 300 KB and one frame.
const READ_CHUNKS: usize = 256;

/// The one accepted connection of a peer and lane.
pub(super) struct Inbound {
    generation: Generation,
    incarnation: u64,
    connection: Connection,
    /// Closed when all its events are delivered.
    done: watch::Receiver<()>,
}

impl Inbound {
    pub(super) fn status(&self, peer: &NodeKey, lane: Lane) -> InboundStatus {
        InboundStatus {
            peer: peer.clone(),
            lane,
            generation: self.generation,
            incarnation: self.incarnation,
            rtt: self.connection.rtt(),
            remote: self.connection.remote_address(),
        }
    }
}

/// The tasks of accepted connections; held by the loop that runs.
pub(super) type Served = Arc<tokio::sync::Mutex<JoinSet<()>>>;

pub(super) async fn accept_loop<S: EventSink<PeerEvent>>(shared: Arc<Shared>, sink: S, served: Served) {
    let mut tasks = served.lock().await;
    loop {
        tokio::select! {
            incoming = shared.endpoint.accept() => match incoming {
                Some(incoming) if tasks.len() >= shared.limits.max_inbound => incoming.refuse(),
                Some(incoming) => {
                    tasks.spawn(serve(shared.clone(), incoming, sink.clone()));
                }
                None => break,
            },
            Some(ended) = tasks.join_next() => log_panic(ended),
            () = shared.stopped() => break,
        }
    }
    while let Some(ended) = tasks.join_next().await {
        log_panic(ended);
    }
}

/// A registered connection. Dropping it frees its place, whatever way its task ends.
struct Accepted {
    shared: Arc<Shared>,
    connection: Connection,
    hello: PeerHello,
    lane: Lane,
    incarnation: u64,
    /// Dropped last: a successor waits for it.
    _done: watch::Sender<()>,
}

impl Drop for Accepted {
    fn drop(&mut self) {
        CloseReason::new(CloseCode::NORMAL, "the connection is over").close(&self.connection);
        let key = (self.hello.node.clone(), self.lane);
        let mut inbound = lock(&self.shared.inbound);
        if inbound
            .get(&key)
            .is_some_and(|entry| entry.incarnation == self.incarnation)
        {
            inbound.remove(&key);
        }
    }
}

async fn serve<S: EventSink<PeerEvent>>(shared: Arc<Shared>, incoming: Incoming, sink: S) {
    let remote = incoming.remote_address();
    let accepted = tokio::select! {
        accepted = timeout(shared.limits.connect_timeout, Box::pin(handshake(&shared, incoming))) => accepted,
        () = shared.stopped() => return,
    };
    match accepted {
        Ok(Ok(Some(accepted))) => carry(&shared, accepted, &sink).await,
        Ok(Ok(None)) => {}
        Ok(Err(error)) => {
            shared.counters.failed.fetch_add(1, Relaxed);
            tracing::debug!(%remote, %error, "a connection of a peer failed");
        }
        Err(_) => {
            shared.counters.failed.fetch_add(1, Relaxed);
            tracing::debug!(%remote, "the handshake of a peer took too long");
        }
    }
}

/// `None` where it was no peer's connection, and is in other hands.
async fn handshake(shared: &Arc<Shared>, incoming: Incoming) -> Result<Option<Accepted>, String> {
    let remote = incoming.remote_address();
    let connection = incoming
        .await
        .map_err(|error| ClosedBy::from(error).to_string())?;
    if admin::is_admin(&connection) {
        admin::accepted(shared, connection)?;
        return Ok(None);
    }
    let (mut send, mut recv) = connection
        .accept_bi()
        .await
        .map_err(|error| ClosedBy::from(error).to_string())?;
    let frame = read_first_frame(&mut recv)
        .await
        .map_err(|error| error.to_string())?;
    let judged = match frame.as_ref().map(decode) {
        Some(Ok(Answer::Hello(hello, lane))) => judge(shared, &connection, hello, lane),
        Some(Ok(Answer::Refused(refusal))) => return Err(refusal.to_string()),
        Some(Err(refusal)) => Err(refusal),
        None => Err(Refusal::new(RefusalCode::Malformed, "the stream holds no hello")),
    };
    let registered = match judged {
        Ok((hello, lane)) => register(shared, &connection, hello, lane).await,
        Err(refusal) => Err(refusal),
    };
    match registered {
        Ok(accepted) => {
            answer(shared, &accepted, &mut send, remote).await?;
            Ok(Some(accepted))
        }
        Err(refusal) => {
            shared.counters.refused.fetch_add(1, Relaxed);
            tracing::warn!(%remote, %refusal, "a node was refused");
            refuse(&connection, &mut send, &refusal).await;
            Err(refusal.to_string())
        }
    }
}

fn judge(
    shared: &Shared,
    connection: &Connection,
    hello: PeerHello,
    lane: Lane,
) -> Result<(PeerHello, Lane), Refusal> {
    shared.judge(&hello, &presented_certificate(connection)?)?;
    if lane == Lane::Gossip && hello.node.region != shared.hello.node.region {
        let detail = format!(
            "gossip from region {}; this is {}",
            hello.node.region, shared.hello.node.region
        );
        return Err(Refusal::new(RefusalCode::Unexpected, detail));
    }
    Ok((hello, lane))
}

/// Takes the place of an earlier connection of the same node, once all events of that one are delivered: a
/// receiver never sees frames of an old incarnation after the new one's `Up`.
async fn register(
    shared: &Arc<Shared>,
    connection: &Connection,
    hello: PeerHello,
    lane: Lane,
) -> Result<Accepted, Refusal> {
    let key = (hello.node.clone(), lane);
    loop {
        let mut earlier = {
            let mut inbound = lock(&shared.inbound);
            // Under the lock, and again after each wait: meanwhile a later start may have come.
            shared.judge_generation(&hello)?;
            match inbound.get(&key) {
                Some(old) => {
                    CloseReason::new(CloseCode::NORMAL, "replaced by a newer connection")
                        .close(&old.connection);
                    old.done.clone()
                }
                None => {
                    let (done, finished) = watch::channel(());
                    let incarnation = shared.incarnation();
                    let entry = Inbound {
                        generation: hello.generation,
                        incarnation,
                        connection: connection.clone(),
                        done: finished,
                    };
                    inbound.insert(key, entry);
                    shared.saw_generation(&hello.node, hello.generation, hello.addr);
                    return Ok(Accepted {
                        shared: shared.clone(),
                        connection: connection.clone(),
                        hello,
                        lane,
                        incarnation,
                        _done: done,
                    });
                }
            }
        };
        // Fails when the sender is dropped, which is the end that is waited for.
        let _ = earlier.changed().await;
    }
}

async fn answer(
    shared: &Shared,
    accepted: &Accepted,
    send: &mut SendStream,
    remote: SocketAddr,
) -> Result<(), String> {
    let told = send.write_chunk(shared.hello.encode(accepted.lane)).await;
    if told.is_err() || send.finish().is_err() {
        return Err(format!("{remote} left before its hello was answered"));
    }
    Ok(())
}

async fn carry<S: EventSink<PeerEvent>>(shared: &Arc<Shared>, accepted: Accepted, sink: &S) {
    let connection = accepted.connection.clone();
    let (peer, lane, incarnation) = (accepted.hello.node.clone(), accepted.lane, accepted.incarnation);
    let hello = accepted.hello.clone();
    let traffic = lane == Lane::Traffic;
    if traffic {
        let up = PeerEvent::Up {
            hello: hello.clone(),
            direction: Direction::In,
            incarnation,
        };
        if sink.deliver(up).await.is_err() {
            stop_reason().close(&connection);
            return;
        }
    }
    let origin = Arc::new(Origin {
        hello,
        incarnation,
        lane,
        classes: Mutex::default(),
    });
    let mut readers = JoinSet::new();
    let reason = loop {
        tokio::select! {
            stream = connection.accept_uni() => match stream {
                Ok(stream) => {
                    let reader = read_stream(
                        shared.clone(), connection.clone(), origin.clone(), stream, sink.clone(),
                    );
                    readers.spawn(reader);
                }
                Err(error) => break ClosedBy::from(error),
            },
            Some(ended) = readers.join_next() => log_panic(ended),
            () = shared.stopped() => {
                stop_reason().close(&connection);
                break ClosedBy::Local(stop_reason());
            }
        }
    };
    while let Some(ended) = readers.join_next().await {
        log_panic(ended);
    }
    if traffic {
        let lost = PeerEvent::Lost {
            peer,
            direction: Direction::In,
            incarnation,
            reason,
        };
        let _ = sink.deliver(lost).await;
    }
}

struct Origin {
    hello: PeerHello,
    incarnation: u64,
    lane: Lane,
    classes: Mutex<BTreeSet<StreamClass>>,
}

async fn read_stream<S: EventSink<PeerEvent>>(
    shared: Arc<Shared>,
    connection: Connection,
    origin: Arc<Origin>,
    stream: RecvStream,
    sink: S,
) {
    let _closes = CloseOnPanic(connection.clone());
    let code = match read_frames(&shared, &origin, stream, &sink).await {
        Ok(()) | Err(Fault::Closed) => return,
        Err(Fault::Frame(error @ FrameError::TooLong { .. })) => {
            (CloseCode::FRAME_TOO_LONG, error.to_string())
        }
        Err(Fault::Frame(error)) => (CloseCode::BAD_FRAME, error.to_string()),
        Err(Fault::Protocol(text)) => (CloseCode::PROTOCOL, text),
        Err(Fault::Sink(SinkError::Closed)) => (CloseCode::SHUTDOWN, "the node stops".to_owned()),
        Err(Fault::Sink(SinkError::Refused(reason))) => (reason.code, reason.text),
    };
    tracing::warn!(peer = %origin.hello.node, reason = %code.1, "closing the connection of a peer");
    CloseReason::new(code.0, code.1).close(&connection);
}

enum Fault {
    /// The connection or stream ended in the ordinary way.
    Closed,
    Frame(FrameError),
    Protocol(String),
    Sink(SinkError),
}

async fn read_frames<S: EventSink<PeerEvent>>(
    shared: &Shared,
    origin: &Origin,
    mut stream: RecvStream,
    sink: &S,
) -> Result<(), Fault> {
    let max_frame = match origin.lane {
        Lane::Traffic => shared.limits.max_frame,
        Lane::Gossip => GOSSIP_MAX_FRAME,
    };
    let mut decoder = FrameDecoder::new(max_frame);
    let mut class = None;
    let mut chunks = vec![Bytes::new(); READ_CHUNKS];
    loop {
        let count = match stream.read_chunks(&mut chunks).await {
            Ok(Some(count)) => count,
            Ok(None) => return Ok(()),
            Err(quinn::ReadError::Reset(_)) => return Err(Fault::Protocol("a stream was reset".to_owned())),
            Err(error) => {
                tracing::debug!(error = %closed_by_read(error), "a stream of a peer ended");
                return Err(Fault::Closed);
            }
        };
        let mut frames = Vec::new();
        let mut bytes = 0;
        let mut result = Ok(());
        for chunk in &mut chunks[..count] {
            bytes += chunk.len() as u64;
            result = decoder.push(std::mem::take(chunk), &mut frames);
            if result.is_err() {
                break;
            }
        }
        shared.counters.bytes_in.fetch_add(bytes, Relaxed);
        if class.is_none() && !frames.is_empty() {
            let opening = frames.remove(0);
            let opened = decode_class(&opening)
                .ok_or_else(|| Fault::Protocol("a stream that does not begin with its class".to_owned()))?;
            if !lock(&origin.classes).insert(opened) {
                return Err(Fault::Protocol(format!("a second stream of class {opened}")));
            }
            class = Some(opened);
        }
        if let Some(class) = class
            && !frames.is_empty()
        {
            shared.counters.frames_in.fetch_add(frames.len() as u64, Relaxed);
            shared.counters.batches_in.fetch_add(1, Relaxed);
            match origin.lane {
                Lane::Gossip => hand_gossip(shared, origin, frames),
                Lane::Traffic => {
                    let event = PeerEvent::Frames {
                        from: origin.hello.node.clone(),
                        generation: origin.hello.generation,
                        incarnation: origin.incarnation,
                        class,
                        frames,
                    };
                    sink.deliver(event).await.map_err(Fault::Sink)?;
                }
            }
        }
        result.map_err(Fault::Frame)?;
    }
}

fn hand_gossip(shared: &Shared, origin: &Origin, frames: Vec<crate::net::frame::Frame>) {
    for frame in frames {
        if let Err(TrySendError::Full(_)) = shared.gossip_inbox.try_send((origin.hello.addr, frame.payload)) {
            shared.counters.gossip_dropped.fetch_add(1, Relaxed);
        }
    }
}
