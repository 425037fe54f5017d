//! `iris serve`

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::args;
use super::fault::WAKE_ARGS;
use crate::admin::server::AdminServer;
use crate::server::faults::{Watcher, stay_away};
use crate::server::log;
use crate::server::node::{Create, Damage, Node};

/// Run one node.
///
/// Stops on SIGTERM or Ctrl-C after it has drained: sessions are sent elsewhere and what is in flight is finished. A second
/// Ctrl-C ends it at once.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris serve --config node.toml                  a node that has run before
  iris serve --config node.toml --create         a new node of a cluster that runs
  iris serve --config node.toml --new-cluster    the first core node of a new cluster
  iris serve --config node.toml --end-recovery   open what recovers, without the other regions")]
pub struct Serve {
    #[command(flatten)]
    config: args::ConfigArgs,
    /// Make the node's data folder, for a node of a cluster that was begun: it must be missing or empty, but for lost+found.
    /// Without this an empty folder is refused, because it may be a lost disk or a wrong mount.
    #[arg(long, conflicts_with = "new_cluster")]
    create: bool,
    /// Begin a new cluster: once, at a core node of one region. The data folder is made as with --create, and keeps that the
    /// cluster began with it.
    #[arg(long)]
    new_cluster: bool,
    /// Where the journal is damaged before its last record, give up that record and everything behind it instead of not
    /// starting. What only this region had of it is lost.
    #[arg(long, conflicts_with_all = ["create", "new_cluster"])]
    cut_journal_at_damage: bool,
    /// Open a store that recovers with what it has, although other regions may have more: when they are lost for good.
    #[arg(long)]
    end_recovery: bool,
    /// Stop when stdin ends: for a parent that must not leave a node behind.
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
    /// Make this task panic once the node is ready: for tests of what follows.
    #[cfg(debug_assertions)]
    #[arg(long, hide = true)]
    panic_in: Option<String>,
}

impl Serve {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let loaded = self.config.load()?;
        let filter = std::env::var(log::ENV).ok();
        log::init(&loaded.config.log, filter.as_deref()).context("logging cannot start")?;
        let create = match (self.create, self.new_cluster) {
            (_, true) => Create::Cluster,
            (true, false) => Create::Store,
            (false, false) => Create::No,
        };
        let damage = if self.cut_journal_at_damage {
            Damage::Cut
        } else {
            Damage::Refuse
        };
        run_to_end(async {
            let signal = stop_signal(self.stop_with_stdin)?;
            let name = loaded.config.node.name.clone();
            tokio::pin!(signal);
            let (data, allowed) = (loaded.config.node.data.clone(), loaded.config.faults.allowed);
            let start = async {
                stay_away(&data, allowed).await;
                Node::start_with(loaded.config, loaded.regions, create, damage).await
            };
            let node = tokio::select! {
                node = start => node.map_err(|error| error.placed(&loaded.sources)).with_context(|| format!("node {name} cannot start"))?,
                // What was begun of the start is left as by a crash, of which every start recovers.
                why = &mut signal => {
                    tracing::info!(why, "the node ends before it has started");
                    return Ok(ExitCode::SUCCESS);
                }
            };
            own_process(&node);
            let admin = match AdminServer::start(node.inspector()).await {
                Ok(admin) => admin,
                Err(error) => {
                    node.stop().await;
                    return Err(anyhow::Error::new(error).context(format!("node {name} cannot start")));
                }
            };
            if self.end_recovery {
                node.end_recovery().await;
            }
            #[cfg(debug_assertions)]
            if let Some(task) = &self.panic_in {
                node.ready().await;
                node.inject_panic(task);
            }
            tokio::select! {
                why = &mut signal => {
                    let again = interrupts()?;
                    tracing::info!(why, "the node drains; {AGAIN}");
                    drain(again, node.stop()).await?;
                    admin.stop().await;
                    Ok(ExitCode::SUCCESS)
                }
                () = node.drain_asked() => {
                    let again = interrupts()?;
                    tracing::info!(why = "an operator", "the node drains; {AGAIN}");
                    drain(again, node.stop()).await?;
                    admin.stop().await;
                    Ok(ExitCode::SUCCESS)
                }
                ended = node.failed() => {
                    node.abandon().await;
                    // Whoever started the process starts it again: what was accepted is in the store.
                    let outcome = ended.outcome();
                    Err(anyhow::Error::new(ended).context(format!("node {name} {outcome}")))
                }
            }
        })
    }
}

