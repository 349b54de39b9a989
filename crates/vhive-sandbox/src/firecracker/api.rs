//! Firecracker's API with types: what is asked of it, in its own words.
//!
//! ```text
//!   machine-config · boot-source · network-interfaces · entropy · … ─► InstanceStart   (a boot)
//!   snapshot/load ─► vm: Resumed                                                       (a clone)
//!   vm: Paused ─► snapshot/create ─► vm: Resumed                                       (a snapshot)
//! ```
//!
//! Fields that not every supported version knows are optional and left out unless asked for: every
//! version refuses fields that it does not know.
//!
//! # Source
//! Firecracker, `src/firecracker/swagger/firecracker.yaml`.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::balloon::SELDOM;
use super::config::CpuTemplate;
use super::http::{Answer, Client, HttpError};
use super::version::{Ability, Version};
use crate::deadline::Deadline;

/// `PUT /machine-config`.
#[derive(Debug, Serialize)]
pub(super) struct MachineConfig {
    pub(super) vcpu_count: u32,
    pub(super) mem_size_mib: u64,
    pub(super) smt: bool,
    /// For incremental snapshots only; it slows guests down.
    pub(super) track_dirty_pages: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu_template: Option<CpuTemplate>,
}

/// `PUT /boot-source`.
#[derive(Debug, Serialize)]
pub(super) struct BootSource {
    pub(super) kernel_image_path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) initrd_path: Option<String>,
    pub(super) boot_args: String,
}

/// `PUT /drives/{drive_id}`.
#[derive(Debug, Serialize)]
pub(super) struct Drive {
    pub(super) drive_id: String,
    pub(super) path_on_host: String,
    /// Whether the kernel is told to mount it; our init does that by itself.
    pub(super) is_root_device: bool,
    pub(super) is_read_only: bool,
}

/// `PUT /network-interfaces/{iface_id}`.
#[derive(Debug, Serialize)]
pub(super) struct NetworkInterface {
    pub(super) iface_id: String,
    pub(super) host_dev_name: String,
    pub(super) guest_mac: String,
}

/// `PUT /entropy`: a device that gives random bytes.
#[derive(Debug, Serialize)]
struct Entropy {}

/// `PUT /balloon`.
#[derive(Debug, Serialize)]
pub(super) struct Balloon {
    pub(super) amount_mib: u64,
    pub(super) deflate_on_oom: bool,
    /// Whether the guest tells what memory it has, and how often; it cannot be turned on later.
    pub(super) stats_polling_interval_s: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) free_page_reporting: Option<bool>,
}

impl Balloon {
    /// One that gives free pages back by itself, where this version's can.
    pub(super) fn for_version(version: Version) -> Self {
        let free_page_reporting = version.has(Ability::FreePageReporting).then_some(true);
        Self {
            amount_mib: 0,
            deflate_on_oom: true,
            stats_polling_interval_s: SELDOM,
            free_page_reporting,
        }
    }
}

/// `PATCH /balloon`.
#[derive(Debug, Serialize)]
struct BalloonSize {
    amount_mib: u64,
}

/// `PATCH /balloon/statistics`, and what is of interest of `GET /balloon`.
#[derive(Debug, Serialize, Deserialize)]
struct BalloonInterval {
    stats_polling_interval_s: u16,
}

/// `GET /balloon/statistics`; of a guest's own figures, those that every version has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct BalloonStatistics {
    /// What the balloon has.
    pub(super) actual_mib: u64,
    /// Bytes that nobody uses; none of a guest without a driver.
    pub(super) free_memory: Option<u64>,
    /// Bytes that are available if caches are given up.
    pub(super) available_memory: Option<u64>,
    /// Bytes of caches.
    pub(super) disk_caches: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Action {
    action_type: &'static str,
}

#[derive(Debug, Serialize)]
struct VmChange {
    state: &'static str,
}

/// `PUT /snapshot/create`.
#[derive(Debug, Serialize)]
pub(super) struct CreateSnapshot {
    pub(super) snapshot_type: SnapshotType,
    pub(super) snapshot_path: String,
    pub(super) mem_file_path: String,
}

/// What a snapshot's memory file contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum SnapshotType {
    /// All of the memory.
    Full,
    /// The pages that were written since the last one, or since boot or load: they are put into a
    /// file that has the rest.
    Diff,
}

