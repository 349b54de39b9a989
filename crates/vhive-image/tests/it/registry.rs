//! Pulling, from a registry of our own on the loopback.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use vhive_api::Digest;
use vhive_image::{FindError, Image, ImageStore, PullError, PullOptions, RequestError};

use crate::support::{Pack, Tar, config_of, pack};

type Body = BoxBody<Bytes, std::io::Error>;
type Hook = Arc<dyn Fn(&Request<Incoming>) -> Option<Response<Body>> + Send + Sync>;
/// Path and `Authorization` of each request.
type Log = Arc<Mutex<Vec<(String, Option<String>)>>>;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// What a registry holds, by path, and what it was asked.
struct Registry {
    address: SocketAddr,
    asked: Log,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn full(status: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed();
    Response::builder().status(status).body(body).unwrap()
}

impl Registry {
    /// Serves `files`; whatever `hook` answers comes first.
    async fn start(files: HashMap<String, (&'static str, Vec<u8>)>, hook: Hook) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Log = Arc::default();
        let (log, files) = (Arc::clone(&asked), Arc::new(files));
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, files, hook) = (Arc::clone(&log), Arc::clone(&files), Arc::clone(&hook));
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let authorization = request.headers().get("authorization");
                    let authorization = authorization.map(|v| v.to_str().unwrap().to_owned());
                    log.lock().unwrap().push((request.uri().to_string(), authorization));
                    let answer =
                        hook(&request).unwrap_or_else(|| match files.get(request.uri().path()) {
                            Some((kind, bytes)) => {
                                let mut answer = full(StatusCode::OK, bytes.clone());
                                answer.headers_mut().insert("content-type", kind.parse().unwrap());
                                answer
                            }
                            None => full(StatusCode::NOT_FOUND, "{}"),
                        });
                    std::future::ready(Ok::<_, Infallible>(answer))
                });
                let server = hyper::server::conn::http1::Builder::new();
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, asked, server }
    }

    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    fn asked(&self) -> Vec<(String, Option<String>)> {
        self.asked.lock().unwrap().clone()
    }
}

/// The files of `a/b:1`: an index, two manifests, two layers.
struct Sample {
    files: HashMap<String, (&'static str, Vec<u8>)>,
    manifest: Digest,
    layers: Vec<Digest>,
}

fn sample() -> Sample {
    let mut files = HashMap::new();
    let mut put = |kind: &str, media: &'static str, bytes: Vec<u8>| {
        let digest = Digest::of(&bytes);
        let size = bytes.len();
        files.insert(format!("/v2/a/b/{kind}/{digest}"), (media, bytes));
        serde_json::json!({ "mediaType": media, "digest": digest, "size": size })
    };
    let tars = [Tar::new().file("one", &[1; 300_000]).end(), Tar::new().file("two", b"2").end()];
    let packed = [pack(&tars[0], Pack::Zstd), pack(&tars[1], Pack::Gzip)];
    let layers = packed.iter().map(|bytes| Digest::of(bytes)).collect();
    let descriptors: Vec<_> =
        packed.into_iter().map(|bytes| put("blobs", "application/octet-stream", bytes)).collect();
    let config = config_of(&tars.iter().map(|tar| Digest::of(tar)).collect::<Vec<_>>());
    let config = put("blobs", "application/octet-stream", config.into_bytes());
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": descriptors,
    });
    let mut descriptor = put("manifests", MANIFEST, manifest.to_string().into_bytes());
    descriptor["platform"] = serde_json::json!({ "os": "linux", "architecture": "amd64" });
    let other = serde_json::json!({
        "digest": Digest::of(b"arm"), "size": 3, "platform": { "os": "linux", "architecture": "arm64" },
    });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [other, descriptor] });
    files.insert("/v2/a/b/manifests/1".to_owned(), (INDEX, index.to_string().into_bytes()));
    Sample { files, manifest: Digest::of(manifest.to_string().as_bytes()), layers }
}

fn silent() -> Hook {
    Arc::new(|_| None)
}

