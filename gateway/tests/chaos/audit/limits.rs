//! The cap of an address, sockets that must stay open, times to heal, and whether the run was worth its name.

use std::collections::{HashMap, HashSet};

use super::{Bounds, CROWD_BACK_MS, RECOVERY_MS, Verdict};
use crate::evidence::{Demands, Ending, Evidence, FaultLog, Ms, NodeLog, Pace, Part, Round, Session, What};

/// Where the lab itself was later than this, what it saw says too little of the gateways.
const STALL_MAX_MS: Ms = 1_500;
/// A `ping` is due within a second after its time (docs/PROTOCOL.md); one that waits for a snapshot to ride with, a bit later.
const PING_GRACE_MS: Ms = 1_500;
/// A socket whose ping is not answered within this is closed (docs/PROTOCOL.md). Pings tell whole seconds and may leave a bit
/// before their time, to ride with a snapshot.
const PONG_TIMEOUT_MS: Ms = 10_000;
const PONG_GRACE_MS: Ms = 500;
/// A socket that is over the cap for less than this, and what the lab was late by, may be one whose end has not been read
/// yet; or one of a gateway that had no answer of Redis in time, on a busy machine, and takes back what it has admitted.
const OVERLAP_MS: Ms = 500;
/// An eleventh socket that lasts longer is one in every run that is not void.
pub(crate) const EXCUSED_OVERLAP_MS: Ms = OVERLAP_MS + STALL_MAX_MS;
/// After an outage of Redis, or of a gateway that slept longer than its lease, nodes have entered anew, and closed what
/// is over the cap, within this where nothing shows that it takes longer.
const SETTLED_MS: Ms = 3_000;
/// A gateway that is killed sooner after a fault need not have healed before.
const WITNESSED_MS: Ms = RECOVERY_MS + 2_000;

pub(super) fn check(evidence: &Evidence, bounds: Bounds, verdict: &mut Verdict) {
    check_closes(evidence, bounds, verdict);
    check_pings(evidence, bounds, verdict);
    check_healing(evidence, bounds, verdict);
    check_cap(evidence, bounds, verdict);
    check_rounds(evidence, bounds, verdict);
    check_size(evidence, bounds, verdict);
}

/// A run that was less than it had to be proves nothing, whatever it found.
fn check_size(evidence: &Evidence, bounds: Bounds, verdict: &mut Verdict) {
    let viewers = || evidence.sessions.iter().filter(|session| !session.witness);
    let clients = |kind: &dyn Fn(&Session) -> bool| {
        viewers().filter(|session| kind(session)).map(|session| session.client).collect::<HashSet<_>>().len()
    };
    let disturbances = disturbances(evidence, bounds);
    let had = Demands {
        gateways: evidence.nodes.len(),
        clients: clients(&|_| true),
        with_ids: clients(&|session| session.ids),
        slow: clients(&|session| session.pace == Pace::Slow),
        events_per_second: events_per_second(evidence),
        faults: evidence.faults.iter().filter(|fault| !fault.confirmed.is_empty()).count(),
        refused: refused(evidence).count(),
        refused_undisturbed: refused(evidence).filter(|at| !disturbed(&disturbances, *at, *at)).count(),
        rounds: undisturbed(evidence, bounds).count(),
    };
    let least = evidence.demands;
    let enough = had.gateways >= least.gateways
        && had.clients >= least.clients
        && had.with_ids >= least.with_ids
        && had.slow >= least.slow
        && evidence.faults.len() >= least.faults
        && had.refused >= least.refused;
    verdict.had = Some(had);
    for fault in evidence.faults.iter().filter(|fault| fault.confirmed.is_empty()) {
        verdict.void.push(format!("{}: its effect was not seen", fault.what));
    }
    if had.events_per_second < least.events_per_second {
        verdict.void.push(format!("{} events a second were offered", had.events_per_second));
    }
    if evidence.cut_short.is_none() && had.rounds < least.rounds {
        verdict.void.push("no round of the busy address was undisturbed".to_owned());
    }
    if evidence.cut_short.is_none() && had.refused_undisturbed < least.refused_undisturbed {
        verdict.void.push("no eleventh socket was refused while nothing was disturbed".to_owned());
    }
    if evidence.stall_ms > STALL_MAX_MS {
        verdict.void.push(format!("the lab was late by {} ms", evidence.stall_ms));
    }
    match &evidence.cut_short {
        // It is small because something was wrong, and that must show.
        Some(why) if verdict.violations.is_empty() => verdict.void.push(format!("cut short: {why}")),
        Some(_) => {}
        None if enough => {}
        None => verdict.violation("too small a run", format!("{had:?}; asked for are {least:?}")),
    }
}

