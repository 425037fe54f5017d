//! Sockets and quinn endpoints: the one place where they are made, so that a socket of another kind (one that
//! delays, loses or cuts) can be put underneath.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use quinn::{
    AckFrequencyConfig, AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig,
    Runtime, ServerConfig, TokioRuntime,
};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{certs::Identity, gather::gather};

/// Asked from the kernel for each direction of a UDP socket. The default (about 200 KB) holds only some hundred
/// packets, a few milliseconds of load; the kernel cuts this to its own maximum without an error.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Stateless resets are at most one in this time: enough for thousands of clients of a restarted node, and still
/// no use for amplification (a reset is smaller than the packet that caused it).
const MIN_RESET_INTERVAL: Duration = Duration::from_millis(1);

/// Packets of a client or to a client that may arrive without an acknowledgement, as long as the other side has nothing to
/// send: what it sends carries one anyway. Few enough that a window that grows from ten packets gets two; while a window is
/// smaller than five, as after heavy loss, each flight waits for the usual 25 ms.
const UNACKNOWLEDGED: u32 = 4;

/// Puts another socket in the place of the kernel's, for fault injection.
pub type WrapSocket = Arc<dyn Fn(Arc<dyn AsyncUdpSocket>) -> Arc<dyn AsyncUdpSocket> + Send + Sync>;

/// Binds a UDP socket; with `share` several may have the same address (SO_REUSEPORT), and the kernel spreads
/// remote addresses over them.
///
/// # Errors
/// What the system says, for instance that the address is in use.
pub fn bind_udp(addr: SocketAddr, share: bool) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        // Best effort: a system without dual-stack sockets still serves IPv6.
        let _ = socket.set_only_v6(false);
    }
    if share {
        socket.set_reuse_port(true)?;
    }
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// A configuration whose stateless resets (RFC 9000, 10.3) survive a restart: their key is derived from the private
/// key and the address, so that those who were connected to an earlier process at this address learn at once that
/// their connection is gone, rather than after their idle timeout.
pub fn stable_config(identity: &Identity, addr: SocketAddr) -> EndpointConfig {
    let private = identity.key();
    let parent = hmac::Key::new(hmac::HMAC_SHA256, private.secret_der());
    let derived = hmac::sign(&parent, format!("iris stateless reset {addr}").as_bytes());
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())));
    config
        .min_reset_interval(MIN_RESET_INTERVAL)
        .cid_generator(|| Box::new(RandomIds(SystemRandom::new())));
    config
}

/// How many connections an endpoint has to one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ToAddress {
    /// One, or few.
    One,
    /// There may be many, with short packets: those that leave at about the same time leave together.
    Many,
}

/// Makes an endpoint on a bound socket. Must be called inside a tokio runtime.
///
/// # Errors
/// What the system says about the socket.
pub(super) fn endpoint(
    socket: std::net::UdpSocket,
    config: EndpointConfig,
    server: Option<ServerConfig>,
    connections: ToAddress,
    wrap: Option<&WrapSocket>,
) -> io::Result<Endpoint> {
    let runtime = Arc::new(TokioRuntime);
    let socket = runtime.wrap_udp_socket(socket)?;
    let socket = match connections {
        ToAddress::One => socket,
        ToAddress::Many => gather(socket),
    };
    let socket = match wrap {
        Some(wrap) => wrap(socket),
        None => socket,
    };
    Endpoint::new_with_abstract_socket(config, server, socket, runtime)
}

/// What an endpoint asks of the other about acknowledgements (draft-ietf-quic-ack-frequency), where that one can: not one for
/// each second packet but one for each few. Where a packet is missing, it is said at once, as without.
pub(super) fn ack_frequency() -> AckFrequencyConfig {
    let mut config = AckFrequencyConfig::default();
    config
        .ack_eliciting_threshold(UNACKNOWLEDGED.into())
        .reordering_threshold(1u32.into());
    config
}

/// Random connection ids, any of which is answered by a reset when it is unknown. quinn's own generator signs its
/// ids with a key of the process and ignores packets of an earlier one.
struct RandomIds(SystemRandom);

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; 8];
        self.0
            .fill(&mut bytes)
            .expect("the system's random generator does not fail once it has started");
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
