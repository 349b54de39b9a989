use std::collections::BTreeSet;

use vhive_api::Counter;

use super::*;
use crate::analysis::tests::{fixture, fixture_of_runtimes, fixture_with_timelines};

#[test]
fn the_report_is_well_formed_loads_nothing_and_names_every_kind() {
    let result = fixture();
    let texts = texts(&result, &Analysis::of(&result));
    let xml = texts.html.strip_prefix("<!DOCTYPE html>\n").expect("is HTML 5");
    let parsed = roxmltree::Document::parse(xml).expect("well-formed");
    for attribute in parsed.descendants().flat_map(|node| node.attributes()) {
        let loads = matches!(attribute.name(), "src" | "href");
        assert!(!loads || attribute.value().starts_with('#'), "{attribute:?}");
    }
    assert!(!texts.html.contains("@import") && !texts.html.contains("http-equiv"));
    for kind in &result.facts.plan.kinds {
        assert!(texts.html.contains(kind.as_str()), "{kind}");
    }
    for word in ["NaN", "inf ", "Infinity"] {
        assert!(!texts.html.contains(word), "{word}");
    }
}

#[test]
fn every_chart_is_well_formed_has_unique_names_and_stays_within_its_frame() {
    let result = fixture_with_timelines();
    let texts = texts(&result, &Analysis::of(&result));
    let names: Vec<&str> = texts.charts.iter().map(|chart| chart.name).collect();
    let expected = [
        "phases",
        "phases-without-boot",
        "distribution",
        "working-sets",
        "memory-wait",
        "fault-timeline",
        "footprint",
    ];
    assert_eq!(names, expected);
    for chart in &texts.charts {
        let parsed = roxmltree::Document::parse(&chart.svg).expect(chart.name);
        let root = parsed.root_element();
        let of = |node: roxmltree::Node<'_, '_>, name: &str| {
            node.attribute(name).and_then(|text| text.parse::<f64>().ok())
        };
        let (width, height) = (of(root, "width").expect("set"), of(root, "height").expect("set"));
        for node in parsed.descendants().filter(|node| node.is_element()) {
            if node.ancestors().any(|up| up.has_tag_name("defs")) {
                continue;
            }
            let (x, y) = (of(node, "x").unwrap_or(0.0), of(node, "y").unwrap_or(0.0));
            assert!((0.0..=width).contains(&x) && (0.0..=height).contains(&y), "{node:?}");
            let end = x + of(node, "width").unwrap_or(0.0);
            assert!(end <= width + 0.1, "{node:?} ends at {end}");
            if node.has_tag_name("text") && node.attribute("text-anchor") == Some("start") {
                let size = of(node, "font-size").unwrap_or(svg::TEXT);
                let end = x + svg::text_width(node.text().unwrap_or_default(), size);
                assert!(end <= width + 4.0, "{:?} ends at {end}", node.text());
            }
        }
        assert!(!chart.svg.contains("NaN"), "{}", chart.name);
        assert!(chart.svg.contains("n="), "{} states n", chart.name);
        for line in parsed.descendants().filter_map(|node| node.attribute("points")) {
            for at in line.split([' ', ',']).enumerate() {
                let limit = if at.0 % 2 == 0 { width } else { height };
                let within = at.1.parse::<f64>().is_ok_and(|at| (0.0..=limit).contains(&at));
                assert!(within, "{}: {line}", chart.name);
            }
        }
    }
}

