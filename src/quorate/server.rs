//! `quorate server`: one node, until it is told to stop.

use std::io::Read;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use quorate_config::{ConfigError, KEYS, Layers, NodeSettings, Resolved, format_bytes};
use quorate_node::{Node, NodeTools};
use quorate_types::Endpoint;
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cli::{Global, OutputFormat};
use crate::failure::{Failure, Outcome};
use crate::logging::Logging;
use crate::output;
use crate::server_args::ServerArgs;

/// Open files beside connections: logs, the metadata store, listeners.
const FILES: u64 = 4_096;

/// The settings in force.
pub(crate) fn resolve(args: &ServerArgs) -> Result<Resolved, ConfigError> {
    let mut layers = Layers::default();
    if let Some(path) = &args.config {
        layers = layers.file(path)?;
    }
    let layers = layers.environment(std::env::vars_os())?;
    Ok(layers.flags(args.settings.iter().cloned())?.resolve())
}

fn machine() -> String {
    let name = nix::unistd::gethostname().ok();
    let name = name.and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| "localhost".to_owned())
}

fn refused(error: &ConfigError) -> Failure {
    let failure = Failure::usage("the settings cannot be used", error);
    match &error.hint {
        Some(hint) => failure.hint(hint.clone()),
        None => failure,
    }
}

/// Reads the settings and prints them where only that was asked for; the node's are returned
/// otherwise.
pub(crate) fn prepare(global: &Global, args: &ServerArgs) -> Result<Option<NodeSettings>, Failure> {
    let resolved = resolve(args).map_err(|error| refused(&error))?;
    let settings = NodeSettings::from_resolved(&resolved, &machine());
    if args.print_config {
        print(global, &resolved, settings.as_ref().ok())?;
        settings.map_err(|error| refused(&error))?;
        return Ok(None);
    }
    settings.map(Some).map_err(|error| refused(&error))
}

/// As a TOML file that would give the same; what has no value stands as a comment.
fn print(global: &Global, resolved: &Resolved, settings: Option<&NodeSettings>) -> Outcome {
    let follows = |name: &str| match (name, settings) {
        ("advertise", Some(settings)) => Some(settings.advertise.to_string()),
        ("internal-advertise", Some(settings)) => Some(settings.internal_advertise.to_string()),
        _ => None,
    };
    let rows = KEYS.iter().filter(|key| {
        let changed = |setting: &quorate_config::Setting| setting.source != "default";
        !key.hidden || resolved.node.get(key.name).is_some_and(changed)
    });
    let rows = rows.map(|key| {
        let set = resolved.node.get(key.name);
        let value = set.map(|setting| setting.value.clone());
        let source = set.map_or("not set", |setting| setting.source.as_str());
        match (value, follows(key.name)) {
            (None, Some(value)) => (key, Some(value), "follows from the listener"),
            (value, _) => (key, value, source),
        }
    });
    if global.output == OutputFormat::Json {
        let topics = resolved.topic.iter().map(|(name, setting)| {
            let row = json!({"name": name, "value": setting.value, "source": setting.source});
            row.as_object().cloned().unwrap_or_default()
        });
        let rows = rows.map(|(key, value, source)| {
            let row = json!({
                "name": key.name,
                "value": value,
                "source": source,
                "default": key.default,
                "range": key.kind.to_string(),
                "variable": key.variable(),
                "help": key.help,
            });
            row.as_object().cloned().unwrap_or_default()
        });
        let rows: Vec<Map<String, Value>> = rows.chain(topics).collect();
        return output::json(&rows);
    }
    for (key, value, source) in rows {
        let (line, note) = match value {
            Some(value) => (format!("{} = {}", key.name, quoted(&value)), source),
            None => (format!("# {} =", key.name), source),
        };
        output::line(format!("{line:<56} # {note}"))?;
    }
    for (name, setting) in &resolved.topic {
        let line = format!("\"{name}\" = {}", quoted(&setting.value));
        output::line(format!("{line:<56} # {}", setting.source))?;
    }
    Ok(())
}

/// A value as TOML has it.
fn quoted(value: &str) -> String {
    match value.parse::<u64>() {
        Ok(number) if number.to_string() == value => value.to_owned(),
        _ => Value::from(value).to_string(),
    }
}

/// As many open files as the system lets this process have; a warning where that is too few.
fn raise_file_limit(connections: usize) {
    let wanted = FILES + 2 * connections as u64;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_err() {
        warn!(soft, hard, "the limit of open files could not be raised");
    }
    if hard < wanted {
        warn!(
            hard,
            wanted, "the limit of open files is low for `max-connections`: raise it (ulimit -n)"
        );
    }
}

/// Warns of an advertised name that nobody can look up here. Only a warning: where names come with
/// the nodes (containers, pods), this one's may not be known yet.
async fn check_advertised(addresses: [(&'static str, Endpoint); 2]) {
    for (setting, endpoint) in addresses {
        let looked_up = tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port)).await;
        if let Err(error) = looked_up {
            warn!(
                setting,
                %endpoint,
                %error,
                "the advertised name cannot be looked up on this machine: whoever is told it may not \
                 reach this node; set `{setting}` to a name or an address that the others know"
            );
        }
    }
}

pub(crate) async fn run(
    settings: NodeSettings,
    exit_with_parent: bool,
    logging: Logging,
) -> Outcome {
    if exit_with_parent {
        std::thread::spawn(|| {
            // Ends with the pipe, however the parent ended.
            let mut nothing = [0; 64];
            while std::io::stdin()
                .read(&mut nothing)
                .is_ok_and(|read| read > 0)
            {}
            std::process::exit(1);
        });
    }
    let what = format!("node {} could not run", settings.node_id);
    let stop = CancellationToken::new();
    let asked = stop.clone();
    let (mut terminated, mut interrupted) = (
        signal(SignalKind::terminate()).map_err(|error| Failure::new(&what, error))?,
        signal(SignalKind::interrupt()).map_err(|error| Failure::new(&what, error))?,
    );
    tokio::spawn(async move {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
        asked.cancel();
    });
    raise_file_limit(settings.max_connections);
    let advertised = [
        ("advertise", settings.advertise.clone()),
        ("internal-advertise", settings.internal_advertise.clone()),
    ];
    // Beside the start: a name server may take its time.
    tokio::spawn(check_advertised(advertised));
    let version = env!("CARGO_PKG_VERSION");
    let memory = format_bytes(settings.memory_bound() >> 20 << 20);
    let data = settings.data_dir.display();
    info!(version, node = %settings.node_id, %data, %memory, "quorate; memory for clients at most");
    let tools = NodeTools {
        log_level: Some(logging.control()),
        metrics: Some(quorate_console::install_metrics()),
    };
    let node = Node::start(settings, tools)
        .await
        .map_err(|error| Failure::new(&what, error))?;
    node.run(stop)
        .await
        .map_err(|error| Failure::new(&what, error))
}
