//! `make chaos`: many runs, several at a time, until one is violated.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use gateway::clock::Clock;
use tokio_util::sync::CancellationToken;

use crate::audit::Verdict;
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

/// What follows from a run, or from its failure to be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// All promises were kept, and what was done to the system was real.
    Well,
    /// Neither that nor the contrary: it has to be made again.
    Nothing,
    /// A promise was broken; or the run did not come to its end, for which nobody but us can be blamed.
    Wrong,
}

impl Shown {
    fn by(verdict: Result<&Verdict, &Unfinished>) -> Self {
        match verdict {
            Ok(verdict) if !verdict.violations.is_empty() => Self::Wrong,
            Ok(verdict) if verdict.void.is_empty() => Self::Well,
            Ok(_) | Err(Unfinished::ServersUnwilling(_)) => Self::Nothing,
            Err(Unfinished::Panicked) => Self::Wrong,
        }
    }
}

/// Makes one run until it has shown something, and at most [`TRIES_MAX`] times; what showed nothing is told. An error
/// says what was wrong.
pub(crate) fn proven<T>(
    mut make: impl FnMut() -> Result<T, Unfinished>,
    verdict: impl Fn(&T) -> &Verdict,
    table: impl Fn(&T) -> String,
) -> Result<T, String> {
    for tries in 1..=TRIES_MAX {
        let made = make();
        let told = made.as_ref().map_or_else(|unfinished| format!("{unfinished:?}"), &table);
        match (Shown::by(made.as_ref().map(&verdict)), made) {
            (Shown::Well, Ok(made)) => return Ok(made),
            (Shown::Nothing, _) => eprintln!("try {tries} of {TRIES_MAX} has shown nothing: {told}"),
            _ => return Err(told),
        }
    }
    Err(format!("{TRIES_MAX} tries have shown nothing"))
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
        match Shown::by(outcome.as_ref().map(|outcome| &outcome.verdict)) {
            Shown::Well => {}
            Shown::Nothing if job.tries < TRIES_MAX => waiting.push_back(job.again()),
            Shown::Nothing | Shown::Wrong => failed.push(job.seed),
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

/// Makes these runs, each on a thread of its own, so many at a time, and tells of each with what waits, which may be changed. Those that are stopped
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
            thread::spawn(move || {
                let Job { seed, topology, conditions, stop, .. } = job.clone();
                let outcome = alone(async move || {
                    stop.run_until_cancelled_owned(run(Plan::of(seed, topology), conditions)).await
                });
                let _ = finished.send((job, outcome.and_then(|made| made.ok_or(Unfinished::Panicked))));
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

/// Makes a run on a thread of its own: a panic is that run's, and its processes end with it.
pub(crate) fn alone<T: Send + 'static>(make: impl AsyncFnOnce() -> T + Send + 'static) -> Result<T, Unfinished> {
    let made = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(make())
    });
    made.join().map_err(|panic| Unfinished::of(&*panic))
}

#[test]
fn only_what_redis_did_not_do_is_no_finding() {
    let why = |panic: Box<dyn FnOnce() + Send>| Unfinished::of(&*thread::spawn(panic).join().expect_err("it panics"));
    let unwilling = why(Box::new(|| std::panic::panic_any(ServersUnwilling("no election".to_owned()))));
    assert!(matches!(unwilling, Unfinished::ServersUnwilling(told) if told == "no election"));
    let other = why(Box::new(|| panic!("a gateway did not get ready")));
    assert!(matches!(other, Unfinished::Panicked));
}

#[test]
fn a_run_is_repeated_only_where_it_has_shown_nothing() {
    let verdict = |violated: bool, void: bool| {
        let mut verdict = Verdict::default();
        if violated {
            verdict.violation("test", String::new());
        }
        verdict.void.extend(void.then(|| "a fault had no effect".to_owned()));
        Ok(verdict)
    };
    // What came of it, and how often it was made.
    let proof = |made: Vec<Result<Verdict, Unfinished>>| {
        let mut made = made.into_iter();
        let proof = proven(|| made.next().expect("no more tries"), |verdict| verdict, |_| "told".to_owned());
        (proof.is_ok(), made.len())
    };
    assert_eq!(proof(vec![verdict(false, false)]), (true, 0));
    assert_eq!(proof(vec![verdict(false, true), verdict(false, true), verdict(false, false)]), (true, 0));
    assert_eq!(proof((0..=TRIES_MAX).map(|_| verdict(false, true)).collect()), (false, 1), "void is not green");
    // What was violated is not made good by another try, nor excused by what was void.
    assert_eq!(proof(vec![verdict(true, false), verdict(false, false)]), (false, 1));
    assert_eq!(proof(vec![verdict(true, true), verdict(false, false)]), (false, 1));
    let unwilling = || Err(Unfinished::ServersUnwilling("no election".to_owned()));
    assert_eq!(proof(vec![unwilling(), verdict(false, false)]), (true, 0));
    assert_eq!(proof(vec![Err(Unfinished::Panicked), verdict(false, false)]), (false, 1));
}
