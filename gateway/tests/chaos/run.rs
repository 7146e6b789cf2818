//! One run: starts everything, lets the faults strike, waits for healing, and gathers the evidence.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::audit::{Verdict, audit, quiet_from};
use crate::churn::churn;
use crate::evidence::{Attempt, Evidence, FaultLog, Ms, Node, Number, Pace, Part, Published, Session, Survivor};
use crate::fleet::{Fleet, PING_INTERVAL};
use crate::plan::{CROWD, Fault, Plan, VIEWERS, Which};
use crate::prng::Prng;
use crate::producer::{self, Numbers};
use crate::stage::{Sight, Stage};
use crate::support::resp::{Reply, Resp};
use crate::topology::{self, Backend, Finder, Scene, Struck};
use crate::viewer::{self, Resume, Viewer};

/// All viewers see a fresh number before this, or the run cannot begin.
const WARM_WITHIN: Duration = Duration::from_secs(30);
/// How long the lab looks for healing, if it wants to know how late it comes; what is too late is judged later.
const HEALED_WITHIN: Duration = Duration::from_secs(40);
/// After healing nothing happens for a while: what was broken in a way that shows late, shows.
const CALM: Duration = Duration::from_millis(1_500);
/// At the end, slow readers have read everything within this.
const SETTLED_WITHIN: Duration = Duration::from_secs(15);
/// The lab may be later still than it has been until then.
const QUIET_MARGIN_MS: Ms = 300;
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often the lab looks how late its own timers are.
const STALL_EVERY: Duration = Duration::from_millis(20);

/// A finished run.
pub(crate) struct Outcome {
    pub(crate) plan: Plan,
    pub(crate) evidence: Evidence,
    pub(crate) verdict: Verdict,
    /// What each gateway process has logged.
    pub(crate) logs: Vec<(Node, String)>,
    pub(crate) took: Duration,
}

/// Everyone who takes part beside the gateways.
struct Cast {
    viewers: JoinSet<Vec<Session>>,
    producers: JoinSet<Vec<(Number, Published)>>,
    intruder: JoinSet<Vec<Attempt>>,
    stalls: JoinSet<Ms>,
    busy: JoinSet<()>,
}

/// What does not come from the seed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conditions {
    /// What viewers do when they come again.
    pub(crate) resume: Resume,
    /// The bug that the gateways have, if they were built to have one.
    pub(crate) bug: Option<&'static str>,
    /// For how long each fault may take to heal. Then the run is over: what comes after it would be no news, and slow to
    /// come, as each further fault is waited for in vain.
    pub(crate) patience: Duration,
}

impl Default for Conditions {
    fn default() -> Self {
        Self { resume: Resume::default(), bug: None, patience: HEALED_WITHIN }
    }
}

/// Does what the plan says. Panics only when the lab itself cannot go on.
pub(crate) async fn run(plan: Plan, conditions: Conditions) -> Outcome {
    let begun = Instant::now();
    let stage = Arc::new(Stage::new(VIEWERS));
    let mut backend = topology::start(&plan).await;
    let mut fleet = Fleet::start(&plan, conditions.bug, &*backend, &stage).await;
    let numbers = Arc::new(Numbers::default());
    let cast = enter(&plan, &stage, &numbers, &backend.finder(), conditions.resume);
    until(WARM_WITHIN, || all_see(&stage, 0, Who::Everybody)).await.expect("all viewers see a fresh number at first");

    let mut evidence = Evidence {
        interval_ms: ms(plan.interval),
        ping_ms: ms(PING_INTERVAL),
        cap: CROWD,
        visitors: VIEWERS as u64,
        complete: stage.now(),
        ..Evidence::default()
    };

    let extra = Mutex::new(Vec::new());
    for (pause, fault) in &plan.faults {
        sleep(*pause).await;
        let scene = Scene {
            stage: &stage,
            numbers: &numbers,
            interval: plan.interval,
            published: &extra,
            targets: targets(*fault, &plan, &fleet).await,
            blow: Notify::new(),
        };
        let (log, healed) = suffer(*fault, &mut fleet, &mut *backend, &scene, conditions.patience).await;
        evidence.faults.push(log);
        if !healed {
            evidence.cut_short = Some(format!("{fault:?} had not healed after {:?}", conditions.patience));
            break;
        }
        sleep(CALM).await;
    }

    stage.no_more_events.cancel();
    evidence.published = cast.producers.join_all().await.into_iter().flatten().chain(extra.into_inner()).collect();
    let last = publish_last(&stage, &numbers, &backend.finder()).await;
    stage.hurry.cancel();
    if evidence.cut_short.is_none() {
        until(SETTLED_WITHIN, || all_have_read(&stage, last.1.sent)).await;
        // One more number, which has counted those who came last.
        let settled = stage.now();
        until(SETTLED_WITHIN, || all_see(&stage, settled, Who::Prompt)).await;
        (evidence.nodes, evidence.stall_ms) = (fleet.logs.clone(), stage.stall_ms.load(Ordering::Relaxed));
        let quiet = quiet_from(&evidence) + QUIET_MARGIN_MS;
        let has_come_again = || stage.rounds.lock().windows(2).any(|pair| pair[0].to >= quiet);
        until(SETTLED_WITHIN, has_come_again).await;
    }
    evidence.published.extend([last]);
    evidence.ended = stage.now();
    stage.leave.cancel();
    evidence.sessions = cast.viewers.join_all().await.into_iter().flatten().collect();
    evidence.attempts = cast.intruder.join_all().await.into_iter().flatten().collect();
    cast.busy.join_all().await;
    evidence.rounds = stage.rounds.lock().clone();
    evidence.stall_ms = cast.stalls.join_all().await.into_iter().max().unwrap_or(0);
    evidence.survivors = survivors(&backend.finder()).await;
    let logs = fleet.inspect();
    evidence.nodes = fleet.logs.clone();
    let verdict = audit(&evidence);
    Outcome { plan, evidence, verdict, logs, took: begun.elapsed() }
}

