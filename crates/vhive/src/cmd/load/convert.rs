//! `vhive load convert`: other published traces, as the loader reads them.

use std::process::ExitCode;

use anyhow::bail;
use vhive_load::trace::Unit;
use vhive_load::trace::convert::{
    Converted, Huawei, Start, Window, azure_day, huawei_requests, huawei_tables, ibm,
};

use super::args::{ConvertArgs, Whose};
use crate::output;

/// Converts.
///
/// # Errors
/// When the trace cannot be read, by file, line and column, or nothing is left of it.
pub(super) fn run(args: &ConvertArgs) -> anyhow::Result<ExitCode> {
    let window = window(args)?;
    if args.from != Whose::Huawei2023 && (args.seconds || args.runtime.is_some()) {
        bail!("--seconds, --runtime and --memory are of huawei2023 only");
    }
    let done = match (args.from, args.trace.as_slice()) {
        (Whose::Azure2019, [dir]) => {
            let (done, left_out) = azure_day(dir, window, &args.out)?;
            left_out.notes().into_iter().for_each(output::note);
            done
        }
        (Whose::Azure2019, _) => bail!("--trace: one directory, that of the published files"),
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

/// Which part of the trace.
fn window(args: &ConvertArgs) -> anyhow::Result<Window> {
    let of_azure = args.from == Whose::Azure2019;
    if args.day.is_some() && !of_azure {
        bail!("--day is of azure2019 only: give --start DD:HH:MM");
    }
    let start: Start = args.day.map_or(Ok(args.start), |day| args.start.of_day(day))?;
    // The files of Azure are of one day: the rest of it.
    let duration = args.duration.or(of_azure.then(|| start.minutes_left()));
    let Some(duration) = duration else { bail!("--duration: how many minutes are converted") };
    Ok(Window::new(start, duration)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        convert: ConvertArgs,
    }

    fn parsed(line: &str) -> anyhow::Result<Window> {
        let words = ["x"].into_iter().chain(line.split_whitespace());
        window(&<Line as clap::Parser>::try_parse_from(words)?.convert)
    }

    #[test]
    fn the_part_of_a_trace_is_told_in_the_originals_way_or_by_day_and_minute() {
        let of = |start: &str, minutes| {
            Window::new(start.parse().expect("a moment"), minutes).expect("a window")
        };
        for (line, wanted) in [
            // The sampler's `preprocess`, whose first day is 00.
            ("preprocess -t d -s 02:03:04 --dur 5 --out o", of("02:03:04", 5)),
            ("azure2019 --from d --day 3 --start 184 --duration 5 --out o", of("02:03:04", 5)),
            ("azure2019 --from d --day 1 --out o", of("0", 1440)),
            ("azure2019 --from d --day 2 --start 00:23:00 --out o", of("01:23:00", 60)),
            ("ibm2026 --trace a b --duration 7 --out o", of("0", 7)),
        ] {
            assert_eq!(parsed(line).expect(line), wanted, "{line}");
        }
        for (line, said) in [
            ("azure2019 --from d --day 0 --out o", "--day"),
            ("azure2019 --from d --day 15 --out o", "--day"),
            ("azure2019 --from d --day 2 --start 01:00:00 --out o", "before 24:00"),
            ("huawei2023 --trace d --day 2 --duration 1 --out o", "--day is of azure2019 only"),
            ("huawei2023 --trace d --out o", "--duration"),
            ("azure2019 --out o", "--trace"),
        ] {
            let why = parsed(line).expect_err(line).to_string();
            assert!(why.contains(said), "{why} for {line}");
        }
    }
}
