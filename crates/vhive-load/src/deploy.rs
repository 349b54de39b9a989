//! The deployer: services from the original's `functions.json`, and `endpoints.json` of those
//! that are ready.
//!
//! # Source
//! vSwarm `tools/deployer`, which writes the endpoints of failures too and deletes nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::call::Protocol;
use crate::endpoints::Endpoint;

/// The mark of what was deployed from here; its value is the file of functions.
const MARK: &str = "load.vhive.dev/deployed-from";
/// As the original asks for: one request at a time on each instance is what scaling aims at.
const TARGET: &str = "autoscaling.knative.dev/target";
/// How often a service that is not ready is asked again.
const AGAIN: Duration = Duration::from_millis(250);

/// Which services, from a file of functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// `<function>-<index>`.
    pub name: String,
    /// Its manifest.
    pub manifest: PathBuf,
}

/// Why a file of functions cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FunctionsError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no such file.
    #[error("{path} is no list of functions")]
    Json {
        /// The file.
        path: PathBuf,
        /// The unknown key or bad value, by line and column.
        source: serde_json::Error,
    },
    /// What it lists makes no sense.
    #[error("{path}: {problem}")]
    Absurd {
        /// The file.
        path: PathBuf,
        /// What.
        problem: String,
    },
}

/// The most services of one file.
const MOST: u64 = 100_000;

/// Reads a file of functions; manifests are in `dir`.
///
/// # Errors
/// When it cannot be read, is malformed, or lists nothing.
pub fn read(path: &Path, dir: &Path) -> Result<Vec<Wanted>, FunctionsError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        functions: Vec<Function>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Function {
        name: String,
        file: String,
        count: u64,
        #[serde(default)]
        eventing: bool,
        #[serde(default, rename = "applyScript")]
        _apply_script: Option<String>,
    }
    let text = std::fs::read_to_string(path)
        .map_err(|source| FunctionsError::Read { path: path.to_owned(), source })?;
    let file: File = serde_json::from_str(&text)
        .map_err(|source| FunctionsError::Json { path: path.to_owned(), source })?;
    let absurd = |problem| FunctionsError::Absurd { path: path.to_owned(), problem };
    let total = file.functions.iter().fold(0_u64, |sum, one| sum.saturating_add(one.count));
    if total == 0 || total > MOST {
        return Err(absurd(format!("{total} services; 1 to {MOST} can be deployed")));
    }
    let mut all: Vec<Wanted> = Vec::new();
    for Function { name, file, count, eventing, .. } in file.functions {
        if eventing {
            return Err(absurd(format!("{name}: eventing is not offered")));
        }
        for index in 0..count {
            all.push(Wanted { name: format!("{name}-{index}"), manifest: dir.join(&file) });
        }
    }
    let mut names: Vec<&str> = all.iter().map(|wanted| wanted.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|two| two[0] == two[1]) {
        return Err(absurd(format!("the service {} is listed twice", twice[0])));
    }
    Ok(all)
}

/// Something that speaks Knative's API.
pub trait Api {
    /// Sends a request and gives status and body back.
    ///
    /// # Errors
    /// What broke, for people.
    fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> impl Future<Output = Result<(u16, Value), String>>;
}

/// What deploying needs to know beside the services.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// The file of functions, as the mark of what comes from it.
    pub mark: String,
    /// Namespace of the services.
    pub namespace: String,
    /// Services deployed at a time.
    pub concurrency: usize,
    /// How long one may take to be ready.
    pub patience: Duration,
    /// Domain of the host names, instead of that of the platform's URLs.
    pub domain: Option<String>,
    /// Where the platform's gateway listens, if it is known.
    pub gateway: Option<String>,
}

/// What came of a service.
pub type Done<T> = (String, Result<T, String>);

impl Deployment {
    fn path(&self, name: &str) -> String {
        format!("/apis/serving.knative.dev/v1/namespaces/{}/services/{name}", self.namespace)
    }

