//! The settings of a node: one name each, in a file, in the environment and on the command line.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use quorate_types::{Endpoint, NodeId};

use crate::units::{format_bytes, format_duration, parse_bytes, parse_duration};

/// What a setting's value is, with its range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A node's number.
    Node,
    /// A path.
    Path,
    /// `host:port`.
    Endpoint,
    /// `node@host:port,…`.
    Controllers,
    /// Any text.
    Text,
    /// What is logged: levels, each for everything or for a part.
    Levels,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A time, in milliseconds.
    Duration(RangeInclusive<u64>),
    /// Bytes.
    Bytes(RangeInclusive<u64>),
    /// A number.
    Count(RangeInclusive<u64>),
}

/// One setting of a node.
#[derive(Debug, Clone)]
pub struct Key {
    /// Its name: the flag's and the file's; `QUORATE_` and the same in capitals with underscores in
    /// the environment.
    pub name: &'static str,
    /// What its value is.
    pub kind: Kind,
    /// Its value where none is given, written as in a file; none where there is no default.
    pub default: Option<&'static str>,
    /// What it does, in a line.
    pub help: &'static str,
    /// For tests only: not shown.
    pub hidden: bool,
}

const fn key(
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    help: &'static str,
) -> Key {
    Key {
        name,
        kind,
        default,
        help,
        hidden: false,
    }
}

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Every setting of a node, in the order in which they are shown.
pub static KEYS: [Key; 39] = [
    key(
        "node-id",
        Kind::Node,
        None,
        "This node's number, 1 or more, unique in the cluster",
    ),
    key("data-dir", Kind::Path, None, "Where everything is kept"),
    key(
        "controllers",
        Kind::Controllers,
        None,
        "The voters of the metadata quorum by their internal addresses: 1, 3 or 5, the same list \
         on every node",
    ),
    key(
        "listen",
        Kind::Endpoint,
        Some("0.0.0.0:7070"),
        "Where clients are listened for",
    ),
    key(
        "internal-listen",
        Kind::Endpoint,
        Some("0.0.0.0:7071"),
        "Where other nodes are listened for",
    ),
    key(
        "advertise",
        Kind::Endpoint,
        None,
        "How clients reach this node; by default as `listen` says, with the machine's name for \
         0.0.0.0",
    ),
    key(
        "internal-advertise",
        Kind::Endpoint,
        None,
        "How other nodes reach this node; by default as `internal-listen` says, with the \
         machine's name for 0.0.0.0",
    ),
    key(
        "rack",
        Kind::Text,
        None,
        "The rack or zone, for the spread of replicas",
    ),
    key(
        "broker-session-timeout",
        Kind::Duration(500..=5 * MINUTE),
        Some("3s"),
        "A broker unheard for so long is fenced",
    ),
    key(
        "heartbeat-interval",
        Kind::Duration(10..=MINUTE),
        Some("500ms"),
        "Pause between a broker's heartbeats",
    ),
    key(
        "replica-lag-time-max",
        Kind::Duration(100..=HOUR),
        Some("10s"),
        "A follower that has not caught up for so long leaves the ISR",
    ),
    key(
        "raft-heartbeat",
        Kind::Duration(10..=10 * SECOND),
        Some("100ms"),
        "Pause between a Raft leader's heartbeats",
    ),
    key(
        "raft-election-min",
        Kind::Duration(50..=MINUTE),
        Some("500ms"),
        "The shortest silence before a Raft election",
    ),
    key(
        "raft-election-max",
        Kind::Duration(50..=MINUTE),
        Some("1s"),
        "The longest silence before a Raft election",
    ),
    key(
        "snapshot-every-entries",
        Kind::Count(10..=10_000_000),
        Some("10000"),
        "A metadata snapshot is taken after so many entries",
    ),
    key(
        "snapshot-keep-entries",
        Kind::Count(1..=10_000_000),
        Some("1000"),
        "So many entries stay in the metadata log behind a snapshot",
    ),
    key(
        "produce-timeout",
        Kind::Duration(10..=5 * MINUTE),
        Some("30s"),
        "How long a produce may wait where its request does not say",
    ),
    key(
        "shutdown-timeout",
        Kind::Duration(0..=HOUR),
        Some("10s"),
        "How long SIGTERM waits for a controlled shutdown",
    ),
    key(
        "delete-grace",
        Kind::Duration(0..=30 * 24 * HOUR),
        Some("1m"),
        "A deleted partition's directory is kept so long",
    ),
    key(
        "produce-bytes",
        Kind::Bytes(MIB..=64 * GIB),
        Some("128MiB"),
        "Produced bytes that may wait for their acknowledgement; further ones wait for room",
    ),
    key(
        "request-bytes",
        Kind::Bytes(MIB..=64 * GIB),
        Some("256MiB"),
        "Bytes of produces that may be in reception at a port; above it they are refused",
    ),
    key(
        "fetch-bytes",
        Kind::Bytes(MIB..=64 * GIB),
        Some("256MiB"),
        "Bytes of answers to reads that may be under way; above it they become small, then wait",
    ),
    key(
        "tail-cache-bytes",
        Kind::Bytes(0..=64 * GIB),
        Some("128MiB"),
        "Newest batches of all partitions kept in memory for followers and readers that keep up",
    ),
    key(
        "max-connections",
        Kind::Count(1..=1_000_000),
        Some("12000"),
        "Open connections of the clients' port; further ones are closed at once",
    ),
    key(
        "max-requests",
        Kind::Count(1..=1_000_000),
        Some("16384"),
        "Requests of a port at a time; further ones are refused",
    ),
    key(
        "max-streams",
        Kind::Count(1..=1_000_000),
        Some("4096"),
        "Calls of a port that stay open (Consume, ProduceStream, …); further ones are refused",
    ),
    key(
        "max-streams-per-connection",
        Kind::Count(1..=100_000),
        Some("1024"),
        "Calls of one connection at a time; the client's further ones wait there",
    ),
    key(
        "receive-timeout",
        Kind::Duration(SECOND..=HOUR),
        Some("30s"),
        "How long a request's message may take to arrive",
    ),
    key(
        "group-heartbeat-interval",
        Kind::Duration(50..=MINUTE),
        Some("5s"),
        "How often members of consumer groups are to send a heartbeat, and how long one may wait",
    ),
    key(
        "group-session-timeout",
        Kind::Duration(100..=HOUR),
        Some("45s"),
        "A member without a heartbeat for so long is none any more, where it asks for nothing else",
    ),
    key(
        "group-session-timeout-min",
        Kind::Duration(100..=HOUR),
        Some("1s"),
        "The shortest session that a member may ask for",
    ),
    key(
        "group-session-timeout-max",
        Kind::Duration(100..=HOUR),
        Some("30m"),
        "The longest session that a member may ask for",
    ),
    key(
        "group-max-members",
        Kind::Count(1..=10_000),
        Some("1000"),
        "Members of a consumer group at most",
    ),
    key(
        "max-groups",
        Kind::Count(1..=1_000_000),
        Some("10000"),
        "Consumer groups of the cluster at most",
    ),
    key(
        "producer-id-expiration",
        Kind::Duration(HOUR..=365 * 24 * HOUR),
        Some("1d"),
        "A partition forgets an idempotent producer that wrote nothing to it for so long; no producer \
         may try a record for longer",
    ),
    key(
        "offsets-retention",
        Kind::Duration(MINUTE..=365 * 24 * HOUR),
        Some("7d"),
        "A consumer group without members goes after so long, with what it has committed",
    ),
    key(
        "log-level",
        Kind::Levels,
        Some("info,openraft=error,sled=warn"),
        "What is logged: error, warn, info, debug or trace, also by part: info,quorate_broker=debug",
    ),
    key(
        "log-format",
        Kind::Word(&["text", "json"]),
        Some("text"),
        "How it is logged",
    ),
    Key {
        name: "test-fsync-delay-ms",
        kind: Kind::Count(0..=MINUTE),
        default: Some("0"),
        help: "Each sync of a log file takes so many milliseconds longer, as on a slower disk",
        hidden: true,
    },
];

