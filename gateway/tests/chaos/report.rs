//! What people read: a table for each run, and what all runs together have shown.
//!
//! Two hundred runs take longer than anybody watches, and are made in pieces. So each run leaves a record, a line of
//! JSON, as soon as it is over, and the summary is made of records: of one call's, or, with `ADD=1`, of those that
//! earlier calls have left too. Whatever ends the lab, what was done so far is there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::audit::{Bounds, RECOVERY_MS};
use crate::evidence::{Demands, Ms, Node};
use crate::run::Outcome;

const RECORDS: &str = "chaos-runs.jsonl";
/// Those of earlier calls that are not to be added to: two hundred runs are not made again for a replay.
const PREVIOUS: &str = "chaos-runs.previous.jsonl";
const SUMMARY: &str = "chaos-summary.txt";

/// The table of one run.
pub(crate) fn table(outcome: &Outcome) -> String {
    let (plan, evidence, verdict) = (&outcome.plan, &outcome.evidence, &outcome.verdict);
    let mut text = String::new();
    let had = verdict.had.expect("each audit counts");
    let _ = writeln!(
        text,
        "seed {} · {} · slots of {} s · {} gateway processes · {} clients ({} with ids, {} slow) · {} events/s · {} sockets · \
         {} s · lab late by {} ms",
        plan.seed,
        plan.topology.name(),
        plan.interval.as_secs(),
        evidence.nodes.len(),
        had.clients,
        had.with_ids,
        had.slow,
        had.events_per_second,
        evidence.sessions.len(),
        outcome.took.as_secs(),
        evidence.stall_ms,
    );
    let _ = writeln!(text, "  {:<22} {:>9} {:>9} {:>9}  confirmed by", "fault", "detected", "good", "healed");
    let times = verdict.detection_ms.iter().zip(&verdict.recovery_ms);
    for (fault, (detection, recovery)) in evidence.faults.iter().zip(times) {
        let _ = writeln!(
            text,
            "  {:<22} {:>9} {:>9} {:>9}  {}",
            fault.kind,
            shown(*detection),
            shown(fault.good - fault.begun),
            recovery.map_or("never".to_owned(), shown),
            if fault.confirmed.is_empty() { "NOTHING" } else { &fault.confirmed }
        );
    }
    let _ = writeln!(
        text,
        "  events: {} offered, {} accepted, {} lost by redis ({} unannounced), {} redone · delivered {} · gaps {} for {} events ({} of slow readers, \
         {} overflows) · closes {} · eleventh refused {} ({} undisturbed) · {} rounds of the busy address",
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
        had.refused,
        had.refused_undisturbed,
        had.rounds,
    );
    for violation in &verdict.violations {
        let _ = writeln!(text, "  VIOLATION ({}): {}", violation.rule, violation.what);
    }
    if let Some(why) = &evidence.cut_short {
        let _ = writeln!(text, "  CUT SHORT: {why}");
    }
    for void in &verdict.void {
        let _ = writeln!(text, "  VOID: {void}");
    }
    text
}

/// Keeps what a run that failed has left, for whoever looks into it.
pub(crate) fn keep(name: &str, evidence: &str, table: &str, logs: &[(Node, String)]) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&directory).expect("the build directory can be written to");
    let write = |name: String, text: &str| fs::write(directory.join(name), text).expect("written");
    write("evidence".to_owned(), evidence);
    write("report".to_owned(), table);
    for (node, log) in logs {
        write(format!("gateway-{node}.log"), log);
    }
    eprintln!("kept: {}", directory.display());
}

/// A file of that name beside what is built.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name(name)
}

