//! The ring of stream entries. Ids follow Redis's rule: the present millisecond and a sequence number, never below
//! the last id, whatever the clock does. So the order of ids is the order of appending, for ever (Inv. ORDER).

use std::collections::VecDeque;

use bytes::Bytes;
use shared::ids::{Epoch, EventId, Slot, StreamId};

use super::super::{Entry, Millis, STREAM_ENTRIES_MAX, TickMark};

/// The newest entries, oldest first.
#[derive(Debug, Default)]
pub(super) struct Stream {
    entries: VecDeque<Entry>,
    last: StreamId,
    /// Entries ever added.
    added: u64,
}

impl Stream {
    /// Appends a public message.
    pub(super) fn append(&mut self, now: Millis, kind: &str, data: Bytes, traceparent: Option<String>) -> EventId {
        let id = self.next_id(now);
        self.push(Entry { id, kind: kind.to_owned(), data, visitor: None, tick: None, traceparent })
    }

    /// Appends the snapshot of a slot.
    pub(super) fn append_snapshot(&mut self, now: Millis, kind: &str, data: Bytes, epoch: Epoch, slot: Slot) {
        let id = self.next_id(now);
        let tick = Some(TickMark { epoch, slot, entries: self.added + 1 });
        self.push(Entry { id, kind: kind.to_owned(), data, visitor: None, tick, traceparent: None });
    }

    // Inv. ORDER: strictly growing, also when the wall clock is not.
    fn next_id(&self, now: Millis) -> StreamId {
        if now > self.last.ms {
            StreamId { ms: now, seq: 0 }
        } else {
            StreamId { ms: self.last.ms, seq: self.last.seq + 1 }
        }
    }

    fn push(&mut self, entry: Entry) -> EventId {
        self.last = entry.id;
        self.added += 1;
        let id = entry.event_id();
        self.entries.push_back(entry);
        // Inv. BOUND
        if self.entries.len() > STREAM_ENTRIES_MAX {
            self.entries.pop_front();
        }
        id
    }

    /// The entries after `id`, oldest first, at most `count`.
    pub(super) fn after(&self, id: StreamId, count: usize) -> Vec<Entry> {
        let start = self.entries.partition_point(|entry| entry.id <= id);
        self.entries.range(start..).take(count).cloned().collect()
    }

    /// The newest `count` entries, oldest first.
    pub(super) fn newest(&self, count: usize) -> Vec<Entry> {
        self.entries.range(self.entries.len().saturating_sub(count)..).cloned().collect()
    }

    /// The `count` entries up to `last`, oldest first.
    pub(super) fn up_to(&self, last: StreamId, count: usize) -> Vec<Entry> {
        let end = self.entries.partition_point(|entry| entry.id <= last);
        self.entries.range(end.saturating_sub(count)..end).cloned().collect()
    }

    /// The entry at `id`.
    pub(super) fn entry(&self, id: StreamId) -> Option<Entry> {
        self.entries.binary_search_by_key(&id, |entry| entry.id).ok().and_then(|at| self.entries.get(at)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Inv. ORDER, Inv. BOUND
    #[test]
    fn ids_grow_while_the_clock_does_not_and_the_ring_stays_bounded() {
        let mut stream = Stream::default();
        let times = [5, 5, 9, 3, 0, 9, 10];
        let ids: Vec<_> = times.map(|now| stream.append(now, "new_event", Bytes::new(), None).stream).into();
        assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
        for now in 0..STREAM_ENTRIES_MAX as u64 {
            stream.append(100 + now, "new_event", Bytes::new(), None);
        }
        let all = stream.after(StreamId::ZERO, usize::MAX);
        assert_eq!(all.len(), STREAM_ENTRIES_MAX);
        assert_eq!(stream.entry(ids[6]), None, "the oldest made room");
        assert_eq!(stream.added, 7 + STREAM_ENTRIES_MAX as u64);
    }
}
