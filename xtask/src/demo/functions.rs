//! The functions under `functions/`: their images, manifests and requests.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use super::node::vhive;
use super::step::Step;
use crate::shell;

/// The order in which the demo shows them: small first.
const ORDER: [&str; 7] =
    ["hello", "sleep", "big-memory", "pyaes", "json_serdes", "chameleon", "image_rotate"];

/// A demo function.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// Name of its service: Kubernetes allows no underscores.
    pub(crate) service: String,
    dir: PathBuf,
    pub(crate) request: Request,
}

/// One request of `requests.toml`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Request {
    name: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) body: Option<String>,
    expected: String,
    compare: String,
}

#[derive(Debug, Deserialize)]
struct Requests {
    request: Vec<Request>,
}

/// Every demo function, in the order of the demo.
pub(crate) fn all() -> anyhow::Result<Vec<Function>> {
    ORDER.into_iter().map(load).collect()
}

fn load(name: &str) -> anyhow::Result<Function> {
    let dir = shell::root().join("functions").join(name);
    let path = dir.join("requests.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let requests: Requests = toml::from_str(&text)?;
    let request = requests.request.into_iter().find(|request| request.name == "record");
    let request = request.with_context(|| format!("{} has no request `record`", path.display()))?;
    Ok(Function { name: name.to_owned(), service: name.replace('_', "-"), dir, request })
}

impl Function {
    /// The same under another service's name.
    pub(crate) fn called(&self, service: &str) -> Self {
        Self { service: service.to_owned(), ..self.clone() }
    }

    /// A file of the function, as text for a command line.
    pub(crate) fn file(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    pub(crate) fn service_yaml(&self) -> PathBuf {
        self.dir.join("service.yaml")
    }

    /// Builds the image; takes what is there when nothing changed.
    pub(crate) fn build_image(&self, step: &Step) -> anyhow::Result<()> {
        let dir = self.dir.to_string_lossy().into_owned();
        follow(&mut vhive(&["image", "build", &dir]), step).map(drop)
    }

    /// Compares a reply with the expected one.
    pub(crate) fn check(&self, body: &str) -> anyhow::Result<()> {
        let expected = fs::read_to_string(self.dir.join(&self.request.expected))?;
        let good = match self.request.compare.as_str() {
            "exact" => body.trim_end() == expected.trim_end(),
            "json-subset" => {
                contains(&serde_json::from_str(body)?, &serde_json::from_str(&expected)?)
            }
            other => bail!("requests.toml: unknown comparison {other:?}"),
        };
        if !good {
            bail!("unexpected reply: {body:.200} (expected {expected:.200})");
        }
        Ok(())
    }
}

/// Whether every key of `part` is in `whole` with an equal value.
fn contains(whole: &serde_json::Value, part: &serde_json::Value) -> bool {
    match (whole, part) {
        (serde_json::Value::Object(whole), serde_json::Value::Object(part)) => {
            part.iter().all(|(key, value)| whole.get(key).is_some_and(|w| contains(w, value)))
        }
        _ => whole == part,
    }
}

/// Installs the guest kernel unless one is there.
pub(crate) fn install_kernel(step: &Step) -> anyhow::Result<()> {
    if let Ok(shown) = shell::output(&mut vhive(&["kernel", "show"])) {
        step.say(shown.lines().next().unwrap_or_default());
        return Ok(());
    }
    follow(&mut vhive(&["kernel", "install"]), step).map(drop)
}

/// Runs a command; its standard error is progress, shown line by line, and the error if it fails.
/// Returns its standard output, which must be short. When the user interrupts, so is the command.
pub(crate) fn follow(command: &mut Command, step: &Step) -> anyhow::Result<String> {
    let shown = shell::shown(command);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stderr = child.stderr.take().context("the command's errors were piped")?;
    let mut said = Vec::new();
    let mut interrupted = Ok(());
    for line in BufReader::new(stderr).lines() {
        let line = line?;
        step.say(line.trim());
        said.push(line);
        if interrupted.is_ok() {
            interrupted = step.interrupt.wait(Duration::ZERO);
            if interrupted.is_err() {
                kill_process(Pid::from_child(&child), Signal::TERM)?;
            }
        }
    }
    let done = child.wait_with_output()?;
    interrupted?;
    if !done.status.success() {
        let skip = said.len().saturating_sub(20);
        bail!("`{shown}` failed ({}):\n{}", done.status, said[skip..].join("\n"));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
