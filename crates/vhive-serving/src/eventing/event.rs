//! One CloudEvent, and how it travels in the header fields of HTTP.
//!
//! # Source
//! CloudEvents 1.0.2, and its HTTP protocol binding §3.1 (binary content mode).

use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::structured;

/// Most attributes of one: with the fields of HTTP itself, a head holds a hundred.
const MOST: usize = 60;

/// Longest name of an attribute; the specification says 20 "should" be enough.
const LONGEST_NAME: usize = 64;

/// What stands before an attribute's name in a field's.
const PREFIX: &str = "ce-";

/// The media type of an event in JSON.
const STRUCTURED: &str = "application/cloudevents+json";

/// What all media types of events begin with.
const EVENTS: &str = "application/cloudevents";

/// What is written as `%XX` in a field, besides whatever is not ASCII.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// Why something is not an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// There is no sign of an event at all.
    #[error(
        "not a CloudEvent: there is no `ce-specversion` field and the content type is not \
         `application/cloudevents+json`"
    )]
    NotAnEvent,
    /// Another format or several at once.
    #[error("content type {0:?} is not supported; use binary mode or application/cloudevents+json")]
    Format(String),
    /// An attribute that must be there is not.
    #[error("attribute `{0}` is missing")]
    Missing(&'static str),
    /// An attribute cannot be what it is.
    #[error("attribute `{name}` {why}")]
    Attribute {
        /// Which.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// The body is not the JSON of an event.
    #[error("the body is not an event in JSON: {0}")]
    Json(String),
    /// There is too much beside the data.
    #[error("the attributes take {found} bytes as header fields, more than {most}")]
    TooLong {
        /// What they take.
        found: usize,
        /// What they may.
        most: usize,
    },
}

/// An event. Every attribute is kept in its canonical text, whatever its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// By name; `datacontenttype` is one of them.
    attributes: BTreeMap<String, String>,
    pub(crate) data: Bytes,
}

impl Event {
    /// Reads what came by HTTP. `most` bounds the attributes as header fields.
    ///
    /// # Errors
    /// [`Malformed`].
    pub(crate) fn read(headers: &HeaderMap, body: Bytes, most: usize) -> Result<Self, Malformed> {
        let content = content_type(headers)?;
        let media = media_type(content.as_deref());
        let event = if media == STRUCTURED {
            structured::read(&body)?
        } else if media.starts_with(EVENTS) {
            return Err(Malformed::Format(media.chars().take(100).collect()));
        } else {
            Self { attributes: binary(headers, content)?, data: body }
        };
        event.check(most)?;
        Ok(event)
    }

    /// Whether a message claims to be an event.
    pub(crate) fn is_claimed(headers: &HeaderMap) -> bool {
        let content = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        headers.contains_key("ce-specversion") || media_type(content).starts_with(EVENTS)
    }

    /// One that has been read in another way, still to be checked.
    pub(super) fn unchecked(attributes: BTreeMap<String, String>, data: Bytes) -> Self {
        Self { attributes, data }
    }

    /// An attribute's text.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str)
    }

    /// Sets an attribute; the name and the text are ours.
    pub(crate) fn set(&mut self, name: &str, value: String) {
        self.attributes.insert(name.to_owned(), value);
    }

    /// Takes an attribute out.
    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        self.attributes.remove(name)
    }

    /// The header fields of binary mode. Every value is printable ASCII, whatever it means.
    pub(crate) fn fields(&self) -> Vec<(String, Vec<u8>)> {
        let each = self.attributes.iter().map(|(name, value)| match name.as_str() {
            "datacontenttype" => ("content-type".to_owned(), value.as_bytes().to_vec()),
            name => (format!("{PREFIX}{name}"), encode(value).into_bytes()),
        });
        each.collect()
    }

    /// The event of fields that [`Event::fields`] has made.
    pub(crate) fn of_fields(fields: &[(String, Vec<u8>)], data: Bytes) -> Result<Self, Malformed> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let field = HeaderName::from_bytes(name.as_bytes());
            if let (Ok(name), Ok(value)) = (field, HeaderValue::from_bytes(value)) {
                headers.append(name, value);
            }
        }
        let content = content_type(&headers)?;
        Ok(Self { attributes: binary(&headers, content)?, data })
    }

    fn check(&self, most: usize) -> Result<(), Malformed> {
        for required in ["specversion", "id", "source", "type"] {
            match self.get(required) {
                None => return Err(Malformed::Missing(required)),
                Some("") => return Err(attribute(required, "is empty")),
                Some(_) => {}
            }
        }
        if self.get("specversion") != Some("1.0") {
            return Err(attribute("specversion", "is not 1.0"));
        }
        if self.attributes.len() > MOST {
            return Err(attribute("*", "is one of more than sixty"));
        }
        for (name, value) in &self.attributes {
            check_name(name)?;
            if value.chars().any(is_forbidden) {
                return Err(attribute(name, "has a control character"));
            }
        }
        for name in ["subject", "dataschema", "datacontenttype"] {
            if self.get(name) == Some("") {
                return Err(attribute(name, "is empty"));
            }
        }
        // As a field it would say that the data is the event.
        if media_type(self.get("datacontenttype")).starts_with(EVENTS) {
            return Err(attribute("datacontenttype", "is that of an event itself"));
        }
        let white = |text: &str| text.chars().any(char::is_whitespace);
        for name in ["source", "dataschema"] {
            if self.get(name).is_some_and(white) {
                return Err(attribute(name, "is not a URI reference"));
            }
        }
        let is_ascii = |text: &str| text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
        if self.get("datacontenttype").is_some_and(|text| !is_ascii(text)) {
            return Err(attribute("datacontenttype", "is not a media type"));
        }
        if self.get("time").is_some_and(|time| time.parse::<Timestamp>().is_err()) {
            return Err(attribute("time", "is not a time as in RFC 3339"));
        }
        let found: usize =
            self.fields().iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        if found > most {
            return Err(Malformed::TooLong { found, most });
        }
        Ok(())
    }
}

