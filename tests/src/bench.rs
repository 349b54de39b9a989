//! Rows of the benchmark table: one figure beside the floor or peer measured in the same run.
//!
//! A benchmark is a program (`harness = false`) that prints one line per row, prefixed with
//! [`MARK`]; `cargo xtask bench` collects them. A benchmark never fails because of a figure.
//!
//! ```
//! use vhive_tests::bench::{Bound, Row, median};
//! let ours = median(&[110.0, 90.0, 100.0]);
//! let row = Row::new("gateway-p50-c1", "us")
//!     .ratio(Bound::AtMost { must: 1.2, goal: 0.9 }, ours, 100.0)
//!     .peer("nginx");
//! assert_eq!(row.ratio, Some(1.0));
//! assert_eq!(row.ok, Some(true));
//! ```
#![expect(clippy::print_stdout, reason = "a benchmark reports on its standard output")]

use serde::{Deserialize, Serialize};

/// Begins every line of standard output that holds a row.
pub const MARK: &str = "BENCH ";

/// One row of `target/bench/summary.json`, without what the collector adds (`git`, `at`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The row's name in the table of requirements.
    pub id: String,
    /// The measured figure, in `unit`.
    pub value: Option<f64>,
    /// Unit of `value`, e.g. `us`, `1/s`, `x`.
    pub unit: String,
    /// What it is compared with, and that one's figure.
    pub peer: Option<String>,
    /// This ÷ peer, or peer ÷ this where the requirement says faster.
    pub ratio: Option<f64>,
    /// The bound that must hold for the ratio (or, without one, the value).
    pub must: f64,
    /// The bound aimed at.
    pub goal: f64,
    /// `at_most` or `at_least`: which way the bounds are meant.
    pub bound: String,
    /// Whether `must` holds; absent when it could not be measured here.
    pub ok: Option<bool>,
    /// Why it could not be measured, or what a reader should know (spread, samples).
    pub reason: Option<String>,
}

/// Which way a requirement is meant, and its two figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// The figure must not exceed it.
    AtMost {
        /// Must hold.
        must: f64,
        /// Aimed at.
        goal: f64,
    },
    /// The figure must reach it.
    AtLeast {
        /// Must hold.
        must: f64,
        /// Aimed at.
        goal: f64,
    },
}

impl Bound {
    fn holds(self, figure: f64) -> bool {
        match self {
            Self::AtMost { must, .. } => figure <= must,
            Self::AtLeast { must, .. } => figure >= must,
        }
    }
}

impl Row {
    /// A row without a figure yet.
    #[must_use]
    pub fn new(id: &str, unit: &str) -> Self {
        Self {
            id: id.to_owned(),
            value: None,
            unit: unit.to_owned(),
            peer: None,
            ratio: None,
            must: f64::NAN,
            goal: f64::NAN,
            bound: String::new(),
            ok: None,
            reason: None,
        }
    }

    /// Judges `value` itself.
    #[must_use]
    pub fn value(mut self, bound: Bound, value: f64) -> Self {
        self.set_bound(bound);
        self.value = Some(value);
        self.ok = Some(value.is_finite() && bound.holds(value));
        self
    }

    /// Judges `value` ÷ `peer`.
    #[must_use]
    pub fn ratio(mut self, bound: Bound, value: f64, peer: f64) -> Self {
        let ratio = value / peer;
        self.set_bound(bound);
        self.value = Some(value);
        self.ratio = Some(ratio);
        self.ok = Some(ratio.is_finite() && bound.holds(ratio));
        self
    }

    /// Names what it was compared with (and its figure).
    #[must_use]
    pub fn peer(mut self, peer: impl Into<String>) -> Self {
        self.peer = Some(peer.into());
        self
    }

    /// Adds what a reader should know: spread, samples, conditions.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.reason = Some(note.into());
        self
    }

    /// A row that this host cannot measure, and why.
    #[must_use]
    pub fn unmeasured(mut self, bound: Bound, reason: impl Into<String>) -> Self {
        self.set_bound(bound);
        self.reason = Some(reason.into());
        self
    }

    /// Prints the row for the collector.
    pub fn emit(&self) {
        let json = serde_json::to_string(self).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"));
        println!("{MARK}{json}");
    }

    fn set_bound(&mut self, bound: Bound) {
        let (name, must, goal) = match bound {
            Bound::AtMost { must, goal } => ("at_most", must, goal),
            Bound::AtLeast { must, goal } => ("at_least", must, goal),
        };
        (self.bound, self.must, self.goal) = (name.to_owned(), must, goal);
    }
}

/// The middle of the samples (mean of the two middle ones); NaN without samples.
#[must_use]
pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// The `q`-quantile (0 to 1) by linear interpolation; NaN without samples.
#[must_use]
pub fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = q.clamp(0.0, 1.0) * last as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 ..= last")]
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64)
}

/// The geometric mean of positive samples; NaN without samples.
#[must_use]
pub fn geometric_mean(samples: &[f64]) -> f64 {
    let sum: f64 = samples.iter().map(|x| x.ln()).sum();
    (sum / samples.len() as f64).exp()
}

/// `median (min .. max, n = …)`: how a note states a spread.
#[must_use]
pub fn spread(samples: &[f64], unit: &str) -> String {
    let (low, mid, high) = (quantile(samples, 0.0), median(samples), quantile(samples, 1.0));
    format!("{mid:.3} {unit} ({low:.3} .. {high:.3}, n = {})", samples.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        assert_eq!(median(&[3.0, 1.0]), 2.0);
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.25), 2.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_missing_figure_is_neither_good_nor_bad() {
        let bound = Bound::AtLeast { must: 2.0, goal: 3.0 };
        assert_eq!(Row::new("x", "x").unmeasured(bound, "no KVM").ok, None);
        assert_eq!(Row::new("x", "x").value(bound, f64::NAN).ok, Some(false));
        assert_eq!(Row::new("x", "x").value(bound, 2.0).ok, Some(true));
        assert_eq!(Row::new("x", "x").ratio(bound, 1.0, 0.0).ok, Some(false));
    }
}
