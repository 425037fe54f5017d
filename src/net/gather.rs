//! A UDP socket for many connections: what they send at about the same time goes to the kernel together.
//!
//! quinn sends the packets of each connection by themselves, and with short messages these calls are a fifth of what a
//! server does (docs/performance.md). Here packets wait for a task that runs when its worker has nothing else to do, at
//! the latest after some dozen other tasks. Those of one length to one address then leave in one call (UDP generic
//! segmentation offload: `UDP_SEGMENT` in udp(7)), and arrive as one where both ends are on one machine. It is for sockets on
//! which many connections may go to one address: a process that serves many users, a gateway, and the server of either.
//! Where the kernel refuses to segment, quinn does without from then on, and each packet leaves at once.
//!
//! ```text
//! connections --try_send--> groups (address, length) --a task, when others have run--> the socket below
//! ```
//!
//! The packets of a connection keep their order. They are told apart by the connection ids that they carry, of which
//! endpoints of this crate use eight bytes; where a foreign peer uses shorter ones, short packets of different lengths that
//! wait together may overtake each other, and where one overtakes three, QUIC sends them again for nothing (RFC 9002, 6.1.1).
//!
//! Discovery of the path's MTU must be off: its probes must not be joined. The last packet of a connection that closes needs
//! the runtime for one more turn: whoever ends it at once loses that packet more often than without this socket.

