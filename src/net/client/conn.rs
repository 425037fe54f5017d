//! One connection of a client: its handle, its reader and its writer.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use quinn::{Incoming, ReadError};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::{ClientEvent, ClosedBy, Shared, Ticket};
use crate::net::{
    CloseCode, CloseReason, EventSink,
    frame::{Frame, FrameDecoder, FrameError, coalesce},
    outbox::{Next, Outbox, TrySendError},
    supervise::CloseOnPanic,
};

/// Chunks taken from a stream at once. One is about a packet; 16 of them are half a receive window.
pub(crate) const READ_CHUNKS: usize = 16;
/// Small chunks are packed into buffers of this size before they are given to quinn.
pub(crate) const WRITE_BUFFER_BYTES: usize = 16 * 1024;

/// The sending half of one connection. Cheap to clone; every method returns at once.
#[derive(Debug, Clone)]
pub struct ConnHandle(Arc<Conn>);

#[derive(Debug)]
struct Conn {
    id: u64,
    connection: quinn::Connection,
    outbox: Outbox,
    /// Why this side closed, the first time it did.
    local_reason: Mutex<Option<CloseReason>>,
}

impl ConnHandle {
    /// The number of the connection.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// Queues encoded frames; either all or none.
    ///
    /// # Errors
    /// [`TrySendError::Full`] when the queue has no room now, [`TrySendError::TooLarge`] when it never will,
    /// [`TrySendError::Closed`].
    pub fn try_send(&self, batch: Vec<Bytes>) -> Result<(), TrySendError> {
        self.0.outbox.try_send(batch)
    }

    /// Bytes in the queue, 64 added for each chunk.
    pub fn queued(&self) -> usize {
        self.0.outbox.cost()
    }

    /// Smoothed round-trip time to the client.
    pub fn rtt(&self) -> Duration {
        self.0.connection.rtt()
    }

    /// Writes what is queued, within the flush timeout, and closes.
    pub fn close_after_flush(&self, reason: CloseReason) {
        self.remember(&reason);
        self.0.outbox.close(reason);
    }

    /// Closes at once; what is queued is dropped.
    pub fn close_now(&self, reason: CloseReason) {
        self.remember(&reason);
        reason.close(&self.0.connection);
        self.0.outbox.gone();
    }

    #[cfg(test)]
    pub(super) fn stats(&self) -> quinn::ConnectionStats {
        self.0.connection.stats()
    }

    #[cfg(test)]
    pub(super) fn force_key_update(&self) {
        self.0.connection.force_key_update();
    }

    fn remember(&self, reason: &CloseReason) {
        self.0
            .local_reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_with(|| reason.clone());
    }

    /// The reason that was given on this side, which quinn does not keep.
    fn explain(&self, reason: ClosedBy) -> ClosedBy {
        if !matches!(reason, ClosedBy::Local(_)) {
            return reason;
        }
        let given = self
            .0
            .local_reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        given.map_or(reason, ClosedBy::Local)
    }
}

/// Removes an open connection and reports its end, also when its task panics or is cut.
struct OpenGuard<S: EventSink<ClientEvent>> {
    handle: ConnHandle,
    shared: Arc<Shared>,
    sink: Option<S>,
}

impl<S: EventSink<ClientEvent>> OpenGuard<S> {
    fn forget(&self) {
        self.handle.0.outbox.gone();
        self.shared.open().remove(&self.handle.id());
    }

    async fn closed(mut self, reason: ClosedBy) {
        self.forget();
        if let Some(sink) = self.sink.take() {
            let _ = sink
                .deliver(ClientEvent::Closed {
                    conn: self.handle.id(),
                    reason,
                })
                .await;
        }
    }
}

