//! The one binary: wires the crates together and gives them a command line.
//!
//! What this crate does not do: anything worth a unit test of its own beyond parsing and printing.

mod cli;
mod client;
mod cluster;
mod cmd;
mod config;
mod exit;
mod output;
mod stops;

use std::process::ExitCode;

use clap::Parser as _;

/// The revision that this is built from; none outside of a checkout.
const REVISION: Option<&str> = option_env!("VHIVE_REVISION");

fn main() -> ExitCode {
    let arguments = match cli::arguments(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => {
            output::print_error(&error);
            return exit::code_of(&error);
        }
    };
    let words = arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let mut cli = cli::Cli::parse_from(arguments);
    cli.global.words = words;
    output::init_logs(cli.global.log.as_deref());
    match cmd::run(cli) {
        Ok(code) => code,
        Err(error) => {
            output::print_error(&error);
            exit::code_of(&error)
        }
    }
}
