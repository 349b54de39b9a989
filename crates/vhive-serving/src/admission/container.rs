//! The fields of a container, one function per object.

use serde_json::Value;
use vhive_api::{Bytes, ProbeTiming, Protocol, Readiness, RuntimeName, TimedProbe};

use super::cursor::{Cursor, Fields};
use super::inputs::{any_elsewhere, literals, read_env, read_env_from, read_mounts};
use super::metadata::label;
use super::{probe, quantity};
use crate::config::Config;
use crate::inputs::{Inputs, Variable, VariableValue};

const CONTAINER: Fields = Fields {
    known: &[
        "name",
        "image",
        "command",
        "args",
        "env",
        "envFrom",
        "volumeMounts",
        "ports",
        "resources",
        "readinessProbe",
        "startupProbe",
        "livenessProbe",
        "workingDir",
        "imagePullPolicy",
    ],
    refused: &[
        ("lifecycle", "hooks are not supported"),
        ("securityContext", "the image's user applies"),
        ("terminationMessagePath", "see `vhive logs`"),
        ("terminationMessagePolicy", "see `vhive logs`"),
        ("stdin", "functions have no terminal"),
        ("stdinOnce", "functions have no terminal"),
        ("tty", "functions have no terminal"),
    ],
};

const PORT: Fields = Fields {
    known: &["name", "containerPort", "protocol"],
    refused: &[
        ("hostPort", "instances are reached through the gateway"),
        ("hostIP", "instances are reached through the gateway"),
    ],
};

const RESOURCES: Fields = Fields {
    known: &["limits", "requests"],
    refused: &[("claims", "there are no resource claims without a cluster")],
};

const AMOUNTS: Fields = Fields {
    known: &["cpu", "memory"],
    refused: &[("ephemeral-storage", "the writable layer counts as memory")],
};

/// What a container says.
pub(super) struct Container {
    pub(super) image: Option<String>,
    pub(super) command: Vec<String>,
    pub(super) args: Vec<String>,
    /// Those whose values are in the document.
    pub(super) env: Vec<(String, String)>,
    /// Everything that comes from elsewhere, with those; none if nothing does.
    pub(super) inputs: Option<Inputs>,
    pub(super) working_dir: Option<String>,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    pub(super) readiness: Readiness,
    pub(super) probe: ProbeTiming,
    pub(super) startup: Option<TimedProbe>,
    pub(super) liveness: Option<TimedProbe>,
    pub(super) cpu_millis: u32,
    pub(super) memory: Bytes,
}

/// Reads the one container of a revision, whose `spec` has its volumes.
pub(super) fn read_container(
    cursor: &Cursor<'_>,
    spec: &Cursor<'_>,
    runtime: Option<RuntimeName>,
    config: &Config,
) -> Container {
    cursor.expect_fields(&CONTAINER);
    // Clients in Go write it even if it is empty.
    if cursor.get("name").is_some_and(|name| name.value() != "") {
        label(cursor, "name", 63);
    }
    let image = match cursor.get("image") {
        Some(image) => match image.text() {
            Some("") => {
                image.invalid("must not be empty");
                None
            }
            text => text.map(str::to_owned),
        },
        None => {
            cursor.missing("image");
            None
        }
    };
    if let Some(policy) = cursor.get("imagePullPolicy")
        && policy.text().is_some_and(|text| text != "IfNotPresent")
    {
        policy.unsupported("not supported: an image is pulled when it is not in the store");
    }
    let working_dir = cursor.get("workingDir").and_then(|dir| {
        let text = dir.text()?;
        if !text.starts_with('/') {
            dir.invalid("must be an absolute path");
        }
        Some(text.to_owned())
    });
    let (port, protocol) = cursor.get("ports").map(|ports| read_ports(&ports)).unwrap_or_default();
    let port = if port == 0 { 8080 } else { port };
    let (cpu_millis, memory) =
        cursor.get("resources").map(|resources| read_resources(&resources)).unwrap_or_default();
    let mut env = cursor.get("env").map(|env| read_env(&env)).unwrap_or_default();
    let from = cursor.get("envFrom").map(|list| read_env_from(&list)).unwrap_or_default();
    let mounts = read_mounts(cursor, spec);
    let guest = take_guest(cursor, &mut env);
    let port = guest.port.unwrap_or(port);
    let readiness = cursor.get("readinessProbe");
    let readiness = readiness.map(|probe| probe::readiness(&probe, port, runtime));
    let (readiness, probe) = readiness.unwrap_or_default();
    let startup = cursor.get("startupProbe").map(|probe| probe::startup(&probe, port, runtime));
    let liveness = cursor.get("livenessProbe").map(|probe| probe::liveness(&probe, port));
    Container {
        image: guest.image.or(image),
        command: list_of_text(cursor, "command"),
        args: list_of_text(cursor, "args"),
        env: literals(&env),
        inputs: (!from.is_empty() || !mounts.is_empty() || any_elsewhere(&env)).then_some(Inputs {
            from,
            env,
            mounts,
        }),
        working_dir,
        port,
        protocol,
        readiness,
        probe,
        startup,
        liveness,
        cpu_millis: cpu_millis.unwrap_or(config.defaults.cpu_millis),
        memory: memory.unwrap_or(config.defaults.memory),
    }
}

