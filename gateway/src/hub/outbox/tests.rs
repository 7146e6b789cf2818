//! The outbox against a kernel that stutters.

use proptest::prelude::*;
use shared::ids::{EntryDigest, StreamId};
use shared::message::MessageKind;

use super::super::broadcast::Broadcast;
use super::super::ring::{Item, Recalled, Ring};
use super::*;

fn id(n: u64) -> EventId {
    EventId { stream: StreamId { ms: n, seq: 0 }, digest: EntryDigest::of("", b"") }
}

fn event(n: u64) -> (Bytes, Content) {
    (frame::text(&format!("event {n}")), Content::Event(Some(id(n))))
}

fn push_event(outbox: &mut Outbox, n: u64, limit: usize) -> Loss {
    let (bytes, content) = event(n);
    outbox.push(bytes, content, limit)
}

fn resync(last: u64) -> Resync {
    let last_id = Some(id(last));
    Resync { init: Some(frame::text("init")), state: None, last_id, end: last_id, sequence: last, announces: true }
}

fn never() -> Resync {
    panic!("nothing was missed")
}

/// A kernel that takes what it is told to, then nothing.
#[derive(Default)]
struct Kernel {
    room: usize,
    took: Vec<u8>,
}

impl Kernel {
    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let before = self.room;
        for slice in slices {
            let bytes = slice.len().min(self.room);
            self.took.extend_from_slice(&slice[..bytes]);
            self.room -= bytes;
        }
        if self.room == before { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(before - self.room) }
    }

    /// The texts of what it took; panics unless those are whole frames.
    fn texts(&self) -> Vec<String> {
        let mut rest = &self.took[..];
        let mut texts = Vec::new();
        while let [first, len, after @ ..] = rest {
            assert_eq!(first & 0x80, 0x80);
            let (payload, after) = after.split_at((*len).into());
            texts.push(String::from_utf8(payload.to_vec()).expect("UTF-8"));
            rest = after;
        }
        texts
    }
}

fn flush(outbox: &mut Outbox, kernel: &mut Kernel, room: usize, fresh: impl Fn() -> Resync) -> Flushed {
    kernel.room = room;
    outbox.flush(|slices| kernel.write(slices), fresh).expect("never fails")
}

// Inv. BOUND: more never waits than the limit and the few frames that exist once.
#[test]
fn an_overflow_discards_what_may_go_and_keeps_the_rest() {
    let mut outbox = Outbox::default();
    let (bytes, content) = event(1);
    outbox.push_half(bytes.slice(3..), content);
    outbox.push(frame::text("ping"), Content::Ping, 1000);
    for n in 2..=5 {
        assert_eq!(push_event(&mut outbox, n, 1000), Loss::default());
    }
    outbox.push(frame::text("state 6"), Content::State(Some(id(6))), 1000);
    let limit = outbox.bytes();
    assert_eq!(push_event(&mut outbox, 7, limit), Loss { events: 5, overflows: 1 });
    assert_eq!(push_event(&mut outbox, 8, limit), Loss { events: 1, overflows: 0 });
    assert_eq!(outbox.push(frame::text("state 9"), Content::State(Some(id(9))), limit), Loss::default());

    let mut kernel = Kernel { took: bytes[..3].to_vec(), ..Kernel::default() };
    let flushed = flush(&mut outbox, &mut kernel, 1000, || resync(9));
    assert_eq!(flushed, Flushed { done: true, messages: 4, resynced: Some(9) });
    let gap = encode_gap(Some(id(1)), Some(id(9)));
    assert_eq!(kernel.texts(), ["event 1", "init", &gap, "ping"], "Inv. GAP: from what arrived to what did not");
    assert_eq!(outbox.bytes(), 0);
}

// Inv. GAP: a socket whose kernel was full just behind a whole frame was taken for one that has nothing to write, heard
// nothing more, and was closed with 4408 when it did not answer the ping that it never got. The failure lab found it.
#[test]
fn who_is_owed_a_state_is_not_done_when_the_kernel_is_full_between_frames() {
    let mut outbox = Outbox::default();
    let (bytes, content) = event(1);
    let half = bytes.slice(3..);
    let room = half.len();
    outbox.push_half(half, content);
    assert_eq!(push_event(&mut outbox, 2, 0), Loss { events: 1, overflows: 1 });
    let mut kernel = Kernel { took: bytes[..3].to_vec(), ..Kernel::default() };
    let flushed = flush(&mut outbox, &mut kernel, room, || resync(2));
    assert_eq!((flushed.done, outbox.is_empty()), (false, false), "it waits for the kernel");
    let flushed = flush(&mut outbox, &mut kernel, 1000, || resync(3));
    assert_eq!((flushed.done, outbox.is_empty()), (true, true));
    let gap = encode_gap(Some(id(1)), Some(id(3)));
    assert_eq!(kernel.texts(), ["event 1", "init", &gap]);
}

// Inv. ORDER: a client that is not let in yet has no use for a newer state.
#[test]
fn an_answer_leaves_before_anything_and_whatever_overflows() {
    let mut outbox = Outbox::default();
    assert_eq!(outbox.push(frame::text("answer"), Content::Answer, 0), Loss::default());
    assert_eq!(outbox.push(frame::text("stale"), Content::State(None), 0), Loss { events: 0, overflows: 1 });
    outbox.push(frame::text("ping"), Content::Ping, 0);
    let mut kernel = Kernel::default();
    assert_eq!(flush(&mut outbox, &mut kernel, 3, || resync(1)), Flushed::default());
    outbox.discard();
    let flushed = flush(&mut outbox, &mut kernel, 1000, || resync(2));
    let gap = encode_gap(None, Some(id(2)));
    assert_eq!(kernel.texts(), ["answer", "init", &gap, "ping"]);
    assert_eq!(flushed, Flushed { done: true, messages: 3, resynced: Some(2) }, "an answer is no message");
}

