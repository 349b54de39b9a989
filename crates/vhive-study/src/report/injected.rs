//! What was broken on purpose during a run: marks in its charts, and a table.

use std::path::Path;

use serde::Deserialize;

use crate::row::{ResultError, text};

use super::html;
use super::svg::{Anchor, Scale, Svg, short};

/// The file that `vhive load` writes of them.
const FILE: &str = "failures.json";
const HEADINGS: [&str; 5] = ["#", "at s", "what", "begun s", "what came of it"];
/// Marks that are nearer, in pixels, share a label.
const NEAR: f64 = 16.0;

/// One of them, in the order of the file.
#[derive(Debug, Deserialize)]
pub(super) struct Injected {
    at_s: f64,
    what: String,
    begun_us: Option<f64>,
    error: Option<String>,
}

impl Injected {
    /// When it was begun, in seconds from the run's beginning.
    pub(super) fn at(&self) -> Option<f64> {
        self.begun_us.map(|us| us / 1e6)
    }
}

/// Those of a run; none where there is no file.
pub(super) fn read(dir: &Path) -> Result<Vec<Injected>, ResultError> {
    let path = dir.join(FILE);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let json = text(&path)?;
    serde_json::from_str(&json).map_err(|source| ResultError::Content { path, line: 1, source })
}

/// Marks those that were begun in a chart whose x are seconds, each by its number in the table.
pub(super) fn mark(svg: &mut Svg, all: &[Injected], across: &Scale, (top, bottom): (f64, f64)) {
    let at = |(number, one): (usize, &Injected)| Some((across.at(one.at()?), number + 1));
    let mut marks: Vec<(f64, usize)> = all.iter().enumerate().filter_map(at).collect();
    marks.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut labels: Vec<(f64, String)> = Vec::new();
    for (x, number) in marks {
        svg.upright(x, (top, bottom), "injected");
        match labels.last_mut() {
            Some((last, label)) if x - *last < NEAR => label.push_str(&format!(", {number}")),
            _ => labels.push((x, format!("✕ {number}"))),
        }
    }
    for (x, label) in labels {
        svg.text((x, top - 2.0), Anchor::Middle, &label);
    }
}

/// The table; of a run that was cut short nobody knows what came of them.
pub(super) fn section(all: &[Injected], cut_short: bool) -> String {
    if all.is_empty() {
        return String::new();
    }
    let row = |(number, one): (usize, &Injected)| {
        let came = match (one.at(), &one.error) {
            (_, Some(why)) => why.clone(),
            (None, None) if cut_short => "not known".to_owned(),
            (None, None) => "the run ended before".to_owned(),
            (Some(_), None) => "done".to_owned(),
        };
        let begun = one.at().map_or_else(|| "–".to_owned(), short);
        vec![(number + 1).to_string(), short(one.at_s), one.what.clone(), begun, came]
    };
    let rows: Vec<Vec<String>> = all.iter().enumerate().map(row).collect();
    format!(
        "<h2 id=\"injected\">Broken on purpose</h2>\n<p class=\"dim\">Marked in the charts over time by \
         an upright line and ✕ with its number.</p>\n{}",
        html::table(&HEADINGS, &rows, 5)
    )
}
