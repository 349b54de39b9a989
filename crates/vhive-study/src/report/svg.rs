//! Drawing: a small writer of SVG, scales and their ticks.
//!
//! Colours come from `palette.rs`. Text and lines are `currentColor`, so that a page may choose; alone, a
//! chart is dark on white.

use std::fmt::Write as _;

use super::palette::{Fill, Pattern};

/// Width of every chart, in pixels.
pub(super) const WIDTH: f64 = 960.0;

/// Marks that are told apart by their shape.
const SHAPES: usize = 9;

/// Size of text, in pixels.
pub(super) const TEXT: f64 = 12.0;

/// A finished chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Name of its files, and prefix of its identifiers.
    pub name: &'static str,
    /// Heading.
    pub title: &'static str,
    /// What to see and how to read it.
    pub caption: String,
    /// The drawing.
    pub svg: String,
}

/// Where text is anchored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A drawing that grows.
#[derive(Debug)]
pub(super) struct Svg {
    name: &'static str,
    body: String,
}

impl Svg {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, body: String::new() }
    }

    /// The whole drawing, `height` pixels high.
    pub(super) fn finish(self, title: &str, height: f64) -> String {
        let (width, height) = (number(WIDTH), number(height));
        let patterns = Pattern::DRAWN.map(|pattern| pattern.definition(self.name)).concat();
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" width=\"{width}\" \
             height=\"{height}\" viewBox=\"0 0 {width} {height}\" color=\"#1a1a1a\" \
             font-family=\"DejaVu Sans, Verdana, Helvetica, Arial, sans-serif\" \
             font-size=\"{TEXT}\" role=\"img\" aria-label=\"{title}\">\n<title>{title}</title>\n\
             <defs>{patterns}</defs>\n\
             <rect class=\"ground\" width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
             {body}</svg>\n",
            title = escape(title),
            body = self.body,
        )
    }

    /// A bar from `x` to `x + width`, with a label inside if there is room, and a tooltip.
    pub(super) fn bar(&mut self, at: Area, fill: Fill, label: &str, tip: &str) {
        let Area { x, y, width, height } = at;
        if width < 0.05 {
            return;
        }
        let (x1, y1, w, h) = (number(x), number(y), number(width), number(height));
        let shape = format!("x=\"{x1}\" y=\"{y1}\" width=\"{w}\" height=\"{h}\"");
        let stroke = "stroke=\"currentColor\" stroke-opacity=\"0.6\" stroke-width=\"0.6\"";
        self.push(&format!(
            "<g><title>{}</title><rect {shape} fill=\"{}\" {stroke}/>",
            escape(tip),
            fill.colour
        ));
        if fill.pattern != Pattern::None {
            let pattern = fill.pattern.name();
            self.push(&format!("<rect {shape} fill=\"url(#{}-{pattern})\"/>", self.name));
        }
        let wide = text_width(label, 10.0);
        if !label.is_empty() && wide + 6.0 < width {
            if fill.pattern != Pattern::None {
                let (left, top) = (number(x + (width - wide) / 2.0 - 2.0), number(y + 1.0));
                self.push(&format!(
                    "<rect class=\"under\" x=\"{left}\" y=\"{top}\" width=\"{}\" height=\"{}\" \
                     fill=\"{}\"/>",
                    number(wide + 4.0),
                    number(height - 2.0),
                    fill.colour
                ));
            }
            let (x, y) = (number(x + width / 2.0), number(y + height / 2.0 + 3.5));
            self.push(&format!(
                "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\" font-size=\"10\" \
                 fill=\"{}\">{}</text>",
                fill.ink(),
                escape(label)
            ));
        }
        self.push("</g>\n");
    }

    pub(super) fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        self.styled((x, y), anchor, "", text);
    }

    /// Text with further attributes.
    pub(super) fn styled(&mut self, (x, y): (f64, f64), anchor: Anchor, style: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let (x, y, text) = (number(x), number(y), escape(text));
        self.push(&format!(
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" fill=\"currentColor\" {style}>\
             {text}</text>\n"
        ));
    }

    /// A straight line; `weight` is its opacity and width.
    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), weight: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let (x1, y1, x2, y2) = (number(x1), number(y1), number(x2), number(y2));
        // Nothing to be seen, and renderers complain.
        if (&x1, &y1) == (&x2, &y2) {
            return;
        }
        self.push(&format!(
            "<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" stroke=\"currentColor\" \
             stroke-opacity=\"{}\" stroke-width=\"{}\"/>\n",
            number(weight.0),
            number(weight.1)
        ));
    }

    /// An upright line of short dashes, of this class.
    pub(super) fn upright(&mut self, x: f64, (top, bottom): (f64, f64), class: &str) {
        let (x, top, bottom) = (number(x), number(top), number(bottom));
        self.push(&format!(
            "<line class=\"{class}\" x1=\"{x}\" y1=\"{top}\" x2=\"{x}\" y2=\"{bottom}\" \
             stroke=\"currentColor\" stroke-width=\"1.4\" stroke-dasharray=\"3 2\"/>\n"
        ));
    }

    /// A line through points.
    pub(super) fn path(&mut self, points: &[(f64, f64)], colour: &str, dashes: &str) {
        let points: Vec<String> =
            points.iter().map(|(x, y)| format!("{},{}", number(*x), number(*y))).collect();
        self.push(&format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" \
             stroke-dasharray=\"{dashes}\"/>\n",
            points.join(" ")
        ));
    }

    /// A line that is seen on any ground, whatever its colour.
    pub(super) fn outlined(&mut self, points: &[(f64, f64)], colour: &str, dashes: &str) {
        let points: Vec<String> =
            points.iter().map(|(x, y)| format!("{},{}", number(*x), number(*y))).collect();
        let points = points.join(" ");
        for (stroke, width) in [("currentColor", "2.6"), (colour, "1.6")] {
            self.push(&format!(
                "<polyline points=\"{points}\" fill=\"none\" stroke=\"{stroke}\" \
                 stroke-width=\"{width}\" stroke-dasharray=\"{dashes}\"/>\n"
            ));
        }
    }

    /// A point; each shape is told apart without its colour.
    pub(super) fn mark(&mut self, at: (f64, f64), shape: usize, colour: &str) {
        let outline = "stroke=\"currentColor\" stroke-opacity=\"0.7\" stroke-width=\"0.6\"";
        let outlined = outline_of(at, shape, 3.2);
        let shape = shape % SHAPES;
        self.push(&format!(
            "<path class=\"mark-{shape}\" d=\"{outlined}\" fill=\"{colour}\" {outline}/>\n"
        ));
    }

    /// Many small points of one shape; open ones have only their outline in the colour.
    pub(super) fn marks(
        &mut self,
        points: &[(f64, f64)],
        shape: usize,
        (colour, open): (&str, bool),
    ) {
        if points.is_empty() {
            return;
        }
        let outlines: String = points.iter().map(|at| outline_of(*at, shape, 1.7)).collect();
        let look = if open {
            format!("fill=\"none\" stroke=\"{colour}\" stroke-width=\"0.9\"")
        } else {
            format!(
                "fill=\"{colour}\" stroke=\"currentColor\" stroke-opacity=\"0.5\" \
                 stroke-width=\"0.3\""
            )
        };
        self.push(&format!("<path d=\"{outlines}\" {look}/>\n"));
    }

    /// A box from first to third quartile with its median.
    pub(super) fn quartiles(&mut self, y: f64, (q1, median, q3): (f64, f64, f64), colour: &str) {
        let (x, width) = (number(q1), number((q3 - q1).max(1.0)));
        let (top, height) = (number(y - 6.0), number(12.0));
        self.push(&format!(
            "<rect x=\"{x}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" fill=\"{colour}\" \
             fill-opacity=\"0.25\" stroke=\"currentColor\" stroke-width=\"0.8\"/>\n"
        ));
        self.line((median, y - 8.0), (median, y + 8.0), (1.0, 2.0));
    }

    /// Vertical lines of an axis with their labels below.
    pub(super) fn axis(&mut self, scale: &Scale, (top, bottom): (f64, f64), unit: &str) {
        for (x, label) in scale.ticks() {
            self.line((x, top), (x, bottom), (0.2, 1.0));
            self.text((x, bottom + 15.0), Anchor::Middle, &label);
        }
        let end = (scale.right, bottom + 31.0);
        self.styled(end, Anchor::End, "font-style=\"italic\"", unit);
    }

    /// Horizontal lines of an axis that goes up, with their labels to the left.
    pub(super) fn rules(&mut self, scale: &Scale, (left, right): (f64, f64)) {
        for (y, label) in scale.ticks() {
            self.line((left, y), (right, y), (0.2, 1.0));
            self.text((left - 8.0, y + 4.0), Anchor::End, &label);
        }
    }

    /// Names to the right of `right`, each as near to the end of its line or its mark as the others
    /// leave it, in the order of those ends, and joined to it. Returns the y below them.
    pub(super) fn names(&mut self, right: f64, ends: &[((f64, f64), String)]) -> f64 {
        let heights: Vec<f64> = ends.iter().map(|((_, y), _)| *y).collect();
        let places = spread(&heights, 14.0);
        for (((x, y), name), place) in ends.iter().zip(&places) {
            self.line((x + 5.0, *y), (right + 14.0, *place), (0.25, 0.6));
            self.text((right + 18.0, place + 4.0), Anchor::Start, name);
        }
        places.into_iter().fold(0.0, f64::max) + 16.0
    }

    /// Marks with their names, in one line; returns the y below them.
    pub(super) fn key(&mut self, y: f64, entries: &[(usize, &str, &str)]) -> f64 {
        let mut x = 16.0;
        for (shape, colour, name) in entries {
            self.mark((x, y + 6.0), *shape, colour);
            self.text((x + 10.0, y + 10.5), Anchor::Start, name);
            x += 10.0 + text_width(name, TEXT) + 22.0;
        }
        y + 26.0
    }

    /// Swatches with their names, wrapped; returns the y below them.
    pub(super) fn legend(&mut self, y: f64, entries: &[(Fill, &str)]) -> f64 {
        let (mut x, mut y) = (10.0, y);
        for (fill, name) in entries {
            let width = 16.0 + 6.0 + text_width(name, TEXT) + 16.0;
            if x + width > WIDTH {
                x = 10.0;
                y += 20.0;
            }
            self.bar(Area { x, y, width: 16.0, height: 12.0 }, *fill, "", name);
            self.text((x + 22.0, y + 10.5), Anchor::Start, name);
            x += width;
        }
        y + 26.0
    }

    fn push(&mut self, text: &str) {
        self.body.push_str(text);
    }
}

