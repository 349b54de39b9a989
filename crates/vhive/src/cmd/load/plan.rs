//! `vhive load rps|closed|sweep --plan FILE.toml`: the options in a file, by the words that they have
//! on the command line.

use std::path::Path;

use anyhow::{Context as _, bail};
use clap::{Arg, Command, CommandFactory as _};
use toml::{Table, Value};

/// The ways that take a plan; `trace` and `experiments` have the original's files.
const WAYS: [&str; 3] = ["rps", "closed", "sweep"];
const PLAN: &str = "plan";

/// Puts the options of a plan's file into the command line, but for those that it has itself.
/// Unknown ones are refused with the command line, by name.
///
/// # Errors
/// When the file cannot be read, is no TOML, or has what is no option's value.
pub(crate) fn with_plan(mut words: Vec<String>) -> anyhow::Result<Vec<String>> {
    let Some(way) = vhive_load::flags::way(&words) else { return Ok(words) };
    if !WAYS.contains(&words[way].as_str()) {
        return Ok(words);
    }
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let known = Known::of(&words[way]);
    let given = known.read(&words[way + 1..end.max(way + 1)]);
    let Some((_, path)) = given.iter().find(|(name, _)| name == PLAN) else { return Ok(words) };
    let path = Path::new(path);
    let text = std::fs::read_to_string(path);
    let text = text.with_context(|| format!("cannot read {} (--plan)", path.display()))?;
    let more = options(&text, &known, &given);
    let more = more.with_context(|| format!("{} is no plan", path.display()))?;
    drop(words.splice(way + 1..way + 1, more));
    Ok(words)
}

/// The options that a way knows, under all their names.
struct Known(Vec<Arg>);

impl Known {
    fn of(way: &str) -> Self {
        let mut all = crate::cli::Cli::command();
        // Those of all commands are known to each then.
        all.build();
        let found = all.find_subcommand("load").and_then(|load| load.find_subcommand(way));
        Self(found.into_iter().flat_map(Command::get_arguments).cloned().collect())
    }

    fn long(&self, name: &str) -> Option<&Arg> {
        self.0.iter().find(|arg| {
            arg.get_long() == Some(name)
                || arg.get_all_aliases().is_some_and(|all| all.contains(&name))
        })
    }

    fn short(&self, name: char) -> Option<&Arg> {
        self.0.iter().find(|arg| {
            arg.get_short() == Some(name)
                || arg.get_all_short_aliases().is_some_and(|all| all.contains(&name))
        })
    }

    /// The name that counts, of an option under any of its names.
    fn name<'a>(&'a self, name: &'a str) -> &'a str {
        self.long(name).and_then(Arg::get_long).unwrap_or(name)
    }

    /// What the words give: options by their names, with values; a last one may lack its own.
    fn read(&self, words: &[String]) -> Vec<(String, String)> {
        let (mut all, mut words) = (Vec::new(), words.iter());
        while let Some(word) = words.next() {
            let (arg, glued) = if let Some(long) = word.strip_prefix("--") {
                let (name, glued) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(value)),
                    None => (long, None),
                };
                (self.long(name), glued)
            } else if let Some(shorts) = word.strip_prefix('-') {
                let mut chars = shorts.chars();
                let mut arg = chars.next().and_then(|name| self.short(name));
                // Flags may stand in front of one that has a value.
                while let Some(flag) = arg.filter(|arg| !takes_value(arg)) {
                    all.push((name_of(flag), String::new()));
                    arg = chars.next().and_then(|name| self.short(name));
                }
                let rest = chars.as_str();
                (arg, (!rest.is_empty()).then(|| rest.strip_prefix('=').unwrap_or(rest)))
            } else {
                continue;
            };
            let Some(arg) = arg else { continue };
            let value = match glued {
                Some(value) => value.to_owned(),
                None if takes_value(arg) && !arg.is_require_equals_set() => {
                    words.next().cloned().unwrap_or_default()
                }
                None => String::new(),
            };
            all.push((name_of(arg), value));
        }
        all
    }
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
}

