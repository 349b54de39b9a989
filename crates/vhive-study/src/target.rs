//! What a study asks of a running node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request as HttpRequest};
use http_body_util::Full;
use serde_json::Value;
use vhive_api::{HostCounters, InvocationRecord, RuntimeName};

use crate::deadline::Deadline;
use crate::function::{LABEL, Request};
use crate::http::{ApiError, Client, Door, Reply, invoke};
use crate::plan::Counters;

/// Between two questions that wait for the node to do something.
const PAUSE: Duration = Duration::from_millis(20);

/// How long an invocation's record may take to appear.
const RECORD_PATIENCE: Duration = Duration::from_secs(5);

/// A running node.
#[derive(Clone, Debug)]
pub struct Target {
    door: Door,
    namespace: String,
    gateway: String,
    domain: String,
    /// What the node told of itself (`GET /vhive/v1/node`).
    pub facts: Value,
}

/// Memory that the instances of a service take on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Resident, in bytes.
    pub rss: Option<u64>,
    /// Proportional (shared pages divided), in bytes.
    pub pss: Option<u64>,
    /// Of the guest, as configured, in bytes.
    pub guest: Option<u64>,
}

/// What an instance had used of the host at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Its sandbox.
    pub sandbox: String,
    /// What it had used since it was started.
    pub counters: HostCounters,
}

impl Counted {
    /// What it has used since its start. Events are counted only from the first look on, and so are not of
    /// it.
    #[must_use]
    pub fn since_start(&self) -> HostCounters {
        let all = self.counters.0.iter().map(|(counter, count)| (*counter, *count));
        all.filter(|(counter, _)| !counter.is_event()).collect()
    }

    /// What it has used since an earlier moment; none if that was another instance.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Option<HostCounters> {
        (self.sandbox == earlier.sandbox).then(|| self.counters.since(&earlier.counters))
    }
}

