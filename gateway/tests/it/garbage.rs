//! What producers, or anybody with access to Redis, can put there by mistake: counted, skipped, never relayed, and no
//! flood of log lines.

use std::time::Duration;

use crate::support::client::{Message, Upgrade};
use crate::support::cluster::Cluster;
use crate::support::producer::Producer;
use crate::support::recorder::Recorder;
use crate::support::redis_server::RedisServer;
use crate::support::resp::Resp;
use crate::support::wait::{SOON, until};

/// Stands in all garbage; nobody may see it.
const PLANTED: &str = "PLANTED";

// Inv. ANON: viewers see the documented fields of well-formed entries, and nothing else.
// Inv. FENCE: a snapshot that no tick wrote is none.
#[tokio::test]
async fn garbage_in_the_stream_is_counted_and_skipped() {
    let mut cluster = Cluster::of(1, |setup| setup.brisk().crowded()).await;
    let recorder = Recorder::join(Upgrade::new().open(cluster.nodes[0].public).await).await;
    let mut producer = cluster.producer().await;

    let unknown: [&[(&[u8], &[u8])]; 7] = [
        &[(b"PLANTED", b"PLANTED")],
        &[(b"type", b"PLANTED"), (b"data", b"{}")],
        &[(b"type", b""), (b"data", b"{\"PLANTED\":1}")],
        &[(b"type", b"init"), (b"data", b"{\"active_visitors\":424242424242,\"timestamp\":\"2025-12-08T10:30:05Z\"}")],
        &[(b"type", b"ping"), (b"data", b"{}")],
        &[(b"type", b"gap"), (b"data", b"{}")],
        &[(b"type", b"\xff\xfePLANTED"), (b"data", b"{}")],
    ];
    for fields in unknown {
        producer.stream_bytes(fields).await;
    }
    let nested = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    let page = Producer::page_data;
    let uneven = page("/x").replace("page_view", "PLANTED VIEW");
    let no_time = page("/x").replace("2025-12-08T10:30:05Z", "PLANTED");
    let long = page(&format!("/{}", "P".repeat(600)));
    let malformed: [(&str, &[u8]); 13] = [
        ("new_event", b""),
        ("new_event", b"PLANTED"),
        ("new_event", b"{\"event_type\":\"page_view\""),
        ("new_event", b"[]"),
        ("new_event", b"null"),
        ("new_event", b"{}"),
        ("new_event", b"{\"event_type\":\"\xff\xfe\"}"),
        ("new_event", &nested),
        ("new_event", uneven.as_bytes()),
        ("new_event", no_time.as_bytes()),
        ("new_event", long.as_bytes()),
        ("theme_stats", br#"{"theme":"backend","count":-1,"percentage":1.0}"#),
        ("theme_stats", br#"{"theme":"backend","count":1,"percentage":101.0}"#),
    ];
    for (kind, data) in malformed {
        producer.stream_bytes(&[(b"type", kind.as_bytes()), (b"data", data)]).await;
    }
    let forged = r#"{"active_visitors":424242424242,"timestamp":"2025-12-08T10:30:05Z"}"#;
    producer.stream(&[("type", "realtime_update"), ("data", forged)]).await;
    producer.stream(&[("type", "realtime_update"), ("data", forged), ("slot", "PLANTED"), ("epoch", "1")]).await;
    // Well-formed, but of a reign long past.
    let old = [("type", "realtime_update"), ("data", forged), ("slot", "5000"), ("epoch", "1"), ("entries", "1")];
    producer.stream(&old).await;

    // Fields beside the documented ones do not make an entry wrong; they just do not exist.
    let extra = page("/extra?token=PLANTED#PLANTED").replace('{', r#"{"email":"PLANTED","#);
    producer.stream(&[("type", "new_event"), ("data", &extra), ("PLANTED", "PLANTED"), ("visitor", "PLANTED")]).await;
    producer.stream_page("/last").await;

    recorder.until_heard("/last", SOON).await;
    let node = &mut cluster.nodes[0];
    node.assert_alive();
    node.until_metric_is(r#"gateway_stream_entries_total{outcome="unknown_type"}"#, unknown.len() as u64).await;
    node.until_metric_is(r#"gateway_stream_entries_total{outcome="malformed"}"#, malformed.len() as u64).await;
    node.until_metric_is(r#"gateway_stream_entries_total{outcome="unfenced"}"#, 2).await;
    node.until_metric(r#"gateway_stream_entries_total{outcome="duplicate"}"#, 1).await;
    recorder.until_new("realtime_update", SOON).await;
    let heard = recorder.heard();
    assert!(heard.iter().all(|one| !one.text.contains(PLANTED) && !one.text.contains("424242424242")), "{heard:?}");
    let pages: Vec<Message> = recorder.messages(&["new_event", "theme_stats", "letter_generated"]);
    let pages: Vec<&str> = pages.iter().filter_map(|message| message.json["data"]["page_url"].as_str()).collect();
    assert_eq!(pages, ["/extra", "/last"]);
    // Inv. PRIVATE: nothing of it is in a log.
    assert!(!node.log().contains(PLANTED), "{}", node.log());
}

#[tokio::test]
async fn garbage_on_the_legacy_channel_is_counted_and_skipped() {
    let mut cluster = Cluster::of(2, |setup| setup.brisk().crowded()).await;
    let recorder = Recorder::join(Upgrade::new().open(cluster.nodes[0].public).await).await;
    recorder.until_new("realtime_update", SOON).await;
    let mut producer = cluster.producer().await;
    let nested = [vec![b'{'; 50_000], vec![b'}'; 50_000]].concat();
    let garbage: [&[u8]; 14] = [
        b"",
        b"PLANTED",
        b"{}",
        b"[]",
        b"42",
        b"\xff\xfe\x00PLANTED",
        &nested,
        br#"{"type":"PLANTED VIEW","page_url":"/x"}"#,
        br#"{"type":"page_view"}"#,
        br#"{"type":"page_view","page_url":"PLANTED"}"#,
        br#"{"type":"new_event","data":{"page_url":"/x"}}"#,
        br#"{"type":"realtime_update","data":{"active_visitors":424242424242,"timestamp":"2025-12-08T10:30:05Z"}}"#,
        br#"{"type":"init","data":{"active_visitors":424242424242,"timestamp":"2025-12-08T10:30:05Z"}}"#,
        br#"{"type":"gap","from":null,"to":null}"#,
    ];
    for message in garbage {
        producer.publish(message).await;
    }
    producer.publish(br#"{"type":"cv_theme_change","data":{"theme":"backend","PLANTED":1},"PLANTED":"PLANTED"}"#).await;
    producer.publish(br#"{"type":"letter_generate","letter_type":"motivation","company":"PLANTED"}"#).await;
    producer.publish_page("/last").await;
    recorder.until_heard("/last", SOON).await;

    let heard: Vec<String> = recorder
        .messages(&["new_event", "theme_stats", "letter_generated"])
        .iter()
        .map(|message| message.kind().to_owned())
        .collect();
    assert_eq!(heard, ["theme_stats", "letter_generated", "new_event"]);
    assert!(recorder.heard().iter().all(|one| !one.text.contains(PLANTED) && !one.text.contains("424242424242")));
    let ticker = cluster.ticker().await;
    let node = &mut cluster.nodes[ticker];
    node.assert_alive();
    node.until_metric_is(r#"gateway_legacy_messages_total{outcome="invalid"}"#, garbage.len() as u64).await;
    node.until_metric_is(r#"gateway_legacy_messages_total{outcome="moved"}"#, 3).await;
    assert!(!node.log().contains(PLANTED), "{}", node.log());
    // Inv. ANON: nor does it stand in the stream.
    let stream = format!("{:?}", producer.call(&["XRANGE", "{analytics}:events", "-", "+"]).await);
    assert!(!stream.contains(PLANTED) && !stream.contains("424242424242"), "{stream}");
}

// Inv. BOUND: Redis cuts its answers by entries, not by bytes.
#[tokio::test]
async fn a_stream_of_megabytes_keeps_no_node_from_starting_nor_from_reading_on() {
    let redis = RedisServer::start();
    let mut resp = Resp::to(&redis).await;
    let fill =
        "for _ = 1, 20 do redis.call('XADD', KEYS[1], '*', 'type', 'new_event', 'data', string.rep('x', 1e6)) end";
    for _ in 0..15 {
        resp.call(&["EVAL", fill, "1", "{analytics}:events"]).await;
    }
    let cluster = Cluster::on(redis, 1, |setup| setup.brisk().crowded()).await;
    let recorder = Recorder::of(Upgrade::new().open(cluster.nodes[0].public).await);
    resp.call(&["EVAL", fill, "1", "{analytics}:events"]).await;
    cluster.producer().await.stream_page("/after").await;
    recorder.until_new("/after", SOON).await;
}

#[tokio::test]
async fn a_flood_of_garbage_is_no_flood_of_log_lines() {
    let cluster = Cluster::of(1, |setup| setup.brisk().crowded()).await;
    let node = &cluster.nodes[0];
    let recorder = Recorder::join(Upgrade::new().open(node.public).await).await;
    recorder.until_new("realtime_update", SOON).await;
    let before = node.log().lines().count();
    let mut producer = cluster.producer().await;
    for _ in 0..1_000 {
        producer.stream(&[("type", "new_event"), ("data", PLANTED)]).await;
        producer.publish(PLANTED.as_bytes()).await;
    }
    producer.stream_page("/last").await;
    recorder.until_heard("/last", SOON).await;
    node.until_metric(r#"gateway_legacy_messages_total{outcome="invalid"}"#, 1_000).await;
    let lines = node.log().lines().count() - before;
    assert!(lines < 100, "{lines} lines");
}

#[tokio::test]
async fn keys_of_a_wrong_type_hinder_until_they_are_put_right() {
    let mut cluster = Cluster::of(2, |setup| setup.brisk().crowded()).await;
    let mut recorders = Vec::new();
    for node in &cluster.nodes {
        recorders.push(Recorder::join(Upgrade::new().open(node.public).await).await);
    }
    let mut redis = Resp::to(&cluster.redis).await;
    for name in ["visitors", "events", "ticker", "nodes"] {
        let key = format!("{{analytics}}:{name}");
        let corrupt = r#"gateway_backplane_failures_total{reason="corrupt"}"#;
        let failures =
            async |cluster: &Cluster| cluster.nodes[0].metric(corrupt).await + cluster.nodes[1].metric(corrupt).await;
        let before = failures(&cluster).await;
        redis.call(&["DEL", &key]).await;
        let broken = if name == "ticker" { ["RPUSH", &key, "x"] } else { ["SET", &key, "x"] };
        // A node may write the key between the two; then it is its own type again, and the next try breaks it.
        until(&format!("{name} is noticed"), SOON, async || {
            redis.call(&["DEL", &key]).await;
            redis.try_call(&broken).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            (failures(&cluster).await > before).then_some(())
        })
        .await;
        redis.call(&["DEL", &key]).await;
        for recorder in &recorders {
            let so_far = recorder.messages(&["realtime_update"]).len();
            until(&format!("a fresh number after {name}"), SOON * 2, async || {
                let updates = recorder.messages(&["realtime_update"]);
                updates[so_far..].iter().any(|update| !update.text.contains("stale")).then_some(())
            })
            .await;
        }
        for node in &cluster.nodes {
            node.until_health("ok", SOON * 2).await;
        }
        let page = format!("/after/{name}");
        cluster.nodes[0].post_page(&page).await;
        for recorder in &recorders {
            recorder.until("the event", SOON, |heard| heard.iter().any(|one| one.text.contains(&page))).await;
            recorder.assert_open();
        }
    }
    for node in &mut cluster.nodes {
        node.assert_alive();
    }
}
