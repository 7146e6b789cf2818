//! Where in the stream the node is, and whether that place still exists: pure decisions.
//!
//! `XREAD` answers with what lies after an id, and never says that the id is unknown. After a failover to a replica
//! that lagged, or whose clock is behind, after a restored backup or a lost data set, a reader can wait for ever at a
//! place that the stream will never pass, or skip what it has not seen, without any error. So:
//!
//! - the cursor remembers the id and the digest of the last [`REMEMBERED_MAX`] entries. Whenever there is reason to
//!   doubt, the entry at the cursor must still stand there ([`Cursor::anchor`]); if it does not, [`Cursor::reanchor`]
//!   finds the place from which nothing is read twice and nothing new is skipped unsaid;
//! - each snapshot tells how many entries the stream ever got; the cursor counts what it read, and a difference is a
//!   [`Gap`].
//!
//! A hole is announced, never silent (Inv. GAP), and what was delivered is not delivered again (Inv. ORDER).

use std::collections::VecDeque;

use shared::ids::{EventId, StreamId};

use crate::backplane::TickMark;

/// Entries whose identity is remembered.
pub const REMEMBERED_MAX: usize = 1024;

/// Something is missing: after `from`, which clients have, and before whatever comes next.
// Inv. ORDER: no end is named. What stands in the stream and is skipped may be older than what clients have, and they go
// on from the end of a gap: an old one would have them get all that they had since once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The last entry before the hole. None when nothing was read before.
    pub from: Option<EventId>,
    /// How many entries are missing, at least.
    pub entries: u64,
}

/// What to do with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is new.
    Deliver,
    /// It was read before.
    Duplicate,
}

/// The last snapshot read, and what was read since: how holes show.
#[derive(Debug, Clone, Copy)]
struct Count {
    /// The stream's count at that snapshot.
    entries: u64,
    /// Entries read after it.
    read: u64,
    /// The snapshot's own place.
    id: EventId,
}

/// The node's place in the stream.
#[derive(Debug, Default)]
pub struct Cursor {
    /// What is read next lies after this.
    position: StreamId,
    /// The entry at `position`. None while that is the stream's beginning, which is always there, or a place at which
    /// nothing stands any more: see [`Self::waits_in_vain`].
    anchor: Option<EventId>,
    /// The last entry that was read: what a hole begins behind, wherever the place to go on from is.
    last: Option<EventId>,
    /// In the order in which they were read.
    remembered: VecDeque<EventId>,
    /// No entry with a larger id was ever read.
    highest: StreamId,
    count: Option<Count>,
}

impl Cursor {
    /// A cursor at the end of a stream whose newest entries are these, oldest first. An empty stream is read from its
    /// beginning.
    #[must_use]
    pub fn at_end_of(newest: &[(EventId, Option<TickMark>)]) -> Self {
        let mut cursor = Self::default();
        for (id, tick) in newest {
            // The stream's past is no hole.
            let _ = cursor.accept(*id, *tick);
        }
        cursor
    }

    /// What is read next lies after this.
    #[must_use]
    pub fn position(&self) -> StreamId {
        self.position
    }

    /// The entry that must still stand at [`Self::position`]; none when there is nothing to check.
    #[must_use]
    pub fn anchor(&self) -> Option<EventId> {
        self.anchor
    }

    /// Whether nothing that stands in the stream, whose newest entry this is, or will be added to it comes to be read for
    /// sure: the place has no entry of its own, and the stream does not reach beyond it.
    // Inv. GAP: Redis lost its data, and once more before anything of the new ones was read; this time its clock is behind.
    #[must_use]
    pub fn waits_in_vain(&self, newest: Option<StreamId>) -> bool {
        self.anchor.is_none() && self.position != StreamId::ZERO && newest.is_none_or(|newest| newest <= self.position)
    }

    /// Takes the next entry that was read, and moves behind it.
    pub fn accept(&mut self, id: EventId, tick: Option<TickMark>) -> (Verdict, Option<Gap>) {
        if id.stream <= self.position {
            // Never the answer to a read after `position`.
            return (Verdict::Duplicate, None);
        }
        // Inv. ORDER: only after walking back can an entry come again that was read.
        let again = id.stream <= self.highest && self.remembered.contains(&id);
        self.position = id.stream;
        (self.anchor, self.last) = (Some(id), Some(id));
        self.highest = self.highest.max(id.stream);
        if !again {
            // Inv. BOUND
            if self.remembered.len() == REMEMBERED_MAX {
                self.remembered.pop_front();
            }
            self.remembered.push_back(id);
        }
        let gap = self.reckon(id, tick);
        (if again { Verdict::Duplicate } else { Verdict::Deliver }, gap)
    }

    /// Compares what was read with what a snapshot says that there was.
    // Inv. GAP: an entry that was added and not read shows at the next snapshot.
    fn reckon(&mut self, id: EventId, tick: Option<TickMark>) -> Option<Gap> {
        if let Some(count) = &mut self.count {
            count.read += 1;
        }
        let tick = tick?;
        let before = self.count.replace(Count { entries: tick.entries, read: 0, id })?;
        let expected = before.entries.saturating_add(before.read);
        // Fewer than were read: it is another stream, and how much of it was missed cannot be told.
        let missing = if tick.entries < expected { 1 } else { tick.entries - expected };
        (missing > 0).then_some(Gap { from: Some(before.id), entries: missing })
    }

