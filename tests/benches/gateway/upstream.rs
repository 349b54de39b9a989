//! The function behind every proxy: the least that answers HTTP/1.1.
#![expect(clippy::print_stdout, reason = "it tells its parent where it listens")]

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const REPLY: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, vHive\n";

/// Answers every head with the same reply until killed.
pub(crate) fn run() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        loop {
            let (mut stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let mut buffer = vec![0; 8192];
                let mut have = 0;
                while let Ok(got @ 1..) = stream.read(&mut buffer[have..]).await {
                    have += got;
                    if buffer[..have].ends_with(b"\r\n\r\n") {
                        have = 0;
                        if stream.write_all(REPLY).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    })
}
