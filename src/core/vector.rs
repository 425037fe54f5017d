//! Version vectors over origins: device cursors, applied and confirmed positions.

use crdts::{CmRDT, CvRDT, Dot, VClock};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ids::{Coord, Origin, Seq};

/// Most origins that a vector from outside may name; a region adds one at each start of its store.
pub const MAX_ORIGINS: usize = 4096;

/// For each origin the highest sequence covered; merges by maximum (a `crdts::VClock`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vector(VClock<Origin>);

impl Vector {
    /// The empty vector.
    pub fn new() -> Self {
        Self::default()
    }

    /// The highest sequence covered of `origin`; 0 where none is.
    pub fn of(&self, origin: Origin) -> Seq {
        self.0.get(&origin)
    }

    /// Whether a coordinate is covered.
    pub fn covers(&self, at: Coord) -> bool {
        self.of(at.origin) >= at.seq
    }

    /// Raises one origin to at least `seq`; says whether that changed anything.
    pub fn raise(&mut self, origin: Origin, seq: Seq) -> bool {
        if seq <= self.of(origin) {
            return false;
        }
        self.0.apply(Dot::new(origin, seq));
        true
    }

    /// Drops an origin.
    pub fn remove(&mut self, origin: Origin) {
        self.0.dots.remove(&origin);
    }

    /// Merges by maximum; says whether that changed anything.
    pub fn merge(&mut self, other: &Vector) -> bool {
        let mut changed = false;
        for (origin, seq) in other.iter() {
            changed |= self.raise(origin, seq);
        }
        changed
    }

    /// Whether every position of `other` is covered.
    pub fn includes(&self, other: &Vector) -> bool {
        other.iter().all(|(origin, seq)| self.of(origin) >= seq)
    }

    /// The smaller of both at each origin.
    #[must_use]
    pub fn min(&self, other: &Vector) -> Vector {
        self.iter()
            .map(|(origin, seq)| (origin, seq.min(other.of(origin))))
            .collect()
    }

    /// The origins and their sequences, in order of origin.
    pub fn iter(&self) -> impl Iterator<Item = (Origin, Seq)> + '_ {
        self.0.dots.iter().map(|(origin, seq)| (*origin, *seq))
    }

    /// Number of origins named.
    pub fn len(&self) -> usize {
        self.0.dots.len()
    }

    /// Whether no origin is named.
    pub fn is_empty(&self) -> bool {
        self.0.dots.is_empty()
    }
}

impl FromIterator<(Origin, Seq)> for Vector {
    fn from_iter<I: IntoIterator<Item = (Origin, Seq)>>(items: I) -> Self {
        let mut vector = Vector::new();
        for (origin, seq) in items {
            vector.raise(origin, seq);
        }
        vector
    }
}

impl Serialize for Vector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Vector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> serde::de::Visitor<'de> for Pairs {
            type Value = Vector;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("pairs of origin and sequence")
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Vector, A::Error> {
                let mut vector = VClock::new();
                while let Some((origin, at)) = seq.next_element::<(Origin, Seq)>()? {
                    if vector.dots.len() >= MAX_ORIGINS {
                        return Err(serde::de::Error::custom(format!(
                            "a vector names over {MAX_ORIGINS} origins"
                        )));
                    }
                    vector.merge(VClock::from(Dot::new(origin, at)));
                }
                Ok(Vector(vector))
            }
        }
        deserializer.deserialize_seq(Pairs)
    }
}
