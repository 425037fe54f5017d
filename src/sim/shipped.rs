//! The scenarios that are shipped, for use outside a checkout.

use super::scenario::Scenario;
use crate::server::config::TomlText;

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../simulations/", $name, ".toml")))),*]
    };
}

/// Name and text of each.
const TEXTS: [(&str, &str); 54] = shipped![
    "absent-beyond-the-limit",
    "backup-restored",
    "clients-on-the-move",
    "clock-a-day-behind",
    "clock-a-day-wrong",
    "clock-skew",
    "clock-years-ahead",
    "clogged-links",
    "close-lost-with-owner",
    "core-crash-in-commits",
    "core-down-edges-served",
    "device-expiry",
    "disk-full",
    "disk-replaced",
    "edge-and-core-together",
    "edge-crash-under-load",
    "evacuated-under-faults",
    "expiry-clock-a-day-ahead",
    "flapping-link",
    "geo-cut-off",
    "geo-region-lost-for-good",
    "geo-region-lost-for-ten-minutes",
    "gray-link",
    "inbox-full",
    "message-expiry",
    "moved-in-order",
    "narrow-link",
    "one-way-partition",
    "ownership-churn",
    "partition-for-a-day",
    "presence-changes-lost",
    "quiet-day",
    "reconnect-storm",
    "region-added",
    "region-back-after-a-day",
    "region-cut-off",
    "region-evacuated",
    "region-forced-out",
    "region-lost-for-good",
    "region-lost-for-ten-minutes",
    "region-removed-and-back",
    "region-removed-while-cut-off",
    "region-rivals",
    "regions-come-and-go",
    "retry-during-the-fsync",
    "retry-in-two-regions",
    "rolling-restart",
    "same-id-to-two-users",
    "sick-store",
    "slow-consumer",
    "storm-admitted",
    "three-way-split",
    "unknown-device",
    "wrong-failure-detector",
];

/// All of them, in the order of their names.
pub fn scenarios() -> Vec<Scenario> {
    TEXTS
        .iter()
        .map(|(name, text)| {
            let text = TomlText::new(format!("built-in/{name}.toml"), (*text).to_owned());
            text.and_then(Scenario::parse)
                .expect("the shipped scenarios are valid: a test reads them")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_of_the_repository_is_shipped() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/simulations");
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .expect("the repository has scenarios")
            .map(|entry| entry.expect("a readable folder").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
            .filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()))
            .collect();
        names.sort();
        let shipped: Vec<String> = scenarios().into_iter().map(|scenario| scenario.name).collect();
        assert_eq!(
            shipped, names,
            "src/sim/shipped.rs lists other scenarios than simulations/ has"
        );
    }
}
