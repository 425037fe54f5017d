//! What happened: a hash over every event, and, where it is wanted, the story in words.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Virtual time in microseconds since the start of a run.
pub type Micros = u64;

/// The hash of a run so far, and its story.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    events: u64,
    tell: bool,
    lines: Vec<String>,
    once: String,
    chapter: Option<fn(&str)>,
}

impl Trace {
    /// A new one; with `tell` it keeps the story, with `chapter` its main lines are said as they happen.
    pub fn new(tell: bool, chapter: Option<fn(&str)>) -> Self {
        Self {
            tell,
            chapter,
            ..Self::default()
        }
    }

    /// An event: its time, what kind it is, whom it meets, and its bytes.
    pub fn event(&mut self, at: Micros, kind: u8, whom: u64, bytes: &[u8]) {
        self.events += 1;
        let mut head = [0; 17];
        head[0] = kind;
        head[1..9].copy_from_slice(&at.to_be_bytes());
        head[9..].copy_from_slice(&whom.to_be_bytes());
        self.hash = xxh3_64_with_seed(&head, self.hash);
        if !bytes.is_empty() {
            self.hash = xxh3_64_with_seed(bytes, self.hash);
        }
    }

    /// A line of the story; `what` is only asked where the story is kept.
    pub fn tell(&mut self, at: Micros, what: impl FnOnce() -> String) {
        if self.tell {
            let line = format!("{:>11.6} {}", at as f64 / 1e6, what());
            self.lines.push(line);
        }
    }

    /// A main line of the story: what went wrong, and where the run stands.
    pub fn chapter(&mut self, at: Micros, what: impl FnOnce() -> String) {
        if self.tell || self.chapter.is_some() {
            let what = what();
            if let Some(say) = self.chapter {
                say(&format!("{:>11.3} s  {what}", at as f64 / 1e6));
            }
            self.tell(at, || what);
        }
    }

    /// A line of the story, unless the last such line said the same.
    pub fn tell_once(&mut self, at: Micros, what: impl FnOnce() -> String) {
        if self.tell {
            let what = what();
            if self.once != what {
                self.once.clone_from(&what);
                self.tell(at, || what);
            }
        }
    }

    /// Whether the story is kept.
    pub fn telling(&self) -> bool {
        self.tell
    }

    /// The hash over all events.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many events there were.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The story.
    pub fn into_lines(self) -> Vec<String> {
        self.lines
    }
}
