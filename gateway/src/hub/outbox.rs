//! What waits for one slow reader, and what it loses when too much waits.
//!
//! Nearly every write goes straight into the kernel and a socket has no outbox at all. It gets one when the kernel's
//! buffer is full, and loses it when it has been written. An outbox without a bound turns one sleeping laptop into
//! the node's out-of-memory kill; a bound that closes the socket punishes whoever rides through a tunnel. The way
//! between: events and states differ. An event that nobody waited for is gone, a number that grew old is worthless.
//! So when an outbox overflows, everything discardable in it goes, further messages are discarded as they come, and
//! when the reader takes bytes again it first gets the newest state (`init` afresh) and, if it has ids, one `gap` that
//! names what it missed. Then it is live again.
//!
//! Invariants:
//! - The bytes that leave are whole frames in order: a half-written frame is finished before anything else.
//! - Inv. BOUND: messages wait up to the limit; beside them at most one answer, ping, pong, close frame, a resync.
//! - Inv. GAP: what was discarded lies behind the gap's `from` and not behind its `to`.
//!
//! The outbox knows no socket and no lock; it writes through a closure, which is how its tests stutter.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::Bytes;
use fastwebsockets::OpCode;
use shared::ids::EventId;
use shared::message::encode_gap;

use super::replay::Replay;
use super::{Shown, frame};

/// What an entry costs beside its bytes; counted so that many small messages cannot hide.
const ENTRY_BYTES: usize = size_of::<Entry>();
/// Entries that one `writev` takes.
const SLICES_MAX: usize = 16;

/// What a frame carries, which decides what may happen to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// What ends the handshake. Nothing comes before it, as before the rest of a frame, and it must leave.
    Answer,
    /// An event: discardable, and missed then.
    Event(Option<EventId>),
    /// A state (`init`, `realtime_update`): discardable, as a newer one takes its place. An `init` has no place of its
    /// own in the stream, so no id here.
    State(Option<EventId>),
    /// The JSON `ping`.
    Ping,
    /// A `gap` that this outbox made, and its `from`. A later one takes it in.
    Gap(Option<EventId>),
    /// A WebSocket pong; only the latest needs to arrive (RFC 6455 section 5.5.3).
    Pong,
    /// A close frame; nothing follows it.
    Close,
}

impl Content {
    /// Whether it is a message, rather than a control frame or no frame at all.
    pub(super) fn is_message(self) -> bool {
        !matches!(self, Self::Answer | Self::Pong | Self::Close)
    }

    fn is_discardable(self) -> bool {
        matches!(self, Self::Event(_) | Self::State(_))
    }

    /// The message's id, whether or not this socket sees ids.
    pub(super) fn id(self) -> Option<EventId> {
        match self {
            Self::Event(id) | Self::State(id) => id,
            Self::Answer | Self::Ping | Self::Gap(_) | Self::Pong | Self::Close => None,
        }
    }
}

/// A frame that waits, or what is left of it.
#[derive(Debug)]
struct Entry {
    bytes: Bytes,
    content: Content,
}

impl Entry {
    fn cost(&self) -> usize {
        self.bytes.len() + ENTRY_BYTES
    }
}

/// The reader misses what came after this.
#[derive(Debug, Clone, Copy)]
struct Missed {
    from: Option<EventId>,
}

/// What an overflow, or a message that came after it, cost the reader.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Loss {
    /// Events that it will not get.
    pub(super) events: u64,
    /// Overflows: 1 when this very message was too much.
    pub(super) overflows: u64,
}

impl std::ops::AddAssign for Loss {
    fn add_assign(&mut self, other: Self) {
        self.events += other.events;
        self.overflows += other.overflows;
    }
}

/// The present state, as a reader that missed something gets it.
#[derive(Debug, Clone)]
pub(super) struct Resync {
    /// The `init` frame with the newest state; none before there is a state.
    pub(super) init: Option<Bytes>,
    /// The state that it tells.
    pub(super) state: Option<Shown>,
    /// The id of the last message that passes up to `sequence` carried.
    pub(super) last_id: Option<EventId>,
    /// Where a gap up to now ends. None when nothing is known before what comes next.
    pub(super) end: Option<EventId>,
    /// The last pass whose messages the state stands for.
    pub(super) sequence: u64,
    /// Whether the reader is told of gaps.
    pub(super) announces: bool,
}

