//! The page: one file, nothing loaded from elsewhere, also well-formed XML.

use serde_json::Value;

use crate::analysis::{Analysis, Series};
use crate::host::Host;
use crate::plan::Cache;
use crate::row::{Facts, StudyName, StudyResult};

use super::svg::{Chart, escape};
use super::{figures, runtimes};

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub(super) fn page(result: &StudyResult, analysis: &Analysis, charts: &[Chart]) -> String {
    let facts = &result.facts;
    let title = match facts.study {
        StudyName::ColdStart => "Cold starts by kind",
        StudyName::Parallel => "Concurrent cold starts",
        StudyName::Pages => "Pages of working sets",
        StudyName::Runtimes => "The same functions in every sandbox",
    };
    let mut page = begin(title, &subtitle(result));
    page.push_str(&nav(charts));
    page.push_str(&list("Findings", "findings", &figures::findings(analysis)));
    page.push_str(&list("Warnings", "warnings", &analysis.warnings));
    page.push_str(&drawn(charts));
    page.push_str(&sandboxes(analysis));
    page.push_str(&pages(analysis));
    page.push_str(&footprint(analysis));
    page.push_str(&counters(analysis));
    page.push_str(&numbers(analysis));
    page.push_str(&ratios(analysis));
    page.push_str(&phases(analysis));
    page.push_str(&left_out(analysis));
    page.push_str(&host(facts));
    page.push_str(&method(facts, super::timelines::method(analysis)));
    page.push_str(END);
    page
}

/// The beginning of a page; `below` is markup.
pub(super) fn begin(title: &str, below: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n\
         <meta charset=\"utf-8\"/>\n<meta name=\"viewport\" content=\"width=device-width\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{below}",
        title = escape(title)
    )
}

/// The end of a page.
pub(super) const END: &str = "</body>\n</html>\n";

/// Charts with their headings and captions.
pub(super) fn drawn(charts: &[Chart]) -> String {
    let chart = |chart: &Chart| {
        format!(
            "<h2 id=\"{}\">{}</h2>\n<figure>\n{}<figcaption>{}</figcaption>\n</figure>\n",
            chart.name,
            escape(chart.title),
            chart.svg,
            escape(&chart.caption)
        )
    };
    charts.iter().map(chart).collect()
}

fn subtitle(result: &StudyResult) -> String {
    let facts = &result.facts;
    let ended = facts.ended.map_or_else(|| "cut short".to_owned(), |at| time(&at));
    let cpu = facts.host.cpu.as_deref().unwrap_or("unknown CPU");
    format!(
        "<p class=\"dim\">{} rows; {} – {}; {}, {} CPU(s)</p>\n",
        result.rows.len(),
        time(&facts.began),
        escape(&ended),
        escape(cpu),
        facts.host.cores
    )
}

pub(super) fn time(at: &jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

fn nav(charts: &[Chart]) -> String {
    let link = |id: &str, title: &str| format!("<a href=\"#{id}\">{}</a>\n", escape(title));
    let mut links: String = charts.iter().map(|chart| link(chart.name, chart.title)).collect();
    for (id, title) in [("numbers", "All numbers"), ("host", "Host"), ("method", "Method")] {
        links.push_str(&link(id, title));
    }
    format!("<nav>{links}</nav>\n")
}

pub(super) fn list(title: &str, class: &str, lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let items: String = lines.iter().map(|line| format!("<li>{}</li>\n", escape(line))).collect();
    format!("<h2>{title}</h2>\n<ul class=\"{class}\">\n{items}</ul>\n")
}

/// A table; the first `texts` columns are text, the others figures.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>], texts: usize) -> String {
    let cell = |tag: &str, at: usize, text: &str| {
        let class = if at < texts { " class=\"text\"" } else { "" };
        format!("<{tag}{class}>{}</{tag}>", escape(text))
    };
    let mut html = String::from("<div class=\"scroll\"><table>\n<thead><tr>");
    html.extend(headings.iter().enumerate().map(|(at, text)| cell("th", at, text)));
    html.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        html.push_str("<tr>");
        html.extend(row.iter().enumerate().map(|(at, text)| cell("td", at, text)));
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div>\n");
    html
}

