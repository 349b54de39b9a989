//! The dashboard in a real browser.

use std::path::Path;
use std::process::{Command, Stdio};

use vhive_tests::node::TestNode;

use crate::scene::{Dir, apply, invoke, node, service, skip};

/// What the page would have done if somebody's text had become code.
const OWNED: &str = "document.body.dataset.owned=1";

/// A Chromium that works here.
struct Browser<'a> {
    binary: &'static str,
    dir: &'a Path,
}

impl<'a> Browser<'a> {
    /// None, and the reason said, where there is none or it does not start.
    fn find(test: &str, dir: &'a Path) -> Option<Self> {
        let runs = |name: &&str| {
            let asked = Command::new(name).arg("--version").stdin(Stdio::null()).output();
            asked.is_ok_and(|done| done.status.success())
        };
        let Some(binary) = ["chromium", "chromium-browser"].into_iter().find(runs) else {
            eprintln!("SKIP {test}: chromium");
            return None;
        };
        let browser = Self { binary, dir };
        let blank = browser.open("data:text/html,<p>it runs</p>");
        if !blank.contains("it runs") {
            eprintln!("SKIP {test}: a chromium that runs headless here; it says {blank}");
            return None;
        }
        Some(browser)
    }

    /// What a page has become some seconds after it was opened.
    fn open(&self, url: &str) -> String {
        let done = Command::new("timeout")
            .args(["--kill-after=5", "90", self.binary, "--headless=new", "--no-sandbox"])
            .args(["--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .arg(format!("--user-data-dir={}", self.dir.join("chromium").display()))
            .args(["--window-size=1400,1400", "--virtual-time-budget=5000", "--dump-dom", url])
            .env("HOME", self.dir)
            .stdin(Stdio::null())
            .output()
            .expect("timeout runs");
        let dom = String::from_utf8_lossy(&done.stdout).into_owned();
        if dom.trim().is_empty() { String::from_utf8_lossy(&done.stderr).into_owned() } else { dom }
    }
}

/// Address and token.
fn address(node: &TestNode) -> (String, String) {
    let url = node.ok(&["dashboard"]).expect("an address");
    let (page, token) = url.trim().split_once("#token=").expect("with a token");
    (page.to_owned(), token.to_owned())
}

fn must(dom: &str, all: &[&str]) {
    for wanted in all {
        assert!(dom.contains(wanted), "no {wanted:?} in {dom}");
    }
}

fn must_not(dom: &str, none: &[&str]) {
    for bad in none {
        assert!(!dom.contains(bad), "{bad:?} in {dom}");
    }
}

#[test]
fn e2e_dashboard_shows_the_node_in_a_browser() {
    let test = "e2e_dashboard_shows_the_node_in_a_browser";
    if skip(test) {
        return;
    }
    let dir = Dir::new("dashboard");
    let Some(browser) = Browser::find(test, dir.path()) else { return };
    let node = node(&dir, "");
    let (page, token) = address(&node);
    let url = format!("{page}#token={token}");

    let without = browser.open(&page);
    must(&without, &["data-state=\"refused\"", "vhive dashboard"]);
    let wrong = browser.open(&format!("{page}#token=wrong"));
    must(&wrong, &["data-state=\"refused\"", "does not accept this token"]);

    let empty = browser.open(&url);
    must(&empty, &["data-state=\"live\"", "No services yet", "vhive apply -f service.yaml"]);
    must(&empty, &["no requests in the last five minutes", "No snapshots."]);
    must_not(&empty, &["data-fault", &token]);

    for name in ["first", "second"] {
        apply(&node, &dir, &service(name, &["VHIVE_SIM_BOOT_MS=30", "VHIVE_SIM_REPLY_MS=1"], ""));
        for _ in 0..3 {
            assert_eq!(invoke(&node, name)["status"], 200);
        }
    }
    let snapshot = node.ok(&["snapshot", "create", "first"]);
    assert!(snapshot.is_ok(), "{snapshot:?}");
    let dom = browser.open(&url);
    must(&dom, &["data-state=\"live\"", "http://first.default.example.com", "second-00001"]);
    must(&dom, &["waterfall of the start", "function ready", "boot on sim"]);
    must(&dom, &["class=\"line first\"", "traffic between revisions", "1 ready", "on disk"]);
    must_not(&dom, &["data-fault", "No services yet", "No snapshots.", "NaN", "undefined", &token]);
    node.stop().expect("it ends");
}

#[test]
fn e2e_dashboard_shows_text_of_others_as_text() {
    let test = "e2e_dashboard_shows_text_of_others_as_text";
    if skip(test) {
        return;
    }
    let dir = Dir::new("dashboard-markup");
    let Some(browser) = Browser::find(test, dir.path()) else { return };
    let node = node(&dir, "");
    let (page, token) = address(&node);
    // The name of a fault that there is none of comes back in the start's failure.
    let fault = format!("VHIVE_SIM_FAULT=<script>{OWNED}</script>");
    apply(&node, &dir, &service("evil", &[&fault], ""));
    assert_eq!(invoke(&node, "evil")["status"], 502);

    let dom = browser.open(&format!("{page}#token={token}"));
    must(&dom, &["data-state=\"live\"", "1 cannot start"]);
    must(&dom, &["&lt;script&gt;document.body"]);
    must_not(&dom, &["data-fault", "data-owned", &format!("<script>{OWNED}")]);
    node.stop().expect("it ends");
}
