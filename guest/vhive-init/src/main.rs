//! PID 1 inside vHive's sandboxes: in a microVM the first process of the guest's own kernel, in a
//! container (`vhive-init container`) the first of its process namespace.
//!
//! ```text
//!   modules ─► Hello ─► (host: Start) ─► clock, entropy ─► root ─► network ─► Mounted
//!           ─► start the function ─► Started ─► Listening · Output… ─► Exited ─► power off
//!                                               └─ Prepared ─ (snapshot) ─ Resumed
//! ```
//!
//! In a container the host has set up root and network, and there is no kernel whose modules, clock
//! or entropy would be ours.
//!
//! Whatever fails is told to the host (`Failed`) and to the console, and the guest powers off.
//! The contract is `docs/design/guest-contract.md`.
//!
//! On the host it is one thing more: the parent of a container without it (`vhive-init reap`).
//!
//! What this program does not do: retry, keep state, or outlive the function.

mod channel;
mod clock;
mod diag;
mod entropy;
mod failure;
mod hook;
mod listen;
mod modules;
mod mounts;
mod netlink;
mod network;
mod process;
mod reap;
mod serial;
mod supervise;
mod uevent;
mod user;
mod volumes;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::system::{RebootCommand, reboot};
use vhive_api::guest::{FromGuest, GuestConfig};

use crate::channel::{Channel, Started};
use crate::entropy::Entropy;
use crate::failure::Failure;
use crate::modules::{Modules, Stage};
use crate::supervise::{Function, Supervisor};
use crate::uevent::Uevents;

/// What the sandbox is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum World {
    /// A kernel of its own, with this program in its initramfs.
    Machine,
    /// Name spaces of a kernel that others use as well; standard input and output are the channel.
    Container,
}

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let word = words.next();
    if word.as_ref().is_some_and(|word| word == "reap") {
        return reap::run(words);
    }
    if std::process::id() != 1 && word.as_ref().is_some_and(|word| word == "idle") {
        // A function that does nothing, for a host that tries out what it can do.
        loop {
            rustix::event::pause();
        }
    }
    if std::process::id() != 1 {
        say("this program is the first process of a vHive sandbox, not a command");
        return ExitCode::FAILURE;
    }
    let container = word.is_some_and(|word| word == "container");
    let world = if container { World::Container } else { World::Machine };
    std::panic::set_hook(Box::new(move |panic| {
        say(&format!("internal error: {panic}"));
        leave(world);
    }));
    let mut channel = None;
    if let Err(failure) = run(world, &mut channel) {
        say(&format!("{}: {}", failure.step, failure.reason));
        if let Some(channel) = &mut channel {
            let Failure { step, reason } = failure;
            channel.queue(&FromGuest::Failed { at_ns: clock::now_ns(), step, reason });
            // If the host does not listen there is nobody left to tell.
            let _ = channel.finish(Instant::now() + Duration::from_secs(1));
        }
    }
    leave(world);
    ExitCode::FAILURE
}

fn run(world: World, open: &mut Option<Channel>) -> Result<(), Failure> {
    match world {
        World::Machine => run_machine(open),
        World::Container => {
            let channel = open.insert(Channel::of_stdio()?);
            let started = channel.hello()?;
            mounts::make_usual_directories()?;
            serve(world, channel, started, None, || ())
        }
    }
}

fn run_machine(open: &mut Option<Channel>) -> Result<(), Failure> {
    mounts::mount_early()?;
    let uevents = Uevents::open()?;
    let modules = Modules::of_initramfs()?;
    modules.load(Stage::Channel)?;
    let channel = open.insert(Channel::open(&uevents)?);
    let started = channel.hello()?;
    modules.load(Stage::Root)?;
    let spent = modules.into_files();
    clock::set_wall(started.config.now_unix_ns)?;
    let entropy = Entropy::open()?;
    entropy.reseed(&started.config.entropy)?;
    network::configure(started.config.network.as_ref(), &uevents)?;
    mounts::mount_root(&uevents)?;
    serve(World::Machine, channel, started, Some(entropy), || spent.remove())
}

/// Starts the function in its root and looks after it.
fn serve(
    world: World,
    channel: &mut Channel,
    started: Started,
    entropy: Option<Entropy>,
    tidy: impl FnOnce(),
) -> Result<(), Failure> {
    let Started { config, handshake_ns } = started;
    volumes::place(&config.process.volumes, world)?;
    let names = &config.process.gateway_names;
    let names = network::name(&config.hostname, config.network.as_ref(), names)?;
    channel.queue(&FromGuest::Mounted { at_ns: clock::now_ns(), handshake_ns });
    channel.flush()?;
    let stop_signal = process::stop_signal(&config.process.stop_signal)?;
    let children = supervise::watch_children()?;
    let child = process::start(&config.process, world)?;
    channel.queue(&FromGuest::Started {
        at_ns: clock::now_ns(),
        pid: child.pid.as_raw().cast_unsigned(),
    });
    channel.flush()?;
    let listening = listen::watch(config.port, world)?;
    tidy();
    let GuestConfig { process, port, hooks, .. } = config;
    let function = Function { stop_signal, port, hooks, names, entropy, process, world };
    Supervisor::new(channel, children, child, listening, function).run()
}

/// Prints to the sandbox's console, which the host keeps.
fn say(text: &str) {
    // Without a console there is nobody to hear it.
    let _ = writeln!(io::stderr(), "vhive-init: {text}");
}

/// Ends the sandbox. A container goes with its first process, when this returns.
fn leave(world: World) {
    if world == World::Container {
        return;
    }
    rustix::fs::sync();
    // Firecracker knows no power button, and takes a reset for it.
    let end = if serial::is_channel() { RebootCommand::Restart } else { RebootCommand::PowerOff };
    if let Err(error) = reboot(end) {
        say(&format!("cannot power off: {error}"));
    }
}
