//! A recorded metadata log (`golden/log.jsonl`) gives the image that it gave when it was recorded,
//! byte for byte: from the start, and with a snapshot and its reading in at any entry. Each line is
//! an entry: its place, its envelope as it is in the log, its outcomes, then the rolling hash and
//! the XXH3-64 of the whole encoded image after it. `golden/image.json` is the last image.
//!
//! A change of the code that changes what an entry of the past does, or how it or the image is
//! written, fails here: nodes of two versions would drift apart. Where that is meant (the format has
//! not been released), the log is recorded anew, and the difference reviewed:
//! `cargo test -p quorate-metadata --lib -- --ignored record_the_golden_log`.
//!
//! Not shown: commands in an order that the script ([`crate::golden_script`]) does not have.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64;

use crate::golden_script::{Step, script};
use crate::{Command, Envelope, LogId, MetadataImage, Outcome};

/// How many commands there are; each must be in the log.
const COMMANDS: usize = 18;

fn number(command: &Command) -> usize {
    match command {
        Command::BootstrapCluster { .. } => 0,
        Command::RegisterBroker(_) => 1,
        Command::UnfenceBroker { .. } => 2,
        Command::FenceBroker { .. } => 3,
        Command::BeginControlledShutdown { .. } => 4,
        Command::CreateTopic(_) => 5,
        Command::AlterTopic(_) => 6,
        Command::DeleteTopic { .. } => 7,
        Command::AlterPartition(_) => 8,
        Command::ReportReplicaDamaged { .. } => 9,
        Command::ReportDataLoss(_) => 10,
        Command::ResignLeadership { .. } => 11,
        Command::ElectPreferredLeaders { .. } => 12,
        Command::AllocateProducerIds { .. } => 13,
        Command::SetFeature { .. } => 14,
        Command::AlterGroups { .. } => 15,
        Command::CommitOffsets { .. } => 16,
        Command::BumpProducerEpoch { .. } => 17,
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    at: LogId,
    /// None for an entry of Raft's own.
    envelope: Option<Box<RawValue>>,
    outcomes: Vec<Outcome>,
    hash: u64,
    image: u64,
}

fn file(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "golden", name]
        .iter()
        .collect()
}

fn text(encoded: &[u8]) -> &str {
    std::str::from_utf8(&encoded[1..]).expect("JSON is text")
}

/// The entry as it lies in the log.
fn entry(line: &Line) -> Option<Envelope> {
    let envelope = line.envelope.as_ref()?;
    let mut bytes = vec![1];
    bytes.extend(envelope.get().as_bytes());
    let read = Envelope::decode(&bytes).expect("an entry of the past is readable");
    assert_eq!(
        text(&read.encode()),
        envelope.get(),
        "it is written as it was"
    );
    Some(read)
}

fn apply(image: &mut MetadataImage, at: LogId, entry: Option<&Envelope>) -> Vec<Outcome> {
    match entry {
        Some(envelope) => image.apply(envelope, at).outcomes,
        None => {
            image.apply_blank(at);
            Vec::new()
        }
    }
}

fn recorded() -> Vec<(Line, Option<Envelope>)> {
    let log = std::fs::read_to_string(file("log.jsonl")).expect("the golden log");
    let lines = log.lines().map(|line| {
        let line: Line = serde_json::from_str(line).expect("a line of the golden log");
        let entry = entry(&line);
        (line, entry)
    });
    lines.collect()
}

fn check(image: &mut MetadataImage, line: &Line, entry: Option<&Envelope>) {
    let outcomes = apply(image, line.at, entry);
    assert_eq!(outcomes, line.outcomes, "{:?} {entry:?}", line.at);
    assert_eq!(image.rolling_hash(), line.hash, "{:?} {entry:?}", line.at);
    let encoded = image.encode();
    assert_eq!(xxh3_64(&encoded), line.image, "{:?} {entry:?}", line.at);
}

fn check_last(image: &MetadataImage) {
    let golden = std::fs::read_to_string(file("image.json")).expect("the golden image");
    assert_eq!(text(&image.encode()), golden.trim_end());
}

#[test]
fn a_log_of_the_past_gives_the_image_that_it_gave() {
    let mut image = MetadataImage::new();
    for (line, entry) in recorded() {
        check(&mut image, &line, entry.as_ref());
    }
    check_last(&image);
}

#[test]
fn a_snapshot_at_any_entry_changes_nothing() {
    let log = recorded();
    let mut before = MetadataImage::new();
    for taken in 0..=log.len() {
        let mut image = MetadataImage::decode(&before.encode()).expect("a snapshot is readable");
        assert_eq!(image, before, "a snapshot after {taken} entries");
        for (line, entry) in &log[taken..] {
            apply(&mut image, line.at, entry.as_ref());
            assert_eq!(image.rolling_hash(), line.hash, "snapshot after {taken}");
        }
        check_last(&image);
        if let Some((line, entry)) = log.get(taken) {
            apply(&mut before, line.at, entry.as_ref());
        }
    }
}

#[test]
fn the_golden_log_has_every_command_done_and_refused() {
    let (mut done, mut refused) = ([false; COMMANDS], [false; COMMANDS]);
    for (line, entry) in recorded() {
        let commands = entry.map(|entry| entry.commands).unwrap_or_default();
        for (command, outcome) in commands.iter().zip(&line.outcomes) {
            match outcome {
                Outcome::Refused(_) => refused[number(command)] = true,
                Outcome::Judged { refused: some } if !some.is_empty() => {
                    refused[number(command)] = true;
                }
                _ => done[number(command)] = true,
            }
        }
    }
    assert_eq!(done, [true; COMMANDS], "done, by number()");
    // Electing preferred leaders where that is not possible is no error.
    let refusable = [true; COMMANDS].iter().enumerate().map(|(n, _)| n != 12);
    assert!(refusable.eq(refused), "refused, by number(): {refused:?}");
}

#[test]
#[ignore = "writes the golden files anew, on purpose"]
fn record_the_golden_log() {
    let mut image = MetadataImage::new();
    let mut log = String::new();
    script(|step, at| {
        let (envelope, outcomes) = match step {
            Step::Blank => (None, apply(&mut image, at, None)),
            Step::Entry(envelope) => {
                let raw = RawValue::from_string(text(&envelope.encode()).to_owned());
                let outcomes = apply(&mut image, at, Some(&envelope));
                (Some(raw.expect("an envelope is JSON")), outcomes)
            }
        };
        let line = Line {
            at,
            envelope,
            outcomes,
            hash: image.rolling_hash(),
            image: xxh3_64(&image.encode()),
        };
        log.push_str(&serde_json::to_string(&line).expect("a line is JSON"));
        log.push('\n');
        image.clone()
    });
    std::fs::write(file("log.jsonl"), log).expect("the golden log can be written");
    let last = format!("{}\n", text(&image.encode()));
    std::fs::write(file("image.json"), last).expect("the golden image can be written");
}
