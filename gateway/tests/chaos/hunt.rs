//! `make chaos-planted`: the lab finds what it is for.
//!
//! A checker that has never found anything may be blind. So gateways are built with one bug each, which somebody might
//! well have written (`gateway/src/planted.rs`), and the lab has to find every one of them, with at most twenty seeds. To
//! be found is to be seen breaking a promise that this bug breaks; whatever else is seen, in a run that proves something.
//! And it has to be the bug that is found: where one was, the same seed is run without any, and nothing may be violated.
//!
//! Twenty seeds a bug take long. Each hunt begins with the seed that found its bug before, all hunts at a time, and takes
//! the others only when that does not find it: seeds decide what is done, not what the scheduler makes of it. A run
//! is over with its first fault that does not heal as promised; when a bug is found, what else hunts for it is stopped.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::lab::{JOBS, Job, TRIES_MAX, number, pool};
use crate::report;
use crate::run::{Conditions, Outcome};

/// Seeds that a bug may need.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=20;
/// Longer than any promise to heal, with all that is granted beyond it (`audit.rs`).
const PATIENCE: Duration = Duration::from_secs(11);
/// Nothing is begun after this; what is not found by then is not found.
const WITHIN: Duration = Duration::from_secs(15 * 60);

/// A planted bug, and how it shows.
struct Quarry {
    /// What gateways call it.
    bug: &'static str,
    /// A seed that found it.
    seed: u64,
    /// Promises that it breaks.
    breaks: &'static [&'static str],
}

const QUARRIES: [Quarry; 5] = [
    Quarry { bug: "no-cursor-check", seed: 18, breaks: &["not healed in time", "unannounced loss"] },
    Quarry { bug: "publish-twice", seed: 7, breaks: &["duplicate"] },
    Quarry { bug: "counts-by-difference", seed: 3, breaks: &["places leaked", "eleventh socket"] },
    Quarry { bug: "no-slot-check", seed: 12, breaks: &["one snapshot per slot"] },
    Quarry { bug: "no-reregistration", seed: 4, breaks: &["wrong number", "eleventh socket"] },
];

impl Quarry {
    /// The promises that were broken as this bug breaks them. A run that proves nothing has not found it.
    fn shown_by(&self, outcome: &Outcome) -> BTreeSet<&'static str> {
        let rules = outcome.verdict.violations.iter().map(|violation| violation.rule);
        if outcome.verdict.void.is_empty() {
            rules.filter(|rule| self.breaks.contains(rule)).collect()
        } else {
            BTreeSet::new()
        }
    }
}

/// Where a bug was found.
#[derive(Debug)]
struct Found {
    seed: u64,
    /// Promises that were seen broken, and how one of them was.
    rules: BTreeSet<&'static str>,
    how: String,
    after: Duration,
    /// How long that run took.
    run: Duration,
}

/// All hunts.
struct Chase {
    begun: Instant,
    /// In the order of [`QUARRIES`], as the others.
    found: [Option<Found>; QUARRIES.len()],
    /// Runs that were made for it.
    runs: [usize; QUARRIES.len()],
    stop: [CancellationToken; QUARRIES.len()],
    /// What seeds have shown without a bug; none: nothing yet.
    without: BTreeMap<u64, Option<Vec<String>>>,
}

impl Chase {
    fn begin() -> Self {
        Self {
            begun: Instant::now(),
            found: Default::default(),
            runs: Default::default(),
            stop: std::array::from_fn(|_| CancellationToken::new()),
            without: BTreeMap::new(),
        }
    }

    fn hunt(&self, at: usize, seed: u64) -> Job {
        let conditions = Conditions { bug: Some(QUARRIES[at].bug), patience: PATIENCE, ..Conditions::default() };
        Job { stop: self.stop[at].clone(), ..Job::first(seed, None, conditions) }
    }

    /// A run is over.
    fn heard(&mut self, job: Job, outcome: Option<&Outcome>, waiting: &mut VecDeque<Job>) {
        let proves = outcome.is_some_and(|outcome| outcome.verdict.void.is_empty());
        self.tell(&job, outcome);
        if !proves && job.tries < TRIES_MAX {
            waiting.push_back(job.again());
        } else if let Some(at) = QUARRIES.iter().position(|quarry| Some(quarry.bug) == job.conditions.bug) {
            self.hunted(at, job.seed, outcome, waiting);
        } else {
            if let Some(outcome) = outcome.filter(|outcome| !outcome.verdict.violations.is_empty()) {
                keep(&format!("planted-none-{}", job.seed), outcome);
            }
            self.without.insert(job.seed, Some(shown_without_a_bug(outcome)));
        }
        if self.begun.elapsed() > WITHIN {
            waiting.clear();
        }
    }