/// When an eleventh socket was refused.
fn refused(evidence: &Evidence) -> impl Iterator<Item = Ms> {
    evidence.attempts.iter().filter(|attempt| attempt.open_until.is_none()).map(|attempt| attempt.at)
}

/// How many events were offered, on average, while no fault lasted: who waits for a dead Redis offers less.
fn events_per_second(evidence: &Evidence) -> u64 {
    let lasts = |at: &Ms| evidence.faults.iter().any(|fault| (fault.begun..fault.good).contains(at));
    let sent = || evidence.published.values().map(|event| event.sent);
    let (first, last) = (sent().min().unwrap_or(0), sent().max().unwrap_or(0));
    let faulty: Ms = evidence.faults.iter().map(|fault| fault.good - fault.begun).sum();
    let offered = sent().filter(|at| !lasts(at)).count() as u64;
    offered * 1_000 / (last - first).saturating_sub(faulty).max(1)
}

/// A client's socket ends with its gateway, or when it leaves; a slow reader's also where it really was silent; the crowded address's also for the cap, while and
/// right after each gateway had to go by its own count.
fn check_closes(evidence: &Evidence, bounds: Bounds, verdict: &mut Verdict) {
    let unsettled = unsettled(evidence, bounds);
    for (node, log) in evidence.nodes.iter().enumerate() {
        if log.ended_by_itself {
            verdict.violation("gateway died", format!("gateway {node} ended, and nobody had ended it"));
        }
    }
    for session in evidence.sessions.iter().filter(|session| session.end != Ending::Left) {
        verdict.closes += 1;
        let of_its_gateway = evidence.nodes[session.node].killed.is_some_and(|at| at <= session.closed);
        let disturbed = unsettled.iter().any(|unsettled| (unsettled.from..unsettled.to).contains(&session.closed));
        // Where Redis does not answer in time, which needs no fault on a busy machine, a gateway admits by its own count,
        // and takes that back when it has the answer.
        let preliminary = session.closed < session.opened + SETTLED_MS;
        let over_cap = session.crowded && session.end == Ending::Closed(1013) && (disturbed || preliminary);
        if !of_its_gateway && !over_cap && !answered_too_late(evidence, session) {
            let what = format!(
                "client {} on gateway {} was closed at {}: {:?}",
                session.client, session.node, session.closed, session.end
            );
            verdict.violation("healthy socket closed", what);
        }
    }
}

/// Whether it is a slow reader that did not answer a ping in time. To read slowly costs events, and never the socket; but
/// its pauses are short and nevertheless a ping may wait in the kernel's buffers for longer, behind all that was not read.
fn answered_too_late(evidence: &Evidence, session: &Session) -> bool {
    let late = |sent: Ms, read: Ms| read + PONG_GRACE_MS >= sent + PONG_TIMEOUT_MS;
    let last = session.heard.iter().rev().find_map(|heard| match heard.what {
        What::Ping(sent) => Some((sent, heard.at)),
        _ => None,
    });
    session.pace == Pace::Slow
        && match (session.end, last) {
            // It reads everything that comes before the close frame, so also the ping that it is about.
            (Ending::Closed(4408), last) => last.is_some_and(|(sent, read)| late(sent, read)),
            // Nor did it read that the socket was closed: what it had not read by then was lost. One ping was, if need be.
            (Ending::Broken, Some((sent, read))) => late(sent, read) || late(sent + evidence.ping_ms, session.closed),
            (Ending::Broken, None) => late(session.opened, session.closed),
            _ => false,
        }
}