    /// Creates or updates every service and waits until it is ready; the results are in the order
    /// of `wanted`.
    pub async fn deploy(&self, api: &impl Api, wanted: &[Wanted]) -> Vec<Done<Endpoint>> {
        let one = async |wanted: &Wanted| (wanted.name.clone(), self.deploy_one(api, wanted).await);
        futures_util::stream::iter(wanted)
            .map(one)
            .buffered(self.concurrency.max(1))
            .collect()
            .await
    }

    /// Deletes every service that was deployed from the same file; others are left alone, and
    /// told. What is not there is no failure.
    pub async fn delete(&self, api: &impl Api, wanted: &[Wanted]) -> Vec<Done<bool>> {
        let one =
            async |wanted: &Wanted| (wanted.name.clone(), self.delete_one(api, &wanted.name).await);
        futures_util::stream::iter(wanted)
            .map(one)
            .buffered(self.concurrency.max(1))
            .collect()
            .await
    }

    async fn deploy_one(&self, api: &impl Api, wanted: &Wanted) -> Result<Endpoint, String> {
        let (mut service, protocol) = self.manifest(wanted)?;
        let path = self.path(&wanted.name);
        let (status, old) = api.call(Method::GET, &path, None).await?;
        let (status, new) = match status {
            404 => {
                let all = path.rsplit_once('/').map_or("", |(all, _)| all);
                api.call(Method::POST, all, Some(&service)).await?
            }
            200 if old.pointer("/metadata/annotations").and_then(|all| all.get(MARK)).is_none() => {
                return Err(
                    "a service of this name is there that was not deployed from here".into()
                );
            }
            200 => {
                if let Some(version) = old.pointer("/metadata/resourceVersion") {
                    service["metadata"]["resourceVersion"] = version.clone();
                }
                api.call(Method::PUT, &path, Some(&service)).await?
            }
            _ => (status, old),
        };
        if !(200..300).contains(&status) {
            return Err(message(status, &new));
        }
        let url = self.ready(api, &path, new).await?;
        let hostname = match &self.domain {
            Some(domain) => format!("{}.{}.{domain}", wanted.name, self.namespace),
            None => host(&url).ok_or_else(|| format!("its URL {url:?} has no host"))?.to_owned(),
        };
        let (matchers, address) = (None, self.gateway.clone());
        Ok(Endpoint { hostname, eventing: false, matchers, address, protocol: Some(protocol) })
    }

    async fn ready(
        &self,
        api: &impl Api,
        path: &str,
        mut service: Value,
    ) -> Result<String, String> {
        let deadline = Instant::now() + self.patience;
        loop {
            let conditions = service.pointer("/status/conditions").and_then(Value::as_array);
            let ready = conditions.into_iter().flatten().find(|one| one["type"] == "Ready");
            let text = |key: &str| ready.and_then(|one| one[key].as_str()).unwrap_or_default();
            match text("status") {
                "True" => {
                    let url = service.pointer("/status/url").and_then(Value::as_str);
                    return url.map(str::to_owned).ok_or_else(|| "ready, but without URL".into());
                }
                "False" if !text("reason").is_empty() => {
                    return Err(format!("{}: {}", text("reason"), text("message")));
                }
                _ => {}
            }
            if Instant::now() + AGAIN > deadline {
                let last = format!("{} {}", text("reason"), text("message"));
                return Err(format!("not ready within {:?} {last}", self.patience)
                    .trim()
                    .to_owned());
            }
            tokio::time::sleep(AGAIN).await;
            let (status, now) = api.call(Method::GET, path, None).await?;
            if status != 200 {
                return Err(message(status, &now));
            }
            service = now;
        }
    }

    async fn delete_one(&self, api: &impl Api, name: &str) -> Result<bool, String> {
        let path = self.path(name);
        let (status, there) = api.call(Method::GET, &path, None).await?;
        match status {
            404 => return Ok(false),
            200 => {}
            _ => return Err(message(status, &there)),
        }
        let mark = there.pointer("/metadata/annotations").and_then(|all| all[MARK].as_str());
        if mark != Some(&self.mark) {
            return Err("left alone: it was not deployed from this file".into());
        }
        let (status, reply) = api.call(Method::DELETE, &path, None).await?;
        if (200..300).contains(&status) { Ok(true) } else { Err(message(status, &reply)) }
    }

