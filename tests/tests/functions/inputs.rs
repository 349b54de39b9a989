//! `functions/<name>/requests.toml`: the requests with known replies.

use std::fs;

use serde::Deserialize;

/// All of one file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Inputs {
    pub(crate) request: Vec<Request>,
    /// For functions that speak gRPC.
    #[serde(default)]
    pub(crate) greeting: Vec<Greeting>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Request {
    pub(crate) name: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) content_type: String,
    /// File with the body.
    pub(crate) body: String,
    /// File with the reply.
    pub(crate) expected: String,
    pub(crate) compare: Compare,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Compare {
    /// The same bytes.
    Exact,
    /// Every field of the expected object is in the reply.
    JsonSubset,
}

/// What `helloworld.Greeter/SayHello` says to a name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Greeting {
    pub(crate) name: String,
    pub(crate) message: String,
}

pub(crate) fn of(name: &str) -> Inputs {
    let path = crate::process::functions().join(name).join("requests.toml");
    let text = fs::read_to_string(&path).expect("every function has a requests.toml");
    toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
