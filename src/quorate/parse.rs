//! Reads the values of flags.

use std::time::Duration;

use chrono::DateTime;
use quorate_types::{Endpoint, NodeId, Offset, Timestamp};

/// Where a consumer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the first record that is still there.
    Beginning,
    /// After the last committed record.
    End,
    /// At this offset, in every partition.
    At(Offset),
    /// At the first record that is at least so young.
    Time(Timestamp),
}

/// Reads `beginning`, `end`, an offset or an RFC 3339 time.
pub fn start(text: &str) -> Result<Start, String> {
    match text {
        "beginning" => return Ok(Start::Beginning),
        "end" => return Ok(Start::End),
        _ => {}
    }
    if text.bytes().all(|byte| byte.is_ascii_digit())
        && let Ok(offset) = text.parse::<i64>()
    {
        return Ok(Start::At(Offset::new(offset.unsigned_abs())));
    }
    DateTime::parse_from_rfc3339(text)
        .map(|time| Start::Time(Timestamp::from_millis(time.timestamp_millis())))
        .map_err(|_| {
            "must be beginning, end, an offset or a time like 2026-01-31T12:00:00Z".to_owned()
        })
}

/// Reads `500ms`, `3s`, `2m` or `1h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "must be a whole number with a unit: 500ms, 3s, 2m, 1h".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(milliseconds)
        .map(Duration::from_millis)
        .ok_or_else(wrong)
}

/// Reads `1@host:port`.
pub fn controller(text: &str) -> Result<(NodeId, Endpoint), String> {
    let wrong = || format!("{text:?} is not node@host:port, as in 1@127.0.0.1:7071");
    let (node, endpoint) = text.trim().split_once('@').ok_or_else(wrong)?;
    Ok((
        node.parse().map_err(|_| wrong())?,
        endpoint.parse().map_err(|_| wrong())?,
    ))
}

/// Reads a topic setting, `key=value`.
pub fn config_pair(text: &str) -> Result<(String, String), String> {
    pair(text, "min.insync.replicas=2")
}

/// Reads a record header, `key=value`.
pub fn header_pair(text: &str) -> Result<(String, String), String> {
    pair(text, "source=web")
}

fn pair(text: &str, example: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("must be key=value, as in {example}")),
    }
}

/// A timestamp as RFC 3339 with milliseconds, in UTC.
pub fn rfc3339(timestamp: Timestamp) -> String {
    match DateTime::from_timestamp_millis(timestamp.millis()) {
        Some(time) => time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        None => format!("{} ms", timestamp.millis()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_a_word_an_offset_or_a_time() {
        assert_eq!(start("beginning"), Ok(Start::Beginning));
        assert_eq!(start("end"), Ok(Start::End));
        assert_eq!(start("42"), Ok(Start::At(Offset::new(42))));
        let time = start("1970-01-01T01:00:01+01:00");
        assert_eq!(time, Ok(Start::Time(Timestamp::from_millis(1_000))));
        for wrong in ["", "-1", "yesterday", "99999999999999999999"] {
            assert!(start(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_duration_needs_its_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "5", "s", "1.5s", "-1s", "99999999999999999999s"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_controller_is_a_node_at_an_address() {
        let (node, endpoint) = controller("3@[::1]:7071").unwrap();
        assert_eq!(node, NodeId::new(3));
        assert_eq!(endpoint.to_string(), "[::1]:7071");
        assert!(controller("127.0.0.1:7071").is_err());
    }

    #[test]
    fn a_time_is_shown_as_it_is_read() {
        let shown = rfc3339(Timestamp::from_millis(1_769_860_800_123));
        assert_eq!(shown, "2026-01-31T12:00:00.123Z");
        let read = Start::Time(Timestamp::from_millis(1_769_860_800_123));
        assert_eq!(start(&shown), Ok(read));
    }
}