/// What the original's manifests for microVMs say by variables, with a placeholder as the image.
#[derive(Default)]
struct Guest {
    image: Option<String>,
    port: Option<u16>,
}

/// Takes `GUEST_IMAGE` and `GUEST_PORT`, which are for vHive and not for the function.
///
/// # Source
/// vHive, `docs/quickstart_guide.md` and `cri/firecracker/service.go`.
fn take_guest(container: &Cursor<'_>, env: &mut Vec<Variable>) -> Guest {
    let mut take = |name: &str| {
        let at = env.iter().position(|variable| variable.name == name)?;
        match env.remove(at).value {
            VariableValue::Literal(value) => Some(value),
            VariableValue::Key(..) => {
                // It is needed now, and a revision never changes.
                container.get("env")?.invalid(format!("{name} must have a value, not valueFrom"));
                None
            }
        }
    };
    let (image, port) = (take("GUEST_IMAGE"), take("GUEST_PORT"));
    let image = image.filter(|image| !image.is_empty());
    let number = port.as_ref().map(|port| port.parse().ok().filter(|port| *port > 0));
    if number == Some(None)
        && let Some(env) = container.get("env")
    {
        env.invalid("GUEST_PORT must be a port, from 1 to 65535, in quotes");
    }
    Guest { image, port: number.flatten() }
}

fn read_ports(ports: &Cursor<'_>) -> (u16, Protocol) {
    let list = ports.items();
    if list.len() > 1 {
        ports.unsupported("not supported: a function has one port");
    }
    let Some(entry) = list.first() else { return <(u16, Protocol)>::default() };
    entry.expect_fields(&PORT);
    let port = entry.get("containerPort").and_then(|port| port.whole(1..=65_535));
    let port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or(0);
    if let Some(protocol) = entry.get("protocol")
        && protocol.text().is_some_and(|text| text != "TCP")
    {
        protocol.unsupported("not supported: functions are reached by TCP");
    }
    let name = entry.get("name").and_then(|name| Some((name.text()?, name)));
    let protocol = match name {
        None | Some(("" | "http1", _)) => Protocol::Http1,
        Some(("h2c", _)) => Protocol::H2c,
        Some((_, cursor)) => {
            cursor.invalid("must be `http1` or `h2c`, which says what the function speaks");
            Protocol::Http1
        }
    };
    (port, protocol)
}

fn read_resources(resources: &Cursor<'_>) -> (Option<u32>, Option<Bytes>) {
    resources.expect_fields(&RESOURCES);
    if let Some(requests) = resources.get("requests") {
        // Instances are admitted by their limits, so requests are only checked.
        read_amounts(&requests);
    }
    resources.get("limits").map(|limits| read_amounts(&limits)).unwrap_or_default()
}

fn read_amounts(amounts: &Cursor<'_>) -> (Option<u32>, Option<Bytes>) {
    amounts.expect_fields(&AMOUNTS);
    let cpu = amounts.get("cpu").and_then(|cursor| {
        let millis = amount(&cursor, quantity::milli)?;
        let millis = u32::try_from(millis).ok().filter(|millis| (1..=256_000).contains(millis));
        if millis.is_none() {
            cursor.invalid("must be from 1m to 256 CPUs");
        }
        millis
    });
    let memory = amounts.get("memory").and_then(|cursor| {
        let bytes = amount(&cursor, quantity::whole)?;
        let fits = ((1 << 20)..=(1 << 44)).contains(&bytes);
        if !fits {
            cursor.invalid("must be from 1Mi to 16Ti");
        }
        fits.then_some(Bytes(bytes))
    });
    (cpu, memory)
}

fn amount<T>(
    cursor: &Cursor<'_>,
    read: fn(&str) -> Result<T, quantity::QuantityError>,
) -> Option<T> {
    let text = match cursor.value() {
        Value::Number(number) => number.to_string(),
        _ => cursor.text()?.to_owned(),
    };
    match read(&text) {
        Ok(value) => Some(value),
        Err(error) => {
            cursor.invalid(error.to_string());
            None
        }
    }
}

pub(super) fn list_of_text(cursor: &Cursor<'_>, field: &str) -> Vec<String> {
    let Some(list) = cursor.get(field) else { return Vec::new() };
    let mut texts = Vec::new();
    for item in list.items() {
        let Some(text) = item.text() else { continue };
        if text.contains('\0') {
            item.invalid("must not contain a zero byte");
        }
        texts.push(text.to_owned());
    }
    texts
}
