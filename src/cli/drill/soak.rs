//! `iris drill soak`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args;

use super::run::{self as one, spans};
use crate::cli::admin::PARTIAL;
use crate::cli::output::{self, Format, say};
use crate::cli::serve::{self, Stops};
use crate::drill::measure::{Measures, measure};
use crate::drill::run;
use crate::drill::site::Site;
use crate::drill::soak::{Bout, ROUNDS, Soaked};
use crate::drill::target::Target as _;
use crate::server::dev::DevLock;
use crate::server::regions::Regions;

/// What was done so far.
const STATE: &str = "soak.json";

/// Strike a cluster of its own at random, round after round, and check that nothing is lost and nothing comes twice.
///
/// Nodes and regions are killed (SIGKILL) and started again, nodes stand still, ways between regions are cut, under load. After
/// each bout of 25 rounds all that was accepted must have come, once and in order. What was done is kept in the folder: the
/// same command goes on where the one before ended. The exit code is 3 where rounds are left, and 1 where something was lost, came twice or out of order, or
/// did not come; the plan, the log and the report of that bout are in the folder then, and `iris drill run` runs the plan again.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris drill soak --rounds 50
  iris drill soak --rounds 1000 --data soak            about an hour; Ctrl-C ends it, the same command goes on
  iris drill soak --rounds 100 --seed 7 --data soak-7")]
pub struct Soak {
    /// Rounds in all, those of earlier calls included.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rounds: u32,
    /// Of the random choices; not of the timing of processes. That of the folder where it was begun already.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The folder of the nodes and of what was done.
    #[arg(long, value_name = "DIR", default_value = "drill-soak")]
    data: PathBuf,
    /// The form of what is printed at the end.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

impl Soak {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let lock = DevLock::take(&self.data)?;
        let mut soaked = self.begin()?;
        let ended = serve::run_to_end_with(async {
            let mut stops = Stops::new()?;
            let mut stop = async || stops.next().await;
            say!(
                "seed {}; {} of {} rounds are done; starting nodes in {}",
                soaked.seed,
                soaked.rounds,
                self.rounds,
                self.data.display()
            );
            let regions = Regions::built_in();
            let mut site = tokio::select! {
                site = Site::start(&self.data, &regions) => site?,
                why = stop() => {
                    say!("{why} before the nodes were ready");
                    return Ok(Ended::Stopped);
                }
            };
            // The seed, before anything is done with it.
            self.keep(&soaked)?;
            let mut ended = Ended::Well;
            while matches!(ended, Ended::Well) && soaked.rounds < self.rounds {
                ended = self.bout(&mut site, &mut soaked, &mut stop).await?;
            }
            say!("stopping the nodes");
            tokio::select! {
                () = site.stop() => {}
                // They are killed with what holds them.
                _ = stop() => {}
            }
            Ok(ended)
        })?;
        drop(lock);
        match self.output {
            Format::Json => output::print_json(&soaked)?,
            Format::Table if ended != Ended::Broken => output::print(&text(&soaked))?,
            Format::Table => {}
        }
        Ok(match ended {
            Ended::Well => ExitCode::SUCCESS,
            Ended::Stopped => ExitCode::from(PARTIAL),
            Ended::Broken => ExitCode::FAILURE,
        })
    }

