//! Planted lies: for each promise a run in which it is broken, which the checker must see, and nothing else.

mod limits;
mod numbers;

use super::*;
use crate::evidence::{
    Attempt, Demands, Ending, FaultLog, Heard, Node, NodeLog, Number, Pace, Part, Published, Round, Session, Shown,
    Survivor, What,
};

/// The first moment of the runs here; a whole second, and a whole slot.
const BEGIN: Ms = 1_765_189_800_000;
const CLIENTS: usize = 60;
/// Slots of a run, of a second each, and events in each of them.
const SLOTS: u64 = 12;
const EVENTS_OF_SLOT: u64 = 10;

fn event_time(number: Number) -> Ms {
    BEGIN + 1_000 + Ms::from(number) * 100 + 50
}

/// A run in which nothing went wrong: each client reads each event 5 ms after it was sent, and each snapshot 5 ms
/// after its slot began. Client 0 has ids, client 1 is slow, the first ten share an address.
fn good_run() -> Evidence {
    let mut evidence = Evidence {
        demands: Demands { with_ids: 1, slow: 1, events_per_second: 9, ..Demands::default() },
        interval_ms: 1_000,
        ping_ms: 20_000,
        cap: 10,
        visitors: 60,
        complete: BEGIN,
        ended: BEGIN + (SLOTS + 1) * 1_000 + 500,
        nodes: vec![NodeLog::default(); 3],
        ..Evidence::default()
    };
    for slot in 0..=SLOTS {
        let at = BEGIN + slot * 1_000;
        evidence.survivors.push(Survivor { id: format!("{at}-0"), number: None, slot: Some(at), epoch: Some(1) });
        for number in (slot * EVENTS_OF_SLOT..(slot + 1) * EVENTS_OF_SLOT).filter(|_| slot < SLOTS) {
            let number = Number::try_from(number).expect("small");
            let sent = event_time(number);
            let id = format!("{sent}-0");
            evidence.published.insert(number, Published { sent, accepted: Some((sent + 2, id)) });
        }
    }
    let mut numbers: Vec<Number> = evidence.published.keys().copied().collect();
    numbers.sort_unstable();
    let entries = numbers.iter().map(|number| Survivor {
        id: format!("{}-0", event_time(*number)),
        number: Some(*number),
        slot: None,
        epoch: None,
    });
    evidence.survivors.extend(entries);
    evidence.survivors.sort_by_key(|survivor| survivor.id.clone());
    evidence.sessions = (0..CLIENTS).map(|client| good_session(&evidence, client)).collect();
    for begun in [BEGIN + 2_000, BEGIN + 4_000, BEGIN + 6_000] {
        evidence.faults.push(FaultLog {
            kind: "test",
            what: "a test".to_owned(),
            part: Part::Gateway,
            cut_off: 3,
            loses: false,
            takes_from: begun,
            confirmed: "seen".to_owned(),
            begun,
            good: begun,
            over: begun + 1_500,
        });
    }
    evidence.attempts.push(Attempt { at: BEGIN + 3_000, open_until: None });
    for from in [BEGIN + 500, BEGIN + 9_500, BEGIN + 12_500] {
        evidence.rounds.push(Round {
            from,
            to: from + 50,
            left: from + 350,
            granted: 10,
            lost: 0,
            refused: 0,
            failed: 0,
        });
    }
    evidence
}

fn good_session(evidence: &Evidence, client: usize) -> Session {
    let shown = |at| Shown { visitors: 60, counted: at, stale: false };
    let ids = client == 0;
    let mut heard = vec![Heard { at: BEGIN + 10, id: None, what: What::Init(shown(BEGIN)) }];
    for survivor in &evidence.survivors[1..] {
        let id = ids.then(|| format!("{}-abcd", survivor.id));
        let what = match (survivor.number, survivor.slot) {
            (Some(number), _) => What::Event(number),
            (None, slot) => What::Update(shown(slot.expect("an event or a snapshot"))),
        };
        let written = survivor.number.map_or_else(|| survivor.slot.expect("as above"), event_time);
        heard.push(Heard { at: written + 5, id, what });
    }
    Session {
        client,
        node: client % 3,
        ids,
        pace: if client == 1 { Pace::Slow } else { Pace::Prompt },
        witness: false,
        crowded: (2..12).contains(&client),
        resumed: false,
        opened: BEGIN + 5,
        heard,
        closed: evidence.ended,
        end: Ending::Left,
    }
}

