//! The fields of a Knative `Service` and `Configuration`, one function per object.
//!
//! # Source
//! Knative Serving, `specs/serving/knative-api-specification-1.0.md` and
//! `pkg/apis/serving/fieldmask.go`.

use std::time::Duration;

use serde_json::Value;
use vhive_api::{GuestName, RuntimeName};

use super::container::read_container;
use super::cursor::{Cursor, Fields, Passed};
use super::marks::{self, TemplateMarks};
use super::metadata::{head, label, name_in, walk_except};
use super::traffic::{IN_SERVICE, read_traffic};
use super::{Admitted, Invalid, Template, annotations};
use crate::config::Config;
use crate::kind::Kind;
use crate::traffic::Target;

const DOCUMENT: Fields =
    Fields { known: &["apiVersion", "kind", "metadata", "spec", "status"], refused: &[] };

const SPEC: Fields = Fields { known: &["template", "traffic"], refused: &[] };

const CONFIGURATION: Fields = Fields {
    known: &["template"],
    refused: &[("traffic", "a configuration leads no requests; a Route does")],
};

const TEMPLATE: Fields = Fields { known: &["metadata", "spec"], refused: &[] };

const TEMPLATE_METADATA: Fields =
    Fields { known: &["name", "labels", "annotations", "creationTimestamp"], refused: &[] };

const REVISION: Fields = Fields {
    known: &[
        "containerConcurrency",
        "timeoutSeconds",
        "responseStartTimeoutSeconds",
        "idleTimeoutSeconds",
        "containers",
        "volumes",
        "runtimeClassName",
        "enableServiceLinks",
        "automountServiceAccountToken",
    ],
    refused: &[
        ("initContainers", "an instance is one container"),
        ("serviceAccountName", "there are no service accounts without a cluster"),
        ("imagePullSecrets", "credentials come from the node's ~/.docker/config.json"),
        ("nodeSelector", "there is one node"),
        ("affinity", "there is one node"),
        ("tolerations", "there is one node"),
        ("topologySpreadConstraints", "there is one node"),
        ("schedulerName", "there is one node"),
        ("priorityClassName", "instances have no priorities"),
        ("securityContext", "the image's user applies"),
        ("dnsPolicy", "name servers are set by the node"),
        ("dnsConfig", "name servers are set by the node"),
        ("hostAliases", "not supported yet"),
        ("hostNetwork", "every instance has a network of its own"),
        ("hostPID", "every instance has processes of its own"),
        ("hostIPC", "every instance is isolated"),
        ("shareProcessNamespace", "an instance is one container"),
    ],
};

/// Longest service name, so that `<name>-00001` is still a label.
const MAX_NAME: usize = 57;

/// Checks a service or a configuration, of which the former has its traffic besides.
pub(super) fn admit(
    kind: Kind,
    document: &Value,
    config: &Config,
    passed: &Passed,
) -> Result<Admitted, Invalid> {
    let read = |root: &Cursor<'_>| read_document(kind, root, config);
    walk_except(passed, document, read).map_err(|problems| Invalid {
        kind,
        name: name_in(document),
        problems,
    })
}

fn read_document(kind: Kind, root: &Cursor<'_>, config: &Config) -> Option<Admitted> {
    let head = head(root, kind, &DOCUMENT, |metadata| label(metadata, "name", MAX_NAME))?;
    marks::of_owner(root, kind);
    let Some(spec) = root.get("spec") else {
        root.missing("spec");
        return None;
    };
    let standalone = kind == Kind::Configuration;
    spec.expect_fields(if standalone { &CONFIGURATION } else { &SPEC });
    let traffic = spec.get("traffic").map(|traffic| read_traffic(&traffic, &IN_SERVICE));
    let Some(template) = spec.get("template") else {
        spec.missing("template");
        return None;
    };
    let revision_name = read_revision_name(&template, &head.name);
    let marks = marks::of_template(root);
    let template = read_template(&template, &head.namespace, marks, config)?;
    let traffic = traffic.filter(|traffic| !traffic.is_empty());
    Some(Admitted {
        head,
        standalone,
        spec: spec.value().clone(),
        traffic: traffic.unwrap_or_else(|| vec![Target::latest()]),
        revision_name,
        template,
    })
}

