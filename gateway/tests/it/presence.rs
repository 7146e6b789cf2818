//! The number under real faults: it returns to the truth within one window, and never counts anybody twice.
//!
//! What only time that can be moved shows (midnight, clocks that disagree or are set back, long outages) is in
//! `gateway/src/presence/fire.rs`. No node's wall clock has a part in any of it: days, windows and slots are Redis's.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::support::client::Upgrade;
use crate::support::cluster::Cluster;
use crate::support::gateway::Setup;
use crate::support::producer::Producer;
use crate::support::recorder::Recorder;
use crate::support::wait::{SOON, until};

const WINDOW: Duration = Duration::from_secs(6);
/// Two on each of three nodes, and one who watches.
const ALL: u64 = 7;

fn short(setup: Setup) -> Setup {
    setup.brisk().crowded().with("GATEWAY_VISITOR_WINDOW", "6s")
}

/// Three nodes with their visitors, and one more on the last node who sees every number.
struct Site {
    cluster: Cluster,
    visitors: Vec<Vec<Recorder>>,
    watch: Recorder,
}

impl Site {
    async fn open() -> Self {
        let cluster = Cluster::of(3, short).await;
        let watch = Recorder::join(Upgrade::query("visitor=watch").open(cluster.nodes[2].public).await).await;
        let mut site = Self { cluster, visitors: Vec::new(), watch };
        for home in 0..3 {
            let visitors = site.come(home, home).await;
            site.visitors.push(visitors);
        }
        site.until_number(ALL, SOON).await;
        site
    }

    /// The visitors whose home is one node open sockets on another.
    async fn come(&self, home: usize, node: usize) -> Vec<Recorder> {
        let mut visitors = Vec::new();
        for n in 0..2 {
            let upgrade = Upgrade::query(&format!("visitor=of-{home}-{n}"));
            visitors.push(Recorder::of(upgrade.open(self.cluster.nodes[node].public).await));
        }
        visitors
    }

    /// The numbers that were shown as fresh, in order.
    fn numbers(&self) -> Vec<u64> {
        let fresh = self
            .watch
            .messages(&["realtime_update"])
            .into_iter()
            .filter(|message| message.json["data"]["stale"].is_null());
        fresh.map(|message| message.json["data"]["active_visitors"].as_u64().expect("a number")).collect()
    }

    async fn until_number(&self, number: u64, within: Duration) {
        until(&format!("{number} visitors"), within, async || (self.numbers().last() == Some(&number)).then_some(()))
            .await;
    }

    /// `count` more fresh numbers, all in that range.
    async fn shows(&self, range: RangeInclusive<u64>, count: usize) {
        let so_far = self.numbers().len();
        until("fresh numbers", SOON * 2, async || (self.numbers().len() >= so_far + count).then_some(())).await;
        let numbers = self.numbers();
        assert!(
            numbers[so_far..].iter().all(|number| range.contains(number)),
            "{:?}, not {range:?}",
            &numbers[so_far..]
        );
    }

    /// Nobody was ever counted twice.
    fn assert_never_more(&self) {
        let numbers = self.numbers();
        assert!(numbers.iter().all(|number| *number <= ALL), "{numbers:?}");
    }
}

#[tokio::test]
async fn who_was_on_a_node_that_died_counts_for_a_window_and_once_where_he_comes_again() {
    let mut site = Site::open().await;
    site.cluster.nodes[0].kill9();
    // A window, until the tick after it, on a busy machine; and the lease of the ticker, if it was that one.
    site.until_number(ALL - 2, WINDOW + SOON).await;
    site.shows(ALL - 2..=ALL - 2, 2).await;
    let _again = site.come(0, 1).await;
    site.until_number(ALL, SOON).await;
    site.cluster.nodes[1].kill9();
    let _all_here = (site.come(0, 2).await, site.come(1, 2).await);
    // Two windows.
    site.shows(ALL..=ALL, 12).await;
    site.assert_never_more();
}

#[tokio::test]
async fn a_node_that_was_paused_for_longer_than_the_window_brings_its_visitors_back() {
    let site = Site::open().await;
    site.cluster.nodes[0].freeze();
    site.until_number(ALL - 2, WINDOW + SOON).await;
    site.cluster.nodes[0].thaw();
    site.until_number(ALL, WINDOW).await;
    site.shows(ALL..=ALL, 5).await;
    site.visitors[0].iter().for_each(Recorder::assert_open);
    site.assert_never_more();
}

#[tokio::test]
async fn a_redis_that_lost_its_data_knows_everybody_within_a_window() {
    let mut site = Site::open().await;
    site.cluster.redis.kill9();
    site.cluster.redis.restart_empty();
    // The first number over the empty data set is the whole one.
    site.shows(ALL..=ALL, 5).await;
    site.assert_never_more();
}

#[tokio::test]
async fn an_outage_that_is_shorter_than_the_window_loses_nobody() {
    let mut site = Site::open().await;
    site.cluster.redis.kill9();
    // As long as two numbers and the stale one that is shown for want of a third.
    site.watch.until_new(r#","stale":true}"#, SOON).await;
    site.cluster.redis.restart();
    // Two windows.
    site.shows(ALL..=ALL, 12).await;
    for recorder in site.visitors.iter().flatten() {
        recorder.assert_open();
    }
}

/// A producer that never rests: each event by a visitor of its own.
struct Busy {
    producer: Producer,
    visitors: u64,
}

impl Busy {
    /// Adds events for as long as something takes.
    async fn during<T>(&mut self, something: impl Future<Output = T>) -> T {
        let mut something = std::pin::pin!(something);
        let data = Producer::page_data("/cv");
        let mut pace = tokio::time::interval(Duration::from_millis(50));
        loop {
            tokio::select! {
                done = &mut something => return done,
                _ = pace.tick() => {}
            }
            self.visitors += 1;
            let visitor = format!("of-{}", self.visitors);
            self.producer.stream(&[("type", "new_event"), ("data", &data), ("visitor", &visitor)]).await;
        }
    }

    /// All of them are counted.
    async fn is_known(&mut self) {
        let all = format!("{{\"active_visitors\":{},", self.visitors);
        let what = format!("{} visitors", self.visitors);
        until(&what, SOON, async || {
            let snapshot = self.producer.call(&["GET", "{analytics}:snapshot"]).await;
            snapshot.text().starts_with(&all).then_some(())
        })
        .await;
    }
}

// Events in the stream are marked by the ticker's node alone. Others must remember those that it can no longer mark.
#[tokio::test]
async fn the_visitors_of_events_survive_a_change_of_the_ticker() {
    let mut cluster = Cluster::of(3, |setup| setup.brisk().crowded()).await;
    let mut busy = Busy { producer: cluster.producer().await, visitors: 0 };
    for drained in [true, false] {
        let ticker = busy.during(cluster.ticker()).await;
        let mut old = cluster.nodes.remove(ticker);
        if drained {
            old.terminate();
        } else {
            old.kill9();
        }
        busy.during(cluster.ticker()).await;
        busy.is_known().await;
    }
}
