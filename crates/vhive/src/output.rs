//! How results, errors and logs reach the terminal.

use std::io::{self, IsTerminal as _, Write};

use tracing_subscriber::EnvFilter;

/// Logs go to standard error: `warn` and above unless a filter says otherwise.
pub(crate) fn init_logs(filter: Option<&str>) {
    let filter = EnvFilter::new(filter.unwrap_or("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

/// Prints an error with its causes, one a line.
pub(crate) fn print_error(error: &anyhow::Error) {
    let mut text = format!("error: {error}\n");
    for cause in error.chain().skip(1) {
        text.push_str(&format!("  because: {cause}\n"));
    }
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Writes a line to standard output; a closed pipe is no error.
pub(crate) fn line(text: impl std::fmt::Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Writes a line to standard error.
pub(crate) fn note(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Writes a value as indented JSON.
///
/// # Errors
/// When it cannot be serialised.
pub(crate) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Lays out rows under headings, columns aligned, two spaces between.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headings.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let heads: Vec<String> = headings.iter().map(|h| (*h).to_owned()).collect();
    for row in std::iter::once(&heads).chain(rows) {
        let mut row_text = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let pad = width - cell.chars().count();
            row_text.push_str(cell);
            row_text.push_str(&" ".repeat(pad + 2));
        }
        text.push_str(row_text.trim_end());
        text.push('\n');
    }
    text.pop();
    text
}

/// A time span in microseconds for people: `850 us`, `12.3 ms`, `2.41 s`.
pub(crate) fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{:.0} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["bcd".to_owned(), "22".to_owned()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME  N\na     1\nbcd   22");
    }

    #[test]
    fn spans_keep_three_digits() {
        let texts = [850, 12_345, 123_456, 2_412_345].map(micros);
        assert_eq!(texts, ["850 us", "12.3 ms", "123 ms", "2.41 s"]);
    }
}
