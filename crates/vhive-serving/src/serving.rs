//! The whole door: opened in one step, drained in one step.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use vhive_node::{Deadline, Node};

use crate::api::{self, TokenError};
use crate::catalog::Catalog;
use crate::config::{Config, ConfigError};
use crate::deferred::{self, Deferred, Invocations};
use crate::eventing::Eventing;
use crate::gateway::{self, Gateway, Listening};
use crate::scaler;
use crate::services::Services;
use crate::store::StoreError;
use crate::tls::{self, CertificateError};
use crate::trace::{Exporters, Tracer};

/// Why the door could not be opened; nothing of it is left open.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration is unfit.
    #[error("unfit configuration")]
    Config(#[from] ConfigError),
    /// The services cannot be read.
    #[error("no services")]
    Store(#[from] StoreError),
    /// The API's token cannot be read or made.
    #[error("no API token")]
    Token(#[from] TokenError),
    /// A certificate cannot be read or made.
    #[error("no certificate")]
    Certificate(#[from] CertificateError),
    /// The socket that functions find the gateway at cannot be used.
    #[error("the gateway cannot listen for functions")]
    Ingress(#[source] io::Error),
    /// A port or socket cannot be opened.
    #[error("{what} cannot listen on {at}; choose another with {key}")]
    Listen {
        /// Which part.
        what: &'static str,
        /// Where.
        at: String,
        /// The configuration's key.
        key: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Where everything listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The gateway.
    pub gateway: SocketAddr,
    /// The gateway with TLS, if there is one.
    pub gateway_tls: Option<SocketAddr>,
    /// The API on loopback, for those who have the token.
    pub api: SocketAddr,
    /// The API's unix socket.
    pub socket: PathBuf,
    /// The file with the token.
    pub token: PathBuf,
}

/// What a drain left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Client connections that were cut off at the deadline.
    pub cut: usize,
}

/// The open door. Dropping it closes everything at once.
#[derive(Debug)]
pub struct Serving {
    addresses: Addresses,
    gateway: Arc<Gateway>,
    listening: Listening,
    api: api::Running,
    tasks: [AbortOnDrop; 7],
    exporters: Exporters,
}

#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// As the async runtime has it.
fn into_listener(socket: std::net::TcpListener) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

impl Serving {
    /// Reads the services from the node's state directory, serves them, and opens gateway and API.
    /// Call it within the async runtime that shall carry it.
    ///
    /// # Errors
    /// [`RunError`].
    pub async fn run(config: Config, node: Node) -> Result<Self, RunError> {
        config.validate()?;
        let state_dir = node.config().state_dir.clone();
        let limits = &config.gateway;
        let catalog = Arc::new(Catalog::new(&limits.domain, limits.idle_connections));
        let store = state_dir.join("state.redb");
        let services =
            Services::open(node.clone(), Arc::clone(&catalog), config.clone(), &store).await?;
        let services = Arc::new(services);

        let quieted = Arc::clone(&catalog);
        let runtime = tokio::runtime::Handle::current();
        node.on_quiesce(move |revision, sandbox| quieted.quiesce(revision, sandbox, &runtime));
        let kept = state_dir.join("async.redb");
        let settings = config.deferred.clone();
        let opened = tokio::task::spawn_blocking(move || Deferred::open(&kept, settings)).await;
        let interrupted = || StoreError::Io {
            path: state_dir.join("async.redb"),
            reason: "interrupted".to_owned(),
        };
        let (deferred, news) = opened.map_err(|_| interrupted())??;
        let (tracer, exporters) = Tracer::new(&config.tracing);
        let kept = state_dir.join("events.redb");
        let (settings, known) = (config.clone(), Arc::clone(&catalog));
        let opened =
            tokio::task::spawn_blocking(move || Eventing::open(&kept, &settings, known)).await;
        let (eventing, events) = opened.map_err(|_| interrupted())??;
        let gateway = Gateway::new(
            node.clone(),
            Arc::clone(&catalog),
            config.gateway.clone(),
            (Arc::clone(&deferred), Arc::clone(&eventing), tracer),
        );
        let limits = &config.gateway;
        let certificate = match (&limits.tls_certificate, &limits.tls_key) {
            (Some(chain), Some(key)) => Some(tls::load(chain, key, &[b"h2", b"http/1.1"])?),
            _ => None,
        };
        let tls = limits.tls_listen.zip(certificate);
        let at = limits.listen.to_string();
        let functions = node.ingress().map_err(RunError::Ingress)?;
        let functions = functions.map(into_listener).transpose().map_err(RunError::Ingress)?;
        let listening = gateway::listen(Arc::clone(&gateway), tls, functions).await;
        let listening = listening.map_err(|(address, source)| RunError::Listen {
            what: "the gateway",
            key: if at == address.to_string() {
                "serving.gateway.listen"
            } else {
                "serving.gateway.tls_listen"
            },
            at: address.to_string(),
            source,
        })?;
        let api = api::run(Arc::clone(&services), Arc::clone(&gateway), listening.address).await?;
        let tick = config.autoscale.tick.0;
        let scaler = AbortOnDrop(tokio::spawn(scaler::run(node, catalog, tick)));
        let losses = AbortOnDrop(tokio::spawn(Arc::clone(&services).follow_losses()));
        let ages = AbortOnDrop(tokio::spawn(Arc::clone(&services).follow_ages()));
        let follower = AbortOnDrop(tokio::spawn(services.follow()));
        let settings = &config.deferred;
        let (attempts, per_service) = (settings.attempts, settings.concurrency.div_ceil(2));
        let invocations = Arc::new(Invocations { attempts, per_service });
        let dispatch = deferred::run(deferred, news, listening.address, invocations);
        let dispatcher = AbortOnDrop(tokio::spawn(dispatch));
        let queue = Arc::clone(&eventing.queue);
        let deliver = deferred::run(queue, events, listening.address, eventing);
        let deliverer = AbortOnDrop(tokio::spawn(deliver));
        let keeper = Arc::clone(&gateway);
        let keeper = AbortOnDrop(tokio::spawn(async move { keeper.ledger.keep().await }));
        let addresses = Addresses {
            gateway: listening.address,
            gateway_tls: listening.tls_address,
            api: api.address,
            socket: api.socket.clone(),
            token: api.token.clone(),
        };
        tracing::info!(
            gateway = %addresses.gateway,
            api = %addresses.api,
            socket = %addresses.socket.display(),
            "serving"
        );
        Ok(Self {
            addresses,
            gateway,
            listening,
            api,
            tasks: [scaler, keeper, follower, ages, losses, dispatcher, deliverer],
            exporters,
        })
    }

    /// Where everything listens.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Takes no more requests, lets those under way finish, and cuts off what is left at the
    /// deadline. Shut the node down afterwards.
    pub async fn shutdown(self, deadline: Deadline) -> Drained {
        let Self { gateway, listening, api, tasks, exporters, .. } = self;
        gateway.deferred.stop();
        gateway.eventing.queue.stop();
        let cut = listening.close(deadline.left()).await;
        drop(tasks);
        gateway.ledger.write();
        exporters.close(deadline.left().min(Duration::from_secs(2))).await;
        api.close(deadline.left().min(Duration::from_secs(2))).await;
        tracing::info!(cut, "gateway drained");
        Drained { cut }
    }
}