#[test]
fn faults_over_time_tell_kinds_apart_by_colour_and_shape() {
    let result = fixture_with_timelines();
    let analysis = Analysis::of(&result);
    let made = texts(&result, &analysis);
    let chart = made.charts.iter().find(|chart| chart.name == "fault-timeline").expect("drawn");
    for one in &analysis.timelines {
        let label = format!("{}  n={}", one.label, one.n);
        assert!(chart.svg.contains(&label), "{label}");
    }
    let kinds = [crate::plan::Kind::Lazy, crate::plan::Kind::Record, crate::plan::Kind::Reap];
    for (at, kind) in kinds.into_iter().enumerate() {
        assert!(chart.svg.contains(&format!("fill=\"{}\"", charts::colour(kind))), "{kind}");
        for other in &kinds[at + 1..] {
            assert_ne!(charts::shape(kind), charts::shape(*other), "{kind} and {other}");
            assert_ne!(charts::colour(kind), charts::colour(*other), "{kind} and {other}");
        }
    }
    let open = format!("fill=\"none\" stroke=\"{}\"", charts::colour(kinds[2]));
    assert!(chart.svg.contains(&open), "awaited pages are open marks");

    let faults = made.faults_csv.expect("a line each");
    let recorded =
        result.rows.iter().filter_map(|row| row.record.as_ref()?.fault_timeline.as_ref());
    let count: usize = recorded.map(|timeline| timeline.len()).sum();
    assert_eq!(faults.lines().count(), count + 1);
    let without = texts(&fixture(), &Analysis::of(&fixture()));
    assert_eq!(without.faults_csv, None);
    assert!(without.html.contains("There are no timelines of faults"));
}

#[test]
fn a_thinned_timeline_says_so_and_counts_all_faults() {
    let mut result = fixture_with_timelines();
    for row in &mut result.rows {
        let Some(record) = &mut row.record else { continue };
        if let (Some(timeline), Some(memory)) = (&mut record.fault_timeline, &mut record.memory) {
            let timeline = std::sync::Arc::make_mut(timeline);
            timeline.every = 4;
            memory.faults = Some(timeline.len() as u64 * 4);
        }
    }
    let made = texts(&result, &Analysis::of(&result));
    let chart = made.charts.iter().find(|chart| chart.name == "fault-timeline").expect("drawn");
    assert!(chart.svg.contains("1 of 4 shown"));
}

#[test]
fn sandboxes_have_their_charts_and_tables() {
    let result = fixture_of_runtimes();
    let analysis = Analysis::of(&result);
    let made = texts(&result, &analysis);
    let xml = made.html.strip_prefix("<!DOCTYPE html>\n").expect("is HTML 5");
    roxmltree::Document::parse(xml).expect("well-formed");
    for name in ["against", "throughput", "density"] {
        let chart = made.charts.iter().find(|chart| chart.name == name).expect(name);
        roxmltree::Document::parse(&chart.svg).expect(name);
        assert!(chart.svg.contains("n=") && !chart.svg.contains("NaN"), "{name}");
    }
    let tables = [
        (&runtimes::AGAINST[..], runtimes::against_rows(&analysis)),
        (&runtimes::THROUGHPUT[..], runtimes::throughput_rows(&analysis)),
        (&runtimes::DENSITY[..], runtimes::density_rows(&analysis)),
    ];
    for (headings, rows) in tables {
        assert!(!rows.is_empty() && rows.iter().all(|row| row.len() == headings.len()), "{rows:?}");
        assert!(headings.iter().all(|heading| made.html.contains(&format!(">{heading}</th>"))));
    }
    for (csv, lines) in [(made.loads_csv, 7), (made.densities_csv, 2)] {
        let csv = csv.expect("measured");
        let commas = csv.lines().next().map(|line| line.matches(',').count());
        assert!(csv.lines().all(|line| Some(line.matches(',').count()) == commas), "{csv}");
        assert_eq!(csv.lines().count(), lines);
    }
    assert!(made.html.contains("qemu, functions of the CPU: boot 2× of runc"), "is a finding");
}

