//! The image store from outside.

mod build;
mod oracle;
mod support;
