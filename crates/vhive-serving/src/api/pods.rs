//! Logs of one instance, as `kubectl logs` asks for them.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use http::header;
use serde::Deserialize;
use vhive_api::RevisionKey;
use vhive_node::{Line, LogFollower};

use super::status::Problem;
use super::{Shared, State};
use crate::changes::Watcher;
use crate::kind::Kind;
use crate::objects;

/// What may follow `…/log?`.
///
/// # Source
/// Kubernetes API reference, read log of the specified Pod.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct LogQuery {
    container: String,
    follow: bool,
    timestamps: bool,
    tail_lines: Option<usize>,
    limit_bytes: Option<usize>,
}

/// `GET …/pods/{name}/log`.
pub(super) async fn log(
    shared: State,
    Path((namespace, name)): Path<(String, String)>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query?;
    if !matches!(query.container.as_str(), "" | "user-container") {
        let message = format!("container {} is not valid for pod {name}", query.container);
        return Err(Problem::bad_request(message));
    }
    let not_found = || Problem::not_found(Kind::Pod, &name);
    let routes = shared.services.catalog.routes();
    let mut routes = routes.iter().filter(|route| route.revision.key.namespace == namespace);
    let found = routes.find_map(|route| {
        let sandbox = objects::is_pod_of(&name, &route.revision.key.name)?;
        Some((route.revision.key.clone(), sandbox.to_owned()))
    });
    let (key, sandbox) = found.ok_or_else(not_found)?;
    let node = &shared.services.node;
    let kept = node.logs(&key).ok_or_else(not_found)?;
    let mine = kept.iter().find(|log| log.sandbox.as_str() == sandbox).ok_or_else(not_found)?;
    let skip = query.tail_lines.map_or(0, |tail| mine.lines.len().saturating_sub(tail));
    let mut text = Vec::new();
    for line in &mine.lines[skip..] {
        write(&mut text, line, query.timestamps);
    }
    if let Some(limit) = query.limit_bytes {
        text.truncate(limit);
    }
    if !query.follow {
        return Ok(plain(Body::from(text)));
    }
    let pods = shared.services.watch(Kind::Pod, None).await;
    let following = Following {
        follower: node.follow_logs(&key, true).ok_or_else(not_found)?,
        pods: pods.map_err(|expired| Problem::internal(expired.to_string()))?,
        next: mine.lines.last().map_or(0, |line| line.number + 1),
        timestamps: query.timestamps,
        over: false,
        shared: Arc::clone(&shared.0),
        key,
        sandbox,
    };
    let begun = futures_util::stream::iter([Ok::<_, Infallible>(Bytes::from(text))]);
    let coming = futures_util::stream::unfold(following, Following::more);
    Ok(plain(Body::from_stream(begun.chain(coming))))
}

fn plain(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}

/// What there is, and then what comes, until the instance is gone.
struct Following {
    shared: Arc<Shared>,
    key: RevisionKey,
    sandbox: String,
    follower: LogFollower,
    /// Tells when instances come and go.
    pods: Watcher,
    /// The first line that has not been sent.
    next: u64,
    timestamps: bool,
    over: bool,
}

impl Following {
    fn is_there(&self) -> bool {
        let instances = self.shared.services.node.instances(&self.key);
        let instances = instances.map(|(_, instances)| instances).unwrap_or_default();
        instances.iter().any(|one| one.id.as_str() == self.sandbox)
    }

    async fn more(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        if self.over {
            return None;
        }
        let lines = tokio::select! {
            lines = self.follower.next() => lines,
            changed = self.pods.next() => {
                if changed.is_err() {
                    self.pods = self.shared.services.watch(Kind::Pod, None).await.ok()?;
                }
                Vec::new()
            }
            () = self.shared.end.cancelled() => return None,
        };
        let mut text = Vec::new();
        for (_, line) in lines.iter().filter(|(of, _)| of.as_str() == self.sandbox) {
            if line.number >= self.next {
                write(&mut text, line, self.timestamps);
            }
        }
        self.over = !self.is_there();
        if self.over && lines.is_empty() {
            // Its last words may have come together with its end.
            for (_, line) in self.follower.next().now_or_never().unwrap_or_default() {
                if line.number >= self.next {
                    write(&mut text, &line, self.timestamps);
                }
            }
        }
        Some((Ok(Bytes::from(text)), self))
    }
}

fn write(text: &mut Vec<u8>, line: &Line, timestamps: bool) {
    if timestamps {
        let at = jiff::Timestamp::try_from(line.at).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        text.extend_from_slice(format!("{at:.9} ").as_bytes());
    }
    text.extend_from_slice(line.text.as_bytes());
    text.push(b'\n');
}
