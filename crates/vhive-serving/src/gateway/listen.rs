//! Accepting clients, and letting them go.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulConnection;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

use super::Gateway;
use super::crowd::Crowd;
use super::flight::{Check, Client};
use super::plain::{self, HandedOver};
use super::replay::Replay;
use super::reply::ReplyBody;
use super::timer::Timer;
use super::upgrade;

/// The open port. Closes when told to, or when dropped.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) address: SocketAddr,
    /// Where it speaks TLS.
    pub(crate) tls_address: Option<SocketAddr>,
    end: Arc<End>,
    tasks: TaskTracker,
}

/// How far the end of all connections has come: an atomic that every poll may look at, and tokens
/// that wake the tasks.
#[derive(Debug, Default)]
pub(super) struct End {
    stage: AtomicU8,
    drain: CancellationToken,
    abort: CancellationToken,
}

/// What a tunnel has once a drain begins.
const FAREWELL: Duration = Duration::from_secs(5);

const DRAINING: u8 = 1;
const ABORTED: u8 = 2;

impl End {
    /// Whether no request should follow those that are being served.
    pub(super) fn is_draining(&self) -> bool {
        self.stage.load(Ordering::Acquire) >= DRAINING
    }

    fn drain(&self) {
        self.stage.fetch_max(DRAINING, Ordering::AcqRel);
        self.drain.cancel();
    }

    fn abort(&self) {
        self.stage.fetch_max(ABORTED, Ordering::AcqRel);
        self.drain.cancel();
        self.abort.cancel();
    }
}

impl Listening {
    /// Takes no more connections, lets those that serve a request finish it, and cuts off what is
    /// left at the deadline. Says how many connections were cut off.
    pub(crate) async fn close(self, left: Duration) -> usize {
        self.end.drain();
        self.tasks.close();
        if tokio::time::timeout(left, self.tasks.wait()).await.is_ok() {
            return 0;
        }
        let cut = self.tasks.len();
        self.end.abort();
        self.tasks.wait().await;
        cut
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.end.abort();
    }
}

/// Opens the port, and the one for TLS if there is to be one, and serves what comes there and from
/// functions.
///
/// # Errors
/// Any I/O error of opening a port, and which.
pub(crate) async fn listen(
    gateway: Arc<Gateway>,
    tls: Option<(SocketAddr, TlsAcceptor)>,
    functions: Option<TcpListener>,
) -> Result<Listening, (SocketAddr, io::Error)> {
    let (listener, address) = bind(gateway.config.listen).await?;
    let (end, tasks) = (Arc::<End>::default(), TaskTracker::new());
    let most = gateway.config.max_connections;
    let crowd = Arc::new(Crowd::new(most));
    let of_crowd = |crowd, listener, tls| Accept {
        gateway: Arc::clone(&gateway),
        listener,
        tls,
        crowd,
        end: Arc::clone(&end),
        tasks: tasks.clone(),
    };
    let accept = |listener, tls| of_crowd(Arc::clone(&crowd), listener, tls);
    let mut tls_address = None;
    if let Some((at, acceptor)) = tls {
        let (listener, address) = bind(at).await?;
        tls_address = Some(address);
        tasks.spawn(accept(listener, Some(acceptor)).run());
    }
    tasks.spawn(accept(listener, None).run());
    if let Some(listener) = functions {
        // Functions that connect without end take no room from anybody else.
        tasks.spawn(of_crowd(Arc::new(Crowd::new(most)), listener, None).run());
    }
    Ok(Listening { address, tls_address, end, tasks })
}

async fn bind(at: SocketAddr) -> Result<(TcpListener, SocketAddr), (SocketAddr, io::Error)> {
    let bound = TcpListener::bind(at).await;
    let named = bound.and_then(|listener| Ok((listener.local_addr()?, listener)));
    named.map(|(address, listener)| (listener, address)).map_err(|error| (at, error))
}

struct Accept {
    gateway: Arc<Gateway>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    /// Of all clients from outside together, or of all functions.
    crowd: Arc<Crowd>,
    end: Arc<End>,
    tasks: TaskTracker,
}

