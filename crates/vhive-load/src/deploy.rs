//! The deployer: services from the original's `functions.json`, and `endpoints.json` of those
//! that are ready.
//!
//! # Source
//! vSwarm `tools/deployer`, which writes the endpoints of failures too and deletes nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::call::Protocol;
use crate::endpoints::Endpoint;

/// The mark of what was deployed from here: as a label, from which file of functions, by which it is
/// found again; as an annotation, that file's name for people.
const MARK: &str = "load.vhive.dev/deployed-from";
/// As the original asks for: one request at a time on each instance is what scaling aims at.
const TARGET: &str = "autoscaling.knative.dev/target";
/// How many instances a revision begins with.
const INITIAL_SCALE: &str = "autoscaling.knative.dev/initial-scale";
/// How often a service that is not ready is asked again.
const AGAIN: Duration = Duration::from_millis(250);

/// Which services, from a file of functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// `<function>-<index>`.
    pub name: String,
    /// Its manifest.
    pub manifest: PathBuf,
    /// Instances that it begins with; 0 leaves that to the manifest.
    pub initial_scale: u64,
}

/// Which file services were deployed from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Of its whole path: two files of the same name are two.
    label: String,
    /// Its name.
    name: String,
}

impl Mark {
    /// That of a file.
    ///
    /// # Errors
    /// When it is not there.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let whole = path.canonicalize()?;
        let label = format!("{:016x}", fnv(whole.as_os_str().as_encoded_bytes()));
        let name = whole.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { label, name })
    }
}

