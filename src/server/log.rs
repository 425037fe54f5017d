//! Structured logs of the server: text or JSON on stderr, with a filter by level and module.
//!
//! The filter is a list of levels: `info`, or `warn,iris=info,iris::net=debug`. `IRIS_LOG` overrides the configuration's. A
//! level means something: error wakes someone, warn needs a look, info tells the life of the node, debug is for its developers.

use std::str::FromStr as _;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

use super::config::{LogConfig, LogFormat};

/// The variable that overrides the configured filter.
pub const ENV: &str = "IRIS_LOG";

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not parse.
    #[error(
        "log filter {filter:?}: {why}; expected a level (error, warn, info, debug, trace, off), or levels by module such as \"info,iris::net=debug\""
    )]
    Filter {
        /// The text.
        filter: String,
        /// Why.
        why: String,
    },
    /// The variable's filter does not parse.
    #[error("environment {ENV}: {0}; unset it for what log.level says")]
    Variable(#[source] Box<LogError>),
    /// Another logger is there already.
    #[error("logging was started before in this process")]
    Started,
}

/// Starts logging of this process to stderr. `env` is the value of [`ENV`], where it is set.
pub fn init(config: &LogConfig, env: Option<&str>) -> Result<(), LogError> {
    let filter = filter(config, env)?;
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match config.format {
        LogFormat::Text => lines
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init()
        .map_err(|_| LogError::Started)
}

/// Whether [`init`] would take the filter.
///
/// # Errors
/// [`LogError`].
pub fn check(config: &LogConfig, env: Option<&str>) -> Result<(), LogError> {
    filter(config, env).map(drop)
}

fn filter(config: &LogConfig, env: Option<&str>) -> Result<Targets, LogError> {
    match env {
        Some(text) => parse_filter(text).map_err(|error| LogError::Variable(Box::new(error))),
        None => parse_filter(&config.level),
    }
}

/// Reads a filter.
pub fn parse_filter(filter: &str) -> Result<Targets, LogError> {
    let wrong = |why: String| LogError::Filter {
        filter: filter.chars().take(200).collect(),
        why,
    };
    if filter.trim().is_empty() {
        return Err(wrong("it is empty".to_owned()));
    }
    // A bare word that is no level would be taken for a module with all its levels: most often a misspelt level.
    for part in filter.split(',').map(str::trim) {
        if !part.contains('=')
            && !part.contains("::")
            && tracing::level_filters::LevelFilter::from_str(part).is_err()
        {
            return Err(wrong(format!("{part:?} is no level")));
        }
    }
    Targets::from_str(filter).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_modules_are_read_and_misspelt_ones_refused() {
        for good in [
            "info",
            "off",
            "warn,iris=info",
            "info,iris::net=debug",
            "INFO",
            "iris::net",
        ] {
            assert!(parse_filter(good).is_ok(), "{good}");
        }
        for bad in ["", " ", "inof", "info,debgu", "iris=loud", "a=b=c"] {
            let error = parse_filter(bad).expect_err(bad).to_string();
            assert!(error.contains("expected a level"), "{error}");
        }
        let filter = parse_filter("warn,iris::net=debug").expect("valid");
        assert!(filter.would_enable("iris::net", &tracing::Level::DEBUG));
        assert!(!filter.would_enable("quinn", &tracing::Level::INFO));
    }
}
