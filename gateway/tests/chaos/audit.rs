//! The checker: judges a run by what its clients saw. Pure; it knows nothing of gateways.
//!
//! It is told what was published, what each client read and when, and what was done to the system; from that alone it
//! decides whether anybody was lied to. So it can be tested like any function, with planted lies (`audit/tests.rs`).
//!
//! - [`delivery`]: what was published and due reached each client, once and in one order, or was announced as missing;
//! - [`numbers`]: one snapshot for each slot, no old number that looks fresh, no number that is too high;
//! - [`limits`]: the cap held, healthy sockets stayed open and heard heartbeats, everything healed in time, and the faults
//!   were real.
//!
//! Times are judged with [`Bounds`]: the documented ones, and what the lab itself was late by.

mod delivery;
mod limits;
mod numbers;
#[cfg(test)]
mod tests;

pub(crate) use self::limits::EXCUSED_OVERLAP_MS;
use crate::evidence::{Demands, Evidence, Ms};

/// Beyond two intervals, a snapshot is stale (docs/PROTOCOL.md).
pub(crate) const STALE_GRACE_MS: Ms = 1_000;
/// From a good primary to fresh numbers and new events for everybody.
pub(crate) const RECOVERY_MS: Ms = 6_000;
/// A killed gateway gives its sockets' places back within its lease (6 s); then who waits tries again.
const CROWD_BACK_MS: Ms = 8_000;
/// A message is under way, and read, within this where nobody is starved of a processor.
const TRANSIT_MS: Ms = 700;

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Which, in a word.
    pub(crate) rule: &'static str,
    /// How.
    pub(crate) what: String,
}

/// What a run amounts to.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Broken promises; none is what the product is for.
    pub(crate) violations: Vec<Violation>,
    /// Events that producers gave away…
    pub(crate) offered: usize,
    /// …and that were accepted.
    pub(crate) accepted: usize,
    /// Events that reached clients, all of them together.
    pub(crate) delivered: usize,
    /// Announcements of a gap that clients got.
    pub(crate) gaps: usize,
    /// Events that clients missed, and were told so, by a gap or a second `init`; all prompt clients together…
    pub(crate) announced: usize,
    /// …and all slow ones.
    pub(crate) announced_to_slow: usize,
    /// Second `init`s, which slow readers got.
    pub(crate) overflows: usize,
    /// Accepted events which Redis itself lost before every client had them: neither in the stream at the end…
    pub(crate) lost_by_redis: usize,
    /// …and of them, those for which some client was told nothing.
    pub(crate) lost_unannounced: usize,
    /// Events that came twice because Redis lost the first entry, and with it the note that it was done.
    pub(crate) redone: usize,
    /// Sockets that ended before their viewers wanted to leave.
    pub(crate) closes: usize,
    /// Why the run proves nothing, whatever it found: it has to be made again.
    pub(crate) void: Vec<String>,
    /// What the run had, beside what it had to have.
    pub(crate) had: Option<Demands>,
    /// For each fault, from when all was there again to when all saw a fresh number and new events; none: never…
    pub(crate) recovery_ms: Vec<Option<Ms>>,
    /// …and to when all sockets of the crowded address were open and live again.
    pub(crate) crowd_ms: Vec<Option<Ms>>,
    /// For each fault, the longest time for which somebody saw a number that was neither refreshed nor flagged.
    pub(crate) detection_ms: Vec<Ms>,
}

impl Verdict {
    pub(crate) fn violation(&mut self, rule: &'static str, what: String) {
        /// A fault that breaks everything breaks it for everybody: some examples are enough.
        const OF_ONE_RULE_MAX: usize = 5;
        if self.violations.iter().filter(|known| known.rule == rule).count() < OF_ONE_RULE_MAX {
            self.violations.push(Violation { rule, what });
        }
    }
}

/// What may take how long in this run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// The age from which a number must be flagged.
    pub(crate) stale_ms: Ms,
    /// What is granted beyond each bound.
    pub(crate) slack_ms: Ms,
}

impl Bounds {
    pub(crate) fn of(evidence: &Evidence) -> Self {
        Self { stale_ms: 2 * evidence.interval_ms + STALE_GRACE_MS, slack_ms: TRANSIT_MS + evidence.stall_ms }
    }
}

/// From when on nothing that was done to the system excuses anything.
pub(crate) fn quiet_from(evidence: &Evidence) -> Ms {
    limits::disturbances(evidence, Bounds::of(evidence)).into_iter().map(|(_, to)| to).max().unwrap_or(0)
}

/// Judges a run.
pub(crate) fn audit(evidence: &Evidence) -> Verdict {
    let bounds = Bounds::of(evidence);
    let mut verdict = Verdict::default();
    delivery::check(evidence, &mut verdict);
    numbers::check(evidence, bounds, &mut verdict);
    limits::check(evidence, bounds, &mut verdict);
    verdict
}