fn numbers(analysis: &Analysis) -> String {
    let rows: Vec<Vec<String>> = analysis.series.iter().map(figures::whole).collect();
    format!(
        "<h2 id=\"numbers\">All numbers</h2>\n<p class=\"dim\">Milliseconds are medians; in \
         brackets the 95 % interval of the median total. Pages are of 4 KiB. A dash is a figure \
         that nobody could measure, never a zero. Every figure with its quartiles is in \
         summary.csv.</p>\n{}",
        table(&figures::WHOLE, &rows, 2)
    )
}

fn sandboxes(analysis: &Analysis) -> String {
    let Some(base) = analysis.runtimes.base else { return String::new() };
    let mut html = String::new();
    let mut section = |title: &str, note: &str, headings: &[&str], rows: Vec<Vec<String>>| {
        if !rows.is_empty() {
            let table = table(headings, &rows, 3);
            html.push_str(&format!("<h2>{title}</h2>\n<p class=\"dim\">{note}</p>\n{table}"));
        }
    };
    let note = format!(
        "Geometric means over the functions of ratios of medians to those of {base}, whole \
         invocations; restored against a boot of {base}; PSS after a boot."
    );
    let rows = runtimes::against_rows(analysis);
    section("Sandboxes against each other, in numbers", &note, &runtimes::AGAINST, rows);
    let note = "Medians over the repetitions; one instance, in a closed loop. CPU time is that of \
                the sandbox's processes, per reply.";
    section("Throughput", note, &runtimes::THROUGHPUT, runtimes::throughput_rows(analysis));
    let note = "One filling per sandbox. What is theirs is the number of instances times their mean \
                PSS, as a share of the memory.";
    section("Density", note, &runtimes::DENSITY, runtimes::density_rows(analysis));
    html
}

fn pages(analysis: &Analysis) -> String {
    if analysis.pages.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = analysis.pages.iter().map(figures::pages).collect();
    format!(
        "<h2>Pages</h2>\n<p class=\"dim\">Recorded, zero and runs are those of the working set's \
         file, pages of 4 KiB, runs of neighbours however the file divides them. What the other \
         input needs is what a lazy start faulted in (median); same of these are in the working set, \
         unique ones are not. They are compared page by page (“pages”), where there were too many faults to keep \
         all of them by an even sample of their pages (“sample”); and by their numbers (“counts”) where lazy \
         starts came from another snapshot or their faults are not known: unique is then what was faulted in \
         although the working set had been prefetched, and same the difference.</p>\n{}",
        table(&figures::PAGES, &rows, 1)
    )
}

fn footprint(analysis: &Analysis) -> String {
    let rows = analysis.series.iter().filter_map(|s| figures::footprint(s, analysis));
    let rows: Vec<Vec<String>> = rows.collect();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "<h2>Memory on the host</h2>\n<p class=\"dim\">Medians, right after the reply. RSS and PSS are \
         those of the sandbox's processes (smaps_rollup), the VMM's own memory included, and if it \
         emulates the CPU, the code that it has translated, of which a boot leaves most; the \
         working set is the guest memory that the pager brought in up to the reply. Memory that a \
         guest has not touched since it was restored is in none of them.</p>\n{}",
        table(&figures::FOOTPRINT, &rows, 2)
    )
}

fn counters(analysis: &Analysis) -> String {
    let Some((headings, rows)) = super::counters::table(analysis) else { return String::new() };
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    format!(
        "<h2>What the sandboxes used of the host</h2>\n<p class=\"dim\">{}</p>\n{}",
        super::counters::NOTE,
        table(&headings, &rows, 2)
    )
}

