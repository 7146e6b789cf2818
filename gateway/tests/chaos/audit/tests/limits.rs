//! The cap, sockets that end, times to heal, and runs that prove nothing.

use super::*;
use crate::run::ms;
use crate::viewer::ATTEMPT_HELD;

// Inv. CAP
#[test]
fn an_eleventh_socket_is_found() {
    let eleventh = |evidence: &mut Evidence| {
        evidence.attempts.push(Attempt { at: BEGIN + 9_000, open_until: Some(BEGIN + 10_000) });
    };
    check(&["eleventh socket"], eleventh);
    // The end of another had not been read yet.
    check(&[], |evidence| {
        evidence.attempts.push(Attempt { at: BEGIN + 9_000, open_until: Some(BEGIN + 9_400) });
    });
    // The lab was late, and an end is read later still; but not that late.
    let late = |evidence: &mut Evidence, until: Ms| {
        evidence.stall_ms = 1_000;
        evidence.attempts.push(Attempt { at: BEGIN + 9_000, open_until: Some(until) });
    };
    check(&[], |evidence| late(evidence, BEGIN + 10_400));
    check(&["eleventh socket"], |evidence| late(evidence, BEGIN + 10_600));
    // Each gateway goes by its own count while Redis is away, and until all have settled, but no longer.
    let redis_away = |evidence: &mut Evidence, over: Ms| {
        eleventh(evidence);
        let fault = &mut evidence.faults[2];
        (fault.part, fault.begun, fault.good, fault.over) = (Part::Redis, over - 1_500, over - 1_500, over);
    };
    check(&[], |evidence| redis_away(evidence, BEGIN + 7_500));
    check(&["eleventh socket"], |evidence| redis_away(evidence, BEGIN + 5_000));
    // However long the lab looked on: from when Redis was there again.
    check(&["eleventh socket"], |evidence| {
        redis_away(evidence, BEGIN + 3_500);
        evidence.faults[2].over = BEGIN + 9_500;
    });
    check(&["too small a run"], |evidence| evidence.attempts.clear());
}

// Inv. CAP: whatever the lab was late by in a run that counts, an eleventh socket that is granted and held can be found.
#[test]
fn an_eleventh_socket_is_found_in_the_latest_lab_that_counts() {
    let verdict = check(&["eleventh socket"], |evidence| {
        evidence.stall_ms = 1_500;
        let open_until = Some(BEGIN + 9_000 + ms(ATTEMPT_HELD));
        evidence.attempts.push(Attempt { at: BEGIN + 9_000, open_until });
    });
    assert!(verdict.void.is_empty(), "{:?}", verdict.void);
}

// Inv. CAP: who has lost Redis goes by its own count, and nobody else.
#[test]
fn only_who_was_cut_off_goes_by_its_own_count() {
    // Beside the ten.
    let more = |evidence: &mut Evidence, cut_off: usize, more: usize| {
        let (at, open_until) = (BEGIN + 6_500, Some(BEGIN + 7_900));
        (evidence.faults[2].part, evidence.faults[2].cut_off) = (Part::Redis, cut_off);
        evidence.attempts.extend(vec![Attempt { at, open_until }; more]);
    };
    check(&[], |evidence| more(evidence, 1, 10));
    check(&["eleventh socket"], |evidence| more(evidence, 1, 11));
    check(&[], |evidence| more(evidence, 3, 20));
    check(&["eleventh socket"], |evidence| more(evidence, 3, 21));
}

// Inv. CAP
#[test]
fn a_cap_that_was_only_seen_to_hold_in_disturbed_times_proves_nothing() {
    let refused = |at: Ms| {
        check(&[], |evidence| {
            (evidence.faults[1].part, evidence.attempts[0].at) = (Part::Redis, at);
        })
    };
    let during = refused(BEGIN + 4_500);
    assert_eq!((during.void.len(), during.had.map(|had| (had.refused, had.refused_undisturbed))), (1, Some((1, 0))));
    assert_eq!(refused(BEGIN + 3_000).void.len(), 0);
}