/// Heartbeats go on whatever fails: a client that hears none takes its connection for dead. What comes while a gateway
/// is stopped waits; its sleep does not count.
fn check_pings(evidence: &Evidence, bounds: Bounds, verdict: &mut Verdict) {
    for session in evidence.sessions.iter().filter(|session| session.pace == Pace::Prompt) {
        let pings = session.heard.iter().filter(|heard| matches!(heard.what, What::Ping(_))).map(|heard| heard.at);
        let times: Vec<Ms> = [session.opened].into_iter().chain(pings).chain([session.closed]).collect();
        for pair in times.windows(2) {
            let asleep = evidence.nodes[session.node].asleep(pair[0], pair[1]);
            let silence = pair[1].saturating_sub(pair[0]).saturating_sub(asleep);
            if silence > evidence.ping_ms + PING_GRACE_MS + bounds.slack_ms {
                let what = format!(
                    "client {} on gateway {} got no ping for {silence} ms; one was due after {} ms",
                    session.client, session.node, evidence.ping_ms
                );
                verdict.violation("heartbeat", what);
            }
        }
    }
}

fn check_healing(evidence: &Evidence, bounds: Bounds, verdict: &mut Verdict) {
    for fault in &evidence.faults {
        let recovered = healed(evidence, fault.good, |session| !session.crowded);
        let crowd = healed(evidence, fault.good, |session| session.crowded);
        verdict.recovery_ms.push(recovered);
        verdict.crowd_ms.push(crowd);
        if recovered.is_none_or(|after| after > RECOVERY_MS + bounds.slack_ms) {
            verdict.violation("not healed in time", format!("{}: {recovered:?} ms", fault.what));
        }
        // Who waits for a place of a dead gateway's has to wait for its lease to run out.
        let killed = |node: &NodeLog| node.killed.is_some_and(|at| (fault.begun..=fault.over).contains(&at));
        let within = if evidence.nodes.iter().any(killed) { CROWD_BACK_MS } else { RECOVERY_MS };
        if crowd.is_none_or(|after| after > within + bounds.slack_ms) {
            let what = format!("{}: sockets of one address were all live again after {crowd:?} ms", fault.what);
            verdict.violation("places leaked", what);
        }
    }
}

/// How long after `good` the last of these clients saw a number that was counted, and an event that was sent, after
/// that; none if one of them never did. That is later than when the system was well: the number has to be counted, the
/// event to be sent, and both to be read. Slow readers do not count, as they choose when they see it. A witness counts
/// where its gateway ran when the fault was over, and was let live for as long as healing may take.
fn healed(evidence: &Evidence, good: Ms, concerned: impl Fn(&Session) -> bool) -> Option<Ms> {
    let mut by_client: HashMap<usize, Option<Ms>> = HashMap::new();
    let lived = |session: &Session| {
        session.opened <= good && evidence.nodes[session.node].killed.is_none_or(|at| at > good + WITNESSED_MS)
    };
    let prompt =
        evidence.sessions.iter().filter(|session| session.pace == Pace::Prompt && (!session.witness || lived(session)));
    for session in prompt.filter(|session| concerned(session)) {
        let healed = by_client.entry(session.client).or_default();
        *healed = healed.or_else(|| healed_in(evidence, session, good));
    }
    let last = by_client.into_values().try_fold(good, |last, healed| healed.map(|at| last.max(at)))?;
    Some(last - good)
}

fn healed_in(evidence: &Evidence, session: &Session, good: Ms) -> Option<Ms> {
    let first = |wanted: &dyn Fn(&What) -> bool| {
        let heard = session.heard.iter().find(|heard| wanted(&heard.what))?;
        Some(heard.at)
    };
    // Timestamps of snapshots are whole seconds.
    let number = first(&|what| match what {
        What::Init(shown) | What::Update(shown) => !shown.stale && shown.counted + 1_000 > good,
        _ => false,
    })?;
    let event = first(&|what| match what {
        What::Event(number) => evidence.published.get(number).is_some_and(|event| event.sent >= good),
        _ => false,
    })?;
    Some(number.max(event).max(good))
}

/// A socket of the crowded address, in time.
#[derive(Debug, Clone, Copy)]
struct Held {
    from: Ms,
    to: Ms,
}

