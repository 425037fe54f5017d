//! Drill files (`simulations/drills/*.toml`): a scenario, and the terms on which it counts as passed.

use std::path::Path;

use super::report::Limits;
use crate::server::config::{ConfigError, TomlText};
use crate::sim::case::Accepts;
use crate::sim::fault::{Fault, Kind};
use crate::sim::scenario::{Scenario, Terms};

/// Kinds of faults that real processes can be struck with; the simulator knows more.
const KINDS: [Kind; 13] = [
    Kind::Crash,
    Kind::Rolling,
    Kind::Pause,
    Kind::Cut,
    Kind::Slow,
    Kind::StoreErrors,
    Kind::StoreSlow,
    Kind::StoreFull,
    Kind::Clock,
    Kind::Evacuate,
    Kind::DiskReplaced,
    Kind::Backup,
    Kind::Restore,
];

/// A drill, as its file has it.
#[derive(Debug, Clone)]
pub struct Drill {
    /// The scenario.
    pub scenario: Scenario,
    /// On what terms it counts as passed, and the load on real processes.
    pub terms: Terms,
}

/// Why a drill cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Its file.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// It is a scenario, and no drill.
    #[error(
        "{0} has no table [drill]: expected at least `hypothesis` there; `iris sim run` runs scenarios without"
    )]
    NoTerms(String),
    /// A fault that only the simulator can make.
    #[error(
        "{drill}: fault {number} is {kind:?}, which only the simulator can do (iris sim run); expected one of {}",
        names()
    )]
    OnlySimulated {
        /// Which.
        drill: String,
        /// Its number, from 1.
        number: usize,
        /// Its kind.
        kind: &'static str,
    },
    /// A key of a fault that only the simulator heeds.
    #[error(
        "{drill}: fault {number} ({kind}) has `{key}`, which only the simulator heeds (--target sim): leave it out, or say what is \
         wanted in another way"
    )]
    KeyOnlySimulated {
        /// Which.
        drill: String,
        /// Its number, from 1.
        number: usize,
        /// Its kind.
        kind: &'static str,
        /// The key.
        key: &'static str,
    },
    /// A fault of real processes lacks a key.
    #[error(
        "{drill}: fault {number} ({kind}) lacks {key}, without which nothing can be done to real processes"
    )]
    Lacks {
        /// Which.
        drill: String,
        /// Its number, from 1.
        number: usize,
        /// Its kind.
        kind: &'static str,
        /// The key.
        key: &'static str,
    },
    /// No drill of this name.
    #[error("there is no drill {name}: expected a file, or one of {}", known.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
}

fn names() -> String {
    KINDS.map(Kind::name).join(", ")
}

/// A key that says something which real processes are not struck with.
fn unheeded(fault: &Fault) -> Option<&'static str> {
    // Nodes are drained one after the other, whatever it says; and a store that fails, fails always.
    let rolling = fault.kind == Kind::Rolling;
    let heeds_loss = match fault.kind {
        Kind::Slow => true,
        Kind::StoreErrors => fault.loss == Some(1000),
        _ => false,
    };
    let keys = [
        ("factor", fault.factor.is_some()),
        ("bandwidth", fault.bandwidth.is_some()),
        ("loss", fault.loss.is_some() && !heeds_loss),
        ("clients", fault.clients),
        ("told", fault.told && !rolling),
        ("every", fault.every.is_some() && !rolling),
        ("devices", !fault.devices.is_empty()),
    ];
    keys.into_iter().find_map(|(key, given)| given.then_some(key))
}

/// What real processes must be told: how long it lasts, or nobody would end it.
fn lacking(fault: &Fault) -> Option<&'static str> {
    let course = matches!(fault.kind, Kind::Rolling | Kind::Backup);
    if fault.kind == Kind::Slow && fault.extra.is_none() && fault.loss.is_none() {
        return Some("`extra` or `loss`");
    }
    (fault.lasts.is_none() && !course).then_some("`lasts`")
}

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../simulations/drills/", $name, ".toml")))),*]
    };
}

/// Name and text of each, for use outside a checkout.
const TEXTS: [(&str, &str); 13] = shipped![
    "core-crash",
    "disk-replaced",
    "edge-crash",
    "evacuation",
    "geo-region-lost",
    "old-backup",
    "one-way-partition",
    "region-isolated",
    "region-lost",
    "rolling-restart",
    "slow-link",
    "stopped-core",
    "store-failure",
];

/// The drills that are shipped, in the order of their names.
///
/// # Errors
/// None where the program is as it was built.
pub fn shipped() -> Result<Vec<Drill>, PlanError> {
    let texts = TEXTS.iter();
    texts
        .map(|(name, text)| {
            let file = format!("simulations/drills/{name}.toml");
            Drill::parse(TomlText::new(file, (*text).to_owned())?)
        })
        .collect()
}

