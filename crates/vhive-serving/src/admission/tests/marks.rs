//! Labels and annotations of Knative's beside those that scale.

use super::*;
use crate::store::StoredObject;

const OWN: &str = "metadata/annotations";
const TEMPLATES: &str = "spec/template/metadata/annotations";

fn problems(kind: Kind, document: &mut Value) -> Vec<String> {
    document["kind"] = json!(kind.as_str());
    let invalid = admit_template(kind, document, &Config::default(), &Passed::new()).map(drop);
    let invalid = invalid.err().map(|invalid| invalid.problems).unwrap_or_default();
    invalid.into_iter().map(|problem| problem.to_string()).collect()
}

#[test]
fn what_would_mean_something_elsewhere_says_where() {
    let elsewhere = "must be put under \"spec.template.metadata.annotations\" to work";
    for (path, name, value, why) in [
        (OWN, "autoscaling.knative.dev/min-scale", "1", elsewhere),
        (OWN, "vhive.dev/snapshot-policy", "reap", elsewhere),
        (OWN, "serving.knative.dev/no-gc", "true", elsewhere),
        (OWN, "serving.knative.dev/progress-deadline", "60s", elsewhere),
        (OWN, "serving.knative.dev/rollout-duration", "380s", "traffic moves in one step"),
        (OWN, "serving.knative.dev/rolloutDuration", "1s", "traffic moves in one step"),
        (OWN, "networking.knative.dev/ingress-class", "kourier", "the only ingress"),
        (OWN, "features.knative.dev/podspec-affinity", "enabled", "no features"),
        (TEMPLATES, "features.knative.dev/podspec-dryrun", "enabled", "no features"),
        (
            TEMPLATES,
            "queue.sidecar.serving.knative.dev/cpu-resource-limit",
            "1",
            "no queue proxy beside a function",
        ),
        (TEMPLATES, "serving.knative.dev/rollout-duration", "1s", "under \"metadata.annotations\""),
        (TEMPLATES, "serving.knative.dev/no-gc", "yes", "must be `true` or `false`"),
        (TEMPLATES, "serving.knative.dev/progress-deadline", "0s", "must be from 1s to 1h"),
        ("spec/template/metadata/labels", VISIBILITY, CLUSTER_LOCAL, "under \"metadata.labels\""),
        ("metadata/labels", VISIBILITY, "public", "must be `cluster-local`"),
    ] {
        let mut document = with(path, json!({name: value}));
        let said = problems(Kind::Service, &mut document);
        let place = format!("{}[{name}]: ", path.replace('/', "."));
        assert_eq!(said.len(), 1, "{name}: {said:?}");
        assert!(said[0].starts_with(&place) && said[0].contains(why), "{name}: {said:?}");
    }
}

#[test]
fn what_means_something_here_or_nothing_anywhere_is_taken() {
    let mut document = minimal();
    document["metadata"]["labels"] = json!({VISIBILITY: CLUSTER_LOCAL});
    set(
        &mut document,
        OWN,
        json!({
            "serving.knative.dev/creator": "someone",
            "serving.knative.dev/lastModifier": "someone",
            "serving.knative.dev/rollout-duration": "0s",
            "client.knative.dev/user-image": "dev.local/hello",
        }),
    );
    let marks = json!({
        "serving.knative.dev/progress-deadline": "90s", "serving.knative.dev/no-gc": "true",
    });
    set(&mut document, TEMPLATES, marks);
    let admitted = check(&document).unwrap();
    assert_eq!(admitted.template.start_deadline, Some(Duration::from_secs(90)));
    assert!(is_kept(&admitted.spec["template"]) && !is_kept(&minimal()["spec"]["template"]));
    let said = problems(Kind::Configuration, &mut document);
    assert!(said.len() == 1 && said[0].contains("a configuration has no host"), "{said:?}");
}

