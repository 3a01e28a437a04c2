//! What a node is started with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use quorate_types::{Endpoint, NodeId};

use crate::key::parse_controllers;
use crate::layers::{ConfigError, Layers, Resolved};
use crate::units::{parse_bytes, parse_duration};

/// The settings of one node; each field is described with its key in [`crate::KEYS`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NodeSettings {
    pub node_id: NodeId,
    pub data_dir: PathBuf,
    pub controllers: Vec<(NodeId, Endpoint)>,
    /// `address:port`; port 0: one that the kernel gives.
    pub listen: String,
    /// `address:port`; port 0: one that the kernel gives.
    pub internal_listen: String,
    pub advertise: Endpoint,
    pub internal_advertise: Endpoint,
    pub rack: Option<String>,
    pub broker_session_timeout: Duration,
    pub heartbeat_interval: Duration,
    pub replica_lag_time_max: Duration,
    pub raft_heartbeat: Duration,
    pub raft_election_min: Duration,
    pub raft_election_max: Duration,
    pub snapshot_every_entries: u64,
    pub snapshot_keep_entries: u64,
    pub produce_timeout: Duration,
    pub shutdown_timeout: Duration,
    pub delete_grace: Duration,
    pub produce_bytes: usize,
    pub request_bytes: usize,
    pub fetch_bytes: usize,
    pub tail_cache_bytes: usize,
    pub max_connections: usize,
    pub max_requests: usize,
    pub max_streams: usize,
    pub max_streams_per_connection: u32,
    pub receive_timeout: Duration,
    pub group_heartbeat_interval: Duration,
    pub group_session_timeout: Duration,
    pub group_session_timeout_min: Duration,
    pub group_session_timeout_max: Duration,
    pub group_max_members: usize,
    pub max_groups: usize,
    pub producer_id_expiration: Duration,
    pub offsets_retention: Duration,
    pub log_level: String,
    pub log_json: bool,
    pub test_fsync_delay: Duration,
    /// Settings of topics that are created through this node and do not say otherwise.
    pub topic_defaults: BTreeMap<String, String>,
}

/// Open connections of the nodes' port: a few come from each node.
pub const INTERNAL_CONNECTIONS: usize = 1_024;

/// Bytes of requests other than produces that may be in reception at a port.
pub const OTHER_REQUEST_BYTES: usize = 16 << 20;

const PORTS: u64 = 2;
/// Bytes of commits of consumer groups' offsets that may wait for the metadata quorum.
pub const COMMIT_BYTES: usize = 32 << 20;

/// What a node takes before the first client, a connection and a long-lived stream (bytes).
const BASE: u64 = 128 << 20;
const CONNECTION: u64 = 48 << 10;
const STREAM: u64 = 320 << 10;

impl NodeSettings {
    /// A node with every other setting at its default.
    ///
    /// # Panics
    /// Never: defaults are values (a test says so).
    pub fn new(
        node_id: NodeId,
        data_dir: PathBuf,
        controllers: Vec<(NodeId, Endpoint)>,
        listen: Endpoint,
        internal_listen: Endpoint,
    ) -> Self {
        let placeholder = [
            ("node-id", "1".to_owned()),
            ("data-dir", ".".to_owned()),
            ("controllers", "1@localhost:7071".to_owned()),
        ];
        let resolved = Layers::default()
            .flags(placeholder)
            .expect("the placeholders are values")
            .resolve();
        let defaults = Self::from_resolved(&resolved, "localhost").expect("defaults are values");
        Self {
            node_id,
            data_dir,
            controllers,
            listen: listen.to_string(),
            internal_listen: internal_listen.to_string(),
            advertise: listen,
            internal_advertise: internal_listen,
            ..defaults
        }
    }

