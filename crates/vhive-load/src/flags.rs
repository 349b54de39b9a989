//! Command lines as the originals' users write them: one dash before a long name.

/// Short flags that stay as they are; a value may follow at once where `true`.
const SHORT: &[(char, bool)] = &[('H', true), ('X', true), ('d', true), ('h', false)];

/// Gives every long flag with one dash its second, so that a known one is understood and an
/// unknown one is refused by its name. `-o json`, `-n name` and what a value begins with a dash
/// and digits stay.
///
/// # Source
/// Go's package `flag`, which takes one dash or two.
#[must_use]
pub fn two_dashes(args: Vec<String>) -> Vec<String> {
    let mut all = args.into_iter();
    let mut done = Vec::new();
    for arg in all.by_ref() {
        if arg == "--" {
            done.push(arg);
            break;
        }
        done.push(if is_long_with_one_dash(&arg) { format!("-{arg}") } else { arg });
    }
    done.extend(all);
    done
}

fn is_long_with_one_dash(arg: &str) -> bool {
    let Some(name) = arg.strip_prefix('-') else { return false };
    let mut chars = name.chars();
    let (Some(first), Some(_)) = (chars.next(), chars.next()) else { return false };
    let takes_value = SHORT.iter().any(|(short, value)| *short == first && *value);
    let attached = takes_value && !name.starts_with("dbg") && !name.starts_with("durf");
    first.is_ascii_alphabetic() && !attached
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
                "load rps -dbg -durf d.csv -HA:b -X POST",
                "load rps --dbg --durf d.csv -HA:b -X POST",
            ),
            ("load rps -rps -1 -- -rps", "load rps --rps -1 -- -rps"),
            ("load rps -nonsense", "load rps --nonsense"),
        ] {
            assert_eq!(two_dashes(split(given)), split(read));
        }
    }
}
