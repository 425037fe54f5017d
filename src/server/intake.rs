//! What arrives from connections, made ready for partitions in the tasks that read: frames decoded, tokens verified.

use std::sync::Arc;

use tokio::sync::mpsc::Sender;

use super::clock::Wall;
use super::known::Known;
use super::metrics::{Metrics, Reason};
use super::partition::{ClientInput, Event, KIND_MESSAGE, partitions_of};
use super::token::Verifier;
use crate::core::ids::{Addr, ConnId, NodeKey};
use crate::core::msg::Message;
use crate::core::wire::{ClientFrame, Code, WireError};
use crate::net::client::ClientEvent;
use crate::net::frame::Frame;
use crate::net::peer::{Direction, PeerEvent};
use crate::net::{CloseCode, CloseReason, EventSink, SinkError};

/// Takes the events of clients' connections.
#[derive(Clone)]
pub(super) struct ClientSink {
    partitions: Arc<[Sender<Event>]>,
    verifier: Arc<Verifier>,
    wall: Wall,
}

impl ClientSink {
    pub(super) fn new(partitions: Vec<Sender<Event>>, verifier: Arc<Verifier>, wall: Wall) -> Self {
        Self {
            partitions: partitions.into(),
            verifier,
            wall,
        }
    }

    fn judge(&self, frame: Frame) -> ClientInput {
        let bad = |code, detail: String| ClientInput::Bad { code, detail };
        match ClientFrame::decode(frame.kind, frame.payload) {
            Ok(ClientFrame::Hello(hello)) => {
                match self.verifier.verify(&hello.token, self.wall.ms() / 1000) {
                    Ok(verified) => ClientInput::Hello {
                        user: verified.user,
                        hello,
                    },
                    Err(error) => bad(Code::Unauthorized, error.to_string()),
                }
            }
            Ok(frame) => ClientInput::Frame(frame),
            Err(error @ WireError::Version(_)) => bad(Code::Version, error.to_string()),
            Err(error) => bad(Code::Protocol, error.to_string()),
        }
    }
}

impl EventSink<ClientEvent> for ClientSink {
    async fn deliver(&self, event: ClientEvent) -> Result<(), SinkError> {
        let (conn, event) = match event {
            ClientEvent::Opened { conn, handle, .. } => (
                conn,
                Event::Opened {
                    conn: ConnId(conn),
                    handle,
                },
            ),
            ClientEvent::Frames { conn, frames } => {
                let frames = frames.into_iter().map(|frame| self.judge(frame)).collect();
                (
                    conn,
                    Event::Client {
                        conn: ConnId(conn),
                        frames,
                    },
                )
            }
            ClientEvent::Closed { conn, reason } => {
                tracing::debug!(conn, %reason, "a client's connection is over");
                (conn, Event::Closed { conn: ConnId(conn) })
            }
        };
        let partition = (conn % self.partitions.len() as u64) as usize;
        self.partitions[partition]
            .send(event)
            .await
            .map_err(|_| SinkError::Closed)
    }
}

/// Takes the events of connections between nodes.
#[derive(Clone)]
pub(super) struct PeerSink {
    partitions: Arc<[Sender<Event>]>,
    known: Arc<Known>,
    metrics: Arc<Metrics>,
}

impl PeerSink {
    pub(super) fn new(partitions: Vec<Sender<Event>>, known: Arc<Known>, metrics: Arc<Metrics>) -> Self {
        Self {
            partitions: partitions.into(),
            known,
            metrics,
        }
    }

    /// Lanes number what they say: after a message that is left out nothing may be taken. The connection ends, and what
    /// matters is said again on the next.
    fn refuse(&self, from: &NodeKey, reason: &'static str, why: String) -> SinkError {
        self.metrics.peer_refused.get_or_create(&Reason { reason }).inc();
        tracing::error!(peer = %from, %why, "a peer's message cannot be taken: its connection is closed");
        SinkError::Refused(CloseReason::new(CloseCode::BAD_MESSAGE, why))
    }

    async fn to_all(&self, event: impl Fn() -> Event) -> Result<(), SinkError> {
        for partition in &*self.partitions {
            partition.send(event()).await.map_err(|_| SinkError::Closed)?;
        }
        Ok(())
    }
}

impl EventSink<PeerEvent> for PeerSink {
    async fn deliver(&self, event: PeerEvent) -> Result<(), SinkError> {
        match event {
            PeerEvent::Up {
                hello,
                direction,
                incarnation,
            } => {
                let node = hello.node.clone();
                self.known.saw(hello, direction, incarnation);
                if direction == Direction::Out {
                    tracing::debug!(peer = %node, "connected");
                    self.to_all(|| Event::PeerUp {
                        node: node.clone(),
                        incarnation,
                    })
                    .await?;
                }
                Ok(())
            }
            PeerEvent::Frames {
                from, class, frames, ..
            } => {
                let (source, to) = partitions_of(class);
                let Some(partition) = self.partitions.get(usize::from(to)) else {
                    return Err(self.refuse(&from, "no_partition", format!("partition {to} is not here")));
                };
                let mut messages = Vec::with_capacity(frames.len());
                let mut refused = None;
                for frame in frames {
                    let decoded = match frame.kind {
                        KIND_MESSAGE => Message::decode(&frame.payload).map_err(|error| error.to_string()),
                        kind => Err(format!("a frame of kind {kind}")),
                    };
                    match decoded {
                        Ok(message) => messages.push(message),
                        Err(why) => {
                            refused = Some(self.refuse(&from, "undecodable", why));
                            break;
                        }
                    }
                }
                let from = Addr {
                    node: from,
                    partition: source,
                };
                // What came before is whole: the receiver sees a prefix, and then the end of the connection.
                partition
                    .send(Event::Peer { from, messages })
                    .await
                    .map_err(|_| SinkError::Closed)?;
                refused.map_or(Ok(()), Err)
            }
            PeerEvent::Lost {
                peer,
                direction,
                incarnation,
                reason,
            } => {
                tracing::info!(%peer, %reason, "lost a connection to a peer");
                let outgoing = direction == Direction::Out;
                self.known.lost(&peer, direction, incarnation);
                self.to_all(|| Event::PeerLost {
                    node: peer.clone(),
                    outgoing,
                    incarnation,
                })
                .await
            }
            PeerEvent::Refused { peer, addr, refusal } => {
                tracing::error!(%peer, %addr, %refusal, "a peer does not fit to this node; check both configurations");
                Ok(())
            }
        }
    }
}
