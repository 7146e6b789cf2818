//! `make chaos-pauses`: the ticker is stopped for 20 s, again and again, and nobody elsewhere may notice more than one
//! late number.
//!
//! A pause is the failure that fences are for: the node is not dead, it believes that it is the ticker, and it goes on
//! in the middle of whatever it was doing. Where it stops decides everything, and the one place that matters most,
//! between the decision to publish and the publish, is microseconds wide. Stops at random moments would hardly ever
//! hit it. So a third of the pauses strike at the very beginning of a slot, and a third hold the request to publish
//! itself on its way to Redis (the proxy's snare), stop its sender, and let it arrive when another has long taken the
//! slot and the next ones: Redis must refuse it.
//!
//! What clients saw is judged by the checker of the failure lab; here are only the questions that it does not ask.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::audit::{STALE_GRACE_MS, Verdict, audit};
use crate::evidence::{Demands, Evidence, FaultLog, Ms, Node, Number, Pace, Part, Published, Session, What};
use crate::fleet::{Fleet, PING_INTERVAL};
use crate::lab::{alone, number, proven};
use crate::plan::{Plan, Topology};
use crate::prng::Prng;
use crate::producer::{self, Numbers};
use crate::report::{self, shown};
use crate::run::{ms, publish_last, survivors, until, worst_stall};
use crate::stage::Stage;
use crate::topology::Backend;
use crate::topology::proxied::Proxied;
use crate::viewer::{Resume, Viewer};

/// Pauses of one call.
const PAUSES: u64 = 50;
/// Clusters at a time: they sleep, mostly.
const CLUSTERS: u64 = 10;
const AWAY: Duration = Duration::from_secs(20);
/// The default of the product.
const INTERVAL: Duration = Duration::from_secs(5);
const GATEWAYS: usize = 3;
/// Each gateway has a third of them, and half of those have ids.
const VIEWERS: usize = 12;
const EVENT_EVERY: Duration = Duration::from_millis(200);
/// All see a fresh number and new events within this, at first and after a pause. What is too late is judged later.
const WELL_WITHIN: Duration = Duration::from_secs(30);
/// What was held on its way arrives this long before its sender goes on.
const ARRIVES_BEFORE: Duration = Duration::from_millis(300);
/// How far from the beginning of a slot a stop strikes that aims at it, in milliseconds. kill(1) takes a few to start.
const AIM_MS: (u64, u64) = (0, 16);
const AIM_AHEAD_MS: Ms = 10;
/// From one start of a cluster to the next.
const STAGGER: Duration = Duration::from_millis(1_500);
/// A request to publish a snapshot, and nothing else, names these two keys one after the other.
const PUBLISH: &[u8] = b"{analytics}:snapshot\r\n$20\r\n{analytics}:visitors\r\n";

/// When in the ticker's work it is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Anywhere,
    /// It is about to publish, or just has.
    SlotBegins,
    /// Its request to publish is on its way.
    UnderWay,
}

impl Moment {
    const ALL: [Self; 3] = [Self::UnderWay, Self::SlotBegins, Self::Anywhere];

    fn name(self) -> &'static str {
        match self {
            Self::Anywhere => "anywhere",
            Self::SlotBegins => "slot begins",
            Self::UnderWay => "publish under way",
        }
    }
}

/// One pause.
#[derive(Debug)]
struct Pause {
    moment: Moment,
    /// Who slept.
    node: Node,
    fault: FaultLog,
    /// Requests of a ticker whose lease was gone that Redis refused.
    refused: u64,
}

/// What one cluster has shown.
#[derive(Debug)]
struct Trial {
    seed: u64,
    evidence: Evidence,
    verdict: Verdict,
    pauses: Vec<Pause>,
}

/// What a pause did to clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Harm {
    /// The longest time without a fresh number for clients of other gateways.
    distance: Ms,
    /// The oldest number that a client of the sleeper was shown as a fresh one, when it read that.
    oldest: Ms,
    /// Sockets of the sleeper that ended.
    closed: usize,
}

