//! Small logs made by hand, of which it is plain what they say; and logs with one thing wrong in them, which is found.

use proptest::prelude::*;

use super::messages::PhaseName;
use super::spread::{Awaited, Spread, percentile};
use super::*;
use crate::drill::log::{Shown, Stream};

const MS: Micros = 1000;

/// Three clients that prefer `eu`, and one that is pinned there; one is pinned in `us`.
fn clients() -> Vec<Client> {
    [
        ("ada", "eu", false),
        ("bob", "eu", false),
        ("cy", "us", true),
        ("dan", "eu", true),
        ("eve", "eu", false),
    ]
    .map(|(name, home, pinned)| Client {
        name: name.to_owned(),
        home: home.to_owned(),
        pinned,
    })
    .to_vec()
}

/// A log under way; times are milliseconds.
#[derive(Default)]
struct Story(Vec<Entry>);

impl Story {
    /// All clients connected where they are at home.
    fn connected() -> Self {
        let mut story = Self::default();
        for (number, client) in clients().iter().enumerate() {
            story.connect(0, number, &client.home);
        }
        story
    }

    fn add(&mut self, ms: u64, what: What) {
        self.0.push(Entry { at: ms * MS, what });
    }

    fn connect(&mut self, ms: u64, client: usize, region: &str) {
        self.add(
            ms,
            What::Connected {
                client,
                region: region.to_owned(),
                node: format!("{region}-1"),
            },
        );
    }

    fn disconnect(&mut self, ms: u64, client: usize) {
        let why = "timed out".to_owned();
        self.add(ms, What::Disconnected { client, why });
    }

    fn send(&mut self, ms: u64, number: u64, from: usize, to: usize) {
        self.add(ms, What::Sent { number, from, to });
    }

    fn accept(&mut self, ms: u64, number: u64) {
        self.add(
            ms,
            What::Accepted {
                number,
                geo: true,
                duplicate: false,
            },
        );
    }

    fn handle(&mut self, ms: u64, number: u64, client: usize) {
        self.add(
            ms,
            What::Handled {
                number,
                client,
                stream: None,
            },
        );
    }

    /// Sent, accepted after 10 ms and handled after 20.
    fn pass(&mut self, ms: u64, number: u64, from: usize, to: usize) {
        self.send(ms, number, from, to);
        self.accept(ms + 10, number);
        self.handle(ms + 20, number, to);
    }

    fn show(&mut self, ms: u64, watcher: usize, client: usize, status: Shown) {
        self.add(
            ms,
            What::Shown {
                watcher,
                client,
                status,
            },
        );
    }

    fn begin(&mut self, ms: u64, fault: usize) {
        let text = format!("fault {fault}");
        self.add(ms, What::Begins { fault, text });
    }

    fn end(&mut self, ms: u64, fault: usize) {
        self.add(ms, What::Ends { fault });
    }

    fn measure(mut self, faults: &[FaultSpan]) -> Measures {
        self.0.sort_by_key(|entry| entry.at);
        measure(&clients(), faults, &self.0)
    }
}

fn eu(fault: usize) -> FaultSpan {
    FaultSpan {
        fault,
        struck: vec!["eu".to_owned()],
        text: "eu is lost".to_owned(),
    }
}

#[test]
fn percentiles_are_times_that_were_measured() {
    let ten: Vec<Micros> = (1..=10).collect();
    assert_eq!(percentile(&ten, 50), Some(5));
    assert_eq!(percentile(&ten, 90), Some(9));
    assert_eq!(percentile(&ten, 91), Some(10));
    assert_eq!(percentile(&ten, 99), Some(10));
    assert_eq!(percentile(&[7], 1), Some(7));
    assert_eq!(percentile(&[], 99), None);
    assert_eq!(Spread::of(Vec::new()), None);
    let hundred = Spread::of((1..=100).rev().collect());
    let expected = Spread {
        count: 100,
        p50: 50,
        p90: 90,
        p99: 99,
        max: 100,
    };
    assert_eq!(hundred, Some(expected));
}

