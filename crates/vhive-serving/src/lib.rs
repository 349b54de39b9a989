//! Door 1: Knative's serving semantics on one node.
//!
//! ```text
//!   YAML ──► api ──► admission ──► store ──► catalog ──► node.register
//!                                              │
//!   request ──► gateway ──► throttle ──► node.acquire ──► instance
//!                              │
//!                              └─samples─► autoscale::Policy ──► node.resize
//! ```
//!
//! [`Serving::run`] opens all of it; [`Serving::shutdown`] drains it.
//!
//! What this crate does not do: touch a sandbox. Everything about instances is the node's.
#![warn(missing_docs)]

pub mod admission;
mod api;
mod catalog;
mod changes;
pub mod config;
mod data;
mod deferred;
mod document;
mod eventing;
mod gateway;
pub mod inputs;
mod kind;
mod metrics;
mod objects;
mod registry;
mod retention;
mod scaler;
mod services;
mod serving;
mod standing;
mod status;
mod store;
mod throttle;
mod tls;
mod trace;
pub mod traffic;

pub(crate) use vhive_policy::autoscale;

pub use api::TokenError;
pub use config::{
    ApiConfig, AsyncConfig, AutoscaleConfig, Config, ConfigError, Defaults, EventingConfig,
    GatewayConfig, OtlpProtocol, RetentionConfig, TracingConfig,
};
pub use serving::{Addresses, Drained, RunError, Serving};
pub use store::StoreError;
pub use tls::CertificateError;
