//! The API's port speaks TLS to who begins so, and plain HTTP to others; both need the token.
//!
//! kubectl and its relatives send no token without TLS. The certificate is made once, for loopback
//! only, by an authority whose key is thrown away at once; `vhive kubeconfig` hands it out.

use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use axum::serve::Listener;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::tls::{self, CertificateError};

/// Time that a client has until the connection can be used.
const GREETING: Duration = Duration::from_secs(10);

/// Connections that may be greeted at a time; further ones wait to be accepted.
const GREETED: usize = 1024;

/// First byte of a TLS handshake record.
///
/// # Source
/// RFC 8446 §5.1.
const HANDSHAKE: u8 = 22;

/// Reads the certificate of a state directory, or makes one.
///
/// # Errors
/// [`CertificateError`].
pub(super) fn open(state_dir: &Path) -> Result<TlsAcceptor, CertificateError> {
    let (chain, key) = (state_dir.join("api.crt"), state_dir.join("api.key"));
    if !chain.exists() || !key.exists() {
        make(state_dir, &chain, &key)?;
    }
    tls::load(&chain, &key, &[b"http/1.1"])
}

/// Makes `api.crt` (the certificate and its authority's), `api.ca.crt` and `api.key`.
fn make(state_dir: &Path, chain: &Path, key: &Path) -> Result<(), CertificateError> {
    let mut authority = CertificateParams::new(Vec::<String>::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    authority.distinguished_name.push(DnType::CommonName, "vhive node");
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let mut node = CertificateParams::new(vec!["localhost".to_owned()])?;
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        node.subject_alt_names.push(SanType::IpAddress(address));
    }
    node.distinguished_name.push(DnType::CommonName, "vhive node's API");
    node.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let node_key = KeyPair::generate()?;
    let node = node.signed_by(&node_key, &authority)?;
    let both = format!("{}{}", node.pem(), authority.pem());
    write(&state_dir.join("api.ca.crt"), &authority.pem(), 0o644)?;
    write(key, &node_key.serialize_pem(), 0o600)?;
    write(chain, &both, 0o644)
}

/// Writes a file whole and then renames it.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), CertificateError> {
    let io = |source| CertificateError::Io { path: path.to_owned(), source };
    let draft = path.with_extension("draft");
    drop(fs::remove_file(&draft));
    let opened = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft);
    let mut file = opened.map_err(io)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
    fs::rename(&draft, path).map_err(io)
}

type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Accepts both kinds of connections.
#[derive(Debug)]
pub(super) struct EitherListener {
    address: SocketAddr,
    greeted: mpsc::Receiver<(Stream, SocketAddr)>,
    task: JoinHandle<()>,
}

impl EitherListener {
    /// Begins to accept.
    pub(super) fn new(tcp: TcpListener, address: SocketAddr, tls: TlsAcceptor) -> Self {
        let (send, greeted) = mpsc::channel(GREETED);
        let task = tokio::spawn(accept(tcp, tls, send));
        Self { address, greeted, task }
    }
}

impl Drop for EitherListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener for EitherListener {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Stream, SocketAddr) {
        match self.greeted.recv().await {
            Some(connection) => connection,
            // The task ends only when this listener does.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

async fn accept(mut tcp: TcpListener, tls: TlsAcceptor, send: mpsc::Sender<(Stream, SocketAddr)>) {
    loop {
        // Axum's own way of accepting: it waits when there are no more descriptors.
        let (stream, address) = Listener::accept(&mut tcp).await;
        let Ok(place) = send.clone().reserve_owned().await else { return };
        let tls = tls.clone();
        tokio::spawn(async move {
            match tokio::time::timeout(GREETING, greet(stream, tls)).await {
                Ok(Ok(stream)) => drop(place.send((stream, address))),
                Ok(Err(error)) => tracing::debug!(%address, %error, "no connection to the API"),
                Err(_) => tracing::debug!(%address, "a client of the API says nothing"),
            }
        });
    }
}

async fn greet(stream: TcpStream, tls: TlsAcceptor) -> io::Result<Stream> {
    drop(stream.set_nodelay(true));
    let mut first = [0];
    stream.peek(&mut first).await?;
    if first[0] != HANDSHAKE {
        return Ok(Either::Left(stream));
    }
    tls.accept(stream).await.map(|stream| Either::Right(Box::new(stream)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_certificate_is_made_once_and_its_key_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).unwrap();
        let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        let before = read("api.crt");
        assert_eq!(mode("api.key") & 0o777, 0o600);
        open(dir.path()).unwrap();
        assert_eq!(read("api.crt"), before);
        fs::write(dir.path().join("api.crt"), "nonsense").unwrap();
        let error = open(dir.path()).map(|_| ()).unwrap_err();
        assert!(matches!(error, CertificateError::Unfit { .. }), "{error}");
    }
}
