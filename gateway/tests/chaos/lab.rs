//! `make chaos`: many runs, several at a time, until one is violated.

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use gateway::clock::Clock;

use crate::plan::{Plan, Topology};
use crate::report::{self, Summary};
use crate::run::{Conditions, Outcome, run};

/// Fresh seeds of one call.
const RUNS: u64 = 20;
/// Runs at a time: they mostly wait.
const JOBS: usize = 4;
/// From one start to the next, so that they do not all start their processes at the same time.
const STAGGER: Duration = Duration::from_secs(2);

/// What the caller wants.
struct Options {
    seeds: Vec<u64>,
    jobs: usize,
    topology: Option<Topology>,
    /// Go on after a violation.
    keep_going: bool,
}

impl Options {
    fn read() -> Self {
        let number = |name: &str| option(name).map(|text| text.parse::<u64>().expect("a number"));
        let runs = number("RUNS");
        let seeds = match number("SEED") {
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
        Self { seeds, jobs, topology, keep_going: option("KEEP_GOING").is_some() }
    }
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
    let (begun, mut summary) = (Instant::now(), Summary::default());
    let conditions = Conditions::default();
    let failed = runs(options, conditions, |seed, outcome| {
        eprintln!("[{} s] {}", begun.elapsed().as_secs(), outcome.map_or_else(|| unfinished(seed), report::table));
        if let Some(outcome) = outcome {
            summary.add(outcome);
            if !outcome.verdict.violations.is_empty() {
                keep(outcome);
            }
        }
    });
    eprintln!("{}", summary.table());
    assert!(failed.is_empty(), "violations; replay with: make chaos SEED={}", failed[0]);
}

fn unfinished(seed: u64) -> String {
    format!("seed {seed}: the run did not come to its end\n")
}

/// Runs these, tells of each when it is over (or has failed to come to its end), and gives the seeds that failed. Runs
/// that have begun when one fails are seen to their end.
fn runs(options: Options, conditions: Conditions, mut tell: impl FnMut(u64, Option<&Outcome>)) -> Vec<u64> {
    let mut failed = Vec::new();
    let mut waiting = options.seeds.into_iter();
    let (finished, results) = mpsc::sync_channel(options.jobs);
    let mut running = 0;
    loop {
        while running < options.jobs
            && (failed.is_empty() || options.keep_going)
            && let Some(seed) = waiting.next()
        {
            if running > 0 {
                thread::sleep(STAGGER);
            }
            let (plan, finished) = (Plan::of(seed, options.topology), finished.clone());
            running += 1;
            // A thread of its own for each: its children die with it, and a panic is one run's.
            thread::spawn(move || {
                let outcome = thread::spawn(move || alone(plan, conditions)).join().ok();
                let _ = finished.send((seed, outcome));
            });
        }
        if running == 0 {
            return failed;
        }
        running -= 1;
        let (seed, outcome) = results.recv().expect("the sender is here");
        tell(seed, outcome.as_ref());
        if outcome.is_none_or(|outcome| !outcome.verdict.violations.is_empty()) {
            failed.push(seed);
        }
    }
}

/// A run on this thread.
fn alone(plan: Plan, conditions: Conditions) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(run(plan, conditions))
}

/// Keeps what a run that failed has left, for whoever looks into it.
fn keep(outcome: &Outcome) {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{}", outcome.plan.seed));
    std::fs::create_dir_all(&directory).expect("the build directory can be written to");
    let write = |name: String, text: &str| std::fs::write(directory.join(name), text).expect("written");
    write("evidence".to_owned(), &format!("{:#?}\n{:#?}", outcome.plan, outcome.evidence));
    write("report".to_owned(), &report::table(outcome));
    for (node, log) in &outcome.logs {
        write(format!("gateway-{node}.log"), log);
    }
    eprintln!("kept: {}", directory.display());
}

/// The lab finds what it is for: each bug that gateways are built with here, within twenty seeds.
#[cfg(feature = "planted-bugs")]
mod planted {
    use super::*;

    const SEEDS: std::ops::Range<u64> = 1..21;

    fn check(bug: &'static str) {
        let options = Options { seeds: SEEDS.collect(), jobs: JOBS, topology: None, keep_going: false };
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