impl<S: EventSink<ClientEvent>> Drop for OpenGuard<S> {
    fn drop(&mut self) {
        let Some(sink) = self.sink.take() else { return };
        self.forget();
        let reason = CloseReason::new(CloseCode::INTERNAL, "the task of the connection ended early");
        reason.close(&self.handle.0.connection);
        let event = ClientEvent::Closed {
            conn: self.handle.id(),
            reason: ClosedBy::Local(reason),
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { sink.deliver(event).await });
        }
    }
}

/// The task of a connection. Idle connections are many, so what it needs only at its beginning and end lives in
/// boxes of its own, which are gone while it waits.
pub(super) fn serve<S: EventSink<ClientEvent>>(
    incoming: Incoming,
    ticket: Ticket,
    sink: S,
) -> impl Future<Output = ()> + Send {
    let opening = Box::pin(open(incoming, ticket, sink));
    async move {
        let opened = { opening }.await;
        let Some(mut open) = opened else { return };
        let reason = read_loop(&mut open).await;
        Box::pin(close(open, reason)).await;
    }
}

/// A connection whose stream is open.
struct Open<S: EventSink<ClientEvent>> {
    guard: OpenGuard<S>,
    sink: S,
    recv: quinn::RecvStream,
    writer: JoinHandle<()>,
    /// When its first frame must be here as a whole.
    greet_by: Instant,
    _ticket: Ticket,
}

async fn open<S: EventSink<ClientEvent>>(incoming: Incoming, mut ticket: Ticket, sink: S) -> Option<Open<S>> {
    let shared = ticket.shared.clone();
    let greet_by = Instant::now() + shared.limits.handshake_timeout;
    let Some((connection, send, recv)) = handshake(incoming, &mut ticket, greet_by).await else {
        shared.counters.failed.fetch_add(1, Relaxed);
        return None;
    };
    let id = shared.next_conn.fetch_add(1, Relaxed);
    let limits = &shared.limits;
    let handle = ConnHandle(Arc::new(Conn {
        id,
        connection: connection.clone(),
        outbox: Outbox::new(limits.queue_bytes, limits.pause_reading_above),
        local_reason: Mutex::default(),
    }));
    let opened = ClientEvent::Opened {
        conn: id,
        remote: connection.remote_address(),
        handle: handle.clone(),
    };
    if sink.deliver(opened).await.is_err() {
        CloseReason::new(CloseCode::SHUTDOWN, "the node stops").close(&connection);
        return None;
    }
    shared.counters.opened.fetch_add(1, Relaxed);
    shared.open().insert(id, handle.clone());
    let guard = OpenGuard {
        handle: handle.clone(),
        shared: shared.clone(),
        sink: Some(sink.clone()),
    };
    if *shared.stop.borrow() {
        // The shutdown took its list before this connection was in it.
        handle.close_after_flush(CloseReason::new(CloseCode::SHUTDOWN, "the node stops"));
    }
    let writer = tokio::spawn(write_loop(handle, send, shared));
    Some(Open {
        guard,
        sink,
        recv,
        writer,
        greet_by,
        _ticket: ticket,
    })
}

async fn close<S: EventSink<ClientEvent>>(open: Open<S>, reason: ClosedBy) {
    let handle = open.guard.handle.clone();
    let told = match &reason {
        ClosedBy::Frame(error @ FrameError::TooLong { .. }) => {
            Some((CloseCode::FRAME_TOO_LONG, error.to_string()))
        }
        ClosedBy::Frame(error) => Some((CloseCode::BAD_FRAME, error.to_string())),
        _ if handle.0.connection.close_reason().is_none() => {
            Some((CloseCode::NORMAL, "the client ended its stream".to_owned()))
        }
        _ => None,
    };
    if let Some((code, text)) = told {
        handle.close_after_flush(CloseReason::new(code, text));
        let _ = open.writer.await;
    }
    let reason = handle.explain(reason);
    tracing::debug!(conn = handle.id(), remote = %handle.0.connection.remote_address(), %reason, "client connection closed");
    open.guard.closed(reason).await;
}