pub(crate) fn ms(duration: Duration) -> Ms {
    Ms::try_from(duration.as_millis()).expect("short")
}

fn enter(plan: &Plan, stage: &Arc<Stage>, numbers: &Arc<Numbers>, finder: &Arc<Finder>, resume: Resume) -> Cast {
    let prng = Prng::of(plan.seed);
    let mut cast = Cast {
        viewers: JoinSet::new(),
        producers: JoinSet::new(),
        intruder: JoinSet::new(),
        stalls: JoinSet::new(),
        busy: JoinSet::new(),
    };
    for index in 0..VIEWERS {
        let (ids, slow) = Plan::viewer(index);
        let pace = if slow { Pace::Slow } else { Pace::Prompt };
        let crowded = Plan::crowded(index);
        let viewer = Viewer { index, visitor: index, ids, pace, crowded, resume, pinned: None, witness: false };
        cast.viewers.spawn(viewer.watch(Arc::clone(stage), prng.fork(1_000 + index as u64)));
    }
    cast.viewers.spawn(viewer::witness(Arc::clone(stage), VIEWERS, prng.fork(3)));
    let (stream, post) = (
        producer::stream(Arc::clone(stage), Arc::clone(numbers), Arc::clone(finder), producer::EVERY),
        producer::post(Arc::clone(stage), Arc::clone(numbers), prng.fork(1), producer::EVERY),
    );
    cast.producers.spawn(async { stream.await.into_iter().collect() });
    cast.producers.spawn(async { post.await.into_iter().collect() });
    cast.busy.spawn(churn(Arc::clone(stage), prng.fork(4)));
    cast.intruder.spawn(viewer::intrude(Arc::clone(stage), prng.fork(2)));
    cast.stalls.spawn(worst_stall(Arc::clone(stage)));
    cast
}

/// The longest time for which a timer of the lab was late.
pub(crate) async fn worst_stall(stage: Arc<Stage>) -> Ms {
    let mut worst = 0;
    while !stage.leave.is_cancelled() {
        let begun = stage.now();
        sleep(STALL_EVERY).await;
        worst = worst.max((stage.now() - begun).saturating_sub(ms(STALL_EVERY)));
        stage.stall_ms.store(worst, Ordering::Relaxed);
    }
    worst
}

/// Does it, and waits until all is well again, or for so long; says whether it is.
async fn suffer(
    fault: Fault,
    fleet: &mut Fleet,
    backend: &mut dyn Backend,
    scene: &Scene<'_>,
    patience: Duration,
) -> (FaultLog, bool) {
    let stage = scene.stage;
    let (part, struck): (Part, Struck) = match fault {
        Fault::GatewayKilled { which, away } => {
            let index = fleet.find(which).await;
            (Part::Gateway, fleet.kill(index, away, stage).await)
        }
        Fault::GatewayFrozen { which, away } => {
            let index = fleet.find(which).await;
            (Part::Gateway, fleet.freeze(index, away, stage).await)
        }
        _ => {
            let struck = if fault == Fault::PowerCutAfterTick {
                let ticker = fleet.find(Which::Ticker).await;
                let dying = async {
                    scene.blow.notified().await;
                    fleet.kill(ticker, Duration::ZERO, stage).await
                };
                let (redis, gateway) = tokio::join!(backend.strike(fault, scene), dying);
                redis.and(&gateway)
            } else {
                backend.strike(fault, scene).await
            };
            (Part::Redis, struck)
        }
    };
    let good = struck.good;
    // How long it took is judged later, by what clients have read; here the lab waits, so that each fault has its own
    // healing.
    let (prompt, crowd) = tokio::join!(
        until(patience, || all_see(stage, good, Who::Prompt)),
        until(patience, || all_see(stage, good, Who::Crowd)),
    );
    if part == Part::Redis {
        backend.restore().await;
    }
    let Struck { begun, takes_from, good, confirmed } = struck;
    let (kind, what) = (fault.kind(), format!("{fault:?}"));
    let cut_off = match (part, fault) {
        // One that sleeps reaches nobody.
        (Part::Gateway, _) | (_, Fault::PathBroken { whose: Some(_), .. }) => 1,
        (Part::Redis, _) => fleet.size(),
    };
    let (loses, over) = (fault.loses(), stage.now());
    let log = FaultLog { kind, what, part, cut_off, loses, takes_from, confirmed, begun, good, over };
    (log, prompt.and(crowd).is_some())
}

