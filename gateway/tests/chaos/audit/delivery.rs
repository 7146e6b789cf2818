//! Received = published − announced gaps; nothing twice; one order.
//!
//! Which events a client had to get is decided by what is certain. An event is *due* when it was sent after the
//! client's `init` was there, and accepted before something was sent that the client got, or before the client left in
//! peace. One whose sender had no answer is due where it stands in the stream before something that the client got. In
//! between lies what was under way when a socket broke: of that nothing is known, so nothing is claimed.
//!
//! What is due and was not read must lie in a hole that the client was told of: behind the last message before it, and
//! before the next one after it. Where the stream still has the entries, their places in it decide that exactly;
//! elsewhere the times between which each entry was written.
//!
//! A client without ids is told of nothing but its own slowness (by a second `init`). What the node as a whole was
//! told to be missing is judged by the clients with ids on the same node; what one of those missed alone excuses nobody else.
//!
//! An event that was accepted, that no stream holds any more, and that nobody was told of is not the gateway's doing
//! but not nothing either: it is counted apart. It is the gateway's where no fault came that loses what Redis has, and
//! where the gateway had read it: another client of the same process has it, and both have something that came later; or
//! it stood in the stream for long before anything was lost.

use std::collections::{HashMap, HashSet};

use super::{Bounds, Verdict};
use crate::evidence::{Ending, Evidence, Heard, Ms, Node, Number, Pace, Part, Session, What};

/// When an entry was written, at the earliest and at the latest, and where it stands, if it still does.
#[derive(Debug, Clone, Copy)]
struct Mark {
    from: Ms,
    to: Ms,
    place: Option<usize>,
}

/// Something is missing after `after` and before `before`.
#[derive(Debug, Clone, Copy)]
struct Hole {
    after: Mark,
    before: Mark,
}

impl Hole {
    fn covers(&self, mark: Mark) -> bool {
        let behind = match (self.after.place, mark.place) {
            (Some(after), Some(place)) => place > after,
            _ => mark.to >= self.after.from,
        };
        let ahead = match (self.before.place, mark.place) {
            (Some(before), Some(place)) => place <= before,
            _ => mark.from <= self.before.to,
        };
        behind && ahead
    }
}

/// Who misses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// This client, which read too slowly, or was away.
    Own,
    /// All clients of that gateway.
    All(Node),
}

/// Somebody's messages, over all sockets that went on where the one before had ended.
struct Reader<'a> {
    client: usize,
    node: Node,
    ids: bool,
    pace: Pace,
    heard: Vec<&'a Heard>,
    /// The sockets.
    sessions: Vec<&'a Session>,
    /// Left in peace: had all that there was.
    stayed: bool,
}

pub(super) fn check(evidence: &Evidence, verdict: &mut Verdict) {
    verdict.offered = evidence.published.len();
    verdict.accepted = evidence.published.values().filter(|event| event.accepted.is_some()).count();
    let readers = readers(evidence);
    let history = History::of(evidence, &readers);
    for reader in &readers {
        check_first_and_known(evidence, reader, verdict);
        check_from(&history, reader, verdict);
        check_once(reader, &history.redone, verdict);
    }
    check_order(&readers, &history.redone, verdict);
    check_kept(evidence, &history, verdict);
    verdict.redone = history.redone.len();

    let gone_at = GoneAt::of(evidence, &history);
    let holes: Vec<Vec<(Whose, Hole)>> = readers.iter().map(|reader| history.holes(reader)).collect();
    let mut lost: HashMap<Number, bool> = HashMap::new();
    for (reader, own) in readers.iter().zip(&holes) {
        let mut announced: Vec<Hole> = own.iter().map(|(_, hole)| *hole).collect();
        if !reader.ids {
            let of_nodes = holes.iter().flatten().filter(|(whose, _)| *whose == Whose::All(reader.node));
            announced.extend(of_nodes.map(|(_, hole)| *hole));
        }
        check_missing(&history, evidence, reader, &announced, &mut lost, verdict);
        check_passed_over(&history, &gone_at, reader, &announced, verdict);
    }
    verdict.lost_by_redis = lost.len();
    verdict.lost_unannounced = lost.values().filter(|announced| !**announced).count();
}

