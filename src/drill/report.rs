//! What a drill showed, judged, in the forms that people and programs read.
//!
//! | part | what it is |
//! |---|---|
//! | [`limits`] | what a drill allows, and each limit's verdict |
//! | [`tables`] | the figures as tables, once for all forms |
//! | [`text`] | for a terminal and as Markdown |
//! | [`page`] | one HTML file with the timeline as a picture, that needs nothing else |
//! | [`trend`] | past drills in the order of time |

pub mod limits;
mod page;
mod picture;
mod tables;
#[cfg(test)]
mod tests;
mod text;
mod trend;
mod words;

use serde::{Deserialize, Serialize};

pub use self::limits::{Limits, Unit, Verdict};
pub use self::trend::trend;
use super::log::{Client, Entry};
use super::measure::Measures;

/// The form of reports that this program writes.
pub const FORMAT: u32 = 1;

/// Which drill it was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The drill's name.
    pub name: String,
    /// Its title.
    pub title: String,
    /// What was to be shown.
    pub hypothesis: String,
    /// The commit of the program.
    pub commit: String,
    /// The program's version.
    pub version: String,
    /// The seed of all that was random in it.
    pub seed: u64,
    /// What it ran against.
    pub target: String,
    /// When it started, in milliseconds since 1970 (UTC).
    pub started_ms: u64,
    /// The configuration, as names and values.
    pub configuration: Vec<(String, String)>,
}

/// What a drill showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The form: [`FORMAT`].
    pub format: u32,
    /// The verdict, for programs: the same as [`Report::passed`].
    pub passed: bool,
    /// Why the drill was broken off, if it was: such a drill never passes.
    pub aborted: Option<String>,
    /// Why it did not pass; empty if it did.
    pub reasons: Vec<String>,
    /// Which drill.
    pub identity: Identity,
    /// What it allows.
    pub limits: Limits,
    /// Each limit's verdict.
    pub verdicts: Vec<Verdict>,
    /// What its clients saw, in figures, with the plan's faults and their times.
    pub measures: Measures,
    /// What servers said, such as the replication lag at the cut and the bytes of repair: shown, never judged.
    #[serde(default)]
    pub observed: Vec<(String, String)>,
    /// Who took part.
    pub clients: Vec<Client>,
    /// The file with the log, if it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_file: Option<String>,
}

/// A report that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It is no report, or parts are missing.
    #[error("this is no report of a drill: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Another version of the program wrote it.
    #[error("the report is of format {0}; this program reads format {FORMAT}")]
    Format(u32),
}

impl Report {
    /// Judges what was measured. `aborted` is why the drill was broken off, where the log does not say so itself.
    pub fn new(
        identity: Identity,
        clients: Vec<Client>,
        measures: Measures,
        limits: Limits,
        aborted: Option<String>,
    ) -> Self {
        let aborted = aborted.or_else(|| measures.aborted.clone());
        let verdicts = limits.judge(&measures, aborted.is_some());
        let reasons = reasons(&measures, &verdicts, aborted.as_deref());
        Self {
            format: FORMAT,
            passed: reasons.is_empty(),
            aborted,
            reasons,
            identity,
            limits,
            verdicts,
            measures,
            observed: Vec::new(),
            clients,
            log_file: None,
        }
    }

    /// Something else was found that keeps it from passing.
    pub fn fail(&mut self, why: String) {
        self.passed = false;
        self.reasons.insert(0, why);
    }

    /// Every limit was kept, everything that was planned happened, and it was not broken off.
    pub fn passed(&self) -> bool {
        self.passed && self.aborted.is_none() && self.verdicts.iter().all(|verdict| verdict.kept)
    }

    /// As JSON, readable by people.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }

    /// From JSON.
    pub fn from_json(text: &str) -> Result<Self, Unreadable> {
        /// What every format has.
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let head: Head = serde_json::from_str(text)?;
        if head.format != FORMAT {
            return Err(Unreadable::Format(head.format));
        }
        Ok(serde_json::from_str(text)?)
    }

    /// For a terminal: the verdict, why, and the figures.
    pub fn text(&self) -> String {
        text::terminal(self)
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        text::markdown(self)
    }

    /// One HTML file that needs nothing else, with the timeline of the log as a picture.
    pub fn page(&self, log: &[Entry]) -> String {
        page::page(self, log)
    }

    fn verdict(&self) -> &'static str {
        match (self.passed(), &self.aborted) {
            (true, _) => "PASSED",
            (false, Some(_)) => "ABORTED",
            (false, None) => "FAILED",
        }
    }

    fn heading(&self) -> &str {
        match self.identity.title.as_str() {
            "" => &self.identity.name,
            title => title,
        }
    }
}

/// All that keeps a drill from passing.
fn reasons(measures: &Measures, verdicts: &[Verdict], aborted: Option<&str>) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some(why) = aborted {
        reasons.push(format!("it was broken off: {why}"));
    } else {
        if measures.counts.accepted == 0 {
            reasons.push("no message was accepted at all: it shows nothing".to_owned());
        }
        for fault in measures.faults.iter().filter(|fault| fault.begins.is_none()) {
            reasons.push(format!(
                "fault {} never began: {}",
                words::ordinal(fault.span.fault),
                fault.span.text
            ));
        }
    }
    let broken = verdicts.iter().filter(|verdict| !verdict.kept);
    reasons.extend(broken.map(Verdict::sentence));
    reasons
}
