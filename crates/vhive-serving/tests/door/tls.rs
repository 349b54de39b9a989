//! The gateway and the API with TLS.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};
use vhive_node::Runtimes;

use crate::support::{InProcess, Reply, Setup, host, read_head, within};

async fn connect(
    state: &Path,
    address: SocketAddr,
    protocol: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(state.join("api.ca.crt")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::IpAddress(address.ip().into());
    within(TlsConnector::from(Arc::new(config)).connect(name, stream)).await
}

async fn exchange(stream: &mut TlsStream<TcpStream>, request: &str) -> Reply {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut wire = Vec::new();
    let _ = within(stream.read_to_end(&mut wire)).await;
    Reply::parse(&wire)
}

/// Says how the request came.
async fn scheme(mut stream: TcpStream) {
    while let Some((head, _)) = read_head(&mut stream).await {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        let proto = |name: &str, value: &str| name == "x-forwarded-proto" && value == "https";
        let good = lines.clone().any(|(name, value)| proto(name, value))
            && lines
                .clone()
                .any(|(name, value)| name == "forwarded" && value.ends_with(";proto=https"));
        let body = if good { "secure" } else { "naked!" };
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n{body}");
        stream.write_all(reply.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn the_gateway_speaks_tls_on_a_port_of_its_own() {
    // The node's own certificate does for the gateway here: both are on loopback.
    let first = Setup::with_functions(scheme).start().await;
    let (dir, state) = (first.dir.clone(), first.node.config().state_dir.clone());
    first.stop().await;
    let mut setup = Setup::again(Runtimes::new().with(InProcess::new(scheme)), dir);
    setup.serving.gateway.tls_listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    setup.serving.gateway.tls_certificate = Some(state.join("api.crt"));
    setup.serving.gateway.tls_key = Some(state.join("api.key"));
    let world = setup.start().await;
    world.apply("tls", |_| {}).await;
    let address = world.serving.addresses().gateway_tls.unwrap();

    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", host("tls"));
    let mut stream = connect(&state, address, b"http/1.1").await.unwrap();
    let reply = exchange(&mut stream, &request).await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "secure"));
    let stream = connect(&state, address, b"h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    assert_eq!(world.get("tls").await.text(), "naked!", "the other port is as it was");

    // Who does not speak TLS there is let go, and one who says nothing does not hold a drain up.
    let mut naked = TcpStream::connect(address).await.unwrap();
    naked.write_all(request.as_bytes()).await.unwrap();
    let mut rest = Vec::new();
    let _ = within(naked.read_to_end(&mut rest)).await;
    assert!(!rest.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&rest));
    let _silent = TcpStream::connect(address).await.unwrap();
    within(world.stop()).await;
}

#[tokio::test]
async fn the_api_speaks_tls_to_who_begins_so_and_needs_the_token_either_way() {
    let world = crate::support::World::new().await;
    let state = world.node.config().state_dir.clone();
    let address = world.serving.addresses().api;
    let token = std::fs::read_to_string(&world.serving.addresses().token).unwrap();
    let request = |token: &str| {
        format!(
            "GET /version HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer {token}\r\n\
             Connection: close\r\n\r\n"
        )
    };
    for (token, status) in [(token.as_str(), 200), ("wrong", 401)] {
        let mut stream = connect(&state, address, b"http/1.1").await.unwrap();
        assert_eq!(exchange(&mut stream, &request(token)).await.status, status);
        let mut plain = TcpStream::connect(address).await.unwrap();
        plain.write_all(request(token).as_bytes()).await.unwrap();
        let mut wire = Vec::new();
        within(plain.read_to_end(&mut wire)).await.unwrap();
        assert_eq!(Reply::parse(&wire).status, status);
    }
    // One who begins with TLS and goes on with noise hurts nobody else.
    let mut noise = TcpStream::connect(address).await.unwrap();
    noise.write_all(&[22, 3, 1, 255, 255, 0, 0]).await.unwrap();
    let mut stream = connect(&state, address, b"http/1.1").await.unwrap();
    assert_eq!(exchange(&mut stream, &request(&token)).await.status, 200);
    tokio::time::timeout(Duration::from_secs(10), world.stop()).await.unwrap();
}

#[tokio::test]
async fn an_unfit_certificate_is_named_before_anything_is_opened() {
    let mut setup = Setup::new();
    setup.serving.gateway.tls_listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let half = setup.serving.validate().unwrap_err();
    assert_eq!(half.key, "gateway.tls_listen");
    let path = setup.dir.path().join("bad.crt");
    std::fs::write(&path, "no certificate").unwrap();
    setup.serving.gateway.tls_certificate = Some(path.clone());
    setup.serving.gateway.tls_key = Some(path.clone());
    let images = vhive_image::ImageStore::open(setup.dir.path().join("images")).unwrap();
    let node = vhive_node::Node::open(setup.node, setup.runtimes, images, None).await.unwrap();
    let error = vhive_serving::Serving::run(setup.serving, node).await.expect_err("unfit");
    let source = std::error::Error::source(&error).expect("has a cause").to_string();
    assert!(source.contains(path.to_str().unwrap()), "{source}");
}