#[test]
fn who_never_arrives_makes_the_wait_unlimited() {
    let all = Awaited::of(&[Some(3), Some(9)]);
    assert_eq!((all.worst, all.missing, all.expected), (Some(9), 0, 2));
    let some = Awaited::of(&[Some(3), None]);
    assert_eq!((some.worst, some.missing, some.expected), (None, 1, 2));
    assert_eq!(some.spread.map(|spread| spread.max), Some(3));
    assert_eq!(Awaited::of(&[]), Awaited::default());
}

#[test]
fn rto_is_that_of_the_slowest_client_that_was_struck() {
    let mut story = Story::connected();
    // Sent before the fault: its acceptance shows nothing.
    story.send(9_990, 1, 0, 1);
    story.begin(10_000, 0);
    story.accept(10_001, 1);
    story.send(10_500, 2, 0, 1);
    story.accept(12_000, 2);
    story.send(11_000, 3, 1, 0);
    story.send(11_500, 4, 1, 0);
    // The later one is accepted first: the client is back.
    story.accept(14_000, 4);
    story.accept(14_500, 3);
    // Pinned: asked apart.
    story.send(10_100, 5, 3, 0);
    story.accept(31_000, 5);
    // Elsewhere, and later than all of them.
    story.send(10_200, 6, 2, 0);
    story.accept(19_000, 6);
    let measures = story.measure(&[eu(0)]);
    let recovery = &measures.faults[0].recovery;
    assert_eq!((recovery.clients, recovery.pinned, recovery.silent), (3, 1, 1));
    assert_eq!(recovery.rto.worst, Some(4_000 * MS));
    assert_eq!(recovery.rto_pinned.worst, Some(21_000 * MS));
    assert_eq!(recovery.rto.spread.map(|spread| spread.p50), Some(2_000 * MS));
    // The message that waited longest was sent at 11 s and answered at 14.5 s.
    assert_eq!(recovery.outage.worst, Some(3_500 * MS));
    assert_eq!(measures.rto, recovery.rto);
}

#[test]
fn a_client_that_works_at_first_and_is_cut_off_then_is_not_back_before_its_messages_are_answered() {
    let mut story = Story::connected();
    story.begin(10_000, 0);
    // A node that was told to stand still takes this one, and nothing more for eight seconds.
    story.pass(10_010, 1, 0, 1);
    story.send(10_300, 2, 0, 1);
    story.accept(18_300, 2);
    story.handle(18_310, 2, 1);
    let measures = story.measure(&[eu(0)]);
    assert_eq!(measures.rto.worst, Some(8_000 * MS));
}

#[test]
fn a_client_that_never_comes_back_is_not_a_silent_one() {
    let mut story = Story::connected();
    story.begin(10_000, 0);
    story.pass(10_100, 1, 0, 1);
    story.send(10_100, 2, 1, 0);
    // Eve sends nothing, and stays connected: nothing is known of her.
    story.pass(20_000, 3, 2, 0);
    let measures = story.measure(&[eu(0)]);
    let recovery = &measures.faults[0].recovery;
    assert_eq!((recovery.clients, recovery.silent), (3, 1));
    assert_eq!((recovery.rto.worst, recovery.rto.missing), (None, 1));
    assert_eq!((recovery.outage.worst, recovery.outage.missing), (None, 1));

    let mut story = Story::connected();
    story.begin(10_000, 0);
    for client in [0, 1, 4] {
        story.disconnect(10_500, client);
    }
    story.connect(11_000, 0, "us");
    story.pass(11_100, 1, 0, 2);
    let measures = story.measure(&[eu(0)]);
    // The two that have no session and send nothing for that reason never came back.
    assert_eq!(measures.rto.missing, 2);
}

