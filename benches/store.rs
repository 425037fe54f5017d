//! Group commits of the embedded store on real files: `cargo bench --bench store [-- SECONDS]`.
//!
//! Two workloads of 100-byte messages, 1024 a commit, over 20,000 users and all shards: `append` only adds them, for
//! users who are away; `loop` has every message acknowledged, confirmed and trimmed, as online traffic is. CPU is that
//! of the store thread and of the whole process (fjall's worker too).

use std::time::{Duration, Instant};

use iris::core::commit::{Outcome, StoreOp};
use iris::core::ids::{DeviceId, Epoch, MessageId, Origin, RegionId, SessionId, ShardId, Sharding, UserId};
use iris::core::op::Envelope;
use iris::core::state::{StoreIdentity, StoreLimits};
use iris::store::embedded::{Options, folder};
use iris::store::engine::Engine;

const USERS: usize = 20_000;
const BATCH: u64 = 1024;
const T0: u64 = 1_700_000_000_000;
/// Commits between two rounds of confirming and trimming every shard: about a second's worth.
const TRIM_EVERY: u64 = 100;

fn main() {
    // `cargo bench` passes its own flags; a number among them is ours.
    let seconds = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(5);
    let limit = Duration::from_secs(seconds);
    run("append", limit, false);
    run("loop", limit, true);
}

fn run(name: &str, limit: Duration, online: bool) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let region = RegionId::new("bench").expect("a name");
    let sharding = Sharding { count: 1024, seed: 1 };
    let identity = StoreIdentity {
        cluster: 1,
        region: region.clone(),
        origin: Origin(1),
        holders: [region].into(),
        sharding,
        limits: StoreLimits::default(),
        joining: false,
    };
    let mut engine = folder::create(folder.path(), identity, Options::default()).expect("a store");
    let users: Vec<UserId> = (0..USERS)
        .map(|n| UserId::new(&format!("user-{n}")).expect("an id"))
        .collect();
    let device = DeviceId::new("phone").expect("an id");
    let bumps = (0..sharding.count).map(|shard| StoreOp::Bump {
        shard: ShardId(shard),
    });
    engine.commit(bumps.collect(), T0).expect("a commit");
    let epoch = Epoch(1);
    if online {
        let registers = users.iter().map(|user| StoreOp::Register {
            shard: sharding.of_user(user),
            epoch,
            user: user.clone(),
            device: device.clone(),
            claim: Default::default(),
        });
        engine.commit(registers.collect(), T0).expect("a commit");
    }
    let body = bytes::Bytes::from(vec![7; 100]);

    let (began, thread, process) = (Instant::now(), thread_cpu(), process_cpu());
    let (mut sent, mut round, mut worst) = (0u64, 0u64, Duration::ZERO);
    let mut acked: Vec<StoreOp> = Vec::new();
    let mut committing = Duration::ZERO;
    while began.elapsed() < limit {
        let now = T0 + began.elapsed().as_millis() as u64;
        let mut ops: Vec<StoreOp> = std::mem::take(&mut acked);
        let acks = ops.len();
        for n in sent..sent + BATCH {
            let to = users[(n.wrapping_mul(0x9e37_79b9) % USERS as u64) as usize].clone();
            let from = users[(n % 100) as usize].clone();
            let mut random = [0; 10];
            random[2..].copy_from_slice(&n.to_be_bytes());
            ops.push(StoreOp::Append {
                shard: sharding.of_user(&to),
                epoch,
                envelope: Box::new(Envelope {
                    to,
                    from,
                    from_device: device.clone(),
                    connect_epoch: 1,
                    session: SessionId(n % 100),
                    session_seq: n,
                    id: MessageId::v7(now, random),
                    kind: 1,
                    expires_ms: 0,
                    trace: Vec::new(),
                }),
                body: body.clone(),
                seen_ms: 0,
                known_only: false,
            });
        }
        sent += BATCH;
        if online && round.is_multiple_of(TRIM_EVERY) {
            for shard in (0..sharding.count).map(ShardId) {
                ops.push(StoreOp::Confirm { shard, epoch });
                ops.push(StoreOp::Trim { shard, epoch });
            }
        }
        round += 1;
        let start = Instant::now();
        let committed = engine.commit(ops, now).expect("a commit");
        let took = start.elapsed();
        committing += took;
        worst = worst.max(took);
        if online {
            // Each recipient acknowledges what it got; several messages of one user share a cursor.
            let mut cursors = std::collections::BTreeMap::new();
            for (outcome, logged) in committed.outcomes[acks..].iter().zip(&committed.logged) {
                assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
                if let Ok(envelope) = logged.entry.op.envelope() {
                    cursors.insert(envelope.to, logged.coord());
                }
            }
            acked.extend(cursors.into_iter().map(|(user, at)| StoreOp::Cursor {
                shard: sharding.of_user(&user),
                epoch,
                user,
                device: device.clone(),
                cursor: [(at.origin, at.seq)].into_iter().collect(),
            }));
        }
    }
    let wall = began.elapsed();
    let (thread, process) = (thread_cpu() - thread, process_cpu() - process);
    let stats = engine.stats();
    let each = |time: Duration| time.as_secs_f64() * 1e6 / sent as f64;
    println!(
        "{name}: {:.0} messages/s in commits ({:.0}/s with making them), {:.2} us CPU each on the store thread \
         ({:.2} us in all), {:.0} bytes of journal each, worst commit {:.1} ms",
        sent as f64 / committing.as_secs_f64(),
        sent as f64 / wall.as_secs_f64(),
        each(thread),
        each(process),
        stats.record_bytes as f64 / sent as f64,
        worst.as_secs_f64() * 1e3,
    );
    println!("{name}: {stats:?}");
    let start = Instant::now();
    engine.close().expect("a last checkpoint");
    println!(
        "{name}: last checkpoint {:.0} ms",
        start.elapsed().as_secs_f64() * 1e3
    );
}

/// CPU time of this thread.
fn thread_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split(' ').next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// CPU time of all threads.
fn process_cpu() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let each = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(each.sum())
}
