//! The image store from outside.

mod build;
mod layers;
mod oracle;
mod registry;
mod support;