fn options(dir: &Path) -> PullOptions {
    let stall = Duration::from_secs(10);
    PullOptions { stall, auth_file: Some(dir.join("config.json")), ..PullOptions::default() }
}

struct Bed {
    dir: tempfile::TempDir,
    store: ImageStore,
    registry: Registry,
}

impl Bed {
    async fn new(files: HashMap<String, (&'static str, Vec<u8>)>, hook: Hook) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path().join("store")).unwrap();
        Self { dir, store, registry: Registry::start(files, hook).await }
    }

    async fn pull(&self) -> Result<Image, PullError> {
        self.store.pull(&self.registry.name("a/b:1"), &options(self.dir.path())).await
    }

    fn log_in(&self, auth: &str) {
        let text =
            format!("{{\"auths\": {{\"{}\": {{\"auth\": \"{auth}\"}}}}}}", self.registry.address);
        std::fs::write(self.dir.path().join("config.json"), text).unwrap();
    }

    fn blobs(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("store/blobs/sha256")).unwrap().count()
    }
}

#[tokio::test]
async fn an_image_is_pulled_once() {
    let sample = sample();
    let bed = Bed::new(sample.files, silent()).await;
    let image = bed.pull().await.unwrap();
    assert_eq!(image.digest, sample.manifest);
    assert_eq!(image.name, bed.registry.name("a/b:1"));
    assert_eq!(image.layers.iter().map(|layer| layer.digest).collect::<Vec<_>>(), sample.layers);
    assert_eq!(image.config.entrypoint, ["/bin/app"]);
    assert_eq!(image.config.exposed_ports, [80]);
    assert_eq!(bed.store.find(&image.name).unwrap(), image);
    bed.store.rootfs(&image.digest).await.unwrap();
    let before = bed.registry.asked().len();
    assert_eq!(bed.pull().await.unwrap(), image);
    let again: Vec<_> = bed.registry.asked().split_off(before);
    let layer = |path: &str| sample.layers.iter().any(|layer| path.contains(&layer.hex()));
    assert!(!again.iter().any(|(path, _)| layer(path)), "{again:?}");
    // By digest, under a name of its own.
    let pinned = bed.registry.name(&format!("a/b@{}", sample.manifest));
    let image = bed.store.pull(&pinned, &options(bed.dir.path())).await.unwrap();
    assert_eq!((image.name.as_str(), image.digest), (pinned.as_str(), sample.manifest));
}

fn basic(request: &Request<Incoming>) -> Option<Response<Body>> {
    let given = request.headers().get("authorization").map(|value| value.to_str().unwrap());
    // user:right
    if given == Some("Basic dXNlcjpyaWdodA==") {
        return None;
    }
    let mut answer = full(StatusCode::UNAUTHORIZED, "{}");
    answer.headers_mut().insert("www-authenticate", "Basic realm=\"r\"".parse().unwrap());
    Some(answer)
}

#[tokio::test]
async fn basic_credentials_are_used_when_asked_for() {
    let bed = Bed::new(sample().files, Arc::new(basic)).await;
    let denied = |result| matches!(result, Err(PullError::Request(RequestError::Denied { .. })));
    assert!(denied(bed.pull().await));
    bed.log_in("dXNlcjp3cm9uZw==");
    assert!(denied(bed.pull().await));
    bed.log_in("dXNlcjpyaWdodA==");
    bed.pull().await.unwrap();
    assert_eq!(bed.registry.asked()[0].1, None, "nothing is sent before it is asked for");
}

#[tokio::test]
async fn a_credential_helper_is_refused_by_name_when_it_is_needed() {
    let helper = |bed: &Bed| {
        let text = format!("{{\"credHelpers\": {{\"{}\": \"keychain\"}}}}", bed.registry.address);
        std::fs::write(bed.dir.path().join("config.json"), text).unwrap();
    };
    let bed = Bed::new(sample().files, Arc::new(basic)).await;
    helper(&bed);
    let error = bed.pull().await.unwrap_err().to_string();
    assert!(error.contains("\"keychain\"") && error.contains("not supported"), "{error}");
    let open = Bed::new(sample().files, silent()).await;
    helper(&open);
    open.pull().await.unwrap();
}