/// A drill by its name, or by the path of its file.
///
/// # Errors
/// [`PlanError`].
pub fn find(name: &str) -> Result<Drill, PlanError> {
    let path = Path::new(name);
    if path.extension().is_some() || path.components().count() > 1 {
        return Drill::parse(TomlText::read(path)?);
    }
    let drills = shipped()?;
    let known = drills.iter().map(|drill| drill.scenario.name.clone()).collect();
    let found = drills.into_iter().find(|drill| drill.scenario.name == name);
    found.ok_or_else(|| PlanError::Unknown {
        name: name.to_owned(),
        known,
    })
}

impl Drill {
    /// Reads a drill.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn parse(text: TomlText) -> Result<Self, PlanError> {
        let file = text.file().display().to_string();
        let scenario = Scenario::parse(text)?;
        let terms = scenario.terms().cloned().ok_or(PlanError::NoTerms(file))?;
        Ok(Self { scenario, terms })
    }

    /// Its faults, where real processes can be struck with all of them.
    ///
    /// # Errors
    /// [`PlanError::OnlySimulated`], [`PlanError::KeyOnlySimulated`], [`PlanError::Lacks`].
    pub fn real_faults(&self) -> Result<&[Fault], PlanError> {
        let faults = self.scenario.faults();
        for (number, fault) in (1..).zip(faults) {
            let (drill, kind) = (self.scenario.name.clone(), fault.kind.name());
            if !KINDS.contains(&fault.kind) {
                return Err(PlanError::OnlySimulated { drill, number, kind });
            }
            if let Some(key) = unheeded(fault) {
                return Err(PlanError::KeyOnlySimulated {
                    drill,
                    number,
                    kind,
                    key,
                });
            }
            if let Some(key) = lacking(fault) {
                return Err(PlanError::Lacks {
                    drill,
                    number,
                    kind,
                    key,
                });
            }
        }
        Ok(faults)
    }

    /// What it allows.
    pub fn limits(&self) -> Limits {
        let limits = &self.terms.limits;
        Limits {
            rto_us: limits.rto,
            outage_us: limits.outage,
            lost: limits.lost,
            rpo_us: limits.rpo,
            duplicates: limits.duplicates,
            disorder: limits.disorder,
            never_answered: limits.never_answered,
            unreachable_us: limits.unreachable,
            back_us: limits.back,
            convergence_us: limits.convergence,
            p99_handled_us: limits.p99_handled,
            accepted_at_least: limits.accepted_at_least,
            disconnected_at_least: limits.disconnected_at_least,
        }
    }

    /// Whether regions accept a message only once another one has it.
    pub fn is_geo(&self) -> bool {
        self.scenario.accepts() != Accepts::Region
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drill_of_the_repository_is_shipped_and_can_strike_real_processes() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/simulations/drills");
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .expect("the repository has drills")
            .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_string_lossy().into_owned()))
            .collect();
        names.sort();
        let drills = shipped().unwrap();
        let shipped: Vec<String> = drills.iter().map(|drill| drill.scenario.name.clone()).collect();
        assert_eq!(shipped, names);
        for drill in drills {
            assert!(
                !drill.real_faults().unwrap().is_empty(),
                "{}",
                drill.scenario.name
            );
            assert!(
                drill.terms.limits.accepted_at_least > Some(0),
                "{}",
                drill.scenario.name
            );
            let limits = &drill.terms.limits;
            assert!(
                limits.lost == Some(0) || limits.rpo.is_some(),
                "{}",
                drill.scenario.name
            );
        }
    }

    #[test]
    fn a_scenario_without_terms_is_no_drill_and_some_faults_are_for_the_simulator() {
        let parse = |more: &str| {
            let text = format!("title = \"t\"\nregions = [\"us-east\"]\nwork = \"5s\"\n{more}");
            Drill::parse(TomlText::new("mine.toml", text).unwrap())
        };
        assert!(matches!(parse(""), Err(PlanError::NoTerms(file)) if file == "mine.toml"));
        let clogged = parse(
            "[[fault]]\nat = \"1s\"\nkind = \"clog\"\nfrom = [\"us-east\"]\nto = [\"us-east\"]\nlasts = \"1s\"\n[drill]\nhypothesis = \"h\"\n",
        );
        let error = clogged.unwrap().real_faults().unwrap_err().to_string();
        assert!(
            error.contains("fault 1") && error.contains("expected one of crash"),
            "{error}"
        );
        let cut =
            "[[fault]]\nat = \"1s\"\nkind = \"cut\"\nfrom = [\"us-east/core\"]\nto = [\"us-east/edges\"]\n";
        let drill = "[drill]\nhypothesis = \"h\"\n";
        let lasts = "lasts = \"1s\"\n";
        let error = |more: &str| {
            let drill = parse(&format!("{cut}{more}{drill}")).unwrap();
            drill
                .real_faults()
                .map(<[Fault]>::len)
                .map_err(|error| error.to_string())
        };
        assert_eq!(error(lasts), Ok(1));
        assert!(error("").unwrap_err().contains("lacks `lasts`"));
        let clients = error(&format!("{lasts}clients = true\n")).unwrap_err();
        assert!(
            clients.contains("has `clients`, which only the simulator heeds"),
            "{clients}"
        );
        let error = find("nope").unwrap_err().to_string();
        assert!(error.contains("region-lost"), "{error}");
    }
}