fn ratios(analysis: &Analysis) -> String {
    if analysis.comparisons.is_empty() && analysis.faults_left.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = analysis.comparisons.iter().map(figures::comparison).collect();
    let mut html = String::from("<h2>Kinds against each other</h2>\n");
    if !rows.is_empty() {
        html.push_str(
            "<p class=\"dim\">Geometric mean over the functions of the ratio of \
             medians, both kinds with the same input; its 95 % interval resamples each function's \
             values, not the set of functions.</p>\n",
        );
        html.push_str(&table(&figures::COMPARISON, &rows, 4));
    }
    let left: Vec<Vec<String>> = analysis.faults_left.iter().map(figures::faults_left).collect();
    if !left.is_empty() {
        html.push_str(
            "<p class=\"dim\">Faults that prefetching left, as a share of those when \
             the pages were recorded.</p>\n",
        );
        html.push_str(&table(&figures::FAULTS_LEFT, &left, 2));
    }
    html
}

fn phases(analysis: &Analysis) -> String {
    let used: Vec<_> = crate::analysis::Slice::ALL
        .into_iter()
        .filter(|slice| analysis.series.iter().any(|s| s.slices.iter().any(|(at, _)| at == slice)))
        .collect();
    let mut headings = vec!["function", "start"];
    headings.extend(used.iter().map(|slice| slice.label()));
    headings.push("total");
    let row = |series: &Series| {
        let mut cells = vec![series.key.function.clone(), series.label.clone()];
        cells.extend(used.iter().map(|slice| {
            let found = series.slices.iter().find(|(at, _)| at == slice);
            found.map_or_else(|| "–".to_owned(), |(_, length)| super::svg::short(*length))
        }));
        cells.push(figures::cell(series.median("total")));
        cells
    };
    let rows: Vec<Vec<String>> = analysis.series.iter().map(row).collect();
    format!(
        "<h2>Phases</h2>\n<p class=\"dim\">Medians in milliseconds.</p>\n{}",
        table(&headings, &rows, 2)
    )
}

fn left_out(analysis: &Analysis) -> String {
    let mut rows = Vec::new();
    for series in &analysis.series {
        rows.extend(series.left_out.iter().map(|left| {
            let (function, label) = (series.key.function.clone(), series.label.clone());
            vec![function, label, left.why.clone(), left.rows.to_string()]
        }));
    }
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "<h2>Invocations in no statistic</h2>\n{}",
        table(&["function", "asked for", "why", "rows"], &rows, 3)
    )
}

/// What is known of a host.
pub(super) fn host_rows(host: &Host) -> Vec<(&'static str, String)> {
    let unknown = || "unknown".to_owned();
    let text = |value: &Option<String>| value.clone().unwrap_or_else(unknown);
    let readahead: Vec<String> =
        host.readahead_kib.iter().map(|(name, kib)| format!("{name}: {kib} KiB")).collect();
    vec![
        ("CPU", text(&host.cpu)),
        ("the host is itself a virtual machine", host.virtual_machine.to_string()),
        ("CPUs", host.cores.to_string()),
        ("CPUs that the measuring kept to", any(host.kept_to.as_ref().map(ToString::to_string))),
        ("memory", host.memory_bytes.map_or_else(unknown, |b| format!("{} MiB", b >> 20))),
        ("kernel", text(&host.kernel)),
        ("readahead before it", readahead.join(", ")),
        ("git revision of the program", text(&host.git)),
    ]
}