    /// What was done before.
    fn begin(&self) -> anyhow::Result<Soaked> {
        let path = self.data.join(STATE);
        let soaked = match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .with_context(|| format!("{} cannot be used: begin with another --data", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Soaked {
                seed: self.seed.unwrap_or_else(|| one::now_ms() % 1_000_000),
                ..Soaked::default()
            },
            Err(error) => {
                return Err(anyhow::Error::new(error).context(format!("{} cannot be read", path.display())));
            }
        };
        if self.seed.is_some_and(|seed| seed != soaked.seed) {
            bail!(
                "{} was begun with --seed {}: leave --seed out to go on, or begin with another --data",
                path.display(),
                soaked.seed
            );
        }
        Ok(soaked)
    }

    fn keep(&self, soaked: &Soaked) -> anyhow::Result<()> {
        let draft = self.data.join("soak.json.new");
        std::fs::write(&draft, serde_json::to_string_pretty(soaked)?)
            .and_then(|()| std::fs::rename(&draft, self.data.join(STATE)))
            .with_context(|| format!("what was done cannot be kept in {}", self.data.display()))
    }

    async fn bout(
        &self,
        site: &mut Site,
        soaked: &mut Soaked,
        stop: &mut impl AsyncFnMut() -> &'static str,
    ) -> anyhow::Result<Ended> {
        let (number, rounds) = (soaked.bouts + 1, ROUNDS.min(self.rounds - soaked.rounds));
        let bout = Bout::draw(soaked.seed, number, rounds, site.nodes());
        let drill = bout.drill(number)?;
        let faults = drill.real_faults()?.to_vec();
        // Users of their own: what a bout left for them, or the same one when it was broken off, is not taken for this one's.
        site.set_prefix(format!("bout-{number}-{}-", one::now_ms()));
        let began = Instant::now();
        let mut tell = |_: &str| {};
        let done = run::on(&drill, &faults, site, stop, &mut tell).await?;
        let measures = measure(&done.clients, &spans(&faults, site.nodes()), &done.log);
        if let Some(why) = &done.aborted
            && is_signal(why)
        {
            say!("{why}: bout {number} is not counted, and is begun again the next time");
            return Ok(Ended::Stopped);
        }
        let (report, log) = one::report(&drill, "dev", Vec::new(), one::now_ms(), done, measures);
        if !report.passed() {
            let stem = self.data.join(format!("bout-{number}"));
            std::fs::write(stem.with_extension("toml"), &bout.text)?;
            std::fs::write(stem.with_extension("log.json"), serde_json::to_string(&log)?)?;
            std::fs::write(stem.with_extension("json"), report.to_json()?)?;
            std::fs::write(stem.with_extension("html"), report.page(&log))?;
            output::aside(format_args!("{}", report.text()));
            say!(
                "bout {number} did not pass; its plan, log and report: {}.*",
                stem.display()
            );
            return Ok(Ended::Broken);
        }
        add(soaked, &bout.counts, &report.measures, began);
        self.keep(soaked)?;
        say!(
            "bout {number}: {} rounds in {:.0} s, {} messages accepted, all came once; {} of {} rounds are done",
            rounds,
            began.elapsed().as_secs_f64(),
            report.measures.counts.accepted,
            soaked.rounds,
            self.rounds
        );
        Ok(Ended::Well)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Well,
    Stopped,
    Broken,
}

fn is_signal(why: &str) -> bool {
    ["Ctrl-C", "SIGTERM", "SIGHUP"].contains(&why)
}

fn add(soaked: &mut Soaked, counts: &Soaked, measures: &Measures, began: Instant) {
    soaked.bouts += 1;
    soaked.rounds += counts.rounds;
    soaked.crashes += counts.crashes;
    soaked.regions += counts.regions;
    soaked.pauses += counts.pauses;
    soaked.cuts += counts.cuts;
    soaked.silences += counts.silences;
    soaked.accepted += measures.counts.accepted;
    let longest = |most: u64, one: Option<u64>| most.max(one.unwrap_or(0));
    soaked.longest_convergence = longest(soaked.longest_convergence, measures.convergence);
    soaked.longest_rto = longest(soaked.longest_rto, measures.rto.worst);
    soaked.took += u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
}

fn text(soaked: &Soaked) -> String {
    let seconds = |micros: u64| micros as f64 / 1e6;
    format!(
        "{} rounds (seed {}): {} nodes killed, {} regions killed, {} nodes that stood still, {} ways cut ({} of both for long)\n{} messages accepted: \
         each came once and in order\nlongest without an answer after a fault {:.1} s; longest until all had come after the \
         load {:.1} s; {:.0} minutes\n",
        soaked.rounds,
        soaked.seed,
        soaked.crashes,
        soaked.regions,
        soaked.pauses,
        soaked.cuts,
        soaked.silences,
        soaked.accepted,
        seconds(soaked.longest_rto),
        seconds(soaked.longest_convergence),
        seconds(soaked.took) / 60.0
    )
}
