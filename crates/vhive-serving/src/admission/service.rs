//! The fields of a Knative `Service`, one function per object.
//!
//! # Source
//! Knative Serving, `specs/serving/knative-api-specification-1.0.md` and
//! `pkg/apis/serving/fieldmask.go`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use vhive_api::RuntimeName;

use super::container::read_container;
use super::cursor::{Cursor, Fields, Problems};
use super::{Admitted, DEEPEST, Invalid, Template, annotations};
use crate::config::Config;
use crate::traffic::Target;

const DOCUMENT: Fields =
    Fields { known: &["apiVersion", "kind", "metadata", "spec", "status"], refused: &[] };

pub(super) const METADATA: Fields = Fields {
    known: &[
        "name",
        "namespace",
        "labels",
        "annotations",
        // Set by the server; ignored when a client sends back what it has read.
        "generateName",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "managedFields",
        "selfLink",
    ],
    refused: &[
        ("finalizers", "a deletion is complete at once"),
        ("ownerReferences", "there is nothing that could own a service"),
    ],
};

const SPEC: Fields = Fields { known: &["template", "traffic"], refused: &[] };

const TARGET: Fields = Fields {
    known: &["latestRevision", "percent", "revisionName", "tag"],
    refused: &[
        ("configurationName", "a service has one configuration"),
        ("url", "set by the server"),
    ],
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

/// Longest tag, so that `<tag>-<name>` may still be a label.
const MAX_TAG: usize = 32;

/// Targets of one service: more than any share or tag needs, and few enough to be compared with each
/// other.
const MOST_TARGETS: usize = 1000;

/// Longest service name, so that `<name>-00001` is still a label.
const MAX_NAME: usize = 57;

pub(super) fn admit(document: &Value, config: &Config) -> Result<Admitted, Invalid> {
    let problems = Problems::default();
    let root = Cursor::root(document, &problems);
    let admitted = if is_deeper(document, DEEPEST) {
        root.invalid(format!("must not be nested deeper than {DEEPEST} levels"));
        None
    } else {
        read_document(&root, config)
    };
    let found = problems.into_inner();
    match admitted {
        Some(admitted) if found.is_empty() => Ok(admitted),
        _ => {
            let name = document.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("?");
            Err(Invalid { name: name.chars().take(80).collect(), problems: found })
        }
    }
}

pub(super) fn is_deeper(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(_) | Value::Object(_) if levels == 0 => true,
        Value::Array(list) => list.iter().any(|one| is_deeper(one, levels - 1)),
        Value::Object(map) => map.values().any(|one| is_deeper(one, levels - 1)),
        _ => false,
    }
}

fn read_document(root: &Cursor<'_>, config: &Config) -> Option<Admitted> {
    if !root.value().is_object() {
        root.invalid("a document must be an object with `apiVersion`, `kind`, `metadata`, `spec`");
        return None;
    }
    for (field, want) in [("apiVersion", "serving.knative.dev/v1"), ("kind", "Service")] {
        match root.get(field) {
            Some(found) if found.text() == Some(want) => {}
            Some(found) => {
                found.unsupported(format!("only {want:?} is supported"));
                return None;
            }
            None => root.missing(field),
        }
    }
    root.expect_fields(&DOCUMENT);
    let Some(metadata) = root.get("metadata") else {
        root.missing("metadata");
        return None;
    };
    metadata.expect_fields(&METADATA);
    let name = label(&metadata, "name", MAX_NAME);
    if metadata.get("name").is_none() {
        metadata.missing("name");
    }
    let namespace = match metadata.get("namespace") {
        Some(_) => label(&metadata, "namespace", 63),
        None => Some("default".to_owned()),
    };
    let labels = metadata.get("labels").map(|c| super::metadata::labels(&c)).unwrap_or_default();
    let annotations =
        metadata.get("annotations").map(|c| super::metadata::annotations(&c)).unwrap_or_default();
    let resource_version = metadata.get("resourceVersion").and_then(|c| c.text());
    let resource_version = resource_version.filter(|text| !text.is_empty()).map(str::to_owned);
    let Some(spec) = root.get("spec") else {
        root.missing("spec");
        return None;
    };
    spec.expect_fields(&SPEC);
    let traffic = spec.get("traffic").map(|traffic| read_traffic(&traffic)).unwrap_or_default();
    let Some(template) = spec.get("template") else {
        spec.missing("template");
        return None;
    };
    let revision_name = name.as_ref().and_then(|name| read_revision_name(&template, name));
    let place = namespace.as_deref().unwrap_or("default");
    let template = read_template(&template, place, config)?;
    Some(Admitted {
        namespace: namespace?,
        name: name?,
        labels,
        annotations,
        resource_version,
        spec: spec.value().clone(),
        traffic: if traffic.is_empty() { vec![Target::latest()] } else { traffic },
        revision_name,
        template,
    })
}

