//! Sockets and quinn endpoints: the one place where they are made, so that a socket of another kind (one that
//! delays, loses or cuts) can be put underneath.

use std::{io, net::SocketAddr, sync::Arc};

use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, Runtime, ServerConfig, TokioRuntime};
use socket2::{Domain, Protocol, Socket, Type};

/// Asked from the kernel for each direction of a UDP socket. The default (about 200 KB) holds only some hundred
/// packets, a few milliseconds of load; the kernel cuts this to its own maximum without an error.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

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

/// Makes an endpoint on a bound socket. Must be called inside a tokio runtime.
///
/// # Errors
/// What the system says about the socket.
pub fn endpoint(
    socket: std::net::UdpSocket,
    config: EndpointConfig,
    server: Option<ServerConfig>,
    wrap: Option<&WrapSocket>,
) -> io::Result<Endpoint> {
    let runtime = Arc::new(TokioRuntime);
    let socket = runtime.wrap_udp_socket(socket)?;
    let socket = match wrap {
        Some(wrap) => wrap(socket),
        None => socket,
    };
    Endpoint::new_with_abstract_socket(config, server, socket, runtime)
}
