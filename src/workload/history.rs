//! What was sent, what was acknowledged, and what the log holds: the checks after Jepsen's `kafka`
//! workload. An unacknowledged record is *unknown*: it may be there once, or not.
//!
//! Not verified here: what a consumer sees while faults go on; only the log at the end is read.

use std::collections::BTreeMap;

/// A record that was sent; numbers rise for each key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Its key.
    pub key: String,
    /// Its number, different from every other's.
    pub number: u64,
    /// Where it was acknowledged, if it was.
    pub acknowledged: Option<(u32, i64)>,
}

/// A record found in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: i64,
    /// Its key.
    pub key: String,
    /// Its number.
    pub number: u64,
}

/// Everything that was sent.
pub type History = Vec<Sent>;

/// What must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// Acknowledged, and not in the log.
    Lost(Sent),
    /// Acknowledged at another place than it is.
    Moved(Sent, Stored),
    /// More than once in the log.
    Duplicate(Stored),
    /// In the log, and never sent.
    Invented(Stored),
    /// After a record of the same key that was sent later.
    OutOfOrder(Stored),
}

/// Compares what was sent with what is stored; `stored` is in offset order in each partition.
pub fn check(history: &[Sent], stored: &[Stored]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let sent: BTreeMap<u64, &Sent> = history.iter().map(|sent| (sent.number, sent)).collect();
    let mut found: BTreeMap<u64, &Stored> = BTreeMap::new();
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for record in stored {
        if !sent.contains_key(&record.number) {
            violations.push(Violation::Invented(record.clone()));
        }
        if found.insert(record.number, record).is_some() {
            violations.push(Violation::Duplicate(record.clone()));
        }
        let before = last.insert(&record.key, record.number);
        if before.is_some_and(|before| before > record.number) {
            violations.push(Violation::OutOfOrder(record.clone()));
        }
    }
    for record in history {
        let Some(place) = record.acknowledged else {
            continue;
        };
        match found.get(&record.number) {
            None => violations.push(Violation::Lost(record.clone())),
            Some(stored) if (stored.partition, stored.offset) != place => {
                violations.push(Violation::Moved(record.clone(), (*stored).clone()));
            }
            Some(_) => {}
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(number: u64, acknowledged: Option<(u32, i64)>) -> Sent {
        Sent {
            key: "k".into(),
            number,
            acknowledged,
        }
    }

    fn stored(number: u64, offset: i64) -> Stored {
        Stored {
            partition: 0,
            offset,
            key: "k".into(),
            number,
        }
    }

    #[test]
    fn a_whole_history_passes_and_what_was_not_acknowledged_may_be_there_or_not() {
        let history = [
            sent(1, Some((0, 0))),
            sent(2, None),
            sent(3, Some((0, 1))),
            sent(4, None),
        ];
        let log = [stored(1, 0), stored(3, 1), stored(4, 2)];
        assert_eq!(check(&history, &log), []);
    }

    #[test]
    fn every_kind_of_violation_is_found() {
        let history = [
            sent(1, Some((0, 0))),
            sent(2, Some((0, 1))),
            sent(3, Some((0, 2))),
        ];
        let log = [stored(2, 0), stored(1, 1), stored(1, 2), stored(9, 3)];
        let found = check(&history, &log);
        let has = |check: fn(&Violation) -> bool| found.iter().any(check);
        assert!(has(|v| matches!(v, Violation::Lost(_))));
        assert!(has(|v| matches!(v, Violation::Moved(..))));
        assert!(has(|v| matches!(v, Violation::Duplicate(_))));
        assert!(has(|v| matches!(v, Violation::Invented(_))));
        assert!(has(|v| matches!(v, Violation::OutOfOrder(_))));
    }
}
