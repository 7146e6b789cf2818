//! The model's table of cases (`gateway/tests/model/cases.rs`), over the scripts on a real Redis and over the embedded
//! backplane: what the model checker says about the election it says about them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gateway::backplane::memory::MemoryBackplane;
use gateway::backplane::redis::{RedisBackplane, RedisSettings};
use gateway::backplane::{Backplane, ClaimReply, Lease, Millis, Tick, TickReply};
use shared::ids::{Epoch, NodeId, Slot};
use shared::keys::Keys;

use crate::support::redis_server::{Durability, Listen, Options, RedisServer};
use crate::support::resp::{Reply, Resp};
use crate::support::wait::{SOON, until};

#[path = "../model/cases.rs"]
mod cases;
#[path = "../model/redis.rs"]
mod redis;

use cases::{CASES, Call, Case, LEASE_MS, Says};
use redis::{Published, Redis, Ticker};

const LEASE: Duration = Duration::from_millis(LEASE_MS);
const HOUR: Duration = Duration::from_secs(3600);

/// Asks, and says the answer in the table's words.
async fn ask(
    backplane: &dyn Backplane,
    case: &Case,
    stored: Option<Lease>,
    slot: Slot,
    interval: Duration,
) -> (Says, Option<Millis>) {
    let lease = case.lease(stored);
    match case.call {
        Call::Claim(_) => {
            let ClaimReply { lease: got, now, .. } = backplane.claim(lease.node, LEASE).await.expect("an answer");
            let says = match got {
                None => Says::Refused,
                Some(got) if Some(got) == stored => Says::Prolonged,
                Some(_) => Says::Taken,
            };
            (says, Some(now))
        }
        Call::Release(..) => {
            backplane.release(lease).await.expect("an answer");
            (Says::Nothing, None)
        }
        Call::Tick(..) => {
            let tick = Tick { lease, slot, interval, window: HOUR };
            match backplane.tick(&tick).await.expect("an answer") {
                TickReply::Published { lease: reign, now, .. } if reign == lease => (Says::Published, Some(now)),
                TickReply::Published { now, .. } => (Says::PublishedAnew, Some(now)),
                TickReply::AlreadyDone { now } => (Says::AlreadyDone, Some(now)),
                TickReply::WrongSlot { now } => (Says::WrongSlot, Some(now)),
                TickReply::Fenced => (Says::Fenced, None),
            }
        }
    }
}

// Inv. SLOT, Inv. FENCE
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scripts_answer_as_the_model_does() {
    let server =
        RedisServer::with(Options { listen: Listen::Unix, durability: Durability::Nothing, ..Options::default() });
    let mut resp = Resp::to(&server).await;
    let keys = Keys::new("analytics").expect("a plain word");
    let settings = RedisSettings { url: server.url(), ca_file: None, keys: keys.clone() };
    let node = NodeId::from_random(3);
    let backplane = RedisBackplane::connect(&settings, node, Arc::default()).expect("a good URL");
    until("redis answers", SOON, async || backplane.snapshot().await.ok()).await;
    for case in CASES {
        resp.call(&["FLUSHALL"]).await;
        let now = redis_now(&mut resp).await;
        let interval = calm_interval(now);
        let interval_ms = millis(interval);
        let before = case.keys(now, interval_ms);
        plant(&mut resp, &keys, before).await;
        let slot = case.slot(now, interval_ms);
        let (says, at) = ask(&*backplane, case, before.ticker.map(|held| held.lease), slot, interval).await;
        assert_eq!(says, case.says, "{}", case.name);
        let after = read(&mut resp, &keys).await;
        case.check_keys(before, after, slot, at.unwrap_or(now));
        let entries = resp.call(&["XLEN", &keys.events()]).await.number();
        let published = matches!(case.says, Says::Published | Says::PublishedAnew);
        assert_eq!(entries, i64::from(published), "{}: entries", case.name);
    }
}

async fn redis_now(resp: &mut Resp) -> Millis {
    let time = resp.call(&["TIME"]).await;
    let part = |at: usize| time.many()[at].text().parse::<u64>().expect("a number");
    part(0) * 1000 + part(1) / 1000
}

/// About an hour, and such that its present slot has been for a minute and will be for another.
fn calm_interval(now: Millis) -> Duration {
    let calm = |seconds: &u64| (60_000..(seconds - 60) * 1000).contains(&(now % (seconds * 1000)));
    Duration::from_secs([3600, 3700, 3800].into_iter().find(calm).expect("they turn at different times"))
}

fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).expect("hours")
}

async fn plant(resp: &mut Resp, keys: &Keys, state: Redis) {
    if let Some(Ticker { lease, until }) = state.ticker {
        resp.call(&["SET", &keys.ticker(), &format!("{} {} {until}", lease.epoch, lease.node)]).await;
    }
    if let Some(Published { slot, epoch }) = state.last {
        let snapshot = format!(
            r#"{{"active_visitors":0,"timestamp":"2025-12-08T10:30:00Z","slot":{slot},"epoch":{epoch},"at":{slot},"hole":0,"since":0}}"#
        );
        resp.call(&["SET", &keys.snapshot(), &snapshot]).await;
    }
}

async fn read(resp: &mut Resp, keys: &Keys) -> Redis {
    let ticker = match resp.call(&["GET", &keys.ticker()]).await {
        Reply::Nil => None,
        reply => {
            let words: Vec<&str> = reply.text().split(' ').collect();
            let [epoch, node, until] = words.as_slice() else { panic!("{reply:?}") };
            let lease = Lease { node: node.parse().expect("a node"), epoch: Epoch(epoch.parse().expect("a number")) };
            Some(Ticker { lease, until: until.parse().expect("a number") })
        }
    };
    let last = match resp.call(&["GET", &keys.snapshot()]).await {
        Reply::Nil => None,
        reply => {
            let snapshot: serde_json::Value = serde_json::from_str(reply.text()).expect("JSON");
            let number = |name: &str| snapshot[name].as_u64().expect("a number");
            Some(Published { slot: Slot(number("slot")), epoch: Epoch(number("epoch")) })
        }
    };
    Redis { ticker, last }
}

#[test]
fn the_model_answers_as_the_table_says() {
    for case in CASES {
        case.check_model();
    }
}

// Inv. SLOT, Inv. FENCE: its state cannot be planted, so it is led there, on a clock that is moved. A lease that ends
// later than any can is beyond it: it sees a clock jump, and moves the lease with it.
#[tokio::test]
async fn the_embedded_backplane_answers_as_the_model_does() {
    let interval_ms = millis(HOUR);
    for case in CASES.iter().filter(|case| case.held.is_none_or(|(_, left)| left.unsigned_abs() <= LEASE_MS)) {
        // In the middle of a slot.
        let now: Millis = 1_700_000_000_000 / interval_ms * interval_ms + interval_ms / 2;
        let keys = case.keys(now, interval_ms);
        let hand = Arc::new(AtomicU64::new(now));
        let time = Arc::clone(&hand);
        let backplane = MemoryBackplane::with_time(Box::new(move || time.load(Ordering::Relaxed)));
        if let Some(last) = keys.last {
            hand.store(last.slot.0, Ordering::Relaxed);
            let before = backplane.claim(NodeId::from_random(9), LEASE).await.expect("ready").lease.expect("free");
            let tick = Tick { lease: before, slot: last.slot, interval: HOUR, window: HOUR };
            assert!(matches!(backplane.tick(&tick).await, Ok(TickReply::Published { .. })), "{}", case.name);
            backplane.release(before).await.expect("ready");
        }
        let mut stored = None;
        if let Some(held) = keys.ticker {
            hand.store(held.until - LEASE_MS, Ordering::Relaxed);
            stored = backplane.claim(held.lease.node, LEASE).await.expect("ready").lease;
            assert!(stored.is_some(), "{}", case.name);
        }
        hand.store(now, Ordering::Relaxed);
        let slot = case.slot(now, interval_ms);
        let (says, _) = ask(&*backplane, case, stored, slot, HOUR).await;
        assert_eq!(says, case.says, "{}", case.name);

        // What it keeps shows in what it tells another node.
        let left = match case.then {
            Some((_, cases::Until::Whole)) => true,
            Some((_, cases::Until::AsBefore)) => case.held.is_some_and(|(_, left)| left > 0),
            _ => false,
        };
        let other = backplane.claim(NodeId::from_random(8), LEASE).await.expect("ready");
        assert_eq!(other.lease.is_none(), left, "{}: the lease", case.name);
        let published = matches!(case.says, Says::Published | Says::PublishedAnew);
        let last = if published { slot } else { keys.last.map_or(Slot(0), |last| last.slot) };
        assert_eq!(other.last_slot, last, "{}: the last slot", case.name);
    }
}
