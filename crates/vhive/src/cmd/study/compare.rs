//! `vhive study compare`: two results against each other.

use std::path::PathBuf;
use std::process::ExitCode;

use vhive_study::compare::Comparison;
use vhive_study::report::compare;

use crate::cli::{Format, Global};
use crate::output;

/// Arguments of `vhive study compare`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of the first result.
    #[arg(value_name = "A")]
    a: PathBuf,
    /// Directory of the second result; differences are B less A.
    #[arg(value_name = "B")]
    b: PathBuf,
    /// Also write a page with distributions, and the table as CSV and JSON, into this directory.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Seed of the resampling.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// Compares and prints.
///
/// # Errors
/// When a result cannot be read, or they are of different kinds.
pub(super) fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let comparison = Comparison::of(&args.a, &args.b, args.seed)?;
    let built = args.out.as_deref().map(|dir| compare::build(&comparison, dir)).transpose()?;
    match global.output {
        Format::Json => output::json(&serde_json::to_value(&comparison)?)?,
        Format::Table => {
            let headings = compare::headings();
            let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
            output::line(output::table(&headings, &compare::table(&comparison)));
            for line in compare::findings(&comparison) {
                output::line(line);
            }
            for fact in &comparison.facts {
                let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "–".to_owned());
                let (a, b) = (text(&fact.a), text(&fact.b));
                output::line(format!("differs: {}: {a} | {b}", fact.name));
            }
            for warning in compare::warnings(&comparison) {
                output::note(format!("warning: {warning}"));
            }
            if let Some(built) = built {
                output::line(format!("report: {}", built.report.display()));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
