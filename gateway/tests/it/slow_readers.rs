//! Clients that do not read, or read too late.

use serde_json::Value;
use shared::ids::EventId;

use crate::support::client::{Client, Message, Upgrade};
use crate::support::gateway::{Gateway, Setup};
use crate::support::recorder::Recorder;
use crate::support::wait::SOON;

/// What may wait for one client here.
const OUTBOX_BYTES: u64 = 8 << 10;
/// Events of one request.
const BATCH: usize = 100;

/// Posts page views `/n/ppp…` with growing n.
struct Flood {
    posted: usize,
}

impl Flood {
    async fn batch(&mut self, gateway: &Gateway) {
        let padding = "p".repeat(400);
        let event = |n: usize| format!(r#"{{"event_type":"page_view","page_url":"/{n}/{padding}"}}"#);
        let events: Vec<String> = (self.posted..self.posted + BATCH).map(event).collect();
        assert_eq!(gateway.post(&format!("[{}]", events.join(","))).await.status(), 202);
        self.posted += BATCH;
    }

    /// Until what the kernel and the outbox hold for somebody who does not read has overflowed.
    async fn until_overflow(&mut self, gateway: &Gateway) {
        while gateway.metric("gateway_outbox_overflows_total").await == 0 {
            self.batch(gateway).await;
            assert!(self.posted <= 50_000, "no kernel buffer holds 25 MB");
            // Inv. BOUND: what waits for a client stays within its outbox.
            assert!(gateway.metric("gateway_outbox_bytes").await <= OUTBOX_BYTES);
        }
    }
}

fn number_of(message: &Message) -> usize {
    let page = message.json["data"]["page_url"].as_str().expect("a page");
    page.split('/').nth(1).expect("/n/…").parse().expect("a number")
}

async fn narrow() -> Gateway {
    Setup::embedded().brisk().crowded().with("GATEWAY_OUTBOX_BYTES", "8KiB").ready().await
}

// Inv. ISOLATION: a client that reads nothing is the only one that misses anything.
#[tokio::test]
async fn a_client_that_does_not_read_costs_the_others_nothing() {
    let gateway = narrow().await;
    let reader = Recorder::of(Client::open(gateway.public).await);
    let _deaf = Client::open(gateway.public).await;
    let mut flood = Flood { posted: 0 };
    flood.until_overflow(&gateway).await;
    let last = format!("/{}/", flood.posted - 1);
    reader.until("the last event", SOON, |heard| heard.last().is_some_and(|one| one.text.contains(&last))).await;
    let numbers: Vec<usize> = reader.messages(&["new_event"]).iter().map(number_of).collect();
    assert_eq!(numbers, (0..flood.posted).collect::<Vec<_>>());
    reader.assert_open();
    assert!(gateway.metric("gateway_events_discarded_total").await >= 1);
}

// Inv. GAP: who asked for ids and reads too late is told from where to where something is missing.
#[tokio::test]
async fn a_client_that_reads_too_late_gets_the_newest_state_and_learns_what_it_missed() {
    let gateway = narrow().await;
    let mut late = Upgrade::query("ids=1").open(gateway.public).await;
    let mut flood = Flood { posted: 0 };
    flood.until_overflow(&gateway).await;
    flood.batch(&gateway).await;

    // It begins to read, and after the stall an event comes that it must not miss.
    let mut messages: Vec<Message> = Vec::new();
    while messages.iter().filter(|message| message.kind() == "init").count() < 2 {
        messages.push(late.next_json(SOON).await);
    }
    gateway.post_page("/last/").await;
    while !messages.last().is_some_and(|message| message.text.contains("/last/")) {
        messages.push(late.next_json(SOON).await);
    }

    let position = |id: &Value| id.as_str().expect("an id").parse::<EventId>().expect("well-formed").stream;
    let gaps: Vec<&Message> = messages.iter().filter(|message| message.kind() == "gap").collect();
    let [gap] = gaps[..] else { panic!("one stall, one gap: {gaps:?}") };
    let (from, to) = (position(&gap.json["from"]), position(&gap.json["to"]));
    assert!(from < to, "{gap:?}");
    let events: Vec<&Message> = messages.iter().filter(|message| message.kind() == "new_event").collect();
    assert!(events.is_sorted_by(|one, other| position(&one.json["id"]) < position(&other.json["id"])));
    let (before, after): (Vec<&Message>, Vec<&Message>) =
        events.into_iter().partition(|event| position(&event.json["id"]) <= from);
    assert!(after.iter().all(|event| position(&event.json["id"]) > to), "nothing comes that was said to be missing");
    let numbers: Vec<usize> = before.iter().map(|event| number_of(event)).collect();
    assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>(), "no hole before the announced one");
    let numbers: Vec<usize> = after[..after.len() - 1].iter().map(|event| number_of(event)).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "nor after it: {numbers:?}");
    if let Some(last) = numbers.last() {
        assert_eq!(*last, flood.posted - 1);
    }
}
