//! A whole door over a node, in one process, without root or network beyond loopback.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use vhive_api::guest::Process;
use vhive_api::{MemoryMode, RuntimeName, SandboxId, Span};
use vhive_node::{Node, Runtimes};
use vhive_sandbox::sim::{Sim, SimConfig};
use vhive_sandbox::snapshot::Platform;
use vhive_sandbox::{
    BootError, Checkpoint, Deadline, End, Guest, HostLacks, Journal, Memory, Milestone, Restore,
    RestoreError, Runtime, Sandbox, SandboxSpec, Snapshot, SnapshotDraft, SnapshotError,
};
use vhive_serving::{Config, Serving};

/// Longest that any one step of a test may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A node with its door.
pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) serving: Serving,
    pub(crate) dir: Arc<tempfile::TempDir>,
}

/// What a test wants otherwise.
pub(crate) struct Setup {
    pub(crate) runtimes: Runtimes,
    pub(crate) node: vhive_node::Config,
    pub(crate) serving: Config,
    pub(crate) dir: Arc<tempfile::TempDir>,
}

impl Setup {
    pub(crate) fn new() -> Self {
        Self::of(Runtimes::new().with(Sim::new(SimConfig::default())))
    }

    pub(crate) fn of(runtimes: Runtimes) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Self::again(runtimes, dir)
    }

    pub(crate) fn again(runtimes: Runtimes, dir: Arc<tempfile::TempDir>) -> Self {
        let mut node = vhive_node::Config::below(dir.path());
        node.back_off_first = Span(Duration::from_millis(100));
        let mut serving = Config::default();
        serving.gateway.listen.set_port(0);
        serving.api.listen.set_port(0);
        serving.api.socket = Some(dir.path().join("api.sock"));
        serving.defaults.runtime = RuntimeName::Sim;
        serving.autoscale.tick = Span(Duration::from_millis(50));
        Self { runtimes, node, serving, dir }
    }

    /// Functions are served by `serve`, one call per connection.
    pub(crate) fn with_functions<F>(serve: fn(TcpStream) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::of(Runtimes::new().with(InProcess::new(serve)))
    }

    pub(crate) async fn start(self) -> World {
        let images = vhive_image::ImageStore::open(self.dir.path().join("images")).unwrap();
        let node = Node::open(self.node, self.runtimes, images, None).await.unwrap();
        let serving = Serving::run(self.serving, node.clone()).await.unwrap();
        World { node, serving, dir: self.dir }
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Setup::new().start().await
    }

    pub(crate) fn gateway(&self) -> SocketAddr {
        self.serving.addresses().gateway
    }

    pub(crate) async fn stop(self) {
        self.serving.shutdown(Deadline::after(Duration::from_secs(5))).await;
        self.node.shutdown(Deadline::after(Duration::from_secs(5))).await.unwrap();
    }

    /// Makes a service; the closure may change its document.
    pub(crate) async fn apply(&self, name: &str, change: impl FnOnce(&mut Value)) -> (u16, Value) {
        let mut document = service(name);
        change(&mut document);
        let path = "/apis/serving.knative.dev/v1/namespaces/default/services";
        let (status, _) = self.api("GET", &format!("{path}/{name}"), None).await;
        if status == 404 {
            self.api("POST", path, Some(&document)).await
        } else {
            self.api("PUT", &format!("{path}/{name}"), Some(&document)).await
        }
    }

    /// A request to the API over its unix socket.
    pub(crate) async fn api(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let body = body.map(ToString::to_string).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let mut stream = UnixStream::connect(&self.serving.addresses().socket).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = Vec::new();
        within(stream.read_to_end(&mut reply)).await.unwrap();
        let reply = Reply::parse(&reply);
        (reply.status, serde_json::from_slice(&reply.body).unwrap_or(Value::Null))
    }

    /// One request with a connection of its own.
    pub(crate) async fn request(
        &self,
        method: &str,
        host: &str,
        extra: &str,
        body: &[u8],
    ) -> Reply {
        let mut head =
            format!("{method} / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{extra}");
        if !body.is_empty() {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut wire = head.into_bytes();
        wire.extend_from_slice(body);
        self.raw(&wire).await
    }

    pub(crate) async fn get(&self, name: &str) -> Reply {
        self.request("GET", &host(name), "", b"").await
    }

    /// Sends bytes as they are and reads until the gateway closes the connection.
    pub(crate) async fn raw(&self, wire: &[u8]) -> Reply {
        let mut stream = self.connect().await;
        stream.write_all(wire).await.unwrap();
        let mut reply = Vec::new();
        // A reset after the reply is as good as an end.
        let _ = within(stream.read_to_end(&mut reply)).await;
        Reply::parse(&reply)
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.gateway()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Waits for the newest records of a service to satisfy `wanted`.
    pub(crate) async fn records(
        &self,
        wanted: impl Fn(&[Arc<vhive_api::InvocationRecord>]) -> bool,
    ) -> Vec<Arc<vhive_api::InvocationRecord>> {
        eventually(|| {
            let records = self.node.records().recent(1000);
            wanted(&records).then_some(records)
        })
        .await
    }
}

pub(crate) fn host(name: &str) -> String {
    format!("{name}.default.example.com")
}

pub(crate) fn service(name: &str) -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"template": {
            "metadata": {"annotations": {}},
            "spec": {"containers": [{"image": "dev.local/hello"}]},
        }},
    })
}

/// Sets an annotation of the template.
pub(crate) fn annotate(document: &mut Value, name: &str, value: &str) {
    document["spec"]["template"]["metadata"]["annotations"][name] = Value::from(value);
}