/// The name that the template gives its revision, if it gives one.
fn read_revision_name(template: &Cursor<'_>, service: &str) -> Option<String> {
    let metadata = template.get("metadata")?;
    let given = metadata.get("name")?;
    if given.text() == Some("") {
        return None;
    }
    let name = label(&metadata, "name", 63)?;
    if !name.starts_with(&format!("{service}-")) {
        given.invalid(format!("must begin with the service's name and a dash, `{service}-`"));
    }
    Some(name)
}

/// Reads `spec.traffic`. Whether the revisions exist is seen by who knows them.
fn read_traffic(traffic: &Cursor<'_>) -> Vec<Target> {
    let items = traffic.items();
    if items.len() > MOST_TARGETS {
        traffic.invalid(format!("must have at most {MOST_TARGETS} targets, not {}", items.len()));
        return Vec::new();
    }
    let targets: Vec<Target> = items.iter().map(read_target).collect();
    let sum: u32 = targets.iter().map(|target| target.percent).sum();
    if !targets.is_empty() && sum != 100 {
        traffic.invalid(format!("percent of all targets together must be 100, not {sum}"));
    }
    let tags: Vec<&String> = targets.iter().filter_map(|target| target.tag.as_ref()).collect();
    for (at, tag) in tags.iter().enumerate() {
        if tags[..at].contains(tag) {
            traffic.invalid(format!("tag {tag:?} is given to more than one target"));
        }
    }
    targets
}

fn read_target(target: &Cursor<'_>) -> Target {
    target.expect_fields(&TARGET);
    let percent = target.get("percent").and_then(|percent| percent.whole(0..=100)).unwrap_or(0);
    let tag = target.get("tag").filter(|tag| tag.value() != "");
    let tag = tag.and_then(|_| label(target, "tag", MAX_TAG));
    let revision = target.get("revisionName").filter(|name| name.value() != "");
    let revision = revision.and_then(|_| label(target, "revisionName", 63));
    let latest = target.get("latestRevision").map(|latest| (latest.boolean(), latest));
    match (&revision, latest) {
        (Some(_), Some((Some(true), latest))) => {
            latest.invalid("must not be true for a target with revisionName");
        }
        (None, Some((Some(false), _))) => target.missing("revisionName"),
        _ => {}
    }
    Target { revision, percent, tag }
}

fn read_template(template: &Cursor<'_>, namespace: &str, config: &Config) -> Option<Template> {
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
    let container = read_container(container, &spec, runtime, config);
    Some(Template {
        image: container.image?,
        runtime: runtime?,
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
        queue_depth: scaling.queue_depth,
        snapshot: scaling.snapshot,
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

pub(super) fn strings(map: &Cursor<'_>) -> BTreeMap<String, String> {
    let each = map.entries().into_iter();
    each.filter_map(|(name, entry)| Some((name.to_owned(), entry.text()?.to_owned()))).collect()
}

pub(super) fn label(cursor: &Cursor<'_>, field: &str, longest: usize) -> Option<String> {
    let found = cursor.get(field)?;
    let text = found.text()?;
    if is_label(text) && text.len() <= longest {
        return Some(text.to_owned());
    }
    found.invalid(format!(
        "must be 1 to {longest} lower-case letters, digits or `-`, not beginning or ending with `-`"
    ));
    None
}

/// Whether a text is a label of a host name.
///
/// # Source
/// RFC 1123 as Kubernetes reads it: lower case only, 63 characters at most.
#[must_use]
pub fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}
