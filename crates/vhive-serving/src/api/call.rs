//! What every request for objects brings besides its path.

use axum::extract::{FromRequestParts, Query as Params};
use http::request::Parts;
use http::{HeaderMap, Uri};

use super::query::Query;
use super::status::Problem;

/// Path, header fields and query of a request.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) query: Query,
}

impl<S: Sync> FromRequestParts<S> for Call {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Params(query) = Params::try_from_uri(&parts.uri)?;
        Ok(Self { uri: parts.uri.clone(), headers: parts.headers.clone(), query })
    }
}
