//! One registry over HTTP: authentication, redirects, timeouts.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, LOCATION, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE};
use http::uri::{Authority, InvalidUri, PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use vhive_api::Digest;

use super::auth::{AuthError, Challenge, Credentials, default_file, lookup};
use super::{PullOptions, next_piece};
use crate::oci::{DOCKER_INDEX, DOCKER_MANIFEST, INDEX, MANIFEST};
use crate::reference::Reference;

/// Redirects followed for one request.
const MAX_REDIRECTS: u32 = 5;
/// Bytes of a token server's answer.
const MAX_TOKEN: usize = 256 << 10;

/// Why a request to a registry failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The registry cannot be reached, or the connection broke.
    #[error("cannot talk to {host}")]
    Connection {
        /// With whom.
        host: String,
        /// What happened.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing came for a while.
    #[error("{host} sent nothing for {limit:?}")]
    Stalled {
        /// Who.
        host: String,
        /// How long we waited.
        limit: Duration,
    },
    /// No certificates to check the registry's against.
    #[error(
        "this host has no root certificates; install them with `apt-get install ca-certificates`"
    )]
    Certificates(#[source] std::io::Error),
    /// The registry wants credentials and there are none, or not the right ones.
    #[error("{registry} denies access ({status}); log in, so that the credentials are in {file}")]
    Denied {
        /// The registry.
        registry: String,
        /// Its answer.
        status: StatusCode,
        /// Where credentials are looked up.
        file: String,
    },
    /// The credentials cannot be used.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// A demand for authentication that we do not understand.
    #[error("{registry} demands an unsupported kind of authentication: {challenge}")]
    Challenge {
        /// The registry.
        registry: String,
        /// Its demand, cut to 200 characters.
        challenge: String,
    },
    /// The token server's answer holds no token.
    #[error("{host} gave no token ({status})")]
    Token {
        /// The token server.
        host: String,
        /// Its answer.
        status: StatusCode,
    },
    /// Too many requests.
    #[error("{host} limits the rate of requests; try again {after}")]
    Rate {
        /// Who.
        host: String,
        /// When.
        after: String,
    },
    /// Any other answer than success.
    #[error("{host} answered {status} to {path}")]
    Status {
        /// Who.
        host: String,
        /// Its answer.
        status: StatusCode,
        /// What was asked.
        path: String,
    },
    /// An address that makes no sense, or that we must not follow.
    #[error("{host} sends us to {to}, which {why}")]
    Redirect {
        /// Who.
        host: String,
        /// Where to, cut to 200 characters.
        to: String,
        /// Why we do not go.
        why: &'static str,
    },
    /// The reference makes no valid address.
    #[error("the reference makes no valid address")]
    Address(#[from] InvalidUri),
}

impl RequestError {
    /// Whether the same request may succeed at once.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Connection { .. } | Self::Stalled { .. } => true,
            Self::Status { status, .. } => status.is_server_error(),
            _ => false,
        }
    }
}

/// What a repository is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    /// By tag or digest.
    Manifest(String),
    Blob(Digest),
}

type Plain = HyperClient<HttpConnector, Empty<Bytes>>;
type Secure = HyperClient<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// A client for one repository; shared by its layers' fetches.
#[derive(Debug)]
pub(crate) struct Client {
    registry: String,
    host: String,
    repository: String,
    plain: bool,
    stall: Duration,
    auth_file: Option<PathBuf>,
    plain_client: Plain,
    secure_client: OnceLock<Secure>,
    /// Value of the `Authorization` header, once the registry has asked for it.
    authorization: Mutex<Option<String>>,
}

#[derive(Debug, Deserialize)]
struct TokenReply {
    token: Option<String>,
    access_token: Option<String>,
}