#[test]
fn sockets_that_end_and_gateways_that_die_without_reason_are_found() {
    check(&["healthy socket closed"], |evidence| evidence.sessions[20].end = Ending::Closed(1011));
    // Over the cap is a reason while and right after Redis was away, and for the crowded address alone.
    let over_cap = |evidence: &mut Evidence, client: usize, part: Part| {
        evidence.sessions[client].end = Ending::Closed(1013);
        (evidence.faults[2].part, evidence.sessions[client].closed) = (part, BEGIN + 6_800);
        evidence.sessions[client].heard.retain(|heard| heard.at <= BEGIN + 6_800);
        // It came again.
        let mut again = good_session(evidence, client);
        again.opened = BEGIN + 6_900;
        let init = Shown { visitors: 60, counted: BEGIN + 6_000, stale: false };
        again.heard.retain(|heard| heard.at > BEGIN + 6_900);
        again.heard.insert(0, Heard { at: BEGIN + 6_900, id: None, what: What::Init(init) });
        evidence.sessions.push(again);
    };
    check(&[], |evidence| over_cap(evidence, 4, Part::Redis));
    check(&["healthy socket closed"], |evidence| over_cap(evidence, 4, Part::Gateway));
    check(&["healthy socket closed"], |evidence| over_cap(evidence, 20, Part::Redis));
    check(&["gateway died"], |evidence| evidence.nodes[1].ended_by_itself = true);
}

// Client 1 reads slowly: that costs events, and never the socket.
#[test]
fn a_slow_reader_that_is_closed_is_found_unless_it_was_silent_for_too_long() {
    let closed = |evidence: &mut Evidence, ping: Option<(Ms, Ms)>, end: Ending| {
        let session = &mut evidence.sessions[1];
        session.end = end;
        if let Some((sent, read)) = ping {
            let place = session.heard.partition_point(|heard| heard.at <= read);
            session.heard.insert(place, Heard { at: read, id: None, what: What::Ping(sent) });
        }
    };
    let (no_pong, end) = (Ending::Closed(4408), BEGIN + 13_400);
    // Nobody asked it, or it answered.
    check(&["healthy socket closed"], |evidence| closed(evidence, None, no_pong));
    check(&["healthy socket closed"], |evidence| closed(evidence, Some((BEGIN + 4_000, end)), no_pong));
    check(&["healthy socket closed"], |evidence| closed(evidence, Some((BEGIN + 2_000, BEGIN + 11_000)), no_pong));
    check(&[], |evidence| closed(evidence, Some((BEGIN + 3_000, end)), no_pong));
    // The close frame itself was lost, with the ping.
    check(&[], |evidence| closed(evidence, None, Ending::Broken));
    check(&["healthy socket closed"], |evidence| {
        closed(evidence, Some((BEGIN + 2_000, BEGIN + 2_005)), Ending::Broken)
    });
    // There is no other reason.
    check(&["healthy socket closed"], |evidence| closed(evidence, Some((BEGIN + 3_000, end)), Ending::Closed(1011)));
    // Who reads promptly has none at all.
    check(&["healthy socket closed"], |evidence| {
        closed(evidence, Some((BEGIN + 3_000, end)), no_pong);
        evidence.sessions[1].pace = Pace::Prompt;
        evidence.demands.slow = 0;
    });
}

// Inv. CAP
#[test]
fn a_place_that_is_not_given_back_is_found() {
    let leaked = |evidence: &mut Evidence| {
        (evidence.rounds[2].granted, evidence.rounds[2].refused) = (9, 1);
    };
    check(&["places leaked"], leaked);
    // So is one that was granted and taken back at once, unless its gateway was killed just then; and one that nobody
    // granted for a reason that is none.
    check(&["places leaked"], |evidence| evidence.rounds[2].lost = 1);
    check(&[], |evidence| {
        evidence.rounds[2].lost = 1;
        evidence.nodes.push(NodeLog { killed: Some(evidence.rounds[2].to + 100), ..NodeLog::default() });
    });
    check(&["turned away"], |evidence| {
        (evidence.rounds[2].granted, evidence.rounds[2].failed) = (9, 1);
    });
    // A gateway that was killed holds its places until its lease has run out, and no longer.
    let killed = |evidence: &mut Evidence, at: Ms| {
        leaked(evidence);
        evidence.nodes.push(NodeLog { killed: Some(at), ..NodeLog::default() });
    };
    check(&[], |evidence| killed(evidence, BEGIN + 2_000));
    check(&["places leaked"], |evidence| killed(evidence, BEGIN + 800));
    let none = |spoil: fn(&mut Evidence)| check(&[], spoil).void.len();
    assert_eq!(none(|evidence| evidence.rounds.truncate(1)), 1);
    assert_eq!(none(|evidence| evidence.rounds.iter_mut().for_each(|round| round.granted = 9)), 1);
}