fn readers(evidence: &Evidence) -> Vec<Reader<'_>> {
    let mut readers: Vec<Reader<'_>> = Vec::new();
    let mut last_of: HashMap<usize, usize> = HashMap::new();
    for session in &evidence.sessions {
        let stayed = session.end == Ending::Left && evidence.cut_short.is_none();
        if let Some(reader) = last_of.get(&session.client).filter(|_| session.resumed).map(|at| &mut readers[*at]) {
            reader.heard.extend(&session.heard);
            reader.sessions.push(session);
            (reader.stayed, reader.node) = (stayed, session.node);
            continue;
        }
        last_of.insert(session.client, readers.len());
        let Session { client, node, ids, pace, heard, .. } = session;
        readers.push(Reader {
            client: *client,
            node: *node,
            ids: *ids,
            pace: *pace,
            heard: heard.iter().collect(),
            sessions: vec![session],
            stayed,
        });
    }
    readers
}

/// What is known of each entry.
struct History<'a> {
    events: HashMap<Number, Mark>,
    ids: HashMap<&'a str, Mark>,
    /// Events that were read under an id which the stream does not hold, and stand there under another: Redis lost the
    /// entry and with it all knowledge of the publish, and whoever had no answer yet repeated it. Nobody can tell such
    /// an event from a new one. It is excused only where a fault at Redis lies between both: it was read before the
    /// fault was over, and written again after it began; two entries of one event that both stand are never excused.
    redone: HashSet<Number>,
}