async fn handshake(
    incoming: Incoming,
    ticket: &mut Ticket,
    until: Instant,
) -> Option<(quinn::Connection, quinn::SendStream, quinn::RecvStream)> {
    let shared = ticket.shared.clone();
    let mut stop = shared.stop.subscribe();
    tokio::select! {
        opened = handshake_steps(incoming, ticket, until) => opened,
        _ = stop.wait_for(|stop| *stop) => None,
    }
}

async fn handshake_steps(
    incoming: Incoming,
    ticket: &mut Ticket,
    until: Instant,
) -> Option<(quinn::Connection, quinn::SendStream, quinn::RecvStream)> {
    let remote = incoming.remote_address();
    let connection = match timeout_at(until, incoming.into_future()).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::debug!(%remote, %error, "handshake of a client failed");
            return None;
        }
        Err(_) => {
            tracing::debug!(%remote, "handshake of a client took too long");
            return None;
        }
    };
    ticket.handshake_done();
    match timeout_at(until, connection.accept_bi()).await {
        Ok(Ok((send, recv))) => Some((connection, send, recv)),
        Ok(Err(error)) => {
            tracing::debug!(%remote, %error, "a client left before it opened its stream");
            None
        }
        Err(_) => {
            CloseReason::new(CloseCode::TOO_SLOW, "no stream was opened in time").close(&connection);
            None
        }
    }
}

async fn read_loop<S: EventSink<ClientEvent>>(open: &mut Open<S>) -> ClosedBy {
    let Open {
        guard: OpenGuard { handle, shared, .. },
        sink,
        recv,
        greet_by,
        ..
    } = open;
    let mut greet_by = Some(*greet_by);
    let mut decoder = FrameDecoder::new(shared.limits.max_frame);
    loop {
        let mut frames = Vec::new();
        let read = poll_fn(|cx| poll_frames(cx, recv, &mut decoder, &mut frames));
        let read = match greet_by {
            // In a box, since this happens once, and the task of an idle connection is as large as all that it ever awaits.
            Some(at) => Box::pin(timeout_at(at, read)).await,
            None => Ok(read.await),
        };
        let Ok(read) = read else {
            shared.counters.failed.fetch_add(1, Relaxed);
            let reason = CloseReason::new(CloseCode::TOO_SLOW, "no whole Hello came in time");
            handle.close_now(reason.clone());
            return ClosedBy::Local(reason);
        };
        let (bytes, result) = match read {
            Ok(Some(read)) => read,
            Ok(None) => return ClosedBy::Remote(CloseReason::new(CloseCode::NORMAL, "end of stream")),
            Err(error) => return closed_by_read(error),
        };
        // After the read, not before: nothing may pass that was already being waited for when the queue filled.
        handle.0.outbox.wait_below_threshold().await;
        shared.counters.bytes_in.fetch_add(bytes, Relaxed);
        if !frames.is_empty() {
            // Whoever takes the frames refuses a first one that is no Hello.
            greet_by = None;
            shared.counters.frames_in.fetch_add(frames.len() as u64, Relaxed);
            shared.counters.batches_in.fetch_add(1, Relaxed);
            if sink
                .deliver(ClientEvent::Frames {
                    conn: handle.id(),
                    frames,
                })
                .await
                .is_err()
            {
                handle.close_now(CloseReason::new(CloseCode::SHUTDOWN, "the node stops"));
                return ClosedBy::Local(CloseReason::new(CloseCode::SHUTDOWN, "the node stops"));
            }
        }
        if let Err(error) = result {
            return ClosedBy::Frame(error);
        }
    }
}

/// What a read brought: bytes, and whether they were frames; `None` at the end of the stream.
type Read = Option<(u64, Result<(), FrameError>)>;

