//! `cargo xtask check-docs`: what the documents name exists.
//!
//! In `ARCHITECTURE.md` and `docs/one-invocation.md` every code span that looks like a path must be
//! one, and every `Type::function` must be found in the sources; every promise in `GUARANTEES.md`
//! names a test that exists or says *pending*; links between documents lead somewhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::shell::root;

pub(crate) fn run() -> anyhow::Result<()> {
    let root = root();
    let sources = rust_sources(&root)?;
    let mut wrong = Vec::new();
    for document in ["ARCHITECTURE.md", "docs/one-invocation.md"] {
        let text = read(&root.join(document))?;
        for span in code_spans(&text) {
            if !holds(&root, &sources, span) {
                wrong.push(format!("{document}: `{span}` does not exist"));
            }
        }
    }
    let table = read(&root.join("docs/conformance.md"))?;
    let promises = root.join("crates/vhive-sandbox/tests/conformance/promises.rs");
    wrong.extend(conformance(&table, &read(&promises)?));
    wrong.extend(guarantees(&read(&root.join("GUARANTEES.md"))?, &sources));
    for document in markdown(&root)? {
        let text = read(&document)?;
        let folder = document.parent().unwrap_or(&root);
        for link in links(&text) {
            if !folder.join(link).exists() {
                wrong.push(format!("{}: link to {link} leads nowhere", document.display()));
            }
        }
    }
    if !wrong.is_empty() {
        bail!("documents and code disagree:\n  {}", wrong.join("\n  "));
    }
    println!("check-docs: documents and code agree");
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn files(dir: &Path, ending: &str, into: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !path.is_symlink() {
            if name != "target" && !name.starts_with('.') {
                files(&path, ending, into)?;
            }
        } else if name.ends_with(ending) {
            into.push(path);
        }
    }
    Ok(())
}

fn rust_sources(root: &Path) -> anyhow::Result<String> {
    let mut paths = Vec::new();
    files(root, ".rs", &mut paths)?;
    let texts: anyhow::Result<Vec<String>> = paths.iter().map(|path| read(path)).collect();
    Ok(texts?.join("\n"))
}

fn markdown(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    files(root, ".md", &mut paths)?;
    Ok(paths)
}

/// The text between single backticks, outside fenced blocks.
fn code_spans(text: &str) -> Vec<&str> {
    let mut fenced = false;
    let mut spans = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            spans.extend(line.split('`').skip(1).step_by(2));
        }
    }
    spans
}

fn holds(root: &Path, sources: &str, span: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    if span.chars().all(word)
        && (span.ends_with(".rs") || span.ends_with(".md") || span.ends_with('/'))
    {
        return ["", "crates/", "docs/"].iter().any(|base| root.join(base).join(span).exists());
    }
    let symbol = span.strip_suffix("()").unwrap_or(span);
    if let Some((owner, item)) = symbol.rsplit_once("::") {
        let name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let plain = !item.is_empty() && item.chars().all(name);
        let first = owner.rsplit("::").next().unwrap_or(owner);
        if plain && first.chars().all(name) {
            let function = sources.contains(&format!("fn {item}"));
            let other = ["struct", "enum", "trait", "mod", "const"]
                .iter()
                .any(|kind| sources.contains(&format!("{kind} {item}")));
            let variant = sources.contains(&format!("    {item},"))
                || sources.contains(&format!("    {item}("))
                || sources.contains(&format!("    {item} {{"));
            return (function || other || variant) && sources.contains(first);
        }
    }
    true
}

/// The table of promises has a row for each one of the suite, and no other: it is written by
/// `cargo xtask conformance`, which somebody has to run.
fn conformance(table: &str, suite: &str) -> Vec<String> {
    let suite = suite.split_once("ALL: &[Promise] = &[").map_or("", |(_, rest)| rest);
    let suite = suite.split_once("];").map_or("", |(rows, _)| rows);
    let names = suite.split('(').skip(1).filter_map(|rest| {
        // The first thing in the brackets, on whichever line.
        rest.trim_start().strip_prefix('"')?.split('"').next()
    });
    let promises: BTreeSet<String> = names.map(str::to_owned).collect();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    let rows = rows.filter(|row| *row != "promise").map(|row| row.replace(' ', "_"));
    let rows: BTreeSet<String> = rows.collect();
    let differ = promises.symmetric_difference(&rows);
    differ
        .map(|name| {
            let where_not = if rows.contains(name) { "the suite" } else { "the table" };
            format!("docs/conformance.md: {name} is not in {where_not}: `cargo xtask conformance`")
        })
        .collect()
}

/// Rows look like `| G1 | promise | test_name |`; several tests are divided by commas.
fn guarantees(text: &str, sources: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut numbers = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with("| G")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [id, _, tests] = cells[..] else {
            wrong.push(format!("GUARANTEES.md: {line:?} does not have three columns"));
            continue;
        };
        if !numbers.insert(id) {
            wrong.push(format!("GUARANTEES.md: {id} comes twice"));
        }
        if tests.starts_with("pending") {
            continue;
        }
        for test in tests.split(',').map(|test| test.trim().trim_matches('`')) {
            let name = test.rsplit("::").next().unwrap_or(test);
            // A function, or a row in a table of tests.
            let is_test = sources.contains(&format!("fn {name}("))
                || sources.contains(&format!("(\"{name}\", "));
            if name.is_empty() || !is_test {
                wrong.push(format!(
                    "GUARANTEES.md: {id} names the test {test:?}, which does not exist"
                ));
            }
        }
    }
    wrong
}

/// Targets of links to files of the checkout, without their fragments.
fn links(text: &str) -> Vec<&str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
        .map(|target| target.split('#').next().unwrap_or(target))
        .filter(|target| !target.is_empty() && !target.contains("://") && !target.contains(' '))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_outside_fences_are_found() {
        let text = "a `x.rs` b `Pool::acquire`\n```\n`not this`\n```\n";
        assert_eq!(code_spans(text), ["x.rs", "Pool::acquire"]);
    }

    #[test]
    fn a_missing_test_is_named() {
        let wrong = guarantees("| G1 | it works | no_such_test |\n| G2 | later | pending |", "");
        assert_eq!(wrong.len(), 1);
    }

    #[test]
    fn links_lose_fragments_and_hosts() {
        assert_eq!(links("[a](b.md#c) [d](https://e.f) [g](#h)"), ["b.md"]);
    }

    #[test]
    fn a_stale_table_of_promises_is_noticed() {
        let suite = "const fn any(x) {}\npub(crate) const ALL: &[Promise] = &[\n    \
            any(\"boots_well\", boots_well),\n    real(\"stops\", other::stops),\n];\n(\"no\", 1)";
        let table = "# Title\n\n| promise | qemu |\n|---|---|\n| boots well | yes |\n";
        let stops = format!("{table}| stops | (1) |\n");
        assert_eq!(conformance(&stops, suite), [""; 0]);
        let wrong = conformance(table, suite);
        assert!(wrong.len() == 1 && wrong[0].contains("stops is not in the table"), "{wrong:?}");
        let more = format!("{stops}| flies | yes |\n");
        assert!(conformance(&more, suite)[0].contains("flies is not in the suite"));
    }
}
