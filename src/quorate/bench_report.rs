//! How the results of `quorate bench` are printed, and its progress while it runs.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use quorate_workload::{FailoverReport, Monitor, Report};
use serde_json::{Value, json};
use tokio::time::interval;

use crate::cli::OutputFormat;
use crate::failure::{Failure, Outcome};
use crate::output::{self, grouped};

/// The live line is renewed so often.
const RENEW: Duration = Duration::from_millis(200);
/// A generator that is so far behind its rate has not measured what it was asked to.
const TOO_FAR_BEHIND_MS: f64 = 100.0;

/// Shows how far a load is, on a terminal; never ends.
pub(crate) async fn progress(monitor: Arc<Monitor>) {
    let bar = io::stderr().is_terminal().then(ProgressBar::new_spinner);
    let Some(bar) = bar else {
        return std::future::pending().await;
    };
    let _cleared = Cleared(bar.clone());
    if let Ok(style) = ProgressStyle::with_template(output::RECORDS_SO_FAR) {
        bar.set_style(style.with_key("rate", output::rate));
    }
    let mut again = interval(RENEW);
    loop {
        again.tick().await;
        bar.set_position(monitor.done());
        let failed = monitor.failed();
        if failed > 0 {
            bar.set_message(format!(", {} failed", grouped(failed)));
        }
        bar.tick();
    }
}

