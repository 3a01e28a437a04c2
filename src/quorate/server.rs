//! `quorate server`: one node, until it is told to stop.

use std::io::Read;
use std::time::Duration;

use quorate_config::NodeSettings;
use quorate_node::Node;
use quorate_types::Endpoint;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cli::ServerArgs;
use crate::failure::{Failure, Outcome};

/// `0.0.0.0:7070` is where to listen, not where to be reached: there the machine's name stands.
fn advertised(given: Option<Endpoint>, listen: &Endpoint) -> Endpoint {
    given.unwrap_or_else(|| {
        let unspecified = matches!(listen.host.as_str(), "0.0.0.0" | "::");
        let name = nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok());
        match name {
            Some(host) if unspecified => Endpoint {
                host,
                port: listen.port,
            },
            _ => listen.clone(),
        }
    })
}

fn settings(args: ServerArgs) -> NodeSettings {
    let defaults = NodeSettings::new(
        args.node_id,
        args.data_dir,
        args.controllers,
        args.listen.clone(),
        args.internal_listen.clone(),
    );
    let timing = args.timing;
    NodeSettings {
        advertise: advertised(args.advertise, &args.listen),
        internal_advertise: advertised(args.internal_advertise, &args.internal_listen),
        rack: args.rack,
        broker_session_timeout: timing
            .broker_session_timeout
            .unwrap_or(defaults.broker_session_timeout),
        heartbeat_interval: timing
            .heartbeat_interval
            .unwrap_or(defaults.heartbeat_interval),
        replica_lag_time_max: timing
            .replica_lag_time_max
            .unwrap_or(defaults.replica_lag_time_max),
        raft_heartbeat: timing.raft_heartbeat.unwrap_or(defaults.raft_heartbeat),
        raft_election_min: timing
            .raft_election_min
            .unwrap_or(defaults.raft_election_min),
        raft_election_max: timing
            .raft_election_max
            .unwrap_or(defaults.raft_election_max),
        produce_timeout: timing.produce_timeout.unwrap_or(defaults.produce_timeout),
        shutdown_timeout: timing.shutdown_timeout.unwrap_or(defaults.shutdown_timeout),
        snapshot_every_entries: timing
            .snapshot_every_entries
            .unwrap_or(defaults.snapshot_every_entries),
        snapshot_keep_entries: timing
            .snapshot_keep_entries
            .unwrap_or(defaults.snapshot_keep_entries),
        test_sync_delay: Duration::from_millis(args.test_fsync_delay_ms),
        ..defaults
    }
}

pub(crate) async fn run(args: ServerArgs) -> Outcome {
    if args.exit_with_parent {
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
    let what = format!("node {} could not run", args.node_id);
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
    let node = Node::start(settings(args))
        .await
        .map_err(|error| Failure::new(&what, error))?;
    node.run(stop)
        .await
        .map_err(|error| Failure::new(&what, error))
}
