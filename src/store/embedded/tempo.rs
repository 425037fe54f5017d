//! How fast a checkpoint is written where nothing presses.

/// A checkpoint is written while this part of the bytes that it covers comes into the journal again, in percent: what it
/// costs is spread, so that commits beside it have the processors and the disk.
pub(super) const SPREAD_PERCENT: u64 = 75;
/// What the first checkpoint is taken to cost, in percent of the journal's bytes that it covers. Of messages that were
/// delivered meanwhile it writes little more than that they were.
const FIRST_SHARE_PERCENT: u64 = 50;

/// Measures what checkpoints cost, and says how much of the next one is due after a commit.
#[derive(Debug)]
pub(super) struct Tempo {
    /// Bytes of journal that the checkpoint under way covers.
    covers: u64,
    /// What the last checkpoint took of the budgets of its slices, in percent of what it covered.
    share: u64,
    /// Hundredths of bytes that are due.
    credit: u64,
}

impl Default for Tempo {
    fn default() -> Self {
        Self {
            covers: 0,
            share: FIRST_SHARE_PERCENT,
            credit: 0,
        }
    }
}

impl Tempo {
    /// A checkpoint begins that covers so many bytes of journal.
    pub(super) fn begin(&mut self, covers: u64) {
        self.covers = covers;
        self.credit = 0;
    }

    /// It is complete, and took so many bytes of the budgets of its slices.
    pub(super) fn end(&mut self, spent: u64) {
        if let Some(share) = (100 * spent).checked_div(self.covers) {
            self.share = share.max(1);
        }
    }

    /// What to write after so many bytes were committed: nothing before it is `least`, and not more than `most`.
    pub(super) fn slice(&mut self, committed: usize, least: usize, most: usize) -> Option<usize> {
        self.credit += committed as u64 * self.share * 100 / SPREAD_PERCENT;
        let due = (self.credit / 100) as usize;
        (due >= least.max(1)).then(|| {
            self.credit = 0;
            due.min(most)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written while so many commits of a thousand bytes come in.
    fn written(tempo: &mut Tempo, commits: usize) -> usize {
        let slices = (0..commits).filter_map(|_| tempo.slice(1000, 16_000, 64_000));
        slices
            .inspect(|slice| assert!((16_000..=64_000).contains(slice)))
            .sum()
    }

    #[test]
    fn a_checkpoint_is_spread_over_three_quarters_of_what_it_covers() {
        let mut tempo = Tempo::default();
        tempo.begin(10_000_000);
        let first = written(&mut tempo, 7_500);
        assert!((4_900_000..=5_000_000).contains(&first), "{first}");
        tempo.end(4_000_000);
        tempo.begin(10_000_000);
        let second = written(&mut tempo, 7_500);
        assert!((3_900_000..=4_000_000).contains(&second), "{second}");
    }

    #[test]
    fn one_that_covers_nothing_leaves_the_measure_as_it_is() {
        let mut tempo = Tempo::default();
        tempo.begin(0);
        tempo.end(1_000);
        assert_eq!(tempo.share, FIRST_SHARE_PERCENT);
        tempo.begin(1_000_000);
        tempo.end(0);
        assert!(written(&mut tempo, 10_000) > 0, "it comes to an end");
    }
}