    /// Finds a place to go on from when the anchor is gone. `stream` is what stands at the end of the stream, oldest
    /// first; all of it, or as much as could be had.
    ///
    /// That is the newest remembered entry that still exists: all after it is new. If none does, it is the newest
    /// entry whose id is not above the cursor's: whether that was delivered once cannot be told, so it and what is
    /// older is skipped; what is newer was surely never read. If there is none either, all that
    /// stands there is after the cursor, which stays; but in an empty stream it is the beginning, as ids may come that
    /// lie below the cursor.
    // Inv. GAP: whichever it is, a hole is announced.
    pub fn reanchor(&mut self, stream: &[EventId]) -> Gap {
        let from = self.last;
        let known = stream.iter().rev().find(|id| self.remembered.contains(id));
        let skipped = stream.iter().rev().find(|id| id.stream <= self.position);
        self.anchor = known.or(skipped).copied();
        match self.anchor {
            Some(id) => self.position = id.stream,
            None if stream.is_empty() => self.position = StreamId::ZERO,
            None => {}
        }
        // Counting starts afresh: this hole is announced already.
        self.count = None;
        Gap { from, entries: 1 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::ids::{EntryDigest, Epoch, Slot};

    use super::*;

    /// The entry at `ms` whose content is `content`.
    fn id(ms: u64, content: &str) -> EventId {
        EventId { stream: StreamId { ms, seq: 0 }, digest: EntryDigest::of("t", content.as_bytes()) }
    }

    fn tick(entries: u64) -> Option<TickMark> {
        Some(TickMark { epoch: Epoch(1), slot: Slot(entries), entries })
    }

    fn reader_of(ids: &[EventId]) -> Cursor {
        let entries: Vec<_> = ids.iter().map(|id| (*id, None)).collect();
        Cursor::at_end_of(&entries)
    }

    #[test]
    fn starts_at_the_end_or_at_the_beginning_of_nothing() {
        assert_eq!((Cursor::at_end_of(&[]).position(), Cursor::at_end_of(&[]).anchor()), (StreamId::ZERO, None));
        let cursor = reader_of(&[id(1, "a"), id(2, "b")]);
        assert_eq!((cursor.position(), cursor.anchor()), (StreamId { ms: 2, seq: 0 }, Some(id(2, "b"))));
    }

    // Inv. GAP
    #[test]
    fn an_entry_that_was_not_read_shows_at_the_next_snapshot() {
        let mut cursor = Cursor::at_end_of(&[(id(1, "s"), tick(10))]);
        assert_eq!(cursor.accept(id(2, "a"), None), (Verdict::Deliver, None));
        assert_eq!(cursor.accept(id(3, "s"), tick(12)), (Verdict::Deliver, None));
        // Two others were added before this one.
        let gap = Gap { from: Some(id(3, "s")), entries: 2 };
        assert_eq!(cursor.accept(id(6, "s"), tick(15)), (Verdict::Deliver, Some(gap)));
        assert_eq!(cursor.accept(id(7, "s"), tick(16)), (Verdict::Deliver, None));
        // A stream that begins to count anew.
        let gap = Gap { from: Some(id(7, "s")), entries: 1 };
        assert_eq!(cursor.accept(id(8, "s"), tick(1)), (Verdict::Deliver, Some(gap)));
    }

    #[test]
    fn the_past_of_the_stream_is_no_hole() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.accept(id(1, "s"), tick(500)), (Verdict::Deliver, None));
    }

    // Inv. GAP: the promoted replica lacked the last entries, and its clock is behind: what it adds lies below the
    // cursor, where XREAD would never find it.
    #[test]
    fn walks_back_to_the_newest_entry_that_still_exists() {
        let mut cursor = reader_of(&[id(10, "a"), id(20, "b"), id(30, "c"), id(40, "d")]);
        let stream = [id(10, "a"), id(20, "b"), id(25, "new"), id(30, "other")];
        let gap = cursor.reanchor(&stream);
        assert_eq!(gap, Gap { from: Some(id(40, "d")), entries: 1 });
        assert_eq!(cursor.anchor(), Some(id(20, "b")));
        assert_eq!(cursor.accept(id(25, "new"), None).0, Verdict::Deliver);
        assert_eq!(cursor.accept(id(30, "other"), None).0, Verdict::Deliver, "the same id, but not the same entry");
    }

