//! `endpoints.json`: what the deployer writes and the invoker reads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::call::Protocol;

/// One function that can be called.
///
/// # Source
/// vSwarm `tools/endpoint`; `address` and `protocol` are ours, and left out where unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The name that the gateway knows it by; no scheme, no port.
    pub hostname: String,
    /// Answers by an event rather than by a reply. Only `false` can be measured here.
    #[serde(default)]
    pub eventing: bool,
    /// What its completion events look like.
    #[serde(default)]
    pub matchers: Option<BTreeMap<String, String>>,
    /// Where to connect, `host:port`, when the host name does not lead there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What it speaks; files of the original do not say, and mean gRPC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
}

/// Why a list of endpoints cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointsError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not such a list.
    #[error("{path} is no list of endpoints")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where, by line and column.
        source: serde_json::Error,
    },
    /// It is empty.
    #[error("{0} lists no endpoint")]
    Empty(PathBuf),
    /// An entry answers by events.
    #[error("{hostname} answers by events, which the invoker does not wait for")]
    Eventing {
        /// The entry.
        hostname: String,
    },
    /// An entry has a name that is none.
    #[error("{hostname:?} is no host name without scheme and port")]
    Hostname {
        /// The entry.
        hostname: String,
    },
}

/// Reads a list of endpoints.
///
/// # Errors
/// When it cannot be read, is malformed, empty, or has an entry that cannot be called.
pub fn read(path: &Path) -> Result<Vec<Endpoint>, EndpointsError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| EndpointsError::Read { path: path.to_owned(), source })?;
    let all: Vec<Endpoint> = serde_json::from_str(&text)
        .map_err(|source| EndpointsError::Json { path: path.to_owned(), source })?;
    if all.is_empty() {
        return Err(EndpointsError::Empty(path.to_owned()));
    }
    for endpoint in &all {
        let hostname = endpoint.hostname.clone();
        if endpoint.eventing {
            return Err(EndpointsError::Eventing { hostname });
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if hostname.is_empty() || !hostname.chars().all(fits) {
            return Err(EndpointsError::Hostname { hostname });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_originals_files_are_read_and_mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("endpoints.json");
        let read_text = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(&path)
        };
        let original = r#"[{"hostname":"helloworld-0.default.192.168.1.240.sslip.io",
            "eventing":false,"matchers":null}]"#;
        let all = read_text(original).unwrap();
        assert_eq!((all.len(), &all[0].protocol, &all[0].address), (1, &None, &None));
        assert!(matches!(read_text("[]"), Err(EndpointsError::Empty(_))));
        let eventing = read_text(r#"[{"hostname":"a","eventing":true}]"#);
        assert!(matches!(eventing, Err(EndpointsError::Eventing { .. })));
        for bad in [r#"[{"hostname":"http://a"}]"#, r#"[{"hostname":"a:80"}]"#] {
            assert!(matches!(read_text(bad), Err(EndpointsError::Hostname { .. })), "{bad}");
        }
        let error = read_text("[\n{\"hostname\": 1}]").unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("line 2 column"), "{source}");
    }
}
