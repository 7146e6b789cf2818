//! Reading the stream.
//!
//! Anybody who may write to Redis may append to the stream, so an entry is taken as it is: fields that are missing
//! are empty, fields that are not text are read as far as they are, and nothing that one entry holds can keep a node
//! from reading the next. What an entry means is the relay's business.
//!
//! Nor can what many hold: Redis cuts an answer by entries, not by bytes, and the past of a stream in which somebody
//! puts megabytes would not arrive within any timeout. So the past is read in pages ([`PAGE_MAX`]), smaller ones where
//! those are too slow, and of a value no more is kept than [`ENTRY_VALUE_BYTES_MAX`].

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use fred::interfaces::{ClientLike, StreamsInterface};
use fred::types::Value;
use shared::ids::{Epoch, Slot, StreamId};

use super::RedisBackplane;
use super::connection::COMMAND_TIMEOUT;
use super::patience::patiently_noting;
use super::reply::{ODD_REPLY, Reply};
use crate::backplane::{BackplaneError, ENTRY_VALUE_BYTES_MAX, Entry, Result, TickMark};

/// Entries of the past that are asked for at once.
const PAGE_MAX: usize = 64;

impl RedisBackplane {
    /// XREAD BLOCK on the connection that does nothing else: a blocked connection answers nobody.
    pub(super) async fn read_stream(&self, after: StreamId, count: usize, block: Duration) -> Result<Vec<Entry>> {
        // BLOCK 0 would mean for ever.
        let block_ms = u64::try_from(block.as_millis()).unwrap_or(u64::MAX);
        let blocking = (!block.is_zero()).then_some(block_ms.max(1));
        let bound = block + COMMAND_TIMEOUT;
        let read = async {
            let client = self.reader.ready().await?;
            self.same_connection()?;
            let client = client.with_options(&self.options);
            client
                .xread::<Value, _, _>(Some(count as u64), blocking, self.keys.events(), after.to_string())
                .await
                .map_err(|error| self.refusals.meaning(&error))
        };
        let read = patiently_noting(&self.lateness, bound, read).await;
        let result = read.unwrap_or(Err(BackplaneError::Timeout));
        if result == Err(BackplaneError::Timeout) {
            // A blocked read that Redis did not end in time: nobody answers there any more. The library's own
            // watchdog leaves blocked connections alone.
            self.reader.suspect();
        }
        let answer = result?;
        self.same_connection()?;
        match answer {
            Value::Null => Ok(Vec::new()),
            // RESP3: {stream: entries}; RESP2: [[stream, entries]].
            Value::Map(streams) => entries(streams.inner().into_values().next().unwrap_or(Value::Null)),
            Value::Array(streams) => match streams.into_iter().next() {
                Some(Value::Array(mut pair)) => entries(pair.pop().unwrap_or(Value::Null)),
                _ => Err(ODD_REPLY),
            },
            _ => Err(ODD_REPLY),
        }
    }

    /// Whether reads go through the same connection as before. A command that was given to the library when
    /// a connection had just ended goes out on the next one, without an error; and a stream that has lost its end, as after
    /// a power cut, answers with nothing to whoever stands behind that. So a new connection is told, once.
    // Inv. GAP
    fn same_connection(&self) -> Result<()> {
        let made = self.reader.made();
        let before = self.read_through.swap(made, Ordering::Relaxed);
        if before == made || before == 0 { Ok(()) } else { Err(BackplaneError::Unreachable) }
    }

    /// The newest entries up to `last` (an id, or `+` for all), oldest first. The timeout is a page's.
    pub(super) async fn entries_up_to(&self, last: String, count: usize) -> Result<Vec<Entry>> {
        let (mut newest, mut page) = (Vec::new(), PAGE_MAX);
        while newest.len() < count {
            let asked = page.min(count - newest.len());
            let before = newest.last().map_or_else(|| last.clone(), |oldest: &Entry| format!("({}", oldest.id));
            let read = self.command(|client| async move {
                client.xrevrange::<Value, _, _, _>(self.keys.events(), before, "-", Some(asked as u64)).await
            });
            match read.await {
                Ok(read) => {
                    let read = entries(read)?;
                    let is_last = read.len() < asked;
                    newest.extend(read);
                    if is_last {
                        break;
                    }
                }
                Err(BackplaneError::Timeout) if page > 1 => page /= 2,
                Err(error) => return Err(error),
            }
        }
        newest.reverse();
        Ok(newest)
    }

