//! The functions that are measured: their services' manifests, and requests with known replies.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use vhive_api::RuntimeName;

use crate::plan::Kind;

/// A function under `functions/`.
#[derive(Clone, Debug)]
pub struct Function {
    /// Name of its directory.
    pub name: String,
    /// Its service, as in `service.yaml`.
    manifest: Value,
    /// Its requests by name.
    requests: BTreeMap<String, Request>,
}

/// A request with the reply that is expected.
#[derive(Clone, Debug)]
pub struct Request {
    /// HTTP method.
    pub method: http::Method,
    /// Path and query.
    pub path: String,
    /// Of the body.
    pub content_type: String,
    /// The body.
    pub body: Bytes,
    expected: Vec<u8>,
    compare: Compare,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Compare {
    Exact,
    JsonSubset,
}

/// Why a function cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum FunctionError {
    /// A file cannot be read.
    #[error("cannot read {}; is `functions_dir` right?", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {why}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

#[derive(Debug, Deserialize)]
struct File {
    request: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Entry {
    name: String,
    method: String,
    path: String,
    #[serde(default)]
    content_type: Option<String>,
    #[serde(default)]
    body: Option<String>,
    expected: String,
    compare: Compare,
}

impl Function {
    /// Reads `functions_dir/name/`.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn load(functions_dir: &Path, name: &str) -> Result<Self, FunctionError> {
        let dir = functions_dir.join(name);
        let path = dir.join("service.yaml");
        let bad = |path: &Path, why: String| FunctionError::Content { path: path.to_owned(), why };
        let manifest: Value = serde_saphyr::from_str(&text(&path)?)
            .map_err(|error| bad(&path, format!("no YAML: {error}")))?;
        if manifest.pointer("/spec/template/spec/containers/0").is_none() {
            return Err(bad(&path, "spec.template.spec.containers: missing".to_owned()));
        }
        let path = dir.join("requests.toml");
        let file: File = toml::from_str(&text(&path)?).map_err(|e| bad(&path, e.to_string()))?;
        let mut requests = BTreeMap::new();
        for entry in file.request {
            let body = entry.body.as_ref().map(|body| bytes(&dir.join(body))).transpose()?;
            let method = entry.method.parse();
            let request = Request {
                method: method
                    .map_err(|_| bad(&path, format!("{:?} is no method", entry.method)))?,
                path: entry.path,
                content_type: entry.content_type.unwrap_or_else(|| "application/json".to_owned()),
                body: body.unwrap_or_default().into(),
                expected: bytes(&dir.join(&entry.expected))?,
                compare: entry.compare,
            };
            requests.insert(entry.name, request);
        }
        Ok(Self { name: name.to_owned(), manifest, requests })
    }

    /// The request of this name.
    ///
    /// # Errors
    /// When `requests.toml` has none.
    pub fn request(&self, name: &str) -> Result<&Request, FunctionError> {
        self.requests.get(name).ok_or_else(|| FunctionError::Content {
            path: PathBuf::from(&self.name).join("requests.toml"),
            why: format!("no request {name:?}"),
        })
    }

    /// The service for one start kind: the function's own manifest under a name of its own, with
    /// the policies as annotations.
    ///
    /// An environment variable that no function reads makes the revision differ from those of
    /// earlier runs, so that no old snapshot or working set is taken.
    #[must_use]
    pub fn service(&self, shape: &Shape<'_>) -> Value {
        let mut service = self.manifest.clone();
        let (snapshot, prefetch) = shape.kind.policies();
        let metadata = object(&mut service, &["metadata"]);
        let named = Variant {
            function: &self.name,
            kind: shape.kind,
            runtime: shape.runtime.filter(|_| shape.named),
        };
        metadata.insert("name".to_owned(), json!(named.service()));
        metadata.remove("namespace");
        object(&mut service, &["metadata", "labels"]).insert(LABEL.to_owned(), json!("true"));
        let template = object(&mut service, &["spec", "template", "metadata", "annotations"]);
        if snapshot != vhive_api::SnapshotPolicy::Off {
            template.insert("vhive.dev/snapshot-policy".to_owned(), json!(snapshot.as_str()));
        }
        if let Some(prefetch) = prefetch {
            template.insert("vhive.dev/prefetch-policy".to_owned(), json!(prefetch.as_str()));
        }
        // The autoscaler neither adds instances nor keeps idle ones beyond its next tick.
        for (name, value) in [
            ("autoscaling.knative.dev/max-scale", shape.most_instances.to_string()),
            ("autoscaling.knative.dev/target-utilization-percentage", "100".to_owned()),
            ("vhive.dev/window", "1s".to_owned()),
        ] {
            template.insert(name.to_owned(), json!(value));
        }
        let spec = object(&mut service, &["spec", "template", "spec"]);
        if let Some(runtime) = shape.runtime {
            spec.insert("runtimeClassName".to_owned(), json!(runtime.as_str()));
        }
        if shape.most_instances > 1 {
            spec.insert("containerConcurrency".to_owned(), json!(1));
        }
        let container = spec.get_mut("containers").and_then(|all| all.get_mut(0));
        if let Some(container) = container.and_then(Value::as_object_mut) {
            let env = container.entry("env").or_insert_with(|| json!([]));
            if let Some(env) = env.as_array_mut() {
                env.push(json!({"name": "VHIVE_STUDY", "value": shape.edition}));
            }
        }
        service
    }
}

/// What a service is made for.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// The start kind.
    pub kind: Kind,
    /// Instead of the manifest's runtime.
    pub runtime: Option<RuntimeName>,
    /// Whether the runtime is part of the name, because the study varies it.
    pub named: bool,
    /// Most instances.
    pub most_instances: u32,
    /// Different for each run, and wherever a snapshot must not be taken over.
    pub edition: &'a str,
}

