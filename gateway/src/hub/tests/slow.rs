//! Readers that do not read.

use shared::message::encode_gap;

use super::*;
use crate::metrics::Close;

/// Settings under which a reader that does not read is noticed after some ten kilobytes.
fn tight() -> HubSettings {
    HubSettings { socket_send_buffer_bytes: 4096, outbox_bytes_max: 32 * 1024, ..HubSettings::default() }
}

/// Passes of one event each, from `first` on, until `enough`; returns the number of the next. `keen` reads all.
async fn fire(rig: &Rig, keen: &mut Client, first: u64, enough: impl Fn() -> bool) -> u64 {
    let mut n = first;
    while !enough() {
        rig.pass(&[event(n, 1000)]);
        // Inv. ISOLATION: the slow reader beside it costs this one nothing.
        assert_eq!(keen.text().await, event(n, 1000).text);
        n += 1;
        assert!(n < first + 100_000, "the kernel's buffers never fill");
    }
    n
}

/// What the relay says when the stream has lost what came after the `n`th message.
fn hole(n: u64) -> Broadcast {
    Broadcast { kind: MessageKind::Gap, text: encode_gap(Some(id(n)), None), id: None, state: None }
}

/// Both ends of a `gap`.
fn gap_of(text: &str) -> (Option<u64>, Option<u64>) {
    let end = |name: &str| text.split_once(name)?.1.split_once('-')?.0.parse().ok();
    assert!(text.starts_with(r#"{"type":"gap""#), "{text}");
    (end(r#""from":""#), end(r#""to":""#))
}

#[tokio::test]
async fn what_waits_leaves_in_order_when_the_reader_reads() {
    let rig = Rig::new(HubSettings { outbox_bytes_max: 1024 * 1024, ..tight() }).await;
    let mut keen = rig.join(Ids::Without).await;
    let mut slow = rig.join(Ids::With).await;
    let waiting = || rig.metrics.outbox_bytes.value() > 512 * 1024;
    let end = fire(&rig, &mut keen, 1, waiting).await;
    for n in 1..end {
        assert_eq!(id_of(&slow.text().await), Some(n), "nothing lost, nothing twice");
    }
    assert_eq!(rig.metrics.events_discarded.value(), 0);
    // Back to direct writes.
    rig.pass(&[event(end, 10)]);
    assert_eq!(id_of(&slow.text().await), Some(end));
    assert_eq!(rig.metrics.outbox_bytes.value(), 0);
    drop((keen, slow));
    rig.emptied().await;
}

// Inv. BOUND: an outbox overflows at its limit. Inv. GAP: what that costs is announced, exactly.
#[tokio::test]
async fn an_overflow_costs_events_and_is_announced_with_the_newest_state() {
    let rig = Rig::new(tight()).await;
    let mut keen = rig.join(Ids::Without).await;
    let mut slow = rig.join(Ids::With).await;
    let mut overflown = fire(&rig, &mut keen, 1, || rig.metrics.outbox_overflows.value() > 0).await;
    let limit = i64::try_from(tight().outbox_bytes_max).expect("small");
    assert!(rig.metrics.outbox_bytes.value() <= limit);
    // It goes on while the reader sleeps; the state changes too.
    let first_pair = overflown;
    for _ in 0..50 {
        rig.pass(&[event(overflown, 1000), update(overflown + 1)]);
        keen.text().await;
        keen.text().await;
        overflown += 2;
    }
    let last = overflown - 1;
    assert!(rig.metrics.outbox_bytes.value() <= limit);

    // The kernel may have taken bytes meanwhile, and then the reader was resynced more than once: it did not read, but
    // its kernel did. Whatever the number, what comes is in order, and what does not come is announced.
    let is_event = |n: u64| n < first_pair || (n - first_pair).is_multiple_of(2);
    let (mut at, mut resyncs, mut missed) = (0, 0, 0);
    while at < last {
        let text = slow.text().await;
        if text.starts_with(r#"{"type":"init""#) {
            let (from, to) = gap_of(&slow.text().await);
            assert_eq!(from, Some(at), "the gap begins behind what the reader has");
            let to = to.expect("known");
            assert!(to > at && to <= last);
            // The newest state of the passes up to `to`: pairs bring one each, the passes before them none.
            assert_eq!(number(&text), if to < first_pair { 0 } else { to }, "the newest state comes first");
            // Whoever loses the connection between the two goes on from the last id: behind it lies what the gap says.
            assert_eq!(id_of(&text), None, "only the gap says up to where something is missing");
            missed += (at + 1..=to).filter(|n| is_event(*n)).count() as u64;
            (at, resyncs) = (to, resyncs + 1);
        } else {
            assert_eq!(id_of(&text), Some(at + 1), "what was written is whole and in order");
            at += 1;
        }
    }
    assert!(resyncs > 0);
    // Updates among what was discarded count as states, not as events.
    assert_eq!(rig.metrics.events_discarded.value(), missed);
    assert!(rig.metrics.outbox_overflows.value() >= resyncs);
    rig.pass(&[event(last + 1, 10)]);
    assert_eq!(id_of(&slow.text().await), Some(last + 1));
    drop((keen, slow));
    rig.emptied().await;
}

// Inv. GAP: what the stream lost while the reader had lost its place is not hidden by the gap that tells of that place.
#[tokio::test]
async fn a_hole_of_the_stream_is_not_lost_in_an_overflow() {
    let rig = Rig::new(tight()).await;
    let mut keen = rig.join(Ids::Without).await;
    let mut slow = rig.join(Ids::With).await;
    let end = fire(&rig, &mut keen, 1, || rig.metrics.outbox_overflows.value() > 0).await;
    // Redis lost its data, and what it holds now lies below what was read before.
    rig.pass(&[hole(end - 1)]);
    loop {
        let text = slow.text().await;
        let is_gap = text.starts_with(r#"{"type":"gap""#);
        // It may have been resynced before the hole came, and then gets it as it is: open too.
        if is_gap && gap_of(&text).1.is_none() {
            break;
        }
        if is_gap && gap_of(&text).1 == Some(end - 1) {
            // Nothing else is known to be missing; so what comes next must be the hole, or it was hidden.
            assert_eq!(slow.text().await, hole(end - 1).text);
            break;
        }
    }
    rig.pass(&[event(end, 10)]);
    assert_eq!(id_of(&slow.text().await), Some(end));
    drop((keen, slow));
    rig.emptied().await;
}

#[tokio::test]
async fn a_reader_without_ids_gets_the_state_and_no_gap() {
    let rig = Rig::new(tight()).await;
    let mut keen = rig.join(Ids::Without).await;
    let mut slow = rig.join(Ids::Without).await;
    let end = fire(&rig, &mut keen, 1, || rig.metrics.outbox_overflows.value() > 0).await;
    while !slow.text().await.starts_with(r#"{"type":"init""#) {}
    rig.pass(&[event(end, 10)]);
    assert_eq!(slow.text().await, event(end, 10).text);
    drop((keen, slow));
    rig.emptied().await;
}

// Inv. BOUND: all outboxes together have a limit; whoever holds most goes, with a code that says why.
#[tokio::test]
async fn over_the_common_limit_the_largest_outbox_is_closed() {
    let settings = HubSettings { outbox_bytes_max: 1024 * 1024, outbox_total_bytes_max: 256 * 1024, ..tight() };
    let rig = Rig::new(settings).await;
    let mut keen = rig.join(Ids::Without).await;
    let mut slow = rig.join(Ids::Without).await;
    let end = fire(&rig, &mut keen, 1, || rig.metrics.outbox_bytes.value() > 128 * 1024).await;
    // This one has less in its outbox when the limit is reached.
    let mut late = rig.join(Ids::Without).await;
    let over = || rig.hub.find(shared::ids::ConnId(2)).is_none_or(|conn| conn.life() != crate::hub::conn::Life::Open);
    let end = fire(&rig, &mut keen, end, over).await;
    assert!(rig.hub.core.outbox_bytes() <= 256 * 1024);
    slow.closed_for(CloseReason::Overloaded).await;
    rig.pass(&[event(end, 10)]);
    assert_eq!(keen.text().await, event(end, 10).text);
    while late.text().await != event(end, 10).text {}
    drop((keen, slow, late));
    rig.emptied().await;
    assert_eq!(rig.metrics.closes.value(Close::Overloaded), 1);
}
