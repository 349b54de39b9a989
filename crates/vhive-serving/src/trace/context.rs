//! Trace contexts as requests carry them: what is understood, what is made of it, and how it is
//! written. Everything here comes from a client and may be anything.
//!
//! # Source
//! W3C Trace Context, level 1 (`traceparent`, `tracestate`) and the `traceresponse` of level 2's
//! drafts; `openzipkin/b3-propagation` (`b3`, `X-B3-…`).

use std::fmt;
use std::num::{NonZeroU64, NonZeroU128};

/// A header field that belongs to a trace context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TraceField {
    Parent,
    State,
    B3,
    B3TraceId,
    B3SpanId,
    B3ParentSpanId,
    B3Sampled,
    B3Flags,
}

impl TraceField {
    pub(crate) const ALL: [Self; 8] = [
        Self::Parent,
        Self::State,
        Self::B3,
        Self::B3TraceId,
        Self::B3SpanId,
        Self::B3ParentSpanId,
        Self::B3Sampled,
        Self::B3Flags,
    ];

    /// Its name in lower case.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Parent => "traceparent",
            Self::State => "tracestate",
            Self::B3 => "b3",
            Self::B3TraceId => "x-b3-traceid",
            Self::B3SpanId => "x-b3-spanid",
            Self::B3ParentSpanId => "x-b3-parentspanid",
            Self::B3Sampled => "x-b3-sampled",
            Self::B3Flags => "x-b3-flags",
        }
    }
}

/// Where a reply tells its trace.
pub(crate) const TRACE_RESPONSE: &str = "traceresponse";

/// Which trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TraceId(pub(crate) NonZeroU128);

/// Which span of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SpanId(pub(crate) NonZeroU64);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a request says about whether its trace is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Sampled,
    NotSampled,
    /// B3 may leave it to whoever comes next.
    Open,
}

/// The context that a request came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    pub(crate) trace: TraceId,
    pub(crate) parent: SpanId,
    pub(crate) decision: Decision,
    /// `tracestate`, its fields joined.
    pub(crate) state: Option<Box<str>>,
    /// Its trace has 64 bits only, in the form that it came in.
    pub(crate) short: bool,
}

/// What stood in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// No context that can be understood.
    Nothing,
    /// Only whether to sample (B3).
    Decision(Decision),
    Context(Remote),
}

/// In which forms of B3 a context came, so that it goes on in the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Forms {
    pub(crate) single: bool,
    pub(crate) multi: bool,
    pub(crate) debug: bool,
}

/// The fields of one request, as they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields<'a> {
    values: [One<'a>; TraceField::ALL.len()],
    states: Vec<&'a [u8]>,
    any: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum One<'a> {
    #[default]
    None,
    Once(&'a [u8]),
    /// Twice or more: nobody can say which one counts.
    Many,
}

impl<'a> Fields<'a> {
    /// Takes note of a field.
    pub(crate) fn add(&mut self, field: TraceField, value: &'a [u8]) {
        self.any = true;
        if field == TraceField::State {
            self.states.push(value);
            return;
        }
        let slot = &mut self.values[field as usize];
        *slot = if *slot == One::None { One::Once(value) } else { One::Many };
    }

    /// Whether there is any.
    pub(crate) fn is_empty(&self) -> bool {
        !self.any
    }

    fn text(&self, field: TraceField) -> Option<&'a str> {
        match self.values[field as usize] {
            One::Once(value) => std::str::from_utf8(value.trim_ascii()).ok(),
            One::None | One::Many => None,
        }
    }

    /// The forms of B3 that are there.
    pub(crate) fn forms(&self) -> Forms {
        let is = |field: TraceField| self.values[field as usize] != One::None;
        let single = self.text(TraceField::B3);
        Forms {
            single: is(TraceField::B3),
            multi: [TraceField::B3TraceId, TraceField::B3Sampled, TraceField::B3Flags]
                .into_iter()
                .any(is),
            debug: self.text(TraceField::B3Flags) == Some("1")
                || single.is_some_and(|b3| b3 == "d" || b3.split('-').nth(2) == Some("d")),
        }
    }

    /// What they say. W3C's goes before B3's, and B3's one field before its many.
    pub(crate) fn read(&self) -> Incoming {
        if let Some(parent) = self.text(TraceField::Parent)
            && let Some(mut remote) = read_traceparent(parent)
        {
            remote.state = read_tracestate(&self.states);
            return Incoming::Context(remote);
        }
        if let Some(single) = self.text(TraceField::B3)
            && let Some(incoming) = read_single(single)
        {
            return incoming;
        }
        self.read_multi().unwrap_or(Incoming::Nothing)
    }

    fn read_multi(&self) -> Option<Incoming> {
        let decision = match (self.text(TraceField::B3Flags), self.text(TraceField::B3Sampled)) {
            (Some("1"), _) | (_, Some("1" | "true")) => Decision::Sampled,
            (_, Some("0" | "false")) => Decision::NotSampled,
            _ => Decision::Open,
        };
        let (trace, span) = (self.text(TraceField::B3TraceId), self.text(TraceField::B3SpanId));
        if let (Some(trace), Some(span)) = (trace, span) {
            return Some(Incoming::Context(remote(trace, span, decision)?));
        }
        (decision != Decision::Open).then_some(Incoming::Decision(decision))
    }
}

