//! How a returning client catches up: pure decisions.
//!
//! The obvious way, to read what was missed and then to listen, has a hole or a double message between its two halves.
//! Here both halves are one ring: a broadcast pass puts what it brings into the ring *before* it looks up the sockets,
//! and passes skip a socket that is catching up. It reads from the ring at the pace of its own connection, and becomes
//! live in the one moment in which it has read everything, under the lock that passes take for each socket, with the
//! number of the last pass that is in the ring: that and all before it are behind it, all after it will be written to
//! it. However passes and reads interleave, each message comes once (Inv. ORDER).
//!
//! What the client names as its last message is looked up by id and digest:
//!
//! | the id | what the client gets |
//! |---|---|
//! | is in the ring | what came after it |
//! | is older than the ring | the ring is extended, once for all who wait; then the same, or a gap up to its beginning |
//! | is newer than all that is known | nothing, until the relay has read the stream to its end after this client came: the node may lag behind the one that the client comes from. Then what came after it, or an open gap |
//! | is not the entry that stands there | a gap up to now |
//!
//! Two things are not replayed. Numbers of the past are nobody's news: of snapshots only the newest counts, and whenever
//! it changes while a client catches up, the client gets it as another `init`. So nobody who reads slowly is shown an
//! old number. And a client that reads so slowly that the ring turns over beneath it gets a gap up to now, as any slow
//! reader does.
//!
//! Those `init`s carry no id: their snapshot is newer than what the client has read up to, and would take the place of
//! the id from which it has to go on if the connection broke now.
//!
//! Inv. BOUND: what waits for a client that catches up is at most the rest of one frame; everything else stays in the
//! ring.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fastwebsockets::OpCode;
use shared::ids::EventId;
use shared::message::{Freshness, MessageKind, MessageKinds, encode_gap, encode_init};

use super::Shown;
use super::core::Published;
use super::frame;
use super::outbox::Content;
use super::parcel::{Mark, Parcel};
use super::ring::{Found, Ring};
use crate::clock::Mono;
use crate::metrics::Resume;

/// Bytes that are read from the ring for one write.
const CHUNK_BYTES_MAX: usize = 16 * 1024;
/// Items that are looked at for one write: what a client did not choose costs no bytes.
const CHUNK_ITEMS_MAX: usize = 2048;

/// Counts the sockets that may wait for something other than their connection, as long as they do.
#[derive(Debug)]
pub(super) struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    pub(super) fn among(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A client that catches up.
#[derive(Debug)]
pub(super) struct Replay {
    stage: Stage,
    /// The last that it surely has.
    position: EventId,
    /// The state that it was told last.
    told: Option<Shown>,
}

#[derive(Debug)]
enum Stage {
    /// Where it has to go on is not known yet.
    Seeking {
        /// It becomes known at the latest when the relay has read the stream to its end after this was asked for.
        end: Option<u64>,
        /// Or when more attempts to extend the ring have ended than this.
        fetches: Option<u64>,
        _waiting: Waiting,
    },
    /// It goes on with the item of this number.
    Reading(u64),
}

/// What to do next for a client that catches up.
#[derive(Debug)]
pub(super) enum Step {
    /// Write this, and say with [`Replay::wrote`] how far that went.
    Write(Chunk),
    /// Have the stream read to its end, and say with [`Replay::awaits_end`] under which number.
    AskEnd,
    /// Have the ring extended, and say so with [`Replay::awaits_past`].
    AskPast,
    /// Nothing, until a pass or the end of a fetch brings news.
    Wait,
}

/// What a client gets next.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) parcel: Parcel,
    /// Where the client is when the frame is out; one for each.
    places: Vec<Place>,
    /// Where it is when all are: behind what it did not choose, too.
    end: Place,
    /// It is live then: it has what passes up to this one brought.
    live: Option<u64>,
    /// What came of its wish, if this chunk is the answer.
    outcome: Option<Resume>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    /// None while it is not known.
    next: Option<u64>,
    position: EventId,
    told: Option<Shown>,
}

