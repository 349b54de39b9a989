//! Colours, fills and dashes of every chart.
//!
//! Colours are those of Okabe and Ito, which colour-blind readers can tell apart. None of them is told by
//! its colour alone, since print may have none: lines differ by their dashes, marks by their shape, areas by
//! their pattern or by how light they are.

pub(super) const BLUE: &str = "#0072B2";
pub(super) const VERMILLION: &str = "#D55E00";
pub(super) const GREEN: &str = "#009E73";
pub(super) const PURPLE: &str = "#CC79A7";
pub(super) const ORANGE: &str = "#E69F00";
pub(super) const SKY: &str = "#56B4E9";
pub(super) const YELLOW: &str = "#F0E442";
pub(super) const GREY: &str = "#999999";
pub(super) const LIGHT: &str = "#DDDDDD";

/// Of series that have no colour of their own.
const SERIES: [&str; 7] = [BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, GREY];
/// Dashes of their lines.
const DASHES: [&str; 9] =
    ["", "8 4", "2 3", "10 3 2 3", "14 5", "5 5", "1 4", "12 3 2 3 2 3", "3 7"];

/// Colour of the so many-th series.
pub(super) fn series(nth: usize) -> &'static str {
    SERIES[nth % SERIES.len()]
}

/// Dashes of its line; a line of as many series may be told by them.
pub(super) fn dashes(nth: usize) -> &'static str {
    DASHES[nth % DASHES.len()]
}

/// What is drawn over the colour of an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    None,
    /// Strokes that rise.
    Hatch,
    /// Strokes that fall.
    Back,
    /// Strokes that lie.
    Level,
    Dots,
    /// Strokes that rise, and that fall.
    Cross,
}

impl Pattern {
    pub(super) const DRAWN: [Self; 5] =
        [Self::Hatch, Self::Back, Self::Level, Self::Dots, Self::Cross];

    /// End of the name of its definition in a chart.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Hatch => "hatch",
            Self::Back => "back",
            Self::Level => "level",
            Self::Dots => "dots",
            Self::Cross => "cross",
        }
    }

    /// Its definition in the chart of this name.
    pub(super) fn definition(self, chart: &str) -> String {
        let stroke = "<rect width=\"1.6\" height=\"5\" fill=\"#000000\" fill-opacity=\"0.55\"/>";
        let lying = "<rect width=\"5\" height=\"1.6\" fill=\"#000000\" fill-opacity=\"0.55\"/>";
        let (angle, content) = match self {
            Self::None => return String::new(),
            Self::Hatch => (45, stroke.to_owned()),
            Self::Back => (-45, stroke.to_owned()),
            Self::Level => (0, lying.to_owned()),
            Self::Dots => {
                let dot = "<circle cx=\"2.5\" cy=\"2.5\" r=\"1.1\" fill=\"#000000\"/>";
                (0, dot.to_owned())
            }
            Self::Cross => (45, format!("{stroke}{lying}")),
        };
        format!(
            "<pattern id=\"{chart}-{}\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\" \
             patternTransform=\"rotate({angle})\">{content}</pattern>",
            self.name()
        )
    }
}

/// How an area is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fill {
    pub(super) colour: &'static str,
    pub(super) pattern: Pattern,
}

impl Fill {
    pub(super) const fn plain(colour: &'static str) -> Self {
        Self { colour, pattern: Pattern::None }
    }

    pub(super) const fn hatched(colour: &'static str) -> Self {
        Self { colour, pattern: Pattern::Hatch }
    }

    pub(super) const fn with(colour: &'static str, pattern: Pattern) -> Self {
        Self { colour, pattern }
    }

    /// Colour of text on it.
    pub(super) fn ink(self) -> &'static str {
        if lightness(self.colour) > 125.0 { "#000000" } else { "#ffffff" }
    }
}

/// How light a colour is without being one, from 0 to 255.
///
/// # Source
/// ITU-R BT.601, luma.
pub(super) fn lightness(colour: &str) -> f64 {
    let channel = |at: usize| {
        let hex = colour.get(at..at + 2).unwrap_or("00");
        f64::from(u8::from_str_radix(hex, 16).unwrap_or(0))
    };
    0.299 * channel(1) + 0.587 * channel(3) + 0.114 * channel(5)
}