/// A short name for some bytes, the same in every version of this program.
///
/// # Source
/// Fowler, Noll, Vo: FNV-1a, 64 bits.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix)
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
            let (name, manifest) = (format!("{name}-{index}"), dir.join(&file));
            all.push(Wanted { name, manifest, initial_scale: 0 });
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
    /// The mark of what comes from the file of functions.
    pub mark: Mark,
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
    fn all(&self) -> String {
        format!("/apis/serving.knative.dev/v1/namespaces/{}/services", self.namespace)
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.all())
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

    /// Deletes every service that was deployed from the same file, whether that lists it still or
    /// not; others of the names in it are left alone, and told. What is not there is no failure.
    ///
    /// # Errors
    /// When the services cannot be listed.
    pub async fn delete(
        &self,
        api: &impl Api,
        wanted: &[Wanted],
    ) -> Result<Vec<Done<bool>>, String> {
        let mut names = self.deployed(api).await?;
        let more =
            wanted.iter().map(|wanted| wanted.name.clone()).filter(|name| !names.contains(name));
        let more: Vec<String> = more.collect();
        names.extend(more);
        let one = async |name: String| {
            let done = self.delete_one(api, &name).await;
            (name, done)
        };
        let done = futures_util::stream::iter(names).map(one);
        Ok(done.buffered(self.concurrency.max(1)).collect().await)
    }

    /// Names of the services that carry the mark.
    async fn deployed(&self, api: &impl Api) -> Result<BTreeSet<String>, String> {
        let selector = format!("{}%3D{}", MARK.replace('/', "%2F"), self.mark.label);
        let path = format!("{}?labelSelector={selector}", self.all());
        let (status, list) = api.call(Method::GET, &path, None).await?;
        if status != 200 {
            return Err(message(status, &list));
        }
        let all = list["items"].as_array().into_iter().flatten();
        // A server that knows no selectors would give all.
        let ours = all.filter(|one| self.is_ours(one));
        let name = |one: &Value| one["metadata"]["name"].as_str().map(str::to_owned);
        Ok(ours.filter_map(name).collect())
    }

    /// Whether it was deployed from this file. What older versions have deployed has no label: of it,
    /// the file's name counts.
    fn is_ours(&self, service: &Value) -> bool {
        let mark = |part: &str| service.pointer(part).and_then(|all| all[MARK].as_str());
        match mark("/metadata/labels") {
            Some(label) => label == self.mark.label,
            None => mark("/metadata/annotations") == Some(&self.mark.name),
        }
    }

    async fn deploy_one(&self, api: &impl Api, wanted: &Wanted) -> Result<Endpoint, String> {
        let (mut service, protocol) = self.manifest(wanted)?;
        let path = self.path(&wanted.name);
        let (status, old) = api.call(Method::GET, &path, None).await?;
        let (status, new) = match status {
            404 => api.call(Method::POST, &self.all(), Some(&service)).await?,
            200 if !self.is_ours(&old) => {
                return Err(
                    "a service of this name is there that was not deployed from this file".into()
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
            // Until then it is what was said of the service before the change.
            let ready = ready.filter(|_| is_current(&service));
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
        if !self.is_ours(&there) {
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
        set(&mut service["metadata"], "labels", (MARK, &self.mark.label));
        set(&mut service["metadata"], "annotations", (MARK, &self.mark.name));
        let Some(template) = service.pointer_mut("/spec/template").filter(|t| t.is_object()) else {
            return Err(format!("{shown} has no spec.template"));
        };
        if template["metadata"].is_null() {
            template["metadata"] = json!({});
        }
        let metadata = &mut template["metadata"];
        if metadata["annotations"][TARGET].is_null() {
            set(metadata, "annotations", (TARGET, "1"));
        }
        if wanted.initial_scale > 0 {
            set(metadata, "annotations", (INITIAL_SCALE, &wanted.initial_scale.to_string()));
        }
        let port = service.pointer("/spec/template/spec/containers/0/ports/0/name");
        let grpc = port.and_then(Value::as_str) == Some("h2c");
        Ok((service, if grpc { Protocol::Grpc } else { Protocol::Http1 }))
    }
}

/// Sets a label or an annotation.
fn set(metadata: &mut Value, part: &str, (key, value): (&str, &str)) {
    let Some(metadata) = metadata.as_object_mut() else { return };
    let all = metadata.entry(part).or_insert_with(|| json!({}));
    if all.is_null() {
        *all = json!({});
    }
    if let Some(all) = all.as_object_mut() {
        all.insert(key.to_owned(), json!(value));
    }
}

/// Whether a service's status is that of what it is now to be.
fn is_current(service: &Value) -> bool {
    let number = |place: &str| service.pointer(place).and_then(Value::as_u64);
    let wanted = number("/metadata/generation");
    wanted.is_none_or(|wanted| number("/status/observedGeneration") >= Some(wanted))
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
    use std::collections::BTreeMap;

    use super::*;

    /// Keeps services as a platform would; those named `slow…` are never ready, `bad…` fail,
    /// `no…` are refused, `stale…` tell of what they were before until they are asked.
    #[derive(Default)]
    struct Fake(RefCell<BTreeMap<String, Value>>);

    /// What stands behind the label's name in a selector.
    fn selected(path: &str) -> Option<&str> {
        path.split_once("?labelSelector=load.vhive.dev%2Fdeployed-from%3D").map(|(_, label)| label)
    }

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
                ("GET", _) if path.contains('?') => {
                    let label = selected(path).expect("a selector");
                    let has = |one: &&Value| one["metadata"]["labels"][MARK] == label;
                    let items: Vec<Value> = all.values().filter(has).cloned().collect();
                    Ok((200, json!({ "items": items })))
                }
                ("GET", _) => {
                    // By now it has looked.
                    if let Some(one) = all.get_mut(&name) {
                        let generation = one["metadata"]["generation"].clone();
                        let stale = one["status"]["observedGeneration"] != generation;
                        if stale {
                            one["status"]["observedGeneration"] = generation;
                            one["status"]["url"] = json!(format!("http://{name}.new.example.com"));
                        }
                    }
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
                    let old = all.get(&name).and_then(|old| old["metadata"]["generation"].as_u64());
                    let generation = old.unwrap_or(0) + 1;
                    body["metadata"]["generation"] = json!(generation);
                    let observed = generation - u64::from(name.starts_with("stale"));
                    body["status"] = json!({
                        "observedGeneration": observed,
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

    fn deployment(dir: &Path) -> Deployment {
        let path = dir.join("functions.json");
        std::fs::write(&path, "").unwrap();
        Deployment {
            mark: Mark::of(&path).unwrap(),
            namespace: "default".to_owned(),
            concurrency: 3,
            patience: Duration::from_millis(400),
            domain: None,
            gateway: Some("127.0.0.1:9".to_owned()),
        }
    }

    fn wanted(dir: &Path, names: &[&str]) -> Vec<Wanted> {
        let manifest = dir.join("x.yaml");
        std::fs::write(&manifest, MANIFEST).unwrap();
        names
            .iter()
            .map(|name| {
                let (name, manifest) = ((*name).to_owned(), manifest.clone());
                Wanted { name, manifest, initial_scale: 0 }
            })
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
        wanted[0].initial_scale = 3;
        let api = Fake::default();
        let done = block_on(deployment(dir.path()).deploy(&api, &wanted));
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
        let of_template = &stored["spec"]["template"]["metadata"]["annotations"];
        assert_eq!((&of_template[TARGET], &of_template[INITIAL_SCALE]), (&"1".into(), &"3".into()));
        let second = api.0.borrow()["slow-0"]["spec"]["template"]["metadata"].clone();
        assert!(second["annotations"][INITIAL_SCALE].is_null(), "{second}");
    }

    #[test]
    fn what_is_said_of_an_earlier_generation_makes_nothing_ready() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = wanted(dir.path(), &["stale-0"]);
        let api = Fake::default();
        let done = block_on(deployment(dir.path()).deploy(&api, &wanted));
        let endpoint = done[0].1.as_ref().unwrap();
        assert_eq!(endpoint.hostname, "stale-0.new.example.com", "what was said later counts");
        for (service, current) in [
            (json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 1}}), false),
            (json!({"metadata": {"generation": 2}, "status": {}}), false),
            (json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 2}}), true),
            (json!({"metadata": {}, "status": {}}), true),
        ] {
            assert_eq!(is_current(&service), current, "{service}");
        }
    }

    #[test]
    fn only_what_was_deployed_is_updated_and_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = wanted(dir.path(), &["a-0", "own-0", "gone-0"]);
        let api = Fake::default();
        let own = json!({"metadata": {"name": "own-0"}});
        api.0.borrow_mut().insert("own-0".to_owned(), own);
        // Of the same name, in another directory.
        let elsewhere = dir.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        let (other, deployment) = (deployment(&elsewhere), deployment(dir.path()));
        assert_eq!(other.mark.name, deployment.mark.name);
        let done = block_on(deployment.deploy(&api, &wanted[..2]));
        assert!(done[0].1.is_ok() && done[1].1.as_ref().unwrap_err().contains("not deployed from"));
        let again = block_on(deployment.deploy(&api, &wanted[..1]));
        assert!(again[0].1.is_ok(), "an update");
        let taken = block_on(other.deploy(&api, &wanted[..1]));
        assert!(taken[0].1.as_ref().unwrap_err().contains("not deployed from this file"));
        let left = block_on(other.delete(&api, &wanted[..1])).unwrap();
        assert!(left[0].1.as_ref().unwrap_err().contains("left alone"));
        // The file lists one less by now.
        let deleted = block_on(deployment.delete(&api, &wanted[1..])).unwrap();
        assert_eq!(deleted[0], ("a-0".to_owned(), Ok(true)));
        assert_eq!(deleted[1], ("gone-0".to_owned(), Ok(false)));
        assert!(deleted[2].1.as_ref().unwrap_err().contains("left alone"));
        assert_eq!(api.0.borrow().keys().collect::<Vec<_>>(), ["own-0"]);
    }

    #[test]
    fn what_an_older_version_deployed_from_a_file_of_this_name_is_updated_and_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = wanted(dir.path(), &["a-0", "b-0", "c-0"]);
        let api = Fake::default();
        for (name, file) in
            [("a-0", "functions.json"), ("b-0", "functions.json"), ("c-0", "others.json")]
        {
            let old = json!({"metadata": {"name": name, "annotations": {MARK: file}}});
            api.0.borrow_mut().insert(name.to_owned(), old);
        }
        let deployment = deployment(dir.path());
        let done = block_on(deployment.deploy(&api, &wanted[..1]));
        assert!(done[0].1.is_ok(), "{done:?}");
        let label = api.0.borrow()["a-0"]["metadata"]["labels"][MARK].clone();
        assert_eq!(label, deployment.mark.label.as_str(), "it is marked from then on");
        let deleted = block_on(deployment.delete(&api, &wanted)).unwrap();
        let left: Vec<_> = deleted.iter().filter(|(_, done)| done.is_err()).collect();
        assert!(matches!(left.as_slice(), [(name, _)] if name == "c-0"), "{deleted:?}");
        assert_eq!(api.0.borrow().keys().collect::<Vec<_>>(), ["c-0"]);
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
