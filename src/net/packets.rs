//! Packets that leave after the call that handed them over.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use quinn::{
    AsyncUdpSocket,
    udp::{EcnCodepoint, Transmit},
};

/// What a [`Transmit`] says, and its bytes: one packet, or several of `segment_size` bytes (the last may be shorter).
#[derive(Debug)]
pub(super) struct Packets {
    pub(super) destination: SocketAddr,
    pub(super) ecn: Option<EcnCodepoint>,
    pub(super) contents: Vec<u8>,
    pub(super) segment_size: Option<usize>,
    pub(super) src_ip: Option<IpAddr>,
}

impl Packets {
    /// Copies it, into a buffer whose contents are dropped.
    pub(super) fn copy(transmit: &Transmit<'_>, mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.extend_from_slice(transmit.contents);
        Self {
            destination: transmit.destination,
            ecn: transmit.ecn,
            contents: buffer,
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        }
    }

    /// Sends when the socket takes it. What fails otherwise is lost, as on a path: QUIC sends again what it carried.
    pub(super) async fn send(&self, socket: &Arc<dyn AsyncUdpSocket>) {
        match self.segment_size {
            // What was put together before the kernel refused to cut it.
            Some(size) if socket.max_transmit_segments() == 1 => {
                for contents in self.contents.chunks(size) {
                    self.send_as(contents, None, socket).await;
                }
            }
            size => self.send_as(&self.contents, size, socket).await,
        }
    }

    async fn send_as(&self, contents: &[u8], segment_size: Option<usize>, socket: &Arc<dyn AsyncUdpSocket>) {
        let transmit = Transmit {
            destination: self.destination,
            ecn: self.ecn,
            contents,
            segment_size,
            src_ip: self.src_ip,
        };
        while let Err(error) = socket.try_send(&transmit)
            && error.kind() == io::ErrorKind::WouldBlock
        {
            let mut poller = socket.clone().create_io_poller();
            if poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.is_err() {
                return;
            }
        }
    }
}