/// The outline of a mark of about this radius, as the data of a path.
fn outline_of((x, y): (f64, f64), shape: usize, radius: f64) -> String {
    let p = |dx: f64, dy: f64| format!("{},{}", number(x + dx * radius), number(y + dy * radius));
    let polygon = |corners: &[(f64, f64)]| {
        let corners: Vec<String> = corners.iter().map(|(dx, dy)| p(*dx, *dy)).collect();
        format!("M{}Z", corners.join(" "))
    };
    match shape % SHAPES {
        0 => {
            let (r, left, right) = (number(radius), p(-1.0, 0.0), p(1.0, 0.0));
            format!("M{left}A{r},{r} 0 1,1 {right}A{r},{r} 0 1,1 {left}Z")
        }
        1 => polygon(&[(-0.95, -0.95), (0.95, -0.95), (0.95, 0.95), (-0.95, 0.95)]),
        2 => polygon(&[(0.0, -1.2), (1.1, 0.95), (-1.1, 0.95)]),
        3 => polygon(&[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)]),
        4 => polygon(&[(0.0, 1.2), (1.1, -0.95), (-1.1, -0.95)]),
        6 => polygon(&[(1.2, 0.0), (-0.95, 1.1), (-0.95, -1.1)]),
        7 => polygon(&[(-1.2, 0.0), (0.95, 1.1), (0.95, -1.1)]),
        8 => polygon(&[(-1.4, -0.5), (1.4, -0.5), (1.4, 0.5), (-1.4, 0.5)]),
        _ => polygon(&[
            (-0.45, -1.35),
            (0.45, -1.35),
            (0.45, -0.45),
            (1.35, -0.45),
            (1.35, 0.45),
            (0.45, 0.45),
            (0.45, 1.35),
            (-0.45, 1.35),
            (-0.45, 0.45),
            (-1.35, 0.45),
            (-1.35, -0.45),
            (-0.45, -0.45),
        ]),
    }
}