/// A cluster that lives through these pauses.
async fn trial(seed: u64, moments: &[Moment], away: Duration) -> Trial {
    let mut prng = Prng::of(seed);
    let stage = Arc::new(Stage::new(VIEWERS));
    let ways = Proxied::start(GATEWAYS).await;
    let plan = Plan { seed, topology: Topology::Proxied, interval: INTERVAL, gateways: GATEWAYS, faults: Vec::new() };
    let mut fleet = Fleet::start(&plan, None, &ways, &stage).await;
    let numbers = Arc::new(Numbers::default());
    let mut viewers = JoinSet::new();
    for index in 0..VIEWERS {
        viewers.spawn(viewer(index).watch(Arc::clone(&stage), prng.fork(index as u64)));
    }
    let mut producers: JoinSet<Vec<(Number, Published)>> = JoinSet::new();
    let adding = producer::stream(Arc::clone(&stage), Arc::clone(&numbers), ways.finder(), EVENT_EVERY);
    let posting = producer::post(Arc::clone(&stage), Arc::clone(&numbers), prng.fork(1_000), EVENT_EVERY);
    producers.spawn(async { adding.await.into_iter().collect() });
    producers.spawn(async { posting.await.into_iter().collect() });
    let mut stalls = JoinSet::new();
    stalls.spawn(worst_stall(Arc::clone(&stage)));
    until(WELL_WITHIN, || all_well(&stage, 0)).await.expect("all viewers see a fresh number at first");
    let complete = stage.now();

    let mut pauses = Vec::new();
    for moment in moments {
        pauses.push(pause(*moment, away, &mut prng, &mut fleet, &ways, &stage).await);
    }

    stage.no_more_events.cancel();
    let mut published: Vec<_> = producers.join_all().await.into_iter().flatten().collect();
    let last = publish_last(&stage, &numbers, &ways.finder()).await;
    let sent = last.1.sent;
    published.push(last);
    until(WELL_WITHIN, || stage.sights.lock().iter().all(|sight| sight.newest >= sent)).await;
    // One more number: what was broken in a way that shows late, shows.
    let settled = stage.now();
    until(WELL_WITHIN, || all_well(&stage, settled)).await;
    let ended = stage.now();
    stage.leave.cancel();
    let sessions = viewers.join_all().await.into_iter().flatten().collect();
    let stall_ms = stalls.join_all().await.into_iter().max().unwrap_or(0);
    let survivors = survivors(&ways.finder()).await;
    let logs = fleet.inspect();
    let evidence = Evidence {
        demands: demands(moments.len()),
        interval_ms: ms(INTERVAL),
        ping_ms: ms(PING_INTERVAL),
        cap: VIEWERS,
        visitors: VIEWERS as u64,
        complete,
        stall_ms,
        cut_short: None,
        ended,
        nodes: fleet.logs.clone(),
        sessions,
        published: published.into_iter().collect(),
        survivors,
        faults: pauses.iter().map(|pause| pause.fault.clone()).collect(),
        attempts: Vec::new(),
        rounds: Vec::new(),
    };
    let mut verdict = audit(&evidence);
    judge(&evidence, &pauses, &mut verdict);
    let trial = Trial { seed, evidence, verdict, pauses };
    if !trial.verdict.violations.is_empty() {
        report::keep(&format!("pauses-{seed}"), &format!("{:#?}", trial.evidence), &table(&trial), &logs);
    }
    trial
}

fn demands(pauses: usize) -> Demands {
    Demands {
        gateways: GATEWAYS,
        clients: VIEWERS,
        with_ids: VIEWERS / 2,
        slow: 0,
        events_per_second: 5,
        faults: pauses,
        refused: 0,
        refused_undisturbed: 0,
        rounds: 0,
    }
}

/// They stay where they are: it is the sleeper's own clients that may not be closed.
fn viewer(index: usize) -> Viewer {
    Viewer {
        index,
        visitor: index,
        ids: index < VIEWERS / 2,
        pace: Pace::Prompt,
        crowded: false,
        resume: Resume::Never,
        pinned: Some(index % GATEWAYS),
        witness: false,
    }
}

/// Whether all viewers have a socket, the true number, counted after that, and an event from after it.
fn all_well(stage: &Stage, after: Ms) -> bool {
    let live = |newest| newest >= after || stage.no_more_events.is_cancelled();
    stage.sights.lock().iter().all(|sight| {
        // Timestamps of snapshots are whole seconds.
        let fresh = sight.counted.is_some_and(|counted| counted + 1_000 > after);
        sight.at.is_some() && fresh && sight.visitors == VIEWERS as u64 && live(sight.newest)
    })
}

