//! The serial port as the channel to the host, for VMMs without virtio-serial. It is there again,
//! as it was, in every clone of a snapshot.
//!
//! # Source
//! termios(3); Linux `Documentation/admin-guide/kernel-parameters.txt`.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;

use rustix::fs::OFlags;
use rustix::termios::{ControlModes, OptionalActions, SpecialCodeIndex};
use rustix::termios::{tcdrain, tcgetattr, tcsetattr};

use crate::failure::{Failure, Step as _};

const PORT: &str = "/dev/ttyS0";

/// How the kernel's command line says so.
const WORD: &str = "vhive.channel=ttyS0";

/// Nobody sends bits one by one; the kernel derives from it how long it waits.
const BITS_PER_SECOND: u32 = 115_200;

/// Whether the host listens there.
pub(crate) fn is_channel() -> bool {
    fs::read_to_string("/proc/cmdline").is_ok_and(|line| says_so(&line))
}

fn says_so(line: &str) -> bool {
    line.split_whitespace().any(|word| word == WORD)
}

/// Opens it for bytes as they are: no echo, no lines, no signals, no flow control.
pub(crate) fn open() -> Result<File, Failure> {
    let step = format!("open the host's channel {PORT}");
    let flags = OFlags::NOCTTY.bits().cast_signed();
    let port = OpenOptions::new().read(true).write(true).custom_flags(flags).open(PORT);
    let port = port.step(step.clone())?;
    let mut how = tcgetattr(&port).step(step.clone())?;
    how.make_raw();
    how.set_speed(BITS_PER_SECOND).step(step.clone())?;
    how.control_modes.insert(ControlModes::CLOCAL | ControlModes::CREAD);
    how.control_modes.remove(ControlModes::CRTSCTS | ControlModes::HUPCL);
    how.special_codes[SpecialCodeIndex::VMIN] = 1;
    how.special_codes[SpecialCodeIndex::VTIME] = 0;
    tcsetattr(&port, OptionalActions::Now, &how).step(step)?;
    Ok(port)
}

/// Waits until everything that was written has been sent.
pub(crate) fn drain(port: &File) -> Result<(), Failure> {
    tcdrain(port).step("write to the host")
}

#[cfg(test)]
mod tests {
    use super::says_so;

    #[test]
    fn only_the_whole_word_counts() {
        assert!(says_so("quiet vhive.channel=ttyS0\n"));
        for line in ["", "quiet", "vhive.channel=ttyS01", "xvhive.channel=ttyS0"] {
            assert!(!says_so(line), "{line}");
        }
    }
}
