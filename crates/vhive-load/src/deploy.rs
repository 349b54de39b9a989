//! The deployer: services from the original's `functions.json`, and `endpoints.json` of those
//! that are ready.
//!
//! # Source
//! vSwarm `tools/deployer`, which writes the endpoints of failures too and deletes nothing.

mod functions;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt as _;
use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

pub use self::functions::{FunctionsError, Wanted, read};
use crate::call::Protocol;
use crate::endpoints::Endpoint;
use crate::stop::Stop;

/// The mark of what was deployed from here: as a label, from which file of functions, by which it is
/// found again; as an annotation, that file's name for people.
const MARK: &str = "load.vhive.dev/deployed-from";
/// The labels and annotations that a manifest had when it was deployed, as JSON: those that it has no more go.
const KEYS: &str = "load.vhive.dev/keys";
/// What of a service's metadata is a map of names to values.
const MAPS: [&str; 2] = ["annotations", "labels"];
/// As the original asks for: one request at a time on each instance is what scaling aims at.
const TARGET: &str = "autoscaling.knative.dev/target";
/// How many instances a revision begins with.
const INITIAL_SCALE: &str = "autoscaling.knative.dev/initial-scale";
/// How often a service that is not ready is asked again.
const AGAIN: Duration = Duration::from_millis(250);

/// How often something is asked for that a server or the way to it fails at, some half a minute: a server or a
/// webhook that begins anew is back by then.
const TRIES: u32 = 120;
/// How often a server is asked at first, some five seconds: there may be none at all.
const FIRST_TRIES: u32 = 20;
/// How often a service is looked at again that somebody else has changed meanwhile.
const ROUNDS: u32 = 4;

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
    /// When its directory is not there.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let whole = match path.canonicalize() {
            Ok(whole) => whole,
            // What it listed can still be found.
            Err(error) => {
                let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
                let dir = dir.unwrap_or(Path::new(".")).canonicalize()?;
                dir.join(path.file_name().ok_or(error)?)
            }
        };
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

/// A service that was to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Whether it was there.
    pub was_there: bool,
    /// What the name of its endpoint begins with, whichever domain it was deployed in.
    pub prefix: String,
    /// The whole name, as far as it is known: a platform may name it otherwise.
    pub hostname: Option<String>,
}

/// What came of a service.
pub type Done<T> = (String, Result<T, String>);

impl Deployment {
    /// Asks where the platform's gateway listens. A node knows; of a cluster, which says that it has no such path,
    /// the services' names lead there.
    ///
    /// # Errors
    /// When the server is not there, or does not know us.
    pub async fn find_gateway(&self, api: &impl Api) -> Result<Option<String>, String> {
        let until = (Instant::now() + self.patience, FIRST_TRIES);
        let (status, node) = self.call(api, (Method::GET, "/vhive/v1/node", None), until).await?;
        match status {
            200 => Ok(node["gateway"].as_str().map(str::to_owned)),
            401 => Err(format!("the server does not know us: {}", node["message"])),
            _ => Ok(None),
        }
    }