impl Accept {
    async fn run(self) {
        let builders = Arc::new(Builders::new(&self.gateway));
        loop {
            let next = async {
                let accepted = self.listener.accept().await;
                // Nobody makes room before somebody has come.
                (self.crowd.enter().await, accepted)
            };
            let (permit, accepted) = tokio::select! {
                next = next => next,
                () = self.end.drain.cancelled() => return,
            };
            match accepted {
                Ok((io, peer)) => {
                    let connection = self.connection(&builders, io, peer);
                    self.tasks.spawn(async move {
                        connection.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Out of descriptors or memory, or a client that left early: pause, go on.
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    fn connection(
        &self,
        builders: &Arc<Builders>,
        io: TcpStream,
        peer: SocketAddr,
    ) -> impl Future<Output = ()> + Send + 'static {
        if let Err(error) = io.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY not set");
        }
        let address = peer.ip().to_canonical().to_string().into_boxed_str();
        let client = Client::new(Arc::clone(&self.gateway), address, self.tls.is_some());
        self.crowd.add(&client);
        let (builders, end) = (Arc::clone(builders), Arc::clone(&self.end));
        let tls = self.tls.clone();
        async move {
            let mut watch = pin!(Watch::new(Arc::clone(&client), Arc::clone(&end)));
            if let Some(tls) = tls {
                let limit = client.gateway.config.head_timeout.0;
                let dismissed = std::future::poll_fn(|cx| {
                    client.wake_by(cx.waker());
                    if client.is_dismissed() { Poll::Ready(()) } else { Poll::Pending }
                });
                let greeted = tokio::select! {
                    greeted = tokio::time::timeout(limit, tls.accept(io)) => greeted,
                    () = dismissed => return,
                    () = end.drain.cancelled() => return,
                };
                match greeted {
                    Ok(Ok(io)) => {
                        let over = (Replay::new(Bytes::new(), io, &client), false);
                        Box::pin(by_hyper(&builders, client, over, watch)).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "no TLS with a client"),
                    Err(_) => tracing::debug!("a client did not begin with TLS in time"),
                }
                return;
            }
            let over = if client.gateway.config.by_hyper_only {
                HandedOver { io, read: Bytes::new(), begun: false }
            } else {
                let plain = Plain { serve: plain::serve(io, Arc::clone(&client), end) };
                match (Serve { connection: plain, watch: watch.as_mut(), draining: false }).await {
                    Some(Some(over)) => over,
                    Some(None) | None => return,
                }
            };
            // Rare, and large: not part of the task of a connection that never comes here.
            let over = (Replay::new(over.read, over.io, &client), over.begun);
            Box::pin(by_hyper(&builders, client, over, watch)).await;
        }
    }
}

/// Serves what the short way does not.
async fn by_hyper<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    builders: &Builders,
    client: Arc<Client>,
    (io, begun): (Replay<I>, bool),
    watch: Pin<&mut Watch>,
) {
    let served = Arc::clone(&client);
    let service = service_fn(move |request| {
        let client = Arc::clone(&served);
        async move { Ok::<_, Infallible>(Gateway::handle(&client, request).await) }
    });
    let (abort, drain) = (watch.end.abort.clone(), watch.end.drain.clone());
    if begun {
        // The builder of either version would look for the preface of HTTP/2 once more.
        let connection = builders.http1.serve_connection(io, service).with_upgrades();
        if let Some(Err(error)) = (Serve { connection, watch, draining: false }).await {
            tracing::debug!(%error, "client connection ended");
        }
    } else {
        let connection = builders.any.serve_connection_with_upgrades(io, service);
        let connection = EitherVersion { connection };
        if let Some(Err(error)) = (Serve { connection, watch, draining: false }).await {
            tracing::debug!(%error, "client connection ended");
        }
    }
    tokio::select! {
        () = upgrade::run_tunnel(&client) => {}
        () = abort.cancelled() => {}
        // What has no end of its own is given a moment to come to one.
        () = async { drain.cancelled().await; tokio::time::sleep(FAREWELL).await } => {}
    }
}

/// How hyper serves a connection from its beginning, and after it has been used already.
#[derive(Debug)]
struct Builders {
    any: Builder<TokioExecutor>,
    http1: http1::Builder,
}

impl Builders {
    fn new(gateway: &Gateway) -> Self {
        let max_head = usize::try_from(gateway.config.max_head.0).unwrap_or(usize::MAX);
        let mut any = Builder::new(TokioExecutor::new());
        any.http1().max_buf_size(max_head).half_close(false);
        any.http2()
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(max_head).unwrap_or(u32::MAX))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(8 << 20)
            .max_concurrent_streams(1000);
        let mut http1 = http1::Builder::new();
        http1.max_buf_size(max_head).half_close(false);
        Self { any, http1 }
    }
}

/// A connection that can be told to take no more requests.
trait Drain: Future {
    /// Whether replies leave behind the back of the code that makes them, so that their records
    /// must be settled afterwards.
    const SETTLES: bool;

    /// Called once, before the next poll.
    fn drain(self: Pin<&mut Self>);
}

impl<I, S> Drain for http1::UpgradeableConnection<Replay<I>, S>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = ReplyBody>,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
{
    const SETTLES: bool = true;

    fn drain(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<C: GracefulConnection> Drain for EitherVersion<C> {
    const SETTLES: bool = true;

    fn drain(self: Pin<&mut Self>) {
        self.project().connection.graceful_shutdown();
    }
}

pin_project! {
    /// A connection that may be HTTP/1.1 or HTTP/2.
    struct EitherVersion<C> {
        #[pin]
        connection: C,
    }
}

impl<C: GracefulConnection> Future for EitherVersion<C> {
    type Output = C::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        self.project().connection.poll(cx)
    }
}

pin_project! {
    /// The short way looks at the stage by itself.
    struct Plain<F> {
        #[pin]
        serve: F,
    }
}

impl<F: Future> Future for Plain<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.project().serve.poll(cx)
    }
}

impl<F: Future> Drain for Plain<F> {
    const SETTLES: bool = false;

