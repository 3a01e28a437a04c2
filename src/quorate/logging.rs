//! What is logged, and how: to stderr, as text or JSON, at levels that can be changed while running.

use std::io::{IsTerminal, stderr};
use std::sync::Arc;

use quorate_config::Key;
use quorate_node::LogControl;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// The process's log.
pub(crate) struct Logging {
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
        Ok(Self { filter: handle })
    }

    /// Tells the levels, and changes them.
    pub(crate) fn control(&self) -> LogControl {
        let handle = self.filter.clone();
        Arc::new(move |wanted: Option<&str>| {
            if let Some(levels) = wanted {
                let key = Key::find("log-level").expect("it is a setting");
                key.check(levels)
                    .map_err(|why| format!("log-level: {why}"))?;
                let filter = parse(levels)?;
                handle.reload(filter).map_err(|error| error.to_string())?;
                tracing::warn!(levels, "log levels changed");
            }
            let now = handle.with_current(ToString::to_string);
            now.map_err(|error| error.to_string())
        })
    }
}

fn parse(levels: &str) -> Result<EnvFilter, String> {
    let refused = |why: &dyn std::fmt::Display| format!("log-level = {levels:?}: {why}");
    // A filter takes a word that is no level for the name of a part, and logs all of that.
    let key = Key::find("log-level").expect("it is a setting");
    key.check(levels).map_err(|why| refused(&why))?;
    EnvFilter::try_new(levels).map_err(|error| refused(&error))
}