/// For which gateways the way to Redis breaks.
async fn targets(fault: Fault, plan: &Plan, fleet: &Fleet) -> Vec<usize> {
    match fault {
        Fault::PathBroken { whose: Some(which), .. } => vec![fleet.find(which).await],
        Fault::PathBroken { whose: None, .. } => (0..plan.gateways).collect(),
        _ => Vec::new(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// All that read promptly, but for those who share an address.
    Prompt,
    /// Those who share an address.
    Crowd,
    /// All that read promptly.
    Everybody,
}

/// Whether these viewers have a socket, the true number, and that and an event from after that time. With those who read promptly
/// goes the witness of each gateway that is up: a gateway may have no other viewer, and is to heal all the same.
fn all_see(stage: &Stage, after: Ms, who: Who) -> bool {
    // Timestamps of snapshots are whole seconds.
    let fresh = |sight: &Sight| {
        sight.visitors == VIEWERS as u64 && sight.counted.is_some_and(|counted| counted + 1_000 > after)
    };
    let live = |sight: &Sight| sight.newest >= after || stage.no_more_events.is_cancelled();
    let sees = |sight: &Sight| sight.at.is_some() && fresh(sight) && live(sight);
    let viewers = stage.sights.lock().iter().take(VIEWERS).enumerate().all(|(index, sight)| {
        let (_, slow) = Plan::viewer(index);
        let crowded = Plan::crowded(index);
        let concerned = match who {
            Who::Prompt => !crowded,
            Who::Crowd => crowded,
            Who::Everybody => true,
        };
        slow || !concerned || sees(sight)
    });
    viewers && (who == Who::Crowd || witnesses(stage).iter().all(sees))
}

/// What the witnesses of all gateways see that are up.
fn witnesses(stage: &Stage) -> Vec<Sight> {
    let up = stage.up();
    let sights = stage.sights.lock();
    up.iter().map(|place| sights.get(VIEWERS + place.node).copied().unwrap_or_default()).collect()
}

/// Whether everybody has read an event that was sent then.
fn all_have_read(stage: &Stage, sent: Ms) -> bool {
    let has_read = |sight: &Sight| sight.at.is_some() && sight.newest >= sent;
    let viewers = stage.sights.lock().iter().take(VIEWERS).all(has_read);
    viewers && witnesses(stage).iter().all(has_read)
}

/// Waits until it holds; none when it does not within that time.
pub(crate) async fn until(within: Duration, holds: impl Fn() -> bool) -> Option<()> {
    let waiting = async {
        while !holds() {
            sleep(LOOK_EVERY).await;
        }
    };
    timeout(within, waiting).await.ok()
}

/// One more event, which everybody must get: then all before it are there too.
pub(crate) async fn publish_last(stage: &Stage, numbers: &Numbers, finder: &Finder) -> (Number, Published) {
    loop {
        let (number, sent) = (numbers.next(), stage.now());
        if let Some(mut redis) = finder.connect().await
            && let Some(id) = producer::add(&mut redis, b"*", number, sent).await
        {
            return (number, Published { sent, accepted: Some((stage.now(), id)) });
        }
        sleep(LOOK_EVERY).await;
    }
}

/// What stands in the stream now.
pub(crate) async fn survivors(finder: &Finder) -> Vec<Survivor> {
    let mut redis: Resp = finder.connect().await.expect("redis is up at the end");
    let reply = redis.ask(&[b"XRANGE", producer::STREAM, b"-", b"+"]).await.expect("redis is up at the end");
    let field = |entry: &Reply, name: &str| {
        let fields = entry.many()[1].many();
        fields.chunks(2).find(|pair| pair[0].text() == name).map(|pair| pair[1].text().to_owned())
    };
    let survivor = |entry: &Reply| {
        let number = field(entry, "data").and_then(|data| {
            let (_, rest) = data.split_once("/n/")?;
            rest.split('/').next()?.parse().ok()
        });
        let count = |name| field(entry, name).and_then(|text| text.parse().ok());
        Survivor { id: entry.many()[0].text().to_owned(), number, slot: count("slot"), epoch: count("epoch") }
    };
    reply.many().iter().map(survivor).collect()
}
