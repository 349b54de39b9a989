//! Other published traces, made into those that the loader reads.
//!
//! | from | to |
//! |---|---|
//! | Azure Functions 2019 as published: three files a day, memory by application | a directory as the loader reads it |
//! | Huawei 2023, private and public: tables of requests per minute or second | a directory as Azure's of 2019 |
//! | Huawei 2025: tables of single requests | a file as Azure's of 2021 |
//! | IBM 2026: lists of invocations per application | a file as Azure's of 2021 |
//!
//! # Source
//! Azure: Shahrad et al., *Serverless in the Wild* (2020), `Azure/AzurePublicDataset`. Huawei: Joosen et al., *How Does It Function?* (2023), Joosen et al., *Serverless Cold Starts and
//! Where to Find Them* (2025), `sir-lab/data-release`. IBM: Nasiri et al., *In-Production
//! Characterization of an Open Source Serverless Platform* (2026),
//! `ubc-cirrus-lab/ibm-cloud-code-engine-traces`. invitro `sampler/preprocess.py`,
//! `preprocessHuawei.py`, `preprocessIBM2026.py`.

mod azure;
mod events;
mod huawei;

use std::str::FromStr;

pub use azure::{LeftOut, azure_day};
pub use events::{huawei_requests, ibm};
pub use huawei::{Huawei, huawei_tables};

use super::TraceError;

/// Longest window: a week of minutes, or of seconds less than a day.
const MOST_MINUTES: u64 = 7 * 1440;
/// Seconds of a day.
const DAY_S: u64 = 86_400;

/// The part of a trace that is converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Where it begins, in seconds of the trace.
    pub start_s: u64,
    /// Its length.
    pub minutes: u64,
}

impl Window {
    /// From `start` on for so many minutes.
    ///
    /// # Errors
    /// When that is no time, or longer than a week.
    pub fn new(start: Start, minutes: u64) -> Result<Self, TraceError> {
        if minutes == 0 || minutes > MOST_MINUTES {
            let text = format!("{minutes} minutes: give 1 to {MOST_MINUTES}");
            return Err(TraceError::Absurd(text));
        }
        Ok(Self { start_s: start.0, minutes })
    }

    const fn end_s(self) -> u64 {
        self.start_s + self.minutes * 60
    }
}

/// A moment of a trace, `DD:HH:MM` from its beginning, or a number of minutes.
///
/// # Source
/// invitro's sampler, `-s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Start(u64);

impl Start {
    /// The same time of this day of the trace; the first day is 1, as the published files count.
    ///
    /// # Errors
    /// When there is no such day, or this moment is behind the end of one.
    pub fn of_day(self, day: u32) -> Result<Self, TraceError> {
        if day == 0 || self.0 >= DAY_S {
            let text = "a day counts from 1, and a start in it is before 24:00".to_owned();
            return Err(TraceError::Absurd(text));
        }
        Ok(Self(u64::from(day - 1) * DAY_S + self.0))
    }

    /// Minutes from this moment to the end of its day.
    #[must_use]
    pub const fn minutes_left(self) -> u64 {
        (DAY_S - self.0 % DAY_S) / 60
    }
}

impl FromStr for Start {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Result<Vec<u64>, _> = text.split(':').map(str::parse).collect();
        match parts.as_deref() {
            Ok([days, hours @ 0..24, minutes @ 0..60]) if *days <= 10_000 => {
                Ok(Self(days * DAY_S + hours * 3600 + minutes * 60))
            }
            Ok([minutes]) if *minutes <= 10_000 * 1440 => Ok(Self(minutes * 60)),
            _ => Err(format!("{text:?} is no moment DD:HH:MM, and no number of minutes")),
        }
    }
}

/// What a conversion did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// Functions written.
    pub functions: usize,
    /// Their invocations.
    pub invocations: u64,
    /// Functions left out, because something of them is not known.
    pub left_out: usize,
    /// Invocations moved by microseconds, because two of one function began together.
    pub moved: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_windows_are_read_or_refused() {
        let start: Start = "1:02:03".parse().unwrap();
        assert_eq!(start, Start(86_400 + 2 * 3600 + 180));
        for bad in ["", "1:2", "0:24:00", "0:00:60", "-1:0:0", "a:b:c", "0:0:0:0"] {
            assert!(bad.parse::<Start>().is_err(), "{bad}");
        }
        assert_eq!("93".parse::<Start>(), "0:01:33".parse());
        let of_day = "0:02:03".parse::<Start>().unwrap().of_day(2).unwrap();
        assert_eq!((of_day, of_day.minutes_left()), (start, 1440 - 123));
        assert!(start.of_day(1).is_err() && Start(0).of_day(0).is_err());
        assert_eq!(Window::new(start, 5).unwrap().end_s(), 93_780 + 300);
        assert!(Window::new(start, 0).is_err() && Window::new(start, u64::MAX).is_err());
    }
}
