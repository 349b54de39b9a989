//! Events whose attributes and data are one JSON object.
//!
//! # Source
//! CloudEvents 1.0.2, "JSON Event Format", §2 and §3.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::Value;
use serde_json::value::RawValue;

use super::event::{Event, Malformed, attribute, check_name};

/// Reads an event in JSON. Its data gets the bytes that it has in binary mode.
pub(super) fn read(body: &[u8]) -> Result<Event, Malformed> {
    let wrong = |error: &serde_json::Error| Malformed::Json(error.to_string());
    // Raw, so that data in JSON keeps every digit.
    let mut members: BTreeMap<String, &RawValue> =
        serde_json::from_slice(body).map_err(|error| wrong(&error))?;
    let data = members.remove("data").filter(|raw| raw.get() != "null");
    let encoded = members.remove("data_base64").filter(|raw| raw.get() != "null");
    let mut attributes = BTreeMap::new();
    for (name, raw) in members {
        check_name(&name)?;
        let value: Value = match raw.get().as_bytes().first() {
            Some(b'{' | b'[') => return Err(attribute(&name, "is an object or a list")),
            _ => serde_json::from_str(raw.get()).map_err(|error| wrong(&error))?,
        };
        let text = match value {
            Value::Null => continue,
            Value::String(text) => text,
            Value::Bool(flag) => flag.to_string(),
            Value::Number(number) => {
                let whole = number.as_i64().filter(|n| i32::try_from(*n).is_ok());
                whole.ok_or_else(|| attribute(&name, "is no whole number of 32 bits"))?.to_string()
            }
            Value::Array(_) | Value::Object(_) => {
                return Err(attribute(&name, "is an object or a list"));
            }
        };
        attributes.insert(name, text);
    }
    let data = match (data, encoded) {
        (Some(_), Some(_)) => {
            return Err(Malformed::Json("both data and data_base64 are there".to_owned()));
        }
        (None, None) => Bytes::new(),
        (None, Some(raw)) => {
            let text: String = serde_json::from_str(raw.get()).map_err(|error| wrong(&error))?;
            let bytes = STANDARD.decode(text);
            bytes.map_err(|_| Malformed::Json("data_base64 is not base64".to_owned()))?.into()
        }
        (Some(raw), None) => {
            let content = attributes
                .entry("datacontenttype".to_owned())
                .or_insert_with(|| "application/json".to_owned());
            match serde_json::from_str::<String>(raw.get()) {
                Ok(text) if !is_json(content) => Bytes::from(text),
                _ => Bytes::copy_from_slice(raw.get().as_bytes()),
            }
        }
    };
    Ok(Event::unchecked(attributes, data))
}

/// Whether a content type says JSON: `application/json`, `text/json` or `…+json`.
fn is_json(content: &str) -> bool {
    let media = content.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let sub = media.split_once('/').map_or("", |(_, sub)| sub);
    sub == "json" || sub.ends_with("+json")
}

#[cfg(test)]
mod tests {
    use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Event, Malformed> {
        let mut headers = HeaderMap::new();
        let json = HeaderValue::from_static("application/cloudevents+json; charset=utf-8");
        headers.insert(CONTENT_TYPE, json);
        Event::read(&headers, Bytes::copy_from_slice(text.as_bytes()), 4096)
    }

    fn with(more: &str) -> Result<Event, Malformed> {
        parse(&format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t"{more}}}"#))
    }

    #[test]
    fn data_gets_the_bytes_that_it_has_in_binary_mode() {
        let cases = [
            ("", None, &b""[..]),
            (r#","data":null"#, None, b""),
            (
                r#","data":{"n": 1.10,"big":12345678901234567890123}"#,
                Some("application/json"),
                b"{\"n\": 1.10,\"big\":12345678901234567890123}",
            ),
            (r#","data":"text""#, Some("application/json"), b"\"text\""),
            (
                r#","datacontenttype":"text/plain","data":"\u20ac""#,
                Some("text/plain"),
                "\u{20AC}".as_bytes(),
            ),
            (
                r#","datacontenttype":"application/x+json","data":"a""#,
                Some("application/x+json"),
                b"\"a\"",
            ),
            (r#","datacontenttype":"text/xml","data":[1]"#, Some("text/xml"), b"[1]"),
            (r#","data_base64":"AP8=""#, None, b"\0\xFF"),
        ];
        for (more, content, data) in cases {
            let event = with(more).unwrap();
            assert_eq!(
                (event.get("datacontenttype"), event.data.as_ref()),
                (content, data),
                "{more}"
            );
        }
    }

    #[test]
    fn attributes_are_kept_as_text_and_others_refused_by_name() {
        let event = with(r#","yes":true,"n":-5,"gone":null,"subject":"a\u0020b""#).unwrap();
        assert_eq!((event.get("yes"), event.get("n")), (Some("true"), Some("-5")));
        assert_eq!((event.get("gone"), event.get("subject")), (None, Some("a b")));
        for (more, why) in [
            (r#","x":1.5"#, "32 bits"),
            (r#","x":3000000000"#, "32 bits"),
            (r#","x":{}"#, "object"),
            (r#","X":"a""#, "lower-case"),
            (r#","x":"a\r\nHost: evil""#, "control"),
            (r#","data":1,"data_base64":"AA==""#, "both"),
            (r#","data_base64":"?""#, "not base64"),
            (r#","type":"""#, "empty"),
            (r#","specversion":"0.3""#, "not 1.0"),
            (",", "not an event in JSON"),
        ] {
            let error = with(more).unwrap_err().to_string();
            assert!(error.contains(why), "{more}: {error}");
        }
        assert!(parse("[]").is_err() && parse("").is_err() && parse("{}").is_err());
        assert!(parse(&"[".repeat(100_000)).is_err());
        let deep = format!(r#","data":{}{}"#, "[".repeat(100_000), "]".repeat(100_000));
        // Whether or not it is let through, nothing overflows.
        drop(with(&deep));
        let deep = format!(r#","x":{}{}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert!(with(&deep).is_err());
    }

    proptest! {
        #[test]
        fn no_body_is_too_hostile(body in any::<Vec<u8>>(), text in "\\PC{0,60}") {
            drop(read(&body));
            drop(with(&format!(",{text}")));
        }
    }
}
