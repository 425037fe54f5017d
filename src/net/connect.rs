//! The side that connects as a client: one endpoint (one socket) serves any number of outgoing connections.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, TransportConfig};
use tokio::time::timeout;

use super::{
    CloseCode, CloseReason,
    certs::{CertError, Roots},
    client::{
        ClosedBy,
        conn::{READ_CHUNKS, WRITE_BUFFER_BYTES, closed_by_read},
    },
    endpoint::{ToAddress, WrapSocket, ack_frequency, bind_udp, endpoint},
    frame::{Frame, FrameDecoder, coalesce},
    tls::{self, CLIENT_ALPN},
};
use crate::core::wire::MAX_CLIENT_FRAME;

/// Settings of outgoing client connections.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// From the first packet to a finished handshake.
    pub connect_timeout: Duration,
    /// A packet is sent when nothing else was for so long; keeps NAT bindings and the connection alive.
    pub keep_alive: Option<Duration>,
    /// A server that is not heard of for so long is lost. The smaller of this and the server's counts.
    pub idle_timeout: Duration,
    /// Unread bytes that the server may send.
    pub receive_window: u32,
    /// Bytes held until the server acknowledged them.
    pub send_window: u32,
    /// Greatest length field of a frame from the server.
    pub max_frame: u32,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(3),
            keep_alive: Some(Duration::from_secs(10)),
            idle_timeout: Duration::from_secs(30),
            receive_window: 1024 * 1024,
            send_window: 1024 * 1024,
            max_frame: MAX_CLIENT_FRAME as u32,
        }
    }
}