async fn pause(
    moment: Moment,
    away: Duration,
    prng: &mut Prng,
    fleet: &mut Fleet,
    ways: &Proxied,
    stage: &Stage,
) -> Pause {
    let ticker = fleet.ticker_but(None, WELL_WITHIN).await.expect("somebody ticks");
    let way = ways.way(ticker);
    let refused_before = way.refused();
    let struck = strike_at(moment, prng, stage, async || {
        way.set_snare(PUBLISH);
        timeout(INTERVAL * 2, way.caught()).await.is_ok()
    })
    .await;
    let (begun, stopped) = fleet.stop(ticker, stage).await;
    let goes_on = Instant::now() + away;
    let successor = fleet.ticker_but(Some(ticker), away).await;
    sleep_until(goes_on - ARRIVES_BEFORE).await;
    way.open_snare();
    sleep_until(goes_on).await;
    let good = fleet.go_on(ticker, begun, stage);
    until(WELL_WITHIN, || all_well(stage, good)).await;
    let confirmed = match successor.filter(|_| struck && !stopped.is_empty()) {
        Some(successor) => format!("{stopped}, gateway {successor} ticks"),
        None => String::new(),
    };
    let what = format!("ticker stopped: {}", moment.name());
    let (part, over) = (Part::Gateway, stage.now());
    let takes_from = begun;
    let fault = FaultLog {
        kind: moment.name(),
        what,
        part,
        cut_off: 1,
        loses: false,
        takes_from,
        confirmed,
        begun,
        good,
        over,
    };
    Pause { moment, node: fleet.node(ticker), fault, refused: way.refused() - refused_before }
}

/// Waits for the moment; says whether it has come.
async fn strike_at(moment: Moment, prng: &mut Prng, stage: &Stage, caught: impl AsyncFnOnce() -> bool) -> bool {
    match moment {
        Moment::Anywhere => sleep(Duration::from_millis(prng.between(0, ms(INTERVAL)))).await,
        Moment::SlotBegins => {
            let left = ms(INTERVAL) - (stage.now() + AIM_AHEAD_MS) % ms(INTERVAL);
            sleep(Duration::from_millis(left + prng.between(AIM_MS.0, AIM_MS.1))).await;
        }
        Moment::UnderWay => return caught().await,
    }
    true
}

/// What the checker does not ask.
fn judge(evidence: &Evidence, pauses: &[Pause], verdict: &mut Verdict) {
    for pause in pauses {
        let harm = harm(evidence, pause);
        if harm.distance >= 2 * evidence.interval_ms {
            verdict.violation(
                "ticker pause",
                format!("{}: {} ms without a number elsewhere", pause.fault.what, harm.distance),
            );
        }
        // Inv. FENCE: what the sleeper had sent was refused, and not just lost on the way.
        if pause.moment == Moment::UnderWay && pause.refused == 0 {
            verdict.violation("ticker pause", "a late publish was not refused".to_owned());
        }
    }
}

fn harm(evidence: &Evidence, pause: &Pause) -> Harm {
    let fault = &pause.fault;
    let (own, others): (Vec<&Session>, Vec<&Session>) =
        evidence.sessions.iter().partition(|session| session.node == pause.node);
    Harm {
        // Nobody there is as bad as nobody told.
        distance: others.iter().map(|session| distance(session, fault)).max().unwrap_or(Ms::MAX),
        oldest: own.iter().map(|session| oldest(session, fault)).max().unwrap_or(0),
        closed: own.iter().filter(|session| (fault.begun..fault.over).contains(&session.closed)).count(),
    }
}

/// The longest time between two fresh snapshots, of which a part lies in the pause.
fn distance(session: &Session, fault: &FaultLog) -> Ms {
    let fresh = session.heard.iter().filter_map(|heard| match heard.what {
        What::Update(shown) if !shown.stale => Some(heard.at),
        // It repeats a snapshot that came before the socket did.
        What::Init(shown) if !shown.stale => Some(shown.counted),
        _ => None,
    });
    let moments: Vec<Ms> = fresh.chain([session.closed]).collect();
    let around = moments.windows(2).filter(|pair| pair[1] >= fault.begun && pair[0] <= fault.good);
    around.map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
}

/// The age of the oldest number that was read as a fresh one since the pause began.
fn oldest(session: &Session, fault: &FaultLog) -> Ms {
    let during = session.heard.iter().filter(|heard| (fault.begun..=fault.over).contains(&heard.at));
    let ages = during.filter_map(|heard| match heard.what {
        What::Init(shown) | What::Update(shown) if !shown.stale => Some(heard.at.saturating_sub(shown.counted)),
        _ => None,
    });
    ages.max().unwrap_or(0)
}

/// What all clusters have shown.
#[derive(Debug, Default)]
struct Sums {
    pauses: usize,
    confirmed: usize,
    refused: u64,
    worst: Harm,
    closed: usize,
    /// Clusters that have shown something wrong, or nothing.
    failed: usize,
}

impl Sums {
    fn add(&mut self, trial: &Trial) {
        for pause in &trial.pauses {
            let harm = harm(&trial.evidence, pause);
            self.pauses += 1;
            self.confirmed += usize::from(!pause.fault.confirmed.is_empty());
            self.refused += pause.refused;
            self.worst.distance = self.worst.distance.max(harm.distance);
            self.worst.oldest = self.worst.oldest.max(harm.oldest);
            self.closed += harm.closed;
        }
    }