impl Client {
    pub(crate) fn new(reference: &Reference, options: &PullOptions) -> Self {
        let host = reference.host().to_owned();
        let plain = options.plain_http || is_loopback(&host);
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(options.stall));
        Self {
            registry: reference.registry().to_owned(),
            repository: reference.repository().to_owned(),
            plain,
            host,
            stall: options.stall,
            auth_file: options.auth_file.clone().or_else(default_file),
            plain_client: HyperClient::builder(TokioExecutor::new()).build(connector),
            secure_client: OnceLock::new(),
            authorization: Mutex::new(None),
        }
    }

    /// Asks the repository; the answer is a success or 404.
    pub(crate) async fn get(
        &self,
        resource: &Resource,
    ) -> Result<Response<Incoming>, RequestError> {
        let scheme = if self.plain { "http" } else { "https" };
        let (kind, selector) = match resource {
            Resource::Manifest(selector) => ("manifests", selector.clone()),
            Resource::Blob(digest) => ("blobs", digest.to_string()),
        };
        let (host, repository) = (&self.host, &self.repository);
        let uri: Uri = format!("{scheme}://{host}/v2/{repository}/{kind}/{selector}").parse()?;
        let response = self.follow(uri.clone()).await?;
        let response = if response.status() == StatusCode::UNAUTHORIZED {
            self.authenticate(&response).await?;
            self.follow(uri.clone()).await?
        } else {
            response
        };
        let status = response.status();
        match status {
            _ if status.is_success() => Ok(response),
            StatusCode::NOT_FOUND => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.denied(status)),
            StatusCode::TOO_MANY_REQUESTS => {
                let seconds = header(&response, &RETRY_AFTER);
                let after = seconds.map_or("later".to_owned(), |text| format!("after {text} s"));
                Err(RequestError::Rate { host: self.host.clone(), after })
            }
            _ => {
                let (host, path) = (self.host.clone(), uri.path().to_owned());
                Err(RequestError::Status { host, status, path })
            }
        }
    }

    /// The next piece of an answer's body.
    pub(crate) async fn next(&self, body: &mut Incoming) -> Result<Option<Bytes>, RequestError> {
        let host = || self.host.clone();
        let piece = tokio::time::timeout(self.stall, next_piece(body)).await;
        let piece = piece.map_err(|_| RequestError::Stalled { host: host(), limit: self.stall })?;
        piece.map_err(|e| RequestError::Connection { host: host(), source: Box::new(e) })
    }

    /// Sends a request and follows redirects. Only the registry itself sees the credentials.
    async fn follow(&self, uri: Uri) -> Result<Response<Incoming>, RequestError> {
        let home = uri.authority().cloned();
        let mut uri = uri;
        for _ in 0..=MAX_REDIRECTS {
            let at_home = uri.authority() == home.as_ref();
            let authorization =
                self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let response = self.send(&uri, authorization.filter(|_| at_home)).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let to = header(&response, &LOCATION).unwrap_or_default();
            uri = self.resolve(&uri, &to)?;
        }
        Err(self.astray(&uri.to_string(), "is one redirect too many"))
    }

    fn resolve(&self, base: &Uri, to: &str) -> Result<Uri, RequestError> {
        let invalid = || self.astray(to, "is no address");
        let mut parts = to.parse::<Uri>().map_err(|_| invalid())?.into_parts();
        if parts.authority.is_none() {
            parts.scheme = base.scheme().cloned();
            parts.authority = base.authority().cloned();
        }
        parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
        let uri = Uri::from_parts(parts).map_err(|_| invalid())?;
        self.check_scheme(&uri)?;
        Ok(uri)
    }

    /// Nobody may send us from an encrypted to a plain connection.
    fn check_scheme(&self, uri: &Uri) -> Result<(), RequestError> {
        match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => Ok(()),
            Some(scheme) if *scheme == Scheme::HTTP && self.plain => Ok(()),
            _ => Err(self.astray(&uri.to_string(), "is not encrypted")),
        }
    }

    async fn send(
        &self,
        uri: &Uri,
        authorization: Option<String>,
    ) -> Result<Response<Incoming>, RequestError> {
        let accept = [MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_INDEX, "*/*"].join(", ");
        let mut request = Request::get(uri.clone())
            .header(ACCEPT, accept)
            .header(USER_AGENT, concat!("vhive/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let host = uri.authority().map_or_else(String::new, Authority::to_string);
        let broken = |source| RequestError::Connection { host: host.clone(), source };
        let request = request.body(Empty::new()).map_err(|e| broken(Box::new(e)))?;
        let answer = async {
            if uri.scheme() == Some(&Scheme::HTTPS) {
                self.secure()?.request(request).await.map_err(|e| broken(Box::new(e)))
            } else {
                self.plain_client.request(request).await.map_err(|e| broken(Box::new(e)))
            }
        };
        let answer = tokio::time::timeout(self.stall, answer).await;
        answer.unwrap_or(Err(RequestError::Stalled { host: host.clone(), limit: self.stall }))
    }

    fn secure(&self) -> Result<&Secure, RequestError> {
        if let Some(client) = self.secure_client.get() {
            return Ok(client);
        }
        let provider = rustls::crypto::ring::default_provider();
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(provider)
            .map_err(RequestError::Certificates)?
            .https_only()
            .enable_http1()
            .build();
        let client = HyperClient::builder(TokioExecutor::new()).build(connector);
        Ok(self.secure_client.get_or_init(|| client))
    }

    /// Answers a 401 with what it demands.
    async fn authenticate(&self, response: &Response<Incoming>) -> Result<(), RequestError> {
        let values = response.headers().get_all(WWW_AUTHENTICATE);
        let texts: Vec<&str> = values.iter().filter_map(|value| value.to_str().ok()).collect();
        let challenge = texts.iter().find_map(|text| Challenge::parse(text)).ok_or_else(|| {
            let challenge = texts.join("; ").chars().take(200).collect();
            RequestError::Challenge { registry: self.registry.clone(), challenge }
        })?;
        let credentials = match &self.auth_file {
            Some(file) => lookup(file, &self.registry)?,
            None => None,
        };
        let value = match (challenge, credentials) {
            (Challenge::Basic, Some(credentials)) => credentials.basic(),
            (Challenge::Basic, None) => return Err(self.denied(StatusCode::UNAUTHORIZED)),
            (Challenge::Bearer { realm, service, scope }, credentials) => {
                let scope = scope.unwrap_or(format!("repository:{}:pull", self.repository));
                let query = token_query(service.as_deref(), &scope);
                let separator = if realm.contains('?') { '&' } else { '?' };
                let to = format!("{realm}{separator}{query}");
                let uri: Uri = to.parse().map_err(|_| self.astray(&to, "is no address"))?;
                self.check_scheme(&uri)?;
                self.token(&uri, credentials).await?
            }
        };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(())
    }

    async fn token(
        &self,
        uri: &Uri,
        credentials: Option<Credentials>,
    ) -> Result<String, RequestError> {
        let response = self.send(uri, credentials.as_ref().map(Credentials::basic)).await?;
        let status = response.status();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(self.denied(status));
        }
        let host = uri.host().unwrap_or_default().to_owned();
        let none = || RequestError::Token { host: host.clone(), status };
        let (mut body, mut text) = (response.into_body(), Vec::new());
        while let Some(piece) = self.next(&mut body).await? {
            text.extend_from_slice(&piece);
            if text.len() > MAX_TOKEN {
                return Err(none());
            }
        }
        let reply: TokenReply = serde_json::from_slice(&text).map_err(|_| none())?;
        let token = reply
            .token
            .or(reply.access_token)
            .filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
        Ok(format!("Bearer {}", token.filter(|_| status.is_success()).ok_or_else(none)?))
    }

    fn denied(&self, status: StatusCode) -> RequestError {
        let file = self.auth_file.as_ref();
        let file = file.map_or("~/.docker/config.json".into(), |file| file.display().to_string());
        RequestError::Denied { registry: self.registry.clone(), status, file }
    }

    fn astray(&self, to: &str, why: &'static str) -> RequestError {
        let to = to.chars().take(200).collect();
        RequestError::Redirect { host: self.host.clone(), to, why }
    }
}

