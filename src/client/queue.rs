//! Events that wait for the application. No class of them grows without bound: messages by the server's window, answers
//! by the outbox, presence by the watched users (the latest of each), notices by [`MAX_NOTICES`]. So the driver never has
//! to stop reading for an application that does not look.

use std::collections::{BTreeMap, VecDeque};

use super::event::ClientEvent;
use crate::core::ids::UserId;
use crate::core::wire::PresenceEvent;

/// Connects, disconnects and the like that wait; the oldest are dropped.
const MAX_NOTICES: usize = 64;

#[derive(Debug)]
enum Item {
    Event(ClientEvent),
    /// The event is in `presence`.
    Presence(UserId),
}

#[derive(Debug, Default)]
pub(super) struct EventQueue {
    items: VecDeque<Item>,
    presence: BTreeMap<UserId, PresenceEvent>,
    answers: usize,
    notices: usize,
}

impl EventQueue {
    pub(super) fn push(&mut self, event: ClientEvent) {
        match &event {
            ClientEvent::Presence(presence) => {
                let user = presence.user.clone();
                if self.presence.insert(user.clone(), presence.clone()).is_none() {
                    self.items.push_back(Item::Presence(user));
                }
                return;
            }
            ClientEvent::Accepted { .. } | ClientEvent::Rejected { .. } => self.answers += 1,
            _ if is_notice(&event) => {
                self.notices += 1;
                if self.notices > MAX_NOTICES {
                    let oldest = |item: &Item| matches!(item, Item::Event(event) if is_notice(event));
                    if let Some(at) = self.items.iter().position(oldest) {
                        self.items.remove(at);
                        self.notices -= 1;
                    }
                }
            }
            _ => {}
        }
        self.items.push_back(Item::Event(event));
    }

    pub(super) fn pop(&mut self) -> Option<ClientEvent> {
        let event = match self.items.pop_front()? {
            Item::Event(event) => event,
            Item::Presence(user) => {
                let event = self.presence.remove(&user);
                ClientEvent::Presence(event.expect("each item has its event"))
            }
        };
        if is_notice(&event) {
            self.notices -= 1;
        }
        if is_answer(&event) {
            self.answers -= 1;
        }
        Some(event)
    }

    /// Answers that were not taken.
    pub(super) fn answers(&self) -> usize {
        self.answers
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

fn is_answer(event: &ClientEvent) -> bool {
    matches!(event, ClientEvent::Accepted { .. } | ClientEvent::Rejected { .. })
}

fn is_notice(event: &ClientEvent) -> bool {
    matches!(
        event,
        ClientEvent::Connected { .. }
            | ClientEvent::Disconnected { .. }
            | ClientEvent::TokenNeeded
            | ClientEvent::TooManyWatches { .. }
            | ClientEvent::StateNotSaved(_)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::event::CloseCause;
    use crate::core::wire::Status;

    fn presence(user: &str, since_ms: u64) -> ClientEvent {
        ClientEvent::Presence(PresenceEvent {
            user: UserId::new(user).unwrap(),
            status: Status::Online,
            text: String::new(),
            since_ms,
            region: None,
            unreachable_since_ms: None,
            devices: 1,
        })
    }

    #[test]
    fn presence_is_the_latest_and_notices_are_bounded() {
        let mut queue = EventQueue::default();
        queue.push(presence("a", 1));
        queue.push(presence("b", 1));
        queue.push(presence("a", 2));
        let notice = |limit| ClientEvent::TooManyWatches { wanted: 0, limit };
        for n in 0..MAX_NOTICES + 3 {
            queue.push(notice(n));
        }
        queue.push(ClientEvent::Closed(CloseCause::Asked));
        assert_eq!(queue.pop(), Some(presence("a", 2)));
        assert_eq!(queue.pop(), Some(presence("b", 1)));
        for n in 3..MAX_NOTICES + 3 {
            assert_eq!(queue.pop(), Some(notice(n)));
        }
        assert_eq!(queue.pop(), Some(ClientEvent::Closed(CloseCause::Asked)));
        assert!(queue.is_empty() && queue.pop().is_none());
        assert_eq!((queue.notices, queue.presence.len()), (0, 0));
    }
}