impl Key {
    /// The setting of that name.
    pub fn find(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// Its name in the environment.
    pub fn variable(&self) -> String {
        format!("QUORATE_{}", self.name.to_uppercase().replace('-', "_"))
    }

    /// Checks a value; gives it as it is shown.
    ///
    /// # Errors
    /// What would be right, in words.
    pub fn check(&self, value: &str) -> Result<String, String> {
        self.kind.check(value)
    }
}

impl Kind {
    fn check(&self, value: &str) -> Result<String, String> {
        let within = |range: &RangeInclusive<u64>, number: u64, show: fn(u64) -> String| {
            if range.contains(&number) {
                return Ok(show(number));
            }
            let (low, high) = (show(*range.start()), show(*range.end()));
            Err(format!("must be from {low} to {high}"))
        };
        let millis = |number: u64| format_duration(Duration::from_millis(number));
        match self {
            Self::Node => match value.parse::<NodeId>() {
                Ok(node) if node.get() > 0 => Ok(node.to_string()),
                _ => Err("must be a whole number, 1 or more".to_owned()),
            },
            Self::Endpoint => match value.parse::<Endpoint>() {
                Ok(endpoint) => Ok(endpoint.to_string()),
                Err(_) => Err("must be host:port, as in 127.0.0.1:7070".to_owned()),
            },
            Self::Controllers => {
                let controllers = parse_controllers(value)?;
                let shown = controllers.iter().map(|(node, at)| format!("{node}@{at}"));
                Ok(shown.collect::<Vec<_>>().join(","))
            }
            Self::Path | Self::Text if value.is_empty() => Err("must not be empty".to_owned()),
            Self::Path | Self::Text => Ok(value.to_owned()),
            Self::Levels => check_levels(value).map(|()| value.to_owned()),
            Self::Word(words) if words.contains(&value) => Ok(value.to_owned()),
            Self::Word(words) => Err(format!("must be {}", words.join(" or "))),
            Self::Duration(range) => {
                let duration = parse_duration(value)?;
                let number = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
                within(range, number, millis)
            }
            Self::Bytes(range) => within(range, parse_bytes(value)?, format_bytes),
            Self::Count(range) => match value.parse() {
                Ok(number) => within(range, number, |number| number.to_string()),
                Err(_) => within(range, u64::MAX, |number| number.to_string())
                    .map_err(|range| format!("must be a whole number, {}", &range[8..])),
            },
        }
    }

