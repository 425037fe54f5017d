//! The story of a run in words.

use std::fmt::{Debug, Write as _};

use super::check::about;
use crate::client::event::ClientEvent;
use crate::core::commit::{Outcome, StoreOp};
use crate::core::msg::{Message, ToEdge, ToOwner, ToSubscriber};
use crate::core::op::LoggedOp;
use crate::core::wire::{ClientFrame, ServerFrame};

/// Longest line of the story, in characters.
const MAX_LINE: usize = 1500;

/// A message between partitions.
pub(super) fn message(message: &Message) -> String {
    let mut text = match message {
        Message::ToOwner {
            lane,
            body: ToOwner::Deposit(deposits),
        } => {
            let mut text = format!("lane {lane} deposits");
            for deposit in deposits {
                let envelope = &deposit.envelope;
                let _ = write!(
                    text,
                    " [{} {} to {} {:x}.{} attempt {}]",
                    number(&deposit.body),
                    envelope.id,
                    envelope.to,
                    envelope.session.0,
                    envelope.session_seq,
                    deposit.attempt
                );
            }
            text
        }
        Message::ToEdge {
            lane,
            body: ToEdge::Deliver(deliveries),
        } => {
            let mut text = format!("lane {lane} delivers");
            for delivery in deliveries {
                let op = LoggedOp::from_bytes(delivery.op.clone())
                    .map(|op| about(&op))
                    .unwrap_or_default();
                let _ = write!(text, " [{} for {:x}: {op}]", delivery.at, delivery.session.0);
            }
            text
        }
        Message::ToSubscriber {
            lane,
            body: ToSubscriber::Ops(runs),
        } => {
            let mut text = format!("lane {lane} ships");
            for run in runs {
                let _ = write!(
                    text,
                    " shard {} {:016x} from {}:",
                    run.shard, run.origin.0, run.first
                );
                for op in &run.ops {
                    let op = LoggedOp::from_bytes(op.clone())
                        .map(|op| about(&op))
                        .unwrap_or_default();
                    let _ = write!(text, " [{op}]");
                }
            }
            text
        }
        other => format!("{other:?}"),
    };
    cut(&mut text);
    text
}

/// A frame of a client.
pub(super) fn client_frame(frame: &ClientFrame) -> String {
    let mut text = match frame {
        ClientFrame::Send(send) => {
            format!(
                "Send {} {} to {} seq {}",
                number(&send.body),
                send.id,
                send.control.to,
                send.session_seq
            )
        }
        other => format!("{other:?}"),
    };
    cut(&mut text);
    text
}

/// A frame for a client.
pub(super) fn server_frame(frame: &ServerFrame) -> String {
    match frame {
        ServerFrame::Deliver { at, op } => format!("Deliver {at} {}", about(op)),
        other => short(other),
    }
}

/// What a client tells its application.
pub(super) fn client_event(event: &ClientEvent) -> String {
    match event {
        ClientEvent::Message(incoming) => format!(
            "gets {} {} at {}",
            number(&incoming.body),
            incoming.id,
            incoming.at
        ),
        other => short(other),
    }
}

/// An operation of a commit and what became of it.
pub(super) fn commit(op: &StoreOp, outcome: &Outcome) -> String {
    let op = match op {
        StoreOp::Append {
            shard,
            envelope,
            body,
            ..
        } => format!(
            "shard {shard} Append {} {} to {} ({:x}.{})",
            number(body),
            envelope.id,
            envelope.to,
            envelope.session.0,
            envelope.session_seq
        ),
        StoreOp::ApplyRemote {
            shard,
            origin,
            first,
            ops,
            ..
        } => {
            let ops: Vec<String> = ops.iter().map(about).collect();
            format!(
                "shard {shard} ApplyRemote {:016x} from {first}: {}",
                origin.0,
                ops.join(", ")
            )
        }
        other => format!("{other:?}"),
    };
    let mut text = format!("{op} => {outcome:?}");
    cut(&mut text);
    text
}

fn number(body: &[u8]) -> String {
    let raw = body.get(..8).and_then(|raw| raw.try_into().ok());
    raw.map(|raw| format!("#{} ", u64::from_be_bytes(raw)))
        .unwrap_or_default()
}

fn short(what: &impl Debug) -> String {
    let mut text = format!("{what:?}");
    cut(&mut text);
    text
}

fn cut(text: &mut String) {
    if let Some((at, _)) = text.char_indices().nth(MAX_LINE) {
        text.truncate(at);
        text.push_str(" ...");
    }
}