    /// The entry at `id`.
    pub(super) async fn entry_at(&self, id: StreamId) -> Result<Option<Entry>> {
        let id = id.to_string();
        let found = self.command(|client| async move {
            client.xrange::<Value, _, _, _>(self.keys.events(), id.clone(), id, None).await
        });
        Ok(entries(found.await?)?.pop())
    }
}

fn entries(value: Value) -> Result<Vec<Entry>> {
    match value {
        Value::Array(entries) => entries.into_iter().map(entry).collect(),
        Value::Null => Ok(Vec::new()),
        _ => Err(ODD_REPLY),
    }
}

/// `[id, [field, value, …]]`. Only what is no entry at all is an error.
fn entry(value: Value) -> Result<Entry> {
    let mut parts = Reply::new(value);
    let id: StreamId = parts.parse()?;
    let mut entry = Entry { id, kind: String::new(), data: Bytes::new(), visitor: None, tick: None, traceparent: None };
    let (mut slot, mut epoch, mut entries) = (None, None, None);
    let mut fields = Reply::new(parts.value()?);
    while !fields.is_empty() {
        let name = fields.bytes()?;
        let value = fields.bytes()?;
        // A copy: the value itself would hold on to the whole answer of which it is a part.
        let value = Bytes::copy_from_slice(&value[..value.len().min(ENTRY_VALUE_BYTES_MAX)]);
        match name.as_ref() {
            b"type" => entry.kind = String::from_utf8_lossy(&value).into_owned(),
            b"data" => entry.data = value,
            b"visitor" => entry.visitor = Some(String::from_utf8_lossy(&value).into_owned()),
            b"traceparent" => entry.traceparent = Some(String::from_utf8_lossy(&value).into_owned()),
            b"slot" => slot = number(&value),
            b"epoch" => epoch = number(&value),
            b"entries" => entries = number(&value),
            _ => {}
        }
    }
    // Inv. FENCE: a snapshot without all three was not written by a tick.
    if let (Some(slot), Some(epoch), Some(entries)) = (slot, epoch, entries) {
        entry.tick = Some(TickMark { epoch: Epoch(epoch), slot: Slot(slot), entries });
    }
    Ok(entry)
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(fields: &[&'static [u8]]) -> Entry {
        let fields = fields.iter().map(|field| Value::Bytes(Bytes::from_static(field))).collect();
        entry(Value::Array(vec![Value::from("7-1"), Value::Array(fields)])).expect("an entry")
    }

    #[test]
    fn a_strange_entry_is_an_entry() {
        let strange = decode(&[b"type", b"\xff", b"data", b"\xfe\0", b"other", b"x", b"slot", b"1", b"epoch", b"-2"]);
        assert_eq!(strange.kind, "\u{fffd}");
        assert_eq!(strange.data.as_ref(), b"\xfe\0");
        assert_eq!(strange.tick, None);
        let empty = decode(&[b"a", b"b"]);
        assert_eq!((empty.kind.as_str(), empty.data.len(), empty.visitor), ("", 0, None));
    }

    #[test]
    fn only_all_three_fields_make_a_snapshot() {
        let whole: [&[u8]; 6] = [b"slot", b"5000", b"epoch", b"9", b"entries", b"3"];
        let mark = TickMark { epoch: Epoch(9), slot: Slot(5000), entries: 3 };
        assert_eq!(decode(&whole).tick, Some(mark));
        assert_eq!(decode(&whole[..4]).tick, None);
        assert_eq!(decode(&whole[2..]).tick, None);
    }

    #[test]
    fn what_is_no_entry_is_an_error() {
        assert!(entry(Value::Null).is_err());
        assert!(entry(Value::Array(vec![Value::from("x")])).is_err());
        assert!(entries(Value::Integer(1)).is_err());
    }
}
