//! `big-memory`: holds a large buffer and touches a stated part of it per request.
//!
//! Working sets decide what a cold start from a snapshot costs; here their size, and how much of
//! them changes from one input to the next, are parameters.

mod buffer;

use std::process::ExitCode;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use vhive_function::{Function, Reply, Request};

use buffer::{Buffer, Touch};

/// Size of the buffer if `$BUFFER_MIB` is not set.
const DEFAULT_MIB: u64 = 128;

struct BigMemory {
    buffer: Mutex<Buffer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Working set.
    #[serde(default = "default_mib")]
    mib: u64,
    /// Decides where the varying part lies and which word of each page is read.
    #[serde(default)]
    seed: u64,
    /// How much of the working set lies elsewhere for another seed.
    #[serde(default = "default_varying")]
    varying_percent: u64,
    /// Whether pages are written to (with what they hold) as well as read.
    #[serde(default)]
    write: bool,
}

#[derive(Serialize)]
struct Output {
    buffer_mib: u64,
    mib: u64,
    seed: u64,
    pages: u64,
    varying_pages: u64,
    checksum: String,
}

fn default_mib() -> u64 {
    99
}

fn default_varying() -> u64 {
    3
}

impl Function for BigMemory {
    const NAME: &'static str = "big-memory";
    const HELP: &'static str = r#"POST / with {"mib":99,"seed":1,"varying_percent":3,"write":false} touches that many MiB of a buffer of $BUFFER_MIB MiB and replies with a checksum"#;

    async fn call(&self, request: Request) -> Reply {
        let input: Input = match request.json() {
            Ok(input) => input,
            Err(reply) => return reply,
        };
        let mut buffer = self.buffer.lock().expect("no holder of the lock panics");
        let buffer_mib = buffer.mib();
        if input.mib == 0 || input.mib > buffer_mib || input.varying_percent > 100 {
            return Reply::bad_request(&format!(
                "mib must be from 1 to {buffer_mib}, varying_percent at most 100"
            ));
        }
        let touch = Touch::new(&buffer, input.mib, input.seed, input.varying_percent);
        let checksum = match input.write {
            true => buffer.read_and_write(&touch),
            false => buffer.read(&touch),
        };
        Reply::json(&Output {
            buffer_mib,
            mib: input.mib,
            seed: input.seed,
            pages: touch.pages(),
            varying_pages: touch.varying_pages(),
            checksum: format!("{checksum:016x}"),
        })
    }
}

fn buffer_of_environment() -> Result<Buffer, String> {
    let mib = match std::env::var("BUFFER_MIB") {
        Ok(text) => text.parse().map_err(|_| format!("BUFFER_MIB={text} is not a number"))?,
        Err(_) => DEFAULT_MIB,
    };
    Buffer::new(mib).ok_or_else(|| format!("cannot have a buffer of {mib} MiB"))
}

fn main() -> ExitCode {
    match buffer_of_environment() {
        Ok(buffer) => vhive_function::run(BigMemory { buffer: Mutex::new(buffer) }),
        Err(error) => {
            eprintln!("big-memory: {error}");
            ExitCode::FAILURE
        }
    }
}
