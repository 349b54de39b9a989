//! A point in time by which something must be done.

use std::time::{Duration, Instant};

/// A point on the monotonic clock that every wait takes; there are no hidden timeouts.
///
/// ```
/// use std::time::Duration;
/// let soon = vhive_sandbox::Deadline::after(Duration::from_secs(5));
/// assert!(!soon.passed());
/// assert!(soon.left() <= Duration::from_secs(5));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// So long from now.
    #[must_use]
    pub fn after(span: Duration) -> Self {
        let now = Instant::now();
        // A span beyond the clock's range means "practically never": a century.
        let century = Duration::from_secs(100 * 365 * 86_400);
        Self(now.checked_add(span).unwrap_or(now + century))
    }

    /// At this instant.
    #[must_use]
    pub const fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// The instant itself.
    #[must_use]
    pub const fn instant(self) -> Instant {
        self.0
    }

    /// Time left; zero once passed.
    #[must_use]
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether it lies in the past.
    #[must_use]
    pub fn passed(self) -> bool {
        self.left().is_zero()
    }

    /// The earlier of this one and `span` from now.
    #[must_use]
    pub fn or_after(self, span: Duration) -> Self {
        self.min(Self::after(span))
    }
}
