//! Command lines as the originals' users write them: one dash before a long name.

/// Gives every long flag with one dash its second, so that a known one is understood and an
/// unknown one is refused by its name. Short flags and negative numbers stay; `-ojson` does not
/// work here, `-o json` does. Behind `trace`, `config` is the experiment's, and the node's is given
/// before it.
///
/// # Source
/// Go's package `flag`, which takes one dash or two.
#[must_use]
pub fn two_dashes(args: Vec<String>) -> Vec<String> {
    let mut all = args.into_iter();
    let mut done = Vec::new();
    let mut is_trace = false;
    for arg in all.by_ref() {
        if arg == "--" {
            done.push(arg);
            break;
        }
        is_trace |= arg == "trace";
        let arg = if is_long_with_one_dash(&arg) { format!("-{arg}") } else { arg };
        done.push(match arg.strip_prefix("--config") {
            Some(rest) if is_trace && (rest.is_empty() || rest.starts_with('=')) => {
                format!("--experiment{rest}")
            }
            _ => arg,
        });
    }
    done.extend(all);
    done
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
        ] {
            assert_eq!(two_dashes(split(given)), split(read));
        }
    }
}
