//! The probes of a container.
//!
//! # Source
//! Kubernetes API reference, Probe; Knative Serving, `revision_defaults.go` and `k8s_validation.go`.

use std::time::Duration;

use vhive_api::{HttpProbe, ProbeTiming, Readiness, RuntimeName, TimedProbe};

use super::container::list_of_text;
use super::cursor::{Cursor, Fields};

const PROBE: Fields = Fields {
    known: &[
        "tcpSocket",
        "httpGet",
        "grpc",
        "exec",
        "initialDelaySeconds",
        "periodSeconds",
        "timeoutSeconds",
        "successThreshold",
        "failureThreshold",
    ],
    refused: &[("terminationGracePeriodSeconds", "an instance that is given up gets no grace")],
};

const TCP: Fields =
    Fields { known: &["port"], refused: &[("host", "the instance itself is probed")] };

const HTTP: Fields = Fields {
    known: &["path", "port", "scheme", "httpHeaders"],
    refused: &[("host", "the instance itself is probed")],
};

const HEADER: Fields = Fields { known: &["name", "value"], refused: &[] };

const GRPC: Fields = Fields { known: &["port", "service"], refused: &[] };

const EXEC: Fields = Fields { known: &["command"], refused: &[] };

/// A day: no probe means more.
const LONGEST: u32 = 86_400;

/// Reads a readiness probe. Without a period it is not asked again once it has succeeded, and so its
/// `failureThreshold` has no effect.
pub(super) fn readiness(
    probe: &Cursor<'_>,
    port: u16,
    runtime: Option<RuntimeName>,
) -> (Readiness, ProbeTiming) {
    let check = read_check(probe, port, runtime);
    let timing = read_timing(probe);
    let timing = match timing.period.is_zero() {
        true => ProbeTiming { failures: 0, ..timing },
        false => with_defaults(timing),
    };
    (check, timing)
}

/// Reads a startup probe.
pub(super) fn startup(probe: &Cursor<'_>, port: u16, runtime: Option<RuntimeName>) -> TimedProbe {
    let check = read_check(probe, port, runtime);
    timed(probe, check)
}

/// Reads a liveness probe.
pub(super) fn liveness(probe: &Cursor<'_>, port: u16) -> TimedProbe {
    if let Some(exec) = probe.get("exec") {
        exec.unsupported(
            "not supported: while an instance serves, only its port is probed; use httpGet, \
             tcpSocket or grpc",
        );
    }
    let check = read_check(probe, port, None);
    timed(probe, check)
}

fn timed(probe: &Cursor<'_>, check: Readiness) -> TimedProbe {
    let mut timing = read_timing(probe);
    if timing.successes > 1
        && let Some(field) = probe.get("successThreshold")
    {
        field.invalid("must be 1 for a startup or liveness probe");
    }
    if timing.period.is_zero() {
        timing.period = Duration::from_secs(10);
    }
    TimedProbe { check, timing: with_defaults(timing) }
}

/// Kubernetes' defaults, which hold once a period is said.
fn with_defaults(mut timing: ProbeTiming) -> ProbeTiming {
    if timing.timeout.is_zero() {
        timing.timeout = Duration::from_secs(1);
    }
    if timing.failures == 0 {
        timing.failures = 3;
    }
    timing
}

fn read_timing(probe: &Cursor<'_>) -> ProbeTiming {
    let number = |field| probe.get(field).and_then(|number| number.whole(0..=LONGEST)).unwrap_or(0);
    let seconds = |field| Duration::from_secs(u64::from(number(field)));
    ProbeTiming {
        initial_delay: seconds("initialDelaySeconds"),
        period: seconds("periodSeconds"),
        timeout: seconds("timeoutSeconds"),
        successes: number("successThreshold"),
        failures: number("failureThreshold"),
    }
}

fn read_check(probe: &Cursor<'_>, port: u16, runtime: Option<RuntimeName>) -> Readiness {
    probe.expect_fields(&PROBE);
    let kinds = ["tcpSocket", "httpGet", "grpc", "exec"];
    let mut given = kinds.iter().filter_map(|kind| Some((*kind, probe.get(kind)?)));
    let first = given.next();
    if given.next().is_some() {
        probe.invalid("must have one of tcpSocket, httpGet, grpc and exec");
    }
    let Some((kind, cursor)) = first else { return Readiness::Tcp };
    match kind {
        "httpGet" => {
            cursor.expect_fields(&HTTP);
            check_port(&cursor, port);
            Readiness::Http(read_http(&cursor))
        }
        "grpc" => {
            cursor.expect_fields(&GRPC);
            check_port(&cursor, port);
            let service = cursor.get("service").and_then(|service| service.text());
            Readiness::Grpc(service.unwrap_or_default().to_owned())
        }
        "exec" => {
            cursor.expect_fields(&EXEC);
            let command = list_of_text(&cursor, "command");
            if command.is_empty() {
                cursor.missing("command");
            }
            if runtime == Some(RuntimeName::Sim) {
                cursor.unsupported("not supported: runtime sim runs no commands; use httpGet");
            }
            Readiness::Exec(command)
        }
        _ => {
            cursor.expect_fields(&TCP);
            check_port(&cursor, port);
            Readiness::Tcp
        }
    }
}

fn check_port(cursor: &Cursor<'_>, port: u16) {
    let Some(given) = cursor.get("port") else { return };
    let same = given.value().as_u64().is_some_and(|n| n == 0 || n == u64::from(port));
    if !same {
        given
            .unsupported(format!("not supported: only the function's own port ({port}) is probed"));
    }
}

fn read_http(http: &Cursor<'_>) -> HttpProbe {
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
