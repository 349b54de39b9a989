//! Accepting clients, and letting them go.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulConnection;
use pin_project_lite::pin_project;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

use super::Gateway;
use super::flight::{Check, Client, Timer};

/// The open port. Closes when told to, or when dropped.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) address: SocketAddr,
    end: Arc<End>,
    tasks: TaskTracker,
}

/// How far the end of all connections has come: an atomic that every poll may look at, and tokens
/// that wake the tasks.
#[derive(Debug, Default)]
struct End {
    stage: AtomicU8,
    drain: CancellationToken,
    abort: CancellationToken,
}

const DRAINING: u8 = 1;
const ABORTED: u8 = 2;

impl End {
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

/// Opens the port and serves what comes.
///
/// # Errors
/// Any I/O error of opening the port.
pub(crate) async fn listen(gateway: Arc<Gateway>) -> io::Result<Listening> {
    let listener = TcpListener::bind(gateway.config.listen).await?;
    let address = listener.local_addr()?;
    let (end, tasks) = (Arc::<End>::default(), TaskTracker::new());
    let accept = Accept { gateway, listener, end: Arc::clone(&end), tasks: tasks.clone() };
    tasks.spawn(accept.run());
    Ok(Listening { address, end, tasks })
}

struct Accept {
    gateway: Arc<Gateway>,
    listener: TcpListener,
    end: Arc<End>,
    tasks: TaskTracker,
}

impl Accept {
    async fn run(self) {
        let room = Arc::new(Semaphore::new(self.gateway.config.max_connections));
        let builder = builder(&self.gateway);
        loop {
            let next = async {
                let permit = Arc::clone(&room).acquire_owned().await;
                (permit, self.listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                next = next => next,
                () = self.end.drain.cancelled() => return,
            };
            match accepted {
                Ok((io, peer)) => {
                    let connection = self.connection(&builder, io, peer);
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
        builder: &Builder<TokioExecutor>,
        io: TcpStream,
        peer: SocketAddr,
    ) -> impl Future<Output = ()> + Send + 'static {
        if let Err(error) = io.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY not set");
        }
        let address = peer.ip().to_canonical().to_string().into_boxed_str();
        let client = Client::new(Arc::clone(&self.gateway), address);
        let builder = builder.clone();
        let end = Arc::clone(&self.end);
        async move {
            let for_requests = Arc::clone(&client);
            let service = service_fn(move |request| {
                let client = Arc::clone(&for_requests);
                async move { Ok::<_, Infallible>(Gateway::handle(&client, request).await) }
            });
            let idle = client.gateway.config.head_timeout.0;
            let serve = Serve {
                connection: builder.serve_connection(TokioIo::new(io), service),
                settle: Settle(client),
                timer: Timer::new(Instant::now() + idle),
                idle,
                drain: end.drain.clone().cancelled_owned(),
                abort: end.abort.clone().cancelled_owned(),
                end,
                draining: false,
                registered: false,
            };
            serve.await;
        }
    }
}

fn builder(gateway: &Gateway) -> Builder<TokioExecutor> {
    let max_head = usize::try_from(gateway.config.max_head.0).unwrap_or(usize::MAX);
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().max_buf_size(max_head).half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(max_head).unwrap_or(u32::MAX))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(8 << 20)
        .max_concurrent_streams(1000);
    builder
}

pin_project! {
    /// One client connection: hyper's, and around it what hyper does not do — records are written
    /// once replies have left, idle and stuck clients are let go, a drain is begun.
    struct Serve<C> {
        #[pin]
        connection: C,
        settle: Settle,
        timer: Timer,
        idle: Duration,
        #[pin]
        drain: WaitForCancellationFutureOwned,
        #[pin]
        abort: WaitForCancellationFutureOwned,
        end: Arc<End>,
        draining: bool,
        registered: bool,
    }
}

/// Settles what is left when the connection goes.
struct Settle(Arc<Client>);

impl Drop for Settle {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<C> Future for Serve<C>
where
    C: GracefulConnection,
    C::Error: std::fmt::Display,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let polled = this.connection.as_mut().poll(cx);
        this.settle.0.settle();
        if let Poll::Ready(ended) = polled {
            if let Err(error) = ended {
                tracing::debug!(%error, "client connection ended");
            }
            return Poll::Ready(());
        }
        // A task keeps its waker, so what can wake it is polled once, and then only looked at.
        if !*this.registered {
            let _pending = this.drain.poll(cx);
            let _pending = this.abort.poll(cx);
        }
        let stage = this.end.stage.load(Ordering::Acquire);
        if stage == ABORTED {
            return Poll::Ready(());
        }
        if stage == DRAINING && !*this.draining {
            *this.draining = true;
            this.connection.as_mut().graceful_shutdown();
            if this.connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
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
