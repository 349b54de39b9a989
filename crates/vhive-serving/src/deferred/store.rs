//! The queue on disk: `<state directory>/async.redb`.
//!
//! A value is a JSON head, a zero byte, and the body as it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use redb::{ReadableTable as _, ReadableTableMetadata as _, TableDefinition};
use serde::{Deserialize, Serialize};

use super::Stage;
use crate::eventing::Delivery;
use crate::store::{DatabaseFile, StoreError};

/// By id.
const PENDING: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("pending");
const REPLIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("replies");
/// Ids of replies in the order in which they came, so that the oldest can go.
const ORDER: TableDefinition<'_, u64, &str> = TableDefinition::new("order");

/// A request that waits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pending {
    pub(crate) id: String,
    pub(crate) accepted: Timestamp,
    pub(crate) host: String,
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    /// Without those of the connection and of framing.
    pub(crate) fields: Vec<(String, Vec<u8>)>,
    #[serde(skip)]
    pub(crate) body: Bytes,
    /// Whose queue it counts in, unless it is an event or an earlier version has kept it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lane: Option<String>,
    /// Of an event: whom it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) event: Option<Box<Delivery>>,
}

impl Pending {
    /// Whose it is: a trigger's, or a service's. None may fill the queue for the others.
    pub(crate) fn lane(&self) -> &str {
        let of_event = self.event.as_deref().map(|delivery| delivery.uid.as_str());
        of_event.or(self.lane.as_deref()).unwrap_or(&self.host)
    }

    /// What it counts for among all that may wait.
    pub(crate) fn size(&self) -> u64 {
        let fields: usize = self.fields.iter().map(|(name, value)| name.len() + value.len()).sum();
        (self.body.len() + fields + self.target.len() + 256) as u64
    }
}

/// The head of a reply as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) stage: Stage,
    pub(crate) host: String,
    pub(crate) accepted: Timestamp,
    pub(crate) ended: Timestamp,
    pub(crate) attempts: u32,
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, Vec<u8>)>,
    pub(crate) error: Option<String>,
}

/// A reply to be kept.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KeptReply {
    pub(crate) head: Kept,
    pub(crate) body: Bytes,
}

/// The open file. Its methods block for the disk.
#[derive(Debug)]
pub(super) struct Queue {
    database: DatabaseFile,
    path: PathBuf,
}

impl Queue {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let database = DatabaseFile::open(path)?;
        let queue = Self { database, path: path.to_owned() };
        let write = queue.database.begin_write().map_err(|e| queue.io(&e))?;
        write.open_table(PENDING).map_err(|e| queue.io(&e))?;
        write.open_table(REPLIES).map_err(|e| queue.io(&e))?;
        write.open_table(ORDER).map_err(|e| queue.io(&e))?;
        write.commit().map_err(|e| queue.io(&e))?;
        Ok(queue)
    }

    /// Every request that waits, oldest first.
    pub(super) fn pending(&self) -> Result<Vec<Pending>, StoreError> {
        let read = self.database.begin_read().map_err(|e| self.io(&e))?;
        let table = read.open_table(PENDING).map_err(|e| self.io(&e))?;
        let mut all = Vec::new();
        for entry in table.iter().map_err(|e| self.io(&e))? {
            let (key, value) = entry.map_err(|e| self.io(&e))?;
            let (mut pending, body): (Pending, Bytes) = self.decode(key.value(), value.value())?;
            pending.body = body;
            all.push(pending);
        }
        all.sort_by(|one, two| (one.accepted, &one.id).cmp(&(two.accepted, &two.id)));
        Ok(all)
    }

    /// Takes one request out, if one is named, and puts others in.
    pub(super) fn exchange(
        &self,
        gone: Option<&str>,
        new: &[Arc<Pending>],
    ) -> Result<(), StoreError> {
        let write = self.database.begin_write().map_err(|e| self.io(&e))?;
        {
            let mut table = write.open_table(PENDING).map_err(|e| self.io(&e))?;
            if let Some(gone) = gone {
                table.remove(gone).map_err(|e| self.io(&e))?;
            }
            for one in new {
                let value = encode(one.as_ref(), &one.body).map_err(|e| self.io(&e))?;
                table.insert(one.id.as_str(), value.as_slice()).map_err(|e| self.io(&e))?;
            }
        }
        write.commit().map_err(|e| self.io(&e))
    }

    /// Puts a reply in the place of its request, unless there is one already, and lets the oldest
    /// replies beyond `most` go.
    pub(super) fn end(&self, id: &str, reply: &KeptReply, most: u64) -> Result<(), StoreError> {
        let value = encode(&reply.head, &reply.body).map_err(|e| self.io(&e))?;
        let write = self.database.begin_write().map_err(|e| self.io(&e))?;
        {
            let mut pending = write.open_table(PENDING).map_err(|e| self.io(&e))?;
            let mut replies = write.open_table(REPLIES).map_err(|e| self.io(&e))?;
            let mut order = write.open_table(ORDER).map_err(|e| self.io(&e))?;
            pending.remove(id).map_err(|e| self.io(&e))?;
            if replies.get(id).map_err(|e| self.io(&e))?.is_none() {
                replies.insert(id, value.as_slice()).map_err(|e| self.io(&e))?;
                let last = order.last().map_err(|e| self.io(&e))?.map_or(0, |(key, _)| key.value());
                order.insert(last + 1, id).map_err(|e| self.io(&e))?;
            }
            while order.len().map_err(|e| self.io(&e))? > most {
                let Some((_, oldest)) = order.pop_first().map_err(|e| self.io(&e))? else { break };
                replies.remove(oldest.value()).map_err(|e| self.io(&e))?;
            }
        }
        write.commit().map_err(|e| self.io(&e))
    }

    pub(super) fn reply(&self, id: &str) -> Result<Option<(Kept, Bytes)>, StoreError> {
        let read = self.database.begin_read().map_err(|e| self.io(&e))?;
        let table = read.open_table(REPLIES).map_err(|e| self.io(&e))?;
        let value = table.get(id).map_err(|e| self.io(&e))?;
        value.map(|value| self.decode(id, value.value())).transpose()
    }

    pub(super) fn forget(&self, id: &str) -> Result<bool, StoreError> {
        let write = self.database.begin_write().map_err(|e| self.io(&e))?;
        let known = {
            let mut replies = write.open_table(REPLIES).map_err(|e| self.io(&e))?;
            let removed = replies.remove(id).map_err(|e| self.io(&e))?;
            removed.is_some()
        };
        write.commit().map_err(|e| self.io(&e))?;
        Ok(known)
    }

    /// As if the disk had failed.
    #[cfg(test)]
    pub(super) fn doubt(&self) {
        self.database.doubt();
    }

    fn decode<T: for<'de> Deserialize<'de>>(
        &self,
        key: &str,
        value: &[u8],
    ) -> Result<(T, Bytes), StoreError> {
        let damaged = |reason: String| {
            let reason = format!("asynchronous invocation {key}: {reason}");
            StoreError::Damaged { path: self.path.clone(), reason }
        };
        let end = value.iter().position(|byte| *byte == 0);
        let end = end.ok_or_else(|| damaged("it has no head".to_owned()))?;
        let head = serde_json::from_slice(&value[..end]).map_err(|e| damaged(e.to_string()))?;
        Ok((head, Bytes::copy_from_slice(&value[end + 1..])))
    }

    fn io(&self, error: &dyn std::fmt::Display) -> StoreError {
        self.database.doubt();
        StoreError::Io { path: self.path.clone(), reason: error.to_string() }
    }
}