#[test]
fn the_state_is_as_new_as_the_moment_in_which_it_leaves() {
    let mut outbox = Outbox::default();
    push_event(&mut outbox, 1, 0);
    let mut kernel = Kernel::default();
    assert_eq!(flush(&mut outbox, &mut kernel, 0, || resync(1)), Flushed::default());
    let flushed = flush(&mut outbox, &mut kernel, 1000, || Resync { announces: false, ..resync(2) });
    assert_eq!(flushed, Flushed { done: true, messages: 1, resynced: Some(2) });
    assert_eq!(kernel.texts(), ["init"], "one init, and no gap for a reader without ids");
}

#[test]
fn a_close_frame_is_the_last_frame() {
    let mut outbox = Outbox::default();
    push_event(&mut outbox, 1, 1000);
    push_event(&mut outbox, 2, 0);
    outbox.push(frame::close(1013, ""), Content::Close, 0);
    let mut kernel = Kernel::default();
    assert!(flush(&mut outbox, &mut kernel, 1000, never).done);
    assert_eq!(kernel.took[..], frame::close(1013, "")[..]);
}

#[test]
fn of_pongs_and_pings_the_latest_is_enough() {
    let mut outbox = Outbox::default();
    for n in 0..100 {
        outbox.push(frame::text(&format!("pong {n}")), Content::Pong, 0);
        outbox.push(frame::text(&format!("ping {n}")), Content::Ping, 0);
    }
    let mut kernel = Kernel::default();
    assert_eq!(flush(&mut outbox, &mut kernel, 1000, never).messages, 1);
    assert_eq!(kernel.texts(), ["pong 99", "ping 99"]);
}

#[test]
fn a_socket_that_takes_no_byte_ever_is_an_error() {
    let mut outbox = Outbox::default();
    push_event(&mut outbox, 1, 1000);
    let error = outbox.flush(|_| Ok(0), never).expect_err("no progress");
    assert_eq!(error.kind(), io::ErrorKind::WriteZero);
}

/// The stream and the reader's past as the hub keeps them, for the property below.
struct Stream {
    ring: Ring,
    last: u64,
    /// The messages right after which the stream has lost something.
    holes: Vec<u64>,
}

impl Stream {
    fn new() -> Self {
        let mut ring = Ring::new(1 << 20);
        ring.begin(vec![Recalled { id: id(0), item: None }], false);
        Self { ring, last: 0, holes: Vec::new() }
    }

    /// The next message.
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.ring.push(Item::message(MessageKind::NewEvent, "{}", id(self.last)));
        self.last
    }

    /// Loses something; what the relay says of it.
    fn lose(&mut self) -> String {
        let text = encode_gap(Some(id(self.last)), None);
        let hole = Broadcast { kind: MessageKind::Gap, text: text.clone(), id: None, state: None };
        Item::of(&hole).into_iter().for_each(|item| self.ring.push(item));
        self.holes.push(self.last);
        text
    }

    fn resync(&self) -> Resync {
        Resync { end: self.ring.end_of_gap(), ..resync(self.last) }
    }
}

proptest! {
    /// Any mixture of pushes and stuttering writes gives whole frames; events come in order; each is delivered or
    /// lies within an announced gap, and so does each hole of the stream; the account is always right.
    // Inv. ORDER, Inv. GAP
    #[test]
    fn nothing_is_torn_reordered_or_lost_in_silence(steps in prop::collection::vec((0..8u8, 0..120usize), 1..200)) {
        let limit = 400;
        let (mut outbox, mut kernel, mut stream) = (Outbox::default(), Kernel::default(), Stream::new());
        for (what, room) in steps {
            match what {
                0..3 => { flush(&mut outbox, &mut kernel, room, || stream.resync()); }
                3 => { outbox.push(frame::text(&stream.lose()), Content::Event(None), limit); }
                4 => { outbox.push(frame::text("stale"), Content::State(None), limit); }
                _ => { push_event(&mut outbox, stream.next(), limit); }
            }
            prop_assert!(outbox.bytes() <= limit + 3 * ENTRY_BYTES + 200);
        }
        flush(&mut outbox, &mut kernel, usize::MAX, || stream.resync());
        prop_assert_eq!(outbox.bytes(), 0);
        // It is live again: what comes next ends what is open.
        push_event(&mut outbox, stream.next(), limit);
        flush(&mut outbox, &mut kernel, usize::MAX, never);

        let end = |text: &str, name: &str| -> Option<u64> {
            let (ms, _) = text.split_once(name)?.1.split_once('-')?;
            Some(ms.parse().expect("a number"))
        };
        let (mut known, mut is_open) = (0, false);
        for text in kernel.texts() {
            if let Some(n) = text.strip_prefix("event ") {
                let n: u64 = n.parse().expect("a number");
                let is_hole = stream.holes.contains(&known);
                prop_assert!(n == known + 1 || (n > known && is_open), "{} comes after {}", n, known);
                prop_assert_eq!(is_open, is_hole || n > known + 1, "what is missing between {} and {} is said", known, n);
                (known, is_open) = (n, false);
            } else if text.starts_with(r#"{"type":"gap""#) {
                let from = end(&text, r#""from":""#).unwrap_or(0);
                prop_assert!(from <= known || is_open, "everything up to `from` was delivered or announced");
                match end(&text, r#""to":""#) {
                    Some(to) => (known, is_open) = (to, false),
                    None => is_open = true,
                }
            }
        }
        prop_assert_eq!(known, stream.last);
    }
}
