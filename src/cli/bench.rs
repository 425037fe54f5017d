//! `iris bench`
//!
//! One process holds every sender and every recipient, so that one clock times both ends and every message can be checked.
//!
//! | part | what it does |
//! |---|---|
//! | `plan` | who takes part, and to whom each message goes |
//! | `load` | the connections: sends by the pace, takes what comes, counts |
//! | `track` | two bits or more for each message: accepted, delivered to each device |
//! | `observe` | CPU, memory and metrics of the servers |
//! | `report` | what is printed |

mod load;
mod observe;
mod plan;
mod report;
mod track;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::Args;
use tokio::task::JoinSet;

use self::load::{Load, MIN_SIZE, Pace, Receiver, Times, Totals};
use self::observe::{Meanwhile, Servers, Sight, own_cpu_ms};
use self::plan::{Plan, Shape};
use self::report::{Idle, Report};
use super::{args, output};
use crate::cli::output::say;
use crate::client::{Client, ClientConfig, connector};
use crate::core::ids::{DeviceId, RegionId, UserId};
use crate::core::op::MAX_BODY;
use crate::net::certs::{CA_CERT_FILE, Roots};
use crate::net::connect::Connector;
use crate::server::dev::{DevInfo, DevRegion};
use crate::server::token::{KeyFiles, Signer};

/// Handshakes under way at once: below what a server takes.
const CONNECTING: usize = 64;
/// A connection that does not stand by then ends the run.
const CONNECT: Duration = Duration::from_secs(30);
/// The same of the first ones: beside their handshakes nothing keeps the servers busy.
const CONNECT_FIRST: Duration = Duration::from_secs(10);
/// Between the last connection and the first message: presence of all is told by then.
const SETTLE: Duration = Duration::from_millis(500);
/// Idle connections are left alone for so long before memory is read.
const IDLE_SETTLE: Duration = Duration::from_secs(3);
/// Between two looks at whether everything has arrived.
const DRAIN_EVERY: Duration = Duration::from_millis(50);
/// Between two lines on how far that is.
const DRAIN_SAID: Duration = Duration::from_secs(1);
/// Clients that close have so long in all.
const CLOSE: Duration = Duration::from_secs(5);
/// Life of the tokens: the longest that servers take.
const TOKEN_LIFE: Duration = crate::server::token::MAX_LIFE;

/// Put load on a running cluster, measure it, and check that every accepted message was delivered once.
///
/// Exits with 1 if a message was lost, came twice or came to the wrong user. Rates and latencies count from the end of the
/// warm-up to the end of sending; the check counts everything. At a fixed --rate, latency is timed from the instant
/// at which a message was to be sent. Server CPU and memory are read from the processes that `iris dev` noted, or --pid.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris bench                                             as fast as 100 connections go, all regions
  iris bench --rate 5000 --duration 30s                  an open loop: latency at 5,000 messages a second
  iris bench --cross --rate 1000                         every message to another region
  iris bench --away 0.2 --region us-east                 a fifth of the messages to users who come online at the end
  iris bench --idle 5000 --connections 0                 server memory for each idle connection
  iris bench --output json > figures.json")]
pub struct Bench {
    #[command(flatten)]
    data: args::DataArg,
    /// A region to use; may be repeated. All by default.
    #[arg(long = "region", value_name = "ID", value_delimiter = ',')]
    regions: Vec<String>,
    /// Connections that send and receive.
    #[arg(long, value_name = "N", default_value_t = 100)]
    connections: usize,
    /// Users that they belong to, each with as many devices as divide out. One each by default.
    #[arg(long, value_name = "N")]
    users: Option<usize>,
    /// Messages a second in all, sent at their time whether others are answered or not.
    #[arg(long, value_name = "R", conflicts_with = "window", value_parser = rate)]
    rate: Option<f64>,
    /// Messages of a connection that may be unanswered: the next goes out as answers come.
    #[arg(long, value_name = "W", default_value_t = 64)]
    window: usize,
    /// Bytes of a message's body.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    size: usize,
    /// How long to send after the warm-up.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = args::duration)]
    duration: Duration,
    /// How long to send before anything is measured.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = args::duration)]
    warmup: Duration,
    /// Share of the messages, 0 to 1, that goes to users who are away until sending ends; there are as many of them as
    /// this share of the users.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    away: f64,
    /// Those who are away never come online; what they were sent is not checked.
    #[arg(long)]
    stay_away: bool,
    /// Every message goes to a user of another region.
    #[arg(long)]
    cross: bool,
    /// Connections that only stand, opened first to measure the server's memory for each.
    #[arg(long, value_name = "N", default_value_t = 0)]
    idle: usize,
    /// How long to wait at the end for what was not delivered yet.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = args::duration)]
    drain: Duration,
    /// A process of a server, for its CPU time and memory; may be repeated. Those that `iris dev` noted by default.
    #[arg(long, value_name = "PID")]
    pid: Vec<u32>,
    /// Threads of the load generator.
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// The form of the report.
    #[arg(long, value_enum, default_value = "table")]
    output: output::Format,
}

