//! The flags of `quorate group`.

use std::time::Duration;

use clap::{Args, Subcommand};
use quorate_config::parse_duration;
use quorate_types::{Offset, Timestamp};

use crate::parse::{offset, time};

/// `quorate group`.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// List the groups
    #[command(after_help = "Example:\n  quorate group list --output json")]
    List,
    /// Show a group's members, what each reads, what is committed, and how far behind that is
    #[command(after_help = "Example:\n  quorate group describe billing")]
    Describe {
        /// The group's name
        group: String,
    },
    /// Change what a group has committed; it must have no members
    ResetOffsets(ResetArgs),
    /// Delete groups without members, with what they have committed
    #[command(after_help = "Example:\n  quorate group delete billing")]
    Delete {
        /// The groups' names
        #[arg(required = true)]
        groups: Vec<String>,
    },
}

/// `quorate group reset-offsets`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    quorate group reset-offsets billing --topic orders --to-earliest --dry-run\n  \
    quorate group reset-offsets billing --topic orders --to-timestamp 2026-01-31T12:00:00Z\n  \
    quorate group reset-offsets billing --topic orders --partition 2 --shift-by -100\n  \
    quorate group reset-offsets billing --all-topics --by-duration 2h\n\n\
    What lies outside of a partition's log is moved to its nearer end. A group that does not exist\n\
    comes to be.")]
pub struct ResetArgs {
    /// The group's name
    pub group: String,

    /// The topic; may be repeated
    #[arg(long, required_unless_present = "all_topics")]
    pub topic: Vec<String>,

    /// All topics of which the group has committed something
    #[arg(long, conflicts_with_all = ["topic", "partition"])]
    pub all_topics: bool,

    /// Only this partition of the topic; may be repeated
    #[arg(long, value_name = "N")]
    pub partition: Vec<u32>,

    #[command(flatten)]
    pub to: ResetTo,

    /// Show what would be changed, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Where to.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct ResetTo {
    /// To this offset
    #[arg(long, value_parser = offset, allow_negative_numbers = true, value_name = "N")]
    pub to_offset: Option<Offset>,

    /// To the first record that is still there
    #[arg(long)]
    pub to_earliest: bool,

    /// After the last record
    #[arg(long)]
    pub to_latest: bool,

    /// To the first record that is at least so young, else after the last: milliseconds since 1970,
    /// 2026-01-31T12:00:00Z, or 2026-01-31 (in UTC)
    #[arg(long, value_parser = time, value_name = "TIME")]
    pub to_timestamp: Option<Timestamp>,

    /// To the first record of the time that has passed since then, else after the last: 30m, 2h, 7d
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    pub by_duration: Option<Duration>,

    /// To where it is, moved into the log; after the last record where nothing is committed
    #[arg(long)]
    pub to_current: bool,

    /// So many records further, or back where it is negative
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    pub shift_by: Option<i64>,
}
