//! The scenarios that are shipped, for use outside a checkout.

use super::scenario::Scenario;
use crate::server::config::TomlText;

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../simulations/", $name, ".toml")))),*]
    };
}

/// Name and text of each.
const TEXTS: [(&str, &str); 0] = shipped![];

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
