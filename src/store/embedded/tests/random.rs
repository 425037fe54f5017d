//! Random operations.

use super::*;
use crate::store::conformance::random::{acts, drive};
use crate::store::conformance::snapshots;
use crate::store::memory::tests::Memory;
use proptest::prelude::*;

/// More of them on demand: `PROPTEST_CASES=10000`.
fn cases(usual: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|text| text.parse().ok());
    let count = asked.unwrap_or(usual);
    ProptestConfig {
        cases: count,
        failure_persistence: None,
        max_shrink_iters: 2_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(96))]

    /// The engines say the same, and what the model says, also across crashes that lose what was not synced.
    #[test]
    fn engines_agree_with_each_other_and_with_the_model(acts in acts(160), both in any::<bool>()) {
        let mut memory = Memory::default();
        let mut small = Simulated::new(tiny());
        let mut usual = Simulated::new(Options { segment_bytes: 64 * 1024, ..Options::default() });
        drive(vec![&mut memory, &mut small, &mut usual], &acts, both);
    }
}

proptest! {
    #![proptest_config(cases(40))]

    /// A store that lost something takes it back from another, by logs and snapshots, whatever comes between the pages.
    #[test]
    fn a_store_takes_back_what_it_lost(plan in snapshots::plans()) {
        let mut provider = (Memory::default(), Simulated::new(tiny()));
        let mut receiver = (Memory::default(), Simulated::new(tiny()));
        snapshots::drive(
            vec![&mut provider.0, &mut provider.1],
            vec![&mut receiver.0, &mut receiver.1],
            &plan,
        );
    }
}
