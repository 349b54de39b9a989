//! From a result's files to its report.
//!
//! ```text
//!   study.json, rows.jsonl ──► Analysis ──► charts ──► report.html, *.svg, *.png
//!                                  └───────► rows.csv, summary.csv
//! ```
//!
//! Everything but the letters of the PNG files (a font of the host's) is a function of the two
//! files.

mod charts;
pub mod compare;
mod counters;
mod figures;
mod footprint;
mod html;
mod injected;
mod load;
mod outcomes;
mod palette;
mod png;
mod runtimes;
mod simulate;
mod svg;
mod sweep;
mod timelines;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use png::PngError;
pub use svg::Chart;

use vhive_load::Steps;

use crate::analysis::Analysis;
use crate::csv;
use crate::row::{ResultError, STUDY, StudyResult};
use crate::simulate::SIMULATION;

/// A report that was made.
#[derive(Clone, Debug)]
pub struct Built {
    /// The page.
    pub report: PathBuf,
    /// Every file, the page included.
    pub files: Vec<PathBuf>,
    /// Headings of the short table.
    pub headings: Vec<String>,
    /// The short table: a row per series.
    pub table: Vec<Vec<String>>,
    /// Sentences about ratios.
    pub findings: Vec<String>,
    /// What a reader should mind.
    pub warnings: Vec<String>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// There is no result.
    #[error(transparent)]
    Result(#[from] ResultError),
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A chart cannot be drawn.
    #[error("cannot draw {name}")]
    Draw {
        /// Which chart.
        name: &'static str,
        /// Why not.
        #[source]
        source: PngError,
    },
    /// It was to take no more steps.
    #[error("stopped before the report was made")]
    Stopped,
}

/// The texts of a report.
#[derive(Clone, Debug)]
pub struct Texts {
    /// The page.
    pub html: String,
    /// The charts.
    pub charts: Vec<Chart>,
    /// The raw rows, flat.
    pub rows_csv: String,
    /// Every figure.
    pub summary_csv: String,
    /// A line per fault, if any was recorded.
    pub faults_csv: Option<String>,
    /// Page statistics, if the study looked at working sets.
    pub pages_csv: Option<String>,
    /// Throughputs, if any were measured.
    pub loads_csv: Option<String>,
    /// Densities likewise.
    pub densities_csv: Option<String>,
}

/// Makes the texts; pure.
#[must_use]
pub fn texts(result: &StudyResult, analysis: &Analysis) -> Texts {
    let charts = charts::all(analysis, &result.facts);
    Texts {
        html: html::page(result, analysis, &charts),
        rows_csv: csv::rows(&result.rows),
        summary_csv: csv::summary(analysis),
        faults_csv: csv::faults(&result.rows),
        pages_csv: (!analysis.pages.is_empty()).then(|| csv::pages(analysis)),
        loads_csv: (!result.loads.is_empty()).then(|| csv::loads(&result.loads)),
        densities_csv: (!result.densities.is_empty()).then(|| csv::densities(&result.densities)),
        charts,
    }
}

/// Makes the report of the result in `dir`, beside it; files of an earlier report are replaced.
///
/// # Errors
/// When there is no result, or a file cannot be written. Without a font there are no PNG files,
/// which is a warning.
pub fn build(dir: &Path) -> Result<Built, ReportError> {
    build_in(dir, &Steps::default())
}

/// Likewise, all files in one step at the end.
///
/// # Errors
/// Likewise, and when there are to be no more steps.
pub fn build_in(dir: &Path, steps: &Steps) -> Result<Built, ReportError> {
    if dir.join(SIMULATION).exists() {
        return simulate::build(dir, steps);
    }
    if load::is_one(dir) && !dir.join(STUDY).exists() {
        return load::build(dir, steps);
    }
    if sweep::is_one(dir) && !dir.join(STUDY).exists() {
        return sweep::build(dir, steps);
    }
    let result = StudyResult::read(dir)?;
    let analysis = Analysis::of(&result);
    let texts = texts(&result, &analysis);
    let mut named = vec![
        ("report.html", texts.html.as_str()),
        ("rows.csv", &texts.rows_csv),
        ("summary.csv", &texts.summary_csv),
    ];
    for (name, text) in [
        ("faults.csv", &texts.faults_csv),
        ("pages.csv", &texts.pages_csv),
        ("loads.csv", &texts.loads_csv),
        ("densities.csv", &texts.densities_csv),
    ] {
        named.extend(text.as_deref().map(|text| (name, text)));
    }
    let mut warnings = analysis.warnings.clone();
    let files = write((dir, steps), &named, &texts.charts, &mut warnings)?;
    Ok(Built {
        report: dir.join("report.html"),
        files,
        headings: figures::BRIEF.map(str::to_owned).to_vec(),
        table: analysis.series.iter().map(figures::brief).collect(),
        findings: figures::findings(&analysis),
        warnings,
    })
}

/// Draws the charts, then writes them and the texts in one step; says what was written.
fn write(
    (dir, steps): (&Path, &Steps),
    texts: &[(&str, &str)],
    charts: &[Chart],
    warnings: &mut Vec<String>,
) -> Result<Vec<PathBuf>, ReportError> {
    let mut files: Vec<(PathBuf, Cow<'_, [u8]>)> = Vec::new();
    files.extend(texts.iter().map(|(name, text)| (dir.join(name), text.as_bytes().into())));
    let renderer = png::Renderer::new();
    if let Err(error) = &renderer {
        warnings.push(error.to_string());
    }
    for Chart { name, svg, .. } in charts {
        files.push((dir.join(format!("{name}.svg")), svg.as_bytes().into()));
        if let Ok(renderer) = &renderer {
            let drawn = renderer.png(svg);
            let png = drawn.map_err(|source| ReportError::Draw { name, source })?;
            files.push((dir.join(format!("{name}.png")), png.into()));
        }
    }
    let written = steps.take(|| {
        files.into_iter().try_fold(Vec::new(), |mut paths, (path, content)| {
            match fs::write(&path, content) {
                Ok(()) => paths.push(path),
                Err(source) => return Err(ReportError::Write { path, source }),
            }
            Ok(paths)
        })
    });
    written.unwrap_or(Err(ReportError::Stopped))
}
