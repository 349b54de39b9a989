//! The tap device of a slot.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use tun_rs::{DeviceBuilder, Layer};

/// Name of a slot's tap device inside its namespace.
pub const NAME: &str = "tap0";

/// Opens the tap device of the calling thread's namespace, or creates it; it outlives the
/// descriptor and goes with the namespace. Frames carry a virtio-net header, so that a VMM can
/// offer the guest checksum and segmentation offload.
///
/// # Errors
/// `ResourceBusy` if it is open somewhere.
pub(super) fn open() -> io::Result<OwnedFd> {
    let device = DeviceBuilder::new()
        .name(NAME)
        .layer(Layer::L2)
        .offload(true)
        .inherit_enable_state()
        .build_sync()?;
    device.persist()?;
    device.as_fd().try_clone_to_owned()
}
