//! Against a server that asks for a client's certificate.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    /// Certificate and key in PEM.
    fn sign(&self, name: &str) -> (Vec<u8>, Vec<u8>) {
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("signed");
        (certificate.pem().into_bytes(), key.serialize_pem().into_bytes())
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("an authority");
        roots
    }
}

/// Answers one request of a client that `clients` vouches for with what it said; gives its address.
async fn server(own: &Authority, clients: &Authority) -> String {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = Arc::new(clients.roots());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
    let (certificate, key) = own.sign("localhost");
    let chain = CertificateDer::pem_slice_iter(&certificate).collect::<Result<Vec<_>, _>>();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(chain.expect("PEM"), PrivateKeyDer::from_pem_slice(&key).expect("PEM"))
        .expect("a server");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut said = vec![0; 4096];
            let read = stream.read(&mut said).await.unwrap_or(0);
            let said = Value::from(String::from_utf8_lossy(&said[..read])).to_string();
            let reply = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{said}", said.len());
            stream.write_all(reply.as_bytes()).await.expect("written");
        }
    });
    format!("https://localhost:{port}")
}

fn on_one_thread<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(test)
}

#[test]
fn a_certificate_is_shown_and_who_we_act_as_is_said() {
    on_one_thread(async {
        let (servers, clients) = (Authority::new(), Authority::new());
        let access = Access {
            server: server(&servers, &clients).await,
            authority: Some(servers.0.pem().into_bytes()),
            identity: Some(clients.sign("me")),
            headers: vec![
                ("impersonate-user".to_owned(), "jo".to_owned()),
                ("impersonate-group".to_owned(), "a".to_owned()),
                ("impersonate-group".to_owned(), "b".to_owned()),
            ],
            ..Access::default()
        };
        let call = async |access: &Access| {
            Cluster::new(access).expect("a client").call(Method::GET, "/x", None).await
        };
        let (status, said) = call(&access).await.expect("an answer");
        let said = said.as_str().unwrap_or_default();
        for wanted in
            ["GET /x", "impersonate-user: jo", "impersonate-group: a", "impersonate-group: b"]
        {
            assert!(status == 200 && said.contains(wanted), "{wanted} in {said}");
        }

        for unknown in [
            Access { identity: None, ..access.clone() },
            Access { identity: Some(servers.sign("me")), ..access.clone() },
            Access { authority: Some(clients.0.pem().into_bytes()), ..access.clone() },
        ] {
            assert!(call(&unknown).await.is_err(), "{unknown:?}");
        }
        let bad = Access { headers: vec![("impersonate-extra-a b".into(), "x".into())], ..access };
        let error = format!("{:#}", Cluster::new(&bad).expect_err("refused"));
        assert!(error.contains("impersonate-extra-a b"), "{error}");
    });
}