#[test]
fn the_clients_of_a_region_are_those_whose_last_session_was_there() {
    let mut story = Story::connected();
    story.disconnect(1_000, 0);
    story.connect(1_100, 0, "us");
    story.disconnect(2_000, 2);
    story.connect(2_100, 2, "eu");
    // Eve never had one anywhere.
    story
        .0
        .retain(|entry| !matches!(entry.what, What::Connected { client: 4, .. }));
    // Bob is cut off when the fault begins; the fault is his as well.
    story.disconnect(9_000, 1);
    story.begin(10_000, 0);
    story.pass(10_100, 1, 2, 0);
    let measures = story.measure(&[eu(0)]);
    let recovery = &measures.faults[0].recovery;
    assert_eq!((recovery.clients, recovery.pinned), (2, 2));
    let all = FaultSpan {
        struck: Vec::new(),
        ..eu(0)
    };
    let mut story = Story::connected();
    story.begin(10_000, 0);
    let measures = story.measure(&[all]);
    let recovery = &measures.faults[0].recovery;
    assert_eq!((recovery.clients, recovery.pinned), (3, 2));
}

#[test]
fn the_phases_of_a_fault_follow_its_clients_sessions() {
    let mut story = Story::connected();
    for second in 0..30 {
        story.pass(second * 1_000 + 500, second, 1, 0);
    }
    story.begin(10_000, 0);
    story.disconnect(10_300, 0);
    story.disconnect(10_800, 1);
    // An attempt that fails is no session that ends.
    story.disconnect(10_900, 0);
    story.connect(11_000, 0, "us");
    story.connect(13_200, 1, "us");
    // Eve is moved: no time passes.
    story.connect(12_000, 4, "us");
    // Dan comes back when his region does, and what is for him waits: he is pinned.
    story.disconnect(10_400, 3);
    story.connect(25_100, 3, "eu");
    story.send(15_200, 101, 0, 3);
    story.handle(25_200, 101, 3);
    // Slow until the second from 15 s on.
    story.send(14_100, 100, 0, 1);
    story.handle(14_141, 100, 1);
    story.end(25_000, 0);
    let measures = story.measure(&[eu(0)]);
    let recovery = &measures.faults[0].recovery;
    assert_eq!(recovery.detect, Some(300 * MS));
    assert_eq!(recovery.drain, Some(1_700 * MS));
    assert_eq!(recovery.decide, Some(700 * MS));
    let reconnect = recovery.reconnect.spread.expect("they reconnect");
    assert_eq!(
        (reconnect.count, reconnect.p50, reconnect.max),
        (3, 700 * MS, 2_400 * MS)
    );
    assert_eq!(recovery.reconnected, Some(3_200 * MS));
    assert_eq!(recovery.steady_at, Some(40 * MS));
    assert_eq!(recovery.steady, Some(1_800 * MS));
}

#[test]
fn the_steady_phase_is_reached_at_twice_and_not_beyond() {
    let story = |took: u64| {
        let mut story = Story::connected();
        story.pass(1_000, 1, 0, 1);
        story.begin(2_000, 0);
        story.send(2_500, 2, 0, 1);
        story.handle(2_500 + took, 2, 1);
        story.send(3_500, 3, 0, 1);
        story.end(5_000, 0);
        story.measure(&[eu(0)])
    };
    assert_eq!(story(40).faults[0].recovery.steady, Some(0));
    // The message of the next second is never handled: that is for ever.
    assert_eq!(story(41).faults[0].recovery.steady, None);
}

#[test]
fn what_was_accepted_and_never_handled_is_lost() {
    let mut story = Story::connected();
    story.send(100, 1, 0, 1);
    story.accept(200, 1);
    story.begin(1_000, 0);
    story.end(2_000, 0);
    story.send(2_500, 2, 0, 1);
    story.accept(2_600, 2);
    story.begin(3_000, 1);
    story.send(3_100, 3, 0, 1);
    story.accept(3_200, 3);
    story.end(4_000, 1);
    story.send(4_100, 4, 0, 1);
    story.accept(4_200, 4);
    // Refused, unanswered, and handled though unanswered: none of them is lost.
    story.send(4_300, 5, 0, 1);
    story.add(
        4_400,
        What::Rejected {
            number: 5,
            why: "no".to_owned(),
        },
    );
    story.send(4_500, 6, 0, 1);
    story.send(4_600, 7, 0, 1);
    story.handle(4_700, 7, 1);
    let measures = story.measure(&[eu(0), eu(1)]);
    assert_eq!(measures.lost.numbers, [1, 2, 3, 4]);
    // The third was sent while the fault was under way: no point in time before it explains its loss.
    assert_eq!(measures.rpo, None);
    assert_eq!(measures.faults[0].lost.numbers, [1]);
    assert_eq!(measures.faults[0].rpo, Some(800 * MS));
    // Before the second fault, during it, and after the last: there is no other to put it down to.
    assert_eq!(measures.faults[1].lost.numbers, [2, 3, 4]);
    assert_eq!(measures.faults[1].rpo, None);
    assert_eq!(measures.never_answered.numbers, [6, 7]);
    assert_eq!(measures.counts.rejected, 1);
    // What is lost is counted as that alone.
    assert_eq!(measures.convergence, Some(0));
    assert_eq!(measures.faults[0].settled, Some(0));
}