use std::{
    collections::HashMap,
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::{
    sync::Notify,
    task::{consume_budget, yield_now},
};

use super::packets::Packets;

/// Bytes that wait; as many may be on their way to the kernel. It takes that in a few milliseconds; if it does not,
/// connections wait as they do for its own buffer.
const MAX_WAITING: usize = 1 << 20;
/// Packets that wait, of which each costs up to some 300 bytes besides its own.
const MAX_PACKETS: usize = 8192;
/// Bytes that leave in one call: below the length of the largest datagram, which bounds the sum of the segments.
const MAX_GROUP: usize = 60_000;
/// Buffers that are kept for what comes next, none larger than [`MAX_SPARE_BYTES`].
const MAX_SPARE: usize = 64;
/// A group of short packets.
const MAX_SPARE_BYTES: usize = 16 * 1024;
/// First bit of a packet: a long header, which handshakes have (RFC 9000, 17.2).
const LONG_HEADER: u8 = 0x80;
/// The connection id follows the first byte of a short header (RFC 9000, 17.3).
const CONNECTION_ID: std::ops::Range<usize> = 1..9;

/// Puts a gathering socket over another. Must be called inside a tokio runtime.
pub(super) fn gather(inner: Arc<dyn AsyncUdpSocket>) -> Arc<dyn AsyncUdpSocket> {
    let shared = Arc::new(Shared {
        inner,
        waiting: Mutex::default(),
        more: Notify::new(),
    });
    tokio::spawn(flush(shared.clone()));
    Arc::new(GatheringSocket(shared))
}

/// Sends what gathered, until the socket is dropped and nothing is left.
async fn flush(shared: Arc<Shared>) {
    loop {
        shared.more.notified().await;
        // Connections that are ready have their turn first.
        yield_now().await;
        let (groups, closed) = shared.take();
        for group in &groups {
            group.packets.send(&shared.inner).await;
            consume_budget().await;
        }
        shared.give_back(groups);
        if closed {
            return;
        }
    }
}

struct Shared {
    inner: Arc<dyn AsyncUdpSocket>,
    waiting: Mutex<Waiting>,
    more: Notify,
}

#[derive(Default)]
struct Waiting {
    /// In the order in which they leave.
    groups: Vec<Group>,
    /// The group that takes packets of a kind.
    open: HashMap<Kind, usize>,
    /// The group with the last packet of a connection: none that follows may be in one before it.
    last: HashMap<Connection, usize>,
    bytes: usize,
    packets: usize,
    /// How often all was taken.
    round: u64,
    /// Whether the task knows that there is something.
    told: bool,
    closed: bool,
    blocked: Vec<Waker>,
    spare: Vec<Vec<u8>>,
}

struct Group {
    packets: Packets,
    count: usize,
}

/// What must be the same for packets to leave in one call.
#[derive(PartialEq, Eq, Hash)]
struct Kind {
    to: SocketAddr,
    len: usize,
    ecn: Option<u8>,
    src_ip: Option<IpAddr>,
}

#[derive(PartialEq, Eq, Hash)]
struct Connection(SocketAddr, [u8; CONNECTION_ID.end - CONNECTION_ID.start]);

impl Waiting {
    fn is_full(&self) -> bool {
        self.bytes >= MAX_WAITING || self.packets >= MAX_PACKETS
    }

    fn push(&mut self, transmit: &Transmit<'_>, most: usize) {
        let contents = transmit.contents;
        self.bytes += contents.len();
        self.packets += 1;
        let connection = contents
            .get(CONNECTION_ID)
            .and_then(|id| id.try_into().ok())
            .filter(|_| transmit.segment_size.is_none() && contents[0] & LONG_HEADER == 0);
        let Some(id) = connection else {
            // Whose it is cannot be told, or it is many packets: nothing passes it.
            self.open.clear();
            self.last.clear();
            self.start(transmit);
            return;
        };
        let kind = Kind {
            to: transmit.destination,
            len: contents.len(),
            ecn: transmit.ecn.map(|ecn| ecn as u8),
            src_ip: transmit.src_ip,
        };
        let last = self.last.entry(Connection(kind.to, id)).or_default();
        let open = self.open.get(&kind).copied().filter(|at| {
            let group = &self.groups[*at];
            *at >= *last && group.count < most && group.packets.contents.len() + kind.len <= MAX_GROUP
        });
        match open {
            Some(at) => {
                *last = at;
                let Group { packets, count } = &mut self.groups[at];
                packets.segment_size = Some(kind.len);
                packets.contents.extend_from_slice(contents);
                *count += 1;
            }
            None => {
                *last = self.groups.len();
                self.open.insert(kind, self.groups.len());
                self.start(transmit);
            }
        }
    }

    fn start(&mut self, transmit: &Transmit<'_>) {
        let buffer = self.spare.pop().unwrap_or_default();
        self.groups.push(Group {
            packets: Packets::copy(transmit, buffer),
            count: 1,
        });
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that waits, and whether no more will come.
    fn take(&self) -> (Vec<Group>, bool) {
        let mut waiting = self.waiting();
        waiting.open.clear();
        waiting.last.clear();
        (waiting.bytes, waiting.packets, waiting.told) = (0, 0, false);
        waiting.round += 1;
        let blocked = std::mem::take(&mut waiting.blocked);
        let taken = (std::mem::take(&mut waiting.groups), waiting.closed);
        drop(waiting);
        blocked.into_iter().for_each(Waker::wake);
        taken
    }

    fn give_back(&self, mut groups: Vec<Group>) {
        let mut waiting = self.waiting();
        let room = MAX_SPARE.saturating_sub(waiting.spare.len());
        let buffers = groups.drain(..).map(|group| group.packets.contents);
        let small = buffers.filter(|buffer| buffer.capacity() <= MAX_SPARE_BYTES);
        waiting.spare.extend(small.take(room));
        if waiting.groups.capacity() == 0 {
            waiting.groups = groups;
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct GatheringSocket(Arc<Shared>);

impl Drop for GatheringSocket {
    fn drop(&mut self) {
        self.0.waiting().closed = true;
        self.0.more.notify_one();
    }
}

impl AsyncUdpSocket for GatheringSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller {
            inner: self.0.inner.clone().create_io_poller(),
            shared: self.0.clone(),
            waits: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let most = self.0.inner.max_transmit_segments();
        let mut waiting = self.0.waiting();
        if most == 1 && waiting.groups.is_empty() {
            drop(waiting);
            return self.0.inner.try_send(transmit);
        }
        if waiting.is_full() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        waiting.push(transmit, most);
        if !std::mem::replace(&mut waiting.told, true) {
            drop(waiting);
            self.0.more.notify_one();
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.0.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.0.inner.may_fragment()
    }
}

#[derive(Debug)]
struct Poller {
    shared: Arc<Shared>,
    /// The round after which it is woken, and whom that wakes.
    waits: Option<(u64, Waker)>,
    inner: Pin<Box<dyn UdpPoller>>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut waiting = self.shared.waiting();
        if waiting.is_full() {
            let (round, waker) = (waiting.round, cx.waker());
            let known = |(since, known): &(u64, Waker)| *since == round && known.will_wake(waker);
            if !self.waits.as_ref().is_some_and(known) {
                waiting.blocked.push(waker.clone());
                drop(waiting);
                self.waits = Some((round, waker.clone()));
            }
            return Poll::Pending;
        }
        drop(waiting);
        match self.shared.inner.max_transmit_segments() {
            1 => self.inner.as_mut().poll_writable(cx),
            _ => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests;
