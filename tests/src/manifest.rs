//! A function's own manifest under another name and with more annotations.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

/// Reads the service at `path`, calls it `name` and adds annotations to its template.
///
/// # Errors
/// When the file cannot be read or holds no service.
pub fn variant(path: &Path, name: &str, annotations: &[(&str, &str)]) -> anyhow::Result<Value> {
    let shown = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let mut service: Value =
        serde_saphyr::from_str(&text).with_context(|| format!("{shown} is no YAML"))?;
    anyhow::ensure!(service.pointer("/metadata/name").is_some(), "{shown} names no service");
    service["metadata"]["name"] = json!(name);
    let template = service.pointer_mut("/spec/template").and_then(Value::as_object_mut);
    let template = template.with_context(|| format!("{shown} has no spec.template"))?;
    let metadata = template.entry("metadata").or_insert_with(|| json!({}));
    anyhow::ensure!(metadata.is_object(), "{shown} has metadata that are none");
    if !metadata["annotations"].is_object() {
        metadata["annotations"] = Value::Object(Map::new());
    }
    for (annotation, value) in annotations {
        metadata["annotations"][*annotation] = json!(value);
    }
    Ok(service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_keeps_what_the_function_needs() {
        let functions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions");
        for (function, kept) in [("hello", 1), ("pyaes", 2)] {
            let path = functions.join(function).join("service.yaml");
            let service = variant(&path, "other", &[("vhive.dev/snapshot-policy", "reap")]);
            let service = service.expect("read");
            assert_eq!(service["metadata"]["name"], "other");
            let template = &service["spec"]["template"];
            let annotations = &template["metadata"]["annotations"];
            assert_eq!(annotations["vhive.dev/snapshot-policy"], "reap");
            assert_eq!(annotations.as_object().map(Map::len), Some(kept));
            assert!(template["spec"]["containers"][0]["image"].is_string());
        }
        assert!(variant(&functions.join("hello/image.toml"), "x", &[]).is_err());
    }
}