#[test]
fn rpo_is_the_age_of_the_oldest_lost_message_at_the_fault() {
    let story = |sent: u64, accepted: u64| {
        let mut story = Story::connected();
        story.send(100, 1, 0, 1);
        story.accept(200, 1);
        story.send(300, 2, 0, 1);
        story.accept(400, 2);
        story.handle(450, 2, 1);
        story.begin(1_000, 0);
        story.end(2_000, 0);
        story.begin(3_000, 1);
        story.send(sent, 3, 0, 1);
        story.accept(accepted, 3);
        story.end(5_000, 1);
        story.0.sort_by_key(|entry| entry.at);
        story.measure(&[eu(0), eu(1), eu(7)])
    };
    let rpo = |measures: Measures| {
        let of: Vec<_> = measures.faults.iter().map(|fault| fault.rpo).collect();
        (measures.rpo, of)
    };
    let ms = |ms: u64| Some(ms * MS);
    // The last fault of the plan never begins, and explains nothing.
    assert_eq!(rpo(story(2_100, 2_200)), (ms(800), vec![ms(800), ms(800), None]));
    assert_eq!(rpo(story(2_100, 2_100)), (ms(900), vec![ms(800), ms(900), None]));
    // Sent before, and heard of after the fault had begun: accepted around its beginning.
    assert_eq!(rpo(story(2_999, 3_001)), (ms(800), vec![ms(800), ms(0), None]));
    assert_eq!(rpo(story(3_000, 3_001)), (None, vec![ms(800), None, None]));
    let mut none_lost = Story::connected();
    none_lost.pass(100, 1, 0, 1);
    none_lost.begin(1_000, 0);
    assert_eq!(rpo(none_lost.measure(&[eu(0)])), (ms(0), vec![ms(0)]));
}

#[test]
fn late_is_not_lost() {
    let story = |handled| {
        let mut story = Story::connected();
        story.send(100, 1, 0, 1);
        story.accept(200, 1);
        story.begin(1_000, 0);
        story.end(5_000, 0);
        story.handle(handled, 1, 1);
        story.measure(&[eu(0)])
    };
    let late = story(5_001);
    assert_eq!(late.faults[0].late.count, 1);
    assert_eq!(late.faults[0].late.longest, 4_801 * MS);
    assert_eq!(late.lost.count, 0);
    assert_eq!(story(5_000).faults[0].late.count, 0);
}

#[test]
fn duplicates_disorder_and_strays() {
    let mut story = Story::connected();
    for number in [1, 2, 3] {
        story.send(number, number, 0, 1);
        story.accept(10 + number, number);
    }
    story.add(
        20,
        What::Accepted {
            number: 3,
            geo: false,
            duplicate: true,
        },
    );
    story.send(4, 4, 2, 1);
    for (ms, number) in [(100, 4), (101, 3), (102, 1), (103, 2), (104, 1), (105, 1)] {
        story.handle(ms, number, 1);
    }
    // For another; never sent; never sent, and accepted.
    story.handle(200, 2, 0);
    story.handle(201, 77, 1);
    story.accept(202, 78);
    let measures = story.measure(&[]);
    assert_eq!(measures.duplicates.numbers, [1, 1]);
    // 1 and 2 come after 3; handling 1 again is no disorder, and those of another sender have an order of their own.
    assert_eq!(measures.disorder.numbers, [1, 2]);
    assert_eq!(measures.stray.numbers, [2, 77, 78]);
    assert_eq!(measures.counts.recognised, 1);
    assert_eq!(measures.counts.geo, 3);
}

