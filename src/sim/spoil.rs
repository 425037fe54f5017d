//! The deliberate defects that live in messages between partitions.

use super::defect::Defect;
use super::world::{Stage, World};
use crate::core::msg::{Message, ToEdge, ToOwner, ToSubscriber};

impl World {
    /// On a way on which changes of presence are lost the message arrives, and what it said does not.
    pub(super) fn lose_presence(&self, from: usize, to: usize, message: &mut Message) {
        if let Message::ToSubscriber {
            body: ToSubscriber::Presence(records),
            ..
        } = message
            && self.wrong.unheard(from, to)
        {
            records.clear();
        }
    }

    /// What becomes of a message under the defect of this run; `None` where it disappears.
    pub(super) fn spoil(&mut self, mut message: Message) -> Option<Message> {
        match (self.defect, &mut message) {
            (
                Some(Defect::DeliverLost),
                Message::ToEdge {
                    body: ToEdge::Deliver(items),
                    ..
                },
            ) => {
                if self.rng.chance(20) {
                    items.remove(0);
                }
                (!items.is_empty()).then_some(message)
            }
            (
                Some(Defect::DepositLost),
                Message::ToOwner {
                    body: ToOwner::Deposit(items),
                    ..
                },
            ) => {
                if self.rng.chance(20) {
                    items.remove(0);
                }
                (!items.is_empty()).then_some(message)
            }
            (
                Some(Defect::DepositsSwapped),
                Message::ToOwner {
                    body: ToOwner::Deposit(items),
                    ..
                },
            ) => {
                let twins = (1..items.len()).find(|at| {
                    let (a, b) = (&items[at - 1].envelope, &items[*at].envelope);
                    a.session == b.session && a.to == b.to
                });
                if let Some(at) = twins {
                    items.swap(at - 1, at);
                }
                Some(message)
            }
            (
                Some(Defect::OperationGarbled),
                Message::ToSubscriber {
                    body: ToSubscriber::Ops(runs),
                    ..
                },
            ) => {
                let op = runs.iter_mut().flat_map(|run| run.ops.last_mut()).next_back();
                if let Some(op) = op.filter(|op| op.last() == Some(&b'.')) {
                    let mut raw = op.to_vec();
                    if let Some(last) = raw.last_mut() {
                        *last = b'!';
                    }
                    *op = raw.into();
                }
                Some(message)
            }
            (
                Some(Defect::TerminalDropped),
                Message::ToSubscriber {
                    body: ToSubscriber::Presence(records) | ToSubscriber::PresenceRepair(records),
                    ..
                },
            ) => {
                records.retain(|(_, entry)| !entry.version().is_terminal());
                Some(message)
            }
            (
                Some(late @ (Defect::TerminalLate | Defect::OnlineLate)),
                Message::ToSubscriber {
                    body: ToSubscriber::Presence(records) | ToSubscriber::PresenceRepair(records),
                    ..
                },
            ) => {
                if self.stage == Stage::Work {
                    let told = late == Defect::OnlineLate;
                    records.retain(|(_, entry)| entry.version().is_terminal() == told);
                }
                Some(message)
            }
            _ => Some(message),
        }
    }
}