/// What came of a write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wrote {
    /// The client is live after this pass.
    pub(super) live: Option<u64>,
    /// Its wish is answered.
    pub(super) outcome: Option<Resume>,
}

/// Where a client goes on.
enum Start {
    At { next: u64, gap_to: Option<Option<EventId>>, outcome: Option<Resume> },
    Not(Step),
}

impl Replay {
    /// A client whose last message is `position`, and that was told `state` just now.
    pub(super) fn new(position: EventId, told: Option<Shown>, waiting: Waiting) -> Self {
        Self { stage: Stage::Seeking { end: None, fetches: None, _waiting: waiting }, position, told }
    }

    /// The last message that the client surely has.
    pub(super) fn position(&self) -> EventId {
        self.position
    }

    /// The stream will have been read to its end when [`Published::read_to_end`] says this number.
    pub(super) fn awaits_end(&mut self, number: u64) {
        if let Stage::Seeking { end, .. } = &mut self.stage {
            *end = Some(number);
        }
    }

    /// More of the past was asked for when that many attempts had ended.
    pub(super) fn awaits_past(&mut self, ended: u64) {
        if let Stage::Seeking { fetches, .. } = &mut self.stage {
            *fetches = Some(ended);
        }
    }

    /// What to do next, at `now`. Changes nothing: what is not written is decided anew.
    pub(super) fn step(&self, ring: &Ring, published: &Published, kinds: MessageKinds, now: Mono) -> Step {
        let newest = published.state.filter(|_| kinds.contains(MessageKind::RealtimeUpdate));
        let newest = newest.map(|state| state.shown_at(now));
        let here = Place { next: None, position: self.position, told: self.told };
        match self.start(ring, published) {
            Start::At { next, gap_to, outcome } => {
                let mut draft = Draft::new(Place { next: Some(next), ..here });
                let live = draft.fill(ring, published.sequence, newest, kinds, gap_to);
                Step::Write(draft.finish(live, outcome))
            }
            // Who waits for Redis must learn that the number is stale.
            Start::Not(Step::Wait) if newest.is_some() && newest != self.told => {
                let mut draft = Draft::new(here);
                draft.tell(newest);
                Step::Write(draft.finish(None, None))
            }
            Start::Not(step) => step,
        }
    }

    fn start(&self, ring: &Ring, published: &Published) -> Start {
        let at = |next, gap_to, outcome| Start::At { next, gap_to, outcome: Some(outcome) };
        let up_to_now = |outcome| at(ring.end(), Some(ring.end_of_gap()), outcome);
        let (end, fetches) = match &self.stage {
            Stage::Reading(next) if *next >= ring.first() => {
                return Start::At { next: *next, gap_to: None, outcome: None };
            }
            Stage::Reading(_) => return up_to_now(Resume::TooSlow),
            Stage::Seeking { end, fetches, .. } => (*end, *fetches),
        };
        match ring.find(self.position) {
            Found::Before(next) => at(next, None, Resume::Complete),
            Found::Unknown => up_to_now(Resume::Unknown),
            Found::TooOld => match fetches {
                None if ring.extensible().is_some() => Start::Not(Step::AskPast),
                Some(ended) if ring.extensible().is_some() && ring.fetches() <= ended => Start::Not(Step::Wait),
                _ => at(ring.first(), Some(ring.floor()), Resume::Trimmed),
            },
            Found::Ahead => match end {
                None => Start::Not(Step::AskEnd),
                Some(number) if published.read_to_end < number => Start::Not(Step::Wait),
                // Inv. ORDER: all that is known lies behind what the client has, and a `to` there would lead it back: another
                // node may well find it again.
                Some(_) => at(ring.end(), Some(None), Resume::Unknown),
            },
        }
    }

