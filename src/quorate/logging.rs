//! What is logged, and how: to stderr, as text or JSON, at levels that can be changed while running.

use std::io::{IsTerminal, stderr};
use std::sync::Arc;

use quorate_config::Key;
use quorate_node::LogControl;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// What is wanted to go back to the levels of the start.
pub(crate) const DEFAULT_LEVELS: &str = "default";

/// Parts that are too talkative to follow a change that does not name them, with the level that
/// they stay at. openraft warns of each call that fails; `quorum` says once that a member is silent.
const QUIET: [(&str, &str); 2] = [("openraft", "error"), ("sled", "warn")];

/// The process's log.
pub(crate) struct Logging {
    start: String,
    filter: reload::Handle<EnvFilter, Registry>,
}

impl Logging {
    /// Begins to log.
    ///
    /// # Errors
    /// What is wrong with the levels.
    pub(crate) fn start(levels: &str, json: bool) -> Result<Self, String> {
        let (filter, handle) = reload::Layer::new(parse(levels)?);
        let format = fmt::layer().with_writer(stderr);
        let format = if json {
            format
                .json()
                .flatten_event(true)
                .with_span_list(false)
                .boxed()
        } else {
            format.with_ansi(stderr().is_terminal()).boxed()
        };
        tracing_subscriber::registry()
            .with(filter)
            .with(format)
            .try_init()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            start: levels.to_owned(),
            filter: handle,
        })
    }

    /// Tells the levels, and changes them.
    pub(crate) fn control(&self) -> LogControl {
        let (handle, start) = (self.filter.clone(), self.start.clone());
        Arc::new(move |wanted: Option<&str>| {
            if let Some(levels) = wanted {
                let key = Key::find("log-level").expect("it is a setting");
                let levels = if levels == DEFAULT_LEVELS {
                    start.clone()
                } else {
                    key.check(levels)
                        .map_err(|why| format!("log-level: {why}"))?;
                    with_quiet_parts(levels)
                };
                let filter = parse(&levels)?;
                handle.reload(filter).map_err(|error| error.to_string())?;
                tracing::warn!(levels, "log levels changed");
            }
            let now = handle.with_current(ToString::to_string);
            now.map_err(|error| error.to_string())
        })
    }
}

/// The levels with those of the talkative parts, where all of them would be lifted unnamed.
fn with_quiet_parts(levels: &str) -> String {
    let given: Vec<&str> = levels.split(',').map(str::trim).collect();
    let lifts = |one: &&str| ["info", "debug", "trace"].contains(&one.to_lowercase().as_str());
    if !given.iter().any(lifts) {
        return levels.to_owned();
    }
    let names = |part: &str| {
        given.iter().any(|one| {
            let rest = one.strip_prefix(part);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['=', ':', '[']))
        })
    };
    let mut all = levels.to_owned();
    for (part, level) in QUIET.into_iter().filter(|(part, _)| !names(part)) {
        all.push_str(&format!(",{part}={level}"));
    }
    all
}

fn parse(levels: &str) -> Result<EnvFilter, String> {
    let refused = |why: &dyn std::fmt::Display| format!("log-level = {levels:?}: {why}");
    // A filter takes a word that is no level for the name of a part, and logs all of that.
    let key = Key::find("log-level").expect("it is a setting");
    key.check(levels).map_err(|why| refused(&why))?;
    EnvFilter::try_new(levels).map_err(|error| refused(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn talkative_parts_stay_quiet_unless_they_are_named() {
        for (given, all) in [
            ("debug", "debug,openraft=error,sled=warn"),
            ("info,sled=trace", "info,sled=trace,openraft=error"),
            (
                "debug,openraft::core=info",
                "debug,openraft::core=info,sled=warn",
            ),
            ("error", "error"),
            ("quorate_broker=debug", "quorate_broker=debug"),
        ] {
            assert_eq!(with_quiet_parts(given), all);
        }
    }
}
