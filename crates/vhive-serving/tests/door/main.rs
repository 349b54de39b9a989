//! The door as a client sees it, over a node with simulated or in-process functions.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's helpers may fail the test")]

mod api;
mod api_writes;
mod crowd;
mod dashboard;
mod data;
mod deferred;
mod digests;
mod eventing;
mod gateway;
mod gone;
mod http2;
mod kn;
mod kube_rs;
mod kubernetes;
mod malformed;
mod malformed_h2;
mod namespaces;
mod pod_logs;
mod probes;
mod revisions;
mod routes;
mod scaling;
mod silence;
mod snapshots;
mod support;
mod tenants;
mod tls;
mod traces;
mod upgrade;
mod ways;