/// The process is this node's alone, so that a drill may stop it.
fn own_process(node: &Node) {
    // Looked up now: a program that is replaced while it runs has another name for the system.
    match std::env::current_exe() {
        Ok(program) => node.inspector().faults().own_process(Watcher {
            program,
            args: WAKE_ARGS.map(str::to_owned).to_vec(),
        }),
        Err(error) => {
            tracing::warn!(%error, "the path of this program is not known: pause and crash cannot be injected")
        }
    }
}

/// The runtime of a command.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    // Memory is taken and given back for each connection, in small pieces: with huge pages under it an idle connection
    // costs 2.6 KiB more, for one part in a hundred of the time under full load.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages stay on");
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot start")
}

/// Runs a server on a runtime of its own.
pub(super) fn run_to_end(server: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    run_to_end_with(server)
}

/// The same, of something that gives more than an exit code.
pub(super) fn run_to_end_with<T>(server: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = runtime()?;
    let ended = runtime.block_on(server);
    // Not waited for: a read of stdin that is under way ends only with stdin.
    runtime.shutdown_background();
    ended
}

/// Said when a drain begins.
pub(super) const AGAIN: &str = "Ctrl-C again ends at once";

/// Ctrl-C, from now on: made before it is said that another one ends at once.
pub(super) fn interrupts() -> anyhow::Result<Signal> {
    signal(SignalKind::interrupt()).context("SIGINT cannot be handled")
}

/// Drains, unless Ctrl-C is pressed again: the process then ends as by a crash, of which every start recovers.
pub(super) async fn drain<T>(mut again: Signal, draining: impl Future<Output = T>) -> anyhow::Result<T> {
    tokio::select! {
        done = draining => Ok(done),
        _ = again.recv() => anyhow::bail!("Ctrl-C again: ended before the drain was over; what was accepted is in the store"),
    }
}

/// What asks a command to end: SIGTERM, Ctrl-C, and that its terminal is gone, unless it was started to go on then (`nohup`).
pub(super) struct Stops {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
}

impl Stops {
    /// From now on.
    pub(super) fn new() -> anyhow::Result<Self> {
        let hangup = match ignores_hangup() {
            true => None,
            false => Some(signal(SignalKind::hangup()).context("SIGHUP cannot be handled")?),
        };
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("SIGTERM cannot be handled")?,
            interrupt: interrupts()?,
            hangup,
        })
    }

    /// The next one; says which.
    pub(super) async fn next(&mut self) -> &'static str {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => _ = hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "Ctrl-C",
            () = hangup => "SIGHUP",
        }
    }
}

/// Whether SIGHUP is ignored; where the system does not tell it counts as that, since handling it would undo it.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // SIGHUP is signal 1, and its bit the lowest.
    mask.is_none_or(|mask| mask & 1 == 1)
}

/// Completes as [`Stops::next`] or, where asked for, at the end of stdin; says which.
pub(super) fn stop_signal(with_stdin: bool) -> anyhow::Result<impl Future<Output = &'static str>> {
    use tokio::io::AsyncReadExt as _;
    let mut stops = Stops::new()?;
    Ok(async move {
        let stdin = async {
            if with_stdin {
                let mut sink = [0; 64];
                let mut stdin = tokio::io::stdin();
                while stdin.read(&mut sink).await.is_ok_and(|len| len > 0) {}
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            why = stops.next() => why,
            () = stdin => "the parent is gone",
        }
    })
}