impl Bench {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let runtime = if self.threads <= 1 {
            tokio::runtime::Builder::new_current_thread().enable_all().build()
        } else {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(self.threads)
                .enable_all()
                .build()
        };
        let report = runtime
            .context("the runtime cannot start")?
            .block_on(async { Runner::new(&self)?.run().await })?;
        match self.output {
            output::Format::Json => output::print_json(&report)?,
            output::Format::Table => output::print_table(&["WHAT", "FIGURE"], &report.rows())?,
        }
        let passed = self.connections == 0 || report.check.passed;
        Ok(if passed {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    /// The load that the arguments ask for.
    fn shape(&self, regions: usize, run: u32) -> anyhow::Result<Shape> {
        if self.connections == 0 && self.idle == 0 {
            anyhow::bail!(
                "--connections 0 leaves nothing to do; give 1 or more, or --idle for connections that only stand"
            );
        }
        let users = self.users.unwrap_or(self.connections);
        if self.connections > 0 && (users == 0 || !self.connections.is_multiple_of(users)) {
            anyhow::bail!(
                "{} connections do not divide among {users} users; give a multiple",
                self.connections
            );
        }
        if self.connections > 0 && users < regions {
            anyhow::bail!("{users} users are too few for {regions} regions; give at least one for each");
        }
        if self.cross && regions < 2 {
            anyhow::bail!("--cross needs two regions or more, and there is one");
        }
        if !(0.0..=1.0).contains(&self.away) {
            anyhow::bail!("--away {} is no share; expected 0 to 1", self.away);
        }
        if !(MIN_SIZE..=MAX_BODY).contains(&self.size) {
            anyhow::bail!("--size {}; expected {MIN_SIZE} to {MAX_BODY}", self.size);
        }
        if self.window == 0 || self.duration.is_zero() {
            anyhow::bail!("--window and --duration must not be 0");
        }
        let away = (users as f64 * self.away).ceil() as usize;
        Ok(Shape {
            run,
            regions,
            users,
            devices: self.connections.checked_div(users).unwrap_or(0),
            away: if away == 0 { 0 } else { away.max(regions) },
            away_share: self.away,
            cross: self.cross,
            return_home: !self.stay_away,
        })
    }
}

/// How far the end of a run is.
fn draining(totals: &Totals, since: Duration, at_most: Duration) -> String {
    format!(
        "drain {:>5.1} s: {} unanswered, {} of {} deliveries missing; at most {:.0} s",
        since.as_secs_f64(),
        totals.sent - totals.answered(),
        totals.expected.saturating_sub(totals.delivered),
        totals.expected,
        at_most.as_secs_f64(),
    )
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text
        .parse()
        .ok()
        .filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| "expected messages a second above 0, such as 5000".to_owned())
}

struct Runner<'a> {
    args: &'a Bench,
    regions: Vec<DevRegion>,
    server_name: String,
    signer: Signer,
    connectors: Vec<Connector>,
    servers: Servers,
    plan: Arc<Plan>,
}