    /// Takes note that `written` bytes of `chunk` are out. A frame that is out in part will be out as a whole before
    /// anything else is.
    pub(super) fn wrote(&mut self, chunk: &Chunk, written: usize) -> Wrote {
        let (mut place, mut begun, mut start) = (None, 0, 0);
        for (mark, at) in chunk.parcel.marks.iter().zip(&chunk.places) {
            if start < written {
                place = Some(*at);
                begun += 1;
            }
            start = mark.end;
        }
        let all = begun == chunk.places.len();
        let Some(place) = (if all { Some(chunk.end) } else { place }) else { return Wrote::default() };
        (self.position, self.told) = (place.position, place.told);
        // An answer begins with the gap, so whatever of it is out says where the client is.
        if let Some(next) = place.next {
            self.stage = Stage::Reading(next);
        }
        Wrote { live: chunk.live.filter(|_| all), outcome: chunk.outcome.filter(|_| place.next.is_some()) }
    }
}

/// A chunk that is being put together.
struct Draft {
    bytes: Vec<u8>,
    marks: Vec<Mark>,
    places: Vec<Place>,
    here: Place,
}

impl Draft {
    fn new(here: Place) -> Self {
        Self { bytes: Vec::new(), marks: Vec::new(), places: Vec::new(), here }
    }

    /// Fills the draft from where it stands; says which pass the client has everything of, if it then has everything.
    fn fill(
        &mut self,
        ring: &Ring,
        sequence: u64,
        newest: Option<Shown>,
        kinds: MessageKinds,
        gap_to: Option<Option<EventId>>,
    ) -> Option<u64> {
        let mut next = self.here.next?;
        let (mut chosen, mut bytes, mut looked_at) = (Vec::new(), 0, 0);
        let mut has_newest = false;
        for item in ring.from(next) {
            if bytes >= CHUNK_BYTES_MAX || looked_at == CHUNK_ITEMS_MAX {
                break;
            }
            looked_at += 1;
            let is_shown = match item.kind() {
                MessageKind::RealtimeUpdate => {
                    let is_newest = newest.is_some_and(|state| {
                        state.id == item.id() && state.freshness == Freshness::Fresh && Some(state) != self.here.told
                    });
                    has_newest |= is_newest && !item.frame().is_empty();
                    is_newest
                }
                kind => kinds.contains(kind),
            };
            let is_shown = is_shown && !item.frame().is_empty();
            if is_shown {
                bytes += item.frame().len();
            }
            chosen.push((item, is_shown));
        }
        if newest.is_some() && !has_newest && newest != self.here.told {
            // It comes before the answer, so that is not begun yet.
            let at = self.here.next.take_if(|_| gap_to.is_some());
            self.tell(newest);
            self.here.next = self.here.next.or(at);
        }
        if let Some(to) = gap_to {
            let gap = encode_gap(Some(self.here.position), to);
            let from = self.here.position;
            self.here.position = to.unwrap_or(from);
            self.add(&frame::encode(OpCode::Text, gap.as_bytes()), Content::Gap(Some(from)));
        }
        for (item, is_shown) in chosen {
            next += 1;
            self.here.next = Some(next);
            self.here.position = item.id().unwrap_or(self.here.position);
            if !is_shown {
                continue;
            }
            let content = match item.kind() {
                MessageKind::RealtimeUpdate => {
                    self.here.told = newest;
                    Content::State(item.id())
                }
                MessageKind::Gap => Content::Gap(Some(self.here.position)),
                _ => Content::Event(item.id()),
            };
            self.add(item.frame(), content);
        }
        (next == ring.end()).then_some(sequence)
    }

    /// Adds the newest state, as an `init`.
    fn tell(&mut self, newest: Option<Shown>) {
        let Some(state) = newest else { return };
        self.here.told = newest;
        self.add(&frame::text(&encode_init(state.snapshot, state.freshness)), Content::State(None));
    }

    /// Adds a frame, after which the client is where the draft is now.
    fn add(&mut self, frame: &[u8], content: Content) {
        self.bytes.extend_from_slice(frame);
        self.marks.push(Mark { end: self.bytes.len(), content });
        self.places.push(self.here);
    }

    fn finish(self, live: Option<u64>, outcome: Option<Resume>) -> Chunk {
        let messages = self.marks.len() as u64;
        let parcel = Parcel { bytes: self.bytes.into(), marks: self.marks.into(), messages };
        Chunk { parcel, places: self.places, end: self.here, live, outcome }
    }
}

#[cfg(test)]
mod tests;
