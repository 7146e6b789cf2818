//! `make chaos`: many runs, several at a time, until one is violated.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use gateway::clock::Clock;
use tokio_util::sync::CancellationToken;

use crate::plan::{Plan, Topology};
use crate::report::{self, Earlier, Record, Summary};
use crate::run::{Conditions, Outcome, run};
use crate::support::redis_server;
use crate::topology::ServersUnwilling;

/// Fresh seeds of one call.
const RUNS: u64 = 20;
/// Runs at a time: they mostly wait.
pub(crate) const JOBS: usize = 4;
/// From one start to the next, so that they do not all start their processes at the same time.
const STAGGER: Duration = Duration::from_secs(2);
/// A run that was void is made again, with its seed, until it has been made so often.
pub(crate) const TRIES_MAX: usize = 3;

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
    let failed = runs(&options, conditions, |seed, outcome| {
        let table = outcome.map_or_else(|unfinished| unfinished.told_of(seed), report::table);
        eprintln!("[{} s] {table}", begun.elapsed().as_secs());
        summary.add(match outcome {
            Ok(outcome) => Record::of(outcome, &server),
            Err(Unfinished::Panicked) => Record::unfinished(seed, &server),
            Err(Unfinished::ServersUnwilling(why)) => Record::void(seed, &server, why),
        });
        if let Ok(outcome) = outcome
            && !outcome.verdict.violations.is_empty()
        {
            let what = format!("{:#?}\n{:#?}", outcome.plan, outcome.evidence);
            report::keep(&format!("chaos-{seed}"), &what, &table, &outcome.logs);
        }
    });
    eprintln!("{}", summary.table());
    assert!(failed.is_empty(), "violations; replay with: make chaos SEED={}", failed[0]);
}

/// Why a run has no outcome.
#[derive(Debug, Clone)]
pub(crate) enum Unfinished {
    /// Redis did not come to be what it had to be before the run could go on.
    ServersUnwilling(String),
    /// Something else was wrong, with the gateways or with the lab; or it was stopped.
    Panicked,
}

impl Unfinished {
    fn of(panic: &(dyn Any + Send)) -> Self {
        let why = panic.downcast_ref::<ServersUnwilling>();
        why.map_or(Self::Panicked, |ServersUnwilling(why)| Self::ServersUnwilling(why.clone()))
    }

    fn told_of(&self, seed: u64) -> String {
        match self {
            Self::ServersUnwilling(why) => format!("seed {seed}: void, its servers did not get ready: {why}\n"),
            Self::Panicked => format!("seed {seed}: the run did not come to its end\n"),
        }
    }
}

/// Runs these, tells of each when it is over (or has failed to come to its end), and gives the seeds that failed. Runs
/// that have begun when one fails are seen to their end. One that is void (a fault had no effect that could be seen, Redis
/// itself did not recover, or the machine was so busy that the lab itself was late) is listed as such and made again; it
/// fails when that does not help.
fn runs(
    options: &Options,
    conditions: Conditions,
    mut tell: impl FnMut(u64, Result<&Outcome, &Unfinished>),
) -> Vec<u64> {
    let mut failed = Vec::new();
    let jobs = options.seeds.iter().map(|seed| Job::first(*seed, options.topology, conditions)).collect();
    pool(options.jobs, jobs, |job, outcome, waiting| {
        tell(job.seed, outcome.as_ref());
        match outcome.map(|outcome| outcome.verdict) {
            Ok(verdict) if verdict.violations.is_empty() && verdict.void.is_empty() => {}
            Ok(verdict) if verdict.violations.is_empty() && job.tries < TRIES_MAX => waiting.push_back(job.again()),
            Err(Unfinished::ServersUnwilling(_)) if job.tries < TRIES_MAX => waiting.push_back(job.again()),
            // A run that cannot be made, or did not come to its end, has shown nothing.
            _ => failed.push(job.seed),
        }
        if !failed.is_empty() && !options.keep_going {
            waiting.clear();
        }
    });
    failed
}

/// A run that waits to be made.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) seed: u64,
    pub(crate) topology: Option<Topology>,
    pub(crate) conditions: Conditions,
    /// How often it will have been made.
    pub(crate) tries: usize,
    /// Nobody wants to know any more.
    pub(crate) stop: CancellationToken,
}

impl Job {
    pub(crate) fn first(seed: u64, topology: Option<Topology>, conditions: Conditions) -> Self {
        Self { seed, topology, conditions, tries: 1, stop: CancellationToken::new() }
    }

    pub(crate) fn again(self) -> Self {
        Self { tries: self.tries + 1, ..self }
    }
}

/// Makes these runs, so many at a time, and tells of each with what waits, which may be changed. Those that are stopped
/// are not told of.
pub(crate) fn pool(
    jobs: usize,
    mut waiting: VecDeque<Job>,
    mut tell: impl FnMut(Job, Result<Outcome, Unfinished>, &mut VecDeque<Job>),
) {
    let (finished, results) = mpsc::sync_channel(jobs);
    let mut running = 0;
    loop {
        waiting.retain(|job| !job.stop.is_cancelled());
        while running < jobs
            && let Some(job) = waiting.pop_front()
        {
            if running > 0 {
                thread::sleep(STAGGER);
            }
            let finished = finished.clone();
            running += 1;
            // A thread of its own for each: its children die with it, and a panic is one run's.
            thread::spawn(move || {
                let alone = job.clone();
                let made = thread::spawn(move || alone.make()).join();
                let outcome =
                    made.map_err(|panic| Unfinished::of(&*panic)).and_then(|made| made.ok_or(Unfinished::Panicked));
                let _ = finished.send((job, outcome));
            });
        }
        if running == 0 {
            return;
        }
        running -= 1;
        let (job, outcome) = results.recv().expect("the sender is here");
        if !job.stop.is_cancelled() {
            tell(job, outcome, &mut waiting);
        }
    }
}

impl Job {
    /// Makes the run, on this thread. None when it was stopped; its processes end with it.
    fn make(self) -> Option<Outcome> {
        let plan = Plan::of(self.seed, self.topology);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(self.stop.run_until_cancelled(run(plan, self.conditions)))
    }
}

#[test]
fn only_what_redis_did_not_do_is_no_finding() {
    let why = |panic: Box<dyn FnOnce() + Send>| Unfinished::of(&*thread::spawn(panic).join().expect_err("it panics"));
    let unwilling = why(Box::new(|| std::panic::panic_any(ServersUnwilling("no election".to_owned()))));
    assert!(matches!(unwilling, Unfinished::ServersUnwilling(told) if told == "no election"));
    let other = why(Box::new(|| panic!("a gateway did not get ready")));
    assert!(matches!(other, Unfinished::Panicked));
}