/// Spoils a good run, and checks that exactly these rules are found to be broken.
fn check(rules: &[&str], spoil: impl FnOnce(&mut Evidence)) -> Verdict {
    let mut evidence = good_run();
    spoil(&mut evidence);
    let verdict = audit(&evidence);
    let mut found: Vec<&str> = verdict.violations.iter().map(|violation| violation.rule).collect();
    found.dedup();
    assert_eq!(found, rules, "{:#?}", verdict.violations);
    verdict
}

fn place_of(session: &Session, what: impl Fn(&What) -> bool) -> usize {
    session.heard.iter().position(|heard| what(&heard.what)).expect("it was heard")
}

fn place_of_event(session: &Session, number: Number) -> usize {
    place_of(session, |what| *what == What::Event(number))
}

/// That client never gets these events.
fn withhold(evidence: &mut Evidence, client: usize, numbers: std::ops::Range<Number>) {
    let gone = |what: &What| matches!(what, What::Event(number) if numbers.contains(number));
    evidence.sessions[client].heard.retain(|heard| !gone(&heard.what));
}

/// Redis has forgotten these events.
fn lose(evidence: &mut Evidence, numbers: std::ops::Range<Number>) {
    evidence.survivors.retain(|survivor| survivor.number.is_none_or(|number| !numbers.contains(&number)));
    evidence.faults[1].loses = true;
}

/// An id of an event, as clients with ids see it.
fn id_of(number: Number) -> Option<String> {
    Some(format!("{}-0-abcd", event_time(number)))
}

/// That client is told of a gap right before it reads that event. Redis was away, or there would be no need for one.
fn announce(evidence: &mut Evidence, client: usize, before: Number, from: Option<String>, to: Option<String>) {
    let session = &mut evidence.sessions[client];
    let place = place_of_event(session, before);
    let at = session.heard[place].at;
    session.heard.insert(place, Heard { at, id: None, what: What::Gap { from, to } });
    let away = &mut evidence.faults[0];
    (away.part, away.begun, away.over) = (Part::Redis, BEGIN + 1_000, BEGIN + 5_500);
}

#[test]
fn nothing_is_wrong_where_nothing_went_wrong() {
    let verdict = check(&[], |_| {});
    assert_eq!((verdict.offered, verdict.accepted, verdict.delivered), (120, 120, 120 * CLIENTS));
    assert_eq!((verdict.gaps, verdict.lost_by_redis, verdict.closes), (0, 0, 0));
    assert_eq!(verdict.had.map(|had| had.refused), Some(1));
    assert!(verdict.recovery_ms.iter().all(|after| after.is_some_and(|after| after < 100)), "{verdict:?}");
}

// Inv. GAP
#[test]
fn an_event_that_is_missing_is_found_unless_it_was_announced() {
    check(&["unannounced loss"], |evidence| withhold(evidence, 0, 30..31));
    check(&["unannounced loss"], |evidence| withhold(evidence, 5, 119..120));
    let told = check(&[], |evidence| {
        withhold(evidence, 0, 30..33);
        announce(evidence, 0, 33, id_of(29), None);
    });
    assert_eq!((told.gaps, told.announced), (1, 3));
    // To an id that the client did not get.
    check(&[], |evidence| {
        withhold(evidence, 0, 30..33);
        announce(evidence, 0, 33, id_of(29), id_of(32));
    });
    // Announced too narrowly, at either end, or elsewhere.
    check(&["unannounced loss"], |evidence| {
        withhold(evidence, 0, 30..31);
        withhold(evidence, 0, 32..33);
        announce(evidence, 0, 33, id_of(31), None);
    });
    check(&["unannounced loss"], |evidence| {
        withhold(evidence, 0, 30..33);
        announce(evidence, 0, 33, id_of(29), id_of(31));
    });
    check(&["unannounced loss"], |evidence| {
        withhold(evidence, 0, 30..33);
        announce(evidence, 0, 60, id_of(55), None);
    });
    // Nothing before.
    check(&[], |evidence| {
        withhold(evidence, 0, 0..3);
        evidence.sessions[0].heard.retain(|heard| heard.at > event_time(2) || matches!(heard.what, What::Init(_)));
        announce(evidence, 0, 3, None, None);
    });
}

