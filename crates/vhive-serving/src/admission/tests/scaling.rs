//! Annotations about scaling.

use super::*;
use crate::autoscale::{Aggregation, Metric, PolicyKind};

fn annotated(annotations: &Value) -> Result<Rules, Invalid> {
    let mut document = minimal();
    set(&mut document, "spec/template/metadata/annotations", annotations.clone());
    Ok(check(&document)?.template.rules)
}

#[test]
fn every_autoscaling_annotation_is_read() {
    let seconds = |secs| Span(Duration::from_secs(secs));
    let rules = annotated(&json!({
        "autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev",
        "autoscaling.knative.dev/metric": "rps",
        "autoscaling.knative.dev/target": "150",
        "autoscaling.knative.dev/target-utilization-percentage": "80",
        "autoscaling.knative.dev/target-burst-capacity": "-1",
        "autoscaling.knative.dev/min-scale": "2",
        "autoscaling.knative.dev/max-scale": "9",
        "autoscaling.knative.dev/initial-scale": "3",
        "autoscaling.knative.dev/activation-scale": "4",
        "autoscaling.knative.dev/scale-down-delay": "15m",
        "autoscaling.knative.dev/window": "40s",
        "autoscaling.knative.dev/panic-window-percentage": "20.0",
        "autoscaling.knative.dev/panic-threshold-percentage": "150.0",
        "autoscaling.knative.dev/scale-to-zero-pod-retention-period": "1m5s",
        "autoscaling.knative.dev/metric-aggregation-algorithm": "weighted-exponential",
    }));
    let rules = rules.expect("all are known");
    let want = Rules {
        target: 120.0,
        total: 150.0,
        metric: Metric::Rps,
        aggregation: Aggregation::WeightedExponential,
        min: 2,
        max: 9,
        initial: 3,
        activation: 4,
        burst_capacity: -1.0,
        window: seconds(40),
        panic_window_percent: 20.0,
        panic_threshold_percent: 150.0,
        scale_to_zero: true,
        grace: seconds(0),
        retention: seconds(65),
        scale_down_delay: seconds(900),
        max_up_rate: 1000.0,
        max_down_rate: 2.0,
        policy: PolicyKind::Kpa,
        keep_alive: seconds(600),
    };
    assert_eq!(rules, want);
    let camel = annotated(&json!({
        "autoscaling.knative.dev/initialScale": "3",
        "autoscaling.knative.dev/maxScale": "9",
        "autoscaling.knative.dev/metricAggregationAlgorithm": "weightedExponential",
        "autoscaling.knative.dev/minScale": "2",
        "autoscaling.knative.dev/panicThresholdPercentage": "150",
        "autoscaling.knative.dev/panicWindowPercentage": "20",
        "autoscaling.knative.dev/scaleDownDelay": "15m",
        "autoscaling.knative.dev/scaleToZeroPodRetentionPeriod": "65s",
        "autoscaling.knative.dev/targetBurstCapacity": "-1",
        "autoscaling.knative.dev/targetUtilizationPercentage": "80",
        "autoscaling.knative.dev/metric": "rps",
        "autoscaling.knative.dev/target": "150",
        "autoscaling.knative.dev/window": "40s",
        "autoscaling.knative.dev/activation-scale": "4",
    }));
    assert_eq!(camel.expect("the other spelling"), want);
    let both = annotated(&json!({
        "autoscaling.knative.dev/min-scale": "2", "autoscaling.knative.dev/minScale": "many",
    }));
    assert_eq!(both.expect("the first spelling goes before the other").min, 2);
}

#[test]
fn targets_are_resolved_as_knative_does() {
    // containerConcurrency, metric, target → total; 70 % of it is the target.
    for (concurrency, metric, target, total) in [
        (0, "concurrency", None, 100.0),
        (20, "concurrency", None, 20.0),
        (20, "concurrency", Some("10"), 10.0),
        (20, "concurrency", Some("30"), 20.0),
        (0, "concurrency", Some("30"), 30.0),
        (20, "rps", None, 200.0),
        (20, "rps", Some("30"), 30.0),
    ] {
        let mut document = with("spec/template/spec/containerConcurrency", json!(concurrency));
        let mut annotations = json!({"autoscaling.knative.dev/metric": metric});
        if let Some(target) = target {
            annotations["autoscaling.knative.dev/target"] = json!(target);
        }
        set(&mut document, "spec/template/metadata/annotations", annotations);
        let rules = check(&document).unwrap().template.rules;
        assert_eq!(rules.total, total, "{concurrency} {metric} {target:?}");
        assert!((rules.target - total * 0.7).abs() < 1e-9);
    }
}

#[test]
fn the_scaling_policy_is_an_annotation() {
    let rules = annotated(&json!({
        "vhive.dev/scaling-policy": "histogram", "vhive.dev/keep-alive": "20m",
    }));
    let rules = rules.expect("read");
    assert_eq!(rules.policy, PolicyKind::Histogram);
    assert_eq!(rules.keep_alive, Span(Duration::from_secs(1200)));
    for refused in [
        json!({"vhive.dev/scaling-policy": "random"}),
        json!({"vhive.dev/keep-alive": "0s"}),
        json!({"vhive.dev/keep-alive": "25h"}),
        json!({"vhive.dev/scaling-policy": "fixed", "autoscaling.knative.dev/metric": "rps"}),
        json!({
            "autoscaling.knative.dev/activation-scale": "3",
            "autoscaling.knative.dev/min-scale": "4",
        }),
        json!({
            "autoscaling.knative.dev/activation-scale": "3",
            "autoscaling.knative.dev/max-scale": "2",
        }),
    ] {
        let problems = annotated(&refused).expect_err("refused").problems;
        assert_eq!(problems.len(), 1, "{refused}: {problems:?}");
        assert!(problems[0].path.contains("annotations["), "{problems:?}");
    }
}
