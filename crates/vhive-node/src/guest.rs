//! What runs in a revision's sandboxes, below the function or in its place.

use std::io;
use std::path::Path;

use vhive_api::{GuestName, Revision};
use vhive_sandbox::{Guest, nano};

/// The guest of a revision; where vhive brings it, its file is put below the state directory.
pub(crate) fn of(revision: &Revision, state_dir: &Path) -> io::Result<Guest> {
    match revision.guest {
        GuestName::Linux => Ok(Guest::Linux),
        GuestName::Nano => bare(state_dir),
    }
}

/// The guest without an operating system, its file put below the state directory.
pub(crate) fn bare(state_dir: &Path) -> io::Result<Guest> {
    Ok(Guest::Bare { kernel: nano::write_to(&state_dir.join("guests"))? })
}