impl<'a> History<'a> {
    fn of(evidence: &'a Evidence, readers: &[Reader<'a>]) -> Self {
        let mut events: HashMap<Number, Mark> = evidence
            .published
            .iter()
            .map(|(number, event)| {
                let to = event.accepted.as_ref().map_or(Ms::MAX, |(at, _)| *at);
                (*number, Mark { from: event.sent, to, place: None })
            })
            .collect();
        let mut slots: HashMap<(&str, u64), usize> = HashMap::new();
        for (place, survivor) in evidence.survivors.iter().enumerate() {
            if let Some(mark) = survivor.number.and_then(|number| events.get_mut(&number)) {
                mark.place = Some(place);
            }
            if let Some(slot) = survivor.slot {
                slots.insert((&survivor.id, slot), place);
            }
        }
        // Nothing was written after somebody had read it.
        for heard in readers.iter().flat_map(|reader| &reader.heard) {
            if let What::Event(number) = heard.what
                && let Some(mark) = events.get_mut(&number)
            {
                mark.to = mark.to.min(heard.at);
            }
        }
        let mut ids: HashMap<&str, Mark> = HashMap::new();
        for heard in readers.iter().flat_map(|reader| &reader.heard) {
            let Some(id) = heard.id.as_deref() else { continue };
            let mark = match &heard.what {
                What::Event(number) => events.get(number).copied(),
                What::Init(shown) | What::Update(shown) => {
                    let slot = shown.counted - shown.counted % evidence.interval_ms.max(1);
                    let place = slots.get(&(without_digest(id), slot)).copied();
                    Some(Mark { from: shown.counted, to: heard.at, place })
                }
                _ => None,
            };
            if let Some(mark) = mark {
                let known = ids.entry(id).or_insert(mark);
                known.to = known.to.min(mark.to);
            }
        }
        for (number, event) in &evidence.published {
            if let Some((_, id)) = &event.accepted {
                ids.entry(id).or_insert(events[number]);
            }
        }
        for survivor in &evidence.survivors {
            if let Some(mark) = survivor.number.and_then(|number| events.get(&number)) {
                ids.entry(&survivor.id).or_insert(*mark);
            }
        }
        Self { events, ids, redone: redone(evidence, readers) }
    }

    fn of_id(&self, id: &str) -> Option<Mark> {
        self.ids.get(id).or_else(|| self.ids.get(without_digest(id))).copied()
    }

    /// Where a message stands; none if it has no place of its own.
    fn of_message(&self, heard: &Heard) -> Option<Mark> {
        match (&heard.what, heard.id.as_deref()) {
            (What::Event(number), _) => self.events.get(number).copied(),
            (What::Update(_), Some(id)) => self.of_id(id),
            (What::Update(shown), None) if !shown.stale => {
                Some(Mark { from: shown.counted, to: heard.at, place: None })
            }
            _ => None,
        }
    }

    /// The holes that this reader was told of.
    fn holes(&self, reader: &Reader<'_>) -> Vec<(Whose, Hole)> {
        let nodes = reader.sessions.iter().flat_map(|session| session.heard.iter().map(|_| session.node));
        let nodes: Vec<Node> = nodes.collect();
        let beginning = Mark { from: 0, to: 0, place: None };
        let end = Mark { from: Ms::MAX, to: Ms::MAX, place: None };
        let next = |at: usize| reader.heard[at..].iter().find_map(|heard| self.of_message(heard)).unwrap_or(end);
        let mut holes = Vec::new();
        for (at, heard) in reader.heard.iter().enumerate() {
            let last = || reader.heard[..at].iter().rev().find_map(|heard| self.of_message(heard)).unwrap_or(beginning);
            match &heard.what {
                What::Gap { from, to } => {
                    // An end that nobody knows can only lead to more that is missed, and not to less.
                    let after = from.as_deref().and_then(|id| self.of_id(id)).unwrap_or_else(last);
                    // Whatever it names was written before the gap was told.
                    let told = Mark { from: heard.at, to: heard.at, place: None };
                    let before = to.as_deref().map_or_else(|| next(at), |id| self.of_id(id).unwrap_or(told));
                    // What the stream lacks has no end but what comes next; what a client lacks begins with an `init`.
                    let behind_init = at > 0 && matches!(reader.heard[at - 1].what, What::Init(_));
                    let all = reader.pace == Pace::Prompt && to.is_none() && !behind_init;
                    holes.push((if all { Whose::All(nodes[at]) } else { Whose::Own }, Hole { after, before }));
                }
                What::Init(_) if at > 0 && !reader.ids => {
                    holes.push((Whose::Own, Hole { after: last(), before: next(at) }));
                }
                _ => {}
            }
        }
        holes
    }
}

