//! `make chaos`: many runs, several at a time, until one is violated.

use std::collections::VecDeque;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use gateway::clock::Clock;

use crate::plan::{Plan, Topology};
use crate::report::{self, Earlier, Record, Summary};
use crate::run::{Conditions, Outcome, run};
use crate::support::redis_server;

/// Fresh seeds of one call.
const RUNS: u64 = 20;
/// Runs at a time: they mostly wait.
const JOBS: usize = 4;
/// From one start to the next, so that they do not all start their processes at the same time.
const STAGGER: Duration = Duration::from_secs(2);
/// A run that was void is made again, with its seed, until it has been made so often.
const TRIES_MAX: usize = 3;

/// What the caller wants.
struct Options {
    seeds: Vec<u64>,
    jobs: usize,
    topology: Option<Topology>,
    /// Go on after a violation.
    keep_going: bool,
    /// What the summary is made of beside this call's runs.
    earlier: Earlier,
}

impl Options {
    fn read() -> Self {
        let runs = number("RUNS");
        let times = usize::try_from(number("TIMES").unwrap_or(1)).expect("a small number");
        let seeds: Vec<u64> = match number("SEED") {
            Some(seed) => (seed..seed + runs.unwrap_or(1)).collect(),
            // Milliseconds would give neighbours the same seeds.
            None => {
                let first = Clock::wall_ms() / 1_000 * 1_000;
                (first..first + runs.unwrap_or(RUNS)).collect()
            }
        };
        let topology = option("TOPOLOGY").map(|name| {
            let known = Topology::ALL.into_iter().find(|topology| topology.name() == name);
            known.expect("TOPOLOGY is single, sentinel, cluster or proxied")
        });
        let jobs = number("JOBS").map_or(JOBS, |jobs| usize::try_from(jobs).expect("a small number"));
        let keep_going = option("KEEP_GOING").is_some();
        let earlier = if option("ADD").is_some() { Earlier::Kept } else { Earlier::Forgotten };
        // What the scheduler does in between is not in the seed: `TIMES=` makes each run several times.
        Self { seeds: seeds.repeat(times), jobs, topology, keep_going, earlier }
    }
}

/// An option that is a number.
pub(crate) fn number(name: &str) -> Option<u64> {
    option(name).map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[expect(clippy::disallowed_methods, reason = "options of the lab, not of the product")]
fn option(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

#[test]
#[ignore = "`make chaos` runs it: minutes of real faults"]
fn lab() {
    let options = Options::read();
    eprintln!("seeds {:?}; replay one with: make chaos SEED=<seed>", options.seeds);
    let (begun, mut summary) = (Instant::now(), Summary::begin(options.earlier));
    let server = redis_server::name();
    let conditions = Conditions::default();
    let failed = runs(options, conditions, |seed, outcome| {
        eprintln!("[{} s] {}", begun.elapsed().as_secs(), outcome.map_or_else(|| unfinished(seed), report::table));
        summary.add(outcome.map_or_else(|| Record::unfinished(seed, &server), |outcome| Record::of(outcome, &server)));
        if let Some(outcome) = outcome
            && !outcome.verdict.violations.is_empty()
        {
            let what = format!("{:#?}\n{:#?}", outcome.plan, outcome.evidence);
            report::keep(&format!("chaos-{seed}"), &what, &report::table(outcome), &outcome.logs);
        }
    });
    eprintln!("{}", summary.table());
    assert!(failed.is_empty(), "violations; replay with: make chaos SEED={}", failed[0]);
}

fn unfinished(seed: u64) -> String {
    format!("seed {seed}: the run did not come to its end\n")
}

/// Runs these, tells of each when it is over (or has failed to come to its end), and gives the seeds that failed. Runs
/// that have begun when one fails are seen to their end. One that is void (a fault had no effect that could be seen, or
/// the machine was so busy that the lab itself was late) is listed as such and made again; it fails when that does not
/// help.
fn runs(options: Options, conditions: Conditions, mut tell: impl FnMut(u64, Option<&Outcome>)) -> Vec<u64> {
    let mut failed = Vec::new();
    let mut waiting: VecDeque<(u64, usize)> = options.seeds.into_iter().map(|seed| (seed, 1)).collect();
    let (finished, results) = mpsc::sync_channel(options.jobs);
    let mut running = 0;
    loop {
        while running < options.jobs
            && (failed.is_empty() || options.keep_going)
            && let Some((seed, tries)) = waiting.pop_front()
        {
            if running > 0 {
                thread::sleep(STAGGER);
            }
            let (plan, finished) = (Plan::of(seed, options.topology), finished.clone());
            running += 1;
            // A thread of its own for each: its children die with it, and a panic is one run's.
            thread::spawn(move || {
                let outcome = thread::spawn(move || alone(plan, conditions)).join().ok();
                let _ = finished.send((seed, tries, outcome));
            });
        }
        if running == 0 {
            return failed;
        }
        running -= 1;
        let (seed, tries, outcome) = results.recv().expect("the sender is here");
        tell(seed, outcome.as_ref());
        match outcome.map(|outcome| outcome.verdict) {
            Some(verdict) if !verdict.violations.is_empty() => failed.push(seed),
            Some(verdict) if verdict.void.is_empty() => {}
            Some(_) if tries < TRIES_MAX => waiting.push_back((seed, tries + 1)),
            // A run that cannot be made, or did not come to its end, has shown nothing.
            _ => failed.push(seed),
        }
    }
}

/// A run on this thread.
fn alone(plan: Plan, conditions: Conditions) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(run(plan, conditions))
}

/// The lab finds what it is for: each bug that gateways are built with here, within twenty seeds.
#[cfg(feature = "planted-bugs")]
mod planted {
    use super::*;

    const SEEDS: std::ops::Range<u64> = 1..21;

    fn check(bug: &'static str) {
        let options =
            Options { seeds: SEEDS.collect(), jobs: JOBS, topology: None, keep_going: false, earlier: Earlier::Kept };
        let begun = Instant::now();
        let mut found: Vec<String> = Vec::new();
        let failed = runs(options, Conditions { bug: Some(bug), ..Conditions::default() }, |seed, outcome| {
            let Some(outcome) = outcome else { return };
            let rules = outcome.verdict.violations.iter().map(|violation| violation.rule);
            found.extend(rules.map(|rule| format!("seed {seed}: {rule}")));
        });
        assert!(!failed.is_empty() && !found.is_empty(), "{bug} was not found with seeds {SEEDS:?}");
        found.dedup();
        eprintln!("{bug}: found after {} s; {found:?}", begun.elapsed().as_secs());
    }

    #[test]
    #[ignore = "`make chaos-planted` runs it"]
    fn no_cursor_check() {
        check("no-cursor-check");
    }

    #[test]
    #[ignore = "`make chaos-planted` runs it"]
    fn publish_twice() {
        check("publish-twice");
    }

    #[test]
    #[ignore = "`make chaos-planted` runs it"]
    fn counts_by_difference() {
        check("counts-by-difference");
    }

    #[test]
    #[ignore = "`make chaos-planted` runs it"]
    fn no_slot_check() {
        check("no-slot-check");
    }

    #[test]
    #[ignore = "`make chaos-planted` runs it"]
    fn no_reregistration() {
        check("no-reregistration");
    }
}
