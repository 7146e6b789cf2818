//! What people read: a table for each run, and a summary of the worst times for each kind of fault.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::evidence::Ms;
use crate::run::Outcome;

/// The table of one run.
pub(crate) fn table(outcome: &Outcome) -> String {
    let (plan, evidence, verdict) = (&outcome.plan, &outcome.evidence, &outcome.verdict);
    let mut text = String::new();
    let seconds = outcome.took.as_secs();
    let viewers = evidence.sessions.iter().filter(|session| !session.witness);
    let clients = viewers.map(|session| session.client).max().map_or(0, |last| last + 1);
    let _ = writeln!(
        text,
        "seed {} · {} · slots of {} s · {} gateway processes · {clients} clients · {} sockets · {seconds} s · lab late by {} ms",
        plan.seed,
        plan.topology.name(),
        plan.interval.as_secs(),
        evidence.nodes.len(),
        evidence.sessions.len(),
        evidence.stall_ms,
    );
    let _ = writeln!(text, "  {:<22} {:>9} {:>9} {:>9}  confirmed by", "fault", "detected", "good", "healed");
    let times = verdict.detection_ms.iter().zip(&verdict.recovery_ms);
    for (fault, (detection, recovery)) in evidence.faults.iter().zip(times) {
        let healed = recovery.map_or("never".to_owned(), shown);
        let _ = writeln!(
            text,
            "  {:<22} {:>9} {:>9} {:>9}  {}",
            fault.kind,
            shown(*detection),
            shown(fault.good - fault.begun),
            healed,
            if fault.confirmed.is_empty() { "NOTHING" } else { &fault.confirmed }
        );
    }
    let _ = writeln!(
        text,
        "  events: {} offered, {} accepted, {} lost by redis ({} unannounced), {} redone · delivered {} · gaps {} for {} events ({} of slow readers, \
         {} overflows) · closes {} · eleventh refused {}",
        verdict.offered,
        verdict.accepted,
        verdict.lost_by_redis,
        verdict.lost_unannounced,
        verdict.redone,
        verdict.delivered,
        verdict.gaps,
        verdict.announced + verdict.announced_to_slow,
        verdict.announced_to_slow,
        verdict.overflows,
        verdict.closes,
        verdict.refused,
    );
    for violation in &verdict.violations {
        let _ = writeln!(text, "  VIOLATION ({}): {}", violation.rule, violation.what);
    }
    text
}

fn shown(ms: Ms) -> String {
    format!("{}.{:02} s", ms / 1_000, ms % 1_000 / 10)
}

/// What all runs together have shown.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    runs: usize,
    kinds: BTreeMap<(&'static str, &'static str), Worst>,
    delivered: usize,
    accepted: usize,
    lost_by_redis: usize,
    lost_unannounced: usize,
    gaps: usize,
    refused: usize,
    violations: usize,
}

#[derive(Debug, Default)]
struct Worst {
    times: usize,
    detection: Ms,
    recovery: Ms,
    until_good: Ms,
}

impl Summary {
    pub(crate) fn add(&mut self, outcome: &Outcome) {
        let verdict = &outcome.verdict;
        self.runs += 1;
        self.delivered += verdict.delivered;
        self.accepted += verdict.accepted;
        self.lost_by_redis += verdict.lost_by_redis;
        self.lost_unannounced += verdict.lost_unannounced;
        self.gaps += verdict.gaps;
        self.refused += verdict.refused;
        self.violations += verdict.violations.len();
        let times = verdict.detection_ms.iter().zip(&verdict.recovery_ms);
        for (fault, (detection, recovery)) in outcome.evidence.faults.iter().zip(times) {
            let worst = self.kinds.entry((outcome.plan.topology.name(), fault.kind)).or_default();
            worst.times += 1;
            worst.detection = worst.detection.max(*detection);
            worst.until_good = worst.until_good.max(fault.good - fault.begun);
            worst.recovery = worst.recovery.max(recovery.unwrap_or(Ms::MAX));
        }
    }

    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{:<9} {:<22} {:>5} {:>15} {:>15} {:>15}\n",
            "topology", "fault", "times", "worst detection", "until good", "worst recovery"
        );
        for ((topology, kind), worst) in &self.kinds {
            let recovery = if worst.recovery == Ms::MAX { "never".to_owned() } else { shown(worst.recovery) };
            let _ = writeln!(
                text,
                "{topology:<9} {kind:<22} {:>5} {:>15} {:>15} {recovery:>15}",
                worst.times,
                shown(worst.detection),
                shown(worst.until_good),
            );
        }
        let _ = writeln!(
            text,
            "{} runs · {} events accepted, {} messages delivered, {} lost by redis ({} unannounced), {} gaps announced · \
             {} eleventh sockets refused · {} violations",
            self.runs,
            self.accepted,
            self.delivered,
            self.lost_by_redis,
            self.lost_unannounced,
            self.gaps,
            self.refused,
            self.violations
        );
        text
    }
}
