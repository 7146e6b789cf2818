//! The past that a returning client can be given: the newest messages of the stream, as frames, in memory.
//!
//! A client that was away for a moment asks for what it missed. Reading that from Redis for each of them would turn
//! the return of ten thousand clients, which is when Redis needs rest, into ten thousand range reads. So each node
//! keeps the past itself: what a broadcast pass brings is put into this ring, once, before any socket is visited.
//! What lies further back than the node's own start is fetched when the first client asks for it, for all that follow.
//!
//! The ring knows every entry that some node may have shown, also those which this one skipped (a snapshot that was
//! not the newest of its batch): a client may name any of them as the last that it has. And it knows the holes that
//! the relay announced, in their places.
//!
//! Invariants:
//! - Inv. ORDER: entries stand in the order of their ids, with nothing missing between two of them but what a hole says.
//!   When ids begin to fall (Redis went on from a past with a clock that is behind), the ring begins afresh.
//! - Inv. GAP: `floor` is the entry right before the first one, so an id is found, lies before what is known, or is
//!   of another stream; nothing in between.
//! - Inv. BOUND: at most [`ITEMS_MAX`] items and the configured bytes; the oldest makes room, and whoever wanted it
//!   gets a gap.
//!
//! Pure: who reads it and when is in `replay`, who fills it in `core` and [`super::past`].

use std::collections::VecDeque;

use bytes::Bytes;
use shared::ids::{EntryDigest, EventId, StreamId};
use shared::message::{MessageKind, with_id};

use super::broadcast::Broadcast;
use super::frame;
use crate::backplane::STREAM_ENTRIES_MAX;

/// Items of the ring: as many entries as the stream keeps.
pub const ITEMS_MAX: usize = STREAM_ENTRIES_MAX;
/// What an item costs beside its frame, in bytes.
const ITEM_BYTES: usize = size_of::<Item>();
/// The number of the first item; further ones may come to stand before it.
const FIRST: u64 = 1 << 32;

/// One entry of the stream, or a hole in it.
#[derive(Debug, Clone)]
pub struct Item {
    /// Where it stands; a hole stands where the entry before it does.
    at: StreamId,
    /// Of an entry; a hole has none.
    digest: Option<EntryDigest>,
    kind: MessageKind,
    /// As it is written to a socket with ids; empty for an entry that is known and not shown.
    frame: Bytes,
}

impl Item {
    /// A message that is shown.
    #[must_use]
    pub fn message(kind: MessageKind, text: &str, id: EventId) -> Self {
        Self { at: id.stream, digest: Some(id.digest), kind, frame: frame::text(&with_id(text, id)) }
    }

    /// A snapshot that is not shown here, but may have been elsewhere.
    #[must_use]
    pub fn passed(id: EventId) -> Self {
        Self { at: id.stream, digest: Some(id.digest), kind: MessageKind::RealtimeUpdate, frame: Bytes::new() }
    }

    /// What a broadcast leaves behind. A number that is repeated as stale leaves nothing: it has no place of its own.
    pub(super) fn of(message: &Broadcast) -> Option<Self> {
        match (message.kind, message.id) {
            (MessageKind::Gap, _) => {
                let frame = frame::text(&message.text);
                Some(Self { at: StreamId::ZERO, digest: None, kind: MessageKind::Gap, frame })
            }
            (kind, Some(id)) => Some(Self::message(kind, &message.text, id)),
            (_, None) => None,
        }
    }

    /// The entry's id; a hole has none.
    pub(super) fn id(&self) -> Option<EventId> {
        self.digest.map(|digest| EventId { stream: self.at, digest })
    }

    pub(super) fn kind(&self) -> MessageKind {
        self.kind
    }

    /// Empty where nothing is shown.
    pub(super) fn frame(&self) -> &[u8] {
        &self.frame
    }

    fn cost(&self) -> usize {
        self.frame.len() + ITEM_BYTES
    }
}

/// Where an entry is that a client names as its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// It stands right before the item of this number.
    Before(u64),
    /// Before all that is known.
    TooOld,
    /// Beyond all that is known: this node lags, or it is of another stream.
    Ahead,
    /// Where it says, something else stands.
    Unknown,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Ring {
    items: VecDeque<Item>,
    /// Number of the first item, or of the next where there is none.
    first: u64,
    bytes: usize,
    bytes_max: usize,
    /// The entry right before the first item.
    floor: Option<EventId>,
    /// The stream may hold more before the floor, and there is room for it.
    extensible: bool,
    /// How many attempts to fetch more have ended.
    fetches: u64,
}