/// A connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No local socket.
    #[error("cannot bind a UDP socket at {addr}: {source}")]
    Bind {
        /// The local address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The certificates given are not usable.
    #[error(transparent)]
    Cert(#[from] CertError),
    /// The attempt could not even be made.
    #[error("cannot connect to {name} at {addr}: {source}")]
    Local {
        /// The server's name.
        name: String,
        /// Its address.
        addr: SocketAddr,
        /// What quinn said.
        source: quinn::ConnectError,
    },
    /// The handshake failed.
    #[error("connecting to {name} at {addr} failed: {reason}")]
    Handshake {
        /// The server's name.
        name: String,
        /// Its address.
        addr: SocketAddr,
        /// How it ended.
        reason: ClosedBy,
    },
    /// No answer in time.
    #[error("no answer from {name} at {addr} within {after:?}; is a server running there?")]
    Timeout {
        /// The server's name.
        name: String,
        /// Its address.
        addr: SocketAddr,
        /// The time it was given.
        after: Duration,
    },
}

/// Makes client connections. Cheap to clone; all clones share one socket.
#[derive(Debug, Clone)]
pub struct Connector {
    endpoint: Endpoint,
    config: ClientConfig,
    options: ConnectOptions,
}

impl Connector {
    /// Binds `local` (usually `0.0.0.0:0` or `[::]:0`) and trusts `roots`. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`ConnectError::Bind`], [`ConnectError::Cert`].
    pub fn new(local: SocketAddr, roots: &Roots, options: ConnectOptions) -> Result<Self, ConnectError> {
        Self::with_socket(local, roots, options, None)
    }

    /// As [`Connector::new`], on another kind of socket.
    ///
    /// # Errors
    /// As [`Connector::new`].
    pub fn with_socket(
        local: SocketAddr,
        roots: &Roots,
        options: ConnectOptions,
        wrap: Option<&WrapSocket>,
    ) -> Result<Self, ConnectError> {
        let failed = |source| ConnectError::Bind { addr: local, source };
        let socket = bind_udp(local, false).map_err(failed)?;
        let endpoint =
            endpoint(socket, EndpointConfig::default(), None, ToAddress::Many, wrap).map_err(failed)?;
        let mut config = ClientConfig::new(tls::client_config(roots, None, CLIENT_ALPN)?);
        config.transport_config(Arc::new(transport(&options)));
        Ok(Self {
            endpoint,
            config,
            options,
        })
    }

    /// Connects and opens the one stream. The server notices it with the first frame that is sent.
    ///
    /// # Errors
    /// [`ConnectError`], after at most the connect timeout.
    pub async fn connect(&self, addr: SocketAddr, server_name: &str) -> Result<ClientStream, ConnectError> {
        let name = || server_name.to_owned();
        let connecting = self
            .endpoint
            .connect_with(self.config.clone(), addr, server_name)
            .map_err(|source| ConnectError::Local {
                name: name(),
                addr,
                source,
            })?;
        let failed = |error: ConnectionError| ConnectError::Handshake {
            name: name(),
            addr,
            reason: ClosedBy::from(error),
        };
        let after = self.options.connect_timeout;
        let opened = timeout(after, async {
            let connection = connecting.await?;
            let (send, recv) = connection.open_bi().await?;
            Ok::<_, ConnectionError>((connection, send, recv))
        });
        let Ok(opened) = opened.await else {
            return Err(ConnectError::Timeout {
                name: name(),
                addr,
                after,
            });
        };
        let (connection, send, recv) = opened.map_err(failed)?;
        Ok(ClientStream {
            sender: FrameSender {
                connection: connection.clone(),
                send,
            },
            receiver: FrameReceiver {
                connection,
                recv,
                decoder: FrameDecoder::new(self.options.max_frame),
            },
        })
    }

    /// Connections that are open.
    pub fn open_connections(&self) -> usize {
        self.endpoint.open_connections()
    }

    /// Closes every connection and waits a moment for the close frames to go out.
    pub async fn close(&self) {
        self.endpoint.close(CloseCode::NORMAL.into(), b"");
        let _ = timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }
}

/// One connection to a server.
#[derive(Debug)]
pub struct ClientStream {
    sender: FrameSender,
    receiver: FrameReceiver,
}

impl ClientStream {
    /// The two halves, which can live in different tasks.
    pub fn split(self) -> (FrameSender, FrameReceiver) {
        (self.sender, self.receiver)
    }

    /// See [`FrameSender::send`].
    ///
    /// # Errors
    /// [`ClosedBy`].
    pub async fn send(&mut self, batch: Vec<Bytes>) -> Result<(), ClosedBy> {
        self.sender.send(batch).await
    }

    /// See [`FrameReceiver::recv`].
    ///
    /// # Errors
    /// [`ClosedBy`].
    pub async fn recv(&mut self) -> Result<Vec<Frame>, ClosedBy> {
        self.receiver.recv().await
    }

    #[cfg(test)]
    pub(super) fn force_key_update(&self) {
        self.sender.connection.force_key_update();
    }

    /// See [`FrameSender::close`].
    pub fn close(&self, reason: &CloseReason) {
        self.sender.close(reason);
    }
}

/// The sending half.
#[derive(Debug)]
pub struct FrameSender {
    connection: Connection,
    send: quinn::SendStream,
}

impl FrameSender {
    /// Writes encoded frames, waiting for the server's window. Not cancel-safe: after a dropped `send` the stream
    /// may end within a frame, and the connection should be closed.
    ///
    /// # Errors
    /// [`ClosedBy`] when the connection is over.
    pub async fn send(&mut self, batch: Vec<Bytes>) -> Result<(), ClosedBy> {
        let mut batch = coalesce(batch, WRITE_BUFFER_BYTES);
        self.send
            .write_all_chunks(&mut batch)
            .await
            .map_err(|error| match error {
                quinn::WriteError::ConnectionLost(error) => error.into(),
                quinn::WriteError::Stopped(code) => ClosedBy::Remote(CloseReason::new(
                    CloseCode::from_wire(code),
                    "the server reads no more",
                )),
                other => ClosedBy::Transport(other.to_string()),
            })
    }

    /// Ends the stream and waits until the server has all bytes (at most `deadline`), then closes.
    pub async fn finish(mut self, deadline: Duration) {
        let _ = self.send.finish();
        let _ = timeout(deadline, self.send.stopped()).await;
        CloseReason::new(CloseCode::NORMAL, "done").close(&self.connection);
    }

    /// Closes at once; bytes under way may be lost.
    pub fn close(&self, reason: &CloseReason) {
        reason.close(&self.connection);
    }

    /// Smoothed round-trip time.
    pub fn rtt(&self) -> Duration {
        self.connection.rtt()
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct FrameReceiver {
    connection: Connection,
    recv: quinn::RecvStream,
    decoder: FrameDecoder,
}

impl FrameReceiver {
    /// Waits for frames: at least one. Cancel-safe.
    ///
    /// # Errors
    /// [`ClosedBy`] when the connection is over or sent bytes that are no frames; frames before that come first.
    pub async fn recv(&mut self) -> Result<Vec<Frame>, ClosedBy> {
        let mut frames = Vec::new();
        loop {
            if let Some(error) = self.decoder.error() {
                CloseReason::new(CloseCode::BAD_FRAME, error.to_string()).close(&self.connection);
                return Err(ClosedBy::Frame(error));
            }
            let mut chunks: [Bytes; READ_CHUNKS] = Default::default();
            let count = match self.recv.read_chunks(&mut chunks).await {
                Ok(Some(count)) => count,
                // The server ends its stream right before it closes: the close frame says why.
                Ok(None) => return Err(self.connection.closed().await.into()),
                Err(error) => return Err(closed_by_read(error)),
            };
            for chunk in &mut chunks[..count] {
                // Frames before a fault are returned first; the next call reports it.
                let _ = self.decoder.push(std::mem::take(chunk), &mut frames);
            }
            if !frames.is_empty() {
                return Ok(frames);
            }
        }
    }
}

fn transport(options: &ConnectOptions) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(0u32.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(options.receive_window.into())
        .receive_window(options.receive_window.into())
        .send_window(options.send_window.into())
        .keep_alive_interval(options.keep_alive)
        .max_idle_timeout(options.idle_timeout.try_into().ok())
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        .mtu_discovery_config(None)
        .ack_frequency_config(Some(ack_frequency()));
    transport
}
