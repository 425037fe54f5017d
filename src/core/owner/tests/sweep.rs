//! What the owner finds to be due, and asks the store for.

use super::*;
use crate::core::expire::{DeviceLife, EXPIRY_MARGIN_MS};
use crate::core::op::DeviceChange;
use crate::core::storage::UserTimes;
use crate::core::time::Clocks;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
const AFTER: u64 = 30 * DAY_MS;

fn clocks(agree: bool) -> Clocks {
    Clocks {
        latest_ms: NOW.wall_ms,
        agree,
    }
}

fn at(seconds: u64) -> Now {
    Now {
        mono: Mono::default() + ms(seconds * 1000),
        wall_ms: NOW.wall_ms + seconds * 1000,
    }
}

fn times(expires_ms: u64, devices: &[(&str, u64, bool)]) -> UserTimes {
    let life = |seen_ms, pending: bool| DeviceLife {
        seen_ms,
        expiry: pending.then_some(Coord {
            origin: ORIGIN,
            seq: 3,
        }),
        objected_ms: 0,
    };
    let devices = devices.iter();
    let devices = devices.map(|(name, seen, pending)| (DeviceId::new(name).unwrap(), life(*seen, *pending)));
    UserTimes {
        user: UserId::new("bob").unwrap(),
        expires_ms,
        devices: devices.collect(),
    }
}

/// What is asked from one moment on for some seconds; each page of users is answered with these.
fn asked(script: &mut Script, from: u64, seconds: u64, users: &[UserTimes]) -> (usize, Vec<StoreOp>) {
    let (mut pages, mut ops) = (0, Vec::new());
    for step in 0..seconds * 20 {
        let mut now = at(from);
        now.mono = now.mono + ms(50 * step);
        now.wall_ms += 50 * step;
        script.owner.handle_timeout(now);
        while let Some(output) = script.owner.poll_output() {
            match output {
                OwnerOutput::Read(question @ Question::Sweep(..)) => {
                    pages += 1;
                    let reply = ReadReply::Users(users.to_vec());
                    script.owner.handle_answer(question, Ok(reply), now);
                }
                OwnerOutput::Commit(
                    op @ (StoreOp::Expire { .. } | StoreOp::ExpireDevice { .. } | StoreOp::Register { .. }),
                    tag,
                ) => {
                    let outcome = match &op {
                        StoreOp::Expire { .. } => Outcome::Expired { next: None },
                        _ => Outcome::Done { more: false },
                    };
                    script.owner.handle_outcome(tag, Ok(outcome), now);
                    ops.push(op);
                }
                _ => {}
            }
        }
    }
    (pages, ops)
}

fn devices(ops: &[StoreOp]) -> Vec<String> {
    let name = |op: &StoreOp| match op {
        StoreOp::ExpireDevice { device, .. } => format!("expire {device}"),
        StoreOp::Register { device, .. } => format!("register {device}"),
        StoreOp::Expire { .. } => "messages".to_owned(),
        other => panic!("{other:?}"),
    };
    ops.iter().map(name).collect()
}

#[test]
fn a_round_begins_with_the_shard_and_when_something_is_due() {
    let mut script = Script::new();
    script.owner.handle_clocks(clocks(true), NOW);
    let due = at(0).wall_ms + 1000 * 1000;
    let user = times(due - EXPIRY_MARGIN_MS, &[]);
    // Nothing is known yet, so all is looked at once; nothing is due.
    assert_eq!(asked(&mut script, 0, 5, std::slice::from_ref(&user)), (1, vec![]));
    assert_eq!(asked(&mut script, 900, 5, std::slice::from_ref(&user)).0, 0);
    let (pages, ops) = asked(&mut script, 1000, 10, std::slice::from_ref(&user));
    assert_eq!((pages, devices(&ops)), (1, vec!["messages".to_owned()]));
    // It is still there, as the log still needs it: looked at again, but not at once.
    let (pages, ops) = asked(&mut script, 1010, 50, &[user]);
    assert_eq!((pages, ops.len()), (1, 1));
    assert_eq!(asked(&mut script, 1061, 60, &[times(0, &[])]).0, 1);
    // What is logged later is known without a look.
    let mut op = message(5);
    for expires_ms in [due + 500_000 - EXPIRY_MARGIN_MS, due + 900_000] {
        op = timed(5, expires_ms);
        script.owner.shards.get_mut(&SHARD).unwrap().sweep.appended(&op);
    }
    assert_ne!(op.expires_ms(), 0);
    assert_eq!(asked(&mut script, 1490, 5, &[]).0, 0);
    assert_eq!(asked(&mut script, 1500, 5, &[]).0, 1);
}

#[test]
fn devices_expire_unless_they_are_attached() {
    let mut script = Script::new();
    script.owner.handle_clocks(clocks(true), NOW);
    let pages = script.attach(1);
    assert_eq!(pages.len(), 1);
    let long_ago = NOW.wall_ms - AFTER - EXPIRY_MARGIN_MS;
    let user = times(
        0,
        &[
            ("phone", long_ago, false),
            ("old", long_ago, false),
            ("unknown", 0, false),
            ("pending", NOW.wall_ms, true),
            ("fresh", long_ago + 10_000, false),
        ],
    );
    let (pages, ops) = asked(&mut script, 0, 2, std::slice::from_ref(&user));
    assert_eq!(pages, 1);
    let all = ["register phone", "expire old", "expire unknown", "expire pending"];
    assert_eq!(devices(&ops), all);
    // Where clocks disagree nothing begins to expire; what is attached is heard of, and what was decided takes effect.
    let mut script = Script::new();
    script.owner.handle_clocks(clocks(false), NOW);
    script.attach(1);
    let (_, ops) = asked(&mut script, 0, 2, &[user]);
    assert_eq!(devices(&ops), ["register phone", "expire pending"]);
}

#[test]
fn a_device_that_is_attached_is_named_where_it_is_to_expire() {
    let mut script = Script::new();
    script.attach(1);
    let expire = |name: &str| {
        let op = Op::Device {
            user: UserId::new("bob").unwrap(),
            device: DeviceId::new(name).unwrap(),
            change: DeviceChange::Expire { epoch: 1 },
        };
        LoggedOp::encode(&op, Hlc::default())
    };
    let ops = [message(1), expire("phone"), expire("tablet")];
    let named = script.owner.attached_among(SHARD, &ops);
    assert_eq!(named.len(), 1);
    assert_eq!(named[0].1.as_str(), "phone");
    assert!(script.owner.attached_among(ShardId(7), &ops).is_empty());
}