    /// The manifest under the service's name, and what it speaks.
    fn manifest(&self, wanted: &Wanted) -> Result<(Value, Protocol), String> {
        let shown = wanted.manifest.display();
        let text = std::fs::read_to_string(&wanted.manifest)
            .map_err(|error| format!("cannot read {shown}: {error}"))?;
        let mut service: Value = serde_saphyr::from_str(&text)
            .map_err(|error| format!("{shown} is no YAML: {error}"))?;
        if service["kind"] != "Service" || !service["metadata"].is_object() {
            return Err(format!("{shown} is no Service with metadata"));
        }
        service["metadata"]["name"] = json!(wanted.name);
        service["metadata"]["namespace"] = json!(self.namespace);
        set(&mut service, "metadata", MARK, &self.mark);
        let Some(template) = service.pointer_mut("/spec/template").filter(|t| t.is_object()) else {
            return Err(format!("{shown} has no spec.template"));
        };
        if template["metadata"].is_null() {
            template["metadata"] = json!({});
        }
        if template["metadata"]["annotations"][TARGET].is_null() {
            set(template, "metadata", TARGET, "1");
        }
        let port = service.pointer("/spec/template/spec/containers/0/ports/0/name");
        let grpc = port.and_then(Value::as_str) == Some("h2c");
        Ok((service, if grpc { Protocol::Grpc } else { Protocol::Http1 }))
    }
}

fn set(of: &mut Value, part: &str, annotation: &str, value: &str) {
    let Some(metadata) = of[part].as_object_mut() else { return };
    let all = metadata.entry("annotations").or_insert_with(|| json!({}));
    if let Some(all) = all.as_object_mut() {
        all.insert(annotation.to_owned(), json!(value));
    }
}

fn message(status: u16, body: &Value) -> String {
    let text = body["message"].as_str().map_or_else(|| body.to_string(), str::to_owned);
    format!("status {status}: {text}")
}