impl<'a> Runner<'a> {
    fn new(args: &'a Bench) -> anyhow::Result<Self> {
        let data = &args.data.data;
        let info = DevInfo::load(data)
            .context("no cluster is found there; start `iris dev` first, or name its folder with --data")?;
        let regions = chosen(&info.regions, &args.regions)?;
        let roots = Roots::load(&data.join("ca").join(CA_CERT_FILE)).context("the cluster's CA")?;
        let signer =
            Signer::from_file(&KeyFiles::in_data(data).private, None).context("the key for tokens")?;
        let run = unix()?.subsec_nanos() ^ unix()?.as_secs() as u32;
        let plan = Plan::new(args.shape(regions.len(), run)?)?;
        let connectors = (0..args.threads.max(1)).map(|_| connector(&roots));
        Ok(Self {
            args,
            regions,
            server_name: info.server_name,
            signer,
            connectors: connectors.collect::<Result<_, _>>()?,
            servers: Servers::find(data, &args.pid),
            plan: Arc::new(plan),
        })
    }

    async fn run(self) -> anyhow::Result<Report> {
        let idle = self.idle().await?;
        let mut report = if self.args.connections > 0 {
            self.load().await?
        } else {
            Report::default()
        };
        report.idle = idle.as_ref().map(|(idle, _)| Idle { ..*idle });
        self.describe(&mut report);
        for connector in &self.connectors {
            connector.close().await;
        }
        Ok(report)
    }

    /// Opens the idle connections and reads what they cost.
    async fn idle(&self) -> anyhow::Result<Option<(Idle, Vec<Client>)>> {
        let connections = self.args.idle;
        if connections == 0 {
            return Ok(None);
        }
        let before = self.servers.look().await;
        let run = self.plan.shape().run;
        let who = (0..connections).map(|n| {
            let user = UserId::new(&format!("bench-{run:08x}-idle-{n}"))?;
            Ok((user, Plan::device_id(0)?, n % self.regions.len()))
        });
        let who: Vec<_> = who.collect::<anyhow::Result<_>>()?;
        let clients = self.connect("idle", &who).await?;
        tokio::time::sleep(IDLE_SETTLE).await;
        let after = self.servers.look().await;
        let bytes = after.rss.saturating_sub(before.rss) as f64 / connections as f64;
        let seen = !self.servers.pids.is_empty() && after.since(&before) == Meanwhile::Ran;
        let bytes_each = seen.then_some(bytes);
        Ok(Some((
            Idle {
                connections,
                bytes_each,
            },
            clients,
        )))
    }

    async fn load(&self) -> anyhow::Result<Report> {
        let connections = self.args.connections;
        let plan = &self.plan;
        let who = (0..connections).map(|connection| {
            let user = plan.user(connection);
            let device = Plan::device_id(plan.device(connection))?;
            Ok((plan.id(user).clone(), device, plan.region(user)))
        });
        let mut clients = self
            .connect("online", &who.collect::<anyhow::Result<Vec<_>>>()?)
            .await?;
        if let Some(max) = clients
            .iter()
            .map(Client::max_body)
            .min()
            .filter(|max| self.args.size > *max)
        {
            close(&clients).await;
            anyhow::bail!(
                "--size {}: the servers take at most {max} bytes (limits.max_body), and would refuse every message; give less",
                self.args.size
            );
        }
        let load = self.prepare();
        let mut tasks = JoinSet::new();
        for (connection, client) in clients.iter().enumerate() {
            tasks.spawn(load.clone().run(client.clone(), connection, connections));
        }
        let (before, cpu_before) = self.watch(&load, load.times.measure).await;
        let accepted_before = load.totals().accepted;
        let (after, cpu_after) = self.watch(&load, load.times.end).await;
        let accepted = load.totals().accepted - accepted_before;
        // What is in the outboxes now and not sent yet goes out all the same.
        let returned = self.come_home(&load, &mut tasks).await?;
        clients.extend(returned);
        let lost = self.drain(&load).await;
        let seconds = (load.times.end - load.times.measure) as f64 / 1e9;
        let mut report = Report::of(&load.totals(), lost, seconds);
        if let Pace::Open(every) = load.pace {
            let each = (load.times.end - load.times.start) as f64 / every;
            let due = (each * connections as f64) as u64;
            report.check.not_sent = due.saturating_sub(report.check.sent);
        }
        report.servers(&self.servers.pids, &before, &after, accepted);
        let cpu = cpu_after.saturating_sub(cpu_before) as f64;
        report.bench_cpu_us = cpu * 1000.0 / accepted.max(1) as f64;
        self.batches(&load, &clients, &mut report);
        close(&clients).await;
        while let Some(ended) = tasks.join_next().await {
            ended.context("a connection's task panicked")?;
        }
        Ok(report)
    }

