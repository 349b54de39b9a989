//! A run: every planned request is sent at its time, whatever came of those before.

use std::collections::{BTreeMap, HashMap};
use std::iter::Chain;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::call::{Plain, Target};
use crate::clock::{Clock, nanos};
use crate::collect::Collector;
use crate::flow::{Flows, Walker};
use crate::pacer::{Pacer, SPIN};
use crate::row::{Outcome, Row, Shot};
use crate::stop::Stop;
use crate::wire::{Opened, Shared, Wires, pools};

/// How long rows stay with the sender before they are handed over.
const FLUSH: Duration = Duration::from_millis(250);
/// How long a client of a closed loop pauses after an error: an endpoint that is gone would else
/// give a million rows.
const AFTER_ERROR: Duration = Duration::from_millis(10);
/// A sender so many nanoseconds behind its schedule …
const BEHIND: u64 = 100_000;
/// … reads replies after so many sends.
const IN_A_ROW: u32 = 8;
/// How long replies are awaited before that is told.
const TELLS_AFTER: Duration = Duration::from_secs(1);
/// How long a name may take to be resolved.
const RESOLVE: Duration = Duration::from_secs(10);
/// How long a name's several addresses may take to be connected to.
const REACH: Duration = Duration::from_secs(5);
/// Names that are looked up at a time.
const LOOK_UPS: usize = 16;

/// What is the same for all requests of a run.
#[derive(Clone, Debug)]
pub struct Load {
    /// Whom plans refer to by index.
    pub targets: Vec<Target>,
    /// What is sent where a plan asks for no work.
    pub plain: Plain,
    /// The most that one request may take.
    pub patience: Duration,
    /// How long is waited, after the last send, for what is under way.
    pub drain: Duration,
    /// Connections made to each address ahead.
    pub connections: usize,
    /// Connections to one address at a time, at most; requests that find no room on one wait, and
    /// are late.
    pub most_connections: usize,
    /// Connections in all, at most: as many files as the process may have open beside others. Each address has an equal
    /// share.
    pub most_in_all: usize,
    /// Set to that share by the first request that waits because of it.
    pub short_of: Arc<OnceLock<usize>>,
    /// How long before a send the sender stops sleeping; 0 never spins.
    pub spin: Duration,
    /// Whether the sender stays awake while replies are awaited: they are then timed without a
    /// wake-up in between, which costs a CPU.
    pub busy: bool,
    /// Whether replies are looked into for what the function says of itself.
    pub reads_replies: bool,
    /// Told once, when replies are still awaited some time after the last send: how many, and how long they
    /// are waited for at most.
    pub tells_drain: Option<fn(u64, Duration)>,
    /// Set when the run begins; for whoever needs the time of its rows before it ends.
    pub clock: Arc<OnceLock<Clock>>,
}

impl Load {
    /// To these, with defaults.
    #[must_use]
    pub fn to(targets: Vec<Target>) -> Self {
        Self {
            targets,
            plain: Plain::default(),
            patience: Duration::from_secs(30),
            drain: Duration::from_secs(30),
            connections: 8,
            most_connections: 4096,
            most_in_all: usize::MAX,
            short_of: Arc::default(),
            spin: SPIN,
            busy: false,
            reads_replies: false,
            tells_drain: None,
            clock: Arc::default(),
        }
    }
}

/// What a run did as a whole; its requests are rows.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The run's time.
    pub clock: Clock,
    /// Requests sent, or tried to.
    pub sent: u64,
    /// Steps of workflows among them that were sent once more because they had failed.
    pub retries: u64,
    /// Planned ones that were not, because the run was stopped.
    pub unsent: u64,
    /// Steps of workflows that were not, because one before them failed.
    pub unfollowed: u64,
    /// From the beginning to the last send.
    pub sending_ns: u64,
    /// From the beginning to the end of the drain.
    pub whole_ns: u64,
    /// Connections made ahead.
    pub opened: Opened,
}