    /// Bytes of memory that this node takes at most for clients and for the batches of its
    /// partitions, by these settings; indexes and producers' states of its partitions come to it.
    /// Each port has the limits of a port for itself.
    ///
    /// A connection's share covers its buffers and the state of its idle streams; it was measured
    /// and rounded up (`cluster-tests/tests/overload.rs`). A stream's covers four answers of 64 KiB
    /// that a slow reader leaves untaken (`src/rpc/consume.rs`) and its state. Produces count twice:
    /// so many may wait for their acknowledgement, and as many for room.
    pub fn memory_bound(&self) -> u64 {
        let bytes =
            2 * self.produce_bytes + self.fetch_bytes + self.tail_cache_bytes + COMMIT_BYTES;
        let connections = self.max_connections + INTERNAL_CONNECTIONS;
        BASE + bytes as u64
            + PORTS * (self.request_bytes + OTHER_REQUEST_BYTES) as u64
            + connections as u64 * CONNECTION
            + PORTS * self.max_streams as u64 * STREAM
    }

    /// The settings in force; `machine` is the machine's name, under which a node that listens on
    /// every address is reached where nothing else is said.
    ///
    /// # Errors
    /// [`ConfigError`] for a setting that is missing, or two that contradict each other.
    pub fn from_resolved(resolved: &Resolved, machine: &str) -> Result<Self, ConfigError> {
        let from = Reader { resolved };
        let listen: Endpoint = from.required("listen", |text| text.parse().ok())?;
        let internal: Endpoint = from.required("internal-listen", |text| text.parse().ok())?;
        let advertised = |name, listen: &Endpoint| match from.optional(name) {
            Some(given) => given.parse().unwrap_or_else(|_| listen.clone()),
            None if matches!(listen.host.as_str(), "0.0.0.0" | "::") => Endpoint {
                host: machine.to_owned(),
                port: listen.port,
            },
            None => listen.clone(),
        };
        let topic_defaults = resolved.topic.iter();
        let settings = Self {
            node_id: from.required("node-id", |text| text.parse().ok())?,
            data_dir: from.required("data-dir", |text| Some(text.into()))?,
            controllers: from.required("controllers", |text| parse_controllers(text).ok())?,
            advertise: advertised("advertise", &listen),
            internal_advertise: advertised("internal-advertise", &internal),
            listen: listen.to_string(),
            internal_listen: internal.to_string(),
            rack: from.optional("rack").map(str::to_owned),
            broker_session_timeout: from.duration("broker-session-timeout")?,
            heartbeat_interval: from.duration("heartbeat-interval")?,
            replica_lag_time_max: from.duration("replica-lag-time-max")?,
            raft_heartbeat: from.duration("raft-heartbeat")?,
            raft_election_min: from.duration("raft-election-min")?,
            raft_election_max: from.duration("raft-election-max")?,
            snapshot_every_entries: from.count("snapshot-every-entries")?,
            snapshot_keep_entries: from.count("snapshot-keep-entries")?,
            produce_timeout: from.duration("produce-timeout")?,
            shutdown_timeout: from.duration("shutdown-timeout")?,
            delete_grace: from.duration("delete-grace")?,
            produce_bytes: from.bytes("produce-bytes")?,
            request_bytes: from.bytes("request-bytes")?,
            fetch_bytes: from.bytes("fetch-bytes")?,
            tail_cache_bytes: from.bytes("tail-cache-bytes")?,
            max_connections: from.count("max-connections")?,
            max_requests: from.count("max-requests")?,
            max_streams: from.count("max-streams")?,
            max_streams_per_connection: from.count("max-streams-per-connection")?,
            receive_timeout: from.duration("receive-timeout")?,
            group_heartbeat_interval: from.duration("group-heartbeat-interval")?,
            group_session_timeout: from.duration("group-session-timeout")?,
            group_session_timeout_min: from.duration("group-session-timeout-min")?,
            group_session_timeout_max: from.duration("group-session-timeout-max")?,
            group_max_members: from.count("group-max-members")?,
            max_groups: from.count("max-groups")?,
            producer_id_expiration: from.duration("producer-id-expiration")?,
            offsets_retention: from.duration("offsets-retention")?,
            log_level: from.required("log-level", |text| Some(text.to_owned()))?,
            log_json: from.optional("log-format") == Some("json"),
            test_fsync_delay: Duration::from_millis(from.count("test-fsync-delay-ms")?),
            topic_defaults: topic_defaults
                .map(|(name, setting)| (name.clone(), setting.value.clone()))
                .collect(),
        };
        from.less("heartbeat-interval", "broker-session-timeout")?;
        from.less("group-heartbeat-interval", "group-session-timeout")?;
        from.less("group-session-timeout-min", "group-session-timeout")?;
        from.less("group-session-timeout", "group-session-timeout-max")?;
        from.less("raft-heartbeat", "raft-election-min")?;
        from.less("raft-election-min", "raft-election-max")?;
        Ok(settings)
    }
}