/// A reply off the wire.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn parse(wire: &[u8]) -> Self {
        let end = wire.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no reply: {:?}", String::from_utf8_lossy(wire)));
        let head = String::from_utf8(wire[..end].to_vec()).unwrap();
        let status = head[9..12].parse().unwrap();
        Self { status, head, body: wire[end + 4..].to_vec() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1);
        let mut fields = lines.filter_map(|line| line.split_once(": "));
        fields.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Fails a test that would hang.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

/// Tries again until there is an answer.
pub(crate) async fn eventually<T>(mut answer: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = answer() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "not in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

type Serve = Arc<dyn Fn(TcpStream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A runtime whose functions are tasks of the test itself.
pub(crate) struct InProcess {
    serve: Serve,
    handle: tokio::runtime::Handle,
    name: RuntimeName,
    /// What checkpoints found: connections open.
    pub(crate) found: Arc<Mutex<Vec<usize>>>,
    /// Of all sandboxes.
    pub(crate) journals: Arc<Mutex<Vec<Arc<Journal>>>>,
    /// What they were started as.
    pub(crate) processes: Arc<Mutex<Vec<Process>>>,
}

impl InProcess {
    pub(crate) fn new<F>(serve: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let serve: Serve = Arc::new(move |stream| Box::pin(serve(stream)));
        let handle = tokio::runtime::Handle::current();
        let (found, journals) = (Arc::default(), Arc::default());
        let (name, processes) = (RuntimeName::Sim, Arc::default());
        Self { serve, handle, name, found, journals, processes }
    }

    /// As another one, whose images are looked up.
    pub(crate) fn named(self, name: RuntimeName) -> Self {
        Self { name, ..self }
    }
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InProcess")
    }
}

impl Runtime for InProcess {
    fn name(&self) -> RuntimeName {
        self.name
    }

    fn check_host(&self) -> Result<(), HostLacks> {
        Ok(())
    }

    fn boot(&self, spec: &SandboxSpec, _: Deadline) -> Result<Box<dyn Sandbox>, BootError> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = listener.local_addr().unwrap();
        let serve = Arc::clone(&self.serve);
        let open = Arc::new(tokio::sync::watch::Sender::new(0_usize));
        let counts = Arc::clone(&open);
        let task = self.handle.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                counts.send_modify(|n| *n += 1);
                let (served, counts) = (serve(stream), Arc::clone(&counts));
                connections.spawn(async move {
                    served.await;
                    counts.send_modify(|n| *n -= 1);
                });
            }
        });
        let journal = &spec.journal;
        for milestone in [Milestone::Spawned, Milestone::Started, Milestone::Listening] {
            journal.reach(milestone, Instant::now());
        }
        let (id, journal) = (spec.id.clone(), Arc::clone(journal));
        self.journals.lock().unwrap().push(Arc::clone(&journal));
        self.processes.lock().unwrap().push(spec.process.clone());
        let saver = Saver { open, found: Arc::clone(&self.found), handle: self.handle.clone() };
        Ok(Box::new(Unit { id, endpoint, task: Mutex::new(task), journal, saver }))
    }

    fn restores(&self) -> Option<&dyn Restore> {
        Some(self)
    }
}

/// Only so far that checkpoints are asked for; none succeeds.
impl Restore for InProcess {
    fn memory_modes(&self) -> &[MemoryMode] {
        &[MemoryMode::File]
    }

    fn platform(&self, _: &Guest) -> Result<Platform, HostLacks> {
        Err(HostLacks { what: "no snapshots".to_owned(), fix: "none".to_owned() })
    }

    fn restore(
        &self,
        _: &SandboxSpec,
        _: &Snapshot,
        memory: Memory,
        _: Deadline,
    ) -> Result<Box<dyn Sandbox>, RestoreError> {
        Err(RestoreError::Mode { mode: memory.mode, reason: "no snapshots".to_owned() })
    }
}

#[derive(Debug)]
struct Saver {
    open: Arc<tokio::sync::watch::Sender<usize>>,
    found: Arc<Mutex<Vec<usize>>>,
    handle: tokio::runtime::Handle,
}

impl Checkpoint for Saver {
    fn snapshot_into(&mut self, _: &mut SnapshotDraft, _: Deadline) -> Result<(), SnapshotError> {
        // What has been closed on the other side is seen by the function a moment later.
        let mut open = self.open.subscribe();
        let none = open.wait_for(|n| *n == 0);
        let limit = Duration::from_millis(500);
        drop(self.handle.block_on(async { tokio::time::timeout(limit, none).await }));
        self.found.lock().unwrap().push(*self.open.borrow());
        Err(SnapshotError::Guest("it counts connections only".to_owned()))
    }
}

#[derive(Debug)]
struct Unit {
    id: SandboxId,
    endpoint: SocketAddr,
    task: Mutex<tokio::task::JoinHandle<()>>,
    journal: Arc<Journal>,
    saver: Saver,
}

impl Sandbox for Unit {
    fn checkpoint(&mut self) -> Option<&mut dyn Checkpoint> {
        Some(&mut self.saver)
    }

    fn id(&self) -> &SandboxId {
        &self.id
    }

    fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }

    fn processes(&self) -> &[rustix::process::Pid] {
        &[]
    }

    fn stop(&mut self, _: Deadline) {
        self.task.lock().unwrap().abort();
        self.journal.end(End::Exited(0));
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        self.task.lock().unwrap().abort();
        self.journal.end(End::Vanished("dropped".to_owned()));
    }
}

/// Reads one request's head; what came after it is returned as well.
pub(crate) async fn read_head(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut wire = Vec::new();
    loop {
        if let Some(end) = wire.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = wire.split_off(end + 4);
            return Some((String::from_utf8(wire).unwrap(), rest));
        }
        if stream.read_buf(&mut wire).await.ok()? == 0 {
            return None;
        }
    }
}

pub(crate) fn mode_of(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}