fn redone(evidence: &Evidence, readers: &[Reader<'_>]) -> HashSet<Number> {
    let mut standing: HashMap<Number, Vec<&str>> = HashMap::new();
    for survivor in &evidence.survivors {
        if let Some(number) = survivor.number {
            standing.entry(number).or_default().push(&survivor.id);
        }
    }
    let lost_between = |read: Ms, again: Ms| {
        let mut at_redis = evidence.faults.iter().filter(|fault| fault.part == Part::Redis);
        at_redis.any(|fault| read <= fault.over && again >= fault.begun)
    };
    let again = |number: Number, id: &str| {
        let all = readers.iter().flat_map(|reader| &reader.heard);
        let times =
            all.filter(|heard| number_of(heard) == Some(number) && heard.id.as_deref().map(without_digest) == Some(id));
        times.map(|heard| heard.at).min().unwrap_or(evidence.ended)
    };
    let elsewhere = |heard: &&Heard| {
        let (What::Event(number), Some(id)) = (&heard.what, heard.id.as_deref()) else { return None };
        let ids = standing.get(number)?;
        let moved = ids.len() == 1 && ids[0] != without_digest(id);
        (moved && lost_between(heard.at, again(*number, ids[0]))).then_some(*number)
    };
    readers.iter().flat_map(|reader| &reader.heard).filter_map(elsewhere).collect()
}

/// The stream's part of a message's id.
fn without_digest(id: &str) -> &str {
    match id.match_indices('-').nth(1) {
        Some((at, _)) => &id[..at],
        None => id,
    }
}

fn check_first_and_known(evidence: &Evidence, reader: &Reader<'_>, verdict: &mut Verdict) {
    let client = reader.client;
    if let Some(first) = reader.heard.first()
        && !matches!(first.what, What::Init(_))
    {
        verdict.violation("init first", format!("client {client} first read {:?}", first.what));
    }
    verdict.overflows += reader.heard.iter().skip(1).filter(|heard| matches!(heard.what, What::Init(_))).count();
    for heard in &reader.heard {
        match &heard.what {
            What::Event(number) if !evidence.published.contains_key(number) => {
                verdict.violation("invented", format!("client {client} read event {number}, which nobody published"));
            }
            What::Stranger(text) => verdict.violation("invented", format!("client {client} read {text:?}")),
            What::Gap { .. } if !reader.ids => {
                verdict.violation("wire", format!("client {client} did not ask for ids and got a gap"));
            }
            What::Gap { .. } => verdict.gaps += 1,
            What::Event(_) => verdict.delivered += 1,
            What::Init(_) | What::Update(_) | What::Ping(_) => {}
        }
    }
}

/// A gap begins after a message that the client has, or after what was the past when its socket was opened; from nowhere
/// only where there was nothing before.
// Inv. GAP
fn check_from(history: &History<'_>, reader: &Reader<'_>, verdict: &mut Verdict) {
    let mut known: HashSet<&str> = HashSet::new();
    for session in &reader.sessions {
        let mut nothing_yet = true;
        let Some(joined) = session.heard.first().map(|first| first.at) else { continue };
        for heard in &session.heard {
            if let What::Gap { from, to } = &heard.what {
                let past = |id: &str| history.of_id(id).is_some_and(|mark| mark.from <= joined);
                let from_somewhere = from.as_deref().map_or(nothing_yet, |id| known.contains(id) || past(id));
                if !from_somewhere {
                    let what = format!(
                        "client {} on gateway {} was told of a gap from {from:?}, which it does not have",
                        reader.client, session.node
                    );
                    verdict.violation("wire", what);
                }
                known.extend(to.as_deref());
            }
            if let Some(id) = heard.id.as_deref() {
                known.insert(id);
                nothing_yet = false;
            }
        }
    }
}

// Inv. ORDER: at most once.
fn check_once(reader: &Reader<'_>, redone: &HashSet<Number>, verdict: &mut Verdict) {
    let (mut numbers, mut ids) = (HashSet::new(), HashSet::new());
    for heard in &reader.heard {
        let again = match &heard.what {
            What::Event(number) => !numbers.insert(*number) && !redone.contains(number),
            _ => false,
        };
        // An `init` repeats the id of its snapshot.
        let id_again = !matches!(heard.what, What::Init(_)) && heard.id.as_ref().is_some_and(|id| !ids.insert(id));
        if again || id_again {
            verdict.violation(
                "duplicate",
                format!("client {} on gateway {} read {:?} twice", reader.client, reader.node, heard),
            );
        }
    }
}

/// What was accepted stands in the stream, as long as nothing was done to Redis that takes it away: runs are shorter than
/// the stream is. A gateway that says so and publishes nothing, or something else, is no loss of Redis's.
fn check_kept(evidence: &Evidence, history: &History<'_>, verdict: &mut Verdict) {
    for (number, event) in &evidence.published {
        let Some((accepted, id)) = &event.accepted else { continue };
        let mut losses = evidence.faults.iter().filter(|fault| fault.loses);
        if history.events[number].place.is_none() && !losses.any(|fault| fault.over >= *accepted) {
            let what =
                format!("event {number}, accepted as {id}, does not stand in the stream, and nothing has taken it");
            verdict.violation("accepted and gone", what);
        }
    }
}

/// All readers' sequences fit into one: what one read before another, nobody read after it.
// Inv. ORDER
fn check_order(readers: &[Reader<'_>], redone: &HashSet<Number>, verdict: &mut Verdict) {
    let mut followers: HashMap<Number, HashSet<Number>> = HashMap::new();
    let mut before: HashMap<Number, usize> = HashMap::new();
    for reader in readers {
        let all = reader.heard.iter().filter_map(|heard| number_of(heard));
        let numbers: Vec<Number> = all.filter(|number| !redone.contains(number)).collect();
        for number in &numbers {
            before.entry(*number).or_default();
        }
        for pair in numbers.windows(2) {
            if pair[0] != pair[1] && followers.entry(pair[0]).or_default().insert(pair[1]) {
                *before.entry(pair[1]).or_default() += 1;
            }
        }
    }
    let mut free: Vec<Number> = before.iter().filter(|(_, count)| **count == 0).map(|(number, _)| *number).collect();
    while let Some(number) = free.pop() {
        before.remove(&number);
        for follower in followers.remove(&number).unwrap_or_default() {
            let count = before.get_mut(&follower).expect("each follower was counted");
            *count -= 1;
            if *count == 0 {
                free.push(follower);
            }
        }
    }
    if let Some(one) = before.keys().min() {
        let what = format!("{} events, event {one} among them, were read in different orders", before.len());
        verdict.violation("one order", what);
    }
}

fn number_of(heard: &Heard) -> Option<Number> {
    match heard.what {
        What::Event(number) => Some(number),
        _ => None,
    }
}

/// Whether prompt readers had to get what was sent then, announced or not: Redis answered, and all gateways were awake. Else
/// a gateway that delivers little and announces much would pass.
fn needless(evidence: &Evidence, sent: Ms) -> bool {
    let slack = Bounds::of(evidence).slack_ms;
    let lasts = |begun: Ms, over: Ms| sent + slack >= begun && sent <= over + slack;
    let mut at_redis = evidence.faults.iter().filter(|fault| fault.part == Part::Redis);
    let mut sleeps = evidence.nodes.iter().flat_map(|node| &node.frozen);
    !at_redis.any(|fault| lasts(fault.begun, fault.over)) && !sleeps.any(|(stop, go)| lasts(*stop, *go))
}

/// Whether Redis may have lost that entry before any gateway had read it: it was written while a fault lasted that takes
/// such away, or in the moments before. All gateways are healed between two faults, so what is older they had read. (What
/// nothing has taken at all is judged where it is looked whether everything stands that was accepted.)
fn may_be_unread(evidence: &Evidence, mark: Mark) -> bool {
    let slack = Bounds::of(evidence).slack_ms;
    let mut losses = evidence.faults.iter().filter(|fault| fault.loses && mark.from <= fault.over).peekable();
    losses.peek().is_none() || losses.any(|fault| mark.to.saturating_add(slack) >= fault.takes_from)
}

// Inv. GAP
fn check_missing(
    history: &History<'_>,
    evidence: &Evidence,
    reader: &Reader<'_>,
    announced: &[Hole],
    lost: &mut HashMap<Number, bool>,
    verdict: &mut Verdict,
) {
    let Some(joined) = reader.heard.first().map(|first| first.at) else { return };
    let numbers: HashSet<Number> = reader.heard.iter().filter_map(|heard| number_of(heard)).collect();
    let marks = || numbers.iter().filter_map(|number| history.events.get(number));
    let last_sent = marks().map(|mark| mark.from).max().unwrap_or(0);
    let last_place = marks().filter_map(|mark| mark.place).max();
    for (number, event) in &evidence.published {
        let mark = history.events[number];
        // Whether it was written, and before what this reader has: its place says so, or the answer to who sent it.
        let stands_before = mark.place.is_some_and(|place| Some(place) < last_place);
        let answered = event.accepted.as_ref().is_some_and(|(accepted, _)| reader.stayed || *accepted < last_sent);
        let due = event.sent >= joined && (stands_before || answered);
        if !due || numbers.contains(number) {
            continue;
        }
        let told = announced.iter().any(|hole| hole.covers(mark));
        if told && reader.pace == Pace::Prompt && mark.place.is_some() && needless(evidence, event.sent) {
            let what = format!(
                "client {} on gateway {} was told that event {number} is missing, which stands in the stream, and no fault \
                 at Redis lasted",
                reader.client, reader.node
            );
            verdict.violation("needless gap", what);
        }
        match reader.pace {
            Pace::Prompt => verdict.announced += usize::from(told),
            Pace::Slow => verdict.announced_to_slow += usize::from(told),
        }
        if mark.place.is_none() && (told || may_be_unread(evidence, mark)) {
            *lost.entry(*number).or_insert(true) &= told;
        } else if !told {
            verdict.violation(
                "unannounced loss",
                format!(
                    "client {} on gateway {} (ids: {}, {:?}) never got event {number}, which {} in the stream",
                    reader.client,
                    reader.node,
                    reader.ids,
                    reader.pace,
                    if mark.place.is_some() { "stands" } else { "had stood for long" }
                ),
            );
        }
    }
}

/// What a socket heard of events that no stream holds any more: where in its order, and when they were sent.
struct Gone<'a> {
    session: &'a Session,
    events: Vec<(usize, Number, Ms)>,
}

/// Those, by gateway.
struct GoneAt<'a>(HashMap<Node, Vec<Gone<'a>>>);

