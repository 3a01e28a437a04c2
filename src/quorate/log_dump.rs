//! `quorate log dump`: prints partitions as they are on the disk. One batch is in memory at a
//! time; what is damaged is printed as such and passed.

use std::io::{self, BufWriter, StdoutLock, Write};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quorate_log::{
    Offline, OfflinePartition, OfflineTarget, PartitionFiles, Piece, SegmentWalk, segments,
};
use quorate_record::{Batch, BatchHeader, Record};
use serde_json::{Map, Value, json};

use crate::cli::OutputFormat;
use crate::failure::{Failure, Outcome};
use crate::format::put;
use crate::log_args::DumpArgs;
use crate::log_metadata;
use crate::log_tool::open;
use crate::parse::rfc3339;

/// Where lines go; what is buffered is written at the end.
pub(crate) struct Printer {
    out: BufWriter<StdoutLock<'static>>,
    json: bool,
}

impl Printer {
    /// Prints one thing: in JSON as an object of that kind, else as a line.
    pub(crate) fn put(
        &mut self,
        kind: &str,
        object: Value,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        let written = if self.json {
            let mut whole = Map::new();
            whole.insert("kind".to_owned(), kind.into());
            if let Value::Object(fields) = object {
                whole.extend(fields);
            }
            serde_json::to_writer(&mut self.out, &whole)
                .map_err(io::Error::from)
                .and_then(|()| self.out.write_all(b"\n"))
        } else {
            writeln!(self.out, "{}", text())
        };
        written.map_err(Failure::stdout)
    }
}

pub(crate) fn run(format: OutputFormat, args: &DumpArgs) -> Outcome {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(format!("cannot print {}", args.path.display()), error)
    };
    let offline = open(&args.path)?;
    let wanted = |partition: &OfflinePartition| {
        args.partition.as_ref().is_none_or(|(topic, number)| {
            partition.id.as_ref().is_some_and(|(name, id)| {
                name.as_str() == topic.as_str() && id.partition.get() == *number
            })
        })
    };
    let partitions: Vec<OfflinePartition> = offline
        .partitions()
        .map_err(|error| failed(&error))?
        .into_iter()
        .filter(wanted)
        .collect();
    if let (true, Some((topic, number))) = (partitions.is_empty(), &args.partition) {
        let why = format!("there is no directory of partition {topic}-{number}");
        return Err(failed(&why).hint("`ls` the logs directory for what is there"));
    }
    let mut printer = Printer {
        out: BufWriter::new(io::stdout().lock()),
        json: format == OutputFormat::Json,
    };
    if *offline.target() == OfflineTarget::DataDirectory && args.partition.is_none() {
        log_metadata::print(&offline, args.metadata, &mut printer)?;
    }
    let only = match offline.target() {
        OfflineTarget::Segment(_, base) => Some(*base),
        _ => None,
    };
    for partition in &partitions {
        let mut dump = Dump {
            args,
            offline: &offline,
            partition,
            printer: &mut printer,
            left: args.max.unwrap_or(u64::MAX),
        };
        dump.run(only)?;
    }
    printer.out.flush().map_err(Failure::stdout)
}

struct Dump<'a> {
    args: &'a DumpArgs,
    offline: &'a Offline,
    partition: &'a OfflinePartition,
    printer: &'a mut Printer,
    left: u64,
}

