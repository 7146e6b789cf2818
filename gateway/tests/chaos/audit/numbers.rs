//! The number of visitors: one snapshot for each slot, never an old one that looks fresh, never too many.

use super::{Bounds, Verdict};
use crate::evidence::{Ending, Evidence, Ms, Pace, Session, Shown, What};

pub(super) fn check(evidence: &Evidence, bounds: Bounds, verdict: &mut Verdict) {
    verdict.detection_ms = vec![0; evidence.faults.len()];
    for session in &evidence.sessions {
        check_slots(evidence, session, verdict);
        check_count(evidence, session, verdict);
        // Who reads late sees late what was fresh when it was sent.
        if session.pace == Pace::Prompt {
            check_flags(session, bounds, verdict);
            check_silence(evidence, session, bounds, verdict);
        }
    }
    check_stream(evidence, verdict);
    check_truth(evidence, verdict);
}

/// What is shown as the state, and when it was read.
fn states(session: &Session) -> impl Iterator<Item = (Ms, Shown)> {
    session.heard.iter().filter_map(|heard| match heard.what {
        What::Init(shown) | What::Update(shown) => Some((heard.at, shown)),
        _ => None,
    })
}

/// Each slot once, and no slot after a later one. A flagged repetition is no snapshot.
// Inv. SLOT
fn check_slots(evidence: &Evidence, session: &Session, verdict: &mut Verdict) {
    let mut newest = None;
    for heard in &session.heard {
        let (shown, is_update) = match heard.what {
            What::Init(shown) => (shown, false),
            What::Update(shown) => (shown, true),
            _ => continue,
        };
        let slot = shown.counted / evidence.interval_ms.max(1);
        if is_update && !shown.stale && newest.is_some_and(|newest| slot <= newest) {
            let what = format!("client {} on gateway {}: {shown:?} at {}", session.client, session.node, heard.at);
            verdict.violation("one snapshot per slot", what);
        }
        newest = newest.max(Some(slot));
    }
}

/// A message with an old number says so.
fn check_flags(session: &Session, bounds: Bounds, verdict: &mut Verdict) {
    for (at, shown) in states(session).filter(|(_, shown)| !shown.stale) {
        let age = at.saturating_sub(shown.counted);
        if age > bounds.stale_ms + bounds.slack_ms {
            let what = format!(
                "client {} on gateway {} was shown a number {age} ms old as a fresh one",
                session.client, session.node
            );
            verdict.violation("unflagged stale number", what);
        }
    }
}

/// A number that is not refreshed is flagged in time, and who has just come is told one. A gateway that was stopped could
/// not say so: its sleep does not count, but what it says afterwards does.
fn check_silence(evidence: &Evidence, session: &Session, bounds: Bounds, verdict: &mut Verdict) {
    // A viewer who left, or whose gateway closed the socket, sees no number any more.
    let news: Vec<Ms> =
        [session.opened].into_iter().chain(states(session).map(|(at, _)| at)).chain([session.closed]).collect();
    for pair in news.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let asleep = evidence.nodes[session.node].asleep(from, to);
        let silence = to.saturating_sub(from).saturating_sub(asleep);
        for (fault, detection) in evidence.faults.iter().zip(&mut verdict.detection_ms) {
            if asleep == 0 && to > fault.begun && from < fault.over {
                *detection = (*detection).max(silence);
            }
        }
        if silence > bounds.stale_ms + bounds.slack_ms {
            let what = format!(
                "client {} on gateway {} was told nothing about its number for {silence} ms",
                session.client, session.node
            );
            verdict.violation("unflagged stale number", what);
        }
    }
}

/// Nobody is ever counted twice, and nobody is forgotten: all visitors are known, none leaves for longer than the window,
/// and whatever Redis loses, the first number that is counted after that has all those who stayed.
fn check_count(evidence: &Evidence, session: &Session, verdict: &mut Verdict) {
    for (_, shown) in states(session) {
        // Timestamps are whole seconds: that of a number may be of before it was counted, never of after.
        let complete = shown.counted > evidence.complete;
        if shown.visitors > evidence.visitors || (complete && shown.visitors < evidence.visitors) {
            let what = format!(
                "client {} on gateway {} was shown {} visitors, counted at {}; there are {}",
                session.client, session.node, shown.visitors, shown.counted, evidence.visitors
            );
            verdict.violation("wrong number", what);
        }
    }
}

/// In the end, the number is the true one again.
fn check_truth(evidence: &Evidence, verdict: &mut Verdict) {
    if evidence.cut_short.is_some() {
        return;
    }
    let stayed = evidence.sessions.iter().filter(|session| session.end == Ending::Left);
    for session in stayed.filter(|session| session.pace == Pace::Prompt) {
        let last = states(session).last().map(|(_, shown)| shown);
        if last.is_none_or(|shown| shown.stale || shown.visitors != evidence.visitors) {
            let what = format!(
                "client {} on gateway {} was last shown {last:?}; there are {} visitors",
                session.client, session.node, evidence.visitors
            );
            verdict.violation("wrong number", what);
        }
    }
}

/// The stream itself has one snapshot for each slot.
// Inv. SLOT
fn check_stream(evidence: &Evidence, verdict: &mut Verdict) {
    let slots: Vec<u64> = evidence.survivors.iter().filter_map(|survivor| survivor.slot).collect();
    for pair in slots.windows(2) {
        if pair[1] <= pair[0] {
            verdict.violation("one snapshot per slot", format!("in the stream, slot {} follows {}", pair[1], pair[0]));
        }
    }
    // Inv. FENCE: who was replaced writes nothing any more.
    let epochs: Vec<u64> = evidence.survivors.iter().filter_map(|survivor| survivor.epoch).collect();
    for pair in epochs.windows(2).filter(|pair| pair[1] < pair[0]) {
        verdict
            .violation("fence", format!("in the stream, a snapshot of reign {} follows one of {}", pair[1], pair[0]));
    }
}
