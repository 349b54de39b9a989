//! Image reference → verified layers → one read-only root file system image.
//!
//! ```text
//!   pull ── registry ──┐
//!   import ─ archive ──┼──► blobs + names ──► rootfs(): layers → tree + data → <manifest>.erofs
//!   build ── recipe ───┘         find, list, remove
//! ```
//!
//! What this crate does not do: start anything, or run code of an image.
#![warn(missing_docs)]

mod build;
mod decode;
mod draft;
mod erofs;
mod import;
mod layer;
mod limits;
mod names;
mod oci;
mod progress;
mod reference;
mod registry;
mod rootfs;
mod store;
mod tar;
mod tar_write;
mod tree;

pub use build::{BuildError, RecipeError};
pub use decode::DecodeError;
pub use import::ImportError;
pub use layer::LayerError;
pub use limits::Limits;
pub use oci::{DocumentError, ImageConfig};
pub use progress::{Progress, Step, StepState};
pub use reference::{ParseReferenceError, Reference};
pub use registry::{AuthError, PullError, PullOptions, RequestError};
pub use rootfs::{RootFs, RootFsError};
pub use store::{FindError, Image, ImageStore, Layer, Removed, StoreError};
pub use tar::TarError;
pub use tree::PathError;
