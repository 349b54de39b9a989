//! The bearer token of the API on loopback TCP.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header;

use super::status::Problem;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read or written.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} does not hold a token of at least 32 characters; remove it, and a new one is made", .0.display())]
    Content(PathBuf),
    /// Others may read it.
    #[error("{} can be read by others (mode {mode:o}); `chmod 600` it, or remove it and a new one is made", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

/// The token.
pub(super) struct Token(String);

/// Reads the token from `<state directory>/api.token`, or makes one (mode 0600).
pub(super) fn open(state_dir: &Path) -> Result<(Token, PathBuf), TokenError> {
    let path = state_dir.join("api.token");
    let io = |source| TokenError::Io { path: path.clone(), source };
    match fs::read_to_string(&path) {
        Ok(text) => {
            let mode = fs::metadata(&path).map_err(io)?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(TokenError::Mode { path, mode });
            }
            let text = text.trim();
            let sound = text.len() >= 32 && text.bytes().all(|b| b.is_ascii_graphic());
            if !sound {
                return Err(TokenError::Content(path));
            }
            Ok((Token(text.to_owned()), path))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes).expect("the kernel's random source answers after boot");
            let token = hex::encode(bytes);
            // Written whole and then renamed, so that a crash leaves none rather than half of one.
            let draft = state_dir.join("api.token.draft");
            drop(fs::remove_file(&draft));
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&draft)
                .map_err(io)?;
            file.write_all(token.as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
            fs::rename(&draft, &path).map_err(io)?;
            Ok((Token(token), path))
        }
        Err(error) => Err(io(error)),
    }
}

/// Lets only those through who show the token; health, and the dashboard's page as long as it holds
/// no data, are for everyone.
pub(super) async fn require(
    State(token): State<Arc<Token>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let shown = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let shown = shown.and_then(|value| value.strip_prefix(b"Bearer "));
    let right = shown.is_some_and(|shown| same(shown, token.0.as_bytes()));
    let path = request.uri().path();
    if right || path == "/healthz" || super::dashboard::is_page(path) {
        return Ok(next.run(request).await);
    }
    Err(Problem::unauthorized())
}

/// Compares in a time that does not depend on where the two differ.
fn same(one: &[u8], two: &[u8]) -> bool {
    let difference = one.iter().zip(two).fold(0, |all, (a, b)| all | (a ^ b));
    one.len() == two.len() && difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let (token, path) = open(dir.path()).unwrap();
        assert_eq!(token.0.len(), 64);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(open(dir.path()).unwrap().0.0, token.0);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(open(dir.path()), Err(TokenError::Mode { mode: 0o644, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "short").unwrap();
        assert!(matches!(open(dir.path()), Err(TokenError::Content(_))));
        assert!(same(b"abc", b"abc") && !same(b"abc", b"abd") && !same(b"abc", b"abcd"));
    }
}