fn host(facts: &Facts) -> String {
    let unknown = || "unknown".to_owned();
    let load = |value: Option<f64>| value.map_or_else(unknown, |load| format!("{load:.2}"));
    let node = |name: &str| {
        let value = facts.node.get(name);
        value.map_or_else(unknown, |v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
    };
    let mut rows = host_rows(&facts.host);
    rows.extend([
        ("CPUs that sandboxes were kept to", any(text_of(&facts.node, "cpus"))),
        (
            "readahead set for the study",
            facts.readahead_set.clone().unwrap_or_else(|| "no".to_owned()),
        ),
        (
            "load average before, after",
            format!("{}, {}", load(facts.load_before), load(facts.load_after)),
        ),
        ("vhive", facts.vhive.clone()),
        ("node", node("version")),
        ("runtimes of the node", node("runtimes")),
        ("start threads of the node", node("start_threads")),
    ]);
    for (fact, name) in
        [("switches counted", "software"), ("cycles counted", "hardware"), ("TopDown", "topdown")]
    {
        rows.extend(text_of(&facts.node["counters"], name).map(|said| (fact, said)));
    }
    let accelerators: Vec<String> = accelerators(&facts.node)
        .map(|(runtime, name, reason)| format!("{runtime}: {name} ({reason})"))
        .collect();
    if !accelerators.is_empty() {
        rows.push(("guests' CPU", accelerators.join("; ")));
    }
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    format!("<h2 id=\"host\">Host</h2>\n{}", table(&["fact", "value"], &rows, 2))
}

fn any(cpus: Option<String>) -> String {
    cpus.unwrap_or_else(|| "any".to_owned())
}

fn text_of(document: &Value, name: &str) -> Option<String> {
    Some(document.get(name)?.as_str()?.to_owned())
}

/// Runtime, accelerator and the reason for it, as far as the node told.
fn accelerators(node: &Value) -> impl Iterator<Item = (&str, &str, &str)> {
    let all = node.get("accelerators").and_then(Value::as_object).into_iter().flatten();
    all.filter_map(|(runtime, choice)| {
        let text = |name: &str| choice.get(name).and_then(Value::as_str);
        Some((runtime.as_str(), text("accelerator")?, text("reason").unwrap_or("no reason given")))
    })
}

fn method(facts: &Facts, timelines: &str) -> String {
    let plan = &facts.plan;
    let cache = match plan.cache {
        Cache::Drop => {
            "the host's page cache was written back and dropped (drop_caches = 1); \
                        a cache below the host, if it is virtual, was not"
        }
        Cache::Advise => {
            "the snapshots' files were dropped from the host's page cache \
                          (posix_fadvise); what maps them may have kept pages"
        }
        Cache::Keep => "the page cache was left as it was",
    };
    let order = match facts.study {
        StudyName::ColdStart | StudyName::Pages => {
            "One invocation at a time. In each repetition every function, and \
             of each every kind in turn, beginning with another kind each time; a warm invocation \
             follows the boot whose instance it uses."
        }
        StudyName::Runtimes => {
            "One invocation at a time. In each repetition every function, of each every sandbox in \
             turn, and of each every kind in turn, beginning with another one each time; a warm \
             invocation follows the boot whose instance it uses. After that, in each repetition, \
             the throughputs, the sandboxes in turn; after all of these the densities, if asked for."
        }
        StudyName::Parallel => {
            "In each repetition every function and kind at every level; all \
             invocations of a level are sent at once, each to an instance of its own \
             (containerConcurrency 1); connections are open before."
        }
    };
    let inputs = format!(
        "Snapshots were taken after, and pages recorded by, the request “{}”; measured were the \
         requests {}{}.",
        plan.inputs.prepare,
        plan.inputs.measure.iter().map(|i| format!("“{i}”")).collect::<Vec<_>>().join(", "),
        if plan.inputs.same { ", and for kinds that prefetch also the recorded one" } else { "" }
    );
    let paragraphs = [
        order.to_owned(),
        inputs,
        format!("Before each cold start its service had no instance, and {cache}."),
        "Times are the node's own, one record per invocation, on its monotonic clock; the total \
         runs from the request's head read to the reply's last byte. A row whose record says that \
         it was served another way than asked for is in no statistic; it is counted above, and \
         the measurement is made again."
            .to_owned(),
        format!(
            "Quantiles are interpolated (type 7). Intervals are 95 % percentile bootstrap \
             intervals of the median, 2000 resamplings, seed {}. Outliers are only named, never \
             left out.",
            plan.seed
        ),
        timelines.to_owned(),
    ];
    let text: String = paragraphs.iter().map(|p| format!("<p>{}</p>\n", escape(p))).collect();
    let toml = toml::to_string_pretty(plan).unwrap_or_default();
    let lines: Vec<String> = toml.lines().map(escape).collect();
    format!(
        "<h2 id=\"method\">Method</h2>\n{text}<details><summary>The plan</summary>\n<pre>{}</pre>\n\
         </details>\n<p class=\"dim\">This page is made from study.json and rows.jsonl beside it; \
         <code>vhive report DIR</code> makes it again.</p>\n",
        lines.join("\n")
    )
}
