//! What a function finds inside its sandbox, whoever puts it there: an init of ours, or the host for
//! a container that has none. Pure functions of what the image and the host say.
//!
//! # Source
//! OCI image-spec `config.md`, runtime-spec `config.md` (process); the defaults for `PATH` and
//! `HOME` are those of common container engines.

mod account;
mod lines;

use std::fmt::Write as _;
use std::net::Ipv4Addr;

pub use account::Account;
pub use lines::Lines;

use crate::guest::GuestNetwork;

/// Where programs are looked for if the image says nothing.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Open files: the soft limit that old programs expect, and room for those that ask for more.
pub const OPEN_FILES: (u64, u64) = (1024, 1 << 19);

/// Bytes of a stack that grows by itself: the soft limit. There is no hard one.
pub const STACK: u64 = 8 << 20;

/// Bytes of a core dump: none. Where the host's kernel hands them to a program instead of a file, zero
/// is no limit to it, and one byte is one.
///
/// # Source
/// core(5); Linux, `fs/coredump.c` ("a limit of 1").
pub const CORE: u64 = 1;

/// Bytes that may be locked into memory.
pub const LOCKED: u64 = 8 << 20;

/// The directories that programs expect, with their modes: made where the image has none.
pub const USUAL_DIRECTORIES: [(&str, u32); 3] =
    [("/tmp", 0o1777), ("/var/tmp", 0o1777), ("/run", 0o755)];

/// The image's variables, plus `PATH` and `HOME` if it has none. What is no `NAME=value` is left
/// out; of several with one name the last counts.
#[must_use]
pub fn environment(image: &[String], home: &str) -> Vec<(String, String)> {
    let valid = |pair: &String| {
        let (name, value) = pair.split_once('=')?;
        let plain = !name.is_empty() && !pair.contains('\0');
        plain.then(|| (name.to_owned(), value.to_owned()))
    };
    let mut env: Vec<(String, String)> = Vec::new();
    for (name, value) in image.iter().filter_map(valid) {
        match env.iter_mut().find(|(there, _)| *there == name) {
            Some((_, old)) => *old = value,
            None => env.push((name, value)),
        }
    }
    for (name, value) in [("PATH", DEFAULT_PATH), ("HOME", home)] {
        if env.iter().all(|(existing, _)| existing != name) {
            env.push((name.to_owned(), value.to_owned()));
        }
    }
    env
}

/// Names of the signals from 1 on, without `SIG`.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// Other names of some.
const ALIASES: [(&str, &str); 3] = [("CLD", "CHLD"), ("IOT", "ABRT"), ("POLL", "IO")];

/// Real-time signals as the GNU C library counts them: it keeps the kernel's first two.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// The number of the image's stop signal: a name with or without `SIG`, or a number; SIGTERM if it
/// says nothing. None if there is no such signal.
///
/// # Source
/// signal(7), x86-64; `RTMIN+3` and `RTMAX-3` as kill(1) has them.
#[must_use]
pub fn stop_signal(text: &str) -> Option<i32> {
    let text = text.trim().to_ascii_uppercase();
    if text.is_empty() {
        return stop_signal("TERM");
    }
    let name = text.strip_prefix("SIG").unwrap_or(&text);
    let usual = i32::try_from(SIGNALS.len()).unwrap_or(0);
    if let Ok(number) = text.parse() {
        return ((1..=usual).contains(&number) || REAL_TIME.contains(&number)).then_some(number);
    }
    // Only digits: what is parsed takes a sign as well.
    let steps = |digits: &str, sign: char| {
        let digits = digits.strip_prefix(sign)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<i32>().ok())?
    };
    let offset = |end: &str, sign| if end.is_empty() { Some(0) } else { steps(end, sign) };
    let from_least = || REAL_TIME.start().checked_add(offset(name.strip_prefix("RTMIN")?, '+')?);
    let from_most = || REAL_TIME.end().checked_sub(offset(name.strip_prefix("RTMAX")?, '-')?);
    if let Some(number) = from_least().or_else(from_most) {
        return REAL_TIME.contains(&number).then_some(number);
    }
    let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, known)| known);
    let number = SIGNALS.iter().position(|known| *known == name)? + 1;
    i32::try_from(number).ok()
}

/// What `/etc/hosts` says: the function's own address and name, and the names of the gateway.
#[must_use]
pub fn hosts(hostname: &str, network: Option<&GuestNetwork>, gateway_names: &[String]) -> String {
    let own = network.map_or(Ipv4Addr::LOCALHOST, |network| network.address);
    let mut text = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}\t{hostname}\n"
    );
    for (network, name) in
        network.iter().flat_map(|net| gateway_names.iter().map(move |n| (net, n)))
    {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}\t{name}", network.gateway);
    }
    text
}

/// What `/etc/resolv.conf` says.
#[must_use]
pub fn resolv_conf(servers: &[Ipv4Addr]) -> String {
    servers.iter().fold(String::new(), |mut text, server| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "nameserver {server}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_and_home_are_added_when_missing_and_the_last_of_a_name_counts() {
        let image = ["A=1=2", "=x", "none", "B=a\0b", "PATH=/x", "A=3"].map(str::to_owned);
        let env = environment(&image, "/home/app");
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(env, [pair("A", "3"), pair("PATH", "/x"), pair("HOME", "/home/app")]);
        assert_eq!(environment(&[], "/")[0], pair("PATH", DEFAULT_PATH));
        assert_eq!(environment(&["X=1=2".to_owned()], "/")[0], pair("X", "1=2"));
    }

    #[test]
    fn signals_by_name_and_number() {
        for (text, signal) in
            [("", 15), ("SIGQUIT", 3), ("int", 2), ("9", 9), (" term ", 15), ("SIGSYS", 31)]
        {
            assert_eq!(stop_signal(text), Some(signal), "{text:?}");
        }
        for (text, signal) in [
            ("SIGRTMIN+3", 37),
            ("rtmin", 34),
            ("SIGRTMAX-30", 34),
            ("RTMAX", 64),
            ("37", 37),
            ("SIGCLD", 17),
            ("IOT", 6),
            ("SIGPOLL", 29),
        ] {
            assert_eq!(stop_signal(text), Some(signal), "{text:?}");
        }
        for text in [
            "SIGNONE",
            "0",
            "-9",
            "999",
            "SIG",
            "32",
            "33",
            "65",
            "RTMIN+31",
            "RTMAX-31",
            "RTMIN-1",
            "RTMIN+",
            "RTMAX+1",
            "RTMIN++1",
            "RTMIN+99999999999",
        ] {
            assert_eq!(stop_signal(text), None, "{text:?}");
        }
    }

    #[test]
    fn files_name_the_guest_and_its_servers() {
        let network = GuestNetwork {
            address: Ipv4Addr::new(10, 0, 0, 2),
            prefix: 30,
            gateway: Ipv4Addr::new(10, 0, 0, 1),
            dns: Vec::new(),
        };
        let text = hosts("hello-1", Some(&network), &[]);
        assert!(text.contains("127.0.0.1\tlocalhost\n") && text.ends_with("10.0.0.2\thello-1\n"));
        let names = ["a.b.svc.cluster.local".to_owned(), "a".to_owned()];
        let text = hosts("hello-1", Some(&network), &names);
        assert!(text.ends_with("hello-1\n10.0.0.1\ta.b.svc.cluster.local\n10.0.0.1\ta\n"));
        assert!(hosts("x", None, &names).ends_with("127.0.0.1\tx\n"));
        let servers = [Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)];
        assert_eq!(resolv_conf(&servers), "nameserver 1.1.1.1\nnameserver 8.8.8.8\n");
    }
}
