//! Which regions are evacuated: an operator's word, which outlives restarts and reaches every node by itself.
//!
//! ```text
//! operator --> a node of the region --> its data folder (`evacuations`), then gossip --> the other nodes of the region
//! core nodes of the other regions ask it every two seconds (the admin interface) --> gossip --> the nodes of their regions
//! ```
//!
//! Each node keeps the latest word about each region that it heard of, and passes on all that it has: so nodes that were down
//! or cut off learn of it later. Of two words the one with the higher version counts, which is the time of the command, or
//! one more than the version before where a clock went back.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc, watch};

use super::clock::Wall;
use super::folder::{FolderError, NodeFolder};
use super::partition::Event;
use super::regions::Regions;
use crate::core::edge::Pace;
use crate::core::ids::RegionId;
use crate::core::node::Input;
use crate::net::gossip::{Announcer, NodeFacts};

/// Sessions a second that are told to go where nothing else is said: far below what one edge can take (a handshake costs
/// 300 us of a processor), so that those who are in the other regions notice little.
pub const DEFAULT_RATE: u32 = 500;
/// Facts in gossip begin with this; the region follows.
const FACT: &str = "evacuation.";

/// What an operator last said about a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Word {
    /// Higher than that of every earlier word about the region: unix milliseconds.
    pub version: u64,
    /// Whether its clients are to be in other regions.
    pub evacuated: bool,
    /// Sessions a second, over all edges together, that are told to go.
    pub rate: u32,
}

/// The latest word about each region of which anything was ever said.
pub type Words = BTreeMap<RegionId, Word>;

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.evacuated { "evacuated" } else { "restored" };
        write!(f, "{} {state} {}", self.version, self.rate)
    }
}

impl FromStr for Word {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split_ascii_whitespace().collect();
        let expected = || format!("{text:?}; expected VERSION evacuated|restored RATE");
        let [version, state, rate] = parts[..] else {
            return Err(expected());
        };
        Ok(Self {
            version: version.parse().map_err(|_| expected())?,
            evacuated: match state {
                "evacuated" => true,
                "restored" => false,
                _ => return Err(expected()),
            },
            rate: rate.parse().map_err(|_| expected())?,
        })
    }
}

/// A word is a time, of the clock of the node that was asked; one further ahead than this was not made by any clock that is of
/// use, and no operator could say a later one.
const AHEAD_MS: u64 = 24 * 60 * 60 * 1000;

/// Takes later words over; whether one was later.
fn merge(into: &mut Words, words: &Words) -> bool {
    let mut changed = false;
    for (region, word) in words {
        if into.get(region).is_none_or(|known| known < word) {
            into.insert(region.clone(), *word);
            changed = true;
        }
    }
    changed
}

/// Words as the data folder keeps them: a line for each region.
fn to_text(words: &Words) -> String {
    let lines = words.iter().map(|(region, word)| format!("{region} {word}\n"));
    lines.collect()
}

fn from_text(text: &str) -> Result<Words, String> {
    let mut words = Words::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let (region, word) = line
            .split_once(' ')
            .ok_or_else(|| format!("{line:?}; expected REGION VERSION evacuated|restored RATE"))?;
        let region = RegionId::new(region).map_err(|error| error.to_string())?;
        words.insert(region, word.parse()?);
    }
    Ok(words)
}

/// What this node knows. Cheap to clone.
#[derive(Clone)]
pub(super) struct Evacuations(Arc<Inner>);

struct Inner {
    folder: NodeFolder,
    /// Held while the folder is written, so that what is there is never older than what is told.
    writes: Mutex<()>,
    words: watch::Sender<Words>,
}

impl Evacuations {
    /// As the data folder has it.
    ///
    /// # Errors
    /// [`FolderError`].
    pub(super) fn open(folder: NodeFolder) -> Result<Self, FolderError> {
        let words = folder.evacuations(from_text)?;
        Ok(Self(Arc::new(Inner {
            folder,
            writes: Mutex::new(()),
            words: watch::Sender::new(words),
        })))
    }

    /// What is known now, and whenever it changes.
    pub(super) fn words(&self) -> watch::Receiver<Words> {
        self.0.words.subscribe()
    }

