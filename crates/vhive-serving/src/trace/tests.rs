use super::*;

fn tracer(percent: f64) -> Tracer {
    let counts = [Counts::new("otlp"), Counts::new("zipkin")];
    Tracer { queues: Vec::new(), counts, sampled_to: share(percent), ids: AtomicU64::new(7) }
}

fn begin(tracer: &Tracer, fields: &[(TraceField, &str)]) -> Option<Box<Trace>> {
    let asked = Asked { method: &Method::GET, target: "/a?b", secure: false };
    tracer.begin(fields.iter().map(|(field, value)| (*field, value.as_bytes())), &asked)
}

fn written(trace: &Trace) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    trace.each_field(|name, value| all.push((name, value.to_owned())));
    all
}

const W3C: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[test]
fn a_parents_decision_goes_before_the_share() {
    for percent in [0.0, 100.0] {
        let tracer = tracer(percent);
        assert!(begin(&tracer, &[(TraceField::Parent, W3C)]).is_some());
        let not = W3C.replace("-01", "-00");
        assert!(begin(&tracer, &[(TraceField::Parent, &not)]).is_none());
        assert!(begin(&tracer, &[(TraceField::B3, "0")]).is_none());
        assert!(begin(&tracer, &[(TraceField::B3, "1")]).is_some());
        assert_eq!(begin(&tracer, &[]).is_some(), percent > 0.0);
        let broken = begin(&tracer, &[(TraceField::Parent, "00-xyz")]);
        assert_eq!(broken.is_some(), percent > 0.0, "as if there were none");
    }
}

#[test]
fn a_share_is_a_share() {
    let tracer = tracer(25.0);
    let n = (0..10_000).filter(|_| begin(&tracer, &[]).is_some()).count();
    assert!((2300..2700).contains(&n), "{n}");
    assert_eq!((share(0.0), share(100.0), share(50.0)), (None, Some(u64::MAX), Some(1 << 63)));
}

#[test]
fn a_context_goes_on_in_the_forms_in_which_it_came() {
    let tracer = tracer(100.0);
    let names =
        |trace: &Trace| -> Vec<_> { written(trace).into_iter().map(|(name, _)| name).collect() };
    let own = begin(&tracer, &[]).expect("sampled");
    assert_eq!(names(&own), ["traceparent"]);

    let state = (TraceField::State, "a=b");
    let w3c = begin(&tracer, &[(TraceField::Parent, W3C), state]).expect("sampled");
    let expected = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", w3c.client);
    assert_eq!(written(&w3c), [("traceparent", expected), ("tracestate", "a=b".to_owned())]);

    let b3 = begin(&tracer, &[(TraceField::B3, "a3ce929d0e0e4736-00f067aa0ba902b7-d")]);
    let b3 = b3.expect("sampled");
    let single = format!("a3ce929d0e0e4736-{}-d-{}", b3.client, b3.server);
    assert_eq!(written(&b3)[1], ("b3", single));

    let multi = begin(
        &tracer,
        &[
            (TraceField::B3TraceId, "4bf92f3577b34da6a3ce929d0e0e4736"),
            (TraceField::B3SpanId, "00f067aa0ba902b7"),
            (TraceField::B3Sampled, "1"),
        ],
    );
    let multi = multi.expect("sampled");
    let expected = ["traceparent", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid"];
    assert_eq!(names(&multi)[..4], expected);
    assert_eq!(names(&multi)[4..], ["x-b3-sampled"]);
}
