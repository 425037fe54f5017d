//! What arrives from connections, made ready for partitions in the tasks that read: frames decoded, tokens verified.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::Sender;

use super::http::Health;
use super::node::Known;
use super::partition::{ClientInput, Event, KIND_MESSAGE, partitions_of};
use super::token::Verifier;
use crate::core::ids::{Addr, ConnId};
use crate::core::msg::Message;
use crate::core::wire::{ClientFrame, Code, WireError};
use crate::net::client::ClientEvent;
use crate::net::frame::Frame;
use crate::net::peer::{Direction, PeerEvent};
use crate::net::{EventSink, SinkClosed};

/// Takes the events of clients' connections.
#[derive(Clone)]
pub(super) struct ClientSink {
    partitions: Arc<[Sender<Event>]>,
    verifier: Arc<Verifier>,
    health: Arc<Health>,
}

impl ClientSink {
    pub(super) fn new(partitions: Vec<Sender<Event>>, verifier: Arc<Verifier>, health: Arc<Health>) -> Self {
        Self {
            partitions: partitions.into(),
            verifier,
            health,
        }
    }

    fn judge(&self, frame: Frame) -> ClientInput {
        let bad = |code, detail: String| ClientInput::Bad { code, detail };
        match ClientFrame::decode(frame.kind, frame.payload) {
            Ok(ClientFrame::Hello(hello)) => {
                let now = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default()
                    .as_secs();
                match self.verifier.verify(&hello.token, now) {
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
    async fn deliver(&self, event: ClientEvent) -> Result<(), SinkClosed> {
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
        let _ = &self.health;
        let partition = (conn % self.partitions.len() as u64) as usize;
        self.partitions[partition]
            .send(event)
            .await
            .map_err(|_| SinkClosed)
    }
}

/// Takes the events of connections between nodes.
#[derive(Clone)]
pub(super) struct PeerSink {
    partitions: Arc<[Sender<Event>]>,
    known: Arc<Known>,
}

impl PeerSink {
    pub(super) fn new(partitions: Vec<Sender<Event>>, known: Arc<Known>) -> Self {
        Self {
            partitions: partitions.into(),
            known,
        }
    }

    async fn to_all(&self, event: impl Fn() -> Event) -> Result<(), SinkClosed> {
        for partition in &*self.partitions {
            partition.send(event()).await.map_err(|_| SinkClosed)?;
        }
        Ok(())
    }
}

impl EventSink<PeerEvent> for PeerSink {
    async fn deliver(&self, event: PeerEvent) -> Result<(), SinkClosed> {
        match event {
            PeerEvent::Up {
                hello,
                direction,
                incarnation,
            } => {
                let node = hello.node.clone();
                self.known.saw(hello);
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
                    tracing::warn!(peer = %from, partition = to, "messages for a partition that is not here");
                    return Ok(());
                };
                let mut messages = Vec::with_capacity(frames.len());
                for frame in frames.into_iter().filter(|frame| frame.kind == KIND_MESSAGE) {
                    match Message::decode(&frame.payload) {
                        Ok(message) => messages.push(message),
                        Err(error) => tracing::error!(peer = %from, %error, "a peer's message is dropped"),
                    }
                }
                let from = Addr {
                    node: from,
                    partition: source,
                };
                partition
                    .send(Event::Peer { from, messages })
                    .await
                    .map_err(|_| SinkClosed)
            }
            PeerEvent::Lost {
                peer,
                direction,
                incarnation,
                reason,
            } => {
                tracing::info!(%peer, %reason, "lost a connection to a peer");
                let outgoing = direction == Direction::Out;
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
