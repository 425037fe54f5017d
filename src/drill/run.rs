//! A drill from its first client to its last message.

use std::time::Duration;

use super::crew::{Crew, Progress};
use super::log::{Client, Entry, Micros, What};
use super::measure::{Open, open};
use super::plan::Drill;
use super::target::{LagSeen, Target, repaired_between};
use crate::sim::fault::Fault;
use crate::sim::span;

/// Clients have their sessions within this, or the drill does not begin.
const CONNECTED_WITHIN: Duration = Duration::from_secs(30);
/// Progress is told so often.
const TELL_EVERY: Duration = Duration::from_secs(2);
/// Between two looks whether everything that was accepted is handled.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Nodes are asked for so long for what is only shown: the drill does not wait for it.
const ASKED_WITHIN: Duration = Duration::from_secs(2);
/// What comes twice has so long to come.
const TWICE_WITHIN: Duration = Duration::from_secs(2);

/// What a drill leaves.
#[derive(Debug)]
pub struct Done {
    /// Who took part.
    pub clients: Vec<Client>,
    /// What they saw.
    pub log: Vec<Entry>,
    /// Why it was broken off, if it was.
    pub aborted: Option<String>,
    /// What servers said: shown, never judged.
    pub observed: Vec<(String, String)>,
}

/// A step of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Step {
    at: Micros,
    /// Ends come before what begins at the same time.
    begins: bool,
    fault: usize,
}

/// Runs a drill with these faults against real nodes. The first `stop` breaks it off, and the next one the mending that follows;
/// `tell` is told how it goes.
///
/// # Errors
/// What kept it from beginning. What goes wrong later breaks it off.
pub async fn on(
    drill: &Drill,
    faults: &[Fault],
    target: &mut impl Target,
    stop: &mut impl AsyncFnMut() -> &'static str,
    tell: &mut dyn FnMut(&str),
) -> anyhow::Result<Done> {
    if let Some(why) = target.nodes().cannot(faults) {
        anyhow::bail!("the drill does not begin: {why}");
    }
    let mut crew = Crew::start(target.places(drill.terms.clients)?)?;
    tokio::select! {
        connected = crew.connected(CONNECTED_WITHIN) => connected.map_err(anyhow::Error::msg)?,
        why = stop() => {
            tell(&format!("{why} before the load began: nothing was struck"));
            let (clients, log) = crew.close().await;
            return Ok(Done {
                clients,
                log,
                aborted: Some(why.to_owned()),
                observed: Vec::new(),
            });
        }
    }
    tell(&format!(
        "{} clients are connected; the load begins",
        crew.clients().len()
    ));
    crew.send(Duration::from_micros(drill.terms.every));
    let (mut active, mut observed) = (Vec::new(), Vec::new());
    let before = within(target.repairs()).await;
    let mut broken_off = {
        let course = course(drill, faults, target, &crew, &mut active, &mut observed, tell);
        tokio::select! {
            done = course => done.err().map(|error| format!("{error:#}")),
            why = stop() => Some(why.to_owned()),
        }
    };
    if let Some(why) = &broken_off {
        tell(&format!(
            "broken off ({why}): what was struck is mended; Ctrl-C again does not wait for it"
        ));
        crew.recorder().note(What::Aborted { why: why.clone() });
        crew.quiet().await;
        let mended = tokio::select! {
            () = mend(faults, &active, target, tell) => true,
            _ = stop() => false,
        };
        if !mended {
            tell("not all was mended: what was injected ends by itself");
        }
    }
    if broken_off.is_none() {
        crew.quiet().await;
        let within = Duration::from_micros(drill.terms.settle);
        broken_off = tokio::select! {
            () = settle(&crew, within, tell) => None,
            why = stop() => Some(why.to_owned()),
        };
    }
    let after = within(target.repairs()).await;
    if let Some((before, after)) = before.zip(after) {
        observed.push(repaired_between(&before, &after));
    }
    let (clients, log) = crew.close().await;
    Ok(Done {
        clients,
        log,
        aborted: broken_off,
        observed,
    })
}

