use std::num::{NonZeroU64, NonZeroU128};
use std::sync::Arc;

use http::Method;
use proptest::prelude::*;
use vhive_api::{
    FaultTimeline, InvocationId, MemoryFigures, MemoryMode, PrefetchPolicy, RECORD_VERSION,
    RuntimeName,
};

use super::*;
use crate::trace::context::{Forms, TraceId};

fn trace() -> Trace {
    let span = |bits| SpanId(NonZeroU64::new(bits).expect("not zero"));
    Trace {
        id: TraceId(NonZeroU128::new(0xabc).expect("not zero")),
        parent: Some(span(7)),
        server: span(8),
        client: span(9),
        state: None,
        forms: Forms::default(),
        short: false,
        method: Method::POST,
        path: "/a".into(),
        secure: false,
    }
}

fn phase(phase: Phase, begin_us: i64, length_us: u64) -> PhaseSpan {
    PhaseSpan { phase, begin_us, length_us }
}

fn record(phases: Vec<PhaseSpan>) -> InvocationRecord {
    InvocationRecord {
        version: RECORD_VERSION,
        id: InvocationId::from_bits(1),
        at: jiff::Timestamp::from_microsecond(1_000_000).expect("a time"),
        namespace: "default".to_owned(),
        service: "hello".to_owned(),
        revision: "hello-00001".to_owned(),
        runtime: RuntimeName::Qemu,
        sandbox: None,
        start: Some(StartKind::Reap),
        outcome: Outcome::Replied,
        status: 200,
        request_bytes: 1,
        response_bytes: 2,
        phases,
        guest_clock_error_us: None,
        memory: None,
        fault_timeline: None,
        fallback: None,
        error: None,
    }
}

fn of(record: InvocationRecord) -> Vec<Span> {
    spans(&Finished { trace: trace(), record: Arc::new(record) })
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    spans.iter().find(|span| span.name == name).expect(name)
}

#[test]
fn a_restored_start_has_its_phases_and_the_pagers_prefetch_below_it() {
    let mut record = record(vec![
        phase(Phase::Total, 0, 900),
        phase(Phase::Queue, 0, 20),
        phase(Phase::Start, 10, 500),
        phase(Phase::VmmSpawn, 10, 100),
        phase(Phase::Restore, 110, 200),
        phase(Phase::Resume, 310, 100),
        phase(Phase::FunctionReady, 410, 100),
        phase(Phase::Request, 520, 380),
    ]);
    let policy = Some(PrefetchPolicy::default());
    let mut memory = MemoryFigures::new(MemoryMode::Prefetch, policy);
    (memory.prefetch_us, memory.prefetched_pages, memory.faults) = (150, 64, Some(3));
    record.memory = Some(memory);
    record.fault_timeline = Some(Arc::new(FaultTimeline {
        attached_us: 120,
        every: 1,
        residual: Vec::new(),
        awaited: Vec::new(),
    }));
    let spans = of(record);
    let server = named(&spans, "POST hello.default");
    assert_eq!(
        (server.kind, server.parent, server.id),
        (Kind::Server, trace().parent, trace().server)
    );
    assert_eq!((server.begin_us, server.length_us), (1_000_000, 900));
    let client = named(&spans, "request");
    assert_eq!(
        (client.kind, client.parent, client.id),
        (Kind::Client, Some(server.id), trace().client)
    );
    let queue = named(&spans, "queue");
    assert_eq!((queue.parent, queue.length_us), (Some(server.id), 520), "the whole wait");
    let start = named(&spans, "start");
    assert_eq!(start.parent, Some(server.id));
    for name in ["vmm_spawn", "restore", "resume", "function_ready", "prefetch"] {
        let part = named(&spans, name);
        assert_eq!(part.parent, Some(start.id), "{name}");
        assert!(part.begin_us >= start.begin_us, "{name}");
        assert!(part.begin_us + part.length_us <= start.begin_us + start.length_us, "{name}");
    }
    assert_eq!(named(&spans, "prefetch").begin_us, 1_000_120);
    assert!(start.attributes.contains(&("vhive.memory.prefetched_pages", Value::Whole(64))));
    assert!(start.attributes.contains(&("vhive.memory.mode", "prefetch".into())));
    let mut ids: Vec<u64> = spans.iter().map(|span| span.id.0.get()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), spans.len(), "every span has a number of its own");
}

#[test]
fn what_went_wrong_is_told() {
    let mut record = record(vec![phase(Phase::Total, 0, 5), phase(Phase::Queue, 0, 5)]);
    (record.outcome, record.status, record.start) = (Outcome::StartFailed, 502, None);
    record.error = Some("no VMM".to_owned());
    let spans = of(record.clone());
    assert_eq!(spans.len(), 2);
    assert_eq!(spans[0].error.as_deref(), Some("no VMM"));
    assert!(spans[0].attributes.contains(&("error.type", "start-failed".into())));
    // A function's own 500 is an error, its 404 is the client's.
    (record.outcome, record.status, record.error) = (Outcome::Replied, 500, None);
    assert_eq!(of(record.clone())[0].error.as_deref(), Some("status 500"));
    record.status = 404;
    assert_eq!(of(record)[0].error, None);
}

proptest! {
    /// The queue's length as a record has it, and back.
    #[test]
    fn the_whole_wait_is_found_again(begin in -5_000_i64..5_000, length in 0_u64..10_000, more in 0_u64..5_000) {
        // A lease comes after the start that it waited for.
        let end = u64::try_from(begin + i64::try_from(length).expect("small")).unwrap_or(0);
        let until = end + more;
        let within = end - u64::try_from(begin).unwrap_or(0).min(end);
        let record = record(vec![phase(Phase::Start, begin, length)]);
        prop_assert_eq!(waited(&record, until - within), until);
    }
}