impl Ring {
    /// An empty ring that may hold that many bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        let items = VecDeque::new();
        Self { items, first: FIRST, bytes: 0, bytes_max, floor: None, extensible: false, fetches: 0 }
    }

    /// Number of the first item.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Number of the item that will come next.
    pub(super) fn end(&self) -> u64 {
        self.first + self.items.len() as u64
    }

    /// The entry right before the first item, if it is known.
    pub(super) fn floor(&self) -> Option<EventId> {
        self.floor
    }

    /// The last entry that is known.
    pub(super) fn newest(&self) -> Option<EventId> {
        self.items.iter().rev().find_map(Item::id).or(self.floor)
    }

    /// Where a gap up to now ends. None: right before whatever comes next.
    // Inv. GAP: where the stream itself has a hole at its end, a gap that ended at the entry before it would hide it.
    pub(super) fn end_of_gap(&self) -> Option<EventId> {
        self.items.back().map_or(self.floor, Item::id)
    }

    /// The floor, if there may be more before it.
    pub(super) fn extensible(&self) -> Option<EventId> {
        self.floor.filter(|_| self.extensible)
    }

    pub(super) fn fetches(&self) -> u64 {
        self.fetches
    }

    /// Items, and the bytes that they cost.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.items.len(), self.bytes)
    }

    /// The items from that number on; it must not lie before [`Self::first`].
    pub(super) fn from(&self, number: u64) -> impl Iterator<Item = &Item> {
        let skipped = usize::try_from(number.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.items.range(skipped.min(self.items.len())..)
    }

    /// Looks an id up.
    pub(super) fn find(&self, id: EventId) -> Found {
        if self.floor == Some(id) {
            return Found::Before(self.first);
        }
        // A hole stands behind the entry whose place it shares, so the entry is the first at its place.
        let index = self.items.partition_point(|item| item.at < id.stream);
        match self.items.get(index) {
            Some(item) if item.id() == Some(id) => Found::Before(self.first + index as u64 + 1),
            None if self.newest().is_none_or(|newest| newest.stream < id.stream) => Found::Ahead,
            _ if self.floor.is_some_and(|floor| id.stream < floor.stream) => Found::TooOld,
            _ => Found::Unknown,
        }
    }

    /// Takes the next item.
    pub(super) fn push(&mut self, mut item: Item) {
        match self.newest().map(|newest| newest.stream) {
            Some(newest) if item.digest.is_none() => item.at = newest,
            // Nothing is known before this hole.
            None if item.digest.is_none() => return,
            Some(newest) if item.at <= newest => self.clear(),
            _ => {}
        }
        self.bytes += item.cost();
        self.items.push_back(item);
        self.make_room();
    }

    /// Forgets all; who reads meanwhile finds that its place is gone.
    fn clear(&mut self) {
        self.first = self.end();
        self.items.clear();
        self.bytes = 0;
        (self.floor, self.extensible) = (None, false);
    }

    // Inv. BOUND
    fn make_room(&mut self) {
        while self.items.len() > ITEMS_MAX || self.bytes > self.bytes_max {
            let Some(oldest) = self.items.pop_front() else { return };
            self.bytes -= oldest.cost();
            self.first += 1;
            // Inv. GAP: behind a hole only an entry can be the floor: one before it would be found, and the hole unsaid.
            self.floor = oldest.id();
            self.extensible = false;
            if oldest.digest.is_none()
                && let Some(next) = self.items.pop_front()
            {
                self.bytes -= next.cost();
                self.first += 1;
                self.floor = next.id();
            }
        }
    }

    /// Begins with what stands in the stream, oldest first; `more` when that is not all of it. The oldest becomes the
    /// floor: its id is known, itself it is not kept, so that what lies before has an exact end.
    pub(super) fn begin(&mut self, entries: Vec<Recalled>, more: bool) {
        self.clear();
        let mut entries = entries.into_iter();
        self.floor = entries.next().map(|entry| entry.id);
        self.extensible = more && self.bytes_max > 0;
        entries.filter_map(|entry| entry.item).for_each(|item| self.push(item));
    }

    /// Puts older entries before the floor, which is the last of `entries` (oldest first), if it still is the floor;
    /// `more` when the stream may hold even older ones. Says whether it is worth to go on.
    // Inv. ORDER: the floor ties both parts together, by id and digest.
    pub(super) fn extend(&mut self, entries: Vec<Recalled>, more: bool) -> bool {
        let tied = self.floor.is_some() && entries.last().map(|entry| entry.id) == self.floor;
        if !tied || !self.extensible {
            self.extensible = false;
            return false;
        }
        self.extensible = more;
        let mut entries = entries.into_iter().rev().peekable();
        while let Some(entry) = entries.next() {
            // The oldest is the floor from now on.
            if entries.peek().is_none() {
                self.floor = Some(entry.id);
                break;
            }
            let Some(item) = entry.item else { continue };
            if self.items.len() == ITEMS_MAX || self.bytes + item.cost() > self.bytes_max {
                (self.floor, self.extensible) = (Some(entry.id), false);
                break;
            }
            self.bytes += item.cost();
            self.items.push_front(item);
            self.first -= 1;
        }
        self.extensible
    }

    /// An attempt to fetch more has ended, whatever it brought.
    pub(super) fn fetched(&mut self) {
        self.fetches += 1;
    }
}

/// An entry that was read from the stream: its id, and what of it there is to show. None for what no node shows.
#[derive(Debug, Clone)]
pub struct Recalled {
    /// Its id.
    pub id: EventId,
    /// What clients may have seen of it.
    pub item: Option<Item>,
}

#[cfg(test)]
mod tests;