/// A rectangle in pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// From values to pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    left: f64,
    right: f64,
    logarithmic: bool,
}

impl Scale {
    /// From 0 to `high`.
    pub(super) fn linear(high: f64, (left, right): (f64, f64)) -> Self {
        Self { low: 0.0, high: high.max(1e-3), left, right, logarithmic: false }
    }

    /// Holds `low` and `high` with some room; both positive.
    pub(super) fn logarithmic((low, high): (f64, f64), (left, right): (f64, f64)) -> Self {
        let low = low.max(1e-3);
        let (low, high) = (low / 1.25, high.max(low) * 1.25);
        Self { low, high, left, right, logarithmic: true }
    }

    pub(super) fn at(&self, value: f64) -> f64 {
        let value = value.clamp(self.low, self.high);
        let share = if self.logarithmic {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.left + share * (self.right - self.left)
    }

    fn ticks(&self) -> Vec<(f64, String)> {
        let place = |value: f64| (self.at(value), short(value));
        if !self.logarithmic {
            let rough = self.high / 6.0;
            let power = 10_f64.powf(rough.log10().floor());
            let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power);
            let step = step.into_iter().find(|step| *step >= rough).unwrap_or(power);
            let values = std::iter::successors(Some(0.0), |value| Some(value + step));
            return values.take_while(|value| *value <= self.high).take(20).map(place).collect();
        }
        let decades = (self.high / self.low).log10();
        let parts: &[f64] = if decades > 3.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let mut ticks = Vec::new();
        let mut power = 10_f64.powf(self.low.log10().floor());
        while power <= self.high && ticks.len() < 40 {
            let values = parts.iter().map(|part| part * power);
            ticks.extend(values.filter(|v| (self.low..=self.high).contains(v)).map(place));
            power *= 10.0;
        }
        ticks
    }
}