#[test]
fn what_also_stands_where_it_has_effect_is_taken() {
    // `kn service create --annotation k=v --label k=v` says each twice.
    for (one, other, name, value) in [
        (OWN, TEMPLATES, "vhive.dev/snapshot-policy", "reap"),
        (OWN, TEMPLATES, "autoscaling.knative.dev/min-scale", "1"),
        (OWN, TEMPLATES, "serving.knative.dev/no-gc", "true"),
        (OWN, TEMPLATES, "serving.knative.dev/progress-deadline", "60s"),
        (TEMPLATES, OWN, "serving.knative.dev/rollout-duration", "0s"),
        ("spec/template/metadata/labels", "metadata/labels", VISIBILITY, CLUSTER_LOCAL),
    ] {
        let mut document = with(one, json!({name: value}));
        let alone = problems(Kind::Service, &mut document);
        assert_eq!(alone.len(), 1, "{name}: {alone:?}");
        set(&mut document, other, json!({name: value}));
        assert_eq!(problems(Kind::Service, &mut document), [""; 0], "{name}");
    }
    let mut document = with(OWN, json!({"serving.knative.dev/no-gc": "true"}));
    set(&mut document, TEMPLATES, json!({"serving.knative.dev/no-gc": "false"}));
    assert_eq!(problems(Kind::Service, &mut document).len(), 1, "it says something else");
    // What has effect nowhere.
    for (name, value, times) in [
        ("networking.knative.dev/ingress-class", "kourier", 2),
        ("serving.knative.dev/rollout-duration", "380s", 1),
    ] {
        let mut document = with(OWN, json!({name: value}));
        set(&mut document, TEMPLATES, json!({name: value}));
        assert_eq!(problems(Kind::Service, &mut document).len(), times, "{name}");
    }
}

#[test]
fn what_was_taken_before_is_taken_as_long_as_it_says_the_same() {
    let head = Head {
        labels: [(VISIBILITY.to_owned(), "public".to_owned())].into(),
        annotations: [("networking.knative.dev/ingress-class", "kourier"), ("vhive.dev/sink", "x")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        ..check(&minimal()).unwrap().head
    };
    let mut document = minimal();
    let name = "features.knative.dev/podspec-affinity";
    set(&mut document, TEMPLATES, json!({name: "enabled", "autoscaling.knative.dev/target": "x"}));
    let before = StoredObject::new(&head, &document["spec"], jiff::Timestamp::UNIX_EPOCH);
    document["metadata"]["labels"] = json!(head.labels);
    document["metadata"]["annotations"] = json!(head.annotations);
    let passed = unchanged(&document, &before);
    let admit = |document: &Value| {
        let admitted = admit_template(Kind::Service, document, &Config::default(), &passed);
        let problems = admitted.err().map(|invalid| invalid.problems).unwrap_or_default();
        problems.into_iter().map(|problem| problem.path).collect::<Vec<_>>()
    };
    // What is read in the template is read again.
    let target = "spec.template.metadata.annotations[autoscaling.knative.dev/target]";
    assert_eq!(admit(&document), [target]);
    document["metadata"]["annotations"]["networking.knative.dev/ingress-class"] = json!("istio");
    let passed = unchanged(&document, &before);
    let path = "metadata.annotations[networking.knative.dev/ingress-class]";
    assert!(!passed.contains(path) && passed.len() == 3, "{passed:?}");
}

#[test]
fn a_route_is_checked_as_a_service_is() {
    let mut document = json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Route",
        "metadata": {"name": "a", "annotations": {"autoscaling.knative.dev/target": "1"}},
        "spec": {"traffic": [{"revisionName": "a-1", "percent": 100}]},
    });
    let refused = admit_object(Kind::Route, &document, "example.com", &Passed::new()).unwrap_err();
    assert_eq!(refused.problems[0].path, "metadata.annotations[autoscaling.knative.dev/target]");
    document["metadata"] = json!({"name": "a", "labels": {VISIBILITY: CLUSTER_LOCAL}});
    assert!(admit_object(Kind::Route, &document, "example.com", &Passed::new()).is_ok());
}

#[test]
fn a_hook_is_a_path_or_a_command() {
    for hook in ["/vhive/after-restore", "exec:/bin/reseed -x", "exec:reseed"] {
        let document = with(TEMPLATES, json!({"vhive.dev/after-restore": hook}));
        let hooks = check(&document).unwrap().template.hooks;
        assert_eq!((hooks.before_snapshot, hooks.after_restore.as_deref()), (None, Some(hook)));
    }
    for hook in ["", "reseed", "exec:", "exec:  ", "exec:a\tb", "/a b", &"/".repeat(257)] {
        let mut document = with(TEMPLATES, json!({"vhive.dev/before-snapshot": hook}));
        let said = problems(Kind::Service, &mut document);
        let field = "spec.template.metadata.annotations[vhive.dev/before-snapshot]: must be a path";
        assert!(said.len() == 1 && said[0].starts_with(field), "{hook:?}: {said:?}");
    }
}
