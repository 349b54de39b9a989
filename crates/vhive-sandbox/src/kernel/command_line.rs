//! What the guest's kernel is told.

/// The kernel's command line for a guest whose time stamp counter runs at `tsc_khz` (see
/// [`tsc_khz`](super::tsc_khz)).
///
/// # Source
/// Linux `Documentation/admin-guide/kernel-parameters.txt`; measured as `docs/decisions/0003`
/// tells.
#[must_use]
pub fn command_line(tsc_khz: u32) -> String {
    // The counter's rate, and that it can be trusted: measuring it by the emulated timer fails at
    // random under TCG, and the boot then hangs.
    let clock = format!("tsc_early_khz={tsc_khz} tsc=reliable");
    let options = [
        clock.as_str(),
        // Messages of the kernel and of init go to the serial port, which the host keeps.
        "console=ttyS0",
        // Only warnings and worse: each character costs a trap to the VMM.
        "quiet",
        // A kernel panic ends the VM (with QEMU's -no-reboot) instead of leaving it hanging.
        "panic=-1",
    ];
    options.join(" ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_clock_is_stated() {
        let line = super::command_line(2_600_000);
        assert!(line.starts_with("tsc_early_khz=2600000 tsc=reliable "), "{line}");
    }
}
