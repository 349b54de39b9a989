//! Throughput of one instance: a closed loop over a fixed number of connections.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::Instant;
use vhive_api::{Counter, HostCounters, RuntimeName};

use crate::deadline::Deadline;
use crate::function::Request;
use crate::http::{ApiError, Client};
use crate::session::chain;
use crate::stats::Summary;
use crate::target::Target;

/// One measured throughput.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Name of the function.
    pub function: String,
    /// In which sandbox.
    pub runtime: RuntimeName,
    /// Counts from 1.
    pub repetition: u32,
    /// Position among the throughputs of the study, from 1.
    pub order: u32,
    /// Requests under way at a time.
    pub connections: u32,
    /// How long it was measured.
    pub seconds: f64,
    /// Replies within that time, as expected.
    pub replies: u64,
    /// Others: none, an error status, another reply than expected.
    pub failures: u64,
    /// The first of those.
    pub first_failure: Option<String>,
    /// Median time of a reply, in microseconds.
    pub median_us: Option<f64>,
    /// 99th percentile likewise.
    pub p99_us: Option<f64>,
    /// The host's one-minute load average before it.
    pub load: Option<f64>,
    /// What the instance's processes used of the host meanwhile; absent if it was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<HostCounters>,
}

impl Load {
    /// Replies per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.replies as f64 / self.seconds } else { 0.0 }
    }

    /// CPU time of the instance's processes per reply, in microseconds; of failures too, so absent
    /// if there were any.
    #[must_use]
    pub fn cpu_us_each(&self) -> Option<f64> {
        let used = self.counters.as_ref()?.get(Counter::CpuUs)?;
        (self.replies > 0 && self.failures == 0).then(|| used as f64 / self.replies as f64)
    }
}

/// What a loop of requests is made of.
#[derive(Clone, Debug)]
pub struct Loop {
    /// The service.
    pub service: String,
    /// What is sent.
    pub request: Request,
    /// Whether the replies are compared with the expected one.
    pub check: bool,
    /// Connections, each with one request under way.
    pub connections: u32,
    /// For how long.
    pub length: Duration,
    /// The most that a single request may take.
    pub patience: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Looped {
    /// How long it took.
    pub seconds: f64,
    /// Times of the good replies, in microseconds.
    pub times_us: Vec<f64>,
    /// The others.
    pub failures: u64,
    /// The first of them.
    pub first_failure: Option<String>,
}

/// Sends on every connection, one request after the other, until the time is over. A connection
/// that fails ends; the others go on.
///
/// # Errors
/// When no connection can be made, or the request cannot be sent at all.
pub async fn run(target: &Target, what: Loop) -> Result<Looped, ApiError> {
    let what = Arc::new(what);
    let mut clients = Vec::new();
    for _ in 0..what.connections {
        clients.push(target.connection(Deadline::after(what.patience)).await?);
    }
    target.request(&what.service, &what.request)?;
    let begun = Instant::now();
    let mut lanes = JoinSet::new();
    for client in clients {
        lanes.spawn(lane(target.clone(), client, Arc::clone(&what), begun + what.length));
    }
    let mut all = Looped::default();
    for one in lanes.join_all().await {
        all.times_us.extend(one.times_us);
        all.failures += one.failures;
        all.first_failure = all.first_failure.or(one.first_failure);
    }
    all.seconds = begun.elapsed().as_secs_f64();
    Ok(all)
}

async fn lane(target: Target, mut client: Client, what: Arc<Loop>, until: Instant) -> Looped {
    let mut done = Looped::default();
    while Instant::now() < until {
        let sent = match target.request(&what.service, &what.request) {
            Ok(request) => client.send(request, Deadline::after(what.patience)).await,
            Err(error) => Err(error),
        };
        let (why, usable) = match sent {
            Ok(reply) if !reply.status.is_success() => {
                (Some(format!("status {}", reply.status.as_u16())), true)
            }
            Ok(reply) => {
                let differs = what.check.then(|| what.request.differs(&reply.body)).flatten();
                if differs.is_none() {
                    done.times_us.push(reply.took_us as f64);
                }
                (differs, true)
            }
            Err(error) => (Some(chain(&error)), false),
        };
        if let Some(why) = why {
            done.failures += 1;
            done.first_failure.get_or_insert(why);
        }
        if !usable {
            break;
        }
    }
    done
}

impl Looped {
    /// Median and 99th percentile of the replies' times.
    #[must_use]
    pub fn quantiles(&self) -> Option<(f64, f64)> {
        let median = Summary::of(&self.times_us, 0)?.median;
        Some((median, crate::stats::upper_percent(&self.times_us, 1.0)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_good_replies_only() {
        let times_us = (1..=200).map(f64::from).collect();
        let looped = Looped { times_us, failures: 3, ..Looped::default() };
        let (median, p99) = looped.quantiles().expect("there are replies");
        assert!((median - 100.5).abs() < 1e-9 && (p99 - 198.01).abs() < 1e-9, "{median} {p99}");
        assert_eq!(Looped::default().quantiles(), None);
    }
}
