//! `quorate produce`: a record a line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use quorate_client::{ClientError, Delivery, Producer, ProducerOptions, ToSend};
use quorate_record::{Compression, RecordHeader};
use quorate_types::PartitionId;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::interval;

use crate::cli::{CompressionArg, Global, OutputFormat, ProduceArgs};
use crate::failure::{Failure, Outcome};
use crate::output::{self, grouped};
use crate::{client, told};

/// Lines handed over at a time, and how many such blocks may wait.
const BLOCK: usize = 1_024;
const BLOCKS: usize = 16;

impl From<CompressionArg> for Compression {
    fn from(arg: CompressionArg) -> Self {
        match arg {
            CompressionArg::None => Self::None,
            CompressionArg::Lz4 => Self::Lz4,
            CompressionArg::Zstd => Self::Zstd,
            CompressionArg::Snappy => Self::Snappy,
            CompressionArg::Gzip => Self::Gzip,
        }
    }
}

/// Records are told to be waiting when the reason has stood for so long.
const TROUBLE: Duration = Duration::from_secs(1);

/// How many records were decided, and how.
#[derive(Default)]
struct Tally {
    acknowledged: u64,
    failed: u64,
    /// What every acknowledgement promised at least: replicas that have the record, and those that
    /// have it on their disks.
    held: Option<(u32, u32)>,
    /// With the number of its line.
    first_error: Option<(u64, ClientError)>,
}

impl Tally {
    /// What every acknowledgement promised, in words; with `acks=0` nothing is.
    fn promised(&self) -> String {
        match self.held {
            Some((replicas, fsynced)) if replicas > 0 => {
                let replicas = output::counted(replicas.into(), "replica", "replicas");
                format!(", each on {replicas}, synced by {fsynced}")
            }
            _ => String::new(),
        }
    }

    /// The fate of the next line.
    fn note(&mut self, result: Result<quorate_client::Acked, ClientError>) {
        match result {
            Ok(acked) => {
                self.acknowledged += 1;
                let (replicas, fsynced) = self.held.unwrap_or((u32::MAX, u32::MAX));
                self.held = Some((replicas.min(acked.replicas), fsynced.min(acked.fsynced)));
            }
            Err(error) => {
                self.failed += 1;
                let line = self.acknowledged + self.failed;
                self.first_error.get_or_insert((line, error));
            }
        }
    }
}

/// Reads lines in a thread of its own: a terminal or a pipe may block.
fn lines(args: &ProduceArgs) -> Result<mpsc::Receiver<io::Result<Vec<Vec<u8>>>>, Failure> {
    let mut source: BufReader<Box<dyn Read + Send>> = match &args.file {
        Some(path) => {
            let failed = |error| Failure::new(format!("cannot read {}", path.display()), error);
            let file = File::open(path).map_err(failed)?;
            if file.metadata().map_err(failed)?.is_dir() {
                return Err(failed(io::ErrorKind::IsADirectory.into()));
            }
            BufReader::with_capacity(1 << 20, Box::new(file))
        }
        None => {
            if io::stdin().is_terminal() {
                eprintln!("a record a line; Ctrl-D ends");
            }
            BufReader::with_capacity(1 << 16, Box::new(io::stdin()))
        }
    };
    let (sender, receiver) = mpsc::channel(BLOCKS);
    std::thread::spawn(move || {
        let mut block = Vec::with_capacity(BLOCK);
        loop {
            let mut line = Vec::new();
            match source.read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => {
                    if line.ends_with(b"\n") {
                        line.pop();
                    }
                    block.push(line);
                }
                Err(error) => {
                    let _gone = sender.blocking_send(Err(error));
                    return;
                }
            }
            // The next line may be long in coming, from a terminal or `tail -f`.
            let starved = source.buffer().is_empty();
            if (block.len() == BLOCK || starved)
                && sender
                    .blocking_send(Ok(std::mem::take(&mut block)))
                    .is_err()
            {
                return;
            }
        }
        if !block.is_empty() {
            let _gone = sender.blocking_send(Ok(block));
        }
    });
    Ok(receiver)
}