impl Dump<'_> {
    fn failed(&self, error: impl std::fmt::Display) -> Failure {
        let path = self.offline.root().join(&self.partition.path);
        Failure::new(format!("cannot print {}", path.display()), error)
    }

    /// The fields that say where a line belongs.
    fn place(&self) -> Map<String, Value> {
        let mut place = Map::new();
        if let Some((topic, id)) = &self.partition.id {
            place.insert("topic".to_owned(), topic.as_str().into());
            place.insert("partition".to_owned(), id.partition.get().into());
        }
        place
    }

    fn put(
        &mut self,
        kind: &str,
        fields: Value,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        let mut object = self.place();
        if let Value::Object(fields) = fields {
            object.extend(fields);
        }
        self.printer.put(kind, Value::Object(object), text)
    }

    fn run(&mut self, only: Option<quorate_types::Offset>) -> Outcome {
        let (dir, folder) = (self.offline.dir(), self.partition.path.as_str());
        let bases = segments(dir, folder).map_err(|error| self.failed(error))?;
        let files = PartitionFiles::read(dir, folder).map_err(|error| self.failed(error))?;
        let shown = self.offline.root().join(folder).display().to_string();
        let id = self.partition.id.as_ref().map(|(_, id)| id.topic_id);
        let name = self.partition.id.as_ref().map_or_else(
            || "partition".to_owned(),
            |(topic, id)| {
                format!(
                    "partition {topic}-{}, topic id {}",
                    id.partition, id.topic_id
                )
            },
        );
        let object = json!({"path": shown, "topic_id": id.map(|id| id.to_string())});
        self.put("partition", object, || format!("{name}: {shown}"))?;
        if only.is_none() {
            self.files(&files)?;
        }
        for (index, base) in bases.iter().enumerate() {
            let next = bases.get(index + 1);
            let below = next.is_some_and(|next| next.get() <= self.args.from_offset.unwrap_or(0));
            if only.is_some_and(|only| only != *base) || below || self.left == 0 {
                continue;
            }
            self.segment(folder, *base)?;
        }
        Ok(())
    }

    fn files(&mut self, files: &PartitionFiles) -> Outcome {
        // The last record counts; those before it are history.
        if let Some(last) = files.positions.last() {
            let object = json!({
                "position": last.position,
                "log_start": last.log_start.get(),
                "high_watermark": last.high_watermark.get(),
                "recovery_point": last.recovery_point.get(),
            });
            self.put("checkpoint", object, || {
                format!(
                    "  checkpoint at {}: log start {}, high watermark {}, recovery point {}",
                    last.position, last.log_start, last.high_watermark, last.recovery_point
                )
            })?;
        }
        for (epoch, first) in files.epochs.entries() {
            let object = json!({"leader_epoch": epoch.get(), "first_offset": first.get()});
            self.put("epoch", object, || {
                format!("  epoch {epoch} from offset {first}")
            })?;
        }
        for (at, states) in &files.snapshots {
            for producer in states.iter() {
                let last: Vec<Value> = producer
                    .last
                    .iter()
                    .map(|(sequence, count, base)| {
                        json!({
                            "base_sequence": sequence.get(),
                            "records": count,
                            "base_offset": base.get(),
                        })
                    })
                    .collect();
                let object = json!({
                    "snapshot_offset": at.get(),
                    "producer_id": producer.id.get(),
                    "producer_epoch": producer.epoch.get(),
                    "last_batches": last,
                });
                self.put("producer", object, || {
                    let last: Vec<String> = producer
                        .last
                        .iter()
                        .map(|(sequence, count, base)| {
                            format!("sequence {sequence} ({count} at offset {base})")
                        })
                        .collect();
                    let (id, epoch) = (producer.id, producer.epoch);
                    let last = last.join(", ");
                    format!("  producer {id} as of offset {at}: epoch {epoch}, {last}")
                })?;
            }
        }
        Ok(())
    }

    fn segment(&mut self, folder: &str, base: quorate_types::Offset) -> Outcome {
        let walk = SegmentWalk::open(self.offline.dir(), folder, base);
        let mut walk = walk.map_err(|error| self.failed(error))?;
        let file = Path::new(walk.path())
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let length = walk.length();
        let object = json!({"file": file, "base_offset": base.get(), "bytes": length});
        self.put("segment", object, || {
            format!("  segment {file}: {length} bytes")
        })?;
        while self.left > 0 {
            let piece = walk.next_piece().map_err(|error| self.failed(error))?;
            match piece {
                None => break,
                Some(Piece::Batch { position, batch }) => {
                    if batch.end_offset().get() > self.args.from_offset.unwrap_or(0) {
                        self.batch(position, &batch)?;
                    }
                }
                Some(Piece::Damage {
                    position,
                    until,
                    error,
                    header,
                }) => {
                    if let Some(header) = &header {
                        self.header(position, header, false)?;
                    }
                    let object = json!({
                        "position": position,
                        "until": until,
                        "what": error.to_string(),
                    });
                    self.put("damage", object, || {
                        format!("    damage from {position} to {until}: {error}")
                    })?;
                }
            }
        }
        Ok(())
    }

    fn batch(&mut self, position: u64, batch: &Batch) -> Outcome {
        self.header(position, batch.header(), true)?;
        if !self.args.records {
            self.left -= 1;
            return Ok(());
        }
        let records = match batch.records() {
            Ok(records) => records,
            Err(error) => {
                let object = json!({"position": position, "what": error.to_string()});
                return self.put("damage", object, || format!("      records: {error}"));
            }
        };
        let from = self.args.from_offset.unwrap_or(0);
        for record in records.iter().filter(|r| r.offset.get() >= from) {
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            self.put("record", record_json(record), || record_text(record))?;
        }
        Ok(())
    }

    fn header(&mut self, position: u64, header: &BatchHeader, crc_ok: bool) -> Outcome {
        let producer = header.producer;
        let object = json!({
            "position": position,
            "base_offset": header.base_offset.get(),
            "last_offset": header.end_offset().get() - 1,
            "records": header.record_count,
            "leader_epoch": header.leader_epoch.get(),
            "producer_id": producer.map(|tag| tag.id.get()),
            "producer_epoch": producer.map(|tag| tag.epoch.get()),
            "base_sequence": producer.map(|tag| tag.base_sequence.get()),
            "compression": header.compression.name(),
            "base_timestamp_ms": header.base_timestamp.millis(),
            "max_timestamp_ms": header.max_timestamp.millis(),
            "bytes": header.size,
            "crc": format!("{:08x}", header.crc),
            "crc_ok": crc_ok,
        });
        self.put("batch", object, || {
            let producer = producer.map_or_else(
                || "no producer".to_owned(),
                |tag| {
                    format!(
                        "producer {} epoch {} sequence {}",
                        tag.id, tag.epoch, tag.base_sequence
                    )
                },
            );
            format!(
                "    batch at {position}: offsets {}-{} ({}), epoch {}, {producer}, \
                 compression {}, {} to {}, {} bytes, crc {:08x} {}",
                header.base_offset,
                header.end_offset().get() - 1,
                header.record_count,
                header.leader_epoch,
                header.compression,
                rfc3339(header.base_timestamp),
                rfc3339(header.max_timestamp),
                header.size,
                header.crc,
                if crc_ok { "ok" } else { "WRONG" },
            )
        })
    }
}

