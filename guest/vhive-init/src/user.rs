//! Who the function runs as: the image's `User`, looked up in the image's own files.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;

use vhive_api::inside::Account;

/// Looks up a user in the root file system.
pub(crate) fn look_up(user: &str) -> Result<Account, String> {
    Account::find(user, &read("/etc/passwd"), &read("/etc/group"))
}

/// The file's text, or nothing: images without users have none. Opened so that a fifo or device
/// in its place cannot hold init up.
fn read(path: &str) -> String {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let Ok(file) = OpenOptions::new().read(true).custom_flags(nonblocking).open(path) else {
        return String::new();
    };
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return String::new();
    }
    let mut bytes = Vec::new();
    match file.take(Account::MOST_BYTES).read_to_end(&mut bytes) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}
