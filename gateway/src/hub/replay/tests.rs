use proptest::prelude::*;
use shared::ids::{EntryDigest, StreamId};
use shared::message::{Snapshot, encode_update, with_id};
use shared::time::Timestamp;

use super::super::State;
use super::super::broadcast::Broadcast;
use super::super::ring::{Item, Recalled};
use super::*;

const ROOM: usize = 1 << 20;
/// Numbers are fresh until then; a world begins at zero.
const FRESH_UNTIL: Mono = Mono::from_secs(11);

/// The id of the `n`th entry of the stream; further apart than one, so that there are ids of nothing.
fn id(n: u64) -> EventId {
    EventId { stream: StreamId { ms: n * 10, seq: 0 }, digest: EntryDigest::of("", b"") }
}

fn number(id: &str) -> u64 {
    id.split_once('-').expect("an id").0.parse::<u64>().expect("a number") / 10
}

fn state(n: u64, freshness: Freshness) -> State {
    let snapshot = Snapshot { active_visitors: n, timestamp: Timestamp::from_unix_ms(0) };
    let fresh_until = if freshness == Freshness::Fresh { FRESH_UNTIL } else { Mono::ZERO };
    State { snapshot, fresh_until, id: Some(id(n)) }
}

fn event(n: u64) -> Item {
    Item::message(MessageKind::NewEvent, r#"{"type":"new_event"}"#, id(n))
}

/// What a client was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Got {
    Init { number: u64, stale: bool },
    Update(u64),
    Event(u64),
    Gap(Option<u64>, Option<u64>),
}

/// The messages of whole frames.
fn read(mut bytes: &[u8]) -> Vec<Got> {
    let mut got = Vec::new();
    while let [0x81, length, rest @ ..] = bytes {
        let (head, length) = match length {
            126 => (2, usize::from(u16::from_be_bytes([rest[0], rest[1]]))),
            length => (0, usize::from(*length)),
        };
        let json: serde_json::Value = serde_json::from_slice(&rest[head..head + length]).expect("JSON");
        bytes = &rest[head + length..];
        let shown = || json["data"]["active_visitors"].as_u64().expect("a number");
        let at = |key: &str| json[key].as_str().map(number);
        got.push(match json["type"].as_str().expect("a type") {
            "init" => {
                assert!(json["id"].is_null(), "an init on the way must not look like a place");
                Got::Init { number: shown(), stale: json["data"]["stale"] == true }
            }
            "realtime_update" => Got::Update(shown()),
            "gap" => Got::Gap(at("from"), at("to")),
            _ => Got::Event(at("id").expect("an id")),
        });
    }
    assert!(bytes.is_empty(), "whole frames only");
    got
}

/// A hub without sockets, and one client that catches up.
struct World {
    ring: Ring,
    published: Published,
    now: Mono,
    replay: Option<Replay>,
    kinds: MessageKinds,
    /// Everything that was written to the client, and the rest of a frame that was begun.
    wire: Vec<u8>,
    rest: Vec<u8>,
    live_after: u64,
    /// What the pass that goes on has for the client.
    visiting: Vec<Broadcast>,
    asked_end: u64,
    wants_past: bool,
    outcomes: Vec<Resume>,
}

impl World {
    fn new(room: usize, known: impl Iterator<Item = u64>, more: bool, last: EventId) -> Self {
        let mut ring = Ring::new(room);
        ring.begin(known.map(|n| Recalled { id: id(n), item: Some(event(n)) }).collect(), more);
        let published = Published::default();
        let waiting = Waiting::among(&Arc::default());
        Self {
            ring,
            published,
            now: Mono::ZERO,
            replay: Some(Replay::new(last, None, waiting)),
            kinds: MessageKinds::ALL,
            wire: Vec::new(),
            rest: Vec::new(),
            live_after: 0,
            visiting: Vec::new(),
            asked_end: 0,
            wants_past: false,
            outcomes: Vec::new(),
        }
    }

    /// A broadcast pass, as the hub makes it.
    fn pass(&mut self, messages: &[Broadcast]) {
        self.begin(messages);
        self.visit();
    }

    /// What the pass brings is said.
    fn begin(&mut self, messages: &[Broadcast]) {
        self.visit();
        self.published.sequence += 1;
        for message in messages {
            Item::of(message).into_iter().for_each(|item| self.ring.push(item));
            self.published.state = message.state.or(self.published.state);
        }
        self.visiting = messages.to_vec();
    }

