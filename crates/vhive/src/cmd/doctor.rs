//! `vhive doctor`: what this host can run, why not the rest, and the fix.

use std::process::ExitCode;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::json;
use vhive_api::RuntimeName;
use vhive_node::counters::{Offered, offered};
use vhive_sandbox::firecracker::Firecracker;
use vhive_sandbox::host::{Fact, Verdict, facts};
use vhive_sandbox::kernel::KernelStore;
use vhive_sandbox::network::{check_forwarding, check_host};
use vhive_sandbox::oci::Oci;
use vhive_sandbox::qemu::Qemu;
use vhive_sandbox::{HostLacks, Runtime as _};

use crate::cli::{Format, Global};
use crate::config::Config;
use crate::{exit, output};

/// Arguments of `vhive doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Try everything out anew, instead of believing what earlier trials on this host came to
    #[arg(long)]
    again: bool,
}

/// One line of the answer.
#[derive(Debug, Serialize)]
struct Line {
    name: String,
    /// Another name that is understood.
    #[serde(skip_serializing_if = "Option::is_none")]
    alias: Option<&'static str>,
    answer: &'static str,
    found: String,
    follows: String,
}

impl Line {
    fn new(name: impl Into<String>, answer: &'static str, found: String, follows: String) -> Self {
        Self { name: name.into(), alias: None, answer, found, follows }
    }

    fn shown_name(&self) -> String {
        match self.alias {
            Some(alias) => format!("{} ({alias})", self.name),
            None => self.name.clone(),
        }
    }
}

/// Prints every runtime with yes or no and why, then the host's facts. Exit code 5 when no runtime
/// that isolates works.
///
/// # Errors
/// When the kernel store cannot be opened, or what is known of the host cannot be forgotten.
pub(crate) fn run(global: &Global, config: &Config, args: &Args) -> anyhow::Result<ExitCode> {
    if global.output == Format::Table {
        output::note("looking at the host; the first time a guest is booted to try KVM …");
    }
    let cache = config.node.state_dir.join("host");
    if args.again {
        vhive_sandbox::forget(&cache)
            .with_context(|| format!("cannot forget what is kept in {}", cache.display()))?;
    }
    let isolating = [
        qemu(config)?,
        firecracker(config)?,
        Line {
            alias: RuntimeName::Runsc.alias(),
            ..container(&Oci::runsc(config.runsc.clone(), &cache))
        },
        container(&Oci::runc(config.runc.clone(), &cache)),
        container(&Oci::crun(config.crun.clone(), &cache)),
    ];
    let any = isolating.iter().any(|line| line.answer == "yes");
    let runtimes: Vec<Line> = isolating.into_iter().chain([sim()]).collect();
    let mut host: Vec<Line> = facts(&config.node.state_dir).into_iter().map(of_fact).collect();
    host.push(counters());
    match global.output {
        Format::Json => output::json(&json!({ "runtimes": runtimes, "host": host }))?,
        Format::Table => {
            print("RUNTIME", &runtimes);
            output::line("");
            print("HOST", &host);
        }
    }
    Ok(if any { ExitCode::SUCCESS } else { ExitCode::from(exit::HOST_UNFIT) })
}

fn qemu(config: &Config) -> anyhow::Result<Line> {
    let name = RuntimeName::Qemu.to_string();
    let checks = [check_host(), check_forwarding()];
    if let Some(lacks) = checks.into_iter().find_map(Result::err) {
        return Ok(no(name, lacks));
    }
    let kernels = KernelStore::open(config.kernels_dir())?;
    let qemu = Qemu::new(config.qemu.clone(), kernels, config.node.state_dir.join("host"));
    Ok(match qemu.check_host().and_then(|()| qemu.accelerator()) {
        Err(lacks) => no(name, lacks),
        Ok(choice) => {
            let found = format!("accelerator {}", choice.accelerator.as_str());
            Line::new(name, "yes", found, choice.reason)
        }
    })
}

