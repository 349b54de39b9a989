//! How long a wait may take.

use std::time::Duration;

use tokio::time::Instant;

/// A moment by which something must have happened.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// So long from now.
    #[must_use]
    pub fn after(span: Duration) -> Self {
        Self(Instant::now() + span.min(Duration::from_secs(86_400)))
    }

    /// Whether it has passed.
    #[must_use]
    pub fn passed(self) -> bool {
        Instant::now() >= self.0
    }

    /// The moment.
    #[must_use]
    pub fn at(self) -> Instant {
        self.0
    }

    /// Lets at most so much time pass: a pause between two questions to the node.
    pub async fn pause(self, span: Duration) {
        tokio::time::sleep_until(self.0.min(Instant::now() + span)).await;
    }
}
