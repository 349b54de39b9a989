//! `vhive report`: makes the report of a result again from its raw rows.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use crate::cli::{Format, Global};
use crate::output;

/// Arguments of `vhive report`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of a study, of a simulation or of a run of `vhive load`.
    dir: PathBuf,
}

/// Makes it.
///
/// # Errors
/// When the directory holds no result, or cannot be written.
pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    build(global, &args.dir)?;
    Ok(ExitCode::SUCCESS)
}

/// Makes the report and prints its table, its warnings and where it is.
pub(crate) fn build(global: &Global, dir: &Path) -> anyhow::Result<()> {
    let built = vhive_study::report::build(dir)?;
    match global.output {
        Format::Json => output::json(&json!({
            "report": built.report, "files": built.files, "warnings": built.warnings,
        }))?,
        Format::Table => {
            let headings: Vec<&str> = built.headings.iter().map(String::as_str).collect();
            output::line(output::table(&headings, &built.table));
            for line in &built.findings {
                output::line(line);
            }
            for warning in &built.warnings {
                output::note(format!("warning: {warning}"));
            }
            output::line(format!("report: {}", built.report.display()));
        }
    }
    Ok(())
}