/// Takes the line away when the load has ended.
struct Cleared(ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Prints a result; an error where something failed, or less was done than was asked.
pub(crate) fn print(
    format: OutputFormat,
    bench: &str,
    settings: Value,
    report: &Report,
) -> Outcome {
    match format {
        OutputFormat::Json => output::json(&as_json(bench, settings, report)?)?,
        OutputFormat::Text => text(bench, &settings, report)?,
    }
    done(report)
}

/// Whether all was done that was asked, and nothing failed.
fn done(report: &Report) -> Outcome {
    let failover = report.failover.as_ref();
    let violations = failover.map_or(0, |seen| seen.violations);
    if violations > 0 {
        let what = "the log does not hold what was acknowledged";
        return Err(Failure::new(what, format!("{violations} violations")));
    }
    if report.failed > 0 {
        let why = report.first_error.clone();
        return Err(Failure::new(
            format!("{} records failed", grouped(report.failed)),
            why.unwrap_or_else(|| "no reason is known".to_owned()),
        ));
    }
    let stopped = "less was measured than was asked for";
    if report.stopped_early {
        return Err(Failure::new(stopped, "it was interrupted"));
    }
    match failover.map_or(0, |seen| seen.kills_missing) {
        0 => Ok(()),
        missing => {
            let why = format!("the time was over with {missing} kills to go");
            Err(Failure::new(stopped, why).hint("a longer --duration"))
        }
    }
}

fn as_json(bench: &str, settings: Value, report: &Report) -> Result<Value, Failure> {
    let mut value = serde_json::to_value(report)
        .map_err(|error| Failure::new("could not write JSON", error))?;
    value["bench"] = json!(bench);
    value["settings"] = settings;
    Ok(value)
}

fn text(bench: &str, settings: &Value, report: &Report) -> Outcome {
    let row = |name: &str, text: String| output::line(format!("{name:<12}{text}"));
    let early = if report.stopped_early {
        ", stopped early"
    } else {
        ""
    };
    row("bench", format!("{bench}{early}"))?;
    row("settings", pairs(settings))?;
    let warm_up = match report.warm_up_records {
        0 => "no warm-up".to_owned(),
        records => format!("{} more of the warm-up are left out", grouped(records)),
    };
    row(
        "records",
        format!("{} measured; {warm_up}", grouped(report.records)),
    )?;
    row(
        "throughput",
        format!(
            "{} records/s, {:.2} MB/s, over {:.2} s",
            grouped(report.records_per_second as u64),
            report.mb_per_second,
            report.seconds
        ),
    )?;
    let ms = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
    let since = match (bench, report.behind_ms) {
        ("consume", _) => "of a fetch",
        (_, Some(_)) => "from the time each record was meant to be sent",
        (_, None) => "from the send",
    };
    row(
        "latency",
        format!(
            "p50 {}  p99 {}  p99.9 {}  max {} ms, {since}",
            ms(report.latency.p50_ms),
            ms(report.latency.p99_ms),
            ms(report.latency.p999_ms),
            ms(report.latency.max_ms)
        ),
    )?;
    if let Some(behind) = report.behind_ms {
        let waited = report.waited_for_room_ms;
        let mut said = format!("up to {behind:.1} ms behind its rate");
        if waited > 0.0 {
            said += &format!(", {waited:.0} ms waiting for room");
        }
        if behind > TOO_FAR_BEHIND_MS {
            said += ": the rate asked for was not kept";
        }
        row("generator", said)?;
    }
    let cpu = |seconds: f64, per_gb: Option<f64>| match per_gb {
        Some(per_gb) => format!("{seconds:.2} s ({per_gb:.2} s/GB)"),
        None => format!("{seconds:.2} s"),
    };
    let nodes = report.nodes_cpu_seconds;
    let nodes = nodes.map_or("unknown".to_owned(), |seconds| {
        cpu(seconds, report.nodes_cpu_seconds_per_gb)
    });
    let own = cpu(report.cpu_seconds, report.cpu_seconds_per_gb);
    if report.failover.is_none() {
        row("CPU", format!("this process {own}, nodes {nodes}"))?;
    }
    if let Some(seen) = &report.failover {
        failover(seen, row)?;
    }
    row("failed", grouped(report.failed))
}

fn failover(seen: &FailoverReport, row: impl Fn(&str, String) -> Outcome) -> Outcome {
    for gap in &seen.gaps {
        let of = match (gap.killed, gap.controller) {
            (Some(node), Some(true)) => format!("kill of node {node}, the active controller"),
            (Some(node), _) => format!("kill of node {node}"),
            (None, _) if gap.open => "still open when the load ended".to_owned(),
            (None, _) => "change of leaders".to_owned(),
        };
        let led = output::list(&gap.partitions);
        row(
            "gap",
            format!(
                "{:.0} ms: {of}; new leaders for partitions {led}",
                gap.gap_ms
            ),
        )?;
    }
    if seen.gaps.is_empty() {
        row("gaps", "none: no leader changed".to_owned())?;
    }
    let checked = grouped(seen.checked);
    let found = match seen.violations {
        0 => format!("all {checked} acknowledged records are where they belong, once, in order"),
        violations => format!(
            "{} VIOLATIONS in {checked} acknowledged records",
            grouped(violations)
        ),
    };
    row("check", found)?;
    for violation in &seen.violations_seen {
        row("", violation.clone())?;
    }
    Ok(())
}

/// `key=value` for each setting that is set.
fn pairs(settings: &Value) -> String {
    let set = settings.as_object().into_iter().flatten();
    let set = set.filter(|(_, value)| !value.is_null());
    let pairs = set.map(|(key, value)| match value {
        Value::String(text) => format!("{key}={text}"),
        other => format!("{key}={other}"),
    });
    pairs.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_the_report_with_its_settings() {
        let report = Report {
            records: 5,
            ..Report::default()
        };
        let value = as_json("produce", json!({"producers": 2}), &report).unwrap();
        assert_eq!(value["bench"], "produce");
        assert_eq!(value["records"], 5);
        assert_eq!(value["settings"]["producers"], 2);
        assert!(value["p50_ms"].is_null() && value.get("gaps_ms").is_none());
    }

    #[test]
    fn what_falls_short_of_what_was_asked_is_a_failure() {
        assert!(done(&Report::default()).is_ok());
        let seen = |kills_missing| {
            Some(FailoverReport {
                kills_missing,
                ..FailoverReport::default()
            })
        };
        let short = [
            Report {
                failed: 1,
                ..Report::default()
            },
            Report {
                stopped_early: true,
                ..Report::default()
            },
            Report {
                failover: seen(1),
                ..Report::default()
            },
        ];
        for report in short {
            assert_eq!(done(&report).unwrap_err().exit_code(), 1, "{report:?}");
        }
        let report = Report {
            failover: seen(0),
            ..Report::default()
        };
        assert!(done(&report).is_ok());
    }

    #[test]
    fn settings_are_told_in_one_line() {
        let settings = json!({"acks": "all", "rate": null, "producers": 2});
        assert_eq!(pairs(&settings), "acks=all producers=2");
    }
}