/// Reads what is there and cuts it into frames. The chunks do not outlive a poll: while it waits, the task of a connection
/// keeps no room for them.
fn poll_frames(
    cx: &mut Context<'_>,
    recv: &mut quinn::RecvStream,
    decoder: &mut FrameDecoder,
    frames: &mut Vec<Frame>,
) -> Poll<Result<Read, ReadError>> {
    let mut chunks: [Bytes; READ_CHUNKS] = Default::default();
    let Some(count) = ready!(pin!(recv.read_chunks(&mut chunks)).poll(cx))? else {
        return Poll::Ready(Ok(None));
    };
    let mut bytes = 0;
    let mut result = Ok(());
    for chunk in &mut chunks[..count] {
        bytes += chunk.len() as u64;
        result = decoder.push(std::mem::take(chunk), frames);
        if result.is_err() {
            break;
        }
    }
    Poll::Ready(Ok(Some((bytes, result))))
}

pub(crate) fn closed_by_read(error: ReadError) -> ClosedBy {
    match error {
        ReadError::ConnectionLost(error) => error.into(),
        ReadError::Reset(code) => ClosedBy::Remote(CloseReason::new(
            CloseCode::from_wire(code),
            "the stream was reset",
        )),
        other => ClosedBy::Transport(other.to_string()),
    }
}

async fn write_loop(handle: ConnHandle, mut send: quinn::SendStream, shared: Arc<Shared>) {
    let _closes = CloseOnPanic(handle.0.connection.clone());
    let mut deadline = None;
    loop {
        let next = handle.0.outbox.next().await;
        // In a box, since this is over most of the time, and the task of an idle connection is as large as all that it
        // ever awaits.
        if !Box::pin(write(next, &handle, &mut send, &shared, &mut deadline)).await {
            return;
        }
    }
}

/// Does what is to be done next; says whether there may be more. `deadline` is set when a close is asked for; from then on
/// everything must be out by it.
async fn write(
    next: Next,
    handle: &ConnHandle,
    send: &mut quinn::SendStream,
    shared: &Shared,
    deadline: &mut Option<Instant>,
) -> bool {
    let connection = &handle.0.connection;
    let outbox = &handle.0.outbox;
    let flush = shared.limits.flush_timeout;
    let batch = match next {
        Next::Write(batch) => batch,
        Next::Close(reason) => {
            let deadline = deadline.unwrap_or_else(|| Instant::now() + flush);
            let _ = send.finish();
            // Acknowledged by the client's QUIC stack: a close frame sent earlier would cut it off.
            let _ = timeout_at(deadline, send.stopped()).await;
            reason.close(connection);
            outbox.gone();
            return false;
        }
        Next::Gone => return false,
    };
    shared.counters.batches_out.fetch_add(1, Relaxed);
    let mut batch = coalesce(batch, WRITE_BUFFER_BYTES);
    let bytes: usize = batch.iter().map(Bytes::len).sum();
    shared.counters.bytes_out.fetch_add(bytes as u64, Relaxed);
    let written = {
        let write = send.write_all_chunks(&mut batch);
        tokio::pin!(write);
        match *deadline {
            Some(deadline) => timeout_at(deadline, write).await,
            None => tokio::select! {
                biased;
                written = &mut write => Ok(written),
                () = outbox.close_asked() => {
                    let end = Instant::now() + flush;
                    *deadline = Some(end);
                    timeout_at(end, write).await
                }
            },
        }
    };
    match written {
        Ok(Ok(())) => return true,
        Ok(Err(quinn::WriteError::Stopped(code))) => {
            tracing::debug!(conn = handle.id(), %code, "a client reads no more");
            CloseReason::new(CloseCode::PROTOCOL, "the stream must stay open both ways").close(connection);
        }
        Ok(Err(_)) => {}
        Err(_) => {
            if let Next::Close(reason) = close_reason(outbox).await {
                reason.close(connection);
            }
        }
    }
    outbox.gone();
    false
}

/// The reason of a close that could not be flushed: what is still queued is dropped.
async fn close_reason(outbox: &Outbox) -> Next {
    loop {
        match outbox.next().await {
            Next::Write(dropped) => drop(dropped),
            next => return next,
        }
    }
}
