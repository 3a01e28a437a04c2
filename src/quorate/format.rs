//! How a consumed record is printed.

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quorate_record::Record;
use serde_json::{Map, Value, json};

use crate::parse::rfc3339;

/// A record's printed form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Format {
    /// Pieces, then a new line.
    Template(Vec<Piece>),
    /// One object a line.
    Json,
    /// The values' bytes and nothing else.
    Raw,
}

/// A piece of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    Text(String),
    Field(Field),
}

/// A field of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    Topic,
    Partition,
    Offset,
    Timestamp,
    TimestampMs,
    Key,
    Value,
    Headers,
}

impl Format {
    /// Reads `json`, `raw` or a template.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "json" => return Ok(Self::Json),
            "raw" => return Ok(Self::Raw),
            _ => {}
        }
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut chars = text.chars().peekable();
        while let Some(next) = chars.next() {
            match next {
                '\\' => plain.push(match chars.next() {
                    Some('t') => '\t',
                    Some('n') => '\n',
                    Some('\\') => '\\',
                    other => return Err(format!("\\{} is no escape", other.unwrap_or(' '))),
                }),
                '{' | '}' if chars.peek() == Some(&next) => {
                    chars.next();
                    plain.push(next);
                }
                '}' => return Err("a } that closes nothing; }} stands for one".to_owned()),
                '{' => {
                    let mut name = String::new();
                    loop {
                        match chars.next() {
                            Some('}') => break,
                            Some(of_name) => name.push(of_name),
                            None => return Err(format!("{{{name} is not closed by a }}")),
                        }
                    }
                    if !plain.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut plain)));
                    }
                    pieces.push(Piece::Field(field(&name)?));
                }
                other => plain.push(other),
            }
        }
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self::Template(pieces))
    }

    /// Prints a record.
    pub(crate) fn write(
        &self,
        out: &mut impl Write,
        topic: &str,
        partition: u32,
        record: &Record,
    ) -> io::Result<()> {
        match self {
            Self::Raw => out.write_all(record.value.as_deref().unwrap_or_default()),
            Self::Json => {
                serde_json::to_writer(&mut *out, &as_json(topic, partition, record))?;
                out.write_all(b"\n")
            }
            Self::Template(pieces) => {
                for piece in pieces {
                    match piece {
                        Piece::Text(text) => out.write_all(text.as_bytes())?,
                        Piece::Field(field) => write_field(out, *field, topic, partition, record)?,
                    }
                }
                out.write_all(b"\n")
            }
        }
    }
}

fn field(name: &str) -> Result<Field, String> {
    Ok(match name {
        "topic" => Field::Topic,
        "partition" => Field::Partition,
        "offset" => Field::Offset,
        "timestamp" => Field::Timestamp,
        "timestamp_ms" => Field::TimestampMs,
        "key" => Field::Key,
        "value" => Field::Value,
        "headers" => Field::Headers,
        _ => {
            return Err(format!(
                "{{{name}}} is no field; see `quorate consume --help`"
            ));
        }
    })
}

fn write_field(
    out: &mut impl Write,
    field: Field,
    topic: &str,
    partition: u32,
    record: &Record,
) -> io::Result<()> {
    match field {
        Field::Topic => out.write_all(topic.as_bytes()),
        Field::Partition => write!(out, "{partition}"),
        Field::Offset => write!(out, "{}", record.offset),
        Field::Timestamp => out.write_all(rfc3339(record.timestamp).as_bytes()),
        Field::TimestampMs => write!(out, "{}", record.timestamp.millis()),
        Field::Key => out.write_all(record.key.as_deref().unwrap_or_default()),
        Field::Value => out.write_all(record.value.as_deref().unwrap_or_default()),
        Field::Headers => {
            for (index, header) in record.headers.iter().enumerate() {
                if index > 0 {
                    out.write_all(b",")?;
                }
                write!(out, "{}=", header.key)?;
                out.write_all(header.value.as_deref().unwrap_or_default())?;
            }
            Ok(())
        }
    }
}

/// Text where it is UTF-8, else base64 under another name.
pub(crate) fn put(object: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(std::str::from_utf8) {
        None => object.insert(name.to_owned(), Value::Null),
        Some(Ok(text)) => object.insert(name.to_owned(), text.into()),
        Some(Err(_)) => {
            let encoded = STANDARD.encode(bytes.unwrap_or_default());
            object.insert(format!("{name}_base64"), encoded.into())
        }
    };
}

fn as_json(topic: &str, partition: u32, record: &Record) -> Value {
    let mut object = Map::new();
    object.insert("topic".to_owned(), topic.into());
    object.insert("partition".to_owned(), partition.into());
    object.insert("offset".to_owned(), record.offset.get().into());
    object.insert("timestamp_ms".to_owned(), record.timestamp.millis().into());
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

#[cfg(test)]
mod tests {
    use quorate_types::{Offset, Timestamp};

    use super::*;

    fn shown(format: &str, value: &'static [u8]) -> String {
        let record = Record {
            offset: Offset::new(7),
            timestamp: Timestamp::from_millis(0),
            key: Some("k".into()),
            value: Some(value.into()),
            headers: Vec::new(),
        };
        let mut out = Vec::new();
        Format::parse(format)
            .unwrap()
            .write(&mut out, "t", 2, &record)
            .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_template_shows_fields_and_text() {
        assert_eq!(
            shown("{topic}-{partition}/{offset}\\t{key}={value} {{x}}", b"v"),
            "t-2/7\tk=v {x}\n"
        );
        assert_eq!(shown("raw", b"v"), "v");
        assert!(Format::parse("{nothing}").is_err());
        assert!(Format::parse("\\x").is_err());
        for (wrong, says) in [("{value", "not closed"), ("{value}}", "closes nothing")] {
            let why = Format::parse(wrong).unwrap_err();
            assert!(why.contains(says), "{wrong}: {why}");
        }
    }

    #[test]
    fn json_shows_what_is_no_text_as_base64() {
        let text: Value = serde_json::from_str(&shown("json", b"v")).unwrap();
        assert_eq!(text["value"], "v");
        let binary: Value = serde_json::from_str(&shown("json", b"\xff")).unwrap();
        assert_eq!(binary["value_base64"], "/w==");
        assert!(binary.get("value").is_none());
    }
}