/// `PUT /snapshot/load`.
#[derive(Debug, Serialize)]
pub(super) struct LoadSnapshot {
    pub(super) snapshot_path: String,
    pub(super) mem_backend: MemBackend,
    pub(super) resume_vm: bool,
    /// As in [`MachineConfig`]; a snapshot does not say it. (Its older name is refused by no version
    /// yet, and deprecated in all.)
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) track_dirty_pages: bool,
}

/// Where a clone's memory comes from.
#[derive(Debug, Serialize)]
pub(super) struct MemBackend {
    pub(super) backend_type: BackendType,
    /// The memory file, or the socket to which the userfaultfd is sent.
    pub(super) backend_path: String,
}

/// By which means it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum BackendType {
    /// The file is mapped, and the host's kernel pages.
    File,
    /// Whoever gets the userfaultfd serves faults.
    Uffd,
}

/// `GET /`.
#[derive(Debug, Deserialize)]
pub(super) struct Instance {
    pub(super) state: String,
    pub(super) vmm_version: String,
}

#[derive(Debug, Deserialize)]
struct Fault {
    fault_message: String,
}

/// Why Firecracker did not do as asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// There is no answer.
    #[error("no answer from Firecracker to {request}")]
    Connection {
        request: &'static str,
        #[source]
        source: HttpError,
    },
    /// Its own words.
    #[error("Firecracker refused {request}: {reason}")]
    Refused { request: &'static str, reason: String },
    /// Not what Firecracker says.
    #[error("Firecracker's answer to {request} is not understood")]
    Answer {
        request: &'static str,
        #[source]
        source: serde_json::Error,
    },
}

/// A connection to one Firecracker's API.
#[derive(Debug)]
pub(super) struct Api {
    client: Client,
}

/// Longest reason that is passed on, in bytes.
const LONGEST_REASON: usize = 2000;

