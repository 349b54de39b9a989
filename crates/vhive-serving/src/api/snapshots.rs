//! Snapshots: listed, shown, made ahead of time, removed, and carried as archives.

use std::io::{self, Write};
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::Path;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::{StatusCode, header};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};
use vhive_api::{RevisionKey, RuntimeName};
use vhive_node::{
    Collected, CreateError, ImportError, KeepError, SnapshotId, SnapshotInfo, TakeError,
};

use super::State;
use super::status::Problem;
use crate::status::{GatewayError, chain};

/// Bytes of an archive that are handed on at a time, and how many such pieces may wait.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;

type Named = Path<(String, String)>;

/// `GET /vhive/v1/snapshots`.
pub(super) async fn list(shared: State) -> Json<Vec<SnapshotInfo>> {
    Json(shared.services.node.snapshots().list())
}

/// `GET /vhive/v1/snapshots/{digest}/{runtime}`.
pub(super) async fn read(shared: State, path: Named) -> Result<Json<SnapshotInfo>, Problem> {
    let id = id(&path)?;
    shared.services.node.snapshots().get(&id).map(Json).ok_or_else(|| unknown(&id))
}

/// `DELETE …`: at once, or when its last user is done.
pub(super) async fn remove(shared: State, path: Named) -> Result<Json<Value>, Problem> {
    let id = id(&path)?;
    let store = shared.services.node.snapshots().clone();
    let removed = blocking(move || store.remove(&id)).await?;
    match removed {
        Ok(true) => Ok(Json(json!({"removed": id.to_string()}))),
        Ok(false) => Err(unknown(&id)),
        Err(error) => Err(Problem::internal(format!("snapshot {id} not removed: {error}"))),
    }
}

/// `POST /vhive/v1/snapshots/gc`.
pub(super) async fn collect(shared: State) -> Result<Json<Collected>, Problem> {
    let store = shared.services.node.snapshots().clone();
    blocking(move || store.collect()).await.map(Json)
}

/// `POST …/services/{name}/snapshot`: boots an instance for it unless there is one that fits. A service's
/// name means its latest revision; a revision's, as `GET /vhive/v1/snapshots` tells them, means that one if
/// requests can come to it.
pub(super) async fn create(
    shared: State,
    Path((namespace, name)): Named,
) -> Result<(StatusCode, Json<SnapshotInfo>), Problem> {
    let catalog = &shared.services.catalog;
    let latest = catalog.get(&namespace, &name).map(|entry| Arc::clone(entry.latest()));
    let named = || catalog.route(&RevisionKey::new(&namespace, &name));
    let route = latest.or_else(named).ok_or_else(|| {
        let what =
            format!("{name:?} is neither a service nor a revision that requests can come to");
        Problem::new(StatusCode::NOT_FOUND, "NotFound", what)
    })?;
    let made = shared.services.node.create_snapshot(&route.revision.key).await;
    let (info, new) = made.map_err(|error| match error {
        CreateError::Instance(error) => {
            let error = GatewayError::from(error);
            Problem::new(error.told().status, "InstanceFailed", error.text().trim_end())
        }
        CreateError::Take(
            error @ (TakeError::Busy | TakeError::Unwell | TakeError::Keep(KeepError::Deleted)),
        ) => Problem::new(StatusCode::CONFLICT, "Conflict", chain(&error)),
        CreateError::Take(error @ TakeError::Unsupported(_)) => {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", chain(&error))
        }
        CreateError::Take(error @ TakeError::NoRoom(_)) => {
            Problem::new(StatusCode::INSUFFICIENT_STORAGE, "InsufficientStorage", chain(&error))
        }
        CreateError::Take(error) => Problem::internal(chain(&error)),
    })?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(info)))
}

/// `POST …/services/{name}/evict`: stops what idles now, so that the next request starts cold, and
/// alone: how busy the service was before lets nothing start beside it.
pub(super) async fn evict(
    shared: State,
    Path((namespace, name)): Named,
) -> Result<Json<Value>, Problem> {
    let entry = shared.services.catalog.get(&namespace, &name);
    let entry = entry.ok_or_else(|| Problem::no_service(&name))?;
    let mut gone = 0;
    for route in entry.routes.iter() {
        let key = &route.revision.key;
        shared.services.catalog.poke.forget(key);
        gone += shared.services.node.evict(key).await.unwrap_or(0);
    }
    Ok(Json(json!({"evicted": gone})))
}

/// `GET …/archive`: a tar archive.
pub(super) async fn export(shared: State, path: Named) -> Result<Response, Problem> {
    let id = id(&path)?;
    let store = shared.services.node.snapshots().clone();
    store.get(&id).ok_or_else(|| unknown(&id))?;
    let (pieces, rest) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || {
        let mut out = io::BufWriter::with_capacity(PIECE, Pieces(&pieces));
        let written = store.export(&id, &mut out).map_err(io::Error::other);
        let written = written.and_then(|()| out.flush());
        drop(out);
        if let Err(error) = written {
            // The client sees its reply cut off; if it has gone, nobody minds.
            drop(pieces.blocking_send(Err(error)));
        }
    });
    let stream = futures_util::stream::unfold(rest, |mut rest| async move {
        let piece = rest.recv().await?;
        Some((piece, rest))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-tar")];
    Ok((kind, Body::from_stream(stream)).into_response())
}

/// Hands written bytes to a reply, as fast as its client takes them.
struct Pieces<'a>(&'a mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `POST /vhive/v1/snapshots/import`: takes in such an archive.
pub(super) async fn import(
    shared: State,
    body: Body,
) -> Result<(StatusCode, Json<SnapshotInfo>), Problem> {
    let node = shared.services.node.clone();
    let stream = body.into_data_stream().map_err(io::Error::other);
    let reader = SyncIoBridge::new(StreamReader::new(stream));
    let reader = io::BufReader::with_capacity(PIECE, reader);
    let taken = blocking(move || node.import_snapshot(reader)).await?;
    let info = taken.map_err(|error| {
        let text = chain(&error);
        match error {
            ImportError::Exists(_) => Problem::new(StatusCode::CONFLICT, "AlreadyExists", text),
            ImportError::TooLarge(_) => {
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", text)
            }
            ImportError::NoRoom { .. } => {
                Problem::new(StatusCode::INSUFFICIENT_STORAGE, "InsufficientStorage", text)
            }
            ImportError::Write { .. } => Problem::internal(text),
            ImportError::Read(_) | ImportError::Content(_) | ImportError::Unsound(_) => {
                Problem::bad_request(text)
            }
        }
    })?;
    Ok((StatusCode::CREATED, Json(info)))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Problem::internal(format!("it was not done: {error}")))
}

fn id(Path((digest, runtime)): &Named) -> Result<SnapshotId, Problem> {
    let no = || Problem::bad_request("a snapshot is named by 64 hexadecimal digits and a runtime");
    let digest = format!("sha256:{digest}").parse().map_err(|_| no())?;
    let runtime = RuntimeName::ALL.into_iter().find(|known| known.as_str() == runtime);
    Ok(SnapshotId { digest, runtime: runtime.ok_or_else(no)? })
}

fn unknown(id: &SnapshotId) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "NotFound", format!("snapshot {id} not found"))
}