#[test]
fn a_client_that_hears_no_heartbeat_is_found() {
    check(&["heartbeat"], |evidence| evidence.ping_ms = 9_000);
    let pings = |evidence: &mut Evidence| {
        evidence.ping_ms = 9_000;
        for session in &mut evidence.sessions {
            session.heard.insert(30, Heard { at: BEGIN + 9_000, id: None, what: What::Ping(BEGIN + 9_000) });
        }
    };
    check(&[], pings);
    check(&["heartbeat"], |evidence| {
        pings(evidence);
        evidence.sessions[20].heard.remove(30);
    });
    // A gateway that is stopped cannot, and slow readers do not look.
    check(&[], |evidence| {
        pings(evidence);
        evidence.sessions[20].heard.remove(30);
        evidence.nodes[2].frozen.push((BEGIN + 500, BEGIN + 4_000));
    });
    check(&[], |evidence| {
        pings(evidence);
        evidence.sessions[1].heard.remove(30);
    });
}

#[test]
fn what_heals_too_late_is_found() {
    let dead_from = |evidence: &mut Evidence, client: usize, from: Ms| {
        // Flagged in time, but fresh only eleven seconds after the beginning.
        let session = &mut evidence.sessions[client];
        for heard in &mut session.heard {
            if let What::Update(shown) = &mut heard.what
                && (from..BEGIN + 11_000).contains(&heard.at)
            {
                (shown.counted, shown.stale) = (BEGIN + 1_000, true);
            }
        }
    };
    check(&["not healed in time"], |evidence| dead_from(evidence, 20, BEGIN + 3_000));
    // So does a witness tell, unless its gateway was killed before it had to have healed.
    let witness = |evidence: &mut Evidence, killed: Option<Ms>| {
        dead_from(evidence, 20, BEGIN + 3_000);
        evidence.sessions[20].witness = true;
        evidence.demands.clients -= 1;
        evidence.nodes[evidence.sessions[20].node].killed = killed;
    };
    check(&["not healed in time"], |evidence| witness(evidence, None));
    check(&[], |evidence| witness(evidence, Some(BEGIN + 9_900)));
    // Those who share an address heal like everybody, but where a gateway was killed: who waits for a place of its has to
    // wait for its lease to run out, and no longer.
    check(&["places leaked"], |evidence| dead_from(evidence, 4, BEGIN + 3_000));
    let killed = |evidence: &mut Evidence, fault: usize, from: Ms| {
        dead_from(evidence, 4, from);
        evidence.nodes.push(NodeLog { killed: Some(evidence.faults[fault].begun), ..NodeLog::default() });
    };
    check(&[], |evidence| killed(evidence, 1, BEGIN + 3_000));
    check(&["places leaked"], |evidence| killed(evidence, 2, BEGIN + 3_000));
    check(&["places leaked"], |evidence| killed(evidence, 0, BEGIN + 1_500));
}

#[test]
fn a_run_that_proves_nothing_is_void() {
    let void = |spoil: fn(&mut Evidence)| check(&[], spoil).void.len();
    assert_eq!(void(|_| {}), 0);
    assert_eq!(void(|evidence| evidence.faults[1].confirmed.clear()), 1);
    assert_eq!(void(|evidence| evidence.stall_ms = 5_000), 1);
    check(&["too small a run"], |evidence| evidence.faults.truncate(2));
    assert_eq!(void(|evidence| evidence.demands.events_per_second = 50), 1);
}

// A run ends where something did not heal: that is found, what came to no rest is not held against it, and it does not
// pass for one in which all was well.
#[test]
fn a_run_that_was_cut_short_is_judged_by_what_it_has_shown() {
    let cut_short = |evidence: &mut Evidence| {
        evidence.cut_short = Some("the second fault had not healed".to_owned());
        evidence.faults.truncate(2);
        evidence.attempts.clear();
        evidence.ended = BEGIN + 9_250;
        for session in &mut evidence.sessions {
            session.heard.retain(|heard| heard.at <= BEGIN + 9_250);
            session.closed = BEGIN + 9_250;
            // What was under way then.
            session.heard.truncate(session.heard.len() - session.client % 3);
        }
    };
    assert_eq!(check(&[], cut_short).void.len(), 1);
    let unhealed = check(&["not healed in time"], |evidence| {
        cut_short(evidence);
        for heard in &mut evidence.sessions[20].heard {
            if let What::Update(shown) = &mut heard.what
                && heard.at > BEGIN + 2_000
            {
                (shown.counted, shown.stale) = (BEGIN + 1_000, true);
            }
        }
    });
    assert!(unhealed.void.is_empty(), "{:?}", unhealed.void);
    check(&["unannounced loss"], |evidence| {
        cut_short(evidence);
        withhold(evidence, 0, 30..31);
    });
}