// Inv. GAP
#[test]
fn a_gap_covers_no_more_than_it_says() {
    let told = |evidence: &mut Evidence, from: Option<String>, to: Option<String>| {
        withhold(evidence, 0, 30..33);
        announce(evidence, 0, 33, from, to);
    };
    // From where it is not, or from nowhere although it has ids.
    check(&["wire", "unannounced loss"], |evidence| told(evidence, id_of(31), None));
    check(&["wire"], |evidence| told(evidence, Some("1-0-abcd".to_owned()), None));
    check(&["wire"], |evidence| told(evidence, None, None));
    // From what another gap has named, and from what was the past when it came.
    check(&[], |evidence| {
        told(evidence, id_of(29), id_of(31));
        announce(evidence, 0, 33, id_of(31), None);
    });
    check(&[], |evidence| {
        evidence.sessions[0].opened = event_time(32);
        evidence.sessions[0].heard.retain(|heard| heard.at > event_time(32));
        let what = What::Init(Shown { visitors: 60, counted: BEGIN + 4_000, stale: false });
        evidence.sessions[0].heard.insert(0, Heard { at: event_time(32) + 1, id: None, what });
        announce(evidence, 0, 33, id_of(31), None);
    });
    // An end that nobody has heard of: it covers what was written until it was told, and not what came later.
    let nowhere = || Some("9-0-abcd".to_owned());
    check(&[], |evidence| told(evidence, id_of(29), nowhere()));
    check(&["unannounced loss"], |evidence| {
        told(evidence, id_of(29), nowhere());
        withhold(evidence, 0, 60..61);
    });
    check(&["unannounced loss"], |evidence| {
        told(evidence, id_of(29), None);
        evidence.sessions[0].heard.retain(|heard| heard.id != id_of(20));
    });
}

// Inv. GAP
#[test]
fn what_stands_in_the_stream_is_due_whoever_was_told_so() {
    let unanswered = |evidence: &mut Evidence, client: usize, numbers: std::ops::Range<Number>| {
        withhold(evidence, client, numbers.clone());
        for number in numbers {
            evidence.published.get_mut(&number).expect("published").accepted = None;
        }
    };
    check(&["unannounced loss"], |evidence| unanswered(evidence, 0, 30..31));
    check(&["unannounced loss"], |evidence| unanswered(evidence, 4, 30..31));
    check(&[], |evidence| {
        unanswered(evidence, 0, 30..33);
        announce(evidence, 0, 33, id_of(29), None);
    });
    // It may have been written when the clients were gone; and it may not have been written at all.
    check(&[], |evidence| unanswered(evidence, 4, 119..120));
    check(&[], |evidence| {
        unanswered(evidence, 4, 30..31);
        evidence.survivors.retain(|survivor| survivor.number != Some(30));
        (0..CLIENTS).for_each(|client| withhold(evidence, client, 30..31));
    });
}

#[test]
fn a_gap_that_nothing_explains_is_found() {
    let announced = |evidence: &mut Evidence| {
        withhold(evidence, 0, 30..33);
        announce(evidence, 0, 33, id_of(29), None);
        evidence.faults[0].part = Part::Gateway;
    };
    check(&["needless gap"], announced);
    check(&["needless gap"], |evidence| {
        announced(evidence);
        (evidence.faults[2].part, evidence.faults[2].over) = (Part::Redis, BEGIN + 7_500);
    });
    check(&[], |evidence| {
        announced(evidence);
        evidence.nodes[0].frozen.push((BEGIN + 4_000, BEGIN + 4_500));
    });
}

// Inv. GAP: who has no ids is told of its own slowness by a second `init`, and the rest by those who have.
#[test]
fn clients_without_ids_are_judged_by_what_their_node_announced() {
    let init_again = |evidence: &mut Evidence, client: usize, before: Number| {
        let session = &mut evidence.sessions[client];
        let place = place_of_event(session, before);
        let at = session.heard[place].at;
        let counted = at - at % 1_000;
        let what = What::Init(Shown { visitors: 60, counted, stale: false });
        session.heard.insert(place, Heard { at, id: None, what });
    };
    check(&[], |evidence| {
        withhold(evidence, 1, 30..38);
        init_again(evidence, 1, 38);
    });
    check(&["unannounced loss"], |evidence| {
        withhold(evidence, 1, 30..40);
        init_again(evidence, 1, 60);
    });
    // Client 3 is on the same gateway as client 0, client 4 is not.
    let node_gap = |evidence: &mut Evidence, client: usize| {
        withhold(evidence, 0, 30..33);
        withhold(evidence, client, 30..33);
        announce(evidence, 0, 33, id_of(29), None);
    };
    check(&[], |evidence| node_gap(evidence, 3));
    check(&["unannounced loss"], |evidence| node_gap(evidence, 4));
    check(&["wire"], |evidence| announce(evidence, 3, 33, None, None));
    // What the other was told of its own: it was too slow, or it was away.
    let gone_alone = |evidence: &mut Evidence| {
        node_gap(evidence, 3);
        let session = &mut evidence.sessions[0];
        let place = place_of(session, |what| matches!(what, What::Gap { .. }));
        let Heard { at, .. } = session.heard[place];
        let what = What::Init(Shown { visitors: 60, counted: at - at % 1_000, stale: false });
        session.heard.insert(place, Heard { at, id: None, what });
    };
    check(&["unannounced loss"], gone_alone);
    check(&["unannounced loss"], |evidence| {
        withhold(evidence, 0, 30..33);
        withhold(evidence, 3, 30..33);
        announce(evidence, 0, 33, id_of(29), id_of(32));
    });
    // It was told so at another gateway, and came to this one later.
    check(&["unannounced loss"], |evidence| {
        node_gap(evidence, 3);
        let mut first = evidence.sessions[0].clone();
        let next = &mut evidence.sessions[0];
        let place = place_of_event(next, 60);
        first.heard.truncate(place);
        (first.node, first.closed, first.end) = (1, next.heard[place].at - 1, Ending::Broken);
        next.heard.drain(..place);
        let init = What::Init(Shown { visitors: 60, counted: BEGIN + 7_000, stale: false });
        next.heard.insert(0, Heard { at: first.closed + 1, id: None, what: init });
        (next.resumed, next.opened) = (true, first.closed + 1);
        evidence.nodes[1].killed = Some(first.closed);
        evidence.sessions.iter_mut().filter(|session| session.node == 1).for_each(|session| session.node = 2);
        evidence.sessions.insert(0, first);
    });
}

