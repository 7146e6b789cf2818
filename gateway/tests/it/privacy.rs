//! What a node knows of people, and where none of it may be found.

use crate::support::client::Upgrade;
use crate::support::gateway::Setup;
use crate::support::recorder::Recorder;
use crate::support::redis_server::RedisServer;
use crate::support::resp::{Reply, Resp};
use crate::support::wait::{SOON, until};

/// Documentation addresses (RFC 5737), so that no log can contain them by chance.
const VIEWER: &str = "198.51.100.77";

/// Everything that stands in Redis, as one text.
async fn dump(redis: &mut Resp) -> String {
    let mut text = String::new();
    for key in redis.call(&["KEYS", "*"]).await.many() {
        let key = key.text();
        let value = match redis.call(&["TYPE", key]).await.text() {
            "string" => redis.call(&["GET", key]).await,
            "hash" => redis.call(&["HGETALL", key]).await,
            "zset" => redis.call(&["ZRANGE", key, "0", "-1", "WITHSCORES"]).await,
            "stream" => redis.call(&["XRANGE", key, "-", "+"]).await,
            // It was gone between the two questions.
            "none" => Reply::Nil,
            other => panic!("{key} is a {other}, which the contract does not know"),
        };
        text.push_str(&format!("{key} {value:?}\n"));
    }
    text
}

// Inv. PRIVATE: addresses, visitor ids, user agents and secrets: not in Redis, logs, metrics, or before viewers.
#[tokio::test]
async fn who_watches_and_who_is_watched_is_found_nowhere() {
    let server = RedisServer::start();
    let gateway = Setup::on(&server)
        .brisk()
        .with("GATEWAY_TRUSTED_PROXIES", "127.0.0.1")
        .with("GATEWAY_INGEST_TOKEN", "token-of-the-tests,PLANTED-token")
        .with("GATEWAY_LOG", "info,gateway=trace")
        .ready()
        .await;
    let viewer = |query: &str| {
        Upgrade::query(query)
            .header("X-Forwarded-For", VIEWER)
            .header("User-Agent", "PLANTED-agent")
            .header("Cookie", "session=PLANTED")
            .header("Referer", "https://site.example/PLANTED")
    };
    let watcher = Recorder::join(viewer("ids=1").open(gateway.public).await).await;
    let named = viewer("visitor=PLANTED-visitor&utm=PLANTED").open(gateway.public).await;
    let refused = viewer("types=PLANTED").refused(gateway.public).await;
    assert!(!refused.body.contains("PLANTED"), "{}", refused.body);
    let answer =
        gateway.post(r#"{"event_type":"page_view","page_url":"/cv?q=PLANTED","visitor_id":"PLANTED-poster"}"#).await;
    assert_eq!(answer.status(), 202, "{}", answer.body);
    watcher.until_new(r#""active_visitors":3,"#, SOON).await;

    let mut redis = Resp::to(&server).await;
    // The address is counted, under a keyed hash.
    let dumped = until("the address is counted", SOON, async || {
        let dumped = dump(&mut redis).await;
        dumped.contains("{analytics}:ip:").then_some(dumped)
    })
    .await;
    assert_eq!(named.close().await, 1000);
    watcher.until_new("realtime_update", SOON).await;
    let heard: String = watcher.heard().into_iter().map(|one| one.text + "\n").collect();
    let (log, metrics) = (gateway.log(), gateway.metrics_page().await);
    for (place, text) in [("redis", &dumped), ("viewers", &heard), ("log", &log), ("metrics", &metrics)] {
        for secret in ["PLANTED", VIEWER, "token-of-the-tests"] {
            assert!(!text.contains(secret), "{secret} in {place}:\n{text}");
        }
    }
}
