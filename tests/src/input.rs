//! What a benchmark sends to a function: the requests beside it, and a third one, of which nothing but another
//! recording is made.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

/// The input that is recorded first.
pub const RECORD: &str = "record";
/// The other input, which is measured.
pub const REPLAY: &str = "replay";
/// The input that is recorded besides: neither of the two.
pub const THIRD: &str = "third";

/// A request as it is sent.
#[derive(Debug)]
pub struct Input {
    /// HTTP method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Its body, or `@` and the file that holds it.
    pub data: String,
}

#[derive(Deserialize)]
struct Requests {
    request: Vec<Request>,
}

#[derive(Deserialize)]
struct Request {
    name: String,
    method: String,
    path: String,
    body: String,
}

/// The input of this name.
///
/// # Errors
/// When the function has none.
pub fn of(function: &str, name: &str) -> Result<Input> {
    let dir = functions().join(function);
    let requests: Requests = toml::from_str(&fs::read_to_string(dir.join("requests.toml"))?)?;
    let wanted = if name == THIRD { RECORD } else { name };
    let request = requests.request.into_iter().find(|request| request.name == wanted);
    let request = request.with_context(|| format!("{function} has no request {wanted}"))?;
    let file = dir.join(&request.body);
    let data = match name {
        THIRD => third(function, &fs::read_to_string(file)?)?,
        _ => format!("@{}", file.display()),
    };
    Ok(Input { method: request.method, path: request.path, data })
}

/// A body of about the recorded one's size that differs from it as the other input does.
fn third(function: &str, recorded: &str) -> Result<String> {
    let mut body: Value = serde_json::from_str(recorded)?;
    let change = match function {
        "hello" => ("name", json!("third")),
        "big-memory" => ("seed", json!(3)),
        "pyaes" => ("message", json!("Neither of the two: ".repeat(20))),
        "chameleon" => ("caption", json!("Neither of the two")),
        "image_rotate" => ("degrees", json!(180)),
        "json_serdes" => {
            body.as_array_mut().context("json_serdes takes no documents")?.reverse();
            return Ok(body.to_string());
        }
        _ => bail!("{function} has no third input"),
    };
    let known = body.get_mut(change.0).with_context(|| format!("{function}: no {}", change.0))?;
    ensure!(*known != change.1, "{function}: the third input is the recorded one");
    *known = change.1;
    Ok(body.to_string())
}

/// Where the functions are.
#[must_use]
pub fn functions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_input_is_neither_of_the_two_and_as_long() {
        for name in ["hello", "big-memory", "pyaes", "json_serdes", "chameleon", "image_rotate"] {
            let third = of(name, THIRD).expect(name);
            assert_eq!(third.path, of(name, RECORD).expect(name).path);
            let parsed: Value = serde_json::from_str(&third.data).expect("JSON");
            for other in [RECORD, REPLAY] {
                let other = of(name, other).expect(name);
                let text = fs::read_to_string(other.data.trim_start_matches('@')).expect("there");
                assert_ne!(serde_json::from_str::<Value>(&text).expect("JSON"), parsed, "{name}");
                let ratio = third.data.len() as f64 / text.len() as f64;
                assert!((0.5..=2.0).contains(&ratio), "{name}: {ratio}");
            }
        }
        assert!(of("hello", "fourth").is_err() && of("sleep", THIRD).is_err());
    }
}