/// What a flush achieved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Flushed {
    /// Nothing is left, and nothing is to be caught up with: the outbox may go.
    pub(super) done: bool,
    /// Messages whose last byte was written.
    pub(super) messages: u64,
    /// The reader was resynced: it has what passes up to this one brought.
    pub(super) resynced: Option<u64>,
}

/// Frames that wait for one socket, in order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: VecDeque<Entry>,
    /// Cost of all entries.
    bytes: usize,
    /// Nothing comes before the first entry: it is the rest of a frame whose beginning was written, or an answer.
    front_is_half: bool,
    /// The last id that was written whole, as far as known.
    before: Option<EventId>,
    missed: Option<Missed>,
    /// The reader catches up: when nothing waits any more, this says what is next.
    pub(super) replay: Option<Box<Replay>>,
}

impl Outbox {
    /// Whether nothing waits to be written: no frame, nor the state and the gap that are made when there is room for them.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.missed.is_none()
    }

    /// The cost of what waits, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The reader has everything up to `id`, if that was not known better already.
    pub(super) fn assume_delivered(&mut self, id: Option<EventId>) {
        self.before = self.before.or(id);
    }

    /// The message with this id was written whole.
    pub(super) fn delivered(&mut self, id: Option<EventId>) {
        self.before = id.or(self.before);
    }

    /// Takes the rest of a frame whose beginning was written, into an outbox in which nothing waits. No limit: its
    /// bytes must leave, or the stream is broken.
    pub(super) fn push_half(&mut self, rest: Bytes, content: Content) {
        debug_assert!(self.queue.is_empty(), "a frame was begun while others waited");
        self.front_is_half = true;
        self.push_back(Entry { bytes: rest, content });
    }

    /// Takes a frame; a message that would make more than `limit` bytes wait empties the outbox of messages.
    // Inv. BOUND: what is not discardable exists once per kind; everything else is measured here.
    pub(super) fn push(&mut self, bytes: Bytes, content: Content, limit: usize) -> Loss {
        if content == Content::Answer {
            self.push_half(bytes, content);
            return Loss::default();
        }
        let entry = Entry { bytes, content };
        if content == Content::Close {
            // Nothing follows a close frame, a resync or the rest of a past neither.
            (self.missed, self.replay) = (None, None);
        }
        if !content.is_discardable() {
            self.push_singly(entry);
            return Loss::default();
        }
        if self.missed.is_none() && self.bytes + entry.cost() <= limit {
            self.push_back(entry);
            return Loss::default();
        }
        let mut loss = Loss::default();
        if self.missed.is_none() {
            loss.overflows = 1;
            loss.events = self.discard();
        }
        loss.events += u64::from(matches!(content, Content::Event(_)));
        loss
    }

    /// Discards every message that may be discarded, and says how many events those were.
    // Inv. GAP: what the reader has surely got lies before the first of what goes.
    pub(super) fn discard(&mut self) -> u64 {
        // The half-written frame will arrive: then that is the last thing that the reader has.
        let half = if self.front_is_half { self.queue.pop_front() } else { None };
        let mut missed = Missed { from: half.as_ref().and_then(|half| half.content.id()).or(self.before) };
        let mut events = 0;
        self.queue.retain(|entry| {
            match entry.content {
                Content::Event(_) => events += 1,
                // It would come after the next gap, and say less.
                Content::Gap(from) => missed.from = from,
                Content::State(_) => {}
                Content::Answer | Content::Ping | Content::Pong | Content::Close => return true,
            }
            false
        });
        if let Some(half) = half {
            self.queue.push_front(half);
        }
        self.bytes = self.queue.iter().map(Entry::cost).sum();
        self.missed = Some(missed);
        events
    }

    /// Writes what `write` takes. A reader that missed something gets `resync` first, made at the moment of writing.
    ///
    /// # Errors
    /// What `write` failed with, other than `WouldBlock`.
    pub(super) fn flush(
        &mut self,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
        resync: impl Fn() -> Resync,
    ) -> io::Result<Flushed> {
        let mut flushed = Flushed::default();
        loop {
            let due = self.missed.filter(|_| !self.front_is_half);
            let sequence = due.map(|missed| self.insert_resync(missed, resync()));
            if self.queue.is_empty() {
                self.missed = None;
                flushed.resynced = sequence.map(|(sequence, _)| sequence).or(flushed.resynced);
                self.replay = self.replay.take().filter(|_| sequence.is_none());
                flushed.done = self.replay.is_none();
                return Ok(flushed);
            }
            match self.write_some(&mut write) {
                Ok(written) => {
                    if let Some((sequence, _)) = sequence {
                        // What was still to be caught up with lies within the gap.
                        (self.missed, self.replay) = (None, None);
                        flushed.resynced = Some(sequence);
                    }
                    flushed.messages += self.advance(written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // A state that cannot leave now is made anew when it can.
                    for _ in 0..sequence.map_or(0, |(_, entries)| entries) {
                        self.pop_front();
                    }
                    return Ok(flushed);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Puts `init` and, for a reader with ids, `gap` before all else; says how many entries that made.
    // Inv. GAP: the passes up to `sequence` are skipped for this socket from now on, so the gap ends where they do; a gap
    // of the stream that is among them has no id, and is not hidden by that.
    fn insert_resync(&mut self, missed: Missed, resync: Resync) -> (u64, usize) {
        let before = self.queue.len();
        if resync.announces {
            let gap = encode_gap(missed.from, resync.end);
            self.push_front(Entry {
                bytes: frame::encode(OpCode::Text, gap.as_bytes()),
                content: Content::Gap(missed.from),
            });
        }
        if let Some(bytes) = resync.init {
            self.push_front(Entry { bytes, content: Content::State(None) });
        }
        (resync.sequence, self.queue.len() - before)
    }

    fn write_some(&self, write: &mut impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut used = 0;
        // What a resync is to come before must not leave with the half-written frame.
        let most = if self.missed.is_some() && self.front_is_half { 1 } else { SLICES_MAX };
        for (slice, entry) in slices.iter_mut().zip(&self.queue).take(most) {
            *slice = IoSlice::new(&entry.bytes);
            used += 1;
        }
        match write(&slices[..used])? {
            // No bytes of a non-empty write: the socket takes nothing, ever.
            0 => Err(io::ErrorKind::WriteZero.into()),
            written => Ok(written),
        }
    }

    /// Removes `written` bytes from the front and counts the messages that they completed.
    fn advance(&mut self, mut written: usize) -> u64 {
        let mut messages = 0;
        while let Some(front) = self.queue.front_mut() {
            if written < front.bytes.len() {
                if written > 0 {
                    front.bytes = front.bytes.slice(written..);
                    self.bytes -= written;
                    self.front_is_half = true;
                }
                break;
            }
            written -= front.bytes.len();
            let content = front.content;
            messages += u64::from(content.is_message());
            self.delivered(content.id());
            self.front_is_half = false;
            self.pop_front();
        }
        messages
    }

    /// Takes a frame of which only the latest is of use.
    fn push_singly(&mut self, entry: Entry) {
        let half = usize::from(self.front_is_half);
        let twin = self.queue.iter().skip(half).position(|waiting| waiting.content == entry.content);
        if let Some(index) = twin
            && let Some(old) = self.queue.remove(index + half)
        {
            self.bytes -= old.cost();
        }
        self.push_back(entry);
    }

    fn push_back(&mut self, entry: Entry) {
        self.bytes += entry.cost();
        self.queue.push_back(entry);
    }

    fn push_front(&mut self, entry: Entry) {
        self.bytes += entry.cost();
        self.queue.push_front(entry);
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.queue.pop_front() {
            self.bytes -= entry.cost();
        }
    }
}

#[cfg(test)]
mod tests;