    /// The pass comes to the client.
    fn visit(&mut self) {
        for message in std::mem::take(&mut self.visiting) {
            if self.replay.is_none() && self.published.sequence > self.live_after && self.kinds.contains(message.kind) {
                let text = message.id.map_or(message.text.clone(), |id| with_id(&message.text, id));
                self.wire.append(&mut self.rest);
                self.wire.extend_from_slice(&frame::text(&text));
            }
        }
    }

    /// Lets the client go on with room for `room` bytes; false when there is nothing to do.
    fn pump(&mut self, room: usize) -> bool {
        self.wire.append(&mut self.rest);
        let Some(replay) = &mut self.replay else { return false };
        let chunk = match replay.step(&self.ring, &self.published, self.kinds, self.now) {
            Step::Wait => return false,
            Step::AskEnd => {
                self.asked_end += 1;
                replay.awaits_end(self.asked_end);
                return true;
            }
            Step::AskPast => {
                self.wants_past = true;
                replay.awaits_past(self.ring.fetches());
                return true;
            }
            Step::Write(chunk) => chunk,
        };
        let bytes = &chunk.parcel.bytes;
        let written = room.min(bytes.len());
        if written == 0 && !bytes.is_empty() {
            return false;
        }
        let wrote = replay.wrote(&chunk, written);
        self.wire.extend_from_slice(&bytes[..written]);
        self.rest = chunk.parcel.half_at(written).map(|(rest, _)| rest.to_vec()).unwrap_or_default();
        self.outcomes.extend(wrote.outcome);
        if let Some(sequence) = wrote.live {
            self.live_after = sequence;
            self.replay = None;
        }
        true
    }

    fn finish(&mut self) {
        while self.pump(usize::MAX) {}
        assert!(self.replay.is_none(), "it waits: {:?}", self.replay);
    }

    fn got(&self) -> Vec<Got> {
        read(&self.wire)
    }

    /// All that the client gets, and what came of its wish.
    fn answer(mut self) -> (Vec<Got>, Vec<Resume>) {
        self.finish();
        (self.got(), self.outcomes)
    }
}