    #[test]
    fn where_nothing_is_known_only_what_is_surely_new_is_read() {
        // The data are gone, and new ones have come.
        let mut cursor = reader_of(&[id(10, "a"), id(20, "b")]);
        assert_eq!(cursor.reanchor(&[id(30, "x")]), Gap { from: Some(id(20, "b")), entries: 1 });
        assert_eq!((cursor.position(), cursor.anchor()), (StreamId { ms: 20, seq: 0 }, None));

        // An old backup: what it holds may have been shown long ago.
        let mut cursor = reader_of(&[id(10, "a"), id(20, "b")]);
        let gap = cursor.reanchor(&[id(3, "old"), id(4, "old"), id(30, "x")]);
        assert_eq!(gap, Gap { from: Some(id(20, "b")), entries: 1 });
        assert_eq!(cursor.anchor(), Some(id(4, "old")));

        // An empty stream.
        let mut cursor = reader_of(&[id(10, "a")]);
        assert_eq!(cursor.reanchor(&[]), Gap { from: Some(id(10, "a")), entries: 1 });
        assert_eq!(cursor.position(), StreamId::ZERO);
    }

    // Inv. GAP: the second hole comes before anything was read behind the first.
    #[test]
    fn a_hole_behind_a_hole_begins_where_reading_ended() {
        let mut cursor = reader_of(&[id(10, "a"), id(20, "b"), id(30, "c")]);
        cursor.reanchor(&[id(10, "a"), id(20, "b")]);
        let gap = cursor.reanchor(&[id(10, "a")]);
        assert_eq!((gap.from, cursor.anchor()), (Some(id(30, "c")), Some(id(10, "a"))));

        // New data, all of them after the place, and then others, which are not.
        let mut cursor = reader_of(&[id(10, "a"), id(20, "b")]);
        assert!(!cursor.waits_in_vain(Some(id(20, "b").stream)), "something stands there: that is looked at instead");
        cursor.reanchor(&[id(30, "x")]);
        assert!(!cursor.waits_in_vain(Some(id(30, "x").stream)));
        assert!(cursor.waits_in_vain(None) && cursor.waits_in_vain(Some(id(5, "y").stream)));
        let gap = cursor.reanchor(&[id(5, "y")]);
        assert_eq!(gap, Gap { from: Some(id(20, "b")), entries: 1 });
        assert_eq!(cursor.accept(id(6, "z"), None).0, Verdict::Deliver);
        assert!(!Cursor::default().waits_in_vain(None), "an empty stream is read from its beginning");
    }

    // Inv. ORDER
    #[test]
    fn what_was_read_is_a_duplicate_when_it_comes_again() {
        let mut cursor = reader_of(&[id(10, "a"), id(20, "b"), id(30, "c")]);
        assert_eq!(cursor.accept(id(30, "c"), None).0, Verdict::Duplicate);
        assert_eq!(cursor.accept(id(15, "x"), None).0, Verdict::Duplicate, "not after the cursor");
        cursor.reanchor(&[id(10, "a")]);
        assert_eq!(cursor.accept(id(20, "b"), None).0, Verdict::Duplicate, "it has come back");
        assert_eq!(cursor.accept(id(25, "y"), None).0, Verdict::Deliver);
    }

    // Inv. BOUND
    #[test]
    fn memory_is_bounded() {
        let mut cursor = Cursor::default();
        for ms in 1..=3_000 {
            cursor.accept(id(ms, "a"), None);
        }
        assert_eq!(cursor.remembered.len(), REMEMBERED_MAX);
    }

    proptest! {
        // Inv. ORDER, Inv. GAP: the server loses the end of its stream and goes on with a clock that may be behind. No
        // entry is delivered twice, and every entry that stands in the stream after a hole was announced is delivered,
        // but for those of which it cannot be told whether they were.
        #[test]
        fn a_lost_end_loses_nothing_unsaid(
            before in 1usize..60,
            read in 0usize..60,
            kept in 0usize..60,
            clock_back in 0u64..100,
            after in 0usize..60,
        ) {
            let mut stream: Vec<EventId> = (0..before).map(|n| id(n as u64 + 1, &format!("old {n}"))).collect();
            let read = read.min(before);
            let mut cursor = Cursor::default();
            let mut delivered: Vec<EventId> = Vec::new();
            for entry in &stream[..read] {
                prop_assert_eq!(cursor.accept(*entry, None).0, Verdict::Deliver);
                delivered.push(*entry);
            }
            stream.truncate(kept);
            let floor = stream.last().map_or(0, |id| id.stream.ms) + 1;
            let clock = (before as u64 + 50).saturating_sub(clock_back).max(floor);
            stream.extend((0..after).map(|n| id(clock + n as u64, &format!("new {n}"))));

            let intact = cursor.anchor().is_none_or(|anchor| stream.contains(&anchor));
            // Where nothing is remembered, what lies below the cursor may be skipped.
            let forgotten = !stream.iter().any(|id| cursor.remembered.contains(id));
            if !intact {
                cursor.reanchor(&stream);
            }
            let skipped_to = cursor.anchor().filter(|_| !intact && forgotten);
            for entry in stream.iter().filter(|entry| entry.stream > cursor.position()).copied().collect::<Vec<_>>() {
                if cursor.accept(entry, None).0 == Verdict::Deliver {
                    prop_assert!(!delivered.contains(&entry), "twice: {}", entry);
                    delivered.push(entry);
                }
            }
            for entry in &stream {
                let said = skipped_to.is_some_and(|to| entry.stream <= to.stream);
                prop_assert!(said || delivered.contains(entry), "missing: {}", entry);
            }
        }
    }
}