    fn all(&self) -> String {
        format!("/apis/serving.knative.dev/v1/namespaces/{}/services", self.namespace)
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.all())
    }

    /// Creates or updates every service and waits until it is ready; `tell` is called with each as it is
    /// known. The results are in the order of `wanted`. Once it is stopped no more are begun, those under
    /// way are not waited for, and those that were not begun have no result.
    pub async fn deploy(
        &self,
        api: &impl Api,
        wanted: &[Wanted],
        stop: &Stop,
        mut tell: impl FnMut(&Done<Endpoint>),
    ) -> Vec<Done<Endpoint>> {
        let one = async |(index, wanted): (usize, &Wanted)| {
            let done = tokio::select! {
                biased;
                done = self.deploy_one(api, wanted) => done,
                () = stop.asked() => Err("stopped before it was ready".to_owned()),
            };
            (index, (wanted.name.clone(), done))
        };
        let begun = futures_util::stream::iter(wanted.iter().enumerate())
            .take_while(|_| std::future::ready(!stop.is_asked()));
        // In any order: one that never gets ready holds none of the others up.
        let all = begun.map(one).buffer_unordered(self.concurrency.max(1));
        let told = all.inspect(|(_, done)| tell(done));
        let mut all: Vec<(usize, Done<Endpoint>)> = told.collect().await;
        all.sort_by_key(|(index, _)| *index);
        all.into_iter().map(|(_, done)| done).collect()
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
    ) -> Result<Vec<Done<Gone>>, String> {
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
        let until = (Instant::now() + self.patience, TRIES);
        let (status, list) = self.call(api, (Method::GET, &path, None), until).await?;
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

    /// The host name of a service in the domain that was asked for, if one was.
    fn own_hostname(&self, name: &str) -> Option<String> {
        let domain = self.domain.as_ref()?;
        Some(format!("{}{domain}", self.prefix(name)))
    }

    /// What host names of a service begin with.
    fn prefix(&self, name: &str) -> String {
        format!("{name}.{}.", self.namespace)
    }

    /// Calls, and again after what passes by itself, `tries` times at most, until the deadline.
    async fn call(
        &self,
        api: &impl Api,
        (method, path, body): (Method, &str, Option<&Value>),
        (deadline, tries): (Instant, u32),
    ) -> Result<(u16, Value), String> {
        let mut last = None;
        for _ in 0..tries {
            let call = api.call(method.clone(), path, body);
            last = Some(match tokio::time::timeout_at(deadline, call).await {
                Ok(Ok((status, body))) if !passes(status) => return Ok((status, body)),
                Ok(Ok((status, body))) => message(status, &body),
                Ok(Err(why)) => why,
                // What was said before says more.
                Err(_) if last.is_some() => break,
                Err(_) => format!("no answer within {:?}", self.patience),
            });
            if Instant::now() + AGAIN > deadline {
                break;
            }
            tokio::time::sleep(AGAIN).await;
        }
        Err(last.unwrap_or_else(|| "not asked".to_owned()))
    }

    /// Creates or updates a service. Whoever else writes to it meanwhile, a controller its status, goes
    /// before: then it is looked at again.
    async fn put(
        &self,
        api: &impl Api,
        (wanted, service): (&Wanted, &Value),
        until: (Instant, u32),
    ) -> Result<Value, String> {
        let path = self.path(&wanted.name);
        let mut refused = String::new();
        for _ in 0..ROUNDS {
            let (status, old) = self.call(api, (Method::GET, &path, None), until).await?;
            let (status, new) = match status {
                404 => {
                    let all = self.all();
                    self.call(api, (Method::POST, &all, Some(service)), until).await?
                }
                200 if !self.is_ours(&old) => {
                    return Err(
                        "a service of this name is there that was not deployed from this file"
                            .into(),
                    );
                }
                200 => {
                    let mut service = service.clone();
                    keep(&old, &mut service);
                    self.call(api, (Method::PUT, &path, Some(&service)), until).await?
                }
                _ => (status, old),
            };
            match status {
                200..=299 => return Ok(new),
                409 => refused = message(status, &new),
                _ => return Err(message(status, &new)),
            }
        }
        Err(refused)
    }

    async fn deploy_one(&self, api: &impl Api, wanted: &Wanted) -> Result<Endpoint, String> {
        let (service, protocol) = self.manifest(wanted)?;
        let deadline = Instant::now() + self.patience;
        let new = self.put(api, (wanted, &service), (deadline, TRIES)).await?;
        let path = self.path(&wanted.name);
        let url = self.ready(api, &path, new, deadline).await?;
        let (hostname, address) = match self.own_hostname(&wanted.name) {
            Some(hostname) => (hostname, None),
            None => place(&url)?,
        };
        let (matchers, address) = (None, self.gateway.clone().or(address));
        let (eventing, protocol) = (wanted.eventing, Some(protocol));
        Ok(Endpoint { hostname, eventing, matchers, address, protocol })
    }

    async fn ready(
        &self,
        api: &impl Api,
        path: &str,
        mut service: Value,
        deadline: Instant,
    ) -> Result<String, String> {
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
            let (status, now) =
                self.call(api, (Method::GET, path, None), (deadline, u32::MAX)).await?;
            if status != 200 {
                return Err(message(status, &now));
            }
            service = now;
        }
    }

    async fn delete_one(&self, api: &impl Api, name: &str) -> Result<Gone, String> {
        let path = self.path(name);
        let until = (Instant::now() + self.patience, TRIES);
        let (status, there) = self.call(api, (Method::GET, &path, None), until).await?;
        match status {
            404 => {
                let (prefix, hostname) = (self.prefix(name), None);
                return Ok(Gone { was_there: false, prefix, hostname });
            }
            200 => {}
            _ => return Err(message(status, &there)),
        }
        if !self.is_ours(&there) {
            return Err("left alone: it was not deployed from this file".into());
        }
        let (status, reply) = self.call(api, (Method::DELETE, &path, None), until).await?;
        // One that is gone by now went with an earlier try, whose answer was lost.
        match status {
            200..=299 | 404 => {
                let url = there.pointer("/status/url").and_then(Value::as_str);
                let hostname = url.and_then(|url| Some(place(url).ok()?.0));
                Ok(Gone { was_there: true, prefix: self.prefix(name), hostname })
            }
            _ => Err(message(status, &reply)),
        }
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
        let keys =
            |part: &&str| service["metadata"][*part].as_object().map(|all| all.keys().collect());
        let keys: Vec<Option<Vec<&String>>> = MAPS.iter().map(keys).collect();
        let keys = json!(keys).to_string();
        set(&mut service["metadata"], "annotations", (KEYS, &keys));
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

/// Lays the metadata that is to be over those that the server has. What it, or another, has set stays: it
/// refuses an update that lacks some of that. What an earlier manifest had goes.
///
/// # Source
/// Knative's `pkg/apis`, `ValidateCreatorAndModifier`: `serving.knative.dev/creator` never changes, and
/// `…/lastModifier` only with the `spec`.
fn keep(old: &Value, service: &mut Value) {
    let Some(metadata) = service["metadata"].as_object_mut() else { return };
    let keys = old["metadata"]["annotations"][KEYS].as_str().unwrap_or_default();
    let keys: Value = serde_json::from_str(keys).unwrap_or_default();
    for (index, part) in MAPS.into_iter().enumerate() {
        let mut all = old["metadata"][part].as_object().cloned().unwrap_or_default();
        let ours = keys[index].as_array().into_iter().flatten().filter_map(Value::as_str);
        ours.for_each(|key| drop(all.remove(key)));
        all.extend(metadata.get(part).and_then(Value::as_object).cloned().unwrap_or_default());
        metadata.insert(part.to_owned(), all.into());
    }
    for part in ["finalizers", "ownerReferences", "resourceVersion"] {
        if let Some(there) = old["metadata"].get(part) {
            metadata.insert(part.to_owned(), there.clone());
        }
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

/// Whether a status is one of the moment.
const fn passes(status: u16) -> bool {
    matches!(status, 429 | 500..=599)
}

/// Takes the lines of services that are gone out of a list of endpoints; `None` when it has none of them.
/// What else a line says stays as it is.
#[must_use]
pub fn without(list: &Value, gone: &[Gone]) -> Option<Value> {
    let is_gone = |line: &&Value| {
        let name = line["hostname"].as_str().unwrap_or_default();
        gone.iter()
            .any(|gone| name.starts_with(&gone.prefix) || gone.hostname.as_deref() == Some(name))
    };
    let all = list.as_array()?;
    let left: Vec<Value> = all.iter().filter(|line| !is_gone(line)).cloned().collect();
    (left.len() < all.len()).then(|| left.into())
}

fn message(status: u16, body: &Value) -> String {
    let text = body["message"].as_str().map_or_else(|| body.to_string(), str::to_owned);
    format!("status {status}: {text}")
}

/// The host that a URL names, and where to connect when it names a port, too.
fn place(url: &str) -> Result<(String, Option<String>), String> {
    let none = || format!("its URL {url:?} has no host");
    let url: http::Uri = url.parse().map_err(|_| none())?;
    if url.scheme_str() == Some("https") {
        return Err(format!(
            "its URL {url} is of https, and the invoker speaks no TLS: switch the platform's TLS off, or name \
             the domain of a gateway without it (`--gateway-url`)"
        ));
    }
    let host = url.host().filter(|host| !host.is_empty()).ok_or_else(none)?;
    let address = url.port_u16().filter(|port| *port != 80).map(|port| format!("{host}:{port}"));
    Ok((host.to_owned(), address))
}

#[cfg(test)]
mod tests;
