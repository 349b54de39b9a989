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
    let mut all = args.into_iter();
    let mut done = Vec::new();
    let (mut is_load, mut way) = (false, String::new());
    for arg in all.by_ref() {
        if arg == "--" {
            done.push(arg);
            break;
        }
        if is_load && way.is_empty() && WAYS.contains(&arg.as_str()) {
            way.clone_from(&arg);
        }
        is_load |= arg == "load";
        let arg = if is_long_with_one_dash(&arg) { format!("-{arg}") } else { arg };
        let renamed = match way.as_str() {
            "trace" => renamed(&arg, &["--config"], "--experiment"),
            "synth" | "sample" | "convert" => renamed(&arg, &["-o", "--output"], "--out"),
            _ => None,
        };
        done.push(renamed.unwrap_or(arg));
    }
    done.extend(all);
    done
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
        let split = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
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
        ] {
            assert_eq!(two_dashes(split(given)), split(read));
        }
    }
}