/// A number for people: three digits that mean something.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    let text = if size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 0.1 || size == 0.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    };
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// Roughly how wide a text is in a sans-serif face, in pixels.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * 0.6
}

fn number(value: f64) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(text, "{:.2}", if value.is_finite() { value } else { 0.0 });
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text for XML and HTML; characters that XML forbids are replaced.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\t' | '\n' | '\r' => escaped.push(' '),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Places so far apart, in the order of the wanted ones and near to them, and none above the highest
/// wanted one.
fn spread(wanted: &[f64], apart: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*a].total_cmp(&wanted[*b]));
    let mut places = vec![0.0; wanted.len()];
    let mut free = f64::NEG_INFINITY;
    for at in order {
        places[at] = wanted[at].max(free);
        free = places[at] + apart;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let texts = [1234.5, 123.4, 12.34, 1.234, 0.5, 0.0123, 0.0, 100.0].map(short);
        assert_eq!(texts, ["1234", "123", "12.3", "1.23", "0.5", "0.012", "0", "100"]);
        assert_eq!([1.0, 1.5, f64::NAN, -0.25].map(number), ["1", "1.5", "0", "-0.25"]);
    }

    #[test]
    fn scales_have_a_handful_of_ticks_within() {
        for high in [0.02, 0.9, 7.0, 48.0, 100.0, 2_345.0, 98_765.0] {
            let ticks = Scale::linear(high, (0.0, 100.0)).ticks();
            assert!((3..=8).contains(&ticks.len()), "{high}: {ticks:?}");
            assert!(ticks.iter().all(|(x, _)| (0.0..=100.0).contains(x)));
        }
        for (low, high) in [(1.0, 1.0), (0.5, 80.0), (3.0, 30_000.0)] {
            let ticks = Scale::logarithmic((low, high), (0.0, 100.0)).ticks();
            assert!((1..=12).contains(&ticks.len()), "{low}-{high}: {ticks:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_stays_well_formed(text in "\\PC{0,40}|[\u{0}-\u{1f}<>&\"]{0,20}") {
            let mut svg = Svg::new("t");
            svg.text((0.0, 0.0), Anchor::Start, &text);
            let drawn = svg.finish(&text, 10.0);
            assert!(roxmltree::Document::parse(&drawn).is_ok(), "{drawn}");
        }
    }
}
