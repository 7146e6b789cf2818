//! What can happen to the stream under the nodes' feet while all connections hold: it is gone, older than it was, or
//! another one. Each is noticed, announced to whoever asked for ids, and read on from.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::client::{Client, Upgrade};
use crate::support::cluster::Cluster;
use crate::support::gateway::Setup;
use crate::support::producer::Producer;
use crate::support::recorder::Recorder;
use crate::support::resp::Resp;
use crate::support::wait::{SOON, until};

const EVENTS: &str = "{analytics}:events";

fn setup(setup: Setup) -> Setup {
    setup.brisk().crowded()
}

/// The pages and gaps that were heard, in order; a gap is none.
fn heard(recorder: &Recorder) -> Vec<Option<String>> {
    let told = recorder.messages(&["new_event", "gap"]);
    told.iter().map(|message| message.json["data"]["page_url"].as_str().map(str::to_owned)).collect()
}

async fn until_page(recorder: &Recorder, page: &str) {
    recorder.until_heard(&format!(r#""page_url":"{page}","#), SOON).await;
}

/// Two nodes with a viewer each, five pages, then the trouble, then five more pages. `lives`: pages of the trouble's own
/// that must be heard, as they are new; `to`: whether the hole has a known end.
async fn through(cluster: &Cluster, trouble: impl AsyncFnOnce(&mut Resp), lives: &[&str]) {
    let mut redis = Resp::to(&cluster.redis).await;
    let mut producer = Producer::to(&cluster.redis).await;
    let mut viewers = Vec::new();
    for node in &cluster.nodes {
        viewers.push(Recorder::join(Upgrade::query("ids=1").open(node.public).await).await);
    }
    for page in ["/0", "/1", "/2", "/3", "/4"] {
        producer.stream_page(page).await;
    }
    for viewer in &viewers {
        until_page(viewer, "/4").await;
    }
    let had = viewers[0].messages(&["new_event"]).pop().expect("some").json["id"].clone();
    trouble(&mut redis).await;
    for page in ["/5", "/6", "/7", "/8", "/9"] {
        producer.stream_page(page).await;
    }
    for viewer in &viewers {
        until_page(viewer, "/9").await;
        // Inv. GAP: told, from something that it has, before anything that comes behind it.
        let heard = heard(viewer);
        let gap = heard.iter().position(Option::is_none).unwrap_or_else(|| panic!("no gap in {heard:?}"));
        assert_eq!(gap, 5, "{heard:?}");
        assert!(viewer.messages(&["gap"])[0].json["from"].is_string());
        // Inv. ORDER: nothing twice, and all that is new.
        let pages: Vec<&str> = heard.iter().flatten().map(String::as_str).collect();
        assert_eq!(pages.iter().collect::<BTreeSet<_>>().len(), pages.len(), "{pages:?}");
        let mut want = vec!["/0", "/1", "/2", "/3", "/4"];
        want.extend(lives);
        want.extend(["/5", "/6", "/7", "/8", "/9"]);
        assert_eq!(pages, want);
    }
    // Whoever was away all the time is told the same, by each of the nodes.
    for node in &cluster.nodes {
        let query = format!("last_event_id={}", had.as_str().expect("an id"));
        let late = Recorder::of(Upgrade::query(&query).open(node.public).await);
        late.until("a gap", SOON, |heard| heard.iter().any(|one| one.text.contains(r#""type":"gap""#))).await;
        let gap = &late.messages(&["gap"])[0];
        assert!(gap.json["from"].is_string(), "{}", gap.text);
    }
    for (node, viewer) in cluster.nodes.iter().zip(&viewers) {
        node.until_health("ok", SOON).await;
        let so_far = viewer.messages(&["realtime_update"]).len();
        until("a fresh number", SOON, async || {
            let updates = viewer.messages(&["realtime_update"]);
            updates[so_far..].iter().any(|update| update.json["data"]["stale"] == Value::Null).then_some(())
        })
        .await;
        viewer.assert_open();
    }
}

#[tokio::test]
async fn the_stream_is_deleted() {
    let cluster = Cluster::of(2, setup).await;
    through(&cluster, async |redis| drop(redis.call(&["DEL", EVENTS]).await), &[]).await;
}

#[tokio::test]
async fn all_keys_are_deleted() {
    let cluster = Cluster::of(2, setup).await;
    through(&cluster, async |redis| drop(redis.call(&["FLUSHALL"]).await), &[]).await;
}

#[tokio::test]
async fn the_stream_is_deleted_and_its_name_given_to_something_else_for_a_while() {
    let cluster = Cluster::of(2, setup).await;
    let trouble = async |redis: &mut Resp| {
        redis.call(&["SET", EVENTS, "x"]).await;
        for node in &cluster.nodes {
            node.until_metric(r#"gateway_backplane_failures_total{reason="corrupt"}"#, 1).await;
        }
        redis.call(&["DEL", EVENTS]).await;
    };
    through(&cluster, trouble, &[]).await;
}

/// A replica that lagged has become the primary: the last entries are gone. And its clock is behind: what is added next
/// lies below the place that the nodes have reached, where XREAD never looks.
#[tokio::test]
async fn the_stream_is_what_a_lagging_replica_had() {
    let cluster = Cluster::of(2, setup).await;
    let trouble = async |redis: &mut Resp| {
        let id_of = |page: &str| {
            let page = Producer::page_data(page);
            move |entries: &crate::support::resp::Reply| {
                let entry = entries.many().iter().find(|entry| entry.many()[1].many()[3].text() == page);
                entry.expect("it stands there").many()[0].text().to_owned()
            }
        };
        let entries = redis.call(&["XRANGE", EVENTS, "-", "+"]).await;
        let kept = id_of("/2")(&entries);
        // What came after page 2 never reached the replica.
        let script = "
            local stream = redis.call('XRANGE', KEYS[1], '-', ARGV[1])
            redis.call('DEL', KEYS[1])
            for _, entry in ipairs(stream) do redis.call('XADD', KEYS[1], entry[1], unpack(entry[2])) end
            local ms, seq = ARGV[1]:match('(%d+)-(%d+)')
            redis.call('XADD', KEYS[1], ms .. '-' .. (tonumber(seq) + 1), 'type', 'new_event', 'data', ARGV[2])";
        redis.call(&["EVAL", script, "1", EVENTS, &kept, &Producer::page_data("/below")]).await;
    };
    through(&cluster, trouble, &["/below"]).await;
}

/// Another cluster's data set stands at the same address from one moment to the next.
#[tokio::test]
async fn the_data_set_is_another_clusters() {
    let cluster = Cluster::of(2, setup).await;
    let foreign =
        setup(Setup::on(&cluster.redis)).with("REDIS_URL", &format!("{}/1", cluster.redis.url())).ready().await;
    for page in ["/foreign/1", "/foreign/2"] {
        foreign.post_page(page).await;
    }
    let mut client = Client::open(foreign.public).await;
    client.next_of("realtime_update", SOON).await;
    drop(foreign);
    through(&cluster, async |redis| drop(redis.call(&["SWAPDB", "0", "1"]).await), &[]).await;
}
