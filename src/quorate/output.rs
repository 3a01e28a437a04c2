//! What goes to stdout: sentences, tables that line up, JSON. A closed pipe ends a command
//! quietly and never panics.

use std::fmt;
use std::io::{self, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use indicatif::ProgressState;
use serde::Serialize;

use crate::failure::Failure;

/// Prints one line to stdout.
pub fn line(text: impl AsRef<str>) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", text.as_ref())
        .and_then(|()| stdout.flush())
        .map_err(Failure::stdout)
}

/// Prints a value as JSON, over several lines.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new("could not write JSON", error))?;
    line(text)
}

/// Prints a value as JSON on one line.
pub fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| Failure::new("could not write JSON", error))?;
    line(text)
}

/// A column of a table: its heading, and what a row shows in it.
pub struct Column<T> {
    /// The heading.
    pub heading: &'static str,
    /// Whether it holds numbers, which are lined up at their end.
    pub number: bool,
    /// The text of a row.
    pub text: fn(&T) -> String,
}

impl<T> Column<T> {
    /// A column of words.
    pub const fn words(heading: &'static str, text: fn(&T) -> String) -> Self {
        Self {
            heading,
            number: false,
            text,
        }
    }

    /// A column of numbers.
    pub const fn number(heading: &'static str, text: fn(&T) -> String) -> Self {
        Self {
            heading,
            number: true,
            text,
        }
    }
}

/// The rows under their headings, without borders.
pub fn table<T>(columns: &[Column<T>], rows: &[T]) -> String {
    let mut table = Table::new();
    table
        .load_preset(NOTHING)
        .set_header(columns.iter().map(|column| column.heading));
    for row in rows {
        table.add_row(columns.iter().map(|column| (column.text)(row)));
    }
    for (shown, column) in table.column_iter_mut().zip(columns) {
        shown.set_padding((0, 2));
        if column.number {
            shown.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// `1,2,3`, or `-` for none.
pub fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() {
        "-".to_owned()
    } else {
        items.join(",")
    }
}

/// The value, or `-` for none.
pub fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// What a running command shows on a terminal, with [`rate`] under its name.
pub const RECORDS_SO_FAR: &str = "{spinner} {human_pos} records, {rate} records/s{msg}";

/// The rate of a progress bar with separators.
pub fn rate(state: &ProgressState, to: &mut dyn fmt::Write) {
    // With nowhere to write there is nothing to show it on.
    let _ = to.write_str(&grouped(state.per_sec() as u64));
}

/// `1 record`, `1,234 records`.
pub fn counted(count: u64, one: &str, many: &str) -> String {
    let name = if count == 1 { one } else { many };
    format!("{} {name}", grouped(count))
}

/// A count with separators: `1,234,567`.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_up_without_trailing_blanks() {
        let columns: [Column<(&str, u32)>; 2] = [
            Column::words("NAME", |row| row.0.to_owned()),
            Column::number("COUNT", |row| row.1.to_string()),
        ];
        let shown = table(&columns, &[("a", 7), ("longer", 1_000)]);
        assert_eq!(shown, "NAME    COUNT\na           7\nlonger   1000");
    }

    #[test]
    fn counts_and_lists_are_readable() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(list([1, 2, 3]), "1,2,3");
        assert_eq!(list::<u32>([]), "-");
        assert_eq!(or_dash(None::<u32>), "-");
    }
}