    /// An operator's word, later than all that is known; durable when this returns.
    ///
    /// # Errors
    /// [`FolderError`]; nothing was changed then.
    pub(super) async fn order(
        &self,
        region: RegionId,
        evacuated: bool,
        rate: u32,
        now_ms: u64,
    ) -> Result<Word, FolderError> {
        let _writes = self.0.writes.lock().await;
        let mut words = self.0.words.borrow().clone();
        let before = words.get(&region).map_or(0, |word| word.version);
        let word = Word {
            version: now_ms.max(before.saturating_add(1)),
            evacuated,
            rate,
        };
        words.insert(region, word);
        self.write(&words).await?;
        self.0.words.send_replace(words);
        Ok(word)
    }

    /// What another node knows. It counts also where it cannot be written: other nodes have it.
    ///
    /// Words from more than a day after `now_ms` are passed over.
    pub(super) async fn heard(&self, words: &Words, now_ms: u64) {
        let words = words.iter().filter(|(region, word)| {
            let sane = word.version <= now_ms.saturating_add(AHEAD_MS);
            if !sane {
                let version = word.version;
                tracing::warn!(%region, version, "a word on where clients are to be is from too far ahead, and passed over");
            }
            sane
        });
        let words: &Words = &words.map(|(region, word)| (region.clone(), *word)).collect();
        if !merge(&mut self.0.words.borrow().clone(), words) {
            return;
        }
        let _writes = self.0.writes.lock().await;
        let mut all = self.0.words.borrow().clone();
        if merge(&mut all, words) {
            if let Err(error) = self.write(&all).await {
                tracing::warn!(%error, "which regions are evacuated is not kept over a restart of this node");
            }
            self.0.words.send_replace(all);
        }
    }

    async fn write(&self, words: &Words) -> Result<(), FolderError> {
        let (inner, text) = (self.0.clone(), to_text(words));
        let written = tokio::task::spawn_blocking(move || inner.folder.keep_evacuations(&text));
        written
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }
}

/// How the words are carried out at one node.
#[derive(Clone)]
pub(super) struct Carrier {
    pub(super) region: RegionId,
    pub(super) regions: Regions,
    pub(super) events: Vec<mpsc::Sender<Event>>,
    pub(super) known: Evacuations,
    pub(super) wall: Wall,
}

impl Carrier {
    /// Before the first client comes: a region that is evacuated takes nobody from the start. Returns what was told.
    ///
    /// The queues of the partitions must have room.
    pub(super) fn begin(&self) -> Words {
        let words = self.known.words().borrow().clone();
        if let Some(word) = words.get(&self.region).filter(|word| word.evacuated) {
            tracing::warn!(region = %self.region, "this region is evacuated: no clients are taken until it is restored");
            for events in &self.events {
                let input = Input::Evacuation(Some(self.pace(&self.region, word, 0)));
                // Nobody else has the other end yet.
                let _ = events.try_send(Event::Core(input));
            }
        }
        words
    }

    /// Carries on what changes, both ways between gossip and partitions, until stopped. `told` is what partitions were told.
    pub(super) async fn run(
        self,
        told: Arc<Mutex<Words>>,
        announcer: Announcer,
        mut nodes: watch::Receiver<Vec<NodeFacts>>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut words = self.known.words();
        let mut announced = Words::new();
        loop {
            let facts = nodes.borrow_and_update().clone();
            for node in &facts {
                self.known.heard(&from_facts(&node.facts), self.wall.ms()).await;
            }
            let now = words.borrow_and_update().clone();
            let edges = facts.iter().filter(|node| node.edge).count();
            let mut told = told.lock().await;
            for (region, word) in &now {
                if announced.get(region) != Some(word) {
                    match announcer
                        .set_fact(&format!("{FACT}{region}"), &word.to_string())
                        .await
                    {
                        Ok(()) => drop(announced.insert(region.clone(), *word)),
                        Err(error) => {
                            tracing::warn!(%error, "other nodes are not told which regions are evacuated")
                        }
                    }
                }
                if told.get(region) != Some(word) {
                    self.tell(region, word, edges).await;
                    told.insert(region.clone(), *word);
                }
            }
            drop(told);
            tokio::select! {
                changed = nodes.changed() => if changed.is_err() { return },
                changed = words.changed() => if changed.is_err() { return },
                _ = stop.changed() => return,
            }
        }
    }

    async fn tell(&self, region: &RegionId, word: &Word, edges: usize) {
        tracing::warn!(%region, evacuated = word.evacuated, rate = word.rate, "an operator moves the clients of a region");
        let pace = self.pace(region, word, edges);
        for events in &self.events {
            let input = if *region == self.region {
                Input::Evacuation(word.evacuated.then_some(pace))
            } else {
                Input::Elsewhere {
                    region: region.clone(),
                    restored: (!word.evacuated).then_some(pace),
                }
            };
            let _ = events.send(Event::Core(input)).await;
        }
    }

