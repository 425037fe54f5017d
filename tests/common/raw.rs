//! A client that speaks frames itself, and wrong ones too.

use std::collections::VecDeque;

use bytes::{BufMut as _, Bytes, BytesMut};
use iris::core::ids::MessageId;
use iris::core::vector::Vector;
use iris::core::wire::{ClientFrame, Code, Hello, Send, SendControl, ServerFrame, Status, Welcome};
use iris::net::CloseReason;
use iris::net::client::ClosedBy;
use iris::net::connect::ClientStream;
use iris::server::dev::SERVER_NAME;

use super::{TestCluster, user, within};

/// One connection.
pub struct Raw {
    stream: ClientStream,
    frames: VecDeque<ServerFrame>,
    pub session_seq: u64,
}

impl Raw {
    pub async fn connect(cluster: &TestCluster) -> Self {
        Self::connect_to(cluster, "us-east-edge").await
    }

    pub async fn connect_to(cluster: &TestCluster, node: &str) -> Self {
        let addr = cluster.node(node).client_addr().unwrap();
        let stream = within("connected", cluster.connector.connect(addr, SERVER_NAME))
            .await
            .unwrap();
        Self {
            stream,
            frames: VecDeque::new(),
            session_seq: 0,
        }
    }

    pub async fn start(cluster: &TestCluster, token: &str, device: &str) -> Self {
        let mut raw = Self::connect(cluster).await;
        raw.greet(token, device).await;
        raw
    }

    pub async fn start_at(cluster: &TestCluster, node: &str, token: &str, device: &str) -> Self {
        let mut raw = Self::connect_to(cluster, node).await;
        raw.greet(token, device).await;
        raw
    }

    pub async fn greet(&mut self, token: &str, device: &str) {
        self.write(encoded(&ClientFrame::Hello(Box::new(hello(token, device)))))
            .await;
    }

    pub async fn write(&mut self, bytes: Bytes) {
        within("written", self.stream.send(vec![bytes])).await.unwrap();
    }

    pub async fn next(&mut self) -> Result<ServerFrame, ClosedBy> {
        while self.frames.is_empty() {
            for frame in within("a frame", self.stream.recv()).await? {
                self.frames
                    .push_back(ServerFrame::decode(frame.kind, frame.payload).unwrap());
            }
        }
        Ok(self.frames.pop_front().unwrap())
    }

    pub async fn welcome(&mut self) -> Welcome {
        match self.next().await {
            Ok(ServerFrame::Welcome(welcome)) => *welcome,
            other => panic!("expected Welcome: {other:?}"),
        }
    }

    pub async fn error(&mut self) -> (Code, String) {
        match self.next().await {
            Ok(ServerFrame::Error { code, detail }) => (code, detail),
            other => panic!("expected Error: {other:?}"),
        }
    }

    /// How the server ended the connection.
    pub async fn closed(&mut self) -> CloseReason {
        loop {
            match self.next().await {
                Ok(_) => {}
                Err(ClosedBy::Remote(reason)) => return reason,
                Err(other) => panic!("not closed by the server: {other:?}"),
            }
        }
    }

    /// Sends a message; whether it was accepted as a duplicate, or why it was refused.
    pub async fn send(&mut self, id: MessageId, to: &str, body: &[u8]) -> Result<bool, Code> {
        self.session_seq += 1;
        let send = message(id, self.session_seq, to, body);
        self.write(encoded(&ClientFrame::Send(send))).await;
        match self.next().await.unwrap() {
            ServerFrame::Accepted(accepted) if accepted.id == id => Ok(accepted.duplicate),
            ServerFrame::Rejected(rejected) if rejected.id == id => {
                assert!(!rejected.detail.is_empty(), "{rejected:?}");
                Err(rejected.code)
            }
            other => panic!("expected an answer to {id}: {other:?}"),
        }
    }
}

pub fn hello(token: &str, device: &str) -> Hello {
    Hello {
        token: token.to_owned(),
        device: device.parse().unwrap(),
        capabilities: 0,
        cursor: Vector::default(),
        connect_epoch: 0,
        status: Status::Online,
        text: String::new(),
        agent: "test".to_owned(),
        memory: 0,
        after: Vector::default(),
    }
}

pub fn message(id: MessageId, session_seq: u64, to: &str, body: &[u8]) -> Send {
    let control = SendControl {
        to: user(to),
        kind: 0,
        ttl_ms: 0,
        trace: Vec::new(),
    };
    Send {
        id,
        session_seq,
        control,
        body: Bytes::copy_from_slice(body),
    }
}

pub fn encoded(frame: &ClientFrame) -> Bytes {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    bytes.freeze()
}

pub fn frame(version: u8, kind: u8, payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u32(payload.len() as u32 + 2);
    bytes.put_slice(&[version, kind]);
    bytes.put_slice(payload);
    bytes.freeze()
}