/// The name that the template gives its revision, if it gives one.
fn read_revision_name(template: &Cursor<'_>, owner: &str) -> Option<String> {
    let metadata = template.get("metadata")?;
    let given = metadata.get("name")?;
    if given.text() == Some("") {
        return None;
    }
    let name = label(&metadata, "name", 63)?;
    if !owner.is_empty() && !name.starts_with(&format!("{owner}-")) {
        given.invalid(format!("must begin with the object's name and a dash, `{owner}-`"));
    }
    Some(name)
}

fn read_template(
    template: &Cursor<'_>,
    namespace: &str,
    marks: TemplateMarks,
    config: &Config,
) -> Option<Template> {
    template.expect_fields(&TEMPLATE);
    let metadata = template.get("metadata");
    if let Some(metadata) = &metadata {
        metadata.expect_fields(&TEMPLATE_METADATA);
        if let Some(given) = metadata.get("labels") {
            super::metadata::labels(&given);
        }
    }
    let Some(spec) = template.get("spec") else {
        template.missing("spec");
        return None;
    };
    spec.expect_fields(&REVISION);
    for field in ["enableServiceLinks", "automountServiceAccountToken"] {
        if let Some(flag) = spec.get(field)
            && flag.boolean() == Some(true)
        {
            flag.unsupported("not supported: there is no cluster whose services could be listed");
        }
    }
    let defaults = &config.defaults;
    let concurrency = spec.get("containerConcurrency");
    let concurrency =
        concurrency.map_or(Some(defaults.container_concurrency), |c| c.whole(0..=1000));
    let longest = u32::try_from(defaults.max_timeout.0.as_secs()).unwrap_or(u32::MAX);
    let timeout = spec.get("timeoutSeconds").map(|c| c.whole(1..=longest));
    let timeout = timeout.unwrap_or_else(|| u32::try_from(defaults.timeout.0.as_secs()).ok());
    let within_timeout = |field: &str, least: u32| {
        let bound = spec.get(field)?;
        let seconds = bound.whole(least..=longest)?;
        if timeout.is_some_and(|timeout| seconds > timeout) {
            bound.invalid(format!("must not exceed timeoutSeconds, {}", timeout.unwrap_or(0)));
        }
        (seconds > 0).then(|| Duration::from_secs(u64::from(seconds)))
    };
    let response_start_timeout = within_timeout("responseStartTimeoutSeconds", 1);
    // As in Knative, 0 is none.
    let idle_timeout = within_timeout("idleTimeoutSeconds", 0);
    let runtime = spec.get("runtimeClassName").map(|c| read_runtime(&c));
    let runtime = runtime.unwrap_or(Some(defaults.runtime));
    let annotations = metadata.as_ref().and_then(|metadata| metadata.get("annotations"));
    let place = (namespace, concurrency.unwrap_or(0));
    let scaling = annotations::read(annotations.as_ref(), place, config);

    let Some(containers) = spec.get("containers") else {
        spec.missing("containers");
        return None;
    };
    let list = containers.items();
    if list.len() > 1 {
        containers.unsupported("not supported: an instance is one container");
    }
    let Some(container) = list.first() else {
        containers.invalid("must have one element");
        return None;
    };
    if scaling.guest == GuestName::Nano {
        annotations::refuse_for_nano(runtime, annotations.as_ref(), container);
    }
    let container = read_container(container, &spec, runtime, config);
    Some(Template {
        image: container.image?,
        runtime: runtime?,
        guest: scaling.guest,
        command: container.command,
        args: container.args,
        env: container.env,
        inputs: container.inputs,
        working_dir: container.working_dir,
        port: container.port,
        protocol: container.protocol,
        readiness: container.readiness,
        probe: container.probe,
        startup: container.startup,
        liveness: container.liveness,
        cpu_millis: container.cpu_millis,
        memory: container.memory,
        container_concurrency: concurrency?,
        timeout: Duration::from_secs(u64::from(timeout?)),
        response_start_timeout,
        idle_timeout,
        start_deadline: marks.start_deadline,
        queue_depth: scaling.queue_depth,
        snapshot: scaling.snapshot,
        snapshot_at: scaling.snapshot_at,
        prefetch: scaling.prefetch,
        hooks: scaling.hooks,
        calls: scaling.calls,
        target: scaling.target,
        rules: scaling.rules,
    })
}

fn read_runtime(cursor: &Cursor<'_>) -> Option<RuntimeName> {
    match cursor.text()?.parse() {
        Ok(runtime) => Some(runtime),
        Err(error) => {
            cursor.invalid(format!("{error}"));
            None
        }
    }
}
