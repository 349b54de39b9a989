//! The project's chores, behind the Makefile: `cargo xtask <chore>`.
//!
//! | chore | what it does |
//! |---|---|
//! | `demo` | sets up, deploys and invokes the demo functions on a node of its own |
//! | `test` | runs every test and counts what was skipped and why |
//! | `bench [SUBSTRING]` | runs benchmarks, prints a table, writes `target/bench/summary.json` |
//! | `clients` | brings the real clients of Kubernetes that tests drive |
//! | `conformance` | runs the conformance suite and writes its table, `docs/conformance.md` |
//! | `check-docs` | proves that what the documents name exists |
//! | `check-shape` | proves that the crates depend on each other as drawn |
//! | `prepush` | formatting, lints, documents, dependencies (`deny.toml`), unit tests: CI without its slow part |
//! | `clean` | removes what the project made on this host |
#![expect(clippy::print_stdout, reason = "chores talk to a person")]

mod bench;
mod check_docs;
mod check_shape;
mod clean;
mod clients;
mod conformance;
mod demo;
mod prepush;
mod shell;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "The project's chores")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Sets up, deploys and invokes the demo functions.
    Demo,
    /// Runs every test and counts what was skipped.
    Test,
    /// Runs the benchmarks whose name or row contains SUBSTRING.
    Bench {
        /// Part of a benchmark's or a row's name.
        substring: Option<String>,
    },
    /// Brings the real clients of Kubernetes that tests drive.
    Clients,
    /// Runs the conformance suite and writes its table.
    Conformance,
    /// Proves that what the documents name exists.
    CheckDocs,
    /// Proves that the crates depend on each other as drawn.
    CheckShape,
    /// CI without its slow part.
    Prepush,
    /// Removes what the project made on this host.
    Clean,
}

fn main() -> ExitCode {
    let done = match Cli::parse().chore {
        Chore::Demo => demo::run(),
        Chore::Test => test::run(),
        Chore::Bench { substring } => bench::run(substring.as_deref().unwrap_or_default()),
        Chore::Clients => {
            clients::bring();
            Ok(())
        }
        Chore::Conformance => conformance::run(),
        Chore::CheckDocs => check_docs::run(),
        Chore::CheckShape => check_shape::run(),
        Chore::Prepush => prepush::run(),
        Chore::Clean => clean::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
