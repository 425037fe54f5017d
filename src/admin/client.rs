//! Connecting to a node's admin interface, and asking.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::request::Call;
use super::wire::{Answer, FrameError, MAX_ANSWER, decode_answer, encode_call, read_frame, write_frame};
use crate::net::certs::{Identity, Roots};
use crate::net::peer::admin::connect_as_operator;

/// A node could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Its socket.
    #[error("cannot connect to {}: {source}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Its address.
    #[error("cannot connect to {addr}: {why}")]
    Connect {
        /// Where.
        addr: SocketAddr,
        /// Why not.
        why: String,
    },
    /// The conversation.
    #[error("the node did not answer as it should: {0}")]
    Frame(#[from] FrameError),
    /// The node ended the conversation.
    #[error("the node turned the connection away: {0}")]
    Closed(String),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// It took too long to answer to a change.
    #[error(
        "no answer within {0:?}: the node may have stopped, or stand still and do what it was asked once it goes on; look at it \
         before asking again"
    )]
    Unsure(Duration),
}

/// A connection to a node.
pub struct AdminClient {
    transport: Transport,
    deadline: Duration,
}

enum Transport {
    Unix(UnixStream),
    Quic {
        // The connection lives as long as its endpoint.
        _endpoint: quinn::Endpoint,
        connection: quinn::Connection,
    },
}

impl AdminClient {
    /// Connects to a socket on this machine; each call may take `deadline`.
    ///
    /// # Errors
    /// [`AskError::Socket`].
    pub async fn unix(path: &Path, deadline: Duration) -> Result<Self, AskError> {
        let stream = super::socket::connect(path)
            .await
            .map_err(|source| AskError::Socket {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            transport: Transport::Unix(stream),
            deadline,
        })
    }

    /// Connects to the address for nodes of any node, with a certificate of the operator role.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn quic(
        addr: SocketAddr,
        roots: &Roots,
        identity: &Identity,
        deadline: Duration,
    ) -> Result<Self, AskError> {
        let connected = timeout(deadline, connect_as_operator(addr, roots, identity)).await;
        let connected = connected.map_err(|_| AskError::Late(deadline))?;
        let (endpoint, connection) = connected.map_err(|why| AskError::Connect { addr, why })?;
        Ok(Self {
            transport: Transport::Quic {
                _endpoint: endpoint,
                connection,
            },
            deadline,
        })
    }

    /// Asks.
    ///
    /// # Errors
    /// [`AskError`]; after one the connection is of no use.
    pub async fn call(&mut self, call: &Call) -> Result<Answer, AskError> {
        let deadline = self.deadline;
        let late = match call {
            Call::Change(_) => AskError::Unsure(deadline),
            _ => AskError::Late(deadline),
        };
        timeout(deadline, self.exchange(call)).await.unwrap_or(Err(late))
    }

    async fn exchange(&mut self, call: &Call) -> Result<Answer, AskError> {
        match &mut self.transport {
            Transport::Unix(stream) => {
                let (mut recv, mut send) = stream.split();
                Ok(exchange(&mut send, &mut recv, call).await?)
            }
            Transport::Quic { connection, .. } => {
                let told = |error: &dyn std::fmt::Display| match connection.close_reason() {
                    Some(quinn::ConnectionError::ApplicationClosed(close)) => {
                        AskError::Closed(String::from_utf8_lossy(&close.reason).into_owned())
                    }
                    Some(reason) => AskError::Closed(reason.to_string()),
                    None => AskError::Closed(error.to_string()),
                };
                let (mut send, mut recv) = connection.open_bi().await.map_err(|error| told(&error))?;
                exchange(&mut send, &mut recv, call)
                    .await
                    .map_err(|error| match error {
                        FrameError::Io(error) => told(&error),
                        error => error.into(),
                    })
            }
        }
    }
}

impl Drop for AdminClient {
    fn drop(&mut self) {
        if let Transport::Quic { connection, .. } = &self.transport {
            connection.close(0u32.into(), b"");
        }
    }
}

/// One call and its answer.
pub(super) async fn exchange<W, R>(send: &mut W, recv: &mut R, call: &Call) -> Result<Answer, FrameError>
where
    W: AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
{
    write_frame(send, &encode_call(call)).await?;
    let answer = read_frame(recv, MAX_ANSWER).await?;
    let answer = answer.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?;
    decode_answer(&answer)
}