/// Reads values that have been checked.
struct Reader<'a> {
    resolved: &'a Resolved,
}

impl Reader<'_> {
    fn optional(&self, name: &str) -> Option<&str> {
        self.resolved
            .node
            .get(name)
            .map(|setting| setting.value.as_str())
    }

    fn required<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, ConfigError> {
        self.optional(name).and_then(parse).ok_or_else(|| {
            let variable = crate::Key::find(name).map(crate::Key::variable);
            let variable = variable.unwrap_or_default();
            ConfigError {
                place: "settings".to_owned(),
                what: format!("{name}: is missing"),
                hint: Some(format!(
                    "give --{name}, {variable}, or {name} in the file that --config names"
                )),
            }
        })
    }

    fn duration(&self, name: &str) -> Result<Duration, ConfigError> {
        self.required(name, |text| parse_duration(text).ok())
    }

    fn bytes(&self, name: &str) -> Result<usize, ConfigError> {
        self.required(name, |text| usize::try_from(parse_bytes(text).ok()?).ok())
    }

    fn count<T: std::str::FromStr>(&self, name: &str) -> Result<T, ConfigError> {
        self.required(name, |text| text.parse().ok())
    }

    /// The first must be shorter than the second.
    fn less(&self, first: &str, second: &str) -> Result<(), ConfigError> {
        let (a, b) = (self.duration(first)?, self.duration(second)?);
        if a < b {
            return Ok(());
        }
        let setting = |name: &str| self.resolved.node.get(name);
        let place = [first, second].map(|name| {
            let source = setting(name).map_or("default", |setting| setting.source.as_str());
            format!("{name} ({source})")
        });
        let value = |name| self.optional(name).unwrap_or_default();
        Err(ConfigError {
            place: place.join(", "),
            what: format!(
                "{first} = {} must be below {second} = {}",
                value(first),
                value(second)
            ),
            hint: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(flags: &[(&'static str, &str)]) -> Result<NodeSettings, ConfigError> {
        let flags = flags
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()));
        let resolved = Layers::default().flags(flags)?.resolve();
        NodeSettings::from_resolved(&resolved, "machine")
    }

    const NEEDED: [(&str, &str); 3] = [
        ("node-id", "2"),
        ("data-dir", "/d"),
        ("controllers", "2@h:7071"),
    ];

    #[test]
    fn where_a_node_is_reached_follows_from_where_it_listens() {
        let given = settings(&NEEDED).unwrap();
        assert_eq!(given.advertise.to_string(), "machine:7070");
        assert_eq!(given.internal_advertise.to_string(), "machine:7071");
        let own = [&NEEDED[..], &[("listen", "10.1.1.1:7")]].concat();
        assert_eq!(settings(&own).unwrap().advertise.to_string(), "10.1.1.1:7");
        let told = [&own[..], &[("advertise", "q.example:9")]].concat();
        assert_eq!(
            settings(&told).unwrap().advertise.to_string(),
            "q.example:9"
        );
    }

    #[test]
    fn what_is_missing_or_contradicts_itself_is_told() {
        let missing = settings(&NEEDED[..2]).unwrap_err();
        assert_eq!(missing.what, "controllers: is missing");
        assert!(missing.hint.unwrap().contains("QUORATE_CONTROLLERS"));
        let slow = [&NEEDED[..], &[("heartbeat-interval", "4s")]].concat();
        assert_eq!(
            settings(&slow).unwrap_err().to_string(),
            "heartbeat-interval (flag --heartbeat-interval), broker-session-timeout (default): \
             heartbeat-interval = 4s must be below broker-session-timeout = 3s"
        );
        // Raft draws its election timeouts from between the two.
        let drawn = [("raft-election-min", "2s"), ("raft-election-max", "2s")];
        let drawn = settings(&[&NEEDED[..], &drawn].concat()).unwrap_err();
        assert!(drawn.what.ends_with("must be below raft-election-max = 2s"));
    }
}