// Inv. CAP
fn check_cap(evidence: &Evidence, bounds: Bounds, verdict: &mut Verdict) {
    let viewers = evidence.sessions.iter().filter(|session| session.crowded).map(Session::held);
    let others =
        evidence.attempts.iter().filter_map(|attempt| attempt.open_until.map(|to| Held { from: attempt.at, to }));
    let held: Vec<Held> = viewers.chain(others).collect();
    let unsettled = unsettled(evidence, bounds);
    let ends = unsettled.iter().map(|unsettled| unsettled.to);
    let mut moments: Vec<Ms> = held.iter().map(|held| held.from).chain(ends).collect();
    moments.sort_unstable();
    for from in moments.into_iter().filter(|at| *at < evidence.ended) {
        // Over the cap at this moment, and still so a little later.
        let to = from + OVERLAP_MS + evidence.stall_ms;
        let open = held.iter().filter(|held| held.from <= from && held.to >= to).count();
        let concerned = unsettled.iter().filter(|unsettled| unsettled.from <= to && from < unsettled.to);
        let cut_off: usize = concerned.map(|unsettled| unsettled.cut_off).sum();
        // Each node that is cut off goes by its own count, and the others by theirs. Those that were killed hold nothing
        // any more.
        let alive = evidence.nodes.iter().filter(|node| node.killed.is_none_or(|at| at > from)).count();
        let cap = evidence.cap * (cut_off + 1).min(alive).min(evidence.demands.gateways);
        if open > cap {
            let what = format!("{open} sockets of one address were open at {from}; {cap} may be");
            verdict.violation("eleventh socket", what);
        }
    }
}

/// Whoever has left gives his place back: who comes again finds as many as there were.
// Inv. CAP
fn check_rounds(evidence: &Evidence, bounds: Bounds, verdict: &mut Verdict) {
    for round in undisturbed(evidence, bounds) {
        let what = format!("an address that had no socket open, and may have {}, got {round:?}", evidence.cap);
        if round.refused > 0 || round.lost > 0 {
            verdict.violation("places leaked", what);
        } else if round.failed > 0 {
            verdict.violation("turned away", what);
        }
    }
}

/// Rounds of the busy address which asked for all places, and since whose predecessors, until they left, nothing was done
/// that could have kept their places from being given back, or counted, or taken from them.
fn undisturbed(evidence: &Evidence, bounds: Bounds) -> impl Iterator<Item = Round> {
    let disturbances = disturbances(evidence, bounds);
    let quiet = move |pair: &&[Round]| !disturbed(&disturbances, pair[0].to, pair[1].left);
    let asked = |round: &Round| round.granted + round.refused + round.failed == evidence.cap;
    evidence.rounds.windows(2).filter(quiet).map(|pair| pair[1]).filter(asked)
}

/// When an address may be refused what it has given back: while the cap is each node's own affair, and until the lease of
/// a gateway that was killed has run out.
pub(super) fn disturbances(evidence: &Evidence, bounds: Bounds) -> Vec<(Ms, Ms)> {
    let killed = evidence.nodes.iter().filter_map(|node| node.killed);
    let killed = killed.map(|at| (at, at + CROWD_BACK_MS + bounds.slack_ms));
    unsettled(evidence, bounds).into_iter().map(|unsettled| (unsettled.from, unsettled.to)).chain(killed).collect()
}

fn disturbed(disturbances: &[(Ms, Ms)], from: Ms, to: Ms) -> bool {
    disturbances.iter().any(|(begin, end)| *begin <= to && from < *end)
}

impl Session {
    fn held(&self) -> Held {
        Held { from: self.opened, to: self.closed }
    }
}

/// A time in which the cap is the own affair of some nodes.
#[derive(Debug, Clone, Copy)]
struct Unsettled {
    from: Ms,
    to: Ms,
    /// Of so many.
    cut_off: usize,
}

/// When all nodes have entered anew and have closed what is over the cap: when all is well again, which takes no less than
/// this and may take no longer than that.
fn settled(fault: &FaultLog) -> Ms {
    fault.over.clamp(fault.good + SETTLED_MS, fault.good + RECOVERY_MS)
}

/// From each fault at Redis, or a gateway's sleep, until all have settled.
fn unsettled(evidence: &Evidence, bounds: Bounds) -> Vec<Unsettled> {
    let slept = |fault: &FaultLog| {
        let mut sleeps = evidence.nodes.iter().flat_map(|node| &node.frozen);
        sleeps.any(|(stop, _)| (fault.begun..=fault.good).contains(stop))
    };
    evidence
        .faults
        .iter()
        .filter(|fault| fault.part == Part::Redis || slept(fault))
        .map(|fault| Unsettled { from: fault.begun, to: settled(fault) + bounds.slack_ms, cut_off: fault.cut_off })
        .collect()
}
