//! The dispatcher against a gateway of the test's own.

use std::sync::atomic::AtomicUsize;

use jiff::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::super::{End, Invocations};
use super::*;
use crate::config::AsyncConfig;

const PATIENCE: Duration = Duration::from_secs(20);

fn pending(id: &str) -> Pending {
    Pending {
        id: id.to_owned(),
        accepted: Timestamp::now(),
        host: "hello.default.example.com".to_owned(),
        method: "POST".to_owned(),
        target: "/".to_owned(),
        fields: Vec::new(),
        body: Bytes::from_static(b"body"),
        lane: None,
        event: None,
    }
}

/// Answers each connection's request with 200, after `before` has been called.
async fn gateway(before: impl Fn() + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.windows(4).any(|four| four == b"\r\n\r\n") {
                if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            before();
            let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone";
            let _sent = stream.write_all(reply).await;
            // Until the other side has read it.
            let _end = stream.read_buf(&mut head).await;
        }
    });
    address
}

/// Every reply leads to two more requests.
struct Doubles {
    judged: Arc<AtomicUsize>,
}

impl Errand for Doubles {
    fn prepare(&self, pending: &Pending) -> Option<Sending> {
        let (host, target) = (pending.host.clone(), pending.target.clone());
        Some(Sending { host, target, fields: Vec::new(), timeout: None })
    }

    fn judge(&self, _: &Pending, _: Result<Got, SendError>, _: u32, _: Duration) -> Verdict {
        let judged = self.judged.fetch_add(1, Ordering::SeqCst);
        assert!(judged < 100, "it spins");
        Verdict::Next(vec![pending("one"), pending("two")], End::Delivered)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_finds_no_room_does_not_spin() {
    let dir = tempfile::tempdir().unwrap();
    let config = AsyncConfig { max_pending: 1, ..AsyncConfig::default() };
    let (deferred, news) = Deferred::open(&dir.path().join("async.redb"), config).unwrap();
    deferred.accept(vec![pending("first")]).await.unwrap();
    let judged = Arc::new(AtomicUsize::new(0));
    let errand = Arc::new(Doubles { judged: Arc::clone(&judged) });
    let told = Arc::new(tokio::sync::Notify::new());
    let tell = Arc::clone(&told);
    let at = gateway(move || tell.notify_one()).await;
    let running = tokio::spawn(run(Arc::clone(&deferred), news, at, errand));
    tokio::time::timeout(PATIENCE, told.notified()).await.unwrap();
    tokio::time::sleep(FIRST_PAUSE / 2).await;
    // The reply, and that there is no room for what it leads to; the next look is a pause later.
    assert_eq!(judged.load(Ordering::SeqCst), 2);
    assert_eq!(deferred.pending(), 1, "it is not lost");
    running.abort();
}

#[tokio::test]
async fn a_lane_leaves_as_much_as_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("async.redb");
    let config = AsyncConfig { max_pending: 12, ..AsyncConfig::default() };
    let (deferred, _news) = Deferred::open(&path, config.clone()).unwrap();
    let mut next = 0;
    let mut one = |lane: &str| {
        next += 1;
        Pending { lane: Some(lane.to_owned()), ..pending(&next.to_string()) }
    };
    let mut taken = Vec::new();
    for lane in ["a", "b", "c", "d"] {
        let mut of_lane = 0;
        let full = loop {
            match deferred.accept(vec![one(lane)]).await {
                Ok(()) => of_lane += 1,
                Err(error) => break error.to_string(),
            }
        };
        assert!(full.contains(&format!("{of_lane} requests for the same service")), "{full}");
        taken.push(of_lane);
    }
    // Each half of what the others have left; whoever comes next finds room.
    assert_eq!(taken, [6, 3, 1, 1]);
    deferred.accept(vec![one("e")]).await.unwrap();
    let full = deferred.accept(vec![one("f")]).await.unwrap_err().to_string();
    assert!(full.starts_with("12 requests wait already"), "{full}");
    // What has gone makes room for its own and for others; a restart knows what there is.
    deferred.replace("1", Vec::new()).await.unwrap();
    drop(deferred);
    let (deferred, _news) = Deferred::open(&path, config.clone()).unwrap();
    assert_eq!(deferred.pending(), 11);
    assert!(deferred.accept(vec![one("a")]).await.is_err(), "5 of its own, and 1 is left");
    deferred.accept(vec![one("g")]).await.unwrap();
    // Several that take the place of one of their lane: that one no longer counts.
    let (deferred, _news) = Deferred::open(&dir.path().join("third.redb"), config).unwrap();
    let mut first = None;
    for _ in 0..5 {
        let one = one("a");
        first.get_or_insert(one.id.clone());
        deferred.accept(vec![one]).await.unwrap();
    }
    let first = first.unwrap();
    let three = vec![one("a"), one("a"), one("a")];
    assert!(deferred.replace(&first, three).await.is_err(), "7 of its own, and 5 are left");
    deferred.replace(&first, vec![one("a"), one("a")]).await.unwrap();
    assert_eq!(deferred.pending(), 6);
    // Half of the bytes likewise, whatever their number.
    let config = AsyncConfig { max_bytes: Size(4000), ..AsyncConfig::default() };
    let path = dir.path().join("other.redb");
    let (deferred, _news) = Deferred::open(&path, config).unwrap();
    let long = |lane: &str, one: Pending| Pending {
        body: Bytes::from(vec![0; 1000]),
        lane: Some(lane.to_owned()),
        ..one
    };
    deferred.accept(vec![long("a", one("a"))]).await.unwrap();
    assert!(deferred.accept(vec![long("a", one("a"))]).await.is_err());
    deferred.accept(vec![long("b", one("b"))]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_waits_for_the_disk_and_the_function_is_not_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let (path, away) = (dir.path().join("async.redb"), dir.path().join("away"));
    let (deferred, news) = Deferred::open(&path, AsyncConfig::default()).unwrap();
    deferred.accept(vec![pending("first")]).await.unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let told = Arc::new(tokio::sync::Notify::new());
    let at = {
        let (asked, tell) = (Arc::clone(&asked), Arc::clone(&told));
        let (deferred, path, away) = (Arc::clone(&deferred), path.clone(), away.clone());
        gateway(move || {
            // The disk fails between the request and its reply.
            if asked.fetch_add(1, Ordering::SeqCst) == 0 {
                std::fs::rename(&path, &away).unwrap();
                deferred.queue.doubt();
            }
            tell.notify_one();
        })
        .await
    };
    let errand = Arc::new(Invocations { attempts: 3, per_service: 1 });
    let running = tokio::spawn(run(Arc::clone(&deferred), news, at, errand));
    tokio::time::timeout(PATIENCE, told.notified()).await.unwrap();
    tokio::time::sleep(FIRST_PAUSE / 2).await;
    let state = deferred.told("first").unwrap().expect("it is known");
    assert_eq!(state.state, Stage::Running, "it is not done before it is kept");
    std::fs::rename(&away, &path).unwrap();
    let kept = async {
        while deferred.pending() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, kept).await.expect("kept once the disk is back");
    let (head, body) = deferred.reply("first").unwrap().expect("a reply");
    assert_eq!((head.status, head.stage, body.as_ref()), (200, Stage::Done, b"done".as_slice()));
    assert_eq!(asked.load(Ordering::SeqCst), 1, "what has been done is not done again");
    running.abort();
}