#[test]
fn memory_on_the_host_and_the_guests_cpu_are_in_the_page() {
    let mut result = fixture();
    result.facts.node["accelerators"] =
        serde_json::json!({"qemu": {"accelerator": "kvm", "reason": "it <works>"}});
    let analysis = Analysis::of(&result);
    let page = texts(&result, &analysis).html;
    assert!(page.contains("qemu: kvm (it &lt;works&gt;)"));
    let boot = analysis.series.iter().find(|s| s.key.kind == crate::plan::Kind::Boot);
    let cells = figures::footprint(boot.expect("planned"), &analysis).expect("measured");
    assert_eq!(cells.len(), figures::FOOTPRINT.len());
    assert_eq!(cells.last().map(String::as_str), Some("100 %"));
    for heading in figures::FOOTPRINT {
        assert!(page.contains(&format!(">{heading}</th>")), "{heading}");
    }
}

#[test]
fn the_tables_have_a_cell_for_every_heading() {
    let result = fixture();
    let analysis = Analysis::of(&result);
    let texts = texts(&result, &analysis);
    for csv in [&texts.rows_csv, &texts.summary_csv] {
        let mut lines = csv.lines();
        let commas = lines.next().expect("a heading").matches(',').count();
        assert!(lines.clone().count() >= analysis.series.len());
        for line in lines {
            // The fixture's texts hold neither commas nor quotes.
            assert_eq!(line.matches(',').count(), commas, "{line}");
        }
    }
    for series in &analysis.series {
        assert_eq!(figures::whole(series).len(), figures::WHOLE.len());
        assert_eq!(figures::brief(series).len(), figures::BRIEF.len());
    }
    let first = texts.rows_csv.lines().next().expect("a heading");
    assert!(first.starts_with("FuncName,GetImage,FcCreateVM,"), "{first}");
}

#[test]
fn the_same_files_give_the_same_report_and_a_cut_line_is_left_out() {
    let dir = tempfile::tempdir().expect("made");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cold-start");
    for name in ["study.json", "rows.jsonl"] {
        fs::copy(from.join(name), dir.path().join(name)).expect("copied");
    }
    let built = build(dir.path()).expect("built");
    let read = |built: &Built| -> Vec<Vec<u8>> {
        built.files.iter().map(|path| fs::read(path).expect("written")).collect()
    };
    let first = read(&built);
    assert_eq!(read(&build(dir.path()).expect("built again")), first);
    let png = built.files.iter().find(|path| path.extension().is_some_and(|e| e == "png"));
    match png {
        Some(png) => assert!(fs::read(png).expect("there").starts_with(b"\x89PNG\r\n\x1a\n")),
        None => assert!(built.warnings.iter().any(|warning| warning.contains("no PNG"))),
    }

    let rows = dir.path().join("rows.jsonl");
    let text = fs::read_to_string(&rows).expect("there");
    fs::write(&rows, &text[..text.len() - 20]).expect("written");
    let cut = build(dir.path()).expect("built without the last row");
    assert!(cut.warnings.iter().any(|warning| warning.contains("cut off")), "{:?}", cut.warnings);
    fs::write(&rows, "{}\n").expect("written");
    let error = build(dir.path()).expect_err("no row").to_string();
    assert!(error.contains("rows.jsonl") && error.contains("line 1"), "{error}");
    assert!(build(&dir.path().join("absent")).is_err());
}

#[test]
fn an_empty_study_has_a_report_too() {
    let mut result = fixture();
    result.rows.clear();
    let analysis = Analysis::of(&result);
    let texts = texts(&result, &analysis);
    assert!(texts.charts.is_empty());
    assert!(analysis.warnings.iter().any(|warning| warning.contains("Nothing was measured")));
    let xml = texts.html.strip_prefix("<!DOCTYPE html>\n").expect("is HTML 5");
    roxmltree::Document::parse(xml).expect("well-formed");
}

/// How much lighter one of two areas without a pattern must be, of 255.
const LIGHTER: f64 = 40.0;