    /// The part of one partition: of the edges of the region that is evacuated, which is this one (as its file says, or as
    /// are `there`), of those of all others where one is restored.
    fn pace(&self, region: &RegionId, word: &Word, there: usize) -> Pace {
        let named = |id: &str| id == region.as_str();
        let of = self
            .regions
            .iter()
            .filter(|file| named(&file.id) == word.evacuated);
        let filed: usize = of.map(|file| file.edges().count()).sum();
        let edges = filed.max(there) * self.events.len();
        Pace::shared(word.rate, u32::try_from(edges).unwrap_or(u32::MAX))
    }
}

/// The words among what a node announces; what this build does not understand is passed over.
fn from_facts(facts: &BTreeMap<String, String>) -> Words {
    let words = facts.range(FACT.to_owned()..).map_while(|(key, value)| {
        let region = key.strip_prefix(FACT)?;
        Some((RegionId::new(region).ok(), value.parse::<Word>().ok()))
    });
    words
        .filter_map(|(region, word)| Some((region?, word?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::node::Create;

    fn region(id: &str) -> RegionId {
        RegionId::new(id).unwrap()
    }

    fn open(path: &std::path::Path, create: Create) -> Result<Evacuations, FolderError> {
        let folder = NodeFolder::open(path, create)?;
        folder.next_generation()?;
        Evacuations::open(folder)
    }

    #[tokio::test]
    async fn what_an_operator_said_is_there_after_a_restart_and_the_later_word_counts() {
        let folder = tempfile::tempdir().unwrap();
        let known = open(folder.path(), Create::Store).unwrap();
        assert!(known.words().borrow().is_empty());
        let first = known.order(region("a"), true, 7, 1_000).await.unwrap();
        // The clock went back.
        let second = known.order(region("a"), false, 9, 10).await.unwrap();
        assert_eq!((first.version, second.version), (1_000, 1_001));
        known.order(region("b"), true, 1, 5).await.unwrap();

        let again = open(folder.path(), Create::No).unwrap();
        let words = again.words().borrow().clone();
        assert_eq!(
            words,
            [(region("a"), second), (region("b"), words[&region("b")])].into()
        );

        let mut changed = again.words();
        changed.borrow_and_update();
        again.heard(&[(region("a"), first)].into(), 2_000).await;
        assert!(!changed.has_changed().unwrap(), "an earlier word is no news");
        let later = Word {
            version: 2_000,
            ..first
        };
        again
            .heard(&[(region("a"), later), (region("c"), first)].into(), 2_000)
            .await;
        assert!(changed.has_changed().unwrap());
        changed.borrow_and_update();
        let ahead = |version| [(region("d"), Word { version, ..first })].into();
        again.heard(&ahead(2_001 + AHEAD_MS), 2_000).await;
        again.heard(&ahead(u64::MAX), 2_000).await;
        assert!(
            !changed.has_changed().unwrap(),
            "no operator could say a later one"
        );
        again.heard(&ahead(2_000 + AHEAD_MS), 2_000).await;
        assert!(changed.has_changed().unwrap());
        let third = open(folder.path(), Create::No).unwrap();
        let words = third.words().borrow().clone();
        assert_eq!((words[&region("a")], words[&region("c")]), (later, first));
    }

    #[test]
    fn a_file_that_nobody_here_wrote_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        drop(open(folder.path(), Create::Store).unwrap());
        for text in [
            "a",
            "a 1 gone 5",
            "a x evacuated 5",
            "A! 1 evacuated 5",
            "a 1 evacuated",
        ] {
            std::fs::write(folder.path().join("evacuations"), text).unwrap();
            let error = open(folder.path(), Create::No).map(drop).unwrap_err();
            assert!(error.to_string().contains("evacuations: "), "{text}: {error}");
        }
    }

    #[test]
    fn facts_of_other_kinds_and_of_later_builds_are_passed_over() {
        let facts = [
            ("client_addr", "x"),
            ("evacuation.a", "5 evacuated 500"),
            ("evacuation.b", "5 half-evacuated 500"),
            ("evacuation.C", "5 evacuated 500"),
            ("evacuation.d", "6 restored 1"),
            ("ready", "true"),
        ];
        let facts = facts
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let words = from_facts(&facts);
        let seen: Vec<String> = words
            .iter()
            .map(|(region, word)| format!("{region} {word}"))
            .collect();
        assert_eq!(seen, ["a 5 evacuated 500", "d 6 restored 1"]);
    }
}