/// The faults at their times, until the load is to end. `active` has those that were begun and not ended.
async fn course(
    drill: &Drill,
    faults: &[Fault],
    target: &mut impl Target,
    crew: &Crew,
    active: &mut Vec<usize>,
    observed: &mut Vec<(String, String)>,
    tell: &mut dyn FnMut(&str),
) -> anyhow::Result<()> {
    let work = drill.scenario.work();
    let recorder = crew.recorder();
    let began = recorder.now();
    // By how much each began after its time, since what was before took longer: it lasts as long as it is to.
    let mut late = vec![0; faults.len()];
    for step in steps(faults, work) {
        let due = began + step.at + late[step.fault];
        wait_until(crew, due, tell).await;
        let fault = &faults[step.fault];
        if step.begins {
            late[step.fault] = recorder.now().saturating_sub(due);
            let text = describe(fault);
            tell(&text);
            // Nodes that are away already would be waited for.
            if active.is_empty() {
                let lag = within(target.lag()).await.flatten();
                observed.push(LagSeen::observed(lag, step.fault));
            }
            active.push(step.fault);
            recorder.note(What::Begins {
                fault: step.fault,
                text,
            });
            target.strike(fault).await?;
        } else {
            target.mend(fault).await?;
            active.retain(|active| *active != step.fault);
            recorder.note(What::Ends { fault: step.fault });
            tell(&format!("fault {} has ended", step.fault + 1));
        }
    }
    wait_until(crew, began + work, tell).await;
    Ok(())
}

/// What nodes say in time.
async fn within<T>(asked: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(ASKED_WITHIN, asked).await.ok()
}

/// Mends what was struck, as far as that can be done.
async fn mend(faults: &[Fault], active: &[usize], target: &mut impl Target, tell: &mut dyn FnMut(&str)) {
    for fault in active {
        if let Err(error) = target.mend(&faults[*fault]).await {
            tell(&format!("fault {} cannot be mended: {error:#}", fault + 1));
        }
    }
}

/// In order of their times. What has no length ends as soon as it was done, or with the load.
fn steps(faults: &[Fault], work: Micros) -> Vec<Step> {
    let mut steps: Vec<Step> = (faults.iter().enumerate())
        .flat_map(|(n, fault)| {
            let at = fault.at.min(work);
            let ends = fault.lasts.map_or(at, |lasts| at.saturating_add(lasts).min(work));
            let begin = Step {
                at,
                begins: true,
                fault: n,
            };
            let end = Step {
                at: ends.max(at + 1),
                begins: false,
                fault: n,
            };
            [begin, end]
        })
        .collect();
    steps.sort_unstable();
    steps
}

async fn wait_until(crew: &Crew, at: Micros, tell: &mut dyn FnMut(&str)) {
    loop {
        let left = Duration::from_micros(at.saturating_sub(crew.recorder().now()));
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(TELL_EVERY)).await;
        tell(&line(crew.recorder().progress(), crew.clients().len()));
    }
}