#[test]
fn between_regions_and_between_sessions_messages_may_overtake_each_other() {
    let mut story = Story::connected();
    let streams = [(1, 1), (1, 1), (1, 2), (2, 2), (2, 2)];
    for number in 1..=5 {
        story.send(number, number, 0, 1);
        story.accept(10 + number, number);
    }
    for (ms, number) in [(100, 3), (101, 2), (102, 1), (103, 5), (104, 4)] {
        let (session, origin) = streams[number as usize - 1];
        let stream = Some(Stream { session, origin });
        story.add(
            ms,
            What::Handled {
                number,
                client: 1,
                stream,
            },
        );
    }
    let measures = story.measure(&[]);
    // 2 comes after 3, which another region accepted; 1 after 2 of the same, and 4 after 5.
    assert_eq!(measures.overtaken.numbers, [2]);
    assert_eq!(measures.disorder.numbers, [1, 4]);
}

#[test]
fn latencies_belong_to_the_phase_in_which_messages_were_sent() {
    let mut story = Story::connected();
    story.pass(500, 1, 0, 1);
    story.begin(1_000, 0);
    story.send(1_000, 2, 0, 1);
    story.accept(6_000, 2);
    story.handle(7_000, 2, 1);
    story.end(5_000, 0);
    story.pass(5_000, 3, 0, 1);
    story.pass(8_000, 4, 0, 1);
    let measures = story.measure(&[eu(0)]);
    let of = |name| {
        let phase = measures.phases.iter().find(|phase| phase.name == name);
        let phase = phase.expect("the phase is there");
        (phase.sent, phase.handled.map(|handled| handled.max))
    };
    assert_eq!(of(PhaseName::Before), (1, Some(20 * MS)));
    assert_eq!(of(PhaseName::During(0)), (1, Some(6_000 * MS)));
    assert_eq!(of(PhaseName::After(0)), (2, Some(20 * MS)));
    assert_eq!(of(PhaseName::Total), (4, Some(6_000 * MS)));
}

#[test]
fn watchers_elsewhere_are_told_of_pinned_clients() {
    let story = |told: Option<u64>, back: Option<u64>| {
        let mut story = Story::connected();
        // Of Ada, who is not pinned, and to Bob, who is struck himself: nobody waits for that.
        story.show(10, 2, 0, Shown::Online);
        story.show(10, 1, 3, Shown::Online);
        story.show(10, 2, 3, Shown::Online);
        story.begin(1_000, 0);
        story.disconnect(1_100, 3);
        if let Some(told) = told {
            story.show(told, 2, 3, Shown::Unreachable);
        }
        story.end(5_000, 0);
        story.connect(5_100, 3, "eu");
        if let Some(back) = back {
            story.show(back, 2, 3, Shown::Online);
        }
        story.add(20_000, What::LoadEnds);
        story.measure(&[eu(0)])
    };
    let measures = story(Some(3_000), Some(5_400));
    assert_eq!(measures.unreachable.expected, 1);
    assert_eq!(measures.unreachable.worst, Some(2_000 * MS));
    assert_eq!(measures.back.worst, Some(400 * MS));
    // Back before the end is back at once.
    assert_eq!(story(Some(3_000), Some(4_000)).back.worst, Some(0));
    let never = story(Some(3_000), None);
    assert_eq!((never.back.worst, never.back.missing), (None, 1));
    let unseen = story(None, None);
    assert_eq!((unseen.unreachable.worst, unseen.unreachable.missing), (None, 1));
    assert_eq!(unseen.back.expected, 0);
}

