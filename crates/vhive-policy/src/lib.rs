//! Decisions: how many instances, where and how a cold one starts. The node runs them against its clock, the
//! simulator against virtual time.
//!
//! | module | what it decides |
//! |---|---|
//! | [`autoscale`] | how many instances a revision should have, and when to ask again |
//! | [`placement`] | on which of several nodes an instance starts |
//! | [`start`] | boot, or restore, and how a restored guest's memory arrives |
//!
//! What this crate does not do: read a clock, wait, lock, or do I/O. Everything here is a function
//! of its arguments, or a value that changes by them alone.
#![warn(missing_docs)]

pub mod autoscale;
pub mod placement;
pub mod start;
