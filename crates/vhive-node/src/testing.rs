//! What unit tests share.

use std::time::Duration;

use vhive_api::{
    Bytes, Digest, InvocationId, InvocationRecord, Outcome, Protocol, Readiness, Revision,
    RevisionKey, RuntimeName, Scale, StartKind,
};

/// A revision for `sim`.
pub(crate) fn revision(name: &str) -> Revision {
    Revision {
        key: RevisionKey::new("default", name),
        service: "test".to_owned(),
        image: format!("dev.local/{name}:latest"),
        image_digest: Digest::of(name.as_bytes()),
        runtime: RuntimeName::Sim,
        command: Vec::new(),
        args: Vec::new(),
        env: Vec::new(),
        working_dir: None,
        port: 8080,
        protocol: Protocol::Http1,
        readiness: Readiness::Tcp,
        probe: vhive_api::ProbeTiming::default(),
        startup: None,
        liveness: None,
        cpu_millis: 1000,
        memory: Bytes::mib(1),
        container_concurrency: 1,
        timeout: Duration::from_secs(60),
        response_start_timeout: None,
        idle_timeout: None,
        scale: Scale::default(),
        snapshot: vhive_api::SnapshotPolicy::Off,
        prefetch: vhive_api::PrefetchPolicy::default(),
        hooks: vhive_api::guest::Hooks::default(),
        volumes: Vec::new(),
        missing: None,
        standalone: false,
    }
}

/// A record that says `status`.
pub(crate) fn record(status: u16) -> InvocationRecord {
    InvocationRecord {
        version: vhive_api::RECORD_VERSION,
        id: InvocationId::random(),
        at: jiff::Timestamp::UNIX_EPOCH,
        namespace: "default".to_owned(),
        service: "test".to_owned(),
        revision: "one".to_owned(),
        runtime: RuntimeName::Sim,
        sandbox: None,
        start: Some(StartKind::Warm),
        outcome: Outcome::Replied,
        status,
        request_bytes: 0,
        response_bytes: 0,
        phases: Vec::new(),
        guest_clock_error_us: None,
        memory: None,
        fault_timeline: None,
        fallback: None,
        error: None,
    }
}