fn header(response: &Response<Incoming>, name: &http::HeaderName) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

fn token_query(service: Option<&str>, scope: &str) -> String {
    let encode = |text: &str| -> String {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let one = |byte: u8| {
            if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
        };
        text.bytes().map(one).collect()
    };
    let scope = format!("scope={}", encode(scope));
    service.map_or(scope.clone(), |service| format!("service={}&{scope}", encode(service)))
}

/// Whether a registry is on this host's loopback, where plain HTTP is the rule.
fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_spoken_to_without_encryption() {
        let plain =
            |text: &str, options: &PullOptions| Client::new(&text.parse().unwrap(), options).plain;
        let usual = PullOptions::default();
        for text in ["127.0.0.1:5000/x", "127.8.9.1/x", "localhost:5000/x"] {
            assert!(plain(text, &usual), "{text}");
        }
        for text in ["10.0.0.1:5000/x", "localhost.example/x", "127.example.com/x", "busybox"] {
            assert!(!plain(text, &usual), "{text}");
        }
        assert!(plain("10.0.0.1/x", &PullOptions { plain_http: true, ..usual }));
    }

    #[test]
    fn nobody_sends_us_to_an_unencrypted_place() {
        let base: Uri = "https://r.example/v2/x/blobs/y".parse().unwrap();
        let secure = Client::new(&"r.example/x".parse().unwrap(), &PullOptions::default());
        let to = |to: &str| secure.resolve(&base, to).map(|uri| uri.to_string());
        assert_eq!(to("https://cdn.example/b?s=1").unwrap(), "https://cdn.example/b?s=1");
        assert_eq!(to("/elsewhere").unwrap(), "https://r.example/elsewhere");
        for bad in ["http://cdn.example/b", "ftp://cdn.example/b", "", "not an address"] {
            assert!(matches!(to(bad), Err(RequestError::Redirect { .. })), "{bad}");
        }
    }

    #[test]
    fn token_requests_are_encoded() {
        let query = token_query(Some("a b&c"), "repository:x/y:pull");
        assert_eq!(query, "service=a%20b%26c&scope=repository%3Ax%2Fy%3Apull");
    }
}
