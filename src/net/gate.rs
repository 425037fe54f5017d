//! A UDP socket that can be cut, wholly or towards single addresses: packets vanish silently both ways, as on a
//! broken path. For fault injection and tests; it is put under an endpoint by its `wrap_socket`.

use std::{
    collections::BTreeSet,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use super::endpoint::WrapSocket;

/// The switch of one or more sockets.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// Whether anything is cut: the common case costs one load a packet.
    active: AtomicBool,
    all: AtomicBool,
    remotes: RwLock<BTreeSet<SocketAddr>>,
}

impl Gate {
    /// Everything passes.
    pub fn new() -> Self {
        Self::default()
    }

    /// For a `wrap_socket`.
    pub fn wrap(&self) -> WrapSocket {
        let state = self.0.clone();
        Arc::new(move |inner| {
            Arc::new(GatedSocket {
                inner,
                state: state.clone(),
            })
        })
    }

    /// Nothing passes any more, in either direction.
    pub fn cut_all(&self) {
        self.0.all.store(true, Relaxed);
        self.0.active.store(true, Relaxed);
    }

    /// Nothing passes to or from `remote`.
    pub fn cut(&self, remote: SocketAddr) {
        self.0
            .remotes
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(remote);
        self.0.active.store(true, Relaxed);
    }

    /// Everything passes again.
    pub fn heal(&self) {
        self.0
            .remotes
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        self.0.all.store(false, Relaxed);
        self.0.active.store(false, Relaxed);
    }
}

impl State {
    fn is_cut(&self, remote: &SocketAddr) -> bool {
        self.active.load(Relaxed)
            && (self.all.load(Relaxed)
                || self
                    .remotes
                    .read()
                    .unwrap_or_else(PoisonError::into_inner)
                    .contains(remote))
    }
}

#[derive(Debug)]
struct GatedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    state: Arc<State>,
}

impl AsyncUdpSocket for GatedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        if self.state.is_cut(&transmit.destination) {
            Ok(())
        } else {
            self.inner.try_send(transmit)
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = self.inner.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(count)) = &received {
            for meta in &mut meta[..*count] {
                if self.state.is_cut(&meta.addr) {
                    meta.len = 0;
                }
            }
        }
        received
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
