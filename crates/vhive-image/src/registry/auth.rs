//! Credentials from Docker's configuration file, and what a registry asks for.
//!
//! # Source
//! RFC 9110 §11.6.1 (challenges); the `distribution` project's token authentication; the format
//! of Docker's `config.json`.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// Under which the default registry's credentials are kept.
const DEFAULT_KEYS: [&str; 3] =
    ["https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io"];
/// A user name that marks the password as a refresh token.
const TOKEN_USER: &str = "<token>";

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The file is not Docker's configuration.
    #[error("{path} is no Docker configuration")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// An entry that is not `base64(user:password)`.
    #[error("the credentials of {registry} in {path} are malformed; log in again")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Whose.
        registry: String,
    },
    /// Credentials are kept by a program, which we do not run.
    #[error(
        "the credentials of {registry} are kept by the helper {helper:?}, which is not supported; put them under `auths` in {path}"
    )]
    Helper {
        /// The file.
        path: PathBuf,
        /// Whose.
        registry: String,
        /// The helper.
        helper: String,
    },
    /// A refresh token instead of a password.
    #[error(
        "the credentials of {registry} in {path} are an identity token, which is not supported; use a user name and password"
    )]
    IdentityToken {
        /// The file.
        path: PathBuf,
        /// Whose.
        registry: String,
    },
}

/// A user name and password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, …)", self.user)
    }
}

impl Credentials {
    /// The value of an `Authorization` header.
    pub(crate) fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password)))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase", default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// Where Docker keeps its configuration for this user.
pub(crate) fn default_file() -> Option<PathBuf> {
    if let Some(dir) = env::var_os("DOCKER_CONFIG") {
        return Some(PathBuf::from(dir).join("config.json"));
    }
    env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker/config.json"))
}

/// The credentials for a registry; `None` if the file has none or does not exist.
pub(crate) fn lookup(path: &Path, registry: &str) -> Result<Option<Credentials>, AuthError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(AuthError::Read { path: path.to_owned(), source }),
    };
    let config: Config = serde_json::from_slice(&text)
        .map_err(|source| AuthError::Syntax { path: path.to_owned(), source })?;
    let (path, registry_name) = (path.to_owned(), registry.to_owned());
    let keys = keys_of(registry);
    let helper = keys.iter().find_map(|key| config.cred_helpers.get(key));
    let entry = keys.iter().find_map(|key| config.auths.get(key));
    let is_empty = |entry: &&Entry| {
        entry.auth.is_none() && entry.username.is_none() && entry.identitytoken.is_none()
    };
    let kept_elsewhere = helper.or_else(|| {
        // Docker leaves an empty entry behind for what its store holds.
        config.creds_store.as_ref().filter(|_| entry.as_ref().is_none_or(is_empty))
    });
    if let Some(helper) = kept_elsewhere {
        let helper = helper.clone();
        return Err(AuthError::Helper { path, registry: registry_name, helper });
    }
    let Some(entry) = entry.filter(|entry| !is_empty(entry)) else { return Ok(None) };
    if entry.identitytoken.is_some() {
        return Err(AuthError::IdentityToken { path, registry: registry_name });
    }
    let malformed = || AuthError::Malformed { path: path.clone(), registry: registry.to_owned() };
    let credentials = match (&entry.auth, &entry.username, &entry.password) {
        (Some(auth), _, _) if !auth.is_empty() => {
            let bytes = STANDARD.decode(auth.trim()).map_err(|_| malformed())?;
            let text = String::from_utf8(bytes).map_err(|_| malformed())?;
            let (user, password) = text.split_once(':').ok_or_else(malformed)?;
            let password = password.trim_end_matches('\0');
            Credentials { user: user.to_owned(), password: password.to_owned() }
        }
        (_, Some(user), Some(password)) => {
            Credentials { user: user.clone(), password: password.clone() }
        }
        _ => return Err(malformed()),
    };
    if credentials.user == TOKEN_USER {
        return Err(AuthError::IdentityToken { path, registry: registry_name });
    }
    Ok(Some(credentials))
}

fn keys_of(registry: &str) -> Vec<String> {
    let mut keys = vec![
        registry.to_owned(),
        format!("https://{registry}"),
        format!("https://{registry}/"),
        format!("http://{registry}"),
        format!("https://{registry}/v1/"),
        format!("https://{registry}/v2/"),
    ];
    if registry == "docker.io" {
        keys.extend(DEFAULT_KEYS.map(str::to_owned));
    }
    keys
}

/// What a registry demands before it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// Reads the value of a `WWW-Authenticate` header; `None` if we know none of its schemes.
    pub(crate) fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = BTreeMap::new();
        let mut rest = rest;
        while let Some((key, after)) = rest.split_once('=') {
            let key = key.trim_matches([' ', ',']).to_ascii_lowercase();
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').unwrap_or((after, "")),
            };
            parameters.insert(key, value.trim().to_owned());
            rest = after;
        }
        let realm = parameters.remove("realm")?;
        let (service, scope) = (parameters.remove("service"), parameters.remove("scope"));
        Some(Self::Bearer { realm, service, scope })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_understood() {
        let text = r#"Bearer realm="https://auth.example/token",service="reg", scope="repository:a/b:pull,push""#;
        let bearer = Challenge::Bearer {
            realm: "https://auth.example/token".to_owned(),
            service: Some("reg".to_owned()),
            scope: Some("repository:a/b:pull,push".to_owned()),
        };
        assert_eq!(Challenge::parse(text), Some(bearer));
        assert_eq!(Challenge::parse("basic realm=\"x\""), Some(Challenge::Basic));
        for text in ["", "Negotiate", "Bearer service=\"x\"", "Bearer realm=\"open"] {
            assert_eq!(Challenge::parse(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_challenge_panics(text in ".{0,200}") {
            let _ = Challenge::parse(&text);
            let _ = Challenge::parse(&format!("Bearer {text}"));
        }
    }

    fn lookup_in(text: &str, registry: &str) -> Result<Option<Credentials>, AuthError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, text).unwrap();
        lookup(&path, registry)
    }

    #[test]
    fn credentials_are_found_or_the_reason_is_named() {
        let file = |rest: &str| format!("{{\"auths\": {{ {rest} }} }}");
        let me = Some(Credentials { user: "me".to_owned(), password: "se:cret".to_owned() });
        let auth = file("\"r.example:5000\": {\"auth\": \"bWU6c2U6Y3JldA==\"}");
        assert_eq!(lookup_in(&auth, "r.example:5000").unwrap(), me);
        assert_eq!(lookup_in(&auth, "other.example").unwrap(), None);
        let plain = file(
            "\"https://index.docker.io/v1/\": {\"username\": \"me\", \"password\": \"se:cret\"}",
        );
        assert_eq!(lookup_in(&plain, "docker.io").unwrap(), me);
        assert_eq!(lookup_in("{}", "r.example").unwrap(), None);
        assert_eq!(lookup(Path::new("/no/such/file"), "r.example").unwrap(), None);

        let fails = |text: &str| lookup_in(text, "r.example").unwrap_err().to_string();
        assert!(fails("{").contains("no Docker configuration"));
        assert!(fails(&file("\"r.example\": {\"auth\": \"!\"}")).contains("malformed"));
        assert!(
            fails(&file("\"r.example\": {\"identitytoken\": \"x\"}")).contains("identity token")
        );
        assert!(fails("{\"credHelpers\": {\"r.example\": \"gcr\"}}").contains("\"gcr\""));
        assert!(fails("{\"credsStore\": \"desktop\"}").contains("\"desktop\""));
    }
}
