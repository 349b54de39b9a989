//! The promises.

use std::time::Duration;

use vhive_api::guest::{Process, Stream};
use vhive_sandbox::{BootError, Deadline, End, Milestone};

use crate::site::{Site, get, soon};

/// One thing that a runtime promises.
pub(crate) struct Promise {
    pub(crate) name: &'static str,
    /// Only a runtime that runs the function's own program can keep it.
    pub(crate) real: bool,
    pub(crate) body: fn(&Site),
}

pub(crate) const ALL: &[Promise] =
    &[Promise { name: "boots_and_answers", real: false, body: boots_and_answers }];

const HTTPD: &str = "exec httpd -f -p 8080 -h /srv";

fn boots_and_answers(site: &Site) {
    let spec = site.spec(HTTPD);
    let begin = std::time::Instant::now();
    let booted = site.boot(&spec);
    booted.listening();
    let reply = get(booted.endpoint(), "/index.html");
    eprintln!("{:?} after {:?}: {reply:?}", booted.endpoint(), begin.elapsed());
    for (milestone, at) in booted.journal.milestones() {
        eprintln!("{milestone:?} {:?}", at - begin);
    }
    for l in booted.journal.lines_from(0) {
        eprintln!("{l:?}");
    }
    eprintln!("{:?}", booted.journal.clock_error());
}
