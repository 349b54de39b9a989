//! What unit tests share.

use std::time::Duration;

use vhive_api::{
    Bytes, Digest, InvocationId, InvocationRecord, Outcome, Revision, RevisionKey, RuntimeName,
    StartKind,
};

/// A revision for `sim`.
pub(crate) fn revision(name: &str) -> Revision {
    let image = format!("dev.local/{name}:latest");
    let digest = Digest::of(name.as_bytes());
    let revision =
        Revision::new(RevisionKey::new("default", name), &image, digest, RuntimeName::Sim);
    Revision {
        service: "test".to_owned(),
        memory: Bytes::mib(1),
        container_concurrency: 1,
        timeout: Duration::from_secs(60),
        ..revision
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