impl Api {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { client: Client::new(stream) }
    }

    /// Who answers, and what state its guest is in.
    pub(super) fn instance(&mut self, deadline: Deadline) -> Result<Instance, ApiError> {
        self.get("GET /", "/", deadline)
    }

    pub(super) fn machine_config(
        &mut self,
        config: &MachineConfig,
        deadline: Deadline,
    ) -> Result<(), ApiError> {
        self.put("machine-config", "/machine-config", config, deadline)
    }

    pub(super) fn boot_source(
        &mut self,
        source: &BootSource,
        deadline: Deadline,
    ) -> Result<(), ApiError> {
        self.put("boot-source", "/boot-source", source, deadline)
    }

    pub(super) fn drive(&mut self, drive: &Drive, deadline: Deadline) -> Result<(), ApiError> {
        self.put("drives", &format!("/drives/{}", drive.drive_id), drive, deadline)
    }

    pub(super) fn network_interface(
        &mut self,
        interface: &NetworkInterface,
        deadline: Deadline,
    ) -> Result<(), ApiError> {
        let path = format!("/network-interfaces/{}", interface.iface_id);
        self.put("network-interfaces", &path, interface, deadline)
    }

    pub(super) fn entropy(&mut self, deadline: Deadline) -> Result<(), ApiError> {
        self.put("entropy", "/entropy", &Entropy {}, deadline)
    }

    pub(super) fn balloon(
        &mut self,
        balloon: &Balloon,
        deadline: Deadline,
    ) -> Result<(), ApiError> {
        self.put("balloon", "/balloon", balloon, deadline)
    }

    /// How much the balloon is to have.
    pub(super) fn inflate(&mut self, amount_mib: u64, deadline: Deadline) -> Result<(), ApiError> {
        self.call("PATCH", "balloon", "/balloon", &BalloonSize { amount_mib }, deadline)
    }

    /// What it has, and what the guest said last of its memory.
    pub(super) fn balloon_statistics(
        &mut self,
        deadline: Deadline,
    ) -> Result<BalloonStatistics, ApiError> {
        self.get("balloon/statistics", "/balloon/statistics", deadline)
    }

    /// How often the guest tells that, in seconds.
    pub(super) fn balloon_interval(&mut self, deadline: Deadline) -> Result<u16, ApiError> {
        let told: BalloonInterval = self.get("GET balloon", "/balloon", deadline)?;
        Ok(told.stats_polling_interval_s)
    }

    /// Has the guest tell it now, and then so often, if that is another interval than before.
    pub(super) fn statistics_every(
        &mut self,
        stats_polling_interval_s: u16,
        deadline: Deadline,
    ) -> Result<(), ApiError> {
        let interval = BalloonInterval { stats_polling_interval_s };
        self.call("PATCH", "balloon/statistics", "/balloon/statistics", &interval, deadline)
    }

    /// Starts what has been configured.
    pub(super) fn start(&mut self, deadline: Deadline) -> Result<(), ApiError> {
        let action = Action { action_type: "InstanceStart" };
        self.put("InstanceStart", "/actions", &action, deadline)
    }

    /// Has it write its metrics to their file now.
    pub(super) fn flush_metrics(&mut self, deadline: Deadline) -> Result<(), ApiError> {
        let action = Action { action_type: "FlushMetrics" };
        self.put("FlushMetrics", "/actions", &action, deadline)
    }

    /// Stops the virtual CPUs.
    pub(super) fn pause(&mut self, deadline: Deadline) -> Result<(), ApiError> {
        self.call("PATCH", "pause", "/vm", &VmChange { state: "Paused" }, deadline)
    }

    /// Lets the virtual CPUs run.
    pub(super) fn resume(&mut self, deadline: Deadline) -> Result<(), ApiError> {
        self.call("PATCH", "resume", "/vm", &VmChange { state: "Resumed" }, deadline)
    }

    pub(super) fn create_snapshot(
        &mut self,
        create: &CreateSnapshot,
        deadline: Deadline,
    ) -> Result<(), ApiError> {
        self.put("snapshot/create", "/snapshot/create", create, deadline)
    }

    /// Sends a load; what it answers is [`Api::loaded`]'s to say. Meanwhile it may connect to its
    /// memory backend, and waits for pages.
    pub(super) fn begin_load(
        &mut self,
        load: &LoadSnapshot,
        deadline: Deadline,
    ) -> Result<(), ApiError> {
        self.send("PUT", LOAD, "/snapshot/load", load, deadline)
    }

    /// Waits for the answer to [`Api::begin_load`].
    pub(super) fn loaded(&mut self, deadline: Deadline) -> Result<(), ApiError> {
        self.answered(LOAD, deadline)
    }

    fn put(
        &mut self,
        request: &'static str,
        path: &str,
        body: &impl Serialize,
        deadline: Deadline,
    ) -> Result<(), ApiError> {
        self.call("PUT", request, path, body, deadline)
    }

    #[expect(clippy::too_many_arguments, reason = "a request is made of these")]
    fn call(
        &mut self,
        method: &str,
        request: &'static str,
        path: &str,
        body: &impl Serialize,
        deadline: Deadline,
    ) -> Result<(), ApiError> {
        self.send(method, request, path, body, deadline)?;
        self.answered(request, deadline)
    }

    #[expect(clippy::too_many_arguments, reason = "a request is made of these")]
    fn send(
        &mut self,
        method: &str,
        request: &'static str,
        path: &str,
        body: &impl Serialize,
        deadline: Deadline,
    ) -> Result<(), ApiError> {
        let body = serde_json::to_vec(body);
        let body = body.map_err(|source| ApiError::Answer { request, source })?;
        let sent = self.client.send(method, path, Some(&body), deadline);
        sent.map_err(|source| ApiError::Connection { request, source })
    }

    fn get<T: DeserializeOwned>(
        &mut self,
        request: &'static str,
        path: &str,
        deadline: Deadline,
    ) -> Result<T, ApiError> {
        let failed = |source| ApiError::Connection { request, source };
        self.client.send("GET", path, None, deadline).map_err(failed)?;
        let answer = self.client.receive(deadline).map_err(failed)?;
        let body = accepted(request, answer)?;
        serde_json::from_slice(&body).map_err(|source| ApiError::Answer { request, source })
    }

    fn answered(&mut self, request: &'static str, deadline: Deadline) -> Result<(), ApiError> {
        let answer = self.client.receive(deadline);
        let answer = answer.map_err(|source| ApiError::Connection { request, source })?;
        accepted(request, answer).map(drop)
    }
}

const LOAD: &str = "snapshot/load";