/// Marks services that a study made.
pub const LABEL: &str = "vhive.dev/study";

/// A function started in one way: what has a service of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant<'a> {
    /// Name of the function.
    pub function: &'a str,
    /// How it starts.
    pub kind: Kind,
    /// In which sandbox, where a study varies it.
    pub runtime: Option<RuntimeName>,
}

impl Variant<'_> {
    /// The service's name: Kubernetes allows no underscores. Boot and warm share one.
    #[must_use]
    pub fn service(&self) -> String {
        let kind = if self.kind == Kind::Warm { Kind::Boot } else { self.kind };
        let runtime = self.runtime.map(|name| format!("{name}-")).unwrap_or_default();
        format!("{}-{runtime}{kind}", self.function.replace(['_', '.'], "-").to_lowercase())
    }
}

impl std::fmt::Display for Variant<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let runtime = self.runtime.map(|name| format!("{name} ")).unwrap_or_default();
        write!(f, "{} {runtime}{}", self.function, self.kind)
    }
}

impl Request {
    /// Why the reply is not the expected one, if it is not.
    #[must_use]
    pub fn differs(&self, reply: &[u8]) -> Option<String> {
        let same = match self.compare {
            Compare::Exact => reply.trim_ascii_end() == self.expected.trim_ascii_end(),
            Compare::JsonSubset => {
                let parse = serde_json::from_slice::<Value>;
                match (parse(reply), parse(&self.expected)) {
                    (Ok(whole), Ok(part)) => contains(&whole, &part),
                    _ => false,
                }
            }
        };
        let said: String = String::from_utf8_lossy(reply).chars().take(120).collect();
        (!same).then(|| format!("unexpected reply: {}", said.trim()))
    }
}

/// Whether every key of `part` is in `whole` with an equal value.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, value)| whole.get(key).is_some_and(|w| contains(w, value)))
        }
        _ => whole == part,
    }
}

/// The object at a path, made where it is missing.
fn object<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut serde_json::Map<String, Value> {
    let mut at = value;
    for name in path {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[*name];
    }
    if !at.is_object() {
        *at = json!({});
    }
    at.as_object_mut().expect("made one just now")
}

fn text(path: &Path) -> Result<String, FunctionError> {
    let read = std::fs::read_to_string(path);
    read.map_err(|source| FunctionError::Read { path: path.to_owned(), source })
}

fn bytes(path: &Path) -> Result<Vec<u8>, FunctionError> {
    std::fs::read(path).map_err(|source| FunctionError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn functions() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../functions")
    }

    #[test]
    fn every_function_of_the_default_plan_is_there() {
        let plan = crate::plan::Plan::default();
        for name in &plan.functions {
            let function = Function::load(&functions(), name).expect(name);
            for input in plan.inputs.measure.iter().chain([&plan.inputs.prepare]) {
                let request = function.request(input).expect("has it");
                assert!(request.differs(b"nonsense").is_some());
            }
        }
    }

    #[test]
    fn a_service_keeps_its_manifest_and_gets_its_policies() {
        let function = Function::load(&functions(), "image_rotate").expect("there");
        let shape = Shape {
            kind: Kind::ReapSerial,
            runtime: Some(RuntimeName::Sim),
            named: false,
            most_instances: 1,
            edition: "x-1",
        };
        let service = function.service(&shape);
        let at = |pointer: &str| service.pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(at("/metadata/name"), "image-rotate-reap-serial");
        assert_eq!(at("/metadata/labels/vhive.dev~1study"), "true");
        let annotations = at("/spec/template/metadata/annotations");
        assert_eq!(annotations["vhive.dev/snapshot-policy"], "reap");
        assert_eq!(annotations["vhive.dev/prefetch-policy"], "reap-serial");
        assert_eq!(at("/spec/template/spec/runtimeClassName"), "sim");
        let container = at("/spec/template/spec/containers/0");
        assert_eq!(container["image"], "dev.local/image_rotate:latest");
        assert_eq!(container["env"], json!([{"name": "VHIVE_STUDY", "value": "x-1"}]));

        let boot = function.service(&Shape { kind: Kind::Boot, ..shape });
        let annotations = &boot["spec"]["template"]["metadata"]["annotations"];
        assert_eq!(annotations.get("vhive.dev/snapshot-policy"), None, "off is the default");
        let named = function.service(&Shape { kind: Kind::Warm, named: true, ..shape });
        assert_eq!(named["metadata"]["name"], "image-rotate-sim-boot", "a boot's instance is used");
    }

    #[test]
    fn replies_are_compared_as_the_file_says() {
        let request = |compare, expected: &str| Request {
            method: http::Method::GET,
            path: "/".to_owned(),
            content_type: String::new(),
            body: Bytes::new(),
            expected: expected.as_bytes().to_vec(),
            compare,
        };
        assert_eq!(request(Compare::Exact, "hi\n").differs(b"hi"), None);
        let subset = request(Compare::JsonSubset, r#"{"a":{"b":1}}"#);
        assert_eq!(subset.differs(br#"{"a":{"b":1,"c":2},"d":3}"#), None);
        assert!(subset.differs(br#"{"a":{"b":2}}"#).is_some());
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = Function::load(Path::new("/nonexistent"), "x").expect_err("missing");
        assert!(error.to_string().contains("/nonexistent/x/service.yaml"));
    }
}
