//! `vhive load convert`: other published traces, as the loader reads them.

use std::process::ExitCode;

use anyhow::bail;
use vhive_load::trace::Unit;
use vhive_load::trace::convert::{Converted, Huawei, Window, huawei_requests, huawei_tables, ibm};

use super::args::{ConvertArgs, Whose};
use crate::output;

/// Converts.
///
/// # Errors
/// When the trace cannot be read, by file, line and column, or nothing is left of it.
pub(super) fn run(args: &ConvertArgs) -> anyhow::Result<ExitCode> {
    let window = Window::new(args.start, args.duration)?;
    if args.from != Whose::Huawei2023 && (args.seconds || args.runtime.is_some()) {
        bail!("--seconds, --runtime and --memory are of huawei2023 only");
    }
    let done = match (args.from, args.trace.as_slice()) {
        (Whose::Huawei2023, [dir]) => {
            let unit = if args.seconds { Unit::Second } else { Unit::Minute };
            let fixed = args.runtime.zip(args.memory);
            huawei_tables(&Huawei { dir: dir.clone(), unit, window, fixed }, &args.out)?
        }
        (Whose::Huawei2023, _) => bail!("--trace: one directory, that of `requests_minute`"),
        (Whose::Huawei2025, files) => huawei_requests(files, window, &args.out)?,
        (Whose::Ibm2026, files) => ibm(files, window, &args.out)?,
    };
    let Converted { functions, invocations, left_out, moved } = done;
    output::line(format!(
        "{functions} functions, {invocations} invocations in {}",
        args.out.display()
    ));
    if left_out > 0 {
        output::note(format!(
            "{left_out} functions left out: no runtimes or no memory in the window"
        ));
    }
    if moved > 0 {
        output::note(format!(
            "{moved} microseconds added in all: two invocations of a function began together"
        ));
    }
    Ok(ExitCode::SUCCESS)
}
