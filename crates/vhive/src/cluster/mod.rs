//! A client of a Kubernetes API over the network: a cluster's, or a node's own.

mod kubeconfig;
#[cfg(test)]
mod tests;

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

pub(crate) use self::kubeconfig::Access;

/// The most that one exchange may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest reply that is read whole.
const MAX_REPLY: usize = 64 << 20;

/// Talks to one API server.
#[derive(Debug)]
pub(crate) struct Cluster {
    server: String,
    client: HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    bearer: Option<HeaderValue>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Cluster {
    /// A client with this access; nothing is connected yet.
    ///
    /// # Errors
    /// Certificates or a token that are none.
    pub(crate) fn new(access: &Access) -> anyhow::Result<Self> {
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls(access)?).https_or_http();
        let builder = match &access.server_name {
            Some(name) => {
                let name = ServerName::try_from(name.clone());
                let name = name.context("tls-server-name is no name")?;
                builder.with_server_name_resolver(FixedServerNameResolver::new(name))
            }
            None => builder,
        };
        let client =
            HyperClient::builder(TokioExecutor::new()).build(builder.enable_http1().build());
        let bearer = |token: &String| {
            let value = HeaderValue::try_from(format!("Bearer {token}"));
            value.context("the token is no header's value")
        };
        let mut bearer = access.token.as_ref().map(bearer).transpose()?;
        bearer.iter_mut().for_each(|value| value.set_sensitive(true));
        let header = |(name, value): &(String, String)| {
            let name = HeaderName::try_from(name).with_context(|| format!("{name} is no header"));
            let value = HeaderValue::try_from(value).context("it is no header's value");
            anyhow::Ok((name?, value?))
        };
        let headers: anyhow::Result<Vec<_>> = access.headers.iter().map(header).collect();
        let headers = headers.context("`as` or what belongs to it (user)")?;
        let server = access.server.trim_end_matches('/').to_owned();
        Ok(Self { server, client, bearer, headers })
    }

    /// Sends a request and gives status and body back, JSON if it is that.
    ///
    /// # Errors
    /// When no reply comes, with the reason.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(u16, Value)> {
        let server = &self.server;
        let bytes = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{server}{path}"))
            .header(CONTENT_TYPE, "application/json");
        if let Some(bearer) = &self.bearer {
            request = request.header(AUTHORIZATION, bearer);
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(bytes.into())).context("no URI of a server")?;
        let exchange = async {
            let reply = self.client.request(request).await?;
            let (head, body) = reply.into_parts();
            let body = Limited::new(body, MAX_REPLY).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
            let text = || Value::from(String::from_utf8_lossy(&body).into_owned());
            let value = serde_json::from_slice(&body).unwrap_or_else(|_| text());
            anyhow::Ok((head.status.as_u16(), value))
        };
        let done = tokio::time::timeout(PATIENCE, exchange).await;
        let done = done.with_context(|| format!("no answer of {server} within {PATIENCE:?}"))?;
        done.with_context(|| format!("cannot talk to {server}"))
    }
}

fn tls(access: &Access) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    match &access.authority {
        Some(pem) => {
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            let found = found.context("the cluster's certificate authority is no PEM")?;
            anyhow::ensure!(!found.is_empty(), "the cluster's certificate authority is empty");
            for one in found {
                roots.add(one).context("the cluster's certificate authority is unfit")?;
            }
        }
        // Those of the host; none is fine until a server shows a certificate.
        None => {
            let found = rustls_native_certs::load_native_certs().certs;
            let (_fit, _unfit) = roots.add_parsable_certificates(found);
        }
    }
    let provider = rustls::crypto::ring::default_provider();
    let config = ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let Some((certificate, key)) = &access.identity else {
        return Ok(config.with_no_client_auth());
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.context("the user's certificate is no PEM")?;
    let key = PrivateKeyDer::from_pem_slice(key).context("the user's key is no PEM")?;
    config.with_client_auth_cert(chain, key).context("the user's certificate and key are unfit")
}
