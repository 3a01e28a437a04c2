//! The flags of `quorate log`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::parse::no_directory_flag;

/// `quorate log`.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Print what is in a data directory, a partition's directory or a segment; changes nothing
    Dump(DumpArgs),
    /// Check everything in it, and name what is damaged by file, position and offset
    Verify(VerifyArgs),
}

/// `quorate log dump`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    quorate log dump /var/lib/quorate --partition orders-0 --records --max 10\n  \
    quorate log dump /var/lib/quorate --metadata\n  \
    quorate log dump data/logs/orders-0.…/00000000000000000000.log --output json\n\n\
    The node must be stopped. Nothing is changed: the metadata is read from a copy in TMPDIR.\n\
    With --output json each line is an object with a `kind`.")]
pub struct DumpArgs {
    /// A data directory, a directory below its logs, or a segment (.log)
    pub path: PathBuf,

    /// Never has a value: whoever gives it is told.
    #[arg(long, hide = true, value_parser = no_directory_flag)]
    pub data_dir: Option<String>,

    /// Print the records of each batch too: key and value as text, or as base64
    #[arg(long)]
    pub records: bool,

    /// Print a line for each entry of the metadata log
    #[arg(long)]
    pub metadata: bool,

    /// Only this partition
    #[arg(long, value_parser = partition, value_name = "TOPIC-N")]
    pub partition: Option<(String, u32)>,

    /// Leave out batches that end at or below this offset
    #[arg(long, value_name = "OFFSET")]
    pub from_offset: Option<u64>,

    /// Stop a partition after so many batches, with --records after so many records
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max: Option<u64>,
}

/// `quorate log verify`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    quorate log verify /var/lib/quorate && echo all is well\n\n\
    The node must be stopped. Nothing is changed: the metadata is read from a copy in TMPDIR.\n\
    Exits with 0 when everything is whole, with 1 when anything is damaged, an unfinished write\n\
    at the end of a file (torn tail) too. Notes are no damage.")]
pub struct VerifyArgs {
    /// A data directory, a directory below its logs, or a segment (.log)
    pub path: PathBuf,

    /// Never has a value: whoever gives it is told.
    #[arg(long, hide = true, value_parser = no_directory_flag)]
    pub data_dir: Option<String>,
}

/// Reads `topic-3`.
fn partition(text: &str) -> Result<(String, u32), String> {
    let parts = text
        .rsplit_once('-')
        .and_then(|(topic, number)| Some((topic.to_owned(), number.parse().ok()?)));
    parts
        .filter(|(topic, _)| !topic.is_empty())
        .ok_or_else(|| "must be a topic and a partition, as in orders-0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_a_topic_and_a_number() {
        assert_eq!(partition("a-b-3"), Ok(("a-b".to_owned(), 3)));
        for wrong in ["orders", "-1", "orders-", "orders-x"] {
            assert!(partition(wrong).is_err(), "{wrong}");
        }
    }
}