#[test]
fn what_was_under_way_when_a_socket_broke_is_nobodys_fault_but_what_came_before_is() {
    let break_off = |evidence: &mut Evidence, after: Number| {
        let node: Node = 2;
        let session = &mut evidence.sessions[14];
        let place = place_of_event(session, after);
        let at = session.heard[place].at;
        session.heard.truncate(place + 1);
        (session.closed, session.end) = (at + 1, Ending::Broken);
        let mut next = good_session(&good_run(), 14);
        next.opened = at + 2_000;
        next.heard.retain(|heard| heard.at > at + 2_000);
        let first = next.heard.iter().position(|heard| matches!(heard.what, What::Update(_))).expect("one comes");
        next.heard.drain(..first);
        if let What::Update(shown) = next.heard[0].what {
            next.heard[0].what = What::Init(shown);
        }
        evidence.sessions.push(next);
        evidence.nodes[node].killed = Some(at);
        // Its other clients are not at issue.
        for session in evidence.sessions.iter_mut().filter(|session| session.client != 14 && session.node == node) {
            session.node = 1;
        }
    };
    let verdict = check(&[], |evidence| break_off(evidence, 40));
    assert_eq!(verdict.closes, 1);
    check(&["unannounced loss"], |evidence| {
        break_off(evidence, 40);
        withhold(evidence, 14, 30..31);
    });
}

#[test]
fn what_redis_lost_is_counted_apart() {
    let verdict = check(&[], |evidence| {
        lose(evidence, 30..33);
        (0..CLIENTS).for_each(|client| withhold(evidence, client, 30..33));
    });
    assert_eq!((verdict.lost_by_redis, verdict.lost_unannounced), (3, 3));
    let verdict = check(&[], |evidence| {
        lose(evidence, 30..33);
        (0..CLIENTS).step_by(3).for_each(|client| withhold(evidence, client, 30..33));
        announce(evidence, 0, 33, id_of(29), None);
    });
    assert_eq!((verdict.lost_by_redis, verdict.lost_unannounced), (3, 0));
    // It stood there for seconds before Redis lost anything: all gateways had time to read it.
    let of_old = |evidence: &mut Evidence| {
        lose(evidence, 3..6);
        (0..CLIENTS).for_each(|client| withhold(evidence, client, 3..6));
    };
    check(&["unannounced loss"], of_old);
    let verdict = check(&[], |evidence| {
        of_old(evidence);
        evidence.faults[1].takes_from = BEGIN + 2_000;
    });
    assert_eq!(verdict.lost_unannounced, 3);
    check(&["unannounced loss"], |evidence| {
        of_old(evidence);
        (evidence.faults[0].loses, evidence.faults[0].over) = (true, event_time(3) - 1);
        (evidence.faults[0].begun, evidence.faults[0].good) = (BEGIN + 500, BEGIN + 500);
    });
    // Accepted, and never there: no fault has taken it, or only one that came before.
    let no_fault = |evidence: &mut Evidence, numbers: std::ops::Range<Number>| {
        lose(evidence, numbers.clone());
        (0..CLIENTS).for_each(|client| withhold(evidence, client, numbers.clone()));
    };
    check(&["accepted and gone"], |evidence| {
        no_fault(evidence, 30..33);
        evidence.faults[1].loses = false;
    });
    check(&["accepted and gone"], |evidence| no_fault(evidence, 60..61));
}