#[tokio::test]
async fn tokens_are_fetched_and_never_leave_home() {
    let sample = sample();
    // A store of blobs elsewhere, to which the registry redirects.
    let elsewhere = Registry::start(sample.files.clone(), silent()).await;
    let (to, mine) = (elsewhere.address, Arc::new(Mutex::new(None::<SocketAddr>)));
    let me = Arc::clone(&mine);
    let hook: Hook = Arc::new(move |request| {
        let given = request.headers().get("authorization").map(|v| v.to_str().unwrap());
        let path = request.uri().path();
        if path == "/token" {
            assert_eq!(request.uri().query(), Some("service=reg&scope=repository%3Aa%2Fb%3Apull"));
            let token = if given == Some("Basic dXNlcjpyaWdodA==") { "full" } else { "anonymous" };
            return Some(full(StatusCode::OK, format!("{{\"token\": \"{token}\"}}")));
        }
        if given != Some("Bearer full") {
            let realm = format!("http://{}/token", me.lock().unwrap().unwrap());
            let challenge =
                format!("Bearer realm=\"{realm}\",service=\"reg\",scope=\"repository:a/b:pull\"");
            let mut answer = full(StatusCode::UNAUTHORIZED, "{}");
            answer.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
            return Some(answer);
        }
        path.contains("/blobs/").then(|| {
            let mut answer = full(StatusCode::TEMPORARY_REDIRECT, "");
            let location = format!("http://{to}{path}");
            answer.headers_mut().insert("location", location.parse().unwrap());
            answer
        })
    });
    let bed = Bed::new(sample.files, hook).await;
    *mine.lock().unwrap() = Some(bed.registry.address);
    let error = bed.pull().await.unwrap_err();
    assert!(matches!(error, PullError::Request(RequestError::Denied { .. })), "{error}");
    bed.log_in("dXNlcjpyaWdodA==");
    bed.pull().await.unwrap();
    let asked = elsewhere.asked();
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|(_, authorization)| authorization.is_none()), "{asked:?}");
}

#[tokio::test]
async fn what_the_registry_gets_wrong_is_named_and_not_kept() {
    let layer = |sample: &Sample| format!("/v2/a/b/blobs/{}", sample.layers[0]);
    // Other bytes of the same length; fewer; more.
    let changes: [fn(&mut Vec<u8>); 3] =
        [|bytes| bytes[9] ^= 1, |bytes| bytes.truncate(40), |bytes| bytes.push(0)];
    for (at, change) in changes.into_iter().enumerate() {
        let mut sample = sample();
        change(&mut sample.files.get_mut(&layer(&sample)).unwrap().1);
        let bed = Bed::new(sample.files, silent()).await;
        let error = bed.pull().await.unwrap_err();
        match error {
            PullError::Digest { wanted, .. } => assert_eq!((at, wanted), (0, sample.layers[0])),
            PullError::Size { digest, .. } => {
                assert_eq!((at > 0, digest), (true, sample.layers[0]))
            }
            other => panic!("{other}"),
        }
        assert!(bed.blobs() <= 1, "at most the sound layer is kept");
        assert!(bed.store.list().unwrap().is_empty());
    }
    let mut sample = sample();
    let manifest = format!("/v2/a/b/manifests/{}", sample.manifest);
    sample.files.get_mut(&manifest).unwrap().1.push(b' ');
    let bed = Bed::new(sample.files, silent()).await;
    let error = bed.pull().await.unwrap_err();
    assert!(matches!(error, PullError::Digest { wanted, .. } if wanted == sample.manifest));
}

