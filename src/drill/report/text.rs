//! A report for a terminal, and as Markdown.

use std::fmt::Write as _;

use super::Report;
use super::tables::{Table, figures, identity, limits, summary};
use super::words::NOTHING;

/// For a terminal.
pub fn terminal(report: &Report) -> String {
    let mut text = format!("{}: {}\n", report.verdict(), report.heading());
    for reason in &report.reasons {
        let _ = writeln!(text, "  ✗ {reason}");
    }
    let _ = writeln!(text, "  {}", summary(report));
    if !report.identity.hypothesis.is_empty() {
        let _ = writeln!(text, "  Hypothesis: {}", report.identity.hypothesis.trim());
    }
    let mut tables = vec![limits(report)];
    tables.extend(figures(report));
    tables.push(identity(report));
    for table in tables {
        let _ = write!(
            text,
            "\n{}\n{}",
            table.title,
            aligned(&table.head, &table.rows, "  ")
        );
    }
    text
}

/// As Markdown.
pub fn markdown(report: &Report) -> String {
    let mut text = format!("# {}: {}\n\n", cell(report.heading()), report.verdict());
    if !report.identity.hypothesis.is_empty() {
        let _ = writeln!(text, "Hypothesis: {}\n", cell(report.identity.hypothesis.trim()));
    }
    let _ = writeln!(text, "{}.\n", cell(&summary(report)));
    for reason in &report.reasons {
        let _ = writeln!(text, "- **{}**", cell(reason));
    }
    let mut tables = vec![limits(report)];
    tables.extend(figures(report));
    tables.push(identity(report));
    for table in tables {
        markdown_table(&mut text, &table);
    }
    text
}

fn markdown_table(text: &mut String, table: &Table) {
    let _ = write!(text, "\n## {}\n\n", table.title);
    if !table.about.is_empty() {
        let _ = writeln!(text, "{}\n", table.about);
    }
    let _ = writeln!(text, "| {} |", table.head.join(" | "));
    let rights = rights(&table.head, &table.rows);
    let rules = rights.iter().map(|right| if *right { "--:" } else { "---" });
    let _ = writeln!(text, "|{}|", rules.collect::<Vec<_>>().join("|"));
    for row in &table.rows {
        let cells: Vec<String> = row.iter().map(|text| cell(text)).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
}

/// Text that stays within its cell and is taken as text.
fn cell(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' => safe.push(' '),
            '|' | '<' | '*' | '_' | '`' | '\\' | '[' | '#' => safe.extend(['\\', c]),
            c => safe.push(c),
        }
    }
    safe
}

/// Columns that hold numbers, and stand to the right.
pub fn rights(head: &[&str], rows: &[Vec<String>]) -> Vec<bool> {
    let numeric = |text: &String| text == NOTHING || text.starts_with(|c: char| c.is_ascii_digit());
    let right = |column: usize| {
        let mut cells = rows.iter().filter_map(|row| row.get(column)).peekable();
        cells.peek().is_some() && !head[column].is_empty() && cells.all(numeric)
    };
    (0..head.len()).map(right).collect()
}

/// Rows in columns, one line each, after an indent.
pub fn aligned(head: &[&str], rows: &[Vec<String>], indent: &str) -> String {
    let rights = rights(head, rows);
    let mut widths: Vec<usize> = head.iter().map(|name| name.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let head: Vec<String> = head.iter().map(|name| (*name).to_owned()).collect();
    let named = head.iter().any(|name| !name.is_empty());
    let mut text = String::new();
    for row in Some(&head).filter(|_| named).into_iter().chain(rows) {
        let mut line = indent.to_owned();
        for ((cell, width), right) in row.iter().zip(&widths).zip(&rights) {
            let cell = cell.replace(['\n', '\r'], " ");
            let _ = match right {
                true => write!(line, "{cell:>width$}  "),
                false => write!(line, "{cell:<width$}  "),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