pub(super) fn attribute(name: &str, why: &'static str) -> Malformed {
    Malformed::Attribute { name: name.chars().take(LONGEST_NAME).collect(), why }
}

pub(super) fn check_name(name: &str) -> Result<(), Malformed> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(plain) {
        let why = "has a name that is not 1 to 64 lower-case letters and digits";
        return Err(attribute(name, why));
    }
    Ok(())
}

/// Whether a character may not be in an attribute.
///
/// # Source
/// CloudEvents 1.0.2, "Type System", `String`.
fn is_forbidden(c: char) -> bool {
    let noncharacter = (c as u32) & 0xFFFE == 0xFFFE || ('\u{FDD0}'..='\u{FDEF}').contains(&c);
    c.is_control() || noncharacter
}

fn content_type(headers: &HeaderMap) -> Result<Option<String>, Malformed> {
    let mut all = headers.get_all(header::CONTENT_TYPE).iter();
    let Some(first) = all.next() else { return Ok(None) };
    if all.next().is_some() {
        return Err(attribute("datacontenttype", "is given twice"));
    }
    let text = first.to_str().map_err(|_| attribute("datacontenttype", "is not a media type"));
    Ok(Some(text?.to_owned()))
}

fn media_type(content: Option<&str>) -> String {
    let media = content.and_then(|content| content.split(';').next()).unwrap_or_default();
    media.trim().to_ascii_lowercase()
}

/// The attributes in header fields.
fn binary(
    headers: &HeaderMap,
    content: Option<String>,
) -> Result<BTreeMap<String, String>, Malformed> {
    if !headers.contains_key("ce-specversion") {
        return Err(Malformed::NotAnEvent);
    }
    let mut attributes = BTreeMap::new();
    for (field, value) in headers {
        let Some(name) = field.as_str().strip_prefix(PREFIX) else { continue };
        check_name(name)?;
        if name == "datacontenttype" || name == "data" {
            return Err(attribute(name, "has no `ce-` field in binary mode"));
        }
        let text = decode(value.as_bytes()).ok_or_else(|| attribute(name, "is not UTF-8"))?;
        if attributes.insert(name.to_owned(), text).is_some() {
            return Err(attribute(name, "is given twice"));
        }
    }
    attributes.extend(content.map(|content| ("datacontenttype".to_owned(), content)));
    Ok(attributes)
}

fn encode(value: &str) -> String {
    utf8_percent_encode(value, ESCAPED).to_string()
}