    fn line(&self) -> String {
        let stale = 2 * ms(INTERVAL) + STALE_GRACE_MS;
        format!(
            "{} pauses, {} confirmed · {} late publishes refused · longest distance between snapshots elsewhere {} (under {}) · {} sockets of sleepers closed · oldest number of sleepers without \
             a flag {} (at most {}) · {} clusters failed\n",
            self.pauses,
            self.confirmed,
            self.refused,
            shown(self.worst.distance),
            shown(2 * ms(INTERVAL)),
            self.closed,
            shown(self.worst.oldest),
            shown(stale),
            self.failed,
        )
    }
}

fn table(trial: &Trial) -> String {
    let mut text = format!("cluster {} · lab late by {} ms\n", trial.seed, trial.evidence.stall_ms);
    for pause in &trial.pauses {
        let (harm, fault) = (harm(&trial.evidence, pause), &pause.fault);
        let _ = writeln!(
            text,
            "  {:<18} slept {} · elsewhere {} between snapshots · refused {} · closed {} · oldest unflagged {} · {}",
            pause.moment.name(),
            shown(fault.good - fault.begun),
            shown(harm.distance),
            pause.refused,
            harm.closed,
            shown(harm.oldest),
            if fault.confirmed.is_empty() { "NOT CONFIRMED" } else { &fault.confirmed },
        );
    }
    for violation in &trial.verdict.violations {
        let _ = writeln!(text, "  VIOLATION ({}): {}", violation.rule, violation.what);
    }
    for void in &trial.verdict.void {
        let _ = writeln!(text, "  VOID: {void}");
    }
    text
}

#[test]
#[ignore = "`make chaos-pauses` runs it: minutes of real pauses"]
fn pauses() {
    let (wanted, clusters) = (number("PAUSES").unwrap_or(PAUSES), number("JOBS").unwrap_or(CLUSTERS).max(1));
    let (finished, results) = mpsc::sync_channel(usize::try_from(clusters).expect("few"));
    for seed in 0..clusters.min(wanted) {
        // Each moment as often as the others, whatever the cluster.
        let turns = (seed..wanted).step_by(usize::try_from(clusters).expect("few"));
        let moments: Vec<Moment> = turns.map(|turn| Moment::ALL[usize::try_from(turn % 3).expect("few")]).collect();
        let finished = finished.clone();
        thread::spawn(move || {
            thread::sleep(STAGGER * u32::try_from(seed).expect("few"));
            let _ = finished.send(shown_by(seed, &moments, AWAY));
        });
    }
    drop(finished);
    let (mut sums, mut told) = (Sums::default(), String::new());
    for trial in results {
        let table = match &trial {
            Ok(trial) => {
                sums.add(trial);
                table(trial)
            }
            Err(what) => {
                sums.failed += 1;
                format!("FAILED: {what}\n")
            }
        };
        eprintln!("{table}");
        told.push_str(&table);
        report::write("chaos-pauses.txt", &format!("{told}\n{}", sums.line()));
    }
    eprintln!("{}", sums.line());
    assert_eq!(sums.failed, 0, "clusters in which a promise was broken, or that have shown nothing");
    assert_eq!(sums.pauses as u64, wanted, "a cluster did not come to its end");
    assert_eq!(sums.confirmed, sums.pauses);
}

/// A cluster that has lived through these pauses and has shown that all is well; or what was wrong.
fn shown_by(seed: u64, moments: &[Moment], away: Duration) -> Result<Trial, String> {
    let make = || {
        let moments = moments.to_vec();
        alone(async move || trial(seed, &moments, away).await)
    };
    proven(make, |trial: &Trial| &trial.verdict, table)
}

/// Longer than the ticker's lease (3 s).
const SHORT: Duration = Duration::from_secs(5);

fn short(seed: u64, moment: Moment) {
    let trial = shown_by(seed, &[moment], SHORT).unwrap_or_else(|what| panic!("{what}"));
    let confirmed = trial.pauses.iter().all(|pause| !pause.fault.confirmed.is_empty());
    assert!(confirmed, "{}", table(&trial));
}

// Inv. FENCE, Inv. SLOT: what was decided before the pause arrives when others have ticked.
#[test]
fn a_publish_that_was_under_way_when_its_ticker_slept_is_refused() {
    short(1, Moment::UnderWay);
}

// Inv. FENCE, Inv. SLOT
#[test]
fn a_ticker_that_sleeps_at_the_beginning_of_a_slot_is_replaced() {
    short(2, Moment::SlotBegins);
}
