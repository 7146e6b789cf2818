//! Readers that do not read.

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
    for _ in 0..50 {
        rig.pass(&[event(overflown, 1000), update(overflown + 1)]);
        keen.text().await;
        keen.text().await;
        overflown += 2;
    }
    let last = overflown - 1;
    assert!(rig.metrics.outbox_bytes.value() <= limit);

    let mut got = 0;
    let init = loop {
        let text = slow.text().await;
        if text.starts_with(r#"{"type":"init""#) {
            break text;
        }
        got += 1;
        assert_eq!(id_of(&text), Some(got), "what was written before the overflow is whole and in order");
    };
    assert_eq!(id_of(&init), Some(last), "the newest state comes first");
    assert_eq!(slow.text().await, shared::message::encode_gap(Some(id(got)), Some(id(last))));
    // 50 updates among what was discarded count as states, not as events.
    assert_eq!(rig.metrics.events_discarded.value(), last - got - 50);
    assert_eq!(rig.metrics.outbox_overflows.value(), 1);
    rig.pass(&[event(last + 1, 10)]);
    assert_eq!(id_of(&slow.text().await), Some(last + 1));
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
