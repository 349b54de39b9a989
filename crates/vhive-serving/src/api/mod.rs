//! The API: Kubernetes-style objects, and vHive's own views, on a unix socket and on loopback.
//!
//! ```text
//!   unix socket (0660) ─────────────┐
//!                                   ├──► router ──► services · views
//!   loopback TCP ──► bearer token ──┘
//! ```

mod objects;
mod services;
mod snapshots;
mod status;
mod token;
mod views;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{get, post};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::token::TokenError;
use crate::gateway::Gateway;
use crate::services::Services;
use crate::serving::RunError;

/// What every handler may use.
#[derive(Debug)]
struct Shared {
    services: Services,
    gateway: Arc<Gateway>,
    gateway_address: SocketAddr,
    /// Ends streams when the node shuts down.
    end: CancellationToken,
}

type State = axum::extract::State<Arc<Shared>>;

/// The open API.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) socket: PathBuf,
    pub(crate) token: PathBuf,
    end: CancellationToken,
    tasks: TaskTracker,
}

impl Running {
    /// Takes no more requests and waits for those under way, at most so long.
    pub(crate) async fn close(self, left: Duration) {
        self.end.cancel();
        self.tasks.close();
        if tokio::time::timeout(left, self.tasks.wait()).await.is_err() {
            tracing::warn!("API requests were cut off");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end.cancel();
        // Whoever connects from now on shall be told that nobody is there.
        drop(std::fs::remove_file(&self.socket));
    }
}

/// Opens socket and port.
pub(crate) async fn run(
    services: Services,
    gateway: Arc<Gateway>,
    gateway_address: SocketAddr,
) -> Result<Running, RunError> {
    let config = services.config.api.clone();
    let state_dir = services.node.config().state_dir.clone();
    let socket = config.socket.clone().unwrap_or_else(|| state_dir.join("api.sock"));
    let (token, path) = token::open(&state_dir)?;

    let tcp = TcpListener::bind(config.listen).await;
    let bound = tcp.and_then(|tcp| Ok((tcp.local_addr()?, tcp)));
    let (address, tcp) = bound.map_err(|source| RunError::Listen {
        what: "the API",
        at: config.listen.to_string(),
        key: "serving.api.listen",
        source,
    })?;
    let unix = bind_socket(&socket).map_err(|source| RunError::Listen {
        what: "the API",
        at: socket.display().to_string(),
        key: "serving.api.socket",
        source,
    })?;

    let end = CancellationToken::new();
    let shared = Arc::new(Shared { services, gateway, gateway_address, end: end.clone() });
    let max_body = usize::try_from(config.max_body.0).unwrap_or(usize::MAX);
    let router = router(shared, max_body);
    let with_token =
        router.clone().layer(middleware::from_fn_with_state(Arc::new(token), token::require));
    let tasks = TaskTracker::new();
    let until = |end: CancellationToken| async move { end.cancelled().await };
    let on_unix = axum::serve(unix, router).with_graceful_shutdown(until(end.clone()));
    tasks.spawn(async move { on_unix.await });
    let on_tcp = axum::serve(tcp, with_token).with_graceful_shutdown(until(end.clone()));
    tasks.spawn(async move { on_tcp.await });
    Ok(Running { address, socket, token: path, end, tasks })
}

fn router(shared: Arc<Shared>, max_body: usize) -> Router {
    let service = "/apis/serving.knative.dev/v1/namespaces/{namespace}/services/{name}";
    let of_service = "/vhive/v1/namespaces/{namespace}/services/{name}";
    let snapshot = "/vhive/v1/snapshots/{digest}/{runtime}";
    // An archive is as long as it is; the store bounds what it takes in.
    let import = post(snapshots::import).layer(DefaultBodyLimit::disable());
    Router::new()
        .route("/apis/serving.knative.dev/v1/services", get(services::list_all))
        .route(
            "/apis/serving.knative.dev/v1/namespaces/{namespace}/services",
            get(services::list).post(services::create),
        )
        .route(service, get(services::read).put(services::replace).delete(services::remove))
        .route(&format!("{of_service}/describe"), get(views::describe))
        .route(&format!("{of_service}/logs"), get(views::logs))
        .route(&format!("{of_service}/evict"), post(snapshots::evict))
        .route(&format!("{of_service}/snapshot"), post(snapshots::create))
        .route("/vhive/v1/snapshots", get(snapshots::list))
        .route("/vhive/v1/snapshots/gc", post(snapshots::collect))
        .route("/vhive/v1/snapshots/import", import)
        .route(snapshot, get(snapshots::read).delete(snapshots::remove))
        .route(&format!("{snapshot}/archive"), get(snapshots::export))
        .route("/vhive/v1/records", get(views::records))
        .route("/vhive/v1/node", get(views::node))
        .route("/metrics", get(views::metrics))
        .route("/healthz", get(views::healthz))
        .fallback(status::no_such_path)
        .method_not_allowed_fallback(status::no_such_method)
        .layer(DefaultBodyLimit::max(max_body))
        .with_state(shared)
}

/// Binds the socket with mode 0660. One that nobody listens on any more is replaced; the node's
/// lock on its state directory has seen to it that it is ours.
fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}
