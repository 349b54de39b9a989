//! What the guest's kernel is told.

/// Start-up steps of the kernel that are left out, because they cost an emulated guest
/// milliseconds for things that nobody uses in there. Names that a kernel does not have are
/// ignored by it.
const LEFT_OUT: [&str; 10] = [
    // Measures the counter's rate, which is stated below, once more and changes the clock's source a second later:
    // in every clone whose original was younger than that when it was snapshotted, a quarter of what it runs until
    // it is somebody. The source from the kernel's first moments is the same counter.
    "init_tsc_clocksource",
    // Checks the certificates' signatures with RSA; ours are the only modules, and unsigned.
    "load_system_certificate_list",
    // A self-test that `cryptomgr.notests` does not know of.
    "crypto_kdf108_init",
    // Thousands of files below /sys/kernel/tracing, and what fills them.
    "tracer_init_tracefs",
    "init_kprobe_trace",
    "trace_eval_init",
    "ftrace_check_for_weak_functions",
    // Suspend to disk, and the arbiter of graphics cards.
    "snapshot_device_init",
    "vga_arb_device_init",
    // Merging equal pages within the guest; the host may do that.
    "ksm_init",
];

/// The kernel's command line for a guest whose time stamp counter runs at `tsc_khz` (see
/// [`tsc_khz`](super::tsc_khz)).
///
/// # Source
/// Linux `Documentation/admin-guide/kernel-parameters.txt`; the savings were measured as
/// `docs/decisions/0003-guest-kernel.md` tells.
#[must_use]
pub fn command_line(tsc_khz: u32) -> String {
    // Messages of the kernel and of init go to the serial port, which the host keeps.
    format!("{} console=ttyS0", common(tsc_khz))
}

/// Likewise for a guest whose init speaks to the host over the serial port. No message of the
/// kernel's may come in between, so there is no console: of a panic, only that it ends is seen.
#[must_use]
pub fn serial_command_line(tsc_khz: u32) -> String {
    let options = [
        "vhive.channel=ttyS0",
        // With none named, the serial port would be taken for the console. A kernel that has no such
        // driver has no console then.
        "console=ttynull",
        "loglevel=0",
        // The one port, instead of trying all that a PC may have.
        "8250.nr_uarts=1",
        // Firecracker ends at the keyboard controller's reset, and knows no other.
        "reboot=k",
        // There is no such controller else.
        "i8042.noaux",
        "i8042.nomux",
        "i8042.dumbkbd",
    ];
    format!("{} {}", common(tsc_khz), options.join(" "))
}

/// What all guests' kernels are told.
fn common(tsc_khz: u32) -> String {
    let left_out = LEFT_OUT.join(",");
    let options = [
        // The counter's rate, and that it can be trusted: measuring it by the emulated timer fails
        // at random under TCG, and the boot then hangs.
        format!("tsc_early_khz={tsc_khz}"),
        "tsc=reliable".to_owned(),
        // Only warnings and worse: each character costs an exit to the VMM.
        "quiet".to_owned(),
        // A kernel panic ends the VM (with QEMU's -no-reboot) instead of leaving it hanging.
        "panic=-1".to_owned(),
        // The interrupt controllers' timer line is emulated and works; trying it out takes time.
        "no_timer_check".to_owned(),
        // With one CPU the kernel would rewrite its ~9,000 lock prefixes, one page-table switch
        // each: 120 ms.
        "noreplace-smp".to_owned(),
        // No self-tests of the cryptography (RSA among them) at every start: 200 ms.
        "cryptomgr.notests=1".to_owned(),
        // Not every page and object is zeroed on allocation: user memory still is, and the
        // boundary that matters is the VM's.
        "init_on_alloc=0".to_owned(),
        // Of the security modules only the one that programs use by themselves; the others add
        // to every system call.
        "lsm=landlock".to_owned(),
        "audit=0".to_owned(),
        "nowatchdog".to_owned(),
        // Nobody reads pressure figures in there; keeping them costs every context switch.
        "psi=0".to_owned(),
        format!("initcall_blacklist={left_out}"),
    ];
    options.join(" ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_clock_is_stated_and_the_line_fits() {
        for line in [super::command_line(2_600_000), super::serial_command_line(2_600_000)] {
            assert!(line.starts_with("tsc_early_khz=2600000 tsc=reliable "), "{line}");
            // COMMAND_LINE_SIZE of x86 is 2048, the end included, and Firecracker adds its devices.
            assert!(line.len() < 1600 && line.is_ascii(), "{line}");
        }
    }

    #[test]
    fn nothing_is_printed_where_init_speaks() {
        let line = super::serial_command_line(2_600_000);
        assert!(!line.contains("console=ttyS"), "{line}");
    }
}
