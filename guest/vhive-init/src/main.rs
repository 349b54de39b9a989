//! PID 1 inside vHive's microVM guests.
//!
//! ```text
//!   modules ─► Hello ─► (host: Start) ─► clock, entropy ─► root ─► network ─► Mounted
//!           ─► start the function ─► Started ─► Listening · Output… ─► Exited ─► power off
//!                                               └─ Prepared ─ (snapshot) ─ Resumed
//! ```
//!
//! Whatever fails is told to the host (`Failed`) and to the console, and the guest powers off.
//! The contract is `docs/design/guest-contract.md`.
//!
//! What this program does not do: retry, keep state, or outlive the function.

mod channel;
mod clock;
mod entropy;
mod failure;
mod hook;
mod lines;
mod listen;
mod modules;
mod mounts;
mod netlink;
mod network;
mod process;
mod supervise;
mod uevent;
mod user;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::system::{RebootCommand, reboot};
use vhive_api::guest::FromGuest;

use crate::channel::{Channel, Started};
use crate::entropy::Entropy;
use crate::failure::Failure;
use crate::modules::{Modules, Stage};
use crate::supervise::{Function, Supervisor};
use crate::uevent::Uevents;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        say("this program is the first process of a vHive guest, not a command");
        return ExitCode::FAILURE;
    }
    std::panic::set_hook(Box::new(|panic| {
        say(&format!("internal error: {panic}"));
        power_off();
    }));
    let mut channel = None;
    if let Err(failure) = run(&mut channel) {
        say(&format!("{}: {}", failure.step, failure.reason));
        if let Some(channel) = &mut channel {
            let Failure { step, reason } = failure;
            channel.queue(&FromGuest::Failed { at_ns: clock::now_ns(), step, reason });
            // If the host does not listen there is nobody left to tell.
            let _ = channel.finish(Instant::now() + Duration::from_secs(1));
        }
    }
    power_off();
    ExitCode::FAILURE
}

fn run(open: &mut Option<Channel>) -> Result<(), Failure> {
    mounts::mount_early()?;
    let uevents = Uevents::open()?;
    let modules = Modules::of_initramfs()?;
    modules.load(Stage::Channel)?;
    let channel = open.insert(Channel::open(&uevents)?);
    let Started { config, handshake_ns } = channel.hello()?;
    modules.load(Stage::Root)?;
    let spent = modules.into_files();
    clock::set_wall(config.now_unix_ns)?;
    let entropy = Entropy::open()?;
    entropy.reseed(&config.entropy)?;
    network::configure(config.network.as_ref(), &uevents)?;
    mounts::mount_root(&uevents)?;
    let names = network::name(&config.hostname, config.network.as_ref())?;
    channel.queue(&FromGuest::Mounted { at_ns: clock::now_ns(), handshake_ns });
    channel.flush()?;
    let stop_signal = process::stop_signal(&config.process.stop_signal)?;
    let children = supervise::watch_children()?;
    let child = process::start(&config.process)?;
    channel.queue(&FromGuest::Started { at_ns: clock::now_ns(), pid: child.id() });
    channel.flush()?;
    let listening = listen::watch(config.port)?;
    spent.remove();
    let function = Function { stop_signal, port: config.port, hooks: config.hooks, names, entropy };
    Supervisor::new(channel, children, child, listening, function).run()
}

/// Prints to the guest's console, which the host keeps.
fn say(text: &str) {
    // Without a console there is nobody to hear it.
    let _ = writeln!(io::stderr(), "vhive-init: {text}");
}

fn power_off() {
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        say(&format!("cannot power off: {error}"));
    }
}
