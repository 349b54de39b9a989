//! Streams of changes.
//!
//! # Source
//! Kubernetes API concepts, "Efficient detection of changes", "Watch bookmarks", "Streaming lists".

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{StatusCode, header};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::query::{Query, Selector};
use super::resources::{key, matching};
use super::shape::Shape;
use super::status::Problem;
use super::{Shared, State};
use crate::changes::{Change, Expired, Watcher, What};
use crate::kind::Kind;

/// Time between bookmarks.
const BOOKMARK: Duration = Duration::from_secs(60);

/// Longest watch; a client then goes on from its last version.
const LONGEST: Duration = Duration::from_secs(3600);

/// What is watched, and in which form it is told.
#[derive(Debug)]
pub(super) struct Scope {
    pub(super) kind: Kind,
    pub(super) namespace: Option<String>,
    pub(super) selector: Selector,
    pub(super) shape: Shape,
}

/// One who watches, over HTTP.
#[derive(Debug)]
struct Stream {
    scope: Scope,
    watcher: Watcher,
    /// Lines not yet sent.
    lines: VecDeque<Bytes>,
    /// Objects that the client has, if the selector may let them go again.
    known: Option<HashSet<(String, String)>>,
    /// Up to here, what the client has may differ from what was there when it began to watch.
    begun: u64,
    bookmarks: bool,
    /// When the next one is due, whatever else is told meanwhile.
    next_bookmark: Instant,
    include: String,
    until: Instant,
    /// Of the node.
    end: CancellationToken,
    over: bool,
}

/// Begins a watch.
///
/// # Errors
/// Query parameters that make no sense. A version that is too old is told in the stream, as
/// clients expect it.
pub(super) async fn stream(
    shared: &State,
    scope: Scope,
    query: &Query,
) -> Result<Response, Problem> {
    let (since, initial) = (query.since()?, query.initial_events());
    let from = since.filter(|_| !initial);
    let watcher = match shared.services.watch(scope.kind, from).await {
        Ok(watcher) => watcher,
        Err(expired) => return Ok(body(Body::from(error(&expired)))),
    };
    let limit = query.timeout_seconds.map_or(LONGEST, Duration::from_secs).min(LONGEST);
    let known = scope.selector.may_change().then(HashSet::new);
    let mut stream = Stream {
        scope,
        watcher,
        lines: VecDeque::new(),
        known,
        begun: shared.services.changes.version(),
        bookmarks: query.bookmarks(),
        next_bookmark: Instant::now() + BOOKMARK,
        include: query.include_object.clone(),
        until: Instant::now() + limit,
        end: shared.end.clone(),
        over: false,
    };
    stream.begin(shared, from.is_none(), initial);
    Ok(body(Body::from_stream(futures_util::stream::unfold(stream, Stream::next))))
}

fn body(body: Body) -> Response {
    (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn error(expired: &Expired) -> Bytes {
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": expired.to_string(),
        "reason": "Expired",
        "code": 410,
    });
    line("ERROR", &status)
}

fn line(what: &str, object: &Value) -> Bytes {
    let mut text = json!({"type": what, "object": object}).to_string();
    text.push('\n');
    text.into()
}

