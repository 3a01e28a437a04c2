//! `/metrics`: what every room counts, in the text format of Prometheus.

use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Bounds of the histograms' buckets, in seconds: from an append in memory to a time-out.
const SECONDS: [f64; 18] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0,
];
/// How often histograms take in what was recorded: until then it waits in memory.
const UPKEEP: Duration = Duration::from_secs(1);

/// The process's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

/// Begins to count, for the whole process; a second call gives the same.
///
/// # Panics
/// Where the process counts otherwise already.
pub fn install() -> Metrics {
    static INSTALLED: OnceLock<PrometheusHandle> = OnceLock::new();
    let handle = INSTALLED.get_or_init(|| {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
            .expect("there are buckets");
        builder
            .install_recorder()
            .expect("a process has one recorder")
    });
    Metrics {
        handle: handle.clone(),
    }
}

impl Metrics {
    /// Everything, as of now.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Keeps the histograms small; ends with the task that runs it.
    pub async fn upkeep(self) {
        let mut tick = tokio::time::interval(UPKEEP);
        loop {
            tick.tick().await;
            self.handle.run_upkeep();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_rendered() {
        let installed = install();
        metrics::counter!("quorate_test_total", "kind" => "a").increment(2);
        metrics::histogram!("quorate_test_duration_seconds").record(0.002);
        let text = install().render();
        assert!(text.contains("quorate_test_total{kind=\"a\"} 2"), "{text}");
        assert!(
            text.contains("quorate_test_duration_seconds_bucket{le=\"0.0025\"} 1"),
            "{text}"
        );
        drop(installed);
    }
}
