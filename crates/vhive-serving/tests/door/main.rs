//! The door as a client sees it, over a node with simulated or in-process functions.

mod api;
mod gateway;
mod malformed;
mod scaling;
mod support;
