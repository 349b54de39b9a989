use proptest::prelude::*;

use super::*;

fn read(fields: &[(TraceField, &str)]) -> Incoming {
    let mut all = Fields::default();
    for (field, value) in fields {
        all.add(*field, value.as_bytes());
    }
    all.read()
}

fn context(incoming: Incoming) -> Remote {
    match incoming {
        Incoming::Context(remote) => remote,
        other => panic!("no context: {other:?}"),
    }
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

#[test]
fn contexts_of_every_form_are_understood() {
    let w3c = format!("00-{TRACE}-{SPAN}-01");
    let remote = context(read(&[
        (TraceField::Parent, &w3c),
        (TraceField::State, "rojo=00f067aa0ba902b7"),
        (TraceField::State, "congo=t61rcWkgMzE"),
    ]));
    assert_eq!((remote.trace.to_string(), remote.parent.to_string()), (TRACE.into(), SPAN.into()));
    assert_eq!(remote.decision, Decision::Sampled);
    assert_eq!(remote.state.as_deref(), Some("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"));

    let unsampled = format!("00-{TRACE}-{SPAN}-02");
    let remote = context(read(&[(TraceField::Parent, &unsampled)]));
    assert_eq!((remote.decision, remote.state), (Decision::NotSampled, None));
    let later = format!("cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like");
    assert_eq!(context(read(&[(TraceField::Parent, &later)])).decision, Decision::Sampled);

    for (b3, decision) in [
        (format!("{TRACE}-{SPAN}-1-05e3ac9a4f6e3b90"), Decision::Sampled),
        (format!("{TRACE}-{SPAN}-d"), Decision::Sampled),
        (format!("{TRACE}-{SPAN}-0"), Decision::NotSampled),
        (format!("{TRACE}-{SPAN}"), Decision::Open),
    ] {
        let remote = context(read(&[(TraceField::B3, &b3)]));
        assert_eq!((remote.trace.to_string(), remote.decision), (TRACE.into(), decision), "{b3}");
    }
    assert_eq!(read(&[(TraceField::B3, "0")]), Incoming::Decision(Decision::NotSampled));

    let remote = context(read(&[
        (TraceField::B3TraceId, "a3ce929d0e0e4736"),
        (TraceField::B3SpanId, SPAN),
        (TraceField::B3Sampled, "1"),
    ]));
    assert!(remote.short);
    assert_eq!(remote.trace.to_string(), "0000000000000000a3ce929d0e0e4736");
    let only = read(&[(TraceField::B3Sampled, "true")]);
    assert_eq!(only, Incoming::Decision(Decision::Sampled));
}

#[test]
fn what_is_malformed_is_no_context() {
    for bad in [
        String::new(),
        "00".into(),
        format!("00-{TRACE}-{SPAN}"),
        format!("00-{TRACE}-{SPAN}-01-more"),
        format!("ff-{TRACE}-{SPAN}-01"),
        format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
        format!("00-{}-{SPAN}-01", "0".repeat(32)),
        format!("00-{TRACE}-{}-01", "0".repeat(16)),
        format!("00-{TRACE}-{SPAN}-1"),
        format!("00-{TRACE}-{SPAN}-+1"),
        format!("00-{TRACE}0-{SPAN}-01"),
        format!("00_{TRACE}_{SPAN}_01"),
    ] {
        assert_eq!(read(&[(TraceField::Parent, &bad)]), Incoming::Nothing, "{bad:?}");
    }
    let good = format!("00-{TRACE}-{SPAN}-01");
    let twice = [(TraceField::Parent, good.as_str()), (TraceField::Parent, good.as_str())];
    assert_eq!(read(&twice), Incoming::Nothing, "nobody can say which one counts");
    for bad in ["", "2", "x", "-", "1-2", &format!("{TRACE}-{SPAN}-1-xyz"), "\u{e4}"] {
        assert_eq!(read(&[(TraceField::B3, bad)]), Incoming::Nothing, "{bad:?}");
    }
    let half = [(TraceField::B3TraceId, TRACE)];
    assert_eq!(read(&half), Incoming::Nothing);
    // A tracestate that is not text, or too long, is left out; the trace goes on.
    for state in ["\u{1}".to_owned(), "x".repeat(MOST_STATE + 1)] {
        let fields = [(TraceField::Parent, good.as_str()), (TraceField::State, &state)];
        assert_eq!(context(read(&fields)).state, None);
    }
    // One form that is broken does not hide another that is whole.
    let b3 = format!("{TRACE}-{SPAN}-1");
    let fields = [(TraceField::Parent, "nonsense"), (TraceField::B3, b3.as_str())];
    assert_eq!(context(read(&fields)).trace.to_string(), TRACE);
}

fn any_field() -> impl Strategy<Value = TraceField> {
    (0..TraceField::ALL.len()).prop_map(|at| TraceField::ALL[at])
}

proptest! {
    #[test]
    fn any_fields_are_read_without_a_panic(
        fields in proptest::collection::vec((any_field(), any::<Vec<u8>>()), 0..12),
    ) {
        let mut all = Fields::default();
        for (field, value) in &fields {
            all.add(*field, value);
        }
        let _ = (all.read(), all.forms());
    }

    #[test]
    fn what_looks_like_a_context_and_is_not_whole_is_none(
        text in "[0-9a-fA-F-]{0,60}|00-[0-9a-f]{31,33}-[0-9a-f]{15,17}-[0-9a-f]{1,3}",
    ) {
        let read = read(&[(TraceField::Parent, &text)]);
        if let Incoming::Context(remote) = read {
            let (trace, parent) = (remote.trace.to_string(), remote.parent.to_string());
            prop_assert_eq!(text.get(3..35), Some(trace.as_str()));
            prop_assert_eq!(text.get(36..52), Some(parent.as_str()));
        }
    }

    #[test]
    fn what_is_written_is_read_again(trace in 1_u128.., span in 1_u64.., sampled: bool) {
        let id = TraceId(NonZeroU128::new(trace).expect("not zero"));
        let parent = SpanId(NonZeroU64::new(span).expect("not zero"));
        let flag = u8::from(sampled);
        let decision = if sampled { Decision::Sampled } else { Decision::NotSampled };
        let remote = Remote { trace: id, parent, decision, state: None, short: false };
        let w3c = format!("00-{id}-{parent}-0{flag}");
        prop_assert_eq!(read(&[(TraceField::Parent, &w3c)]), Incoming::Context(remote.clone()));
        let b3 = format!("{id}-{parent}-{flag}");
        prop_assert_eq!(read(&[(TraceField::B3, &b3)]), Incoming::Context(remote));
    }
}