/// Until all that was accepted is handled, and what would come twice had time to.
async fn settle(crew: &Crew, within: Duration, tell: &mut dyn FnMut(&str)) {
    let began = crew.recorder().now();
    let mut told = began;
    loop {
        let progress = crew.recorder().progress();
        let waited = Duration::from_micros(crew.recorder().now() - began);
        let all = open(crew.clients(), &crew.recorder().log()) == Open::default();
        if (all && waited >= TWICE_WITHIN) || waited >= within {
            tell(&line(progress, crew.clients().len()));
            return;
        }
        if Duration::from_micros(crew.recorder().now() - told) >= TELL_EVERY {
            told = crew.recorder().now();
            tell(&line(progress, crew.clients().len()));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn line(progress: Progress, clients: usize) -> String {
    format!(
        "{} sent, {} accepted, {} handled; {} of {clients} clients have a session",
        progress.sent, progress.accepted, progress.handled, progress.connected
    )
}

/// A fault, for people.
pub fn describe(fault: &Fault) -> String {
    let mut text = fault.kind.name().to_owned();
    for (what, places) in [("on", &fault.on), ("from", &fault.from), ("to", &fault.to)] {
        if !places.is_empty() {
            text.push_str(&format!(" {what} {}", places.join(", ")));
        }
    }
    if let Some(lasts) = fault.lasts {
        text.push_str(&format!(", for {}", span::show(lasts)));
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;
    use crate::drill::crew::Place;
    use crate::drill::nodes::{Nodes, three_regions};
    use crate::drill::target::Repairs;
    use crate::server::config::TomlText;
    use crate::sim::fault::Kind;

    /// What was struck here never becomes whole.
    struct Hopeless {
        nodes: Nodes,
        struck: std::sync::Arc<Notify>,
    }

    impl Target for Hopeless {
        fn nodes(&self) -> &Nodes {
            &self.nodes
        }

        fn places(&self, _: u32) -> anyhow::Result<Vec<Place>> {
            Ok(Vec::new())
        }

        async fn strike(&mut self, _: &Fault) -> anyhow::Result<()> {
            self.struck.notify_one();
            Ok(())
        }

        async fn mend(&mut self, _: &Fault) -> anyhow::Result<()> {
            std::future::pending().await
        }

        async fn lag(&self) -> Option<LagSeen> {
            None
        }

        async fn repairs(&self) -> Repairs {
            Repairs::new()
        }
    }

    #[tokio::test]
    async fn a_mending_that_does_not_end_can_be_broken_off_as_well() {
        let text = "title = \"t\"\nregions = [\"us-east\"]\nwork = \"1h\"\n[[fault]]\nat = \"0s\"\nkind = \"crash\"\non = \
                    [\"us-east\"]\nlasts = \"30m\"\n[drill]\nhypothesis = \"h\"\n";
        let drill = Drill::parse(TomlText::new("mine.toml", text.to_owned()).unwrap()).unwrap();
        let struck = std::sync::Arc::new(Notify::new());
        let mut target = Hopeless {
            nodes: three_regions(),
            struck: struck.clone(),
        };
        let (mut stopped, mut said) = (false, Vec::new());
        // The first comes with the fault, and the next at once.
        let mut stop = async || {
            if !stopped {
                struck.notified().await;
                stopped = true;
            }
            "Ctrl-C"
        };
        let faults = drill.real_faults().unwrap();
        let mut tell = |line: &str| said.push(line.to_owned());
        let done = on(&drill, faults, &mut target, &mut stop, &mut tell)
            .await
            .unwrap();
        assert_eq!(done.aborted.as_deref(), Some("Ctrl-C"));
        assert!(
            said.iter().any(|line| line.starts_with("not all was mended")),
            "{said:?}"
        );
    }

    #[test]
    fn faults_begin_and_end_in_order_of_their_times() {
        let faults = [
            Fault::new(5_000_000, Kind::Crash).lasting(3_000_000),
            Fault::new(8_000_000, Kind::Rolling),
            Fault::new(1_000_000, Kind::Pause).lasting(60_000_000),
        ];
        let steps = steps(&faults, 20_000_000);
        let order: Vec<(u64, bool, usize)> = steps
            .iter()
            .map(|step| (step.at / 1_000_000, step.begins, step.fault))
            .collect();
        let expected = [
            (1, true, 2),
            (5, true, 0),
            (8, false, 0),
            (8, true, 1),
            (8, false, 1),
            (20, false, 2),
        ];
        assert_eq!(order, expected);
    }

    #[test]
    fn a_fault_is_told_with_its_places() {
        let fault = Fault::new(0, Kind::Crash).on("us-east/core").lasting(4_000_000);
        assert_eq!(describe(&fault), "crash on us-east/core, for 4s");
    }
}