/// The text of a field: quotes of earlier senders taken off, then `%XX` read once. What is no valid
/// escape stays as it is.
fn decode(field: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(field).ok()?.trim();
    let quoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    let text = quoted.map_or_else(|| text.to_owned(), unescape);
    percent_decode_str(&text).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

fn unescape(quoted: &str) -> String {
    let mut text = String::with_capacity(quoted.len());
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => text.extend(chars.next()),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(fields: &[(&str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    const PLAIN: [(&str, &[u8]); 4] =
        [("ce-specversion", b"1.0"), ("ce-id", b"1"), ("ce-source", b"/here"), ("ce-type", b"t")];

    fn with(more: &[(&str, &[u8])]) -> Result<Event, Malformed> {
        let fields = [PLAIN.as_slice(), more].concat();
        Event::read(&headers(&fields), Bytes::from_static(b"data"), 4096)
    }

    fn refused(more: &[(&str, &[u8])]) -> String {
        with(more).unwrap_err().to_string()
    }

    #[test]
    fn binary_events_are_read_and_written() {
        let event = with(&[
            ("Content-Type", b"text/plain"),
            ("ce-subject", b"Euro%20%E2%82%AC%20%F0%9F%98%80"),
            ("ce-time", b"2026-01-02T03:04:05.678+01:00"),
            ("ce-mine", b"\"an \\\"old\\\" one\""),
            ("other", b"x"),
        ])
        .unwrap();
        assert_eq!(event.get("subject"), Some("Euro \u{20AC} \u{1F600}"));
        assert_eq!(event.get("mine"), Some("an \"old\" one"));
        assert_eq!((event.get("datacontenttype"), event.get("other")), (Some("text/plain"), None));
        let fields = event.fields();
        let subject = fields.iter().find(|(name, _)| name == "ce-subject").unwrap();
        assert_eq!(subject.1, b"Euro%20%E2%82%AC%20%F0%9F%98%80");
        assert_eq!(Event::of_fields(&fields, event.data.clone()).unwrap(), event);
    }

    #[test]
    fn what_is_not_an_event_says_why() {
        let none = Event::read(&HeaderMap::new(), Bytes::new(), 4096).unwrap_err();
        assert_eq!(none, Malformed::NotAnEvent);
        for missing in 1..PLAIN.len() {
            let mut fields = PLAIN.to_vec();
            let (name, _) = fields.remove(missing);
            let error = Event::read(&headers(&fields), Bytes::new(), 4096).unwrap_err();
            assert!(error.to_string().contains(&name[3..]), "{error}");
        }
        assert!(refused(&[("ce-type", b"again")]).contains("twice"));
        assert!(refused(&[("content-type", b"a/b"), ("content-type", b"c/d")]).contains("twice"));
        assert!(refused(&[("ce-datacontenttype", b"a/b")]).contains("no `ce-` field"));
        assert!(refused(&[("ce-my-own", b"x")]).contains("lower-case"));
        assert!(refused(&[("ce-mine", b"\xFF")]).contains("UTF-8"));
        assert!(refused(&[("ce-mine", b"%FF")]).contains("UTF-8"));
        assert!(refused(&[("ce-subject", b"")]).contains("empty"));
        assert!(refused(&[("ce-time", b"yesterday")]).contains("RFC 3339"));
        assert!(refused(&[("ce-dataschema", b"a%20b")]).contains("URI"));
        let batch = b"application/cloudevents-batch+json; charset=utf-8";
        assert!(refused(&[("content-type", batch)]).contains("cloudevents-batch+json"));
        assert!(refused(&[("ce-long", [b'x'; 5000].as_slice())]).contains("more than 4096"));
        // Three bytes each once they are written again.
        assert!(refused(&[("ce-long", "\u{E9}".repeat(700).as_bytes())]).contains("more than"));
        let names: Vec<String> = (0..60).map(|n| format!("ce-x{n}")).collect();
        let many: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &b"1"[..])).collect();
        assert!(refused(&many).contains("sixty"));
    }

    #[test]
    fn no_attribute_becomes_a_header_field_of_its_own() {
        for hostile in [&b"a%0d%0aHost:%20evil"[..], b"a%0Aevil: 1", b"%00", b"%7f", b"%c2%85"] {
            assert!(refused(&[("ce-mine", hostile)]).contains("control"), "{hostile:?}");
        }
        // Read once, not twice.
        let event = with(&[("ce-mine", b"%250d%250aHost: evil")]).unwrap();
        assert_eq!(event.get("mine"), Some("%0d%0aHost: evil"));
        let fields = event.fields();
        let mine = fields.iter().find(|(name, _)| name == "ce-mine").unwrap();
        assert_eq!(mine.1, b"%250d%250aHost:%20evil");
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_travels_unchanged(value in "\\PC{0,40}", data in any::<Vec<u8>>()) {
            let mut event = with(&[]).unwrap();
            event.set("mine", value.clone());
            event.data = data.into();
            let fields = event.fields();
            for (name, value) in &fields {
                prop_assert!(value.iter().all(u8::is_ascii_graphic), "{}: {:?}", name, value);
            }
            let again = Event::of_fields(&fields, event.data.clone()).unwrap();
            prop_assert_eq!(again, event);
        }

        #[test]
        fn no_field_is_too_hostile(name in "[a-z0-9-]{0,70}", value in prop::collection::vec(prop_oneof![0x20..=0x7E_u8, 0x80..=0xFF_u8], 0..60)) {
            let name = format!("ce-{name}");
            if let Ok(event) = with(&[(name.as_str(), &value)]) {
                for (_, value) in event.fields() {
                    prop_assert!(value.iter().all(|b| *b == b' ' || b.is_ascii_graphic()));
                }
            }
        }
    }
}