    fn drain(self: Pin<&mut Self>) {}
}

pin_project! {
    /// What is looked at around a client's connection: idle and stuck clients are let go, a drain
    /// is begun.
    struct Watch {
        settle: Settle,
        timer: Timer,
        idle: Duration,
        #[pin]
        drain: WaitForCancellationFutureOwned,
        #[pin]
        abort: WaitForCancellationFutureOwned,
        end: Arc<End>,
        registered: bool,
    }
}

impl Watch {
    fn new(client: Arc<Client>, end: Arc<End>) -> Self {
        let idle = client.gateway.config.head_timeout.0;
        Self {
            settle: Settle(client),
            timer: Timer::new(Instant::now() + idle),
            idle,
            drain: end.drain.clone().cancelled_owned(),
            abort: end.abort.clone().cancelled_owned(),
            end,
            registered: false,
        }
    }

    /// Ready when the connection should be given up.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        // A task keeps its waker, so what can wake it is polled once, and then only looked at.
        if !*this.registered {
            let _pending = this.drain.poll(cx);
            let _pending = this.abort.poll(cx);
            this.settle.0.wake_by(cx.waker());
        }
        if this.end.stage.load(Ordering::Acquire) == ABORTED || this.settle.0.is_dismissed() {
            return Poll::Ready(());
        }
        if !*this.registered || this.timer.may_have_fired() {
            loop {
                match this.settle.0.check(Instant::now(), *this.idle) {
                    Check::Again(at) => this.timer.set(at),
                    Check::Idle | Check::Overdue => return Poll::Ready(()),
                }
                if this.timer.poll(cx).is_pending() {
                    break;
                }
            }
        }
        *this.registered = true;
        Poll::Pending
    }
}

/// Settles what is left when the connection goes.
#[derive(Debug)]
struct Settle(Arc<Client>);

impl Drop for Settle {
    fn drop(&mut self) {
        self.0.close();
    }
}

pin_project! {
    /// One client connection under watch; nothing comes of one that is given up.
    struct Serve<'a, C> {
        #[pin]
        connection: C,
        watch: Pin<&'a mut Watch>,
        draining: bool,
    }
}

impl<C: Drain> Future for Serve<'_, C> {
    type Output = Option<C::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let polled = this.connection.as_mut().poll(cx);
        if C::SETTLES {
            this.watch.settle.0.settle();
        }
        if let Poll::Ready(ended) = polled {
            return Poll::Ready(Some(ended));
        }
        if this.watch.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        if !*this.draining && this.watch.end.is_draining() {
            *this.draining = true;
            this.connection.as_mut().drain();
            if let Poll::Ready(ended) = this.connection.as_mut().poll(cx) {
                return Poll::Ready(Some(ended));
            }
        }
        Poll::Pending
    }
}
