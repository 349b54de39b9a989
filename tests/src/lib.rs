//! What the end-to-end tests and the benchmarks share.
//!
//! Tests drive the `vhive` binary as a user would (`tests/`); benchmarks (`benches/`) print rows
//! that `make bench` collects into `target/bench/summary.json`.

pub mod bench;
pub mod cache;
pub mod input;
pub mod live;
pub mod manifest;
pub mod node;
pub mod results;
