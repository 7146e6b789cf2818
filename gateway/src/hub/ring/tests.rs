use super::*;

fn id(ms: u64) -> EventId {
    of("x", ms)
}

/// The entry at `ms` whose content is `content`.
fn of(content: &str, ms: u64) -> EventId {
    EventId { stream: StreamId { ms, seq: 0 }, digest: EntryDigest::of("t", content.as_bytes()) }
}

fn event(ms: u64) -> Item {
    Item::message(MessageKind::NewEvent, "{}", id(ms))
}

fn hole() -> Item {
    let gap = Broadcast { kind: MessageKind::Gap, text: r#"{"type":"gap"}"#.into(), id: None, state: None };
    Item::of(&gap).expect("a hole is kept")
}

fn recalled(ms: impl IntoIterator<Item = u64>) -> Vec<Recalled> {
    ms.into_iter().map(|ms| Recalled { id: id(ms), item: Some(event(ms)) }).collect()
}

fn ring_of(ms: impl IntoIterator<Item = u64>) -> Ring {
    let mut ring = Ring::new(1 << 20);
    ring.begin(recalled(ms), false);
    ring
}

/// The places of what comes from that number on; a hole is 0.
fn from(ring: &Ring, number: u64) -> Vec<u64> {
    ring.from(number).map(|item| item.id().map_or(0, |id| id.stream.ms)).collect()
}

/// What comes after an id that is found.
fn after(ring: &Ring, last: EventId) -> Option<Vec<u64>> {
    match ring.find(last) {
        Found::Before(number) => Some(from(ring, number)),
        _ => None,
    }
}

// Inv. GAP
#[test]
fn an_id_is_found_or_it_is_said_why_not() {
    let ring = ring_of([10, 20, 30, 40]);
    assert_eq!(ring.floor(), Some(id(10)), "the oldest is known and not kept");
    assert_eq!(after(&ring, id(10)), Some(vec![20, 30, 40]));
    assert_eq!(after(&ring, id(20)), Some(vec![30, 40]));
    assert_eq!(after(&ring, id(40)), Some(vec![]));
    let find = |content, ms| ring.find(of(content, ms));
    assert_eq!(find("x", 9), Found::TooOld);
    assert_eq!(find("another", 10), Found::Unknown);
    assert_eq!(find("x", 25), Found::Unknown);
    assert_eq!(find("another", 30), Found::Unknown);
    assert_eq!(find("another", 40), Found::Unknown);
    assert_eq!(find("x", 41), Found::Ahead);
}

#[test]
fn in_a_ring_that_knows_nothing_everything_is_ahead() {
    let mut ring = Ring::new(1 << 20);
    assert_eq!(ring.find(id(1)), Found::Ahead);
    ring.push(event(10));
    // What was before the first entry is not known: an earlier id is of no known stream.
    assert_eq!((ring.find(id(1)), ring.floor(), ring.newest()), (Found::Unknown, None, Some(id(10))));
    assert_eq!(after(&ring, id(10)), Some(vec![]));
}

#[test]
fn an_entry_that_is_not_shown_has_its_place() {
    let mut ring = ring_of([10]);
    ring.push(Item::passed(id(20)));
    ring.push(event(30));
    assert_eq!(after(&ring, id(20)), Some(vec![30]));
    assert_eq!(ring.from(ring.first()).map(|item| item.frame().is_empty()).collect::<Vec<_>>(), [true, false]);
}

// Inv. GAP: a hole is said to whoever has what lies before it, and to nobody else.
#[test]
fn a_hole_stands_behind_the_entry_before_it() {
    let mut ring = ring_of([10]);
    ring.push(hole());
    assert_eq!(after(&ring, id(10)), Some(vec![0]), "also behind the floor");
    ring.push(event(20));
    ring.push(hole());
    ring.push(event(30));
    assert_eq!(after(&ring, id(10)), Some(vec![0, 20, 0, 30]));
    assert_eq!(after(&ring, id(20)), Some(vec![0, 30]));
    assert_eq!(after(&ring, id(30)), Some(vec![]));
    // Where nothing is known there is nothing that a hole could be behind.
    let mut empty = Ring::new(1 << 20);
    empty.push(hole());
    assert_eq!(empty.size(), (0, 0));
}

// Inv. BOUND, Inv. GAP
#[test]
fn the_oldest_makes_room_and_stays_known_as_the_floor() {
    let room = 3 * event(10).cost();
    let mut ring = Ring::new(room);
    ring.begin(recalled([10]), true);
    for ms in [20, 30, 40, 50] {
        ring.push(event(ms));
    }
    assert_eq!((ring.floor(), ring.extensible()), (Some(id(20)), None));
    assert_eq!((ring.size(), from(&ring, ring.first())), ((3, room), vec![30, 40, 50]));
    assert_eq!((ring.find(id(10)), ring.first()), (Found::TooOld, FIRST + 1));
    // When a hole has to go, what lies before it must not be found any more, or the hole would be unsaid.
    let mut ring = Ring::new(room);
    ring.begin(recalled([10]), false);
    for item in [hole(), event(20), event(30), event(40)] {
        ring.push(item);
    }
    assert_eq!((ring.floor(), from(&ring, ring.first())), (Some(id(20)), vec![30, 40]));
    // And by number.
    let mut ring = Ring::new(usize::MAX);
    for ms in 0..ITEMS_MAX as u64 + 10 {
        ring.push(event(10 + ms));
    }
    assert_eq!((ring.size().0, ring.floor()), (ITEMS_MAX, Some(id(19))));
}

#[test]
fn without_room_only_the_last_id_is_known() {
    let mut ring = Ring::new(0);
    ring.begin(recalled([10, 20]), true);
    ring.push(event(30));
    assert_eq!((ring.size(), ring.floor(), ring.extensible()), ((0, 0), Some(id(30)), None));
    assert_eq!(
        (after(&ring, id(30)), ring.find(id(20)), ring.find(id(40))),
        (Some(vec![]), Found::TooOld, Found::Ahead)
    );
}

// Inv. ORDER: Redis went on from an older past, with a clock that is behind.
#[test]
fn when_ids_fall_the_ring_begins_afresh() {
    let mut ring = ring_of([10, 20, 30]);
    let end = ring.end();
    ring.push(hole());
    ring.push(of_item("new", 25));
    assert_eq!(
        (ring.first(), ring.floor()),
        (end + 1, None),
        "numbers go on, so who reads sees that its place is gone"
    );
    assert_eq!(after(&ring, of("new", 25)), Some(vec![]));
    assert_eq!((ring.find(id(20)), ring.find(id(30))), (Found::Unknown, Found::Ahead));
}

fn of_item(content: &str, ms: u64) -> Item {
    Item::message(MessageKind::NewEvent, "{}", of(content, ms))
}

#[test]
fn more_of_the_past_goes_before_the_floor() {
    let mut ring = Ring::new(1 << 20);
    ring.begin(recalled([50, 60]), true);
    let sixty = ring.find(id(60));
    assert_eq!(ring.extensible(), Some(id(50)));
    assert!(ring.extend(recalled([30, 40, 50]), true));
    assert_eq!((ring.floor(), from(&ring, ring.first())), (Some(id(30)), vec![40, 50, 60]));
    assert_eq!(ring.find(id(60)), sixty, "numbers stay");
    // The beginning of the stream.
    assert!(!ring.extend(recalled([20, 30]), false));
    assert_eq!((after(&ring, id(20)), ring.extensible()), (Some(vec![30, 40, 50, 60]), None));
}

// Inv. ORDER, Inv. GAP: what was read must belong to what is known, or it is of no use.
#[test]
fn what_does_not_end_at_the_floor_is_not_taken() {
    for foreign in [vec![], recalled([40]), recalled([40, 60]), vec![Recalled { id: of("other", 50), item: None }]] {
        let mut ring = Ring::new(1 << 20);
        ring.begin(recalled([50, 60]), true);
        assert!(!ring.extend(foreign, true));
        assert_eq!((ring.floor(), ring.extensible(), ring.size().0), (Some(id(50)), None, 1));
    }
    // A hole was found since: before it only what was read before it is surely the same stream.
    let mut ring = Ring::new(2 * event(10).cost());
    ring.begin(recalled([50]), true);
    for ms in [60, 70, 80] {
        ring.push(event(ms));
    }
    assert!(!ring.extend(recalled([40, 50]), true), "the floor has moved");
    assert_eq!(from(&ring, ring.first()), [70, 80]);
}

// Inv. BOUND
#[test]
fn the_past_is_extended_as_far_as_there_is_room() {
    let mut ring = Ring::new(3 * event(10).cost());
    ring.begin(recalled([50, 60]), true);
    assert!(!ring.extend(recalled([20, 30, 40, 50]), true));
    assert_eq!((ring.floor(), from(&ring, ring.first())), (Some(id(30)), vec![40, 50, 60]));
}