/// Whatever has a colour of its own in a chart is told from the others without it: areas by their pattern or
/// by how light they are, marks by their shape, lines by their dashes or by the shape of marks in their colour.
pub(super) fn assert_needs_no_colour(name: &str, svg: &str) {
    let parsed = roxmltree::Document::parse(svg).expect(name);
    let set = |of: Vec<(String, String)>| of.into_iter().collect::<BTreeSet<_>>();
    let text = |node: roxmltree::Node<'_, '_>, attribute: &str| {
        node.attribute(attribute).unwrap_or_default().to_owned()
    };
    let elements =
        |tag: &'static str| parsed.descendants().filter(move |node| node.has_tag_name(tag));
    let bars = elements("g").filter_map(|bar| {
        let mut areas = bar
            .children()
            .filter(|node| node.has_tag_name("rect") && node.attribute("class").is_none());
        let colour = text(areas.next()?, "fill");
        Some((colour, areas.next().map(|pattern| text(pattern, "fill")).unwrap_or_default()))
    });
    let bars = set(bars.collect());
    for (nth, (colour, pattern)) in bars.iter().enumerate() {
        for (other, its) in bars.iter().skip(nth + 1).filter(|(other, _)| other != colour) {
            let apart = (palette::lightness(colour) - palette::lightness(other)).abs();
            assert!(pattern != its || apart >= LIGHTER, "{name}: areas {colour} and {other}");
        }
    }
    let marks = elements("path").filter(|node| node.attribute("class").is_some());
    let marks = set(marks.map(|node| (text(node, "fill"), text(node, "class"))).collect());
    for (nth, (colour, shape)) in marks.iter().enumerate() {
        for (other, its) in marks.iter().skip(nth + 1).filter(|(other, _)| other != colour) {
            assert_ne!(shape, its, "{name}: marks {colour} and {other}");
        }
    }
    let lines =
        elements("polyline").filter(|node| node.attribute("stroke") != Some("currentColor"));
    let lines = set(lines.map(|n| (text(n, "stroke"), text(n, "stroke-dasharray"))).collect());
    let marked = |colour: &str| marks.iter().any(|(own, _)| own == colour);
    for (nth, (colour, dashes)) in lines.iter().enumerate() {
        for (other, its) in lines.iter().skip(nth + 1).filter(|(other, _)| other != colour) {
            let by_marks = marked(colour) && marked(other);
            assert!(dashes != its || by_marks, "{name}: lines {colour} and {other}");
        }
    }
}

#[test]
fn no_chart_needs_its_colours() {
    let mut counted = fixture();
    for row in &mut counted.rows {
        let counts = [
            (Counter::CpuUs, 900),
            (Counter::UserUs, 500),
            (Counter::SystemUs, 400),
            (Counter::Slots, 1000),
            (Counter::Retiring, 400),
            (Counter::BadSpeculation, 100),
            (Counter::FrontendBound, 300),
            (Counter::BackendBound, 200),
        ];
        row.counters = Some(counts.into_iter().collect());
    }
    let mut seen = BTreeSet::new();
    for result in [fixture_with_timelines(), fixture_of_runtimes(), counted] {
        for chart in texts(&result, &Analysis::of(&result)).charts {
            assert_needs_no_colour(chart.name, &chart.svg);
            seen.insert(chart.name);
        }
    }
    for name in ["phases", "distribution", "fault-timeline", "throughput", "topdown", "cpu-time"] {
        assert!(seen.contains(name), "{name} of {seen:?}");
    }
    let mut drawn = svg::Svg::new("all");
    let fills: Vec<(palette::Fill, &str)> = charts::fills().into_iter().map(|f| (f, "x")).collect();
    drawn.legend(8.0, &fills);
    assert_needs_no_colour("every phase", &drawn.finish("every phase", 100.0));
    for one in crate::plan::Kind::ALL {
        for other in crate::plan::Kind::ALL.into_iter().filter(|other| *other != one) {
            assert_ne!(charts::shape(one), charts::shape(other));
        }
    }
}
