//! Connections of operators to the address for nodes (ALPN `iris-admin/1`), and of nodes that answer for the cluster and ask
//! the others.
//!
//! Both sides show certificates of the cluster's CA. What one may ask for follows from the name in it: the role of operators
//! ([`OPERATOR_NAME`]), or that of nodes ([`PEER_NAME`]), which may only look. Any other certificate is turned away, whoever
//! signed it. What is asked is not known here.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use quinn::crypto::rustls::HandshakeData;
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, TransportConfig};

use super::Shared;
use super::link::presented_certificate;
use crate::core::ids::NodeKey;
use crate::net::certs::{
    CertError, Identity, OPERATOR_NAME, PEER_NAME, Roots, cert_has_name, fingerprint, node_dns_name,
};
use crate::net::client::ClosedBy;
use crate::net::endpoint::{ToAddress, bind_udp, endpoint};
use crate::net::tls::{self, ADMIN_ALPN};
use crate::net::{CloseCode, CloseReason};

/// Connections that wait to be taken; more are turned away.
pub(super) const INBOX: usize = 16;
/// A node that is not heard of for so long is lost. Answers come within seconds.
const IDLE: Duration = Duration::from_secs(5);
/// Sent while an answer is waited for.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Who connected, by its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// An operator; the first bytes of the SHA-256 of the certificate.
    Operator(String),
    /// A node of the cluster: it may look, and change nothing.
    Node,
}

/// A connection whose certificate was judged.
#[derive(Debug)]
pub struct AdminConnection {
    /// The connection; nothing was read from it.
    pub connection: Connection,
    /// Who it is.
    pub caller: Caller,
}

/// Whether a connection was made for the admin interface.
pub(super) fn is_admin(connection: &Connection) -> bool {
    let data = connection.handshake_data();
    let data = data.and_then(|data| data.downcast::<HandshakeData>().ok());
    data.and_then(|data| data.protocol).as_deref() == Some(ADMIN_ALPN)
}

/// Judges who it is and hands the connection on.
pub(super) fn accepted(shared: &Shared, connection: Connection) -> Result<(), String> {
    let cert = presented_certificate(&connection).map_err(|refusal| refusal.to_string())?;
    let caller = if cert_has_name(&cert, OPERATOR_NAME) {
        Caller::Operator(fingerprint(&cert))
    } else if cert_has_name(&cert, PEER_NAME) {
        Caller::Node
    } else {
        let remote = connection.remote_address();
        tracing::warn!(%remote, certificate = %fingerprint(&cert), "an operator was turned away: its certificate has no such role");
        let text = "the certificate has neither the role of operators nor that of nodes";
        CloseReason::new(CloseCode::UNAUTHENTICATED, text).close(&connection);
        return Err(text.to_owned());
    };
    let handed = shared.admin_inbox.try_send(AdminConnection {
        connection: connection.clone(),
        caller,
    });
    handed.map_err(|_| {
        let text = "too many operators, or no admin interface";
        CloseReason::new(CloseCode::OVERLOADED, text).close(&connection);
        text.to_owned()
    })
}

/// For connecting to the admin interface of a node.
///
/// # Errors
/// [`CertError::Tls`].
pub(super) fn client_config(roots: &Roots, identity: &Identity) -> Result<ClientConfig, CertError> {
    let mut config = ClientConfig::new(tls::client_config(roots, Some(identity), ADMIN_ALPN)?);
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(IDLE.try_into().ok())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(0u32.into())
        .max_concurrent_uni_streams(0u32.into())
        .datagram_receive_buffer_size(None);
    config.transport_config(std::sync::Arc::new(transport));
    Ok(config)
}

/// Connects; with `node` its certificate must name that one. Whoever calls limits the time.
pub(super) async fn connect(
    endpoint: &Endpoint,
    config: ClientConfig,
    addr: SocketAddr,
    node: Option<&NodeKey>,
) -> Result<Connection, String> {
    let connecting = endpoint
        .connect_with(config, addr, PEER_NAME)
        .map_err(|error| error.to_string())?;
    let connection = connecting
        .await
        .map_err(|error| ClosedBy::from(error).to_string())?;
    if let Some(node) = node {
        let name =
            node_dns_name(node.region.as_str(), node.node.as_str()).map_err(|error| error.to_string())?;
        let cert = presented_certificate(&connection).map_err(|refusal| refusal.to_string())?;
        if !cert_has_name(&cert, &name) {
            CloseReason::new(CloseCode::REFUSED, "another node than expected").close(&connection);
            return Err(format!("another node answers at {addr}"));
        }
    }
    Ok(connection)
}

/// Connects as an operator, over a socket of its own. The endpoint must be kept as long as the connection.
///
/// # Errors
/// For people: why not.
pub async fn connect_as_operator(
    addr: SocketAddr,
    roots: &Roots,
    identity: &Identity,
) -> Result<(Endpoint, Connection), String> {
    let local: SocketAddr = match addr {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let config = client_config(roots, identity).map_err(|error| error.to_string())?;
    let socket = bind_udp(local, false).map_err(|error| format!("cannot bind a UDP socket: {error}"))?;
    let endpoint = endpoint(socket, EndpointConfig::default(), None, ToAddress::One, None)
        .map_err(|error| format!("cannot use a UDP socket: {error}"))?;
    let connection = connect(&endpoint, config, addr, None).await?;
    Ok((endpoint, connection))
}