impl Target {
    /// Connects to a node.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn connect(
        door: Door,
        namespace: &str,
        deadline: Deadline,
    ) -> Result<Self, ApiError> {
        let facts = door.json(Method::GET, "/vhive/v1/node", None, deadline).await?;
        let text = |name: &str| facts.get(name).and_then(Value::as_str).map(str::to_owned);
        let strange = || ApiError::Strange {
            at: "the node".to_owned(),
            what: "no `gateway` in its description".to_owned(),
        };
        let gateway = text("gateway").ok_or_else(strange)?;
        let domain = text("domain").unwrap_or_else(|| "example.com".to_owned());
        Ok(Self { door, namespace: namespace.to_owned(), gateway, domain, facts })
    }

    /// The node's state directory, as it says.
    #[must_use]
    pub fn state_dir(&self) -> Option<&Path> {
        self.facts.get("state_dir").and_then(Value::as_str).map(Path::new)
    }

    fn services(&self) -> String {
        format!("/apis/serving.knative.dev/v1/namespaces/{}/services", self.namespace)
    }

    fn view(&self, service: &str, what: &str) -> String {
        format!("/vhive/v1/namespaces/{}/services/{service}/{what}", self.namespace)
    }

    /// Creates or replaces a service of the study's.
    ///
    /// # Errors
    /// When the node refuses it, or a service of that name exists that no study made.
    pub async fn apply(&self, service: &Value, deadline: Deadline) -> Result<(), ApiError> {
        let mut service = service.clone();
        let name = service.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let path = format!("{}/{name}", self.services());
        match self.door.json(Method::GET, &path, None, deadline).await {
            Ok(old) => {
                if !is_ours(&old) {
                    let message = format!(
                        "a service {name} exists that no study made; delete it or use another \
                         namespace (-n)"
                    );
                    return Err(ApiError::Refused { status: http::StatusCode::CONFLICT, message });
                }
                if let Some(version) = old.pointer("/metadata/resourceVersion") {
                    service["metadata"]["resourceVersion"] = version.clone();
                }
                self.door.json(Method::PUT, &path, Some(&service), deadline).await?;
            }
            Err(error) if error.is_not_found() => {
                self.door.json(Method::POST, &self.services(), Some(&service), deadline).await?;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Deletes a service of the study's; one that does not exist, or that no study made, is left as
    /// it is.
    ///
    /// # Errors
    /// When the node refuses.
    pub async fn delete(&self, service: &str, deadline: Deadline) -> Result<(), ApiError> {
        self.take_away(service, "", deadline).await
    }

    /// Likewise, but its snapshots stay for whoever makes the same again.
    ///
    /// # Errors
    /// When the node refuses.
    pub async fn put_aside(&self, service: &str, deadline: Deadline) -> Result<(), ApiError> {
        self.take_away(service, "?keepSnapshots=true", deadline).await
    }

    async fn take_away(
        &self,
        service: &str,
        how: &str,
        deadline: Deadline,
    ) -> Result<(), ApiError> {
        let path = format!("{}/{service}", self.services());
        let gone = match self.door.json(Method::GET, &path, None, deadline).await {
            Ok(found) if !is_ours(&found) => return Ok(()),
            Ok(_) => {
                let path = format!("{path}{how}");
                self.door.json(Method::DELETE, &path, None, deadline).await
            }
            Err(error) => Err(error),
        };
        match gone {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Has the service's idle instances stopped and waits until it has none. A node that cannot be
    /// asked for that scales to zero by itself: the services' windows are short.
    ///
    /// # Errors
    /// When instances are still there at the deadline.
    pub async fn empty(&self, service: &str, deadline: Deadline) -> Result<(), ApiError> {
        let path = self.view(service, "evict");
        match self.door.json(Method::POST, &path, None, deadline).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        loop {
            let now = self.describe(service, deadline).await?;
            let instances = now["instances"].as_array().map_or(0, Vec::len);
            if instances == 0 && now["starting"].as_u64().unwrap_or(0) == 0 {
                return Ok(());
            }
            if deadline.passed() {
                return Err(ApiError::Late { at: format!("{service}, which still has instances") });
            }
            deadline.pause(PAUSE).await;
        }
    }

    async fn describe(&self, service: &str, deadline: Deadline) -> Result<Value, ApiError> {
        self.door.json(Method::GET, &self.view(service, "describe"), None, deadline).await
    }

    /// Under which accelerators the node runs guests, as far as it has found that out: by the
    /// first start at the latest.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn accelerators(&self, deadline: Deadline) -> Result<Option<Value>, ApiError> {
        let facts = self.door.json(Method::GET, "/vhive/v1/node", None, deadline).await?;
        Ok(facts.get("accelerators").cloned())
    }

    /// Memory of the service's instances, on average.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn footprint(
        &self,
        service: &str,
        deadline: Deadline,
    ) -> Result<Footprint, ApiError> {
        let now = self.described(service, true, deadline).await?;
        let instances = now["instances"].as_array().cloned().unwrap_or_default();
        let mean = |name: &str| {
            let known: Vec<u64> = instances.iter().filter_map(|i| i[name].as_u64()).collect();
            known.iter().sum::<u64>().checked_div(known.len() as u64)
        };
        let guest = now.pointer("/revision/memory").and_then(Value::as_str);
        Ok(Footprint {
            rss: mean("memory_bytes"),
            pss: mean("pss_bytes"),
            guest: guest.and_then(|text| text.parse::<vhive_api::Bytes>().ok()).map(|b| b.0),
        })
    }

    /// What the service's instance has used of the host; none if there is not exactly one, or
    /// nothing is to be counted.
    ///
    /// # Errors
    /// When the node does not answer, or with counters that this program does not know.
    pub async fn counted(
        &self,
        service: &str,
        counters: Counters,
        deadline: Deadline,
    ) -> Result<Option<Counted>, ApiError> {
        let mut all = self.counted_each(service, counters, deadline).await?;
        let one = if all.len() == 1 { all.pop() } else { None };
        Ok(one.filter(|one| !one.counters.is_empty()))
    }

    /// What each of the service's instances has used of the host, which may be nothing that is known;
    /// of none if nothing is to be counted.
    ///
    /// # Errors
    /// As [`counted`](Self::counted)'s.
    pub async fn counted_each(
        &self,
        service: &str,
        counters: Counters,
        deadline: Deadline,
    ) -> Result<Vec<Counted>, ApiError> {
        let what = match counters {
            Counters::Off => return Ok(Vec::new()),
            Counters::Basic => "describe?counters=basic",
            Counters::All => "describe?counters=all",
        };
        let path = self.view(service, what);
        let now = self.door.json(Method::GET, &path, None, deadline).await?;
        let each = |one: &Value| {
            let sandbox = one["sandbox"].as_str().unwrap_or_default().to_owned();
            let counters = serde_json::from_value::<Option<HostCounters>>(one["counters"].clone());
            let counters = counters.map_err(|error| ApiError::Strange {
                at: "the node's counters".to_owned(),
                what: error.to_string(),
            })?;
            Ok(Counted { sandbox, counters: counters.unwrap_or_default() })
        };
        now["instances"].as_array().into_iter().flatten().map(each).collect()
    }

    /// The newest working set of the service's snapshot, if it has one that this process may read.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn working_set(
        &self,
        service: &str,
        deadline: Deadline,
    ) -> Result<Option<PathBuf>, ApiError> {
        let ours = self.snapshot(service, deadline).await?;
        let newest = |snapshot: &Value| {
            let numbers = snapshot["working_sets"].as_array()?;
            let newest = numbers.iter().filter_map(Value::as_u64).max()?;
            Some(Path::new(snapshot["path"].as_str()?).join(format!("working-set.{newest}")))
        };
        Ok(ours.as_ref().and_then(newest))
    }

    /// Whether the node will record the service's next start again, because the last one missed
    /// too much.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn will_record(&self, service: &str, deadline: Deadline) -> Result<bool, ApiError> {
        let ours = self.snapshot(service, deadline).await?;
        Ok(ours.is_some_and(|snapshot| snapshot["missed"] == true))
    }

    /// The snapshot of the service's revision, as the node knows it. It is asked for by its identifier: that of
    /// an earlier service of this name may still be there, and has a revision of the same name.
    async fn snapshot(&self, service: &str, deadline: Deadline) -> Result<Option<Value>, ApiError> {
        let now = self.describe(service, deadline).await?;
        let Some(id) = now["snapshot"].as_str() else { return Ok(None) };
        let path = format!("/vhive/v1/snapshots/{id}");
        match self.door.json(Method::GET, &path, None, deadline).await {
            Err(error) if error.is_not_found() => Ok(None),
            found => found.map(Some),
        }
    }

    /// Sends a request to a service.
    ///
    /// # Errors
    /// When no whole reply comes; an error status is a reply.
    pub async fn invoke(
        &self,
        service: &str,
        request: &Request,
        deadline: Deadline,
    ) -> Result<Reply, ApiError> {
        invoke(&self.gateway, self.request(service, request)?, deadline).await
    }

    /// A request as it is sent to the gateway.
    ///
    /// # Errors
    /// When `requests.toml` says what no request can say.
    pub fn request(
        &self,
        service: &str,
        request: &Request,
    ) -> Result<HttpRequest<Full<Bytes>>, ApiError> {
        let host = format!("{service}.{}.{}", self.namespace, self.domain);
        let built = HttpRequest::builder()
            .method(request.method.clone())
            .uri(&request.path)
            .header("host", host)
            .header("content-type", &request.content_type)
            .body(Full::new(request.body.clone()));
        built.map_err(|error| ApiError::Strange {
            at: "requests.toml".to_owned(),
            what: error.to_string(),
        })
    }

    /// A connection to the gateway.
    ///
    /// # Errors
    /// As [`Client::open`].
    pub async fn connection(&self, deadline: Deadline) -> Result<Client, ApiError> {
        Client::open(&self.gateway, deadline).await
    }

    /// The runtimes that the node was given, whether they work or not.
    #[must_use]
    pub fn runtimes(&self) -> Vec<RuntimeName> {
        let names = self.facts.get("runtimes").and_then(Value::as_array);
        let names = names.into_iter().flatten().filter_map(Value::as_str);
        names.filter_map(|name| name.parse().ok()).collect()
    }

    /// The tag in the names that the node makes on the host.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        let dir = Path::new(self.facts.get("run_dir")?.as_str()?);
        let tag = dir.file_name()?.to_str()?;
        tag.bytes().all(|b| b.is_ascii_hexdigit()).then_some(tag)
    }

    /// Has a snapshot of the service taken ahead of its first request.
    ///
    /// # Errors
    /// When the node refuses, e.g. because the runtime restores nothing (status 422).
    pub async fn create_snapshot(&self, service: &str, deadline: Deadline) -> Result<(), ApiError> {
        let path = self.view(service, "snapshot");
        self.door.json(Method::POST, &path, None, deadline).await.map(drop)
    }

    /// What the node tells of a service; with `memory`, that of every instance.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn described(
        &self,
        service: &str,
        memory: bool,
        deadline: Deadline,
    ) -> Result<Value, ApiError> {
        let what = if memory { "describe?footprint=true" } else { "describe" };
        self.door.json(Method::GET, &self.view(service, what), None, deadline).await
    }

    /// The record of an invocation, by the identifier in its reply.
    ///
    /// # Errors
    /// When the node does not answer or its records are not understood.
    pub async fn record(
        &self,
        service: &str,
        reply: &Reply,
        deadline: Deadline,
    ) -> Result<Option<InvocationRecord>, ApiError> {
        let id = reply.headers.get("x-request-id").and_then(|value| value.to_str().ok());
        // Goes into a query.
        let plain = |id: &&str| id.chars().all(|c| c.is_ascii_alphanumeric());
        let Some(id) = id.filter(plain) else { return Ok(None) };
        let path = format!(
            "/vhive/v1/records?namespace={}&service={service}&id={id}&faults=true",
            self.namespace
        );
        // A record is made when the reply's last byte has left the node, which may be after we
        // have it.
        let patience = Deadline::after(RECORD_PATIENCE);
        let found = loop {
            let all = self.door.json(Method::GET, &path, None, deadline).await?;
            let all = all.as_array().into_iter().flatten().rev();
            let found = all.into_iter().find(|record| record["id"] == id).cloned();
            if found.is_some() || patience.passed() {
                break found;
            }
            patience.pause(PAUSE).await;
        };
        let strange = |error: serde_json::Error| ApiError::Strange {
            at: "the node's records".to_owned(),
            what: error.to_string(),
        };
        found.map(serde_json::from_value).transpose().map_err(strange)
    }
}

/// Whether a study made the service.
fn is_ours(service: &Value) -> bool {
    service.pointer("/metadata/labels").and_then(|all| all.get(LABEL)).is_some()
}