impl Stream {
    /// What the client is told first.
    fn begin(&mut self, shared: &Shared, with_present: bool, marked: bool) {
        if with_present || self.known.is_some() {
            let present = matching(shared, &self.scope);
            if let Some(known) = &mut self.known {
                known.extend(present.iter().map(owned));
            }
            if with_present {
                for object in present {
                    self.tell(What::Added.as_str(), object);
                }
            }
        }
        if marked {
            self.bookmark(&json!({"k8s.io/initial-events-end": "true"}));
        }
    }

    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some((Ok(line), self));
            }
            if self.over {
                return None;
            }
            let pause = self.next_bookmark.min(self.until);
            tokio::select! {
                new = self.watcher.next() => match new {
                    Ok(changes) => changes.iter().for_each(|change| self.take(change)),
                    Err(expired) => {
                        self.lines.push_back(error(&expired));
                        self.over = true;
                    }
                },
                () = sleep_until(pause) => {
                    self.over = pause == self.until;
                    self.next_bookmark = pause + BOOKMARK;
                    if self.bookmarks && !self.over {
                        self.bookmark(&Value::Null);
                    }
                }
                () = self.end.cancelled() => return None,
            }
        }
    }

    fn take(&mut self, change: &Change) {
        let object = change.object.value();
        let outside = self.scope.namespace.as_ref().is_some_and(|wanted| key(&object).0 != wanted);
        if outside {
            return;
        }
        let fits = self.scope.selector.matches(&object);
        let what = match &mut self.known {
            None if fits => change.what,
            None => return,
            Some(known) => {
                let id = owned(&object);
                match (change.what, fits) {
                    (What::Deleted, _) | (_, false)
                        if known.remove(&id) || change.version <= self.begun =>
                    {
                        What::Deleted
                    }
                    (What::Deleted, _) | (_, false) => return,
                    (_, true) if known.insert(id) => What::Added,
                    (_, true) => What::Modified,
                }
            }
        };
        self.tell(what.as_str(), object);
    }

    fn tell(&mut self, what: &str, object: Value) {
        let shown = self.scope.shape.one(self.scope.kind, object, &self.include);
        self.lines.push_back(line(what, &shown));
    }

    fn bookmark(&mut self, annotations: &Value) {
        let kind = self.scope.kind;
        let mut object = json!({
            "kind": kind.as_str(),
            "apiVersion": kind.api_version(),
            "metadata": {
                "resourceVersion": self.watcher.seen().to_string(),
                "creationTimestamp": null,
            },
        });
        if !annotations.is_null() {
            object["metadata"]["annotations"] = annotations.clone();
        }
        let shown = match self.scope.shape {
            Shape::Table => self.scope.shape.one(kind, object, "Object"),
            Shape::Whole | Shape::Metadata => object,
        };
        self.lines.push_back(line("BOOKMARK", &shown));
    }
}

fn owned(object: &Value) -> (String, String) {
    let (namespace, name) = key(object);
    (namespace.to_owned(), name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::changes::Changes;

    #[tokio::test(start_paused = true)]
    async fn a_bookmark_comes_every_minute_however_much_else_is_told() {
        let changes = Arc::new(Changes::new(100));
        let begun = Instant::now();
        let mut stream = Stream {
            scope: Scope {
                kind: Kind::Broker,
                namespace: None,
                selector: Selector::default(),
                shape: Shape::Whole,
            },
            watcher: changes.watch(Kind::Broker, None).unwrap(),
            lines: VecDeque::new(),
            known: None,
            begun: 100,
            bookmarks: true,
            next_bookmark: begun + BOOKMARK,
            include: String::new(),
            until: begun + 4 * BOOKMARK,
            end: CancellationToken::new(),
            over: false,
        };
        let busy = Arc::clone(&changes);
        let busy = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(25)).await;
                let object = json!({"metadata": {"name": "a"}});
                let version = busy.next_version();
                busy.publish([Change::new(version, Kind::Broker, What::Modified, &object)]);
            }
        });
        let mut marks = Vec::new();
        while let Some((Ok(line), rest)) = stream.next().await {
            stream = rest;
            let event: Value = serde_json::from_slice(&line).unwrap();
            if event["type"] == "BOOKMARK" {
                let version = event["object"]["metadata"]["resourceVersion"].as_str().unwrap();
                marks.push((begun.elapsed().as_secs(), version.to_owned()));
            }
        }
        busy.abort();
        let wanted = [(60, "102"), (120, "104"), (180, "107")];
        assert_eq!(marks, wanted.map(|(at, version)| (at, version.to_owned())));
    }
}
