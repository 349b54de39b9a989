//! Requests and replies as a function sees them.

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One complete request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Path without the query.
    pub path: String,
    /// What follows the `?`, as sent.
    pub query: String,
    /// The whole body.
    pub body: Bytes,
}

impl Request {
    /// Reads the body as JSON; an empty body means `{}`.
    ///
    /// # Errors
    /// The reply to send when the body is not what `T` wants.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Reply> {
        let body: &[u8] = if self.body.is_empty() { b"{}" } else { &self.body };
        serde_json::from_slice(body).map_err(|error| Reply::bad_request(&error))
    }

    /// Reads the query `key=number&…` if there is one, else the body as JSON.
    ///
    /// # Errors
    /// The reply to send when neither is what `T` wants.
    pub fn numbers<T: DeserializeOwned>(&self) -> Result<T, Reply> {
        if self.query.is_empty() {
            return self.json();
        }
        let mut fields = serde_json::Map::new();
        for pair in self.query.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let number = serde_json::from_str(value)
                .map_err(|_| Reply::bad_request(&format!("{key}={value:?} is not a number")))?;
            fields.insert(key.to_owned(), number);
        }
        serde_json::from_value(fields.into()).map_err(|error| Reply::bad_request(&error))
    }
}

/// One complete reply.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: StatusCode,
    /// Media type of the body.
    pub content_type: &'static str,
    /// The whole body.
    pub body: Bytes,
}

impl Reply {
    /// Status 200 with `value` as one line of JSON.
    pub fn json<T: Serialize>(value: &T) -> Self {
        Self::with_json(StatusCode::OK, value)
    }

    /// Status 400 with the reason as `{"error": …}`.
    pub fn bad_request(reason: &dyn std::fmt::Display) -> Self {
        Self::error(StatusCode::BAD_REQUEST, reason)
    }

    /// Status 500 with the reason as `{"error": …}`.
    pub fn internal(reason: &dyn std::fmt::Display) -> Self {
        Self::error(StatusCode::INTERNAL_SERVER_ERROR, reason)
    }

    /// Any status with the reason as `{"error": …}`.
    pub fn error(status: StatusCode, reason: &dyn std::fmt::Display) -> Self {
        Self::with_json(status, &serde_json::json!({ "error": reason.to_string() }))
    }

    pub(crate) fn text(text: &str) -> Self {
        let body = Bytes::from(format!("{text}\n"));
        Self { status: StatusCode::OK, content_type: "text/plain; charset=utf-8", body }
    }

    fn with_json<T: Serialize>(status: StatusCode, value: &T) -> Self {
        let mut body =
            serde_json::to_vec(value).expect("replies are structs and maps with string keys");
        body.push(b'\n');
        Self { status, content_type: "application/json", body: body.into() }
    }
}
