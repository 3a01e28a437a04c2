//! Durations and sizes as people write them.

use std::time::Duration;

const DURATIONS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

const SIZES: [(&str, u64); 4] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("B", 1),
];

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit))
}

/// Reads `500ms`, `3s`, `2m`, `1h` or `7d`.
///
/// # Errors
/// What is expected, in words.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let parsed = split(text).and_then(|(number, unit)| {
        let (_, millis) = DURATIONS.iter().find(|(name, _)| *name == unit)?;
        number.checked_mul(*millis)
    });
    parsed
        .map(Duration::from_millis)
        .ok_or_else(|| "must be a whole number with a unit: 500ms, 3s, 2m, 1h".to_owned())
}

/// A duration in the largest unit that it is a whole number of.
pub fn format_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (unit, factor) = DURATIONS
        .iter()
        .rfind(|(_, factor)| millis > 0 && millis.is_multiple_of(*factor))
        .unwrap_or(&DURATIONS[0]);
    format!("{}{unit}", millis / factor)
}

/// Reads a number of bytes: `1048576`, `64KiB`, `128MiB` or `1GiB`.
///
/// # Errors
/// What is expected, in words.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let parsed = split(text).and_then(|(number, unit)| match unit {
        "" => Some(number),
        unit => {
            let (_, factor) = SIZES.iter().find(|(name, _)| *name == unit)?;
            number.checked_mul(*factor)
        }
    });
    parsed.ok_or_else(|| "must be a number of bytes: 1048576, 64KiB, 128MiB, 1GiB".to_owned())
}

/// A number of bytes in the largest unit that it is a whole number of.
pub fn format_bytes(bytes: u64) -> String {
    let unit = SIZES[..3]
        .iter()
        .rfind(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor));
    match unit {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_needs_its_unit() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "5", "s", "1.5s", "-1s", "99999999999999999999s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for text in ["0ms", "500ms", "3s", "90s", "2m", "36h", "7d"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
        for text in ["0", "1000", "64KiB", "128MiB", "3GiB"] {
            assert_eq!(format_bytes(parse_bytes(text).unwrap()), text);
        }
        assert!(
            parse_bytes("1MB").is_err(),
            "a unit of 1,000s is not guessed at"
        );
    }
}