fn bar() -> Option<ProgressBar> {
    if !io::stderr().is_terminal() {
        return None;
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template(output::RECORDS_SO_FAR) {
        bar.set_style(style.with_key("rate", output::rate));
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    Some(bar)
}

/// Says on stderr why records wait, where they do for longer than a failover takes; once for each
/// reason.
async fn tell_trouble(producer: Producer) {
    let mut told = None;
    let mut last = None;
    let mut tick = interval(TROUBLE);
    loop {
        tick.tick().await;
        let met = producer.trouble();
        if met.is_some() && met == last && met != told {
            eprintln!("waiting: {}", met.as_deref().unwrap_or_default());
            told.clone_from(&met);
        }
        last = met;
    }
}

pub(crate) async fn run(global: &Global, args: ProduceArgs) -> Outcome {
    let what = format!("cannot produce to {}", args.topic);
    let client = client(global)?;
    client
        .topic(&args.topic)
        .await
        .map_err(|error| told(&what, &error))?;
    let mut blocks = lines(&args)?;
    let producer = client.producer(ProducerOptions {
        acks: args.acks.into(),
        compression: args.compression.into(),
        delivery_timeout: args.timeout,
        ..ProducerOptions::default()
    });
    let waiting = tokio::spawn(tell_trouble(producer.clone()));
    let headers: Vec<RecordHeader> = args
        .headers
        .iter()
        .map(|(key, value)| RecordHeader {
            key: key.clone(),
            value: Some(value.clone().into()),
        })
        .collect();
    // Deliveries are awaited in the order they were made, by a task of its own.
    let (sent, mut deliveries) = mpsc::channel::<Vec<Delivery>>(1_024);
    let bar = bar();
    let shown = bar.clone();
    let counting = tokio::spawn(async move {
        let mut tally = Tally::default();
        while let Some(block) = deliveries.recv().await {
            for delivery in block {
                tally.note(delivery.wait().await);
            }
            if let Some(bar) = &shown {
                bar.set_position(tally.acknowledged);
            }
        }
        tally
    });
    let began = Instant::now();
    let mut stopped = None;
    let mut number = 0_u64;
    'reading: while let Some(block) = blocks.recv().await {
        let block = block.map_err(|error| Failure::new(&what, error))?;
        let mut made = Vec::with_capacity(block.len());
        for line in &block {
            number += 1;
            let (key, value) = match &args.key_separator {
                None => (None, &line[..]),
                Some(separator) => match memchr::memmem::find(line, separator.as_bytes()) {
                    Some(at) => (Some(&line[..at]), &line[at + separator.len()..]),
                    None => {
                        let why = format!("line {number} has no {separator:?}");
                        stopped = Some(Failure::new(&what, why));
                        break;
                    }
                },
            };
            let record = ToSend {
                key,
                value: Some(value),
                headers: &headers,
                timestamp: None,
                partition: args.partition.map(PartitionId::new),
            };
            match producer.send(&args.topic, record).await {
                Ok(delivery) => made.push(delivery),
                Err(error) => {
                    stopped = Some(told(&what, &error));
                    break;
                }
            }
        }
        if sent.send(made).await.is_err() || stopped.is_some() {
            break 'reading;
        }
    }
    drop(sent);
    producer.close().await;
    waiting.abort();
    let tally = counting.await.map_err(|error| Failure::new(&what, error))?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    report(global, &args, &tally, began.elapsed())?;
    if let Some(failure) = stopped {
        return Err(failure);
    }
    match tally.first_error {
        Some((line, error)) => {
            let what = match tally.failed {
                1 => format!("line {line} was not acknowledged"),
                failed => {
                    let failed = grouped(failed);
                    format!("{failed} records were not acknowledged, line {line} first")
                }
            };
            Err(told(what, &error))
        }
        None => Ok(()),
    }
}

fn report(global: &Global, args: &ProduceArgs, tally: &Tally, took: Duration) -> Outcome {
    let seconds = took.as_secs_f64();
    let rate = tally.acknowledged as f64 / seconds.max(1e-9);
    match global.output {
        OutputFormat::Json => output::json(&json!({
            "topic": args.topic,
            "acknowledged": tally.acknowledged,
            "failed": tally.failed,
            "seconds": seconds,
            "records_per_second": rate,
            "min_replicas": tally.held.map(|held| held.0),
            "min_fsynced": tally.held.map(|held| held.1),
        })),
        OutputFormat::Text => output::line(format!(
            "{} acknowledged in {seconds:.2} s ({} records/s){}",
            output::counted(tally.acknowledged, "record", "records"),
            grouped(rate as u64),
            tally.promised()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weakest_acknowledgement_is_what_is_told() {
        let mut tally = Tally::default();
        assert_eq!(tally.promised(), "");
        for (replicas, fsynced) in [(3, 3), (2, 3), (3, 1)] {
            tally.note(Ok(quorate_client::Acked {
                partition: PartitionId::ZERO,
                offset: Some(0),
                leader_epoch: 0,
                replicas,
                fsynced,
            }));
        }
        assert_eq!(tally.promised(), ", each on 2 replicas, synced by 1");
        tally.held = Some((1, 0));
        assert_eq!(tally.promised(), ", each on 1 replica, synced by 0");
    }
}