fn host(url: &str) -> Option<&str> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = rest.split(['/', ':']).next()?;
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use super::*;

    /// Keeps services as a platform would; those named `slow…` are never ready, `bad…` fail,
    /// `no…` are refused.
    #[derive(Default)]
    struct Fake(RefCell<HashMap<String, Value>>);

    impl Api for Fake {
        async fn call(
            &self,
            method: Method,
            path: &str,
            body: Option<&Value>,
        ) -> Result<(u16, Value), String> {
            let mut all = self.0.borrow_mut();
            let name = body.map_or(path.rsplit('/').next().unwrap_or_default(), |body| {
                body["metadata"]["name"].as_str().unwrap_or_default()
            });
            let name = name.to_owned();
            match (method.as_str(), body) {
                ("GET", _) => {
                    let found = all.get(&name).map(|one| (200, one.clone()));
                    Ok(found.unwrap_or((404, json!({"message": "not found"}))))
                }
                ("DELETE", _) => Ok((200, all.remove(&name).unwrap_or_default())),
                (_, Some(body)) if name.starts_with("no") => {
                    let _refused = body;
                    Ok((422, json!({"message": "spec.x: unknown field"})))
                }
                (_, Some(body)) => {
                    let mut body = body.clone();
                    let (status, reason) = match &name {
                        name if name.starts_with("slow") => ("Unknown", "Pulling"),
                        name if name.starts_with("bad") => ("False", "RevisionFailed"),
                        _ => ("True", ""),
                    };
                    body["status"] = json!({
                        "url": format!("http://{name}.default.example.com"),
                        "conditions": [{"type": "Ready", "status": status, "reason": reason,
                                        "message": "no such image"}],
                    });
                    all.insert(name, body.clone());
                    Ok((201, body))
                }
                _ => Err("nonsense".to_owned()),
            }
        }
    }

    const MANIFEST: &str = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: x}\n\
        spec: {template: {spec: {containers: [{image: i, ports: [{name: h2c, containerPort: 50051}]}]}}}\n";

    fn deployment() -> Deployment {
        Deployment {
            mark: "functions.json".to_owned(),
            namespace: "default".to_owned(),
            concurrency: 3,
            patience: Duration::from_millis(100),
            domain: None,
            gateway: Some("127.0.0.1:9".to_owned()),
        }
    }

    fn wanted(dir: &Path, names: &[&str]) -> Vec<Wanted> {
        let manifest = dir.join("x.yaml");
        std::fs::write(&manifest, MANIFEST).unwrap();
        names
            .iter()
            .map(|name| Wanted { name: (*name).to_owned(), manifest: manifest.clone() })
            .collect()
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(work)
    }

    #[test]
    fn only_what_is_ready_has_an_endpoint_and_each_failure_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let mut wanted = wanted(dir.path(), &["a-0", "slow-0", "bad-0", "no-0", "a-1"]);
        wanted[4].manifest = dir.path().join("absent.yaml");
        let api = Fake::default();
        let done = block_on(deployment().deploy(&api, &wanted));
        let endpoint = done[0].1.as_ref().unwrap();
        assert_eq!(endpoint.hostname, "a-0.default.example.com");
        assert_eq!(endpoint.protocol, Some(Protocol::Grpc));
        for (index, said) in [
            (1, "not ready within"),
            (2, "RevisionFailed"),
            (3, "unknown field"),
            (4, "absent.yaml"),
        ] {
            let why = done[index].1.as_ref().unwrap_err();
            assert!(why.contains(said), "{why}");
        }
        let stored = api.0.borrow()["a-0"].clone();
        assert_eq!(stored["metadata"]["annotations"][MARK], "functions.json");
        assert_eq!(stored["spec"]["template"]["metadata"]["annotations"][TARGET], "1");
    }

    #[test]
    fn only_what_was_deployed_is_updated_and_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = wanted(dir.path(), &["a-0", "own-0", "gone-0"]);
        let api = Fake::default();
        let own = json!({"metadata": {"name": "own-0"}});
        api.0.borrow_mut().insert("own-0".to_owned(), own);
        let deployment = deployment();
        let done = block_on(deployment.deploy(&api, &wanted[..2]));
        assert!(done[0].1.is_ok() && done[1].1.as_ref().unwrap_err().contains("not deployed from"));
        let again = block_on(deployment.deploy(&api, &wanted[..1]));
        assert!(again[0].1.is_ok(), "an update");
        let other = Deployment { mark: "other.json".to_owned(), ..deployment.clone() };
        let left = block_on(other.delete(&api, &wanted[..1]));
        assert!(left[0].1.as_ref().unwrap_err().contains("left alone"));
        let deleted = block_on(deployment.delete(&api, &wanted));
        assert_eq!(deleted[0].1, Ok(true));
        assert!(deleted[1].1.as_ref().unwrap_err().contains("left alone"));
        assert_eq!(deleted[2].1, Ok(false));
        assert_eq!(api.0.borrow().len(), 1);
    }

    #[test]
    fn the_originals_file_is_read_and_mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("functions.json");
        let read_text = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(&path, Path::new("yamls"))
        };
        let all = read_text(
            r#"{"functions":[{"name":"helloworld","file":"helloworld.yaml","count":1,
            "eventing":false,"applyScript":""},{"name":"pyaes","file":"pyaes.yaml","count":2}]}"#,
        )
        .unwrap();
        let names: Vec<&str> = all.iter().map(|wanted| wanted.name.as_str()).collect();
        assert_eq!(names, ["helloworld-0", "pyaes-0", "pyaes-1"]);
        assert_eq!(all[2].manifest, Path::new("yamls/pyaes.yaml"));
        let one =
            |more: &str| format!(r#"{{"functions":[{{"name":"a","file":"f","count":1{more}}}]}}"#);
        for (text, said) in [
            (r#"{"functions":[]}"#.to_owned(), "0 services"),
            (one(r#","eventing":true"#), "eventing"),
            (one(r#","cuont":1"#), "is no list of functions"),
            (one(r#"},{"name":"a","file":"g","count":1"#), "a-0 is listed twice"),
        ] {
            let error = read_text(&text).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