/// Readable when an answer, or the connection's end, is there.
impl AsFd for Api {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.client.as_fd()
    }
}

/// The body of an answer that says yes.
fn accepted(request: &'static str, answer: Answer) -> Result<Vec<u8>, ApiError> {
    if (200..300).contains(&answer.status) {
        return Ok(answer.body);
    }
    let fault = serde_json::from_slice::<Fault>(&answer.body).map(|fault| fault.fault_message);
    let reason = fault.unwrap_or_else(|_| String::from_utf8_lossy(&answer.body).into_owned());
    let reason = reason.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut reason: String = reason.take(LONGEST_REASON).collect();
    if reason.trim().is_empty() {
        reason = format!("status {}", answer.status);
    }
    Err(ApiError::Refused { request, reason })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(10))
    }

    /// An API whose other side has already answered so.
    fn told(bytes: &str) -> (Api, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
        theirs.write_all(bytes.as_bytes()).expect("written");
        (Api::new(ours), theirs)
    }

    fn answer(status: u16, body: &str) -> String {
        format!("HTTP/1.1 {status} \r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[test]
    fn a_refusal_is_told_in_its_own_words() {
        let (mut api, _theirs) = told(&answer(400, r#"{"fault_message":"Invalid\u001b[2J path"}"#));
        let error = api.start(soon()).expect_err("refused");
        assert_eq!(error.to_string(), "Firecracker refused InstanceStart: Invalid [2J path");
        let (mut api, _theirs) = told(&answer(500, "<html>"));
        let error = api.pause(soon()).expect_err("refused");
        assert_eq!(error.to_string(), "Firecracker refused pause: <html>");
        let (mut api, _theirs) = told(&answer(418, ""));
        let error = api.resume(soon()).expect_err("refused");
        assert_eq!(error.to_string(), "Firecracker refused resume: status 418");
    }

    #[test]
    fn the_instance_says_who_it_is() {
        let body = r#"{"id":"x","state":"Not started","vmm_version":"1.16.1","app_name":"F"}"#;
        let (mut api, _theirs) = told(&answer(200, body));
        let instance = api.instance(soon()).expect("told");
        assert_eq!(
            (instance.state.as_str(), instance.vmm_version.as_str()),
            ("Not started", "1.16.1")
        );
        let (mut api, _theirs) = told(&answer(200, "[1, 2"));
        let error = api.instance(soon()).expect_err("nonsense");
        assert!(matches!(error, ApiError::Answer { request: "GET /", .. }), "{error:?}");
    }

    #[test]
    fn what_later_versions_tell_besides_is_passed_over() {
        let body = r#"{"target_pages":0,"actual_pages":512,"target_mib":0,"actual_mib":2,
            "free_memory":7,"oom_kill":3,"from_the_future":[1]}"#;
        let (mut api, _theirs) = told(&answer(200, body));
        let its = api.balloon_statistics(soon()).expect("told");
        assert_eq!((its.actual_mib, its.free_memory, its.disk_caches), (2, Some(7), None));
    }

    #[test]
    fn what_a_version_does_not_know_is_left_out() {
        let word = |version: &str| Version::parse(version).expect("a version");
        let balloon = |version| serde_json::to_value(Balloon::for_version(word(version)));
        let old = json!({
            "amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 65535,
        });
        assert_eq!(balloon("1.13.1").expect("serializable"), old);
        let new = balloon("1.14.0").expect("serializable");
        assert_eq!(new["free_page_reporting"], true);
        let load = LoadSnapshot {
            snapshot_path: "/vmstate".to_owned(),
            mem_backend: MemBackend {
                backend_type: BackendType::Uffd,
                backend_path: "/uffd.sock".to_owned(),
            },
            resume_vm: true,
            track_dirty_pages: false,
        };
        let wanted = json!({
            "snapshot_path": "/vmstate",
            "mem_backend": { "backend_type": "Uffd", "backend_path": "/uffd.sock" },
            "resume_vm": true,
        });
        assert_eq!(serde_json::to_value(&load).expect("serializable"), wanted);
        let tracked = LoadSnapshot { track_dirty_pages: true, ..load };
        let tracked = serde_json::to_value(tracked).expect("serializable");
        assert_eq!(tracked["track_dirty_pages"], true);
    }
}
