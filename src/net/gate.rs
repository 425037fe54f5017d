//! A UDP socket whose packets are cut, lost or delayed, all of them or those of single remotes: as on a broken path, nobody is
//! told. For fault injection and tests; it is put under an endpoint by its `wrap_socket`.
//!
//! A remote is the address that packets carry. Nodes dial from the socket that they listen on, so between them it is the
//! address by which the other is known, whoever dialled.

mod late;

use std::{
    collections::BTreeMap,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use ring::rand::{SecureRandom as _, SystemRandom};

use super::endpoint::WrapSocket;
use late::Late;

/// What becomes of the packets to and from a remote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rule {
    /// Nothing leaves.
    pub cut_out: bool,
    /// Nothing arrives.
    pub cut_in: bool,
    /// Of a hundred packets that leave, so many are lost.
    pub loss_out: u8,
    /// Of a hundred packets that arrive, so many are lost.
    pub loss_in: u8,
    /// What leaves, leaves so much later.
    pub delay: Duration,
    /// And later by a random time of at most this, drawn for each packet: they overtake each other.
    pub jitter: Duration,
}

impl Rule {
    /// Nothing passes in either direction.
    pub const CUT: Self = Self {
        cut_out: true,
        cut_in: true,
        loss_out: 0,
        loss_in: 0,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
    };

    /// Both: cuts and delays add up, and the greater loss counts.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            cut_out: self.cut_out || other.cut_out,
            cut_in: self.cut_in || other.cut_in,
            loss_out: self.loss_out.max(other.loss_out),
            loss_in: self.loss_in.max(other.loss_in),
            delay: self.delay.saturating_add(other.delay),
            jitter: self.jitter.saturating_add(other.jitter),
        }
    }
}

/// The rules of a socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    all: Rule,
    remotes: BTreeMap<SocketAddr, Rule>,
}

impl Rules {
    /// Adds a rule for every remote.
    pub fn add(&mut self, rule: Rule) {
        self.all = self.all.and(rule);
    }

    /// Adds a rule for one.
    pub fn add_for(&mut self, remote: SocketAddr, rule: Rule) {
        let own = self.remotes.entry(canonical(remote)).or_default();
        *own = own.and(rule);
    }

    fn of(&self, remote: SocketAddr) -> Rule {
        match self.remotes.get(&canonical(remote)) {
            Some(rule) => self.all.and(*rule),
            None => self.all,
        }
    }

    fn are_none(&self) -> bool {
        let none = |rule: &Rule| *rule == Rule::default();
        none(&self.all) && self.remotes.values().all(none)
    }
}

/// A socket for both families shows IPv4 addresses within IPv6 ones.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// The switch of one or more sockets.
#[derive(Debug, Clone)]
pub struct Gate(Arc<State>);

#[derive(Debug)]
struct State {
    /// Whether there are rules: the common case costs this load for each packet, or batch of them, and nothing else.
    active: AtomicBool,
    rules: RwLock<Rules>,
    random: Mutex<ChaCha8Rng>,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// Everything passes.
    pub fn new() -> Self {
        let mut seed = [0; 32];
        // Which packets are lost need not be secret: without randomness it is always the same ones.
        let _ = SystemRandom::new().fill(&mut seed);
        Self::seeded(seed)
    }

    /// The same, where what is lost and how late the rest is follows from a seed.
    pub fn seeded(seed: [u8; 32]) -> Self {
        Self(Arc::new(State {
            active: AtomicBool::new(false),
            rules: RwLock::default(),
            random: Mutex::new(ChaCha8Rng::from_seed(seed)),
        }))
    }

    /// For a `wrap_socket`; the endpoint must be made inside a tokio runtime.
    pub fn wrap(&self) -> WrapSocket {
        let state = self.0.clone();
        Arc::new(move |inner: Arc<dyn AsyncUdpSocket>| {
            Arc::new(GatedSocket {
                late: Late::new(inner.clone()),
                inner,
                state: state.clone(),
            })
        })
    }

    /// From now on these rules hold and no others. What was delayed before still leaves when it is due, and what
    /// waits for the kernel at this moment still leaves.
    pub fn set(&self, rules: Rules) {
        let mut held = self.0.rules.write().unwrap_or_else(PoisonError::into_inner);
        let active = !rules.are_none();
        *held = rules;
        self.0.active.store(active, Relaxed);
    }

    /// Nothing passes any more, in either direction.
    pub fn cut_all(&self) {
        let mut rules = Rules::default();
        rules.add(Rule::CUT);
        self.set(rules);
    }

    /// Everything passes again.
    pub fn heal(&self) {
        self.set(Rules::default());
    }
}

impl State {
    /// The rule for a remote, where there are any.
    fn rule(&self, remote: SocketAddr) -> Option<Rule> {
        if !self.active.load(Relaxed) {
            return None;
        }
        Some(
            self.rules
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .of(remote),
        )
    }

    fn random(&self) -> MutexGuard<'_, ChaCha8Rng> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn delay(&self, rule: Rule) -> Duration {
        let most = u64::try_from(rule.jitter.as_micros()).unwrap_or(u64::MAX);
        if most == 0 {
            return rule.delay;
        }
        let more = self.random().next_u64() % most.saturating_add(1);
        rule.delay + Duration::from_micros(more)
    }

    /// Moves the packets of `size` bytes (the last may be shorter) that are not lost together; gives the bytes that are left.
    fn thin(&self, packets: &mut [u8], size: usize, loss: u8) -> usize {
        let mut random = self.random();
        let (mut at, mut kept) = (0, 0);
        while at < packets.len() {
            let end = (at + size.max(1)).min(packets.len());
            if random.next_u32() % 100 >= u32::from(loss) {
                packets.copy_within(at..end, kept);
                kept += end - at;
            }
            at = end;
        }
        kept
    }
}

#[derive(Debug)]
struct GatedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    late: Arc<Late>,
    state: Arc<State>,
}

impl GatedSocket {
    fn send(&self, transmit: &Transmit<'_>, rule: Rule) -> io::Result<()> {
        match self.state.delay(rule) {
            Duration::ZERO => self.inner.try_send(transmit),
            delay => {
                self.late.push(transmit, delay);
                Ok(())
            }
        }
    }
}

impl AsyncUdpSocket for GatedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let Some(rule) = self.state.rule(transmit.destination) else {
            return self.inner.try_send(transmit);
        };
        if rule.cut_out {
            return Ok(());
        }
        if rule.loss_out == 0 {
            return self.send(transmit, rule);
        }
        // Several packets may go out at once, and each is lost or not by itself.
        let mut contents = transmit.contents.to_vec();
        let size = transmit.segment_size.unwrap_or(contents.len());
        let kept = self.state.thin(&mut contents, size, rule.loss_out);
        if kept == 0 {
            return Ok(());
        }
        let left = Transmit {
            contents: &contents[..kept],
            segment_size: transmit.segment_size.filter(|size| *size < kept),
            ..*transmit
        };
        self.send(&left, rule)
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = self.inner.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(count)) = &received
            && self.state.active.load(Relaxed)
        {
            for (buf, meta) in bufs.iter_mut().zip(meta).take(*count) {
                let rule = self.state.rule(meta.addr).unwrap_or_default();
                if rule.cut_in {
                    meta.len = 0;
                } else if rule.loss_in > 0 {
                    meta.len = self.state.thin(&mut buf[..meta.len], meta.stride, rule.loss_in);
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

#[cfg(test)]
mod tests;
