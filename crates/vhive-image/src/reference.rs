//! Image references: `[registry/]repository[:tag][@digest]`.

use std::fmt;
use std::str::FromStr;

use vhive_api::Digest;

/// Registry meant by references that name none, and the host that answers for it.
const DEFAULT_REGISTRY: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// A reference with every default filled in.
///
/// ```
/// use vhive_image::Reference;
/// let r: Reference = "dev.local/hello".parse()?;
/// assert_eq!(r.to_string(), "dev.local/hello:latest");
/// assert!(r.is_local());
/// assert_eq!("busybox".parse::<Reference>()?.to_string(), "docker.io/library/busybox:latest");
/// # Ok::<(), vhive_image::ParseReferenceError>(())
/// ```
///
/// # Source
/// The `distribution` project's reference grammar; `dev.local` as in Knative Serving.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no image reference: {why}")]
pub struct ParseReferenceError {
    /// The text, cut to 300 characters.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Reference {
    /// Host and perhaps port of the registry, as in the reference.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Host and perhaps port to connect to.
    #[must_use]
    pub fn host(&self) -> &str {
        let (name, host) = DEFAULT_REGISTRY;
        if self.registry == name { host } else { &self.registry }
    }

    /// The path below the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The manifest's digest, if the reference pins it.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What a registry is asked for: the digest, else the tag.
    #[must_use]
    pub fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// Whether the image can only be local: `dev.local/…` and `localhost/…` are never looked up
    /// in a registry.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self.registry.as_str(), "dev.local" | "localhost")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match (&self.digest, &self.tag) {
            (Some(digest), _) => write!(f, "@{digest}"),
            (None, tag) => write!(f, ":{}", tag.as_deref().unwrap_or("latest")),
        }
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |why| ParseReferenceError { text: text.chars().take(300).collect(), why };
        if text.is_empty() || text.len() > 600 {
            return Err(bad("it has no or more than 600 characters"));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                let why = "what follows the @ is no sha256 digest";
                (name, Some(digest.parse().map_err(|_| bad(why))?))
            }
            None => (text, None),
        };
        let last_part = name.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match name[last_part..].find(':') {
            Some(colon) => {
                let (name, tag) = name.split_at(last_part + colon);
                (name, Some(&tag[1..]))
            }
            None => (name, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad("the tag is not 1 to 128 letters, digits, '_', '.', '-'"));
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
                (first, rest.to_owned())
            }
            Some(_) => (DEFAULT_REGISTRY.0, name.to_owned()),
            None => (DEFAULT_REGISTRY.0, format!("library/{name}")),
        };
        if !is_host(registry) {
            return Err(bad("the registry is no host name with perhaps a port"));
        }
        if !path.split('/').all(is_path_part) {
            return Err(bad("the repository is not lower-case words joined by '/', '.', '_', '-'"));
        }
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self { registry: registry.to_owned(), repository: path, tag, digest })
    }
}

fn is_tag(tag: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=128).contains(&tag.len()) && tag.bytes().all(good) && !tag.starts_with(['.', '-'])
}

fn is_host(host: &str) -> bool {
    let (name, port) = host.split_once(':').unwrap_or((host, "443"));
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
    let name_good = !name.is_empty() && name.bytes().all(good) && !name.starts_with(['.', '-']);
    name_good && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn is_path_part(part: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends_good = part.bytes().next().is_some_and(word) && part.bytes().last().is_some_and(word);
    ends_good
        && part.bytes().all(|byte| word(byte) || b"._-".contains(&byte))
        && !part.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_filled_in() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let table = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("me/app:1", "docker.io/me/app:1"),
            ("dev.local/a/b", "dev.local/a/b:latest"),
            ("localhost/x:v1.0", "localhost/x:v1.0"),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
        ];
        for (text, full) in table {
            assert_eq!(text.parse::<Reference>().map(|r| r.to_string()), Ok(full.to_owned()));
        }
        let pinned: Reference = format!("r.example/x:1@{digest}").parse().unwrap();
        assert_eq!(pinned.to_string(), format!("r.example/x@{digest}"));
        assert_eq!(pinned.selector(), digest);
        assert!(!"localhost:5000/x".parse::<Reference>().unwrap().is_local());
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = "a".repeat(700);
        let table = [
            "",
            "/",
            "UPPER",
            "a//b",
            "a/",
            "x:",
            "x:.dot",
            "x@sha256:12",
            "a..b/c/../d",
            "r.example:0/x",
            "r.example:99999/x",
            "-r.example/x",
            "x:a b",
            &long,
            "dev.local/../x",
        ];
        for text in table {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_parses_prints_to_itself(text in "[a-zA-Z0-9./:@_-]{0,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let printed = reference.to_string();
                let again: Reference = printed.parse().expect("what we print parses");
                assert_eq!(again.to_string(), printed);
            }
        }
    }
}