#[test]
fn ghosts_and_false_offlines_have_an_age() {
    let mut story = Story::connected();
    story.show(100, 2, 0, Shown::Online);
    story.disconnect(1_000, 0);
    // A ghost of 3 s; then rightly offline for 1 s; then wrongly for 2 s.
    story.show(4_000, 2, 0, Shown::Offline);
    story.connect(5_000, 0, "us");
    story.show(7_000, 2, 0, Shown::Unreachable);
    story.show(7_500, 2, 0, Shown::Online);
    // Another session in its place is no absence.
    story.connect(8_000, 0, "eu");
    story.add(9_000, What::LoadEnds);
    let measures = story.measure(&[]);
    let presence = &measures.presence;
    assert_eq!((presence.ghosts.count, presence.ghosts.longest), (1, 3_000 * MS));
    assert_eq!(
        (presence.false_offline.count, presence.false_offline.longest),
        (1, 2_000 * MS)
    );
    assert_eq!(presence.false_unreachable.longest, 500 * MS);
    let worst = presence.ghosts.worst.expect("there is a ghost");
    assert_eq!((worst.watcher, worst.client, worst.at), (2, 0, 1_000 * MS));
}

#[test]
fn a_watcher_without_a_session_is_not_lied_to() {
    let mut story = Story::connected();
    story.show(100, 2, 0, Shown::Online);
    story.disconnect(1_000, 2);
    story.disconnect(2_000, 0);
    story.connect(5_000, 2, "us");
    story.show(5_250, 2, 0, Shown::Offline);
    story.add(9_000, What::LoadEnds);
    let ghosts = story.measure(&[]).presence.ghosts;
    assert_eq!((ghosts.count, ghosts.longest), (1, 250 * MS));
}

#[test]
fn convergence_is_when_nothing_is_open_any_more() {
    let story = |handled: u64, shown: u64| {
        let mut story = Story::connected();
        story.show(10, 2, 0, Shown::Online);
        story.begin(1_000, 0);
        story.disconnect(1_100, 0);
        story.send(2_000, 1, 1, 0);
        story.accept(2_100, 1);
        story.end(3_000, 0);
        story.add(4_000, What::LoadEnds);
        story.handle(handled, 1, 0);
        story.show(shown, 2, 0, Shown::Offline);
        story.add(
            20_000,
            What::Begins {
                fault: 9,
                text: "the end".to_owned(),
            },
        );
        story.measure(&[eu(0)])
    };
    assert_eq!(story(3_500, 1_200).convergence, Some(0));
    assert_eq!(story(4_500, 1_200).convergence, Some(500 * MS));
    assert_eq!(story(4_500, 6_000).convergence, Some(2_000 * MS));
    assert_eq!(story(3_500, 6_000).faults[0].settled, Some(3_000 * MS));
    let mut open = Story::connected();
    open.show(10, 2, 0, Shown::Online);
    open.add(4_000, What::LoadEnds);
    open.disconnect(5_000, 0);
    assert_eq!(open.measure(&[]).convergence, None);
}

#[test]
fn what_is_still_open_is_told() {
    let mut story = Story::connected();
    story.show(10, 2, 0, Shown::Online);
    story.pass(100, 1, 0, 1);
    assert_eq!(open(&clients(), &story.0), Open::default());
    story.send(200, 2, 0, 1);
    story.send(201, 3, 0, 1);
    story.accept(202, 3);
    story.disconnect(203, 0);
    let expected = Open {
        unanswered: 1,
        unhandled: 1,
        wrong: 1,
    };
    assert_eq!(open(&clients(), &story.0), expected);
}

#[test]
fn what_follows_a_fault_is_put_down_to_it_until_something_else_begins() {
    let mut story = Story::connected();
    story.begin(1_000, 0);
    story.end(2_000, 0);
    story.begin(3_000, 1);
    story.disconnect(3_500, 0);
    story.end(5_000, 1);
    let measures = story.measure(&[eu(0), eu(1), eu(2)]);
    assert_eq!(measures.faults[0].recovery.detect, None);
    assert_eq!(measures.faults[1].recovery.detect, Some(500 * MS));
    assert_eq!(measures.faults[2].begins, None);
}

#[test]
fn an_empty_log_says_nothing() {
    let measures = measure(&clients(), &[eu(0)], &[]);
    assert_eq!(measures.counts.sent, 0);
    assert_eq!(measures.convergence, None);
    assert_eq!(measures.rto.expected, 0);
}

