//! How requests leave and replies come back.

mod h1;
mod h2;
mod reply;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderValue, Method};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use crate::call::{self, Plain, Protocol, Target};
use crate::collect::{Collector, Pending, locked};
use crate::row::Outcome;
use crate::stop::Stop;

/// How long a connection made ahead may take.
const AHEAD: Duration = Duration::from_secs(5);
/// Addresses that are connected to ahead at a time.
const AT_A_TIME: usize = 16;

/// Begins the error of a request that the generator itself had no means to send.
pub(crate) const GENERATOR: &str = "generator: ";

/// Why there is no connection. What this host lacks is no failure of the function.
fn no_connection(address: SocketAddr, error: &std::io::Error) -> String {
    const OWN: [(Errno, &str); 3] = [
        (Errno::MFILE, "raise `ulimit -n`, or lower --max-connections"),
        (Errno::NFILE, "the host has no more files to open"),
        (
            Errno::ADDRNOTAVAIL,
            "no local port is free (keep connections, or lower the rate), or this host has no address of that \
             kind (IPv6 is off?)",
        ),
    ];
    let own = OWN.iter().find(|(own, _)| error.raw_os_error() == Some(own.raw_os_error()));
    match own {
        Some((_, next)) => format!("{GENERATOR}cannot connect to {address}: {error}; {next}"),
        None => format!("cannot connect to {address}: {error}"),
    }
}

/// Whether a status says that the function was called and has succeeded; 304 is the answer to a request
/// with a condition. A redirect is none: whoever sends it is not the function.
const fn is_good(status: u16) -> bool {
    matches!(status, 200..=299 | 304)
}

/// A status that is no success, in words.
fn bad_status(status: u16, reason: Option<&str>) -> String {
    match (status, reason) {
        (_, Some(reason)) => format!("status {status}: {reason}"),
        (300..=399, None) => format!("status {status}: a redirect, which is not followed"),
        (_, None) => format!("status {status}"),
    }
}

/// What every connection of a run needs.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) collector: Arc<Collector>,
    /// The most that one request may take.
    pub(crate) patience: Duration,
    /// Connections to one address at a time.
    pub(crate) most_connections: usize,
    /// Where that is less than asked for, for want of files: told once it makes a request wait.
    pub(crate) short_of: Option<Arc<OnceLock<usize>>>,
    /// Whether replies are looked into.
    pub(crate) keep_body: bool,
    /// Cancelled when nothing is waited for any more.
    pub(crate) abandon: CancellationToken,
    pub(crate) plain: Plain,
}

impl Shared {
    /// One more than so many connections to one address, if there may be one.
    fn one_more(&self, open: &AtomicUsize) -> bool {
        let more = |open: usize| (open < self.most_connections).then_some(open + 1);
        let taken = open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        if let (Err(_), Some(short_of)) = (taken, &self.short_of) {
            short_of.get_or_init(|| self.most_connections);
        }
        taken.is_ok()
    }
}

/// Pools of connections that these targets need: of two protocols, an address has two.
pub(crate) fn pools(targets: &[Target], addresses: &HashMap<String, SocketAddr>) -> usize {
    let pool =
        |target: &Target| (addresses.get(&target.address), target.protocol == Protocol::Http1);
    targets.iter().map(pool).collect::<HashSet<_>>().len()
}

/// What connections there were.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Opened {
    /// Set-up times of connections made before the run, in nanoseconds.
    pub ahead_ns: Vec<u64>,
    /// Why others could not be made.
    pub failed: Vec<String>,
}

/// Sends to one target.
#[derive(Debug)]
enum Lane {
    H1 {
        pool: Arc<h1::Pool>,
        host: Arc<str>,
        plain: Bytes,
    },
    /// With the deadline of its requests, gRPC.
    H2 {
        pool: Arc<h2::Pool>,
        host: Arc<str>,
        deadline: Option<HeaderValue>,
    },
}

/// Sends to every target; connections are shared by targets with the same address.
#[derive(Debug)]
pub(crate) struct Wires {
    lanes: Vec<Lane>,
    expiry: Arc<h1::Expiry>,
    shared: Arc<Shared>,
}