// Inv. GAP: what a gateway gave to one client it had read, whatever became of it at Redis, and owes to the others.
#[test]
fn what_one_client_got_another_of_the_same_gateway_has_to_get() {
    let passed_over = |evidence: &mut Evidence, client: usize, numbers: std::ops::Range<Number>| {
        // Redis loses everything that came until then, and all had been told all of it but for that client.
        lose(evidence, 0..35);
        withhold(evidence, client, numbers);
    };
    // With ids, slow, and neither.
    check(&["unannounced loss"], |evidence| passed_over(evidence, 0, 15..16));
    check(&["unannounced loss"], |evidence| passed_over(evidence, 1, 15..16));
    check(&["unannounced loss"], |evidence| passed_over(evidence, 33, 15..18));
    // Told of it.
    check(&[], |evidence| {
        passed_over(evidence, 0, 30..33);
        announce(evidence, 0, 33, id_of(29), None);
    });
    // Nobody else at that gateway has it: it may have been lost before it was read there.
    let only_elsewhere = |evidence: &mut Evidence| {
        lose(evidence, 30..33);
        (0..CLIENTS).step_by(3).for_each(|client| withhold(evidence, client, 30..33));
    };
    let verdict = check(&[], only_elsewhere);
    assert_eq!(verdict.lost_unannounced, 3);
    // Nobody who was there when it was sent.
    check(&[], |evidence| {
        passed_over(evidence, 33, 0..15);
        evidence.sessions[33].heard[0].at = event_time(14) + 1;
        evidence.sessions[33].heard.retain(|heard| heard.at > event_time(14));
    });
    // Under way when its socket broke.
    check(&[], |evidence| {
        passed_over(evidence, 33, 31..120);
        let (session, away) = (&mut evidence.sessions[33], event_time(31));
        session.heard.retain(|heard| heard.at < away);
        // It does not come again, so nobody waits for it.
        (session.closed, session.end, session.pace) = (away, Ending::Broken, Pace::Slow);
        evidence.nodes[0].killed = Some(away);
        let others = evidence.sessions.iter_mut().filter(|session| session.client != 33 && session.node == 0);
        others.for_each(|session| session.node = 1);
    });
}

// Inv. ORDER
#[test]
fn what_comes_twice_or_in_another_order_or_from_nobody_is_found() {
    check(&["duplicate"], |evidence| {
        let session = &mut evidence.sessions[4];
        let again = session.heard[place_of_event(session, 50)].clone();
        let place = place_of_event(session, 50) + 1;
        session.heard.insert(place, again);
    });
    // Redis lost the first entry, and the second stands there.
    let again = |evidence: &mut Evidence, first_id: &str| {
        let session = &mut evidence.sessions[0];
        let place = place_of_event(session, 50);
        let mut first = session.heard[place].clone();
        first.id = Some(first_id.to_owned());
        session.heard.insert(place - 3, first);
    };
    let verdict = check(&[], |evidence| {
        again(evidence, "1-0-abcd");
        evidence.faults[2].part = Part::Redis;
    });
    assert_eq!(verdict.redone, 1);
    // Without a fault at Redis between both, nothing can have lost it.
    check(&["duplicate", "one order"], |evidence| again(evidence, "1-0-abcd"));
    check(&["duplicate", "one order"], |evidence| {
        again(evidence, "1-0-abcd");
        evidence.faults[0].part = Part::Redis;
    });
    check(&["duplicate", "one order"], |evidence| {
        again(evidence, "1-0-abcd");
        evidence.survivors.insert(0, Survivor { id: "1-0".to_owned(), number: Some(50), slot: None, epoch: None });
    });
    check(&["one order"], |evidence| {
        let session = &mut evidence.sessions[4];
        let (one, other) = (place_of_event(session, 50), place_of_event(session, 51));
        session.heard.swap(one, other);
    });
    check(&["invented"], |evidence| {
        let heard = Heard { at: BEGIN + 5_000, id: None, what: What::Event(4_711) };
        evidence.sessions[4].heard.push(heard);
    });
    check(&["invented"], |evidence| {
        let what = What::Stranger("{}".to_owned());
        evidence.sessions[4].heard.push(Heard { at: BEGIN + 5_000, id: None, what });
    });
    check(&["init first"], |evidence| {
        evidence.sessions[4].heard.remove(0);
    });
}
