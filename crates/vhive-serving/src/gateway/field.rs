//! Header fields that mean something to the gateway.

use crate::trace::TraceField;

/// What the gateway knows a field as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    Te,
    Upgrade,
    Expect,
    Prefer,
    /// Of a probe of the network: the gateway answers it itself.
    Probe,
    UserAgent,
    /// Another one that concerns one connection only.
    Hop,
    ForwardedFor,
    ForwardedProto,
    Forwarded,
    RequestId,
    Date,
    Trailer,
    /// Of a trace context.
    Trace(TraceField),
    TraceResponse,
    /// It is forwarded as it is.
    Other,
}

impl Field {
    /// The field with this name, in whatever case.
    pub(super) fn of(name: &[u8]) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match name.len() {
            2 if is("te") => Self::Te,
            2 if is("b3") => Self::Trace(TraceField::B3),
            4 if is("host") => Self::Host,
            4 if is("date") => Self::Date,
            6 if is("expect") => Self::Expect,
            6 if is("prefer") => Self::Prefer,
            7 if is("upgrade") => Self::Upgrade,
            7 if is("trailer") => Self::Trailer,
            9 if is("forwarded") => Self::Forwarded,
            10 if is("connection") => Self::Connection,
            10 if is("user-agent") => Self::UserAgent,
            10 if is("keep-alive") => Self::Hop,
            10 if is("tracestate") => Self::Trace(TraceField::State),
            10 if is("x-b3-flags") => Self::Trace(TraceField::B3Flags),
            11 if is("traceparent") => Self::Trace(TraceField::Parent),
            11 if is("x-b3-spanid") => Self::Trace(TraceField::B3SpanId),
            12 if is("x-request-id") => Self::RequestId,
            12 if is("x-b3-traceid") => Self::Trace(TraceField::B3TraceId),
            12 if is("x-b3-sampled") => Self::Trace(TraceField::B3Sampled),
            13 if is("traceresponse") => Self::TraceResponse,
            14 if is("content-length") => Self::ContentLength,
            15 if is("x-forwarded-for") => Self::ForwardedFor,
            15 if is("k-network-probe") || is("k-kubelet-probe") => Self::Probe,
            16 if is("proxy-connection") => Self::Hop,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            17 if is("x-forwarded-proto") => Self::ForwardedProto,
            17 if is("x-b3-parentspanid") => Self::Trace(TraceField::B3ParentSpanId),
            18 if is("proxy-authenticate") => Self::Hop,
            19 if is("proxy-authorization") => Self::Hop,
            _ => Self::Other,
        }
    }

    /// Which part of a trace context it is.
    pub(super) fn of_trace(self) -> Option<TraceField> {
        if let Self::Trace(field) = self { Some(field) } else { None }
    }

    /// Whether it concerns one connection only, or is written anew for each.
    pub(super) fn is_hop(self) -> bool {
        let hop = [Self::Connection, Self::TransferEncoding, Self::Upgrade, Self::Te, Self::Hop];
        hop.contains(&self)
    }
}

/// Whether a list of tokens has this one.
pub(super) fn lists(value: &[u8], token: &[u8]) -> bool {
    value.split(|b| *b == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
}

/// Writes a field, its name in lower case: what a side gets does not depend on how the other
/// spells it.
pub(super) fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let at = out.len();
    out.extend_from_slice(name);
    out[at..].make_ascii_lowercase();
    write_value(out, value);
}

/// Writes a field whose name is in lower case.
pub(super) fn write_own(out: &mut Vec<u8>, name: &'static str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    write_value(out, value);
}

fn write_value(out: &mut Vec<u8>, value: &[u8]) {
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_in_any_case() {
        assert_eq!(Field::of(b"Transfer-ENCODING"), Field::TransferEncoding);
        assert_eq!(Field::of(b"te"), Field::Te);
        assert_eq!(Field::of(b"K-Network-Probe"), Field::Probe);
        assert_eq!(Field::of(b"hosts"), Field::Other);
        assert_eq!(Field::of(b""), Field::Other);
        for field in TraceField::ALL {
            assert_eq!(Field::of(field.name().as_bytes()).of_trace(), Some(field));
        }
        assert_eq!(Field::of(crate::trace::TRACE_RESPONSE.as_bytes()), Field::TraceResponse);
    }
}
