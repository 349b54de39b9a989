//! JSON that is kept for long and looked at seldom: as text, a tenth of what its tree takes.

use std::fmt;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// A document. Two are equal if their values are, because the text is always written in the same way.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Document(Box<str>);

impl Document {
    /// Keeps a value.
    pub(crate) fn of(value: &Value) -> Self {
        Self(value.to_string().into_boxed_str())
    }

    /// Bytes that it takes.
    pub(crate) fn size(&self) -> usize {
        self.0.len()
    }

    /// Whether it is `null`.
    pub(crate) fn is_null(&self) -> bool {
        &*self.0 == "null"
    }

    /// The value, made anew.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_str(&self.0).expect("it was written by us")
    }
}

impl Default for Document {
    /// `null`.
    fn default() -> Self {
        Self::of(&Value::Null)
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Document {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(S::Error::custom)?;
        raw.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // Through the tree, so that the order of its fields is always the same.
        let value = Value::deserialize(from).map_err(D::Error::custom)?;
        Ok(Self::of(&value))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_is_the_value_however_it_was_written() {
        let value = json!({"b": [1, 2.5, null], "a": {"x": "\u{1F600}\n"}});
        let one = Document::of(&value);
        let text = serde_json::to_string(&one).unwrap();
        let spaced = "{ \"b\": [1, 2.5, null],\n \"a\": {\"x\": \"\\ud83d\\ude00\\n\"} }";
        let two: Document = serde_json::from_str(spaced).unwrap();
        assert_eq!((one.value(), &one), (value, &two));
        assert_eq!(serde_json::from_str::<Document>(&text).unwrap(), one);
    }
}