fn name_of(arg: &Arg) -> String {
    arg.get_long().unwrap_or_else(|| arg.get_id().as_str()).to_owned()
}

fn options(text: &str, known: &Known, given: &[(String, String)]) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for (key, value) in text.parse::<Table>()? {
        let dashes = key.replace('_', "-");
        let name = known.name(&dashes);
        if name == PLAN {
            bail!("a plan names no other plan");
        }
        if given.iter().any(|(given, _)| given == name) {
            continue;
        }
        let values = match value {
            Value::Array(values) => values,
            one => vec![one],
        };
        for value in values {
            match value {
                Value::Boolean(true) => all.push(format!("--{name}")),
                Value::Boolean(false) => {}
                Value::String(text) => all.push(format!("--{name}={text}")),
                Value::Integer(number) => all.push(format!("--{name}={number}")),
                Value::Float(number) => all.push(format!("--{name}={number}")),
                other => bail!("{key}: {} is no option's value", other.type_str()),
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str, line: &str) -> Result<String, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("plan.toml");
        std::fs::write(&path, text).expect("written");
        let line = line.replace("FILE", &path.to_string_lossy());
        let words = line.split(' ').map(str::to_owned).collect();
        let words = with_plan(words).map_err(|error| format!("{error:#}"))?;
        Ok(words.join(" ").replace(&*path.to_string_lossy(), "FILE"))
    }

    #[test]
    fn a_plans_options_stand_behind_the_way_and_those_of_the_line_go_before() {
        let plan = "rps = 50.5\ntime = '30s'\nmax_connections = 8\nbusy = true\nprofile = false\n\
            header = ['A: b', 'C: d']\n";
        let told = with(plan, "vhive -o json load rps --plan FILE --time=5 --out x").expect("read");
        let mut words: Vec<&str> = told.split(" --").collect();
        assert_eq!(words.remove(0), "vhive -o json load rps");
        words.sort_unstable();
        let wanted = [
            "busy",
            "header=A: b",
            "header=C: d",
            "max-connections=8",
            "out x",
            "plan FILE",
            "rps=50.5",
            "time=5",
        ];
        assert_eq!(words, wanted);
        for untouched in [
            "vhive load rps --rps 5",
            "vhive load trace --plan FILE",
            "vhive load rps -- --plan FILE",
        ] {
            assert_eq!(with(plan, untouched).expect("read"), untouched);
        }
    }

    #[test]
    fn short_and_other_names_on_the_line_go_before_a_plans() {
        let plan = "method = 'PUT'\ndata = 'x'\nheader = 'A: b'\nendpoints = 'p.json'\n\
            timeout = '1s'\nendpointsFile = 'q.json'\nrps = 5\n";
        for line in [
            "-X POST -d y -H C:d --endpointsFile e.json --grpcTimeout 2",
            "-XPOST -dy -HC:d --endpointsFile=e.json --grpcTimeout=2",
            "-X=POST -d=y -H=C:d --endpoints e.json --timeout 2s",
        ] {
            let told = with(plan, &format!("vhive load rps --plan FILE {line}")).expect("read");
            assert_eq!(told, format!("vhive load rps --rps=5 --plan FILE {line}"));
        }
        // A value is no option.
        let told = with("data = 'x'\nmethod = 'PUT'", "vhive load rps -d --method --plan FILE");
        assert_eq!(told.expect("read"), "vhive load rps --method=PUT -d --method --plan FILE");
    }

    #[test]
    fn what_is_no_plan_is_named() {
        for (text, said) in [
            ("rps = ", "plan.toml is no plan"),
            ("[rps]\nx = 1", "rps: table is no option's value"),
            ("plan = 'x'", "names no other plan"),
        ] {
            let error = with(text, "vhive load closed --plan=FILE").expect_err("refused");
            assert!(error.contains(said), "{error}");
        }
        let error = with("", "vhive load sweep --plan /nowhere/plan.toml").expect_err("absent");
        assert!(error.contains("/nowhere/plan.toml"), "{error}");
    }
}