/// A container needs the same network as a microVM, and no kernel of its own.
fn container(runtime: &Oci) -> Line {
    let name = runtime.name().to_string();
    let checks = [check_host(), check_forwarding()];
    if let Some(lacks) = checks.into_iter().find_map(Result::err) {
        return no(name, lacks);
    }
    match runtime.about() {
        Err(lacks) => no(name, lacks),
        Ok(found) => {
            let follows = match (runtime.restores_nothing(), runtime.name()) {
                (Some(HostLacks { what, fix }), _) => {
                    format!("a container has been started to find out; no snapshots: {what}; {fix}")
                }
                (None, RuntimeName::Runc | RuntimeName::Crun) => {
                    "a container has been started, saved and restored to find out".to_owned()
                }
                (None, _) => "a container has been started to find out".to_owned(),
            };
            Line::new(name, "yes", found, follows)
        }
    }
}

/// What functions need is one thing, what guests without an operating system need another.
fn firecracker(config: &Config) -> anyhow::Result<Line> {
    let name = RuntimeName::Firecracker.to_string();
    let firecracker = Firecracker::new(config.firecracker.clone());
    let about = match firecracker.about() {
        Ok(about) => about,
        Err(lacks) => return Ok(no(name, lacks)),
    };
    let checks = [check_host(), check_forwarding()];
    if let Some(lacks) = checks.into_iter().find_map(Result::err) {
        return Ok(no(name, lacks));
    }
    let kernels = KernelStore::open(config.kernels_dir())?;
    let cache = config.node.state_dir.join("host");
    Ok(match firecracker.with_kernels(kernels, cache).check_host() {
        Ok(()) => Line::new(name, "yes", about, "a guest has been booted to find out".to_owned()),
        Err(HostLacks { what, fix }) => no(
            name,
            HostLacks {
                what: format!("{about}: {what}"),
                fix: format!("guests without an operating system run; {fix}"),
            },
        ),
    })
}

fn no(name: String, lacks: HostLacks) -> Line {
    Line::new(name, "no", lacks.what, lacks.fix)
}

fn sim() -> Line {
    let found = "isolates nothing; for tests and dry runs".to_owned();
    Line::new(RuntimeName::Sim.as_str(), "yes", found, String::new())
}

/// What studies can count of a sandbox's processes.
fn counters() -> Line {
    let always = "CPU time, page faults, I/O, memory";
    let Offered { software, hardware, topdown } = offered();
    let mut found = always.to_owned();
    let mut lacks: Vec<String> = Vec::new();
    match software {
        Ok(()) => found.push_str(", switches"),
        Err(why) => lacks.push(format!("no switches: {why}")),
    }
    match (hardware, topdown) {
        (Err(why), _) => lacks.push(format!("no cycles, cache misses or TopDown: {why}")),
        (Ok(()), Err(why)) => {
            found.push_str(", cycles, cache misses");
            lacks.push(format!("no TopDown: {why}"));
        }
        (Ok(()), Ok(levels)) => {
            found.push_str(&format!(", cycles, cache misses, TopDown level {levels}"));
        }
    }
    let answer = if lacks.is_empty() { "good" } else { "limited" };
    Line::new("counters", answer, found, lacks.join("; "))
}

fn of_fact(fact: Fact) -> Line {
    let answer = match fact.verdict {
        Verdict::Good => "good",
        Verdict::Limited => "limited",
        Verdict::Missing => "missing",
    };
    Line::new(fact.name, answer, fact.found, fact.follows)
}

fn print(heading: &str, lines: &[Line]) {
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            let follows = if line.follows.is_empty() { "" } else { "; " };
            let text = format!("{}{follows}{}", line.found, line.follows);
            vec![line.shown_name(), line.answer.to_owned(), text]
        })
        .collect();
    output::line(output::table(&[heading, "", "WHAT AND WHY"], &rows));
}
