//! The ways to say which Redis, and what is said about one that is not set up well.

use crate::support::client::Upgrade;
use crate::support::gateway::Setup;
use crate::support::recorder::Recorder;
use crate::support::redis_server::{Listen, Options, RedisServer};
use crate::support::resp::Resp;
use crate::support::wait::{SOON, until};

/// One node on such a Redis delivers an event.
async fn check(options: Options) {
    let redis = RedisServer::with(options);
    let gateway = Setup::on(&redis).brisk().ready().await;
    let recorder = Recorder::join(Upgrade::new().open(gateway.public).await).await;
    gateway.post_page("/cv").await;
    recorder.until("the event", SOON, |heard| heard.iter().any(|one| one.text.contains("new_event"))).await;
    recorder.until_new("realtime_update", SOON).await;
}

#[tokio::test]
async fn over_a_unix_socket() {
    check(Options { listen: Listen::Unix, ..Options::default() }).await;
}

#[tokio::test]
async fn with_a_password() {
    check(Options { password: Some("open-sesame"), ..Options::default() }).await;
}

#[tokio::test]
async fn a_wrong_password_is_no_crash_and_is_not_logged() {
    let redis = RedisServer::with(Options { password: Some("open-sesame"), ..Options::default() });
    let url = redis.url().replace("open-sesame", "WRONG-sesame");
    let mut gateway = Setup::on(&redis).with("REDIS_URL", &url).brisk().start().await;
    until("the failure is told", SOON, async || gateway.log().contains("WARN").then_some(())).await;
    assert_eq!(gateway.probe("/readyz").await, Some(503));
    gateway.assert_alive();
    assert!(!gateway.log().contains("sesame"), "{}", gateway.log());
}

#[tokio::test]
async fn a_redis_that_may_evict_is_warned_of() {
    let directives = vec![("maxmemory-policy", "allkeys-lru".to_owned())];
    let redis = RedisServer::with(Options { directives, ..Options::default() });
    let gateway = Setup::on(&redis).brisk().ready().await;
    until("a warning", SOON, async || {
        gateway.log().lines().any(|line| line.contains("WARN") && line.contains("maxmemory")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn another_version_of_the_contract_is_refused() {
    let redis = RedisServer::start();
    Resp::to(&redis).await.call(&["SET", "{analytics}:schema", "99"]).await;
    let gateway = Setup::on(&redis).brisk().start().await;
    until("the reason is told", SOON, async || gateway.log().contains("version of the contract").then_some(())).await;
    assert_eq!(gateway.probe("/readyz").await, Some(503));
    assert_eq!(gateway.metric("gateway_ticker").await, 0, "nor does it tick");
}
