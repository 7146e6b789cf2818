//! `claim`, `release`, `tick`, `snapshot`: one ticker, one snapshot per slot, whatever races.

use std::time::Duration;

use gateway::backplane::{Lease, Tick, TickMark, TickReply};
use shared::ids::{Epoch, NodeId, Slot};
use shared::message::PublicMessage;
use shared::time::Timestamp;
use tokio::task::JoinSet;

use super::bench::{Bench, LONG, SHORT, WINDOW, eventually, ms, node, page, request};

pub(crate) async fn a_lease_has_one_holder(bench: Bench) {
    let first = bench.a.claim(node(1), LONG).await.expect("an answer");
    let lease = first.lease.expect("it was free");
    assert_eq!((lease.node, first.last_slot), (node(1), Slot(0)));
    assert!(first.now > 0);
    let looked = bench.b.claim(node(2), LONG).await.expect("an answer");
    assert_eq!(looked.lease, None);
    let prolonged = bench.b.claim(node(1), LONG).await.expect("an answer");
    assert_eq!(prolonged.lease, Some(lease), "the same reign");
    assert!(prolonged.now >= first.now);
}

pub(crate) async fn racing_claims_make_one_ticker(bench: Bench) {
    let mut racers = JoinSet::new();
    for i in 0..20 {
        let handle = if i % 2 == 0 { bench.a.clone() } else { bench.b.clone() };
        racers.spawn(async move { handle.claim(node(i), LONG).await.expect("an answer").lease });
    }
    let leases: Vec<Lease> = racers.join_all().await.into_iter().flatten().collect();
    assert_eq!(leases.len(), 1, "{leases:?}");
}

pub(crate) async fn a_released_lease_is_free_at_once(bench: Bench) {
    let first = bench.reign(node(1)).await;
    bench.b.release(first).await.expect("an answer");
    let second = bench.reign(node(2)).await;
    assert!(second.epoch > first.epoch, "{second:?} after {first:?}");
    bench.a.release(second).await.expect("an answer");
    let third = bench.reign(node(1)).await;
    assert!(third.epoch > second.epoch, "also when it comes back to who had it before");
}

// Inv. FENCE
pub(crate) async fn only_the_present_lease_can_be_released(bench: Bench) {
    let first = bench.reign(node(1)).await;
    bench.a.release(first).await.expect("an answer");
    let second = bench.reign(node(2)).await;
    for stale in [first, Lease { node: node(1), ..second }, Lease { epoch: Epoch(second.epoch.0 + 1), ..second }] {
        bench.a.release(stale).await.expect("an answer");
        assert_eq!(bench.a.claim(node(3), LONG).await.expect("an answer").lease, None, "{stale:?}");
    }
    assert_eq!(bench.a.claim(node(2), LONG).await.expect("an answer").lease, Some(second));
}

pub(crate) async fn a_lease_runs_out_by_itself(bench: Bench) {
    let first = bench.a.claim(node(1), SHORT).await.expect("an answer").lease.expect("it was free");
    let second =
        eventually("the lease ends", || async { bench.b.claim(node(2), LONG).await.expect("an answer").lease }).await;
    assert!(second.epoch > first.epoch);
    assert_eq!(bench.a.claim(node(1), LONG).await.expect("an answer").lease, None);
    let interval = calm_interval(&bench).await;
    assert_eq!(tick_once(&bench, first, interval).await, TickReply::Fenced);
}

// Inv. FENCE. Found by the model (gateway/tests/model): a node whose lease ran out while it was stopped came back under
// its old epoch. Where Redis had lost the reign in between, its snapshots were older than what clients had been shown,
// and every relay dropped them until the number was stale.
pub(crate) async fn a_lease_that_ran_out_is_a_new_reign_also_for_its_holder(bench: Bench) {
    let first = bench.a.claim(node(1), SHORT).await.expect("an answer").lease.expect("it was free");
    let second = eventually("the lease ends", || async {
        let lease = bench.b.claim(node(1), SHORT / 100).await.expect("an answer").lease.expect("nobody else wants it");
        (lease != first).then_some(lease)
    })
    .await;
    assert!(second.epoch > first.epoch, "{second:?} after {first:?}");
    let interval = calm_interval(&bench).await;
    assert_eq!(tick_once(&bench, first, interval).await, TickReply::Fenced);
}

pub(crate) async fn a_tick_publishes_a_snapshot(bench: Bench) {
    assert_eq!(bench.a.snapshot().await, Ok(None));
    let lease = bench.reign(node(1)).await;
    bench.see(&[1, 2, 3]).await;
    let interval = calm_interval(&bench).await;
    let ticked = bench.tick(lease, interval, WINDOW).await;
    assert_eq!(ticked.snapshot.active_visitors, 3);
    assert_eq!(ticked.snapshot.timestamp, Timestamp::from_unix_ms(ticked.now));
    assert_eq!(ticked.lease, lease);
    let second = ticked.snapshot.timestamp.unix_seconds() * 1000;
    assert_eq!(Slot::containing(second, ms(interval)), ticked.slot, "the timestamp tells the slot");

    assert_eq!(bench.b.snapshot().await, Ok(Some(ticked.snapshot)));
    let entries = bench.all().await;
    let [entry] = entries.as_slice() else { panic!("one entry: {entries:?}") };
    // Inv. WIRE: the data is what clients get.
    let message = PublicMessage::RealtimeUpdate(ticked.snapshot);
    assert_eq!((entry.kind.as_str(), &entry.data[..]), ("realtime_update", message.encode_data().as_bytes()));
    assert_eq!(entry.tick, Some(TickMark { epoch: lease.epoch, slot: ticked.slot, entries: 1 }));
    assert_eq!((entry.visitor.as_ref(), entry.traceparent.as_ref()), (None, None));
    let claim = bench.b.claim(node(2), LONG).await.expect("an answer");
    assert_eq!(claim.last_slot, ticked.slot, "told also to who only looks");
}

