//! The `Date` of replies, written once a second.
//!
//! # Source
//! RFC 9110 §6.6.1.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use tokio::time::Instant;

/// The present second as text.
#[derive(Debug, Default)]
pub(super) struct Date {
    text: String,
    until: Option<Instant>,
}

impl Date {
    pub(super) fn now(&mut self) -> &str {
        let now = Instant::now();
        if self.until.is_none_or(|until| until <= now) {
            let wall = Timestamp::now();
            let into = u32::try_from(wall.subsec_nanosecond()).unwrap_or(0);
            self.until = Some(
                now + Duration::from_secs(1).saturating_sub(Duration::from_nanos(into.into())),
            );
            // An error is a year of more than four digits.
            self.text =
                DateTimePrinter::new().timestamp_to_rfc9110_string(&wall).unwrap_or_default();
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_written_anew_every_second() {
        let mut date = Date::default();
        let first = date.now().to_owned();
        assert!(first.ends_with(" GMT") && first.len() == 29, "{first:?}");
        let until = date.until;
        date.now();
        assert_eq!(date.until, until);
        tokio::time::advance(Duration::from_secs(1)).await;
        date.now();
        assert_ne!(date.until, until);
    }
}
