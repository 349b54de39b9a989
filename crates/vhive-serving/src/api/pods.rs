//! Logs of one instance, as `kubectl logs` asks for them.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use http::{StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use vhive_api::RevisionKey;
use vhive_node::{Line, LogFollower};

use super::query::is_true;
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
    follow: String,
    previous: String,
    timestamps: String,
    tail_lines: Option<usize>,
    limit_bytes: Option<usize>,
    since_seconds: Option<i64>,
    since_time: String,
}

impl LogQuery {
    /// From when on lines are wanted, if not from the beginning.
    ///
    /// # Errors
    /// It cannot be read, or two times are given.
    fn since(&self, now: Timestamp) -> Result<Option<Timestamp>, Problem> {
        let refused = |why: String| {
            Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "Invalid",
                format!("PodLogOptions: {why}"),
            )
        };
        match (self.since_seconds, self.since_time.as_str()) {
            (None, "") => Ok(None),
            (Some(_), time) if !time.is_empty() => {
                Err(refused("at most one of sinceTime and sinceSeconds may be given".to_owned()))
            }
            (Some(seconds), _) if seconds < 1 => {
                Err(refused("sinceSeconds must be greater than 0".to_owned()))
            }
            (Some(seconds), _) => Ok(Some(
                now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN),
            )),
            (None, text) => {
                let wrong = |error| refused(format!("sinceTime {text:?}: {error}"));
                text.parse().map(Some).map_err(wrong)
            }
        }
    }
}

/// How lines are told.
#[derive(Clone, Copy, Debug)]
struct Telling {
    timestamps: bool,
    since: Option<Timestamp>,
    /// Bytes that may still be sent.
    left: usize,
}

impl Telling {
    /// Adds a line, as far as it is wanted.
    fn write(&mut self, text: &mut Vec<u8>, line: &Line) {
        let at = Timestamp::try_from(line.at).unwrap_or(Timestamp::UNIX_EPOCH);
        if self.since.is_some_and(|since| at < since) {
            return;
        }
        let time = if self.timestamps { format!("{at:.9} ") } else { String::new() };
        let whole = format!("{time}{}\n", line.text);
        let part = whole.as_bytes().get(..self.left).unwrap_or(whole.as_bytes());
        self.left -= part.len();
        text.extend_from_slice(part);
    }
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
    if is_true(&query.previous) {
        let message =
            format!("previous terminated container \"user-container\" in pod {name:?} not found");
        return Err(Problem::bad_request(message));
    }
    let mut telling = Telling {
        timestamps: is_true(&query.timestamps),
        since: query.since(Timestamp::now())?,
        left: query.limit_bytes.unwrap_or(usize::MAX),
    };
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
        telling.write(&mut text, line);
    }
    if !is_true(&query.follow) || telling.left == 0 {
        return Ok(plain(Body::from(text)));
    }
    let pods = shared.services.watch(Kind::Pod, None).await;
    let following = Following {
        follower: node.follow_logs(&key, true).ok_or_else(not_found)?,
        pods: pods.map_err(|expired| Problem::internal(expired.to_string()))?,
        next: mine.lines.last().map_or(0, |line| line.number + 1),
        telling,
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
    telling: Telling,
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
                self.telling.write(&mut text, line);
            }
        }
        let gone = !self.is_there();
        if gone && lines.is_empty() {
            // Its last words may have come together with its end.
            for (_, line) in self.follower.next().now_or_never().unwrap_or_default() {
                if line.number >= self.next {
                    self.telling.write(&mut text, &line);
                }
            }
        }
        self.over = gone || self.telling.left == 0;
        Some((Ok(Bytes::from(text)), self))
    }
}
