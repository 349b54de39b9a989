//! What every request for objects brings besides its path.

use axum::extract::{FromRequestParts, Query as Params};
use http::request::Parts;
use http::{HeaderMap, Uri, header};

use super::query::Query;
use super::status::Problem;

/// Path, header fields and query of a request.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) query: Query,
}

/// Longest name of a manager.
///
/// # Source
/// Kubernetes, `FieldManagerMaxLength`.
const LONGEST_MANAGER: usize = 128;

impl Call {
    /// Who changes fields: as the client says, or else its program.
    ///
    /// # Errors
    /// A name that is none.
    pub(super) fn manager(&self) -> Result<String, Problem> {
        let given = self.query.field_manager.as_str();
        if given.chars().count() > LONGEST_MANAGER || given.chars().any(char::is_control) {
            let message =
                format!("fieldManager must be at most {LONGEST_MANAGER} printable letters");
            return Err(Problem::bad_request(message));
        }
        if !given.is_empty() {
            return Ok(given.to_owned());
        }
        let agent = self.headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
        let program = agent.and_then(|agent| agent.split('/').next()).unwrap_or_default();
        let program: String = program.chars().take(LONGEST_MANAGER).collect();
        Ok(if program.is_empty() { "unknown".to_owned() } else { program })
    }
}

impl<S: Sync> FromRequestParts<S> for Call {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Params(query) = Params::try_from_uri(&parts.uri)?;
        Ok(Self { uri: parts.uri.clone(), headers: parts.headers.clone(), query })
    }
}
