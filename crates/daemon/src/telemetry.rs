//! Logging: `tracing` to standard error, where systemd, quickstart and the tests collect it.
//!
//! Takes a level or filter directive from the settings, overridden by the environment variable `ROOST_LOG`.

use std::io::IsTerminal;

use serde::Deserialize;
use tracing_subscriber::EnvFilter;

/// Environment variable that overrides the level.
pub const LEVEL_VARIABLE: &str = "ROOST_LOG";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("log level \"{directive}\" is not a tracing filter directive")]
    Level { directive: String, source: tracing_subscriber::filter::ParseError },
    #[error("logging is already set up in this process")]
    Repeated { source: Box<dyn std::error::Error + Send + Sync> },
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,roost_agent::sandbox=debug`.
    pub level: String,
    pub format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Text,
    Json,
}

impl Default for Settings {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: Format::Text }
    }
}

/// Sets logging up for the whole process, once.
pub fn init(settings: &Settings) -> Result<(), Error> {
    let filter = choose_filter(settings, std::env::var(LEVEL_VARIABLE).ok())?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match settings.format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|source| Error::Repeated { source })?;
    // Every daemon begins here, so none runs without a defence and keeps quiet about it.
    if let Some(warning) = roost_domain::sabotage::announce() {
        tracing::info!("{warning}");
    }
    Ok(())
}

fn choose_filter(settings: &Settings, variable: Option<String>) -> Result<EnvFilter, Error> {
    let directive = variable.filter(|text| !text.is_empty()).unwrap_or_else(|| settings.level.clone());
    EnvFilter::try_new(&directive).map_err(|source| Error::Level { directive, source })
}

/// An error with its causes, for the one place that logs it: `a: b: c`.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_wins_over_the_settings() {
        let settings = Settings { level: "warn".to_owned(), format: Format::Json };
        assert_eq!(choose_filter(&settings, None).unwrap().to_string(), "warn");
        assert_eq!(choose_filter(&settings, Some(String::new())).unwrap().to_string(), "warn");
        assert_eq!(choose_filter(&settings, Some("debug".to_owned())).unwrap().to_string(), "debug");
    }

    #[test]
    fn a_bad_level_is_named() {
        let settings = Settings { level: "roost=loud".to_owned(), format: Format::Text };
        let error = choose_filter(&settings, None).unwrap_err();
        assert_eq!(error.to_string(), "log level \"roost=loud\" is not a tracing filter directive");
    }

    #[test]
    fn a_chain_says_every_cause_once() {
        let inner = std::io::Error::other("no space");
        let error = crate::config::Error::Read { path: "/x".into(), source: inner };
        assert_eq!(chain(&error), "cannot read settings file /x, which --config names: no space");
    }
}
