//! The API: Kubernetes-style objects, and vHive's own views, on a unix socket and on loopback.
//!
//! ```text
//!   unix socket (0660) ─────────────┐
//!                                   ├──► router ──► services · views
//!   loopback TCP ──► bearer token ──┘
//! ```

mod apply;
mod call;
mod dashboard;
mod deferred;
mod delete;
mod discovery;
mod document;
mod openapi;
mod patch;
mod pods;
mod protobuf;
mod query;
mod resources;
mod shape;
mod snapshots;
mod status;
mod tls;
mod token;
mod validation;
mod views;
mod watch;
mod write;

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

use self::tls::EitherListener;
pub use self::token::TokenError;
use crate::gateway::Gateway;
use crate::services::Services;
use crate::serving::RunError;

/// What every handler may use.
#[derive(Debug)]
struct Shared {
    services: Arc<Services>,
    gateway: Arc<Gateway>,
    gateway_address: SocketAddr,
    api_address: SocketAddr,
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
    services: Arc<Services>,
    gateway: Arc<Gateway>,
    gateway_address: SocketAddr,
) -> Result<Running, RunError> {
    let config = services.config.api.clone();
    let state_dir = services.node.config().state_dir.clone();
    let socket = config.socket.clone().unwrap_or_else(|| state_dir.join("api.sock"));
    let (token, path) = token::open(&state_dir)?;
    let certificate = tls::open(&state_dir)?;

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
    let api_address = address;
    let shared = Shared { services, gateway, gateway_address, api_address, end: end.clone() };
    let shared = Arc::new(shared);
    let max_body = usize::try_from(config.max_body.0).unwrap_or(usize::MAX);
    let router = router(shared, max_body);
    let with_token =
        router.clone().layer(middleware::from_fn_with_state(Arc::new(token), token::require));
    let tasks = TaskTracker::new();
    let until = |end: CancellationToken| async move { end.cancelled().await };
    let on_unix = axum::serve(unix, router).with_graceful_shutdown(until(end.clone()));
    tasks.spawn(async move { on_unix.await });
    let tcp = EitherListener::new(tcp, address, certificate);
    let on_tcp = axum::serve(tcp, with_token).with_graceful_shutdown(until(end.clone()));
    tasks.spawn(async move { on_tcp.await });
    Ok(Running { address, socket, token: path, end, tasks })
}

fn router(shared: Arc<Shared>, max_body: usize) -> Router {
    kubernetes()
        .merge(own())
        .fallback(status::no_such_path)
        .method_not_allowed_fallback(status::no_such_method)
        .layer(DefaultBodyLimit::max(max_body))
        .with_state(shared)
}

/// What clients of Kubernetes ask for.
fn kubernetes() -> Router<Arc<Shared>> {
    let serving = "/apis/serving.knative.dev/v1";
    let in_serving = format!("{serving}/namespaces/{{namespace}}/{{plural}}");
    let eventing = "/apis/eventing.knative.dev/v1";
    let in_eventing = format!("{eventing}/namespaces/{{namespace}}/{{plural}}");
    let in_core = "/api/v1/namespaces/{namespace}/{plural}";
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    Router::new()
        .route("/version", get(discovery::version))
        .route("/api", get(discovery::core_versions))
        .route("/apis", get(discovery::groups))
        .route("/apis/serving.knative.dev", get(discovery::serving_group))
        .route("/apis/eventing.knative.dev", get(discovery::eventing_group))
        .route(eventing, get(discovery::eventing))
        .route("/api/v1", get(discovery::core))
        .route(serving, get(discovery::serving))
        .route("/apis/authorization.k8s.io/v1", get(discovery::authorization))
        .route(reviews, post(discovery::may_i))
        .route("/openapi/v2", get(openapi::v2))
        .route("/openapi/v3", get(openapi::v3))
        .route("/openapi/v3/api/v1", get(openapi::core))
        .route("/openapi/v3/apis/serving.knative.dev/v1", get(openapi::serving))
        .route("/openapi/v3/apis/eventing.knative.dev/v1", get(openapi::eventing))
        .route(&format!("{eventing}/{{plural}}"), get(resources::eventing_in_all))
        .route(
            &in_eventing,
            get(resources::eventing_in_one).post(write::create).delete(delete::collection),
        )
        .route(
            &format!("{in_eventing}/{{name}}"),
            get(resources::one_of_serving)
                .put(write::replace)
                .patch(write::patch)
                .delete(delete::one),
        )
        .route(
            &format!("{in_eventing}/{{name}}/status"),
            get(resources::one_of_serving).put(write::status_is_ours).patch(write::status_is_ours),
        )
        .route(&format!("{serving}/{{plural}}"), get(resources::serving_in_all))
        .route(
            &in_serving,
            get(resources::serving_in_one).post(write::create).delete(delete::collection),
        )
        .route(
            &format!("{in_serving}/{{name}}"),
            get(resources::one_of_serving)
                .put(write::replace)
                .patch(write::patch)
                .delete(delete::one),
        )
        .route(
            &format!("{in_serving}/{{name}}/status"),
            get(resources::one_of_serving).put(write::status_is_ours).patch(write::status_is_ours),
        )
        .route("/api/v1/{plural}", get(resources::core_in_all))
        .route("/api/v1/namespaces", get(resources::namespaces).post(write::create_namespace))
        .route(
            "/api/v1/namespaces/{name}",
            get(resources::namespace)
                .put(write::replace_namespace)
                .patch(write::patch_namespace)
                .delete(delete::namespace),
        )
        .route(in_core, get(resources::core_in_one).post(write::create).delete(delete::collection))
        .route(
            &format!("{in_core}/{{name}}"),
            get(resources::one_of_core).put(write::replace).patch(write::patch).delete(delete::one),
        )
        .route("/api/v1/namespaces/{namespace}/pods/{name}/log", get(pods::log))
}

/// vHive's own views.
fn own() -> Router<Arc<Shared>> {
    let of_service = "/vhive/v1/namespaces/{namespace}/services/{name}";
    let snapshot = "/vhive/v1/snapshots/{digest}/{runtime}";
    // An archive is as long as it is; the store bounds what it takes in.
    let import = post(snapshots::import).layer(DefaultBodyLimit::disable());
    Router::new()
        .route(&format!("{of_service}/describe"), get(views::describe))
        .route(&format!("{of_service}/logs"), get(views::logs))
        .route(&format!("{of_service}/evict"), post(snapshots::evict))
        .route(&format!("{of_service}/snapshot"), post(snapshots::create))
        .route("/vhive/v1/snapshots", get(snapshots::list))
        .route("/vhive/v1/snapshots/gc", post(snapshots::collect))
        .route("/vhive/v1/snapshots/import", import)
        .route(snapshot, get(snapshots::read).delete(snapshots::remove))
        .route(&format!("{snapshot}/archive"), get(snapshots::export))
        .route("/vhive/v1/async/{id}", get(deferred::state).delete(deferred::forget))
        .route("/vhive/v1/async/{id}/reply", get(deferred::reply))
        .route("/vhive/v1/records", get(views::records))
        .route("/vhive/v1/node", get(views::node))
        .route("/vhive/v1/overview", get(dashboard::overview))
        .merge(dashboard::pages())
        .route("/metrics", get(views::metrics))
        .route("/healthz", get(views::healthz))
        .route("/readyz", get(views::healthz))
        .route("/livez", get(views::healthz))
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