fn encode(head: &impl Serialize, body: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
    // JSON has no zero byte.
    let mut value = serde_json::to_vec(head)?;
    value.push(0);
    value.extend_from_slice(body);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(id: &str, second: i64) -> Pending {
        Pending {
            id: id.to_owned(),
            accepted: Timestamp::from_second(second).unwrap(),
            host: "hello.default.example.com".to_owned(),
            method: "POST".to_owned(),
            target: "/a?b=c".to_owned(),
            fields: vec![("x-bytes".to_owned(), vec![0xFF, 0x41])],
            body: Bytes::from_static(b"\0body\0"),
            lane: Some("default/hello".to_owned()),
            event: None,
        }
    }

    fn reply(status: u16) -> KeptReply {
        let at = Timestamp::UNIX_EPOCH;
        let head = Kept {
            stage: Stage::Done,
            host: "h".to_owned(),
            accepted: at,
            ended: at,
            attempts: 1,
            status,
            fields: vec![("content-type".to_owned(), b"text/plain".to_vec())],
            error: None,
        };
        KeptReply { head, body: Bytes::from_static(b"a\0b") }
    }

    #[test]
    fn requests_and_replies_survive_byte_for_byte_and_the_oldest_replies_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("async.redb");
        {
            let queue = Queue::open(&path).unwrap();
            let wait = |id, second| Arc::new(pending(id, second));
            queue.exchange(None, &[wait("late", 2), wait("other", 1)]).unwrap();
            queue.exchange(Some("other"), &[wait("early", 1)]).unwrap();
            queue.end("gone", &reply(200), 10).unwrap();
        }
        let queue = Queue::open(&path).unwrap();
        assert_eq!(queue.pending().unwrap(), [pending("early", 1), pending("late", 2)]);
        queue.end("early", &reply(201), 10).unwrap();
        queue.end("early", &reply(500), 10).unwrap();
        assert_eq!(queue.pending().unwrap(), [pending("late", 2)]);
        let kept = queue.reply("early").unwrap().unwrap();
        assert_eq!(kept, (reply(201).head, Bytes::from_static(b"a\0b")), "the first is kept");
        queue.end("late", &reply(202), 2).unwrap();
        assert_eq!(queue.reply("gone").unwrap(), None, "the oldest went");
        assert!(queue.forget("early").unwrap() && !queue.forget("early").unwrap());
    }
}