fn news(n: u64) -> Broadcast {
    Broadcast { kind: MessageKind::NewEvent, text: r#"{"type":"new_event"}"#.into(), id: Some(id(n)), state: None }
}

fn update(n: u64) -> Broadcast {
    let state = state(n, Freshness::Fresh);
    let text = encode_update(state.snapshot, Freshness::Fresh);
    Broadcast { kind: MessageKind::RealtimeUpdate, text, id: state.id, state: Some(state) }
}

fn repeat(n: u64) -> Broadcast {
    let state = state(n, Freshness::Stale);
    let text = encode_update(state.snapshot, Freshness::Stale);
    Broadcast { kind: MessageKind::RealtimeUpdate, text, id: None, state: Some(state) }
}

/// The relay found that the stream has lost what came after the `n`th entry.
fn hole(n: u64) -> Broadcast {
    Broadcast { kind: MessageKind::Gap, text: encode_gap(Some(id(n)), None), id: None, state: None }
}

fn events(numbers: impl IntoIterator<Item = u64>) -> Vec<Got> {
    numbers.into_iter().map(Got::Event).collect()
}

#[test]
fn who_is_known_gets_what_came_since() {
    let answer = |last| World::new(ROOM, 1..=5, false, last).answer();
    assert_eq!(answer(id(2)), (events(3..=5), vec![Resume::Complete]));
    assert_eq!(answer(id(1)), (events(2..=5), vec![Resume::Complete]));
    assert_eq!(answer(id(5)), (events([]), vec![Resume::Complete]));
}

// Inv. GAP: exact bounds, and then what is there.
#[test]
fn who_comes_from_before_the_past_gets_a_gap_and_the_rest() {
    let mut got = vec![Got::Gap(Some(1), Some(3))];
    got.extend(events(4..=5));
    assert_eq!(World::new(ROOM, 3..=5, false, id(1)).answer(), (got, vec![Resume::Trimmed]));
}

#[test]
fn who_names_what_never_was_gets_a_gap_up_to_now() {
    let foreign = EventId { digest: EntryDigest::of("", b"foreign"), ..id(3) };
    let want = (vec![Got::Gap(Some(3), Some(5))], vec![Resume::Unknown]);
    assert_eq!(World::new(ROOM, 1..=5, false, foreign).answer(), want);
}

// Inv. ORDER: a node that lags behind the one that the client comes from must not send again what it has.
#[test]
fn who_is_ahead_waits_for_the_node() {
    let mut world = World::new(ROOM, 1..=5, false, id(8));
    while world.pump(usize::MAX) {}
    assert_eq!((world.got(), world.asked_end), (vec![], 1));
    world.pass(&[news(6), news(7)]);
    assert!(!world.pump(usize::MAX), "still ahead");
    world.pass(&[news(8), news(9)]);
    assert_eq!(world.answer(), (events([9]), vec![Resume::Complete]));
}

#[test]
fn who_comes_from_the_future_waits_until_that_is_sure() {
    let mut world = World::new(ROOM, 1..=5, false, id(100));
    while world.pump(usize::MAX) {}
    world.pass(&[news(6)]);
    assert!(!world.pump(usize::MAX));
    world.published.read_to_end = world.asked_end;
    world.finish();
    world.pass(&[news(7)]);
    // Inv. ORDER: `to` is where a client goes on, and must not lead it back behind what it has.
    assert_eq!(world.got(), [Got::Gap(Some(100), None), Got::Event(7)]);
    // In a stream without an entry nothing has an id.
    let mut world = World::new(ROOM, 0..0, false, id(100));
    while world.pump(usize::MAX) {}
    world.published.read_to_end = world.asked_end;
    assert_eq!(world.answer(), (vec![Got::Gap(Some(100), None)], vec![Resume::Unknown]));
}

#[test]
fn who_comes_from_far_back_waits_for_one_fetch_of_the_past() {
    let waiting = || {
        let mut world = World::new(ROOM, 50..=55, true, id(45));
        while world.pump(usize::MAX) {}
        assert!(world.wants_past && world.wire.is_empty());
        world
    };
    let mut world = waiting();
    world.ring.extend((40..=50).map(|n| Recalled { id: id(n), item: Some(event(n)) }).collect(), true);
    assert_eq!(world.answer(), (events(46..=55), vec![Resume::Complete]));
    // It does not reach far enough.
    let mut world = waiting();
    world.ring.extend((48..=50).map(|n| Recalled { id: id(n), item: Some(event(n)) }).collect(), false);
    world.ring.fetched();
    let (got, outcomes) = world.answer();
    assert_eq!(
        (&got[..2], &outcomes[..]),
        (&[Got::Gap(Some(45), Some(48)), Got::Event(49)][..], &[Resume::Trimmed][..])
    );
    // It failed.
    let mut world = waiting();
    world.ring.fetched();
    assert_eq!(world.answer().0[..2], [Got::Gap(Some(45), Some(50)), Got::Event(51)]);
}

#[test]
fn what_was_not_chosen_is_not_replayed() {
    let mut world = World::new(ROOM, 1..=2, false, id(1));
    world.kinds = MessageKinds::parse("theme_stats").expect("a kind");
    let theme = Broadcast { kind: MessageKind::ThemeStats, text: r#"{"type":"theme_stats"}"#.into(), ..news(4) };
    world.pass(&[news(3), theme, update(5)]);
    assert_eq!(world.answer().0, events([4]));
}

// Numbers of the past are not shown; the newest is, once, whichever way it comes.
#[test]
fn of_snapshots_only_the_newest_counts() {
    let mut world = World::new(ROOM, 1..=2, false, id(1));
    world.pass(&[update(3), news(4), update(5), news(6)]);
    assert_eq!(world.answer().0, [Got::Event(2), Got::Event(4), Got::Update(5), Got::Event(6)]);
    // It lies further ahead than one write goes: it is told at once, and skipped where it stands.
    let mut world = World::new(ROOM, 1..=1, false, id(1));
    let many: Vec<_> = (2..1000).map(news).collect();
    world.pass(&many);
    world.pass(&[update(1000), news(1001)]);
    let got = world.answer().0;
    assert_eq!(got[0], Got::Init { number: 1000, stale: false });
    assert_eq!(got[1..], events((2..1000).chain([1001])));
    // It has grown old meanwhile.
    let mut world = World::new(ROOM, 1..=1, false, id(1));
    world.pass(&[update(2), news(3)]);
    world.pass(&[repeat(2)]);
    assert_eq!(world.answer().0, [Got::Init { number: 2, stale: true }, Got::Event(3)]);
}

// No pass has said so: the process was stopped, and nothing but time has passed.
#[test]
fn a_number_whose_time_is_over_is_not_told_as_the_truth() {
    let mut world = World::new(ROOM, 1..=1, false, id(1));
    world.pass(&[update(2), news(3)]);
    world.now = FRESH_UNTIL;
    assert_eq!(world.answer().0, [Got::Init { number: 2, stale: true }, Got::Event(3)]);
    // Who was told that it is the truth, and waits, learns of it once.
    let mut world = World::new(ROOM, 1..=5, false, id(100));
    world.pass(&[update(5)]);
    while world.pump(usize::MAX) {}
    world.now = FRESH_UNTIL;
    while world.pump(usize::MAX) {}
    assert_eq!(world.got(), [false, true].map(|stale| Got::Init { number: 5, stale }));
}

#[test]
fn who_waits_for_redis_learns_that_the_number_is_stale() {
    let mut world = World::new(ROOM, 1..=5, false, id(100));
    while world.pump(usize::MAX) {}
    world.pass(&[repeat(5)]);
    assert!(world.pump(usize::MAX));
    assert!(!world.pump(usize::MAX), "once");
    assert_eq!((world.got(), world.outcomes), (vec![Got::Init { number: 5, stale: true }], vec![]));
}

// Inv. BOUND, Inv. GAP
#[test]
fn who_reads_more_slowly_than_the_past_goes_by_gets_a_gap_up_to_now() {
    let mut world = World::new(2_000, 1..=9, false, id(1));
    let frame = event(2).frame().len();
    world.pump(frame + 1);
    (10..100).for_each(|n| world.pass(&[news(n)]));
    let (got, outcomes) = world.answer();
    assert_eq!(got, [Got::Event(2), Got::Event(3), Got::Gap(Some(3), Some(99))]);
    assert_eq!(outcomes, [Resume::Complete, Resume::TooSlow]);
}

// Inv. GAP: a gap up to now does not hide the hole at the end of the stream.
#[test]
fn behind_a_hole_a_gap_up_to_now_is_open() {
    let foreign = EventId { digest: EntryDigest::of("", b"foreign"), ..id(3) };
    let mut world = World::new(ROOM, 1..=5, false, foreign);
    world.pass(&[hole(5)]);
    world.finish();
    world.pass(&[news(6)]);
    assert_eq!(world.answer().0, [Got::Gap(Some(3), None), Got::Event(6)]);
    // It is ahead of a node that finds the hole before it has read to the end.
    let mut world = World::new(ROOM, 1..=3, false, id(100));
    world.pass(&[hole(3)]);
    while world.pump(usize::MAX) {}
    world.published.read_to_end = world.asked_end;
    assert_eq!(world.answer(), (vec![Got::Gap(Some(100), None)], vec![Resume::Unknown]));
}

// Inv. GAP: a hole that the relay found is said to all who were away when it was.
#[test]
fn holes_are_replayed_in_their_places() {
    let mut world = World::new(ROOM, 1..=3, false, id(2));
    world.pass(&[hole(3), news(9)]);
    assert_eq!(world.answer().0, [Got::Event(3), Got::Gap(Some(3), None), Got::Event(9)]);
}

/// What happens while a client catches up.
#[derive(Debug, Clone)]
enum Happening {
    /// A pass with that many events and perhaps a snapshot begins.
    Pass(u64, bool),
    /// A pass begins that says that the stream has a hole here.
    Hole,
    /// It comes to the client.
    Visit,
    /// The kernel takes that many bytes.
    Room(usize),
    /// The relay has read to the end.
    End,
    /// A fetch of the past ends; it brings that many entries.
    Past(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => (0u64..5, any::<bool>()).prop_map(|(events, snapshot)| Happening::Pass(events, snapshot)),
        1 => Just(Happening::Hole),
        1 => Just(Happening::Visit),
        3 => (0usize..400).prop_map(Happening::Room),
        1 => Just(Happening::End),
        1 => (0u64..30).prop_map(Happening::Past),
    ]
}

/// What a client was told that it will not get.
#[derive(Debug)]
struct Gap {
    from: u64,
    /// The first that is not missing any more.
    before: u64,
    to: Option<u64>,
}

impl Gap {
    fn names(&self, n: u64) -> bool {
        self.from < n && n < self.before
    }

    /// Whether it tells of what the stream has lost right after the `n`th entry. A gap that ends with that entry does not.
    fn covers_hole(&self, n: u64) -> bool {
        self.from <= n && n + 1 < self.before + u64::from(self.to.is_none())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    // Inv. ORDER, Inv. GAP: however passes, writes of any length, fetches and overruns interleave, a client gets each
    // event after its last at most once and in order, and whatever it does not get lies in a gap that it was told; so
    // does what the stream itself has lost.
    #[test]
    fn no_hole_and_no_duplicate(
        room in prop_oneof![Just(ROOM), 500usize..6_000],
        begins in 20u64..40,
        known in 1u64..40,
        last in 1u64..100,
        foreign: bool,
        happenings in prop::collection::vec(happening(), 0..60),
    ) {
        let digest = EntryDigest::of("", if foreign { b"foreign" } else { b"" });
        let last_id = EventId { digest, ..id(last) };
        let mut end = begins + known;
        let mut world = World::new(room, begins..end, true, last_id);
        let (mut snapshots, mut holes) = (Vec::new(), Vec::new());
        let all = happenings.into_iter().chain([Happening::Past(30), Happening::End, Happening::Pass(3, true)]);
        for happening in all {
            match happening {
                Happening::Pass(events, snapshot) => {
                    let mut pass: Vec<_> = (end..end + events).map(news).collect();
                    end += events;
                    if snapshot {
                        pass.push(update(end));
                        snapshots.push(end);
                        end += 1;
                    }
                    world.begin(&pass);
                }
                Happening::Hole => {
                    world.begin(&[hole(end - 1)]);
                    holes.push(end - 1);
                }
                Happening::Visit => world.visit(),
                Happening::Room(room) => { world.pump(room); }
                Happening::End => {
                    // An id that was given out stands in the stream: a node that has read to its end has read it.
                    if !foreign && end <= last {
                        world.pass(&(end..=last).map(news).collect::<Vec<_>>());
                        end = last + 1;
                    }
                    world.published.read_to_end = world.asked_end;
                }
                Happening::Past(entries) => {
                    if let Some(floor) = world.ring.extensible() {
                        let floor = floor.stream.ms / 10;
                        let from = floor.saturating_sub(entries).max(1);
                        let read = (from..=floor).map(|n| Recalled { id: id(n), item: Some(event(n)) }).collect();
                        world.ring.extend(read, from > 1);
                    }
                    world.ring.fetched();
                }
            }
        }
        // The rest of what a client may wait for.
        while world.pump(usize::MAX) {}
        world.ring.fetched();
        world.published.read_to_end = world.asked_end;
        world.finish();
        world.pass(&[news(end)]);

        // A foreign id is no place in this stream.
        let (mut at, mut gaps, mut heard) = (if foreign { 0 } else { last }, Vec::new(), Vec::new());
        // Where gaps begin that end before whatever comes next.
        let mut open = Vec::new();
        for got in world.got() {
            match got {
                Got::Event(n) | Got::Update(n) => {
                    prop_assert!(n > at, "{} after {}", n, at);
                    gaps.extend(open.drain(..).map(|from| Gap { from, before: n, to: None }));
                    if matches!(got, Got::Event(_)) {
                        heard.push(n);
                    }
                    at = n;
                }
                Got::Gap(from, to) => {
                    let from = from.expect("it came from somewhere");
                    prop_assert!(from >= at, "a gap from {} behind {}", from, at);
                    let is_answer = gaps.is_empty() && open.is_empty();
                    let leads_back = is_answer && to.is_some_and(|to| to < from);
                    prop_assert!(!leads_back, "the answer is a gap from {} to {:?}", from, to);
                    let from = if foreign && is_answer { 0 } else { from };
                    match to {
                        Some(to) => {
                            gaps.push(Gap { from, before: to + 1, to: Some(to) });
                            at = to;
                        }
                        None => open.push(from),
                    }
                }
                Got::Init { .. } => {}
            }
        }
        prop_assert_eq!(at, end, "it is live");
        let missing = |n: &u64| !heard.contains(n) && !snapshots.contains(n);
        let owed_after = if foreign { gaps[0].before - 1 } else { last };
        for n in (owed_after + 1..=end).filter(missing) {
            prop_assert!(gaps.iter().any(|gap| gap.names(n)), "{} is missing, unsaid: {:?}", n, gaps);
        }
        for n in &heard {
            prop_assert!(!gaps.iter().any(|gap| gap.names(*n)), "{} is said to be missing", n);
        }
        for after in holes.iter().filter(|after| **after >= owed_after) {
            prop_assert!(gaps.iter().any(|gap| gap.covers_hole(*after)), "a hole after {}, unsaid: {:?}", after, gaps);
        }
        // And nothing is said to be missing that need not be.
        let needed = |gap: &Gap| gap.to.is_none() && holes.contains(&gap.from);
        prop_assert!(foreign || room < ROOM || last < begins || gaps.iter().all(needed), "{:?}", gaps);
    }
}