/// Writes a report to a file of that name beside what is built.
pub(crate) fn write(name: &str, text: &str) {
    let path = file(name);
    fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

pub(crate) fn shown(ms: Ms) -> String {
    format!("{}.{:02} s", ms / 1_000, ms % 1_000 / 10)
}

/// What is kept of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    seed: u64,
    topology: String,
    /// The program that Redis was.
    server: String,
    seconds: u64,
    /// The longest time for which the lab was late.
    stall_ms: Ms,
    had: Demands,
    faults: Vec<FaultRecord>,
    accepted: usize,
    delivered: usize,
    gaps: usize,
    lost_by_redis: usize,
    lost_unannounced: usize,
    redone: usize,
    /// Broken promises, by their rules.
    violations: Vec<String>,
    /// Why it was ended before its plan was.
    #[serde(default)]
    cut_short: Option<String>,
    /// Why it proves nothing, and was repeated.
    void: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct FaultRecord {
    kind: String,
    detection_ms: Ms,
    /// Two intervals and a second.
    detection_bound_ms: Ms,
    until_good_ms: Ms,
    recovery_ms: Option<Ms>,
}

impl Record {
    pub(crate) fn of(outcome: &Outcome, server: &str) -> Self {
        let (evidence, verdict) = (&outcome.evidence, &outcome.verdict);
        let times = verdict.detection_ms.iter().zip(&verdict.recovery_ms);
        let faults = evidence.faults.iter().zip(times).map(|(fault, (detection, recovery))| FaultRecord {
            kind: fault.kind.to_owned(),
            detection_ms: *detection,
            detection_bound_ms: Bounds::of(evidence).stale_ms,
            until_good_ms: fault.good - fault.begun,
            recovery_ms: *recovery,
        });
        Self {
            seed: outcome.plan.seed,
            topology: outcome.plan.topology.name().to_owned(),
            server: server.to_owned(),
            seconds: outcome.took.as_secs(),
            stall_ms: evidence.stall_ms,
            had: verdict.had.expect("each audit counts"),
            faults: faults.collect(),
            accepted: verdict.accepted,
            delivered: verdict.delivered,
            gaps: verdict.gaps,
            lost_by_redis: verdict.lost_by_redis,
            lost_unannounced: verdict.lost_unannounced,
            redone: verdict.redone,
            violations: verdict.violations.iter().map(|violation| violation.rule.to_owned()).collect(),
            cut_short: evidence.cut_short.clone(),
            void: verdict.void.clone(),
        }
    }
}

impl Record {
    /// Of a run that did not come to its end: nothing is known but that.
    pub(crate) fn unfinished(seed: u64, server: &str) -> Self {
        Self { violations: vec!["did not come to its end".to_owned()], ..Self::nothing(seed, server) }
    }

    /// Of a run that could not be made, or not to its end.
    pub(crate) fn void(seed: u64, server: &str, why: &str) -> Self {
        Self { void: vec![why.to_owned()], ..Self::nothing(seed, server) }
    }

    fn nothing(seed: u64, server: &str) -> Self {
        Self {
            seed,
            topology: "unknown".to_owned(),
            server: server.to_owned(),
            seconds: 0,
            stall_ms: 0,
            had: Demands {
                gateways: 0,
                clients: 0,
                with_ids: 0,
                slow: 0,
                events_per_second: 0,
                faults: 0,
                refused: 0,
                refused_undisturbed: 0,
                rounds: 0,
            },
            faults: Vec::new(),
            accepted: 0,
            delivered: 0,
            gaps: 0,
            lost_by_redis: 0,
            lost_unannounced: 0,
            redone: 0,
            violations: Vec::new(),
            cut_short: None,
            void: Vec::new(),
        }
    }
}

/// What becomes of the records of earlier calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Earlier {
    Kept,
    Forgotten,
}

/// Puts what is there to what was set aside before.
fn set_aside(records: &Path, previous: &Path) {
    let Ok(text) = fs::read(records) else { return };
    let mut kept = OpenOptions::new().create(true).append(true).open(previous).expect("records are kept");
    kept.write_all(&text).expect("records are kept");
    fs::remove_file(records).expect("what is set aside is not counted again");
}

/// What all runs together have shown.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    records: Vec<Record>,
}

impl Summary {
    /// Before the first run.
    pub(crate) fn begin(earlier: Earlier) -> Self {
        if earlier == Earlier::Forgotten {
            set_aside(&file(RECORDS), &file(PREVIOUS));
        }
        let text = fs::read_to_string(file(RECORDS)).unwrap_or_default();
        let records = text.lines().map(|line| serde_json::from_str(line).expect("a record of this lab")).collect();
        Self { records }
    }

