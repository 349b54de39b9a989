//! Command lines as the originals' users write them: one dash before a long name.

/// The ways of `vhive load`.
const WAYS: [&str; 10] = [
    "rps",
    "closed",
    "sweep",
    "trace",
    "experiments",
    "multi",
    "convert",
    "synth",
    "sample",
    "deploy",
];

/// Options of every command that take a value; whatever stands behind one is no command.
pub const WITH_VALUE: [&str; 7] = ["state-dir", "config", "output", "o", "namespace", "n", "log"];

/// Gives every long flag with one dash its second, so that a known one is understood and an
/// unknown one is refused by its name. Short flags and negative numbers stay; `-ojson` does not
/// work here, `-o json` does. Two names mean the original's behind a way of `load`, and ours before
/// it: `config` is the experiment's behind `trace`; `o` and `output` are where the files go behind
/// `synth`, `sample` and `convert`, which print no results in another format.
///
/// # Source
/// Go's package `flag`, which takes one dash or two; Python's `argparse`.
#[must_use]
pub fn two_dashes(args: Vec<String>) -> Vec<String> {
    if command(&args, &["load", "deploy"], 1).is_none() {
        return args;
    }
    let at = way(&args);
    let way = at.map_or_else(String::new, |at| args[at].clone());
    let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    let each = args.into_iter().enumerate().map(|(nth, arg)| {
        if nth >= end {
            return arg;
        }
        let arg = if is_long_with_one_dash(&arg) { format!("-{arg}") } else { arg };
        let renamed = match way.as_str() {
            _ if Some(nth) < at => None,
            "trace" => renamed(&arg, &["--config"], "--experiment"),
            "synth" | "sample" | "convert" => renamed(&arg, &["-o", "--output"], "--out"),
            _ => None,
        };
        renamed.unwrap_or(arg)
    });
    each.collect()
}

/// Where a command line has its way of `load`, if it is one of `load`. The first word is the program's.
#[must_use]
pub fn way(args: &[String]) -> Option<usize> {
    command(args, &["load"], 1).and_then(|load| command(args, &WAYS, load + 1))
}

/// Where a command is, if it is one of those: no word before it can be another. What follows an option
/// that is not known may be its value.
fn command(args: &[String], names: &[&str], from: usize) -> Option<usize> {
    let mut may_be_value = false;
    let mut words = args.iter().enumerate().skip(from);
    while let Some((at, arg)) = words.next() {
        match arg.as_str() {
            "--" => return None,
            option if takes_value(option) => {
                let _ = words.next();
                may_be_value = false;
            }
            option if option.starts_with('-') => may_be_value = !option.contains('='),
            name if names.contains(&name) => return Some(at),
            _ if may_be_value => may_be_value = false,
            _ => return None,
        }
    }
    None
}

fn takes_value(option: &str) -> bool {
    let name = option.strip_prefix("--").or_else(|| option.strip_prefix('-'));
    name.is_some_and(|name| WITH_VALUE.contains(&name))
}

/// The flag by its new name, if it is one of those, with the value that may stand behind `=`.
fn renamed(arg: &str, names: &[&str], new: &str) -> Option<String> {
    let rest = names.iter().find_map(|name| arg.strip_prefix(name))?;
    (rest.is_empty() || rest.starts_with('=')).then(|| format!("{new}{rest}"))
}

fn is_long_with_one_dash(arg: &str) -> bool {
    let Some(name) = arg.strip_prefix('-') else { return false };
    let mut chars = name.chars();
    let (Some(first), Some(_)) = (chars.next(), chars.next()) else { return false };
    // `-HName: value` is the only way to write two in one that is kept; all the originals' flags
    // begin with small letters.
    first.is_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_originals_flags_get_their_second_dash() {
        let split = |line: &str| {
            let words = std::iter::once("vhive").chain(line.split(' '));
            words.map(str::to_owned).collect::<Vec<_>>()
        };
        for (given, read) in [
            (
                "load rps -endpointsFile e.json -rps=2 -time 5",
                "load rps --endpointsFile e.json --rps=2 --time 5",
            ),
            ("load rps --rps 2 -n x -o json -h", "load rps --rps 2 -n x -o json -h"),
            (
                "load rps -dbg -durf d.csv -HA:b -X POST -dryRun",
                "load rps --dbg --durf d.csv -HA:b -X POST --dryRun",
            ),
            ("load rps -rps -1 -- -rps", "load rps --rps -1 -- -rps"),
            ("load rps -nonsense", "load rps --nonsense"),
            ("--config a load trace -config b", "--config a load trace --experiment b"),
            ("load trace --config=b", "load trace --experiment=b"),
            ("load synth -f 2 -o dir -mem 3", "load synth -f 2 --out dir --mem 3"),
            ("-o json load sample -o dir -orig a", "-o json load sample --out dir --orig a"),
            ("load convert ibm2026 --output=x", "load convert ibm2026 --out=x"),
            ("load rps --endpoints synth -o json", "load rps --endpoints synth -o json"),
            ("load synth --output-x y", "load synth --output-x y"),
            ("load -o json sample -o x", "load -o json sample --out x"),
            ("deploy -jsonFile f", "deploy --jsonFile f"),
            // Services, and a namespace, of these names.
            ("get services load sample -o json", "get services load sample -o json"),
            ("get services load -ojson", "get services load -ojson"),
            ("-n load get services sample -o json", "-n load get services sample -o json"),
            ("load closed sample -o json", "load closed sample -o json"),
            ("-n load get services x -ojson", "-n load get services x -ojson"),
            ("-n load -o json get sample -ojson", "-n load -o json get sample -ojson"),
            ("-n deploy get services -ojson", "-n deploy get services -ojson"),
            ("--namespace load load synth -o x", "--namespace load load synth --out x"),
            ("load -n sample rps -o json", "load -n sample rps -o json"),
        ] {
            assert_eq!(two_dashes(split(given)), split(read));
        }
    }
}
