//! `vhive load rps|closed|sweep --plan FILE.toml`: the options in a file, by the words that they have
//! on the command line.

use std::path::Path;

use anyhow::{Context as _, bail};
use toml::{Table, Value};

/// The ways that take a plan; `trace` and `experiments` have the original's files.
const WAYS: [&str; 3] = ["rps", "closed", "sweep"];

/// Puts the options of a plan's file into the command line, but for those that it has itself.
/// Unknown ones are refused with the command line, by name.
///
/// # Errors
/// When the file cannot be read, is no TOML, or has what is no option's value.
pub(crate) fn with_plan(mut words: Vec<String>) -> anyhow::Result<Vec<String>> {
    let load = words.iter().position(|word| word == "load").unwrap_or(words.len());
    let is_way = |word: &String| WAYS.contains(&word.as_str());
    let Some(way) = words[load..].iter().position(is_way).map(|at| load + at) else {
        return Ok(words);
    };
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let given = &words[way.min(end)..end];
    let Some(path) = value_of(given, "plan") else { return Ok(words) };
    let path = Path::new(path);
    let text = std::fs::read_to_string(path);
    let text = text.with_context(|| format!("cannot read {} (--plan)", path.display()))?;
    let more = options(&text, |name| value_of(given, name).is_some());
    let more = more.with_context(|| format!("{} is no plan", path.display()))?;
    drop(words.splice(way + 1..way + 1, more));
    Ok(words)
}

/// What stands behind a long option, which may be nothing.
fn value_of<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    let rest = |word: &'a String| word.strip_prefix("--")?.strip_prefix(name);
    words.iter().enumerate().find_map(|(at, word)| match rest(word)? {
        "" => Some(words.get(at + 1).map_or("", String::as_str)),
        rest => rest.strip_prefix('='),
    })
}

fn options(text: &str, is_given: impl Fn(&str) -> bool) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for (key, value) in text.parse::<Table>()? {
        let name = key.replace('_', "-");
        if name == "plan" {
            bail!("a plan names no other plan");
        }
        if is_given(&name) {
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
