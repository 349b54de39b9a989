//! Images are looked up when a revision is made, and never again.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use vhive_api::{Digest, RuntimeName};
use vhive_image::{ImageStore, PullOptions};
use vhive_node::Runtimes;

use crate::support::{InProcess, Setup, World};

const SERVING: &str = "/apis/serving.knative.dev/v1/namespaces/default";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What a registry holds, by path, with its media type.
type Files = Arc<Mutex<HashMap<String, (&'static str, Vec<u8>)>>>;

/// A registry on the loopback; its address.
async fn registry(files: &Files) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let files = Arc::clone(files);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let files = Arc::clone(&files);
            let service = service_fn(move |request: Request<Incoming>| {
                let found = files.lock().unwrap().get(request.uri().path()).cloned();
                let (status, (kind, bytes)) = match found {
                    Some(found) => (StatusCode::OK, found),
                    None => (StatusCode::NOT_FOUND, ("application/json", b"{}".to_vec())),
                };
                let reply = Response::builder().status(status).header("content-type", kind);
                let reply = reply.body(Full::new(Bytes::from(bytes))).unwrap();
                std::future::ready(Ok::<_, Infallible>(reply))
            });
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

/// Puts an image behind the tag, in the place of what was there; its manifest's digest.
fn push(files: &Files, variable: &str) -> String {
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": ["/app"], "Env": [variable]},
        "rootfs": {"type": "layers", "diff_ids": []},
    });
    let config = config.to_string().into_bytes();
    let digest = Digest::of(&config);
    let media = "application/vnd.oci.image.config.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
        "config": {"mediaType": media, "digest": digest, "size": config.len()},
    });
    let manifest = manifest.to_string().into_bytes();
    let of_manifest = Digest::of(&manifest);
    let mut files = files.lock().unwrap();
    files.insert(format!("/v2/hello/blobs/{digest}"), (media, config));
    for name in ["latest".to_owned(), of_manifest.to_string()] {
        files.insert(format!("/v2/hello/manifests/{name}"), (MANIFEST, manifest.clone()));
    }
    of_manifest.to_string()
}

/// Revisions with the ends of their images' references.
async fn digests(world: &World) -> Vec<(String, String)> {
    let (_, list) = world.api("GET", &format!("{SERVING}/revisions"), None).await;
    let each = list["items"].as_array().unwrap().iter().map(|one| {
        let image = one["status"]["containerStatuses"][0]["imageDigest"].as_str().unwrap();
        let digest = image.split_once('@').unwrap().1;
        (one["metadata"]["name"].as_str().unwrap().to_owned(), digest.to_owned())
    });
    each.collect()
}

#[tokio::test]
async fn a_tag_that_moves_concerns_the_next_revision_only() {
    let files = Files::default();
    let image = format!("{}/hello:latest", registry(&files).await);
    let first = push(&files, "A=1");
    // `sim` looks nothing up. Nothing is started here.
    let runtime = InProcess::new(async |_| {}).named(RuntimeName::Crun);
    let setup = Setup::of(Runtimes::new().with(runtime));
    let world = setup.start().await;
    let document = |variant: &'static str| {
        let image = image.clone();
        move |document: &mut Value| {
            let spec = &mut document["spec"]["template"]["spec"];
            spec["runtimeClassName"] = "crun".into();
            spec["containers"][0]["image"] = image.into();
            spec["containers"][0]["env"] = json!([{"name": "VARIANT", "value": variant}]);
        }
    };
    let (status, made) = world.apply("hello", document("1")).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(digests(&world).await, [("hello-00001".to_owned(), first.clone())]);

    let second = push(&files, "A=2");
    assert_ne!(first, second);
    let store = ImageStore::open(world.dir.path().join("images")).unwrap();
    let pulled = store.pull(&image, &PullOptions::default()).await.unwrap();
    assert_eq!(pulled.digest.to_string(), second, "the tag has moved");
    // The same template is the same revision, whatever its tag means now.
    assert_eq!(world.apply("hello", document("1")).await.0, 200);
    assert_eq!(digests(&world).await, [("hello-00001".to_owned(), first.clone())]);
    assert_eq!(world.apply("hello", document("2")).await.0, 200);
    let both = [("hello-00001".to_owned(), first), ("hello-00002".to_owned(), second)];
    assert_eq!(digests(&world).await, both);

    let dir = world.dir.clone();
    world.stop().await;
    let runtime = InProcess::new(async |_| {}).named(RuntimeName::Crun);
    let world = Setup::again(Runtimes::new().with(runtime), dir).start().await;
    assert_eq!(digests(&world).await, both, "also after a restart");
    world.stop().await;
}