impl Wires {
    /// `addresses` are the targets' addresses, resolved.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        targets: &[Target],
        addresses: &HashMap<String, SocketAddr>,
    ) -> Self {
        let expiry = h1::Expiry::begin(shared);
        let mut h1_pools: HashMap<SocketAddr, Arc<h1::Pool>> = HashMap::new();
        let mut h2_pools: HashMap<SocketAddr, Arc<h2::Pool>> = HashMap::new();
        let lane = |target: &Target| {
            let host: Arc<str> = target.hostname.as_str().into();
            let Some(address) = addresses.get(&target.address).copied() else {
                unreachable!("every target's address was resolved")
            };
            if target.protocol == Protocol::Http1 {
                let make = || h1::Pool::new(shared, &expiry, address);
                let pool = Arc::clone(h1_pools.entry(address).or_insert_with(make));
                let plain = h1::plain(&host, &shared.plain);
                return Lane::H1 { pool, host, plain };
            }
            let pool = h2_pools.entry(address).or_insert_with(|| h2::Pool::new(shared, address));
            let grpc = target.protocol == Protocol::Grpc;
            let deadline = if grpc { h2::deadline(shared.patience) } else { None };
            Lane::H2 { pool: Arc::clone(pool), host, deadline }
        };
        let lanes = targets.iter().map(lane).collect();
        Self { lanes, expiry, shared: Arc::clone(shared) }
    }

    /// Opens `each` connections to every address, to several at a time; to one that does not answer,
    /// no more. A stop ends it.
    pub(crate) async fn open(&self, each: usize, stop: &Stop) -> Opened {
        let mut seen: HashSet<*const ()> = HashSet::new();
        let is_first = |lane: &&Lane| {
            seen.insert(match lane {
                Lane::H1 { pool, .. } => Arc::as_ptr(pool).cast(),
                Lane::H2 { pool, .. } => Arc::as_ptr(pool).cast(),
            })
        };
        let opened = Mutex::new(Opened::default());
        let most = self.shared.patience.min(AHEAD);
        let open_to = async |lane: &Lane| {
            for _ in 0..each {
                let made = match lane {
                    Lane::H1 { pool, .. } => pool.open(most).await,
                    Lane::H2 { pool, .. } => pool.open(most).await,
                };
                match made {
                    Ok(ns) => locked(&opened).ahead_ns.push(ns),
                    Err(why) => {
                        locked(&opened).failed.push(why);
                        break;
                    }
                }
            }
        };
        let lanes: Vec<&Lane> = self.lanes.iter().filter(is_first).collect();
        tokio::select! {
            () = futures_util::stream::iter(lanes).for_each_concurrent(AT_A_TIME, open_to) => {}
            () = stop.asked() => {}
        }
        opened.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends now, or as soon as there is a connection. Never waits.
    pub(crate) fn send(&self, pending: Pending) {
        let index = usize::try_from(pending.shot.target).unwrap_or(usize::MAX);
        let plain = &self.shared.plain;
        match self.lanes.get(index) {
            None => pending.fail(Outcome::Error, "the plan names a target that there is none of"),
            Some(Lane::H1 { pool, host, plain }) => {
                let bytes = match pending.shot.work {
                    None => plain.clone(),
                    Some(work) => {
                        let body = call::work_json(work);
                        h1::request(&Method::POST, "/", host, &[], &body)
                    }
                };
                pool.send(pending, bytes);
            }
            Some(Lane::H2 { pool, host, deadline }) => {
                let work = pending.shot.work;
                match h2::request(host, deadline.as_ref(), plain, work) {
                    Ok(request) => pool.send(pending, request, deadline.is_some()),
                    Err(error) => pending.fail(Outcome::Error, error.to_string()),
                }
            }
        }
    }

    /// Gives up all that is under way.
    pub(crate) fn abandon(&self) {
        self.shared.abandon.cancel();
        for lane in &self.lanes {
            if let Lane::H1 { pool, .. } = lane {
                pool.abandon();
            }
        }
        self.expiry.abandon();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_host_lacks_is_told_as_the_generators_own() {
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        let told = |errno: Errno| {
            no_connection(address, &std::io::Error::from_raw_os_error(errno.raw_os_error()))
        };
        for own in [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL] {
            let told = told(own);
            assert!(told.starts_with("generator: cannot connect to 127.0.0.1:80: "), "{told}");
        }
        let refused = told(Errno::CONNREFUSED);
        assert!(refused.starts_with("cannot connect to 127.0.0.1:80: "), "{refused}");
    }
}