fn record_json(record: &Record) -> Value {
    let mut object = Map::new();
    object.insert("offset".to_owned(), record.offset.get().into());
    let millis = record.timestamp.millis();
    object.insert("timestamp_ms".to_owned(), millis.into());
    put(&mut object, "key", record.key.as_deref());
    put(&mut object, "value", record.value.as_deref());
    let headers = record.headers.iter().map(|header| {
        let mut entry = Map::new();
        entry.insert("key".to_owned(), json!(header.key));
        put(&mut entry, "value", header.value.as_deref());
        Value::Object(entry)
    });
    object.insert("headers".to_owned(), headers.collect());
    Value::Object(object)
}

fn record_text(record: &Record) -> String {
    let time = rfc3339(record.timestamp);
    let (key, value) = (shown(record.key.as_deref()), shown(record.value.as_deref()));
    let mut line = format!(
        "      record {} {time}: key {key}, value {value}",
        record.offset
    );
    for header in &record.headers {
        let value = shown(header.value.as_deref());
        line.push_str(&format!(", header {:?} {value}", header.key));
    }
    line
}

/// Text in quotes, with what a terminal would act on escaped; bytes that are no text in base64.
fn shown(bytes: Option<&[u8]>) -> String {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => "none".to_owned(),
        Some((_, Ok(text))) => format!("{text:?}"),
        Some((bytes, Err(_))) => format!("base64 {}", STANDARD.encode(bytes)),
    }
}
