use std::sync::atomic::{AtomicU64, Ordering};

use shared::field::VisitorId;

use super::*;
use crate::backplane::memory::MemoryBackplane;
use crate::backplane::{Tick, TickReply};
use crate::testing::{Call, Fault, Unreliable, within};
use shared::ids::Slot;

const WINDOW: Duration = Duration::from_secs(300);
const WINDOW_MS: u64 = 300_000;
/// Five seconds before a midnight.
const EVE: u64 = 20_000 * DAY_MS - 5_000;

struct Setup {
    backplane: Arc<Unreliable>,
    presence: Arc<Presence>,
    metrics: Arc<Metrics>,
    now: Arc<AtomicU64>,
}

fn setup(window: Duration) -> Setup {
    let now = Arc::new(AtomicU64::new(EVE));
    let time = Arc::clone(&now);
    let backplane = Unreliable::new(MemoryBackplane::with_time(Box::new(move || time.load(Ordering::Relaxed))));
    let (node, clock, metrics) = (NodeId::from_random(1), Clock::start(), Arc::new(Metrics::default()));
    let port: Arc<dyn Backplane> = Arc::clone(&backplane) as _;
    let presence = Presence::new(port, node, window, Arc::clone(&metrics), clock, Arc::new(ClusterTime::new(clock)));
    Setup { backplane, presence, metrics, now }
}

pub(super) fn visitor(name: &str) -> VisitorDigest {
    VisitorDigest::of_id(&VisitorId::parse("visitor", name).expect("an id"))
}

/// What a tick counts now.
async fn counted(backplane: &Unreliable, now: &AtomicU64) -> u64 {
    let interval = Duration::from_secs(5);
    let claim = backplane.claim(NodeId::from_random(1), Duration::from_secs(3)).await.expect("answers");
    let slot = Slot::containing(now.load(Ordering::Relaxed), 5_000);
    let lease = claim.lease.expect("alone");
    match backplane.tick(&Tick { lease, slot, interval, window: WINDOW }).await.expect("answers") {
        TickReply::Published { snapshot, .. } => snapshot.active_visitors,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nobody_counts_twice_at_midnight() {
    let Setup { backplane, presence, now, .. } = setup(WINDOW);
    presence.touch(&[visitor("stays"), visitor("leaves")], None).await.expect("marked");
    assert_eq!(counted(&backplane, &now).await, 2);
    // The day turns; the node still holds yesterday's salt, is refused, and repeats under today's.
    now.store(EVE + 6_000, Ordering::Relaxed);
    presence.touch(&[visitor("stays")], None).await.expect("marked");
    assert_eq!(backplane.count(Call::Salts), 2);
    assert_eq!(counted(&backplane, &now).await, 2, "one by each name, and the one who stayed by the new one alone");
    // Within the window the names of both days meet; after it, those of yesterday are gone.
    now.store(EVE + WINDOW_MS - 1_000, Ordering::Relaxed);
    presence.touch(&[visitor("stays")], None).await.expect("marked");
    now.store(EVE + WINDOW_MS + 4_000, Ordering::Relaxed);
    assert_eq!(counted(&backplane, &now).await, 1);
}

#[tokio::test]
async fn one_visitor_is_marked_once_and_nothing_before_the_salts_are_known() {
    let Setup { presence, .. } = setup(WINDOW);
    assert!(presence.touch_of(&[visitor("a")]).is_none());
    presence.start().await.expect("salts");
    let touch = presence.touch_of(&[visitor("a"), visitor("b"), visitor("a")]).expect("known");
    assert_eq!(touch.seen.len(), 2);
}

// A Redis that lost everything makes new salts, unless a node gives it the ones that visitors were marked under.
#[tokio::test]
async fn salts_that_the_backplane_lost_are_given_back() {
    let Setup { presence: old, .. } = setup(WINDOW);
    old.start().await.expect("salts");
    let held = old.names.load_full().expect("held");
    let Setup { presence, backplane, .. } = setup(WINDOW);
    presence.names.store(Some(Arc::clone(&held)));
    presence.touch(&[visitor("v")], None).await.expect("marked under the salts that were given back");
    let now = backplane.salts(&[]).await.expect("answers");
    assert_eq!((&now.today, &now.yesterday), (&held.salts().today, &held.salts().yesterday));
}

#[tokio::test]
async fn rounds_prove_that_all_are_known_and_survive_failures() {
    let Setup { backplane, presence, metrics, .. } = setup(Duration::from_millis(500));
    backplane.fail(Call::Salts, [Fault::Lost]);
    backplane.fail(Call::Touch, [Fault::Lost, Fault::AnswerLost]);
    let sockets = || ["a", "b"].map(visitor).into_iter().collect();
    let lifecycle = Lifecycle::default();
    tokio::select! {
        () = presence.drive(sockets, &lifecycle) => panic!("ended"),
        () = backplane.seen(Call::Touch, 3) => {}
    }
    assert_eq!(metrics.visitors_touched.value(), 2);
}

#[tokio::test]
async fn who_came_is_marked_soon_and_a_wanted_round_is_begun_at_once() {
    let Setup { backplane, presence, .. } = setup(WINDOW);
    let lifecycle = Lifecycle::default();
    let work = async {
        presence.arrived(visitor("a"));
        backplane.seen(Call::Touch, 1).await;
        // A round would be a minute away.
        presence.refresh_all();
        backplane.seen(Call::Touch, 2).await;
        lifecycle.advance(Phase::Stopped);
    };
    within(async { tokio::join!(presence.drive(HashSet::new, &lifecycle), work) }).await;
}

// Inv. BOUND
#[tokio::test]
async fn those_who_wait_are_bounded() {
    let Setup { presence, .. } = setup(WINDOW);
    for n in 0..ARRIVALS_MAX + 10 {
        presence.arrived(visitor(&n.to_string()));
    }
    assert_eq!(presence.wanted.lock().arrivals.len(), ARRIVALS_MAX);
}
