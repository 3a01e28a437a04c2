//! How long nothing was acknowledged.

use std::time::Duration;

use tokio::time::Instant;

/// The longest time without an acknowledgement from `since` to `until`; `times` are those of the
/// acknowledgements, in order. The first gap begins at `since` itself: it is what a client feels
/// of a fault at that moment.
pub fn longest_gap(times: &[Instant], since: Instant, until: Instant) -> Duration {
    let first = times.partition_point(|time| *time <= since);
    let mut longest = Duration::ZERO;
    let mut last = since;
    for time in times[first..].iter().copied().chain([until]) {
        let time = time.min(until);
        longest = longest.max(time.saturating_duration_since(last));
        last = time;
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_cut_to_the_time_asked_for() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let times = [at(0), at(10), at(40), at(45)];
        let gap = |since, until| longest_gap(&times, at(since), at(until)).as_millis();
        assert_eq!(gap(0, 45), 30);
        assert_eq!(gap(20, 45), 20);
        assert_eq!(gap(42, 44), 2);
        assert_eq!(gap(45, 145), 100);
        assert_eq!(longest_gap(&[], at(0), at(7)).as_millis(), 7);
    }
}