impl<'a> GoneAt<'a> {
    fn of(evidence: &'a Evidence, history: &History<'_>) -> Self {
        let mut at: HashMap<Node, Vec<Gone<'a>>> = HashMap::new();
        for session in evidence.sessions.iter().filter(|session| session.pace == Pace::Prompt) {
            let gone = |(place, heard): (usize, &Heard)| {
                let number = number_of(heard)?;
                let mark = history.events.get(&number).filter(|mark| mark.place.is_none())?;
                live(session, mark.from).then_some((place, number, mark.from))
            };
            let events: Vec<(usize, Number, Ms)> = session.heard.iter().enumerate().filter_map(gone).collect();
            if !events.is_empty() {
                at.entry(session.node).or_default().push(Gone { session, events });
            }
        }
        Self(at)
    }
}

/// Whether what was sent then was new to that socket, and not the past.
fn live(session: &Session, sent: Ms) -> bool {
    session.heard.first().is_some_and(|first| sent >= first.at)
}

/// What is lost and was not announced was lost before the gateway had read it. It had, where another of its clients got
/// it; and this one had to get it where it was there before that was sent, and both have something that came after it. A
/// gateway gives all its clients everything in one order, so this holds without any look at a clock.
// Inv. GAP
fn check_passed_over(
    history: &History<'_>,
    gone_at: &GoneAt<'_>,
    reader: &Reader<'_>,
    announced: &[Hole],
    verdict: &mut Verdict,
) {
    let numbers: HashSet<Number> = reader.heard.iter().filter_map(|heard| number_of(heard)).collect();
    for session in &reader.sessions {
        let here: HashSet<Number> = session.heard.iter().filter_map(number_of).collect();
        for other in gone_at.0.get(&session.node).into_iter().flatten() {
            let both = |heard: &Heard| number_of(heard).is_some_and(|number| here.contains(&number));
            let Some(last) = other.session.heard.iter().rposition(both) else { continue };
            for (place, number, sent) in &other.events {
                let due = *place < last && live(session, *sent) && !numbers.contains(number);
                if due && !announced.iter().any(|hole| hole.covers(history.events[number])) {
                    let what = format!(
                        "client {} on gateway {} (ids: {}, {:?}) never got event {number}, which client {} got there \
                         before something that both got",
                        reader.client, session.node, reader.ids, reader.pace, other.session.client
                    );
                    verdict.violation("unannounced loss", what);
                }
            }
        }
    }
}