    /// What stands for the value in a help text.
    pub fn placeholder(&self) -> &'static str {
        match self {
            Self::Node => "N",
            Self::Path => "PATH",
            Self::Endpoint => "HOST:PORT",
            Self::Controllers => "N@HOST:PORT,…",
            Self::Text => "TEXT",
            Self::Levels => "LEVELS",
            Self::Word(_) => "WORD",
            Self::Duration(_) => "TIME",
            Self::Bytes(_) => "BYTES",
            Self::Count(_) => "NUMBER",
        }
    }
}

/// The range, in words; empty where there is none.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show =
            |f: &mut fmt::Formatter<'_>, low: String, high: String| write!(f, "{low} to {high}");
        match self {
            Self::Duration(range) => {
                let of = |millis: &u64| format_duration(Duration::from_millis(*millis));
                show(f, of(range.start()), of(range.end()))
            }
            Self::Bytes(range) => show(f, format_bytes(*range.start()), format_bytes(*range.end())),
            Self::Count(range) => show(f, range.start().to_string(), range.end().to_string()),
            Self::Word(words) => f.write_str(&words.join(" or ")),
            _ => Ok(()),
        }
    }
}

/// Takes `info` and `info,quorate_broker=debug`, nothing that a filter would read as the name of a
/// part by mistake.
fn check_levels(text: &str) -> Result<(), String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for part in text.split(',') {
        let (name, level) = part.split_once('=').unwrap_or(("all", part));
        let named = !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'));
        if !named || !LEVELS.contains(&level) {
            return Err(format!(
                "{part:?} is no level: {}, or part=level as in quorate_broker=debug",
                LEVELS.join(", ")
            ));
        }
    }
    Ok(())
}

/// Reads `1@host:port,2@host:port,…`.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse_controllers(text: &str) -> Result<Vec<(NodeId, Endpoint)>, String> {
    let mut controllers: Vec<(NodeId, Endpoint)> = Vec::new();
    for part in text.split(',') {
        let wrong = || format!("{part:?} is not node@host:port, as in 1@127.0.0.1:7071");
        let (node, endpoint) = part.trim().split_once('@').ok_or_else(wrong)?;
        let node: NodeId = node.parse().map_err(|_| wrong())?;
        let endpoint: Endpoint = endpoint.parse().map_err(|_| wrong())?;
        if controllers
            .iter()
            .any(|(other, at)| *other == node || *at == endpoint)
        {
            return Err(format!("{part:?}: node or address stands there twice"));
        }
        controllers.push((node, endpoint));
    }
    if ![1, 3, 5].contains(&controllers.len()) {
        let count = controllers.len();
        return Err(format!("there are {count} voters: a quorum has 1, 3 or 5"));
    }
    Ok(controllers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value_and_written_as_it_is_shown() {
        for key in &KEYS {
            if let Some(default) = key.default {
                assert_eq!(key.check(default).as_deref(), Ok(default), "{}", key.name);
            }
            assert_eq!(KEYS.iter().filter(|k| k.name == key.name).count(), 1);
        }
    }

    #[test]
    fn what_is_out_of_range_is_told_the_range() {
        let check = |name: &str, value: &str| Key::find(name).unwrap().check(value);
        assert_eq!(
            check("produce-timeout", "10h").unwrap_err(),
            "must be from 10ms to 5m"
        );
        assert_eq!(
            check("max-requests", "many").unwrap_err(),
            "must be a whole number, from 1 to 1000000"
        );
        assert_eq!(
            check("log-format", "xml").unwrap_err(),
            "must be text or json"
        );
        for levels in ["debug", "warn,quorate_broker=debug,h2::proto=off"] {
            assert_eq!(check("log-level", levels).as_deref(), Ok(levels));
        }
        for wrong in ["", "verbose", "loud=", "=info", "info,", "a b=info"] {
            assert!(check("log-level", wrong).is_err(), "{wrong:?}");
        }
        assert!(check("node-id", "0").is_err());
        assert!(check("listen", "7070").is_err());
    }

    #[test]
    fn controllers_are_an_odd_few_different_ones() {
        let three = "1@a:7071, 2@b:7071,3@[::1]:7071";
        assert_eq!(parse_controllers(three).unwrap().len(), 3);
        for wrong in [
            "",
            "127.0.0.1:7071",
            "1@a:7071,2@b:7071",
            "1@a:7071,1@b:7071,3@c:7071",
            "1@a:7071,2@a:7071,3@c:7071",
        ] {
            assert!(parse_controllers(wrong).is_err(), "{wrong:?}");
        }
    }
}
