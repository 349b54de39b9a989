//! Objects by kind and name, and as YAML files hold them.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::services_path;

/// Kinds by the words for them, with the path of a namespace's objects.
const SERVING: &str = "/apis/serving.knative.dev/v1";
const EVENTING: &str = "/apis/eventing.knative.dev/v1";
const CORE: &str = "/api/v1";

/// One kind: its name, its plural, other words for it, where it is.
type Kind = (&'static str, &'static str, &'static [&'static str], &'static str);

const KINDS: [Kind; 9] = [
    ("Service", "services", &["ksvc", "kservice"], SERVING),
    ("Configuration", "configurations", &["config", "cfg"], SERVING),
    ("Route", "routes", &["rt"], SERVING),
    ("Revision", "revisions", &["rev"], SERVING),
    ("Broker", "brokers", &[], EVENTING),
    ("Trigger", "triggers", &[], EVENTING),
    ("ConfigMap", "configmaps", &["cm"], CORE),
    ("Secret", "secrets", &[], CORE),
    ("Namespace", "namespaces", &["ns"], CORE),
];

/// The path of a kind's objects in a namespace. What is no kind is taken for a service, so that the
/// node refuses it and says why.
pub(super) fn path_of(kind: &str, namespace: &str) -> String {
    let found = KINDS.iter().find(|(name, ..)| *name == kind);
    match found {
        Some(("Namespace", plural, _, api)) => format!("{api}/{plural}"),
        Some((_, plural, _, api)) => format!("{api}/namespaces/{namespace}/{plural}"),
        None => services_path(namespace),
    }
}

/// The kind that a word on the command line means, whatever its case.
pub(super) fn kind_of(word: &str) -> anyhow::Result<&'static str> {
    let word = word.to_ascii_lowercase();
    let found = KINDS.iter().find(|(name, plural, others, _)| {
        name.to_ascii_lowercase() == word || *plural == word || others.contains(&word.as_str())
    });
    let Some((name, ..)) = found else {
        let known: Vec<String> = KINDS.iter().map(|(name, ..)| name.to_lowercase()).collect();
        bail!("{word:?} is no kind; there are {}", known.join(", "));
    };
    Ok(name)
}

/// The objects of a YAML or JSON file, or of standard input if it is `-`.
///
/// # Errors
/// It cannot be read, or holds none.
pub(super) fn objects_in(path: &Path) -> anyhow::Result<Vec<Value>> {
    let shown = path.display();
    let text = read(path).with_context(|| format!("cannot read {shown}"))?;
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&text).with_context(|| format!("{shown} is not YAML"))?;
    let documents: Vec<Value> = documents.into_iter().filter(|one| !one.is_null()).collect();
    if documents.is_empty() {
        bail!("{shown} holds no object");
    }
    Ok(documents)
}

fn read(path: &Path) -> std::io::Result<String> {
    if path.as_os_str() != "-" {
        return std::fs::read_to_string(path);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

/// Kind, namespace and name of an object; `namespace` if it names none.
///
/// # Errors
/// It has no name.
pub(super) fn place_of(
    object: &Value,
    namespace: &str,
) -> anyhow::Result<(String, String, String)> {
    let name = text(object, "/metadata/name");
    if name.is_empty() {
        bail!("metadata.name: missing");
    }
    let given = text(object, "/metadata/namespace");
    let namespace = if given.is_empty() { namespace } else { given };
    Ok((text(object, "/kind").to_owned(), namespace.to_owned(), name.to_owned()))
}

pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_words_that_kubectl_has() {
        for (word, kind) in [("ksvc", "Service"), ("ConfigMap", "ConfigMap"), ("NS", "Namespace")] {
            assert_eq!(kind_of(word).unwrap(), kind);
        }
        assert!(kind_of("pod").unwrap_err().to_string().contains("configuration"));
        assert_eq!(path_of("Namespace", "a"), "/api/v1/namespaces");
        assert_eq!(path_of("Secret", "a"), "/api/v1/namespaces/a/secrets");
        assert_eq!(path_of("Pod", "a"), services_path("a"));
    }
}
