//! The fields of a container, one function per object.

use serde_json::Value;
use vhive_api::{Bytes, HttpProbe, Protocol, Readiness};

use super::cursor::{Cursor, Fields};
use super::quantity;
use super::service::label;
use crate::config::Config;

const CONTAINER: Fields = Fields {
    known: &[
        "name",
        "image",
        "command",
        "args",
        "env",
        "ports",
        "resources",
        "readinessProbe",
        "workingDir",
        "imagePullPolicy",
    ],
    refused: &[
        ("envFrom", "there are no config maps or secrets without a cluster"),
        ("volumeMounts", "a function has its image and a writable layer that lasts as long as it"),
        ("livenessProbe", "an instance that fails is replaced when it ends or breaks a request"),
        ("startupProbe", "use readinessProbe"),
        ("lifecycle", "hooks are not supported"),
        ("securityContext", "the image's user applies"),
        ("terminationMessagePath", "see `vhive logs`"),
        ("terminationMessagePolicy", "see `vhive logs`"),
        ("stdin", "functions have no terminal"),
        ("stdinOnce", "functions have no terminal"),
        ("tty", "functions have no terminal"),
    ],
};

const ENV: Fields = Fields {
    known: &["name", "value"],
    refused: &[("valueFrom", "there are no config maps or secrets without a cluster")],
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

const PROBE: Fields = Fields {
    known: &[
        "tcpSocket",
        "httpGet",
        "successThreshold",
        // Readiness is pushed by the guest and then confirmed until the start's deadline, so
        // these have nothing to tune.
        "periodSeconds",
        "timeoutSeconds",
        "failureThreshold",
    ],
    refused: &[
        ("exec", "use httpGet or tcpSocket"),
        ("grpc", "use httpGet or tcpSocket"),
        ("initialDelaySeconds", "readiness is confirmed as soon as the function listens"),
        ("terminationGracePeriodSeconds", "readiness probes do not end an instance"),
    ],
};

const TCP_PROBE: Fields =
    Fields { known: &["port"], refused: &[("host", "the instance itself is probed")] };

const HTTP_PROBE: Fields = Fields {
    known: &["path", "port", "scheme", "httpHeaders"],
    refused: &[("host", "the instance itself is probed")],
};

const HEADER: Fields = Fields { known: &["name", "value"], refused: &[] };

/// What a container says.
pub(super) struct Container {
    pub(super) image: Option<String>,
    pub(super) command: Vec<String>,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) working_dir: Option<String>,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    pub(super) readiness: Readiness,
    pub(super) cpu_millis: u32,
    pub(super) memory: Bytes,
}

/// Reads the one container of a revision.
pub(super) fn read_container(cursor: &Cursor<'_>, config: &Config) -> Container {
    cursor.expect_fields(&CONTAINER);
    if cursor.get("name").is_some() {
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
    let guest = take_guest(cursor, &mut env);
    let port = guest.port.unwrap_or(port);
    let readiness = cursor.get("readinessProbe").map(|probe| read_probe(&probe, port));
    Container {
        image: guest.image.or(image),
        command: list_of_text(cursor, "command"),
        args: list_of_text(cursor, "args"),
        env,
        working_dir,
        port,
        protocol,
        readiness: readiness.unwrap_or_default(),
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
fn take_guest(container: &Cursor<'_>, env: &mut Vec<(String, String)>) -> Guest {
    let mut take = |name: &str| {
        let at = env.iter().position(|(found, _)| found == name)?;
        Some(env.remove(at).1)
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

fn read_env(env: &Cursor<'_>) -> Vec<(String, String)> {
    let mut variables: Vec<(String, String)> = Vec::new();
    for entry in env.items() {
        entry.expect_fields(&ENV);
        let Some(name) = entry.get("name") else {
            entry.missing("name");
            continue;
        };
        let value = entry.get("value").map_or(Some(""), |value| value.text());
        let (Some(text), Some(value)) = (name.text(), value) else { continue };
        if text.is_empty() || text.contains(['=', '\0']) {
            name.invalid("must be a name without `=`");
        } else if matches!(text, "PORT" | "K_SERVICE" | "K_CONFIGURATION" | "K_REVISION") {
            name.invalid(format!("{text} is set by vHive"));
        } else if value.contains('\0') {
            entry.invalid("must not contain a zero byte");
        } else if variables.iter().any(|(other, _)| other == text) {
            name.invalid(format!("{text} is there twice"));
        } else {
            variables.push((text.to_owned(), value.to_owned()));
        }
    }
    variables
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

fn read_probe(probe: &Cursor<'_>, port: u16) -> Readiness {
    probe.expect_fields(&PROBE);
    for field in ["periodSeconds", "timeoutSeconds", "failureThreshold"] {
        if let Some(number) = probe.get(field) {
            number.whole(0..=u32::MAX);
        }
    }
    if let Some(threshold) = probe.get("successThreshold") {
        threshold.whole(0..=1);
    }
    match (probe.get("tcpSocket"), probe.get("httpGet")) {
        (Some(_), Some(_)) => {
            probe.invalid("must have one of tcpSocket and httpGet");
            Readiness::Tcp
        }
        (None, None) => Readiness::Tcp,
        (Some(tcp), None) => {
            tcp.expect_fields(&TCP_PROBE);
            probe_port(&tcp, port);
            Readiness::Tcp
        }
        (None, Some(http)) => {
            http.expect_fields(&HTTP_PROBE);
            probe_port(&http, port);
            Readiness::Http(read_http_probe(&http))
        }
    }
}

fn probe_port(cursor: &Cursor<'_>, port: u16) {
    let Some(given) = cursor.get("port") else { return };
    let same = given.value().as_u64().is_some_and(|n| n == 0 || n == u64::from(port));
    if !same {
        given
            .unsupported(format!("not supported: only the function's own port ({port}) is probed"));
    }
}

fn read_http_probe(http: &Cursor<'_>) -> HttpProbe {
    if let Some(scheme) = http.get("scheme")
        && scheme.text().is_some_and(|text| text != "HTTP")
    {
        scheme.unsupported("not supported: functions are probed without TLS");
    }
    let path = http.get("path").and_then(|path| {
        let text = path.text()?;
        let plain = text.bytes().all(|b| (0x21..0x7f).contains(&b));
        if !text.is_empty() && (!text.starts_with('/') || !plain) {
            path.invalid("must begin with `/` and have no spaces");
        }
        Some(text.to_owned()).filter(|text| !text.is_empty())
    });
    let mut headers = Vec::new();
    for entry in http.get("httpHeaders").map(|list| list.items()).unwrap_or_default() {
        entry.expect_fields(&HEADER);
        let name = entry.get("name").and_then(|name| name.text());
        let value = entry.get("value").map_or(Some(""), |value| value.text());
        let (Some(name), Some(value)) = (name, value) else {
            entry.missing("name");
            continue;
        };
        let sound = http::HeaderName::from_bytes(name.as_bytes()).is_ok()
            && http::HeaderValue::from_str(value).is_ok();
        if !sound {
            entry.invalid("is no HTTP header");
        }
        headers.push((name.to_owned(), value.to_owned()));
    }
    HttpProbe { path: path.unwrap_or_else(|| "/".to_owned()), headers }
}

fn list_of_text(cursor: &Cursor<'_>, field: &str) -> Vec<String> {
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