    fn hunted(&mut self, at: usize, seed: u64, outcome: Option<&Outcome>, waiting: &mut VecDeque<Job>) {
        let quarry = &QUARRIES[at];
        self.runs[at] += 1;
        let shown = outcome.map(|outcome| (outcome, quarry.shown_by(outcome))).filter(|(_, rules)| !rules.is_empty());
        let Some((outcome, rules)) = shown else {
            if seed == quarry.seed {
                waiting.extend(SEEDS.filter(|other| *other != seed).map(|other| self.hunt(at, other)));
            }
            return;
        };
        keep(&format!("planted-{}", quarry.bug), outcome);
        let how = outcome.verdict.violations.iter().find(|violation| rules.contains(violation.rule));
        let how = how.map(|violation| violation.what.clone()).unwrap_or_default();
        self.found[at] = Some(Found { seed, rules, how, after: self.begun.elapsed(), run: outcome.took });
        self.stop[at].cancel();
        if let Entry::Vacant(vacant) = self.without.entry(seed) {
            vacant.insert(None);
            waiting.push_back(Job::first(seed, None, Conditions { patience: PATIENCE, ..Conditions::default() }));
        }
    }

    fn tell(&self, job: &Job, outcome: Option<&Outcome>) {
        let bug = job.conditions.bug.unwrap_or("no bug");
        let what = outcome.map_or_else(|| "did not come to its end\n".to_owned(), report::table);
        eprintln!("[{} s] {bug}: {what}", self.begun.elapsed().as_secs());
    }

    /// What all came to, and whether it is what it has to be.
    fn table(&self) -> (String, bool) {
        let mut text = format!(
            "{:<22} {:>4} {:>8} {:>8} {:>5}  {}\n",
            "planted bug", "seed", "after", "its run", "runs", "broken promises"
        );
        let mut all = true;
        for ((quarry, found), runs) in QUARRIES.iter().zip(&self.found).zip(&self.runs) {
            let Some(Found { seed, rules, how, after, run }) = found else {
                all = false;
                let _ = writeln!(text, "{:<22} NOT FOUND in {runs} runs", quarry.bug);
                continue;
            };
            let rules: Vec<&str> = rules.iter().copied().collect();
            let (after, run, rules) = (after.as_secs(), run.as_secs(), rules.join(", "));
            let _ = writeln!(text, "{:<22} {seed:>4} {after:>6} s {run:>6} s {runs:>5}  {rules}: {how}", quarry.bug);
        }
        for (seed, shown) in &self.without {
            let shown = shown.as_ref().map_or("was not run".to_owned(), |shown| shown.join(", "));
            all &= shown.is_empty();
            let _ = writeln!(
                text,
                "seed {seed} without a bug: {}",
                if shown.is_empty() { "nothing violated" } else { &shown }
            );
        }
        (text, all)
    }
}

/// Keeps what was violated, for whoever doubts it.
fn keep(name: &str, outcome: &Outcome) {
    let what = format!("{:#?}\n{:#?}", outcome.plan, outcome.evidence);
    report::keep(name, &what, &report::table(outcome), &outcome.logs);
}

/// What is wrong with a run of gateways that have no bug.
fn shown_without_a_bug(outcome: Option<&Outcome>) -> Vec<String> {
    let Some(outcome) = outcome else { return vec!["did not come to its end".to_owned()] };
    let violated = outcome.verdict.violations.iter().map(|violation| format!("{}: {}", violation.rule, violation.what));
    violated.chain(outcome.verdict.void.iter().map(|void| format!("void: {void}"))).collect()
}

#[test]
#[ignore = "`make chaos-planted` runs it: minutes of real faults"]
fn all_planted_bugs_are_found() {
    let mut chase = Chase::begin();
    let first = QUARRIES.iter().enumerate().map(|(at, quarry)| chase.hunt(at, quarry.seed)).collect();
    let jobs = number("JOBS").map_or(JOBS, |jobs| usize::try_from(jobs).expect("a small number"));
    pool(jobs, first, |job, outcome, waiting| chase.heard(job, outcome.ok().as_ref(), waiting));
    let (table, all) = chase.table();
    report::write("chaos-planted.txt", &table);
    eprintln!("{table}");
    assert!(all, "the lab does not find what is planted, or finds what is not");
}
