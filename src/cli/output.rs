//! What commands print.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::ValueEnum;

use super::admin;

/// The form of what a command reads out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// One JSON value, or one object a line where the command goes on printing.
    Json,
}

/// Prints data to stdout. A reader that went away (`| head`) is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to stdout")
        }
        _ => Ok(()),
    }
}

/// Prints to stderr what stdout has no place for. A reader that went away is no error.
pub fn print_aside(text: &str) -> anyhow::Result<()> {
    match io::stderr().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to stderr")
        }
        _ => Ok(()),
    }
}

/// Tells on stderr how it goes, with the arguments of `format!`. A reader that went away is no reason to stop what is under way.
macro_rules! say {
    ($($arg:tt)*) => {
        $crate::cli::output::aside(format_args!("{}\n", format_args!($($arg)*)))
    };
}
pub(crate) use say;

/// Prints to stderr, come what may.
pub fn aside(text: std::fmt::Arguments<'_>) {
    let _ = io::stderr().lock().write_fmt(text);
}

/// Prints a JSON value and a line end to stdout.
pub fn print_json<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value).context("cannot write JSON")? + "\n"))
}

/// Prints rows to stdout under their headings, in columns as wide as they need.
pub fn print_table(headings: &[&str], rows: &[Vec<String>]) -> anyhow::Result<()> {
    print(&table(headings, rows))
}

/// Prints an error and its causes to stderr, and gives its exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    // Nothing is left to do when stderr is gone.
    let _ = io::stderr().lock().write_all(told(error).as_bytes());
    admin::code_of(error)
}

/// An error, then its causes, outermost first. Many errors tell their cause in their own line: it is not told again.
fn told(error: &anyhow::Error) -> String {
    let mut last = error.to_string();
    let mut text = format!("error: {last}\n");
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if last.contains(&cause) {
            continue;
        }
        for line in cause.lines() {
            text.push_str(&format!("  {line}\n"));
        }
        last = cause;
    }
    text
}

/// Rows under their headings, in columns as wide as they need.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells
            .chain(headings.get(column).map(|heading| heading.chars().count()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut headings.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let cause = io::Error::other("disk on fire");
        let path = std::path::PathBuf::from("/x");
        let error = crate::server::dev::DevError::Io { path, source: cause };
        let error = anyhow::Error::new(error).context("it cannot start");
        assert_eq!(told(&error), "error: it cannot start\n  /x: disk on fire\n");
    }

    #[test]
    fn columns_are_as_wide_as_they_need() {
        let rows = vec![
            vec!["a".to_owned(), "läng".to_owned()],
            vec!["abcd".to_owned(), String::new()],
        ];
        assert_eq!(table(&["ID", "B"], &rows), "ID    B\na     läng\nabcd\n");
    }
}