/// Exactly so many lower-case hexadecimal digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let sound = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'));
    let sound = sound && text.len() == digits && digits <= 32;
    if sound { u128::from_str_radix(text, 16).ok() } else { None }
}

fn span_id(text: &str) -> Option<SpanId> {
    let bits = u64::try_from(hex(text, 16)?).ok()?;
    NonZeroU64::new(bits).map(SpanId)
}

/// A context of B3, whose trace has 16 or 32 digits.
fn remote(trace: &str, span: &str, decision: Decision) -> Option<Remote> {
    let short = trace.len() == 16;
    let bits = hex(trace, if short { 16 } else { 32 })?;
    let trace = NonZeroU128::new(bits).map(TraceId)?;
    Some(Remote { trace, parent: span_id(span)?, decision, state: None, short })
}

fn read_traceparent(text: &str) -> Option<Remote> {
    let mut parts = text.split('-');
    let (version, trace) = (hex(parts.next()?, 2)?, parts.next()?);
    let (parent, flags) = (parts.next()?, hex(parts.next()?, 2)?);
    // What later versions add stands behind a dash.
    if version == 0xff || (version == 0 && parts.next().is_some()) {
        return None;
    }
    let sampled = flags & 1 == 1;
    let decision = if sampled { Decision::Sampled } else { Decision::NotSampled };
    let trace = NonZeroU128::new(hex(trace, 32)?).map(TraceId)?;
    Some(Remote { trace, parent: span_id(parent)?, decision, state: None, short: false })
}

/// Most bytes of a `tracestate` that are carried on.
const MOST_STATE: usize = 4096;

fn read_tracestate(fields: &[&[u8]]) -> Option<Box<str>> {
    let mut all = String::new();
    for field in fields {
        let text = std::str::from_utf8(field.trim_ascii()).ok()?;
        if !text.bytes().all(|b| matches!(b, b' '..=b'~' | b'\t')) {
            return None;
        }
        if !all.is_empty() && !text.is_empty() {
            all.push(',');
        }
        all.push_str(text);
    }
    (!all.is_empty() && all.len() <= MOST_STATE).then(|| all.into_boxed_str())
}

fn read_single(text: &str) -> Option<Incoming> {
    let state = |text: &str| match text {
        "0" => Some(Decision::NotSampled),
        "1" | "d" => Some(Decision::Sampled),
        _ => None,
    };
    if let Some(decision) = state(text) {
        return Some(Incoming::Decision(decision));
    }
    let mut parts = text.split('-');
    let (trace, span) = (parts.next()?, parts.next()?);
    let decision = parts.next().map_or(Some(Decision::Open), state)?;
    if let Some(parent) = parts.next() {
        hex(parent, 16)?;
    }
    if parts.next().is_some() {
        return None;
    }
    remote(trace, span, decision).map(Incoming::Context)
}

#[cfg(test)]
mod tests;
