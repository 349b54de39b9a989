//! A listener that accepts nobody but who is there.

use std::io;
use std::net::SocketAddr;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketFlags, accept_with};
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, TcpStream};

/// A listener. To accept until there is nobody, as is usual, ends with a socket that the kernel makes and
/// throws away; it is given back after a grace period of RCU. To a clone that is emulated this alone
/// is a tenth of what its first request costs. To look whether somebody is there costs next to nothing.
pub(crate) struct Listener(AsyncFd<std::net::TcpListener>);

impl Listener {
    pub(crate) fn new(listener: TcpListener) -> io::Result<Self> {
        #[expect(
            deprecated,
            reason = "what took its place is unsafe; a listener's descriptor never moves"
        )]
        Ok(Self(AsyncFd::new(listener.into_std()?)?))
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.get_ref().local_addr()
    }

    /// The next connection. May be cancelled.
    pub(crate) async fn accept(&self) -> io::Result<TcpStream> {
        loop {
            let mut ready = self.0.readable().await?;
            let flags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);
            let accepted = ready.try_io(|listener| Ok(accept_with(listener.get_ref(), flags)?));
            let Ok(accepted) = accepted else { continue };
            // Who comes after this look makes it ready again.
            if !somebody_waits(self.0.get_ref()) {
                ready.clear_ready();
            }
            return TcpStream::from_std(accepted?.into());
        }
    }
}

/// Where that cannot be told, somebody may: whoever has been accepted is not to pay for it.
fn somebody_waits(listener: &std::net::TcpListener) -> bool {
    let mut look = [PollFd::new(listener, PollFlags::IN)];
    poll(&mut look, Some(&Timespec::default())) != Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everybody_is_accepted_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let listener = Listener::new(listener).expect("registered");
        let address = listener.local_addr().expect("it has one");
        for at_once in [1, 3, 1] {
            let mut clients = Vec::new();
            for _ in 0..at_once {
                clients.push(TcpStream::connect(address).await.expect("it listens"));
            }
            let mut names = Vec::new();
            for _ in 0..at_once {
                let accepted = listener.accept().await.expect("somebody is there");
                names.push(accepted.peer_addr().expect("it is connected"));
            }
            let all = clients.iter().map(|one| one.local_addr().expect("it is connected"));
            assert!(all.eq(names), "in the order of their coming");
        }
        let nobody = tokio::time::timeout(std::time::Duration::from_millis(20), listener.accept());
        assert!(nobody.await.is_err(), "there is nobody");
    }
}