    /// One more run; writes it down.
    pub(crate) fn add(&mut self, record: Record) {
        let line = serde_json::to_string(&record).expect("a record is JSON");
        let mut records = OpenOptions::new().create(true).append(true).open(file(RECORDS)).expect("records are kept");
        writeln!(records, "{line}").expect("records are kept");
        self.records.push(record);
        write(SUMMARY, &self.table());
    }

    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{:<9} {:<22} {:>5} {:>15} {:>9} {:>15} {:>15}\n",
            "topology", "fault", "times", "worst detection", "of", "until good", "worst recovery"
        );
        let mut kinds: BTreeMap<(&str, &str), Vec<&FaultRecord>> = BTreeMap::new();
        for record in self.valid() {
            for fault in &record.faults {
                kinds.entry((&record.topology, &fault.kind)).or_default().push(fault);
            }
        }
        for ((topology, kind), faults) in &kinds {
            // The one that came nearest to its bound, as slots are of different lengths.
            let nearest = |fault: &&&FaultRecord| fault.detection_ms * 1_000 / fault.detection_bound_ms.max(1);
            let Some(slowest) = faults.iter().max_by_key(nearest) else { continue };
            let recovery =
                faults.iter().map(|fault| fault.recovery_ms).max_by_key(|ms| ms.unwrap_or(Ms::MAX)).flatten();
            let _ = writeln!(
                text,
                "{topology:<9} {kind:<22} {:>5} {:>15} {:>9} {:>15} {:>15}",
                faults.len(),
                shown(slowest.detection_ms),
                shown(slowest.detection_bound_ms),
                shown(faults.iter().map(|fault| fault.until_good_ms).max().unwrap_or(0)),
                recovery.map_or("never".to_owned(), shown),
            );
        }
        text.push_str(&self.bounds());
        text.push_str(&self.sizes());
        text.push_str(&self.totals());
        text
    }

    /// Runs that came to their end and prove something.
    fn valid(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| record.void.is_empty() && !record.faults.is_empty())
    }

    /// What was promised, and how often it took longer and only the lab's own lateness excuses it.
    fn bounds(&self) -> String {
        let faults = || self.valid().flat_map(|record| &record.faults);
        let late_detections = faults().filter(|fault| fault.detection_ms > fault.detection_bound_ms).count();
        let late_recoveries = faults().filter(|fault| fault.recovery_ms.is_none_or(|ms| ms > RECOVERY_MS)).count();
        format!(
            "bounds: detection at most two intervals and a second (\"of\"; intervals are 1, 2 or 5 s); recovery at most {} after \
             a good primary exists (\"until good\": the fault's own length, with Sentinel and Cluster the election). Of {} faults \
             {late_detections} detections and {late_recoveries} recoveries took longer, by no more than transit and the lab's own \
             lateness, or there is a violation\n",
            shown(RECOVERY_MS),
            faults().count(),
        )
    }

    /// What each run had at least that was not cut short.
    fn sizes(&self) -> String {
        let whole = || self.valid().filter(|record| record.cut_short.is_none());
        let least = |of: &dyn Fn(&Record) -> u64| whole().map(of).min().unwrap_or(0);
        let mut topologies: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for record in self.valid() {
            *topologies.entry((&record.server, &record.topology)).or_default() += 1;
        }
        let topologies: Vec<String> =
            topologies.iter().map(|((server, name), runs)| format!("{runs} {name} ({server})")).collect();
        let least_had = |of: &dyn Fn(&Demands) -> usize| whole().map(|record| of(&record.had)).min().unwrap_or(0);
        format!(
            "each run had at least: {} gateways, {} clients, {} with ids, {} slow, {} events/s, {} confirmed faults, {} eleventh \
             sockets refused ({} while nothing was disturbed)\nruns: {}; the lab was late by at most {} ms\n",
            least_had(&|had| had.gateways),
            least_had(&|had| had.clients),
            least_had(&|had| had.with_ids),
            least_had(&|had| had.slow),
            least(&|record| record.had.events_per_second),
            least_had(&|had| had.faults),
            least_had(&|had| had.refused),
            least_had(&|had| had.refused_undisturbed),
            topologies.join(", "),
            self.valid().map(|record| record.stall_ms).max().unwrap_or(0),
        )
    }

    fn totals(&self) -> String {
        let sum = |of: &dyn Fn(&Record) -> usize| self.valid().map(of).sum::<usize>();
        let seconds: Vec<u64> = self.valid().map(|record| record.seconds).collect();
        let mut text = format!(
            "{} runs of {} s on average · {} events accepted, {} messages delivered, {} lost by redis ({} unannounced), {} redone, \
             {} gaps announced · {} eleventh sockets refused · {} violations\n",
            seconds.len(),
            seconds.iter().sum::<u64>() / (seconds.len() as u64).max(1),
            sum(&|record| record.accepted),
            sum(&|record| record.delivered),
            sum(&|record| record.lost_by_redis),
            sum(&|record| record.lost_unannounced),
            sum(&|record| record.redone),
            sum(&|record| record.gaps),
            sum(&|record| record.had.refused),
            self.records.iter().map(|record| record.violations.len()).sum::<usize>(),
        );
        let mut list = |what: &str, separator: &str, of: fn(&Record) -> &[String]| {
            for record in self.records.iter().filter(|record| !of(record).is_empty()) {
                let found = of(record).join(separator);
                let _ = writeln!(text, "{what}: seed {} ({}): {found}", record.seed, record.topology);
            }
        };
        list("violated", ", ", |record| &record.violations);
        list("cut short", "", |record| record.cut_short.as_slice());
        list("void and repeated", "; ", |record| &record.void);
        text
    }
}

#[test]
fn records_that_are_set_aside_are_not_lost() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-records-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("the build directory can be written to");
    let (records, previous) = (directory.join(RECORDS), directory.join(PREVIOUS));
    set_aside(&records, &previous);
    for text in ["one\ntwo\n", "three\n"] {
        fs::write(&records, text).expect("written");
        set_aside(&records, &previous);
        assert!(!records.exists());
    }
    assert_eq!(fs::read_to_string(&previous).expect("kept"), "one\ntwo\nthree\n");
    fs::remove_dir_all(&directory).expect("removed");
}