/// Why nothing could be sent at all.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is nobody to send to.
    #[error("there is no endpoint to send to")]
    NoTarget,
    /// A name leads nowhere.
    #[error("cannot resolve {address} (endpoint {hostname})")]
    Resolve {
        /// The target.
        hostname: String,
        /// Its address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// A name is not resolved in time.
    #[error("{address} (endpoint {hostname}) is not resolved within {RESOLVE:?}")]
    ResolveTimeout {
        /// The target.
        hostname: String,
        /// Its address.
        address: String,
    },
    /// It was stopped before it began.
    #[error("stopped before anything was sent")]
    Stopped,
    /// The kernel has no timer for us.
    #[error("cannot wait for the time of a send")]
    Timer(#[source] std::io::Error),
}

/// Sends `shots` open-loop; rows go to `rows` as requests end. Run it on a runtime of one thread.
///
/// # Errors
/// Before anything is sent. What goes wrong with a request is in its row.
pub async fn open_loop(
    load: &Load,
    shots: impl IntoIterator<Item = Shot>,
    rows: Sender<Vec<Row>>,
    stop: &Stop,
) -> Result<Ran, RunError> {
    let run = Run::begin(load, rows, stop).await?;
    let mut sent = 0;
    let left = run
        .pace(load, shots, stop, |shot| {
            run.wires.send(run.collector.begin(sent, shot));
            sent += 1;
        })
        .await?;
    let unsent = left.count() as u64;
    Ok(run.end(load, stop, |ran| Ran { sent, unsent, ..ran }).await)
}

/// As [`open_loop`], for shots that begin workflows: each step is sent once the one before has
/// succeeded.
///
/// # Errors
/// As [`open_loop`].
pub async fn open_flows(
    load: &Load,
    shots: impl IntoIterator<Item = Shot>,
    flows: Flows,
    rows: Sender<Vec<Row>>,
    stop: &Stop,
) -> Result<Ran, RunError> {
    let run = Run::begin(load, rows, stop).await?;
    let walker = Arc::new(Walker {
        flows,
        collector: Arc::clone(&run.collector),
        wires: Arc::clone(&run.wires),
        stop: stop.clone(),
        numbers: AtomicU64::new(0),
        unfollowed: AtomicU64::new(0),
        unsent: AtomicU64::new(0),
        retries: AtomicU64::new(0),
    });
    let mut begun = HashMap::new();
    let left = run.pace(load, shots, stop, |shot| walker.send(shot, &mut begun)).await?;
    let unsent: u64 = left.map(|shot| walker.steps(shot.target)).sum();
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let count = |ran| Ran {
        sent: read(&walker.numbers),
        unsent: unsent + read(&walker.unsent),
        unfollowed: read(&walker.unfollowed),
        retries: read(&walker.retries),
        ..ran
    };
    Ok(run.end(load, stop, count).await)
}

/// Keeps `clients` requests under way for `time`, each client sending its next when it has the
/// reply, to the targets in turn.
///
/// # Errors
/// As [`open_loop`].
pub async fn closed_loop(
    load: &Load,
    clients: usize,
    time: Duration,
    rows: Sender<Vec<Row>>,
    stop: &Stop,
) -> Result<Ran, RunError> {
    let run = Arc::new(Run::begin(load, rows, stop).await?);
    let until = nanos(time);
    let numbers = Arc::new(AtomicU64::new(0));
    let targets = load.targets.len() as u64;
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..clients {
        let (run, stop, numbers) = (Arc::clone(&run), stop.clone(), Arc::clone(&numbers));
        all.spawn(async move {
            loop {
                let at_ns = run.collector.clock().now_ns();
                if at_ns >= until || stop.is_asked() {
                    return;
                }
                let number = numbers.fetch_add(1, Ordering::Relaxed);
                let target = u32::try_from(number % targets).unwrap_or(0);
                let shot = Shot { at_ns, target, work: None, nth: 0 };
                let mut pending = run.collector.begin(number, shot);
                let (told, ended) = oneshot::channel();
                pending.told = Some(told);
                run.wires.send(pending);
                tokio::select! {
                    // An error here is a request that was given up.
                    outcome = ended => match outcome {
                        Ok(Outcome::Error) => tokio::time::sleep(AFTER_ERROR).await,
                        Ok(_) => {}
                        Err(_) => return,
                    },
                    () = stop.asked() => return,
                }
            }
        });
    }
    while all.join_next().await.is_some() {}
    Ok(run.end(load, stop, |ran| Ran { sent: numbers.load(Ordering::Relaxed), ..ran }).await)
}

/// Shots that were not sent.
type Left<I> = Chain<std::option::IntoIter<Shot>, <I as IntoIterator>::IntoIter>;

struct Run {
    collector: Arc<Collector>,
    wires: Arc<Wires>,
    opened: Opened,
    ended: CancellationToken,
}

impl Run {
    /// Looks names up and connects. Who stops it meanwhile waits for neither.
    async fn begin(load: &Load, rows: Sender<Vec<Row>>, stop: &Stop) -> Result<Self, RunError> {
        if load.targets.is_empty() {
            return Err(RunError::NoTarget);
        }
        let (addresses, instead) = find(load, stop).await?;
        let ended = CancellationToken::new();
        let collector = Arc::new(Collector::new(rows));
        let (most_connections, is_short) = share(load, pools(&load.targets, &addresses));
        let shared = Arc::new(Shared {
            collector: Arc::clone(&collector),
            patience: load.patience,
            most_connections,
            short_of: is_short.then(|| Arc::clone(&load.short_of)),
            keep_body: load.reads_replies,
            abandon: CancellationToken::new(),
            plain: load.plain.clone(),
        });
        let wires = Arc::new(Wires::new(&shared, &load.targets, &addresses));
        let mut opened = wires.open(load.connections, stop).await;
        opened.failed.extend(instead);
        // A second run with the same load keeps its own.
        let _ = load.clock.set(collector.clock());
        tokio::spawn(flush(Arc::clone(&collector), ended.clone()));
        Ok(Self { collector, wires, opened, ended })
    }

    /// Gives each shot to `send` at its time; returns those that it did not, because of a stop.
    async fn pace<I: IntoIterator<Item = Shot>>(
        &self,
        load: &Load,
        shots: I,
        stop: &Stop,
        mut send: impl FnMut(Shot),
    ) -> Result<Left<I>, RunError> {
        let clock = self.collector.clock();
        let busy = load.busy.then(|| Arc::clone(&self.collector));
        let pacer = Pacer::new(clock, load.spin, busy, stop.clone()).map_err(RunError::Timer)?;
        let mut shots = shots.into_iter();
        let mut in_a_row = 0;
        while let Some(shot) = shots.next() {
            if !pacer.until(shot.at_ns).await.map_err(RunError::Timer)? {
                return Ok(Some(shot).into_iter().chain(shots));
            }
            send(shot);
            in_a_row = if clock.now_ns() > shot.at_ns + BEHIND { in_a_row + 1 } else { 0 };
            if in_a_row == IN_A_ROW {
                // Behind: connections are free again once their replies are read.
                in_a_row = 0;
                tokio::task::yield_now().await;
            }
        }
        Ok(None.into_iter().chain(shots))
    }

    /// Waits for what is under way, then lets `count` say what was sent.
    async fn end(&self, load: &Load, stop: &Stop, count: impl FnOnce(Ran) -> Ran) -> Ran {
        let clock = self.collector.clock();
        let sending_ns = clock.now_ns();
        let tells = async {
            tokio::time::sleep(TELLS_AFTER).await;
            if let Some(tell) = load.tells_drain {
                tell(self.collector.under_way(), load.drain);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = self.collector.idle() => {}
            () = self.collector.idle_awake(), if load.busy => {}
            () = tells => {}
            () = tokio::time::sleep(load.drain) => {}
            () = stop.asked_twice() => {}
        }
        self.wires.abandon();
        // What was given up writes its rows when its tasks end, which nothing holds up.
        self.collector.idle().await;
        self.ended.cancel();
        self.collector.close();
        let (opened, whole_ns) = (self.opened.clone(), clock.now_ns());
        let (sent, retries, unsent, unfollowed) = (0, 0, 0, 0);
        count(Ran { clock, sent, retries, unsent, unfollowed, sending_ns, whole_ns, opened })
    }
}

/// Connections to one of so many addresses at a time, and whether they are fewer than asked for.
fn share(load: &Load, pools: usize) -> (usize, bool) {
    let asked = load.most_connections.max(load.connections).max(1);
    let share = (load.most_in_all / pools.max(1)).max(1);
    (asked.min(share), share < asked)
}

async fn flush(collector: Arc<Collector>, ended: CancellationToken) {
    let mut ticks = tokio::time::interval(FLUSH);
    loop {
        tokio::select! {
            _ = ticks.tick() => collector.flush(),
            () = ended.cancelled() => return,
        }
    }
}

/// The same load, to the addresses themselves instead of their names: runs with it are to the same servers. Also
/// what is to be told of those.
pub(crate) async fn resolved(load: &Load, stop: &Stop) -> Result<(Load, Vec<String>), RunError> {
    let (addresses, told) = find(load, stop).await?;
    let mut load = load.clone();
    for target in &mut load.targets {
        if let Some(found) = addresses.get(&target.address) {
            target.address = found.to_string();
        }
    }
    Ok((load, told))
}

/// By address as it was given, the one that is connected to.
type Addresses = HashMap<String, SocketAddr>;

async fn find(load: &Load, stop: &Stop) -> Result<(Addresses, Vec<String>), RunError> {
    tokio::select! {
        biased;
        () = stop.asked() => Err(RunError::Stopped),
        found = resolve(&load.targets, load.patience.min(REACH)) => found,
    }
}

/// Resolves every address once, before the run: a look-up is no part of a request's latency. Of those of
/// which another than the first was taken, it says so.
async fn resolve(targets: &[Target], most: Duration) -> Result<(Addresses, Vec<String>), RunError> {
    let mut by_address: BTreeMap<&str, &Target> = BTreeMap::new();
    for target in targets {
        by_address.entry(&target.address).or_insert(target);
    }
    let look = async |target: &Target| {
        let all = look_up(target).await?;
        let (taken, instead) = reach(&all, most).await;
        let told = instead.map(|why| format!("{}: {why}", target.address));
        match taken {
            Some(taken) => Ok(((target.address.clone(), taken), told)),
            None => {
                let source = std::io::Error::other("the name has no address");
                let (hostname, address) = (target.hostname.clone(), target.address.clone());
                Err(RunError::Resolve { hostname, address, source })
            }
        }
    };
    let looked = futures_util::stream::iter(by_address.into_values()).map(look);
    let all: Vec<((String, SocketAddr), Option<String>)> =
        looked.buffer_unordered(LOOK_UPS).try_collect().await?;
    let (found, told): (HashMap<_, _>, Vec<_>) = all.into_iter().unzip();
    Ok((found, told.into_iter().flatten().collect()))
}

/// The first address that can be connected to, or else the first; and what was said of those before it. All are
/// tried at once, so that it takes no longer than `most`. `localhost` may be two, and a server listen at one.
async fn reach(all: &[SocketAddr], most: Duration) -> (Option<SocketAddr>, Option<String>) {
    let mut failed = Vec::new();
    if all.len() > 1 {
        let connect = async |address| {
            (address, tokio::time::timeout(most, TcpStream::connect(address)).await)
        };
        let tries = futures_util::stream::iter(all).map(connect).buffered(all.len());
        tokio::pin!(tries);
        while let Some((address, done)) = tries.next().await {
            match done {
                Ok(Ok(_)) if failed.is_empty() => break,
                Ok(Ok(_)) => {
                    let why = format!("{}; {address} is taken instead", failed.join(", "));
                    return (Some(*address), Some(why));
                }
                Ok(Err(error)) => failed.push(format!("{address}: {error}")),
                Err(_) => failed.push(format!("{address}: no answer in time")),
            }
        }
    }
    (all.first().copied(), None)
}

/// All addresses of a target.
async fn look_up(target: &Target) -> Result<Vec<SocketAddr>, RunError> {
    let (hostname, address) = (target.hostname.clone(), target.address.clone());
    match tokio::time::timeout(RESOLVE, tokio::net::lookup_host(&target.address)).await {
        Err(_) => Err(RunError::ResolveTimeout { hostname, address }),
        Ok(Ok(all)) => Ok(all.collect()),
        Ok(Err(source)) => Err(RunError::Resolve { hostname, address, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_kept_to_the_files_that_may_be_open() {
        for ((in_all, pools), (ahead, most), wanted) in [
            ((960, 1), (8, 4096), (960, true)),
            ((960, 3), (8, 4096), (320, true)),
            ((960, 3), (8, 320), (320, false)),
            ((960, 1), (2000, 10), (960, true)),
            ((1 << 20, 2), (2000, 4096), (4096, false)),
            ((1, 5), (8, 4096), (1, true)),
        ] {
            let mut load = Load::to(Vec::new());
            (load.connections, load.most_connections, load.most_in_all) = (ahead, most, in_all);
            assert_eq!(share(&load, pools), wanted, "{in_all} / {pools}");
        }
    }

    #[test]
    fn of_several_addresses_one_that_answers_is_taken() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bind = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = |listener: &std::net::TcpListener| listener.local_addr().unwrap();
            let (one, other, gone) = (bind(), bind(), bind());
            let [one_at, other_at, nobody] = [&one, &other, &gone].map(address);
            drop(gone);
            let most = Duration::from_secs(5);
            assert_eq!(reach(&[one_at, other_at], most).await, (Some(one_at), None));
            let (taken, why) = reach(&[nobody, other_at], most).await;
            assert_eq!(taken, Some(other_at));
            let why = why.unwrap();
            assert!(why.contains(&nobody.to_string()) && why.contains("is taken instead"), "{why}");
            // Nobody is there, maybe not yet: the requests will tell.
            assert_eq!(reach(&[nobody, nobody], most).await, (Some(nobody), None));
            assert_eq!(reach(&[nobody], most).await, (Some(nobody), None));
            assert_eq!(reach(&[], most).await, (None, None));
        });
    }

    #[test]
    fn what_is_resolved_keeps_its_name_and_is_not_looked_up_again() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let target = Target {
                hostname: "f.test".to_owned(),
                address: "127.0.0.1:080".to_owned(),
                protocol: crate::Protocol::Http1,
            };
            let load = Load::to(vec![target.clone()]);
            let (found, told) = resolved(&load, &Stop::default()).await.unwrap();
            let wanted = Target { address: "127.0.0.1:80".to_owned(), ..target };
            assert_eq!((found.targets, told), (vec![wanted], Vec::new()));
            let stop = Stop::default();
            stop.ask();
            assert!(matches!(resolved(&load, &stop).await, Err(RunError::Stopped)));
        });
    }
}
