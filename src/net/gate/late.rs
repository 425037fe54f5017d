//! Packets that leave later: a queue by the time at which each is due, and a task that runs while there are any.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use quinn::{AsyncUdpSocket, udp::Transmit};
use tokio::{
    runtime::Handle,
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::net::packets::Packets;

/// Packets (or batches of one size that go out at once) that wait in one socket: what exceeds it is lost, as in a router.
pub(super) const MAX_PACKETS: usize = 64 * 1024;
/// Their bytes: what a gigabit a second has under way in half a second.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// The packets of one socket that leave later.
#[derive(Debug)]
pub(super) struct Late {
    inner: Arc<dyn AsyncUdpSocket>,
    /// quinn may send from outside of the runtime.
    runtime: Handle,
    waiting: Mutex<Waiting>,
    /// One came that is due before all others.
    sooner: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// By when they are due and the order in which they came.
    packets: BTreeMap<(Instant, u64), Packets>,
    bytes: usize,
    came: u64,
    /// Whether the task runs.
    runs: bool,
}

impl Late {
    /// Must be called inside a tokio runtime.
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            runtime: Handle::current(),
            waiting: Mutex::default(),
            sooner: Notify::new(),
        })
    }

    /// Lets it leave after `delay`; it is lost where too many wait.
    pub(super) fn push(self: &Arc<Self>, transmit: &Transmit<'_>, delay: Duration) {
        let mut waiting = self.waiting();
        let len = transmit.contents.len();
        if waiting.packets.len() >= MAX_PACKETS || waiting.bytes + len > MAX_BYTES {
            return;
        }
        let at = (Instant::now() + delay, waiting.came);
        let first = waiting
            .packets
            .first_key_value()
            .is_none_or(|(first, _)| at < *first);
        waiting.came += 1;
        waiting.bytes += len;
        waiting.packets.insert(at, Packets::copy(transmit, Vec::new()));
        if !waiting.runs {
            waiting.runs = true;
            // It keeps the socket until everything left, as what is on a path arrives though its sender is gone.
            self.runtime.spawn(self.clone().run());
        } else if first {
            self.sooner.notify_one();
        }
    }

    async fn run(self: Arc<Self>) {
        loop {
            let due = {
                let mut waiting = self.waiting();
                match waiting.packets.first_key_value() {
                    Some(((due, _), _)) => *due,
                    None => {
                        waiting.runs = false;
                        return;
                    }
                }
            };
            tokio::select! {
                () = sleep_until(due) => {}
                () = self.sooner.notified() => continue,
            }
            while let Some(packet) = self.next_due() {
                packet.send(&self.inner).await;
            }
        }
    }

    fn next_due(&self) -> Option<Packets> {
        let mut waiting = self.waiting();
        let first = waiting.packets.first_entry()?;
        if first.key().0 > Instant::now() {
            return None;
        }
        let packet = first.remove();
        waiting.bytes -= packet.contents.len();
        Some(packet)
    }

    #[cfg(test)]
    pub(super) fn waits(&self) -> usize {
        self.waiting().packets.len()
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