/// A log in which all is well: messages between few clients, each handled in the order of sending.
fn sound() -> impl Strategy<Value = Vec<Entry>> {
    let message = (0..4_usize, 0..4_usize, 1..50_u64, 0..2_000_u64, 0..2_000_u64);
    proptest::collection::vec(message, 2..60).prop_map(|messages| {
        let mut story = Story::connected();
        let mut now = 0;
        let mut last = std::collections::BTreeMap::new();
        for (number, (from, to, gap, accepted, handled)) in messages.into_iter().enumerate() {
            now += gap;
            // What was sent to one recipient by one sender is handled in this order.
            let handled = (now + 1 + handled).max(last.get(&(from, to)).copied().unwrap_or(0) + 1);
            last.insert((from, to), handled);
            story.send(now, number as u64, from, to);
            story.accept(now + accepted, number as u64);
            story.handle(handled, number as u64, to);
        }
        story.add(10_000, What::LoadEnds);
        story.0.sort_by_key(|entry| entry.at);
        story.0
    })
}

/// The places of the handlings, each with its message.
fn handlings(log: &[Entry]) -> Vec<(usize, u64)> {
    let places = log.iter().enumerate();
    places
        .filter_map(|(place, entry)| match entry.what {
            What::Handled { number, .. } => Some((place, number)),
            _ => None,
        })
        .collect()
}

proptest! {
    #[test]
    fn a_sound_log_shows_nothing_wrong(log in sound()) {
        let measures = measure(&clients(), &[], &log);
        prop_assert_eq!(measures.lost.count, 0);
        prop_assert_eq!(measures.rpo, Some(0));
        prop_assert_eq!(measures.duplicates.count, 0);
        prop_assert_eq!(measures.disorder.count, 0);
        prop_assert_eq!(measures.never_answered.count, 0);
        prop_assert_eq!(measures.stray.count, 0);
        prop_assert_eq!(measures.convergence, Some(0));
    }

    #[test]
    fn a_lost_message_is_found(mut log in sound(), which: prop::sample::Index) {
        let all = handlings(&log);
        let (place, number) = all[which.index(all.len())];
        log.remove(place);
        let measures = measure(&clients(), &[], &log);
        prop_assert_eq!(measures.lost.numbers, [number]);
        prop_assert_eq!(measures.rpo, None);
    }

    #[test]
    fn a_doubled_message_is_found(mut log in sound(), which: prop::sample::Index, later: prop::sample::Index) {
        let all = handlings(&log);
        let (place, number) = all[which.index(all.len())];
        let mut again = log[place].clone();
        let to = place + 1 + later.index(log.len() - place);
        again.at = log[to - 1].at;
        log.insert(to, again);
        let measures = measure(&clients(), &[], &log);
        prop_assert_eq!(measures.duplicates.numbers, [number]);
        prop_assert_eq!(measures.lost.count, 0);
        prop_assert_eq!(measures.disorder.count, 0);
    }

    #[test]
    fn swapped_messages_are_found(mut log in sound(), which: prop::sample::Index) {
        let measures = measure(&clients(), &[], &log);
        prop_assert_eq!(measures.disorder.count, 0);
        let pair = |number: u64| log.iter().find_map(|entry| match entry.what {
            What::Sent { number: sent, from, to } if sent == number => Some((from, to)),
            _ => None,
        });
        let all = handlings(&log);
        let of_one_pair: Vec<(usize, usize)> = all
            .iter()
            .flat_map(|one| all.iter().map(move |other| (one, other)))
            .filter(|(one, other)| one.0 < other.0 && pair(one.1) == pair(other.1))
            .map(|(one, other)| (one.0, other.0))
            .collect();
        prop_assume!(!of_one_pair.is_empty());
        let (one, other) = of_one_pair[which.index(of_one_pair.len())];
        let earlier = log[one].what.clone();
        log[one].what = log[other].what.clone();
        log[other].what = earlier;
        let measures = measure(&clients(), &[], &log);
        prop_assert!(measures.disorder.count >= 1);
        prop_assert_eq!(measures.lost.count, 0);
        prop_assert_eq!(measures.duplicates.count, 0);
    }
}