// Inv. SLOT
pub(crate) async fn racing_ticks_publish_once(bench: Bench) {
    let lease = bench.reign(node(1)).await;
    let interval = calm_interval(&bench).await;
    let tick = present(&bench, lease, interval).await;
    let mut racers = JoinSet::new();
    for i in 0..20 {
        let handle = if i % 2 == 0 { bench.a.clone() } else { bench.b.clone() };
        let tick = tick.clone();
        racers.spawn(async move { handle.tick(&tick).await.expect("an answer") });
    }
    let replies = racers.join_all().await;
    let published = replies.iter().filter(|reply| matches!(reply, TickReply::Published { .. })).count();
    let repeated = replies.iter().filter(|reply| matches!(reply, TickReply::AlreadyDone { .. })).count();
    assert_eq!((published, repeated), (1, 19), "{replies:?}");
    assert_eq!(bench.all().await.len(), 1);
}

// Inv. SLOT
pub(crate) async fn a_slot_is_done_in_whatever_reign(bench: Bench) {
    let interval = calm_interval(&bench).await;
    let first = bench.reign(node(1)).await;
    let ticked = bench.tick(first, interval, WINDOW).await;
    bench.a.release(first).await.expect("an answer");
    let second = bench.reign(node(2)).await;
    assert!(matches!(tick_once(&bench, second, interval).await, TickReply::AlreadyDone { .. }));
    assert_eq!(bench.a.claim(node(2), LONG).await.expect("an answer").last_slot, ticked.slot);
    assert_eq!(bench.all().await.len(), 1);
}

pub(crate) async fn another_slot_than_the_present_is_wrong(bench: Bench) {
    let lease = bench.reign(node(1)).await;
    let interval = calm_interval(&bench).await;
    let present = present(&bench, lease, interval).await;
    for slot in [present.slot.0 - ms(interval), present.slot.0 + ms(interval), present.slot.0 + 1, 0] {
        let reply = bench.a.tick(&Tick { slot: Slot(slot), ..present.clone() }).await.expect("an answer");
        let TickReply::WrongSlot { now } = reply else { panic!("slot {slot}: {reply:?}") };
        assert_eq!(Slot::containing(now, ms(interval)), present.slot, "the reply tells the time");
    }
    assert_eq!(bench.all().await, []);
    assert!(matches!(bench.a.tick(&present).await, Ok(TickReply::Published { .. })), "the present one is still free");
}

// Inv. FENCE
pub(crate) async fn without_its_lease_a_tick_is_fenced(bench: Bench) {
    let interval = calm_interval(&bench).await;
    let nobody = Lease { node: node(1), epoch: Epoch(1) };
    assert_eq!(tick_once(&bench, nobody, interval).await, TickReply::Fenced, "there is no lease at all");
    let lease = bench.reign(node(1)).await;
    let others: [(NodeId, u64); 3] =
        [(node(2), lease.epoch.0), (node(1), lease.epoch.0 - 1), (node(1), lease.epoch.0 + 1)];
    for (node, epoch) in others {
        let reply = tick_once(&bench, Lease { node, epoch: Epoch(epoch) }, interval).await;
        assert_eq!(reply, TickReply::Fenced, "{node} {epoch}");
    }
    bench.a.release(lease).await.expect("an answer");
    assert_eq!(tick_once(&bench, lease, interval).await, TickReply::Fenced, "it was given back");
    assert_eq!((bench.all().await.len(), bench.a.snapshot().await), (0, Ok(None)));
}

// Inv. GAP: this number is how a reader learns that it was not given everything.
pub(crate) async fn a_snapshot_tells_how_many_entries_there_were(bench: Bench) {
    let lease = bench.reign(node(1)).await;
    let interval = Duration::from_millis(50);
    let mut added = 0;
    for (number, size) in [(1, 3), (2, 1), (3, 500)] {
        bench.publish(&request(node(1), number, (0..size).map(|_| page("/")).collect())).await;
        bench.tick(lease, interval, WINDOW).await;
        added += size + 1;
        let last = bench.a.newest(1).await.expect("an answer").pop().expect("it was ticked");
        assert_eq!(last.tick.map(|mark| mark.entries), Some(added));
    }
}

/// An interval of about an hour whose present slot lasts for another minute at least: nothing turns during the test.
async fn calm_interval(bench: &Bench) -> Duration {
    let now = bench.now().await;
    let calm = |seconds: &u64| now % (seconds * 1000) < (seconds - 60) * 1000;
    Duration::from_secs([3600, 3700].into_iter().find(calm).expect("they turn at different times"))
}

/// A tick of the present slot.
async fn present(bench: &Bench, lease: Lease, interval: Duration) -> Tick {
    Tick { lease, slot: Slot::containing(bench.now().await, ms(interval)), interval, window: WINDOW }
}

async fn tick_once(bench: &Bench, lease: Lease, interval: Duration) -> TickReply {
    let tick = present(bench, lease, interval).await;
    bench.a.tick(&tick).await.expect("an answer")
}