#[tokio::test]
async fn answers_other_than_success_are_told_apart() {
    let answer = |status: u16| -> Hook {
        Arc::new(move |_| Some(full(StatusCode::from_u16(status).unwrap(), "no")))
    };
    let bed = Bed::new(HashMap::new(), silent()).await;
    assert!(matches!(bed.pull().await, Err(PullError::NotFound { .. })));
    for (status, part) in
        [(500, "answered 500"), (403, "denies access"), (429, "rate"), (418, "418")]
    {
        let bed = Bed::new(HashMap::new(), answer(status)).await;
        let error = bed.pull().await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let bed = Bed::new(HashMap::new(), answer(401)).await;
    let error = bed.pull().await.unwrap_err().to_string();
    assert!(error.contains("unsupported kind of authentication"), "{error}");
    let ring: Hook = Arc::new(|_| {
        let mut answer = full(StatusCode::FOUND, "");
        answer.headers_mut().insert("location", "/again".parse().unwrap());
        Some(answer)
    });
    let error = Bed::new(HashMap::new(), ring).await.pull().await.unwrap_err().to_string();
    assert!(error.contains("one redirect too many"), "{error}");
    let files = |text: &str| {
        HashMap::from([("/v2/a/b/manifests/1".to_owned(), (INDEX, text.as_bytes().to_vec()))])
    };
    for (text, part) in [
        ("<html>", "no image manifest"),
        ("{\"schemaVersion\": 1}", "schema version is 1"),
        ("{\"schemaVersion\": 2}", "neither"),
        ("{\"schemaVersion\": 2, \"manifests\": []}", "linux/amd64"),
    ] {
        let error = Bed::new(files(text), silent()).await.pull().await.unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        assert!(source.as_ref().is_some_and(|s| s.contains(part)), "{text}: {source:?}");
    }
}

fn endless(first: Vec<u8>) -> Response<Body> {
    use futures_util::StreamExt as _;
    let head = stream::iter([Ok::<_, std::io::Error>(Frame::data(Bytes::from(first)))]);
    Response::new(BodyExt::boxed(StreamBody::new(head.chain(stream::pending()))))
}

#[tokio::test]
async fn a_silent_registry_does_not_hold_us() {
    let hook: Hook = Arc::new(|request| {
        request.uri().path().contains("/manifests/").then(|| endless(b"{".to_vec()))
    });
    let bed = Bed::new(sample().files, hook).await;
    let quick = PullOptions { stall: Duration::from_millis(200), ..options(bed.dir.path()) };
    let name = bed.registry.name("a/b:1");
    let error = bed.store.pull(&name, &quick).await.unwrap_err();
    assert!(matches!(error, PullError::Request(RequestError::Stalled { .. })), "{error}");
    let short = PullOptions { timeout: Duration::from_millis(200), ..options(bed.dir.path()) };
    let error = bed.store.pull(&name, &short).await.unwrap_err();
    assert!(matches!(error, PullError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn a_broken_transfer_is_tried_again() {
    let sample = sample();
    let path = format!("/v2/a/b/blobs/{}", sample.layers[0]);
    let tries = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&tries);
    let hook: Hook = Arc::new(move |request| {
        let broken = request.uri().path() == path && count.fetch_add(1, Ordering::Relaxed) == 0;
        broken.then(|| {
            let error = std::io::Error::other("the cable was pulled");
            let pieces = [Ok(Frame::data(Bytes::from_static(b"half"))), Err(error)];
            Response::new(BodyExt::boxed(StreamBody::new(stream::iter(pieces))))
        })
    });
    let bed = Bed::new(sample.files, hook).await;
    bed.pull().await.unwrap();
    assert_eq!(tries.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn local_names_are_never_looked_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    for name in ["dev.local/hello", "localhost/hello:1"] {
        let error = store.pull(name, &PullOptions::default()).await.unwrap_err();
        assert!(matches!(error, PullError::LocalOnly(_)), "{error}");
    }
    assert!(matches!(store.find("dev.local/hello"), Err(FindError::Unknown(_))));
    assert!(matches!(store.find("Not A Name"), Err(FindError::Reference(_))));
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let error = store.pull(&format!("{address}/x"), &PullOptions::default()).await.unwrap_err();
    assert!(matches!(error, PullError::Request(RequestError::Connection { .. })), "{error}");
}
