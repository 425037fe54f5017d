//! `iris config print`

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::cli::{args, output};
use crate::server::config::{Loaded, Place, TomlText};

/// Print the configuration that a node would start with, and where each value came from.
///
/// Layers: defaults, the node's entry in its region's file, the file, IRIS_ variables, flags. Secrets show as ***.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris config print --config node.toml
  iris config print --config node.toml --set limits.max_body=32KiB
  iris config print --config node.toml --output json | jq .sources")]
pub struct Print {
    #[command(flatten)]
    config: args::ConfigArgs,
    /// TOML that can be read again, with the origin of each value that is no default as a comment; or JSON with both.
    #[arg(long, value_enum, default_value_t)]
    output: Form,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Form {
    #[default]
    Toml,
    Json,
}

impl Print {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let loaded = self.config.load()?;
        match self.output {
            Form::Toml => output::print(&annotated(&loaded)?)?,
            Form::Json => {
                let sources: BTreeMap<&String, String> = loaded
                    .sources
                    .iter()
                    .map(|(key, place)| (key, place.to_string()))
                    .collect();
                output::print_json(&serde_json::json!({"config": loaded.config, "sources": sources}))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The configuration as TOML; each line whose value a layer sets ends in a comment that names the layer.
fn annotated(loaded: &Loaded) -> anyhow::Result<String> {
    let text = loaded.config.to_toml();
    let index = TomlText::new("printed", text.clone())?;
    let mut by_line = BTreeMap::new();
    for (key, place) in &loaded.sources {
        if let Place::File(_, Some(line)) = index.place(key) {
            by_line.insert(line, place);
        }
    }
    let mut annotated = String::with_capacity(text.len() * 2);
    for (line, number) in text.lines().zip(1..) {
        annotated.push_str(line);
        if let Some(place) = by_line.get(&number) {
            annotated.push_str(&format!("  # {place}"));
        }
        annotated.push('\n');
    }
    Ok(annotated)
}
