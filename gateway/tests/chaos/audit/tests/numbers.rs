//! Numbers: one of each slot, flagged when it is old, in time, and right.

use super::*;

// Inv. SLOT
#[test]
fn a_second_snapshot_of_a_slot_is_found() {
    check(&["one snapshot per slot"], |evidence| {
        let session = &mut evidence.sessions[4];
        let place = place_of(session, |what| matches!(what, What::Update(shown) if shown.counted == BEGIN + 5_000));
        let mut again = session.heard[place].clone();
        again.at += 300;
        session.heard.insert(place + 4, again);
    });
    // A repetition that is flagged is none.
    check(&[], |evidence| {
        let session = &mut evidence.sessions[4];
        let what = What::Update(Shown { visitors: 60, counted: BEGIN + 5_000, stale: true });
        let place = place_of_event(session, 45);
        let at = session.heard[place].at;
        session.heard.insert(place, Heard { at, id: None, what });
    });
    check(&["one snapshot per slot"], |evidence| {
        let twice = evidence.survivors.iter().rfind(|survivor| survivor.slot.is_some()).expect("snapshots").clone();
        evidence.survivors.push(twice);
    });
}

// Inv. FENCE
#[test]
fn a_snapshot_of_a_ticker_that_was_replaced_is_found() {
    let reign = |evidence: &mut Evidence, at: usize, epoch: u64| {
        let mut snapshots = evidence.survivors.iter_mut().filter(|survivor| survivor.slot.is_some());
        snapshots.nth(at).expect("snapshots").epoch = Some(epoch);
    };
    check(&["fence"], |evidence| reign(evidence, 4, 2));
    check(&[], |evidence| (4..=12).for_each(|at| reign(evidence, at, 2)));
}

#[test]
fn an_old_number_that_looks_fresh_is_found() {
    // Snapshots stay away for four seconds, and nobody says so.
    let silence = |evidence: &mut Evidence| {
        let late = |what: &What| matches!(what, What::Update(shown) if (BEGIN + 4_000..BEGIN + 8_000).contains(&shown.counted));
        evidence.sessions[4].heard.retain(|heard| !late(&heard.what));
    };
    check(&["unflagged stale number"], silence);
    let flagged = check(&[], |evidence| {
        silence(evidence);
        let session = &mut evidence.sessions[4];
        let what = What::Update(Shown { visitors: 60, counted: BEGIN + 3_000, stale: true });
        let place = place_of_event(session, 50);
        let at = session.heard[place].at;
        session.heard.insert(place, Heard { at, id: None, what });
    });
    assert!(flagged.detection_ms[1] > 2_500, "{:?}", flagged.detection_ms);
    // A gateway that is stopped can say nothing, but may not tell old news afterwards.
    let asleep = |evidence: &mut Evidence| {
        silence(evidence);
        evidence.nodes[1].frozen.push((BEGIN + 3_500, BEGIN + 7_500));
    };
    check(&[], asleep);
    check(&["unflagged stale number"], |evidence| {
        asleep(evidence);
        let session = &mut evidence.sessions[4];
        let what = What::Update(Shown { visitors: 60, counted: BEGIN + 4_000, stale: false });
        let place = place_of_event(session, 69);
        session.heard.insert(place, Heard { at: BEGIN + 7_990, id: None, what });
    });
}

#[test]
fn a_client_that_comes_and_is_told_no_number_is_found() {
    let waits = |evidence: &mut Evidence, until: Ms| {
        let session = &mut evidence.sessions[4];
        session.heard.retain(|heard| heard.at > until && !matches!(heard.what, What::Init(_)));
        let init = Shown { visitors: 60, counted: until, stale: false };
        session.heard.insert(0, Heard { at: until, id: None, what: What::Init(init) });
    };
    check(&[], |evidence| waits(evidence, BEGIN + 2_500));
    check(&["unflagged stale number"], |evidence| waits(evidence, BEGIN + 4_500));
}

#[test]
fn a_number_that_is_too_high_or_too_low_is_found() {
    check(&["wrong number"], |evidence| {
        let session = &mut evidence.sessions[4];
        let place = place_of(session, |what| matches!(what, What::Update(_)));
        session.heard[place].what = What::Update(Shown { visitors: 61, counted: BEGIN + 1_000, stale: false });
    });
    check(&["wrong number"], |evidence| {
        let session = &mut evidence.sessions[4];
        let last = session.heard.iter_mut().rfind(|heard| matches!(heard.what, What::Update(_)));
        last.expect("snapshots").what =
            What::Update(Shown { visitors: 59, counted: BEGIN + SLOTS * 1_000, stale: false });
    });
    // One snapshot after a loss of data that has forgotten somebody, and then all are there again. It is forgiven before
    // all have come alone.
    let one_is_forgotten = |evidence: &mut Evidence| {
        for heard in evidence.sessions.iter_mut().flat_map(|session| &mut session.heard) {
            if let What::Update(shown) = &mut heard.what
                && shown.counted == BEGIN + 4_000
            {
                shown.visitors = 59;
            }
        }
    };
    check(&["wrong number"], one_is_forgotten);
    check(&[], |evidence| {
        one_is_forgotten(evidence);
        evidence.complete = BEGIN + 4_100;
    });
}