    fn prepare(&self) -> Load {
        let args = self.args;
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 4);
        let start = nanos(SETTLE);
        let measure = start + nanos(args.warmup);
        let pace = match args.rate {
            Some(rate) => Pace::Open(args.connections as f64 * 1e9 / rate),
            None => Pace::Closed(args.window),
        };
        Load {
            plan: self.plan.clone(),
            totals: Arc::new(Mutex::new(Totals::new(&self.plan, args.connections))),
            times: Times {
                base: Instant::now(),
                start,
                measure,
                end: measure + nanos(args.duration),
            },
            pace,
            size: args.size,
        }
    }

    /// Connects clients, some at a time, and waits until each has a session.
    async fn connect(&self, what: &str, who: &[(UserId, DeviceId, usize)]) -> anyhow::Result<Vec<Client>> {
        let started = Instant::now();
        let mut clients = Vec::with_capacity(who.len());
        for (at, group) in who.chunks(CONNECTING).enumerate() {
            let first = at * CONNECTING;
            for (n, (user, device, region)) in group.iter().enumerate() {
                clients.push(self.client(first + n, user, device.clone(), *region)?);
            }
            for client in &clients[first..] {
                // Where not even one gets a session, nobody is there.
                let patience = if at == 0 { CONNECT_FIRST } else { CONNECT };
                let connected = tokio::time::timeout(patience, client.connected()).await;
                if !matches!(connected, Ok(true)) {
                    let mut why = "no session".to_owned();
                    while let Some(event) = client.try_next() {
                        why = format!("{event:?}");
                    }
                    anyhow::bail!(
                        "a client did not connect within {patience:?}, the last it told: {why}; is the cluster running? \
                         `iris cluster status` tells"
                    );
                }
            }
        }
        say!(
            "{} {what} connections after {:.1} s",
            clients.len(),
            started.elapsed().as_secs_f64()
        );
        Ok(clients)
    }

    fn client(&self, n: usize, user: &UserId, device: DeviceId, region: usize) -> anyhow::Result<Client> {
        let token = self.signer.mint(user.as_str(), unix()?.as_secs(), TOKEN_LIFE)?;
        let connector = self.connectors[n % self.connectors.len()].clone();
        let mut config = ClientConfig::new(connector, token, device);
        config.server_name = Some(self.server_name.clone());
        let region = &self.regions[region];
        let id: RegionId = region.id.parse()?;
        let mut endpoints = region.endpoints.clone();
        let turns = (n / self.regions.len()) % endpoints.len().max(1);
        endpoints.rotate_left(turns);
        config.endpoints_of(id.clone(), endpoints);
        config.region = Some(id);
        Ok(Client::connect(config)?)
    }

    /// Tells the progress each second until an instant of the run; what the servers show then.
    async fn watch(&self, load: &Load, until: u64) -> (Sight, u64) {
        let phase = if until == load.times.measure {
            "warm-up"
        } else {
            "load"
        };
        let counts = || {
            let totals = load.totals();
            (totals.sent, totals.accepted, totals.delivered)
        };
        let mut last = (counts(), load.times.now());
        loop {
            let next = last.1 + 1_000_000_000;
            tokio::time::sleep_until(load.times.instant(next.min(until))).await;
            let (now, at) = (counts(), load.times.now());
            if at >= until {
                return (self.servers.look().await, own_cpu_ms());
            }
            let per_s = |old: u64, new: u64| (new - old) as f64 * 1e9 / (at - last.1) as f64;
            say!(
                "{phase} {:>5.1} s: {:>8.0} sent/s {:>8.0} accepted/s {:>8.0} delivered/s, {} unanswered",
                (at.saturating_sub(load.times.start)) as f64 / 1e9,
                per_s(last.0.0, now.0),
                per_s(last.0.1, now.1),
                per_s(last.0.2, now.2),
                now.0 - load.totals().answered(),
            );
            last = (now, at);
        }
    }

    /// Those who were away come online.
    async fn come_home(&self, load: &Load, tasks: &mut JoinSet<()>) -> anyhow::Result<Vec<Client>> {
        let shape = self.plan.shape();
        if shape.away == 0 || !shape.return_home {
            return Ok(Vec::new());
        }
        let users = shape.users..shape.users + shape.away;
        let who = users.clone().map(|user| {
            let region = self.plan.region(user);
            Ok((self.plan.id(user).clone(), Plan::device_id(0)?, region))
        });
        let clients = self
            .connect("returning", &who.collect::<anyhow::Result<Vec<_>>>()?)
            .await?;
        for (user, client) in users.zip(&clients) {
            let receiver = Receiver { user, device: 0 };
            tasks.spawn(load.clone().receive(client.clone(), receiver));
        }
        Ok(clients)
    }

    /// Waits until everything is answered and delivered, or time is up; the deliveries that are missing then.
    async fn drain(&self, load: &Load) -> u64 {
        let started = Instant::now();
        let mut said = started;
        loop {
            let late = started.elapsed() >= self.args.drain;
            if let Some(missing) = self.settled(&load.totals(), late) {
                return missing;
            }
            if said.elapsed() >= DRAIN_SAID {
                said = Instant::now();
                say!("{}", draining(&load.totals(), started.elapsed(), self.args.drain));
            }
            tokio::time::sleep(DRAIN_EVERY).await;
        }
    }

    /// The deliveries that are missing, once nothing is to be waited for.
    fn settled(&self, totals: &Totals, late: bool) -> Option<u64> {
        let quiet = totals.answered() == totals.sent && totals.delivered >= totals.expected;
        let missing = (quiet || late).then(|| totals.missing(&self.plan))?;
        (missing == 0 || late).then_some(missing)
    }

    fn batches(&self, load: &Load, clients: &[Client], report: &mut Report) {
        let mean = |sum: u64, count: u64| sum as f64 / count.max(1) as f64;
        let totals = load.totals();
        report.batches.send = mean(totals.sent, totals.batches);
        let mut io = crate::client::IoStats::default();
        for client in clients {
            let of = client.io_stats();
            io.reads += of.reads;
            io.frames_read += of.frames_read;
            io.writes += of.writes;
            io.frames_written += of.frames_written;
        }
        report.batches.client_write = mean(io.frames_written, io.writes);
        report.batches.client_read = mean(io.frames_read, io.reads);
    }

    fn describe(&self, report: &mut Report) {
        let args = self.args;
        let shape = self.plan.shape();
        let regions: Vec<&str> = self.regions.iter().map(|region| region.id.as_str()).collect();
        let pace = match args.rate {
            Some(rate) => format!("{rate} messages/s, open loop"),
            None => format!("closed loop, {} unanswered on a connection", args.window),
        };
        let away = if args.stay_away {
            "stay away"
        } else {
            "come online at the end"
        };
        let mut add = |name, value| {
            report.load.insert(name, value);
        };
        add("regions", regions.join(", "));
        if args.connections > 0 {
            add(
                "connections",
                format!(
                    "{} of {} users, {} B{}",
                    args.connections,
                    shape.users,
                    args.size,
                    if args.cross { ", to other regions" } else { "" }
                ),
            );
            add("pace", pace);
        }
        if shape.away > 0 {
            add(
                "away",
                format!(
                    "{} users get {} of the messages and {away}",
                    shape.away, args.away
                ),
            );
        }
    }
}

/// The regions that were asked for.
fn chosen(all: &[DevRegion], asked: &[String]) -> anyhow::Result<Vec<DevRegion>> {
    if asked.is_empty() {
        return Ok(all.to_vec());
    }
    let find = |id: &String| {
        all.iter()
            .find(|region| region.id == *id)
            .cloned()
            .with_context(|| {
                let known: Vec<&str> = all.iter().map(|region| region.id.as_str()).collect();
                format!("there is no region {id:?}; expected one of {}", known.join(", "))
            })
    };
    asked.iter().map(find).collect()
}

async fn close(clients: &[Client]) {
    let all = async {
        for client in clients {
            client.close().await;
        }
    };
    // What is left is cut with the connectors.
    let _ = tokio::time::timeout(CLOSE, all).await;
}

fn unix() -> anyhow::Result<Duration> {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the system's clock is before 1970")
}
