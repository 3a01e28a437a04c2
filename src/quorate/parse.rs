//! Reads the values of flags.

use std::time::Duration;

use chrono::{DateTime, NaiveDate};
use quorate_types::{Offset, Timestamp};

/// For whoever has written a time in another way.
pub const HOW_A_TIME_IS_WRITTEN: &str =
    "a time is written 2026-01-31T12:00:00Z, 2026-01-31 or @1795614975844";

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

/// Reads `beginning`, `end` (or Kafka's `earliest`, `latest`), an offset, an RFC 3339 time, a date
/// (its beginning in UTC) or `@` with milliseconds since 1970.
pub fn start(text: &str) -> Result<Start, String> {
    let wrong = || format!("must be beginning, end, an offset or a time; {HOW_A_TIME_IS_WRITTEN}");
    match text {
        "beginning" | "earliest" => return Ok(Start::Beginning),
        "end" | "latest" => return Ok(Start::End),
        _ => {}
    }
    if let Some(millis) = text.strip_prefix('@') {
        let millis = millis.parse().map_err(|_| wrong())?;
        return Ok(Start::Time(Timestamp::from_millis(millis)));
    }
    if text.bytes().all(|byte| byte.is_ascii_digit())
        && let Ok(offset) = text.parse::<i64>()
    {
        return Ok(Start::At(Offset::new(offset.unsigned_abs())));
    }
    let date = text.parse::<NaiveDate>().ok();
    let time = match date.and_then(|date| date.and_hms_opt(0, 0, 0)) {
        Some(midnight) => midnight.and_utc().timestamp_millis(),
        None => DateTime::parse_from_rfc3339(text)
            .map_err(|_| wrong())?
            .timestamp_millis(),
    };
    Ok(Start::Time(Timestamp::from_millis(time)))
}

/// Refuses `--topic`.
pub fn no_topic_flag(_: &str) -> Result<String, String> {
    Err("the topic's name stands without a flag".to_owned())
}

/// Reads an offset.
pub fn offset(text: &str) -> Result<Offset, String> {
    match text.parse::<i64>() {
        Ok(offset) if offset >= 0 => Ok(Offset::new(offset.unsigned_abs())),
        _ => Err("must be an offset, 0 or more".to_owned()),
    }
}

/// Reads milliseconds since 1970, an RFC 3339 time or a date.
pub fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(millis) = text.parse() {
        return Ok(Timestamp::from_millis(millis));
    }
    match start(text) {
        Ok(Start::Time(time)) => Ok(time),
        _ => Err(format!(
            "must be milliseconds or a time; {HOW_A_TIME_IS_WRITTEN}"
        )),
    }
}

/// Refuses `--data-dir` where the directory stands by itself.
pub fn no_directory_flag(_: &str) -> Result<String, String> {
    Err("the directory stands without a flag".to_owned())
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

/// How long a producer tries: 1 s to a day.
pub(crate) fn delivery_timeout(text: &str) -> Result<Duration, String> {
    let time = quorate_config::parse_duration(text)?;
    if (Duration::from_secs(1)..=Duration::from_secs(24 * 3_600)).contains(&time) {
        Ok(time)
    } else {
        Err("must be from 1s to 24h".to_owned())
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
        let midnight = Start::Time(Timestamp::from_millis(1_769_817_600_000));
        assert_eq!(start("2026-01-31"), Ok(midnight));
        assert_eq!(start("@1769817600000"), Ok(midnight));
        assert_eq!(start("earliest"), Ok(Start::Beginning));
        assert_eq!(start("latest"), Ok(Start::End));
        for wrong in [
            "",
            "-1",
            "@",
            "@now",
            "2026-13-01",
            "yesterday",
            "99999999999999999999",
        ] {
            assert!(start(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_time_of_its_own_may_be_plain_milliseconds() {
        let second = Ok(Timestamp::from_millis(1_000));
        for text in ["1000", "@1000", "1970-01-01T00:00:01Z"] {
            assert_eq!(time(text), second);
        }
        assert!(time("beginning").is_err());
        assert_eq!(offset("7"), Ok(Offset::new(7)));
        assert!(offset("-7").is_err() && offset("").is_err());
    }

    #[test]
    fn a_time_is_shown_as_it_is_read() {
        let shown = rfc3339(Timestamp::from_millis(1_769_860_800_123));
        assert_eq!(shown, "2026-01-31T12:00:00.123Z");
        let read = Start::Time(Timestamp::from_millis(1_769_860_800_123));
        assert_eq!(start(&shown), Ok(read));
    }
}
