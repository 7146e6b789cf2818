//! The site's backend: gives events away by `XADD` and by `POST`, each once, and remembers what it was told.
//!
//! A producer never gives an event away twice: what was not acknowledged may stand in the stream all the same, and
//! that nothing stands there twice is the gateway's promise to keep.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::evidence::{Number, Published};
use crate::prng::Prng;
use crate::stage::Stage;
use crate::support::gateway::TOKEN;
use crate::support::http;
use crate::support::resp::{Reply, Resp};
use crate::topology::Finder;

/// From one event to the next: each of the two ways has half of the rate, and a bit for what is lost to faults.
pub(crate) const EVERY: Duration = Duration::from_millis(28);
/// An answer that takes longer is none.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);
/// Redis is given up on sooner: while a producer waits, it gives nothing away.
const XADD_WITHIN: Duration = Duration::from_millis(500);
/// Requests under way.
const REQUESTS_MAX: usize = 128;

pub(crate) const STREAM: &[u8] = b"{analytics}:events";

/// Numbers of events, each given once.
#[derive(Debug, Default)]
pub(crate) struct Numbers(AtomicU32);

impl Numbers {
    pub(crate) fn next(&self) -> Number {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

type Log = HashMap<Number, Published>;

/// The `data` of an event.
fn page(number: Number, sent: u64) -> String {
    format!("/n/{number}/{sent}")
}

/// Adds events to the stream until there shall be no more.
pub(crate) async fn stream(stage: Arc<Stage>, numbers: Arc<Numbers>, finder: Arc<Finder>, every: Duration) -> Log {
    let mut log = Log::new();
    let mut connection: Option<Resp> = None;
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while !stage.no_more_events.is_cancelled() {
        ticks.tick().await;
        if connection.is_none() {
            connection = timeout(XADD_WITHIN, finder.connect()).await.unwrap_or_default();
        }
        let Some(mut redis) = connection.take() else { continue };
        let (number, sent) = (numbers.next(), stage.now());
        let id = timeout(XADD_WITHIN, add(&mut redis, b"*", number, sent)).await.ok().flatten();
        if id.is_some() {
            // After anything else the server is not, or no longer, the one to write to.
            connection = Some(redis);
        }
        log.insert(number, Published { sent, accepted: id.map(|id| (stage.now(), id)) });
    }
    log
}

/// Adds one event; gives its id if it was accepted.
pub(crate) async fn add(redis: &mut Resp, id: &[u8], number: Number, sent: u64) -> Option<String> {
    let data = format!(
        r#"{{"event_type":"page_view","page_url":"{}","timestamp":"2025-12-08T10:30:05Z"}}"#,
        page(number, sent)
    );
    let command: [&[u8]; 10] =
        [b"XADD", STREAM, b"MAXLEN", b"~", b"10000", id, b"type", b"new_event", b"data", data.as_bytes()];
    match redis.ask(&command).await {
        Ok(Reply::Text(id)) => Some(id),
        _ => None,
    }
}

/// Posts events to gateways that are up until there shall be no more, and waits for the answers.
pub(crate) async fn post(stage: Arc<Stage>, numbers: Arc<Numbers>, mut prng: Prng, every: Duration) -> Log {
    let mut log = Log::new();
    let mut requests: JoinSet<(Number, Published)> = JoinSet::new();
    let mut ticks = interval(every);
    // What a busy machine has missed is made up for.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while !stage.no_more_events.is_cancelled() {
        ticks.tick().await;
        while let Some(done) = requests.try_join_next() {
            log.extend([done.expect("a request does not panic")]);
        }
        let up = stage.up();
        if up.is_empty() || requests.len() >= REQUESTS_MAX {
            continue;
        }
        let (to, number) = (prng.pick(&up).public, numbers.next());
        requests.spawn(post_one(Arc::clone(&stage), to, number));
    }
    log.extend(requests.join_all().await);
    log
}

async fn post_one(stage: Arc<Stage>, to: SocketAddr, number: Number) -> (Number, Published) {
    let sent = stage.now();
    let body = format!(r#"{{"event_type":"page_view","page_url":"{}"}}"#, page(number, sent));
    let answer = timeout(ANSWER_WITHIN, http::try_post(to, "/api/v1/events", Some(TOKEN), body.as_bytes())).await;
    let id = answer.ok().flatten().filter(|answer| answer.status() == 202).and_then(|answer| {
        let json: Value = serde_json::from_str(&answer.body).ok()?;
        json["results"][0]["id"].as_str().map(str::to_owned)
    });
    (number, Published { sent, accepted: id.map(|id| (stage.now(), id)) })
}
