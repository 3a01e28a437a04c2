//! A topic's configuration, by Kafka's names. Only keys that have an effect are taken.

use std::collections::BTreeMap;
use std::str::FromStr;

use quorate_types::{Compression, Durability, TimestampType};

/// The settings of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSettings {
    /// `min.insync.replicas`: `acks=all` needs so many in-sync replicas, or all there are (1–32,
    /// default 2).
    pub min_insync_replicas: u32,
    /// `max.message.bytes`: the largest batch taken (61 B – 64 MiB, default 1,048,588).
    pub max_message_bytes: u32,
    /// `segment.bytes`: size at which a segment is closed (1 KiB – 2 GiB, default 1 GiB).
    pub segment_bytes: u64,
    /// `segment.ms`: age at which a segment is closed, in ms (1,000 and more, default 7 days).
    pub segment_ms: u64,
    /// `message.timestamp.type`: `CreateTime` (default) or `LogAppendTime`.
    pub timestamp_type: TimestampType,
    /// `compression.type`: the codec that batches are stored under; none (`producer`, the default):
    /// the producer's. `uncompressed`, `gzip`, `snappy`, `lz4` or `zstd`.
    pub compression: Option<Compression>,
    /// `durability`: `fsync` (default) or `page-cache`.
    pub durability: Durability,
    /// `unclean.leader.election.enable`: where no replica that holds all acknowledged records lives,
    /// another one may lead, and what it lacks is lost (default false).
    pub unclean_leader_election: bool,
}

impl Default for TopicSettings {
    fn default() -> Self {
        Self {
            min_insync_replicas: 2,
            max_message_bytes: 1_048_588,
            segment_bytes: 1 << 30,
            segment_ms: 7 * 24 * 3_600_000,
            timestamp_type: TimestampType::CreateTime,
            compression: None,
            durability: Durability::Fsync,
            unclean_leader_election: false,
        }
    }
}

/// A topic setting that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}={value}: {reason}")]
pub struct InvalidSetting {
    /// The key as it was given.
    pub key: String,
    /// The value as it was given.
    pub value: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

const BYTES: &str = " of bytes (1 MiB is 1048576)";
const MILLISECONDS: &str = " of milliseconds (1 hour is 3600000)";
const CODECS: &str = "producer, uncompressed, gzip, snappy, lz4 or zstd";

/// Reads a number; `of` names its unit, with an example.
fn in_range<T>(value: &str, low: T, high: T, of: &str) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    match value.parse::<T>() {
        Ok(number) if number >= low && number <= high => Ok(number),
        _ => Err(format!("must be a number{of} from {low} to {high}")),
    }
}

impl TopicSettings {
    /// Every key that is taken.
    pub const KEYS: [&'static str; 8] = [
        "min.insync.replicas",
        "max.message.bytes",
        "segment.bytes",
        "segment.ms",
        "message.timestamp.type",
        "compression.type",
        "durability",
        "unclean.leader.election.enable",
    ];

    /// Reads settings; what is not given is at its default.
    ///
    /// # Errors
    /// [`InvalidSetting`] for an unknown key or a value out of range.
    pub fn parse(config: &BTreeMap<String, String>) -> Result<Self, InvalidSetting> {
        let mut settings = Self::default();
        for (key, value) in config {
            settings.set(key, value).map_err(|reason| InvalidSetting {
                key: key.clone(),
                value: value.clone(),
                reason,
            })?;
        }
        Ok(settings)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "min.insync.replicas" => self.min_insync_replicas = in_range(value, 1, 32, "")?,
            "max.message.bytes" => self.max_message_bytes = in_range(value, 61, 64 << 20, BYTES)?,
            "segment.bytes" => self.segment_bytes = in_range(value, 1 << 10, 2 << 30, BYTES)?,
            "segment.ms" => {
                self.segment_ms = in_range(value, 1_000, i64::MAX as u64, MILLISECONDS)?
            }
            "message.timestamp.type" => {
                self.timestamp_type = match value {
                    "CreateTime" => TimestampType::CreateTime,
                    "LogAppendTime" => TimestampType::LogAppendTime,
                    _ => return Err("must be CreateTime or LogAppendTime".to_owned()),
                }
            }
            "compression.type" => {
                self.compression = match value {
                    "producer" => None,
                    "uncompressed" => Some(Compression::None),
                    // Kafka's word for it is above.
                    "none" => return Err(format!("must be {CODECS}: none is `uncompressed`")),
                    codec => Some(
                        Compression::from_str(codec).map_err(|_| format!("must be {CODECS}"))?,
                    ),
                }
            }
            "durability" => {
                self.durability = match value {
                    "fsync" => Durability::Fsync,
                    "page-cache" => Durability::PageCache,
                    _ => return Err("must be fsync or page-cache".to_owned()),
                }
            }
            "unclean.leader.election.enable" => {
                self.unclean_leader_election = match value {
                    "true" => true,
                    "false" => false,
                    _ => return Err("must be true or false".to_owned()),
                }
            }
            _ => {
                return Err(format!(
                    "unknown setting; known are {}",
                    Self::KEYS.join(", ")
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(key: &str, value: &str) -> Result<TopicSettings, InvalidSetting> {
        TopicSettings::parse(&BTreeMap::from([(key.to_owned(), value.to_owned())]))
    }

    #[test]
    fn a_setting_is_taken_or_refused_by_name() {
        assert_eq!(
            parse("min.insync.replicas", "1")
                .unwrap()
                .min_insync_replicas,
            1
        );
        assert_eq!(
            parse("durability", "page-cache").unwrap().durability,
            Durability::PageCache
        );
        let unclean = |value| parse("unclean.leader.election.enable", value);
        assert!(unclean("true").unwrap().unclean_leader_election);
        assert!(!unclean("false").unwrap().unclean_leader_election);
        assert!(unclean("yes").is_err());
        let codec = |value| parse("compression.type", value).unwrap().compression;
        assert_eq!(codec("producer"), None);
        assert_eq!(codec("uncompressed"), Some(Compression::None));
        assert_eq!(codec("zstd"), Some(Compression::Zstd));
        for (key, value) in [
            ("min.insync.replicas", "0"),
            ("segment.bytes", "x"),
            ("retention", "1"),
            ("compression.type", "none"),
            ("compression.type", "brotli"),
        ] {
            let error = parse(key, value).unwrap_err();
            assert!(
                error.to_string().starts_with(&format!("{key}={value}: ")),
                "{error}"
            );
        }
        let told = |key, value| parse(key, value).unwrap_err().reason;
        assert!(told("segment.bytes", "1GiB").starts_with("must be a number of bytes "));
        assert!(told("segment.ms", "1h").starts_with("must be a number of milliseconds "));
    }
}
