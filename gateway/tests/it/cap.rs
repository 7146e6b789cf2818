//! At most ten sockets of one client address, on all nodes together.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::support::client::{Client, End, Refusal, Upgrade, connect};
use crate::support::cluster::Cluster;
use crate::support::gateway::{Gateway, Setup};
use crate::support::recorder::Recorder;
use crate::support::redis_server::{Durability, Options, RedisServer};
use crate::support::resp::{Reply, Resp};
use crate::support::wait::{SOON, until};

/// The cap, and no limit of handshakes: some of these tests ask often.
fn capped(setup: Setup) -> Setup {
    setup.brisk().with("GATEWAY_HANDSHAKES_PER_SECOND_PER_IP", "0")
}

// Inv. CAP: ten live, whatever nodes they are on; the eleventh is told when to come back.
#[tokio::test]
async fn the_eleventh_socket_of_an_address_is_refused_on_every_node() {
    let mut cluster = Cluster::of(3, capped).await;
    let mut recorders = Vec::new();
    for (node, count) in [(0, 5), (1, 3), (2, 2)] {
        for _ in 0..count {
            recorders.push(Recorder::join(Client::open(cluster.nodes[node].public).await).await);
        }
    }
    for node in &cluster.nodes {
        let answer = Upgrade::new().refused(node.public).await;
        assert_eq!(answer.status(), 429);
        let after: u64 = answer.head.header("retry-after").expect("says when").parse().expect("seconds");
        assert!(after >= 1);
        node.until_metric(r#"gateway_handshakes_total{outcome="address_cap"}"#, 1).await;
    }
    for recorder in &recorders {
        recorder.until_new("realtime_update", SOON).await;
    }

    // The node that held five of them dies without a word: its five do not count for long.
    cluster.nodes[0].kill9();
    let died = Instant::now();
    recorders.drain(..5);
    for n in 0..5 {
        let node = &cluster.nodes[1 + n % 2];
        let client =
            until("a new socket", Duration::from_secs(10), async || Upgrade::new().try_open(node.public).await.ok())
                .await;
        recorders.push(Recorder::of(client));
    }
    assert!(died.elapsed() < Duration::from_secs(10), "{:?}", died.elapsed());
    for node in &cluster.nodes[1..] {
        assert_eq!(Upgrade::new().refused(node.public).await.status(), 429);
    }
    for recorder in &recorders {
        recorder.until_new("realtime_update", SOON).await;
    }
}

// Inv. CAP: somebody has written something else in the place of one address. That costs it its cap over all nodes, until
// it is put right; everybody else's holds, and their places are given back.
#[tokio::test]
async fn a_key_of_a_wrong_type_costs_its_own_address_alone() {
    let cluster = Cluster::of(2, |setup| capped(setup).with("GATEWAY_TRUSTED_PROXIES", "127.0.0.1")).await;
    let from = |address: &str| Upgrade::new().header("X-Forwarded-For", address);
    let (unlucky, other) = (from("198.51.100.1"), from("198.51.100.2"));
    let (one, two) = (cluster.nodes[0].public, cluster.nodes[1].public);
    let mut resp = cluster.producer().await;
    let (first, second) = (unlucky.open(one).await, unlucky.open(one).await);
    let key = resp.call(&["KEYS", "{analytics}:ip:*"]).await.many()[0].text().to_owned();
    let of_other = fill(&other, one).await;
    assert_eq!(of_other.len(), 10);
    resp.call(&["SET", &key, "precious"]).await;

    // Places are given back, though that of the first address cannot be.
    for client in of_other.into_iter().chain([first]) {
        assert_eq!(client.close().await, 1000);
    }
    let mut of_other = Vec::new();
    until("room on the other node", SOON, async || {
        of_other.extend(fill(&other, two).await);
        (of_other.len() == 10).then_some(())
    })
    .await;
    // The first goes by each node's own count, and yet the other has one over both.
    let mut of_unlucky = vec![Recorder::of(second)];
    for node in [one, two] {
        of_unlucky.extend(fill(&unlucky, node).await.into_iter().map(Recorder::of));
    }
    assert_eq!(of_unlucky.len(), 20);
    assert_eq!(other.refused(one).await.status(), 429);
    assert_eq!(cluster.nodes[0].metric("gateway_admissions_alone_total").await, 9);
    cluster.nodes[0].until_metric(r#"gateway_backplane_failures_total{reason="corrupt"}"#, 9).await;
    assert_eq!(resp.call(&["GET", &key]).await.text(), "precious", "left alone");
    let (_, hash) = key.rsplit_once(':').expect("a name");
    for node in &cluster.nodes {
        let log = node.log();
        assert!(log.contains("key ip: not a hash of counts"), "{log}");
        // Inv. PRIVATE
        assert!(!log.contains(hash) && !log.contains("198.51.100"), "{log}");
    }

    // Put right: those that are too many are sent away, and the cap is the cluster's again.
    resp.call(&["DEL", &key]).await;
    let open = || of_unlucky.iter().filter(|recorder| recorder.end().is_none()).count();
    until("ten are left", SOON, async || (open() == 10).then_some(())).await;
    for node in [one, two] {
        assert_eq!(unlucky.refused(node).await.status(), 429);
    }
    let ends: Vec<_> = of_unlucky.iter().filter_map(Recorder::end).collect();
    assert_eq!(ends.len(), 10);
    assert!(ends.iter().all(|end| matches!(end, End::Close { code: 1013, .. })), "{ends:?}");
}

// Inv. CAP: thirty at the same instant, on three nodes: ten.
#[tokio::test]
async fn a_rush_gets_no_more_than_the_cap() {
    let cluster = Cluster::of(3, capped).await;
    let mut rush = JoinSet::new();
    for n in 0..30 {
        let node = cluster.nodes[n % 3].public;
        rush.spawn(async move { Upgrade::new().try_open(node).await });
    }
    let mut open = Vec::new();
    while let Some(outcome) = rush.join_next().await {
        match outcome.expect("no panic") {
            Ok(client) => open.push(client),
            Err(refusal) => assert_eq!(refusal.status(), Some(429)),
        }
    }
    assert_eq!(open.len(), 10);

    // One who leaves makes room on another node.
    assert_eq!(open.pop().expect("ten").close().await, 1000);
    let mut room = None;
    until("room", SOON, async || {
        room = Upgrade::new().try_open(cluster.nodes[0].public).await.ok();
        room.is_some().then_some(())
    })
    .await;
    assert_eq!(Upgrade::new().refused(cluster.nodes[1].public).await.status(), 429);
}

/// Opens sockets until one is refused; gives those that were open then.
async fn fill(upgrade: &Upgrade, to: std::net::SocketAddr) -> Vec<Client> {
    let mut open = Vec::new();
    loop {
        match upgrade.try_open(to).await {
            Ok(client) => open.push(client),
            Err(Refusal::Answered(answer)) if answer.status() == 429 => return open,
            Err(other) => panic!("{other:?}"),
        }
        assert!(open.len() <= 10, "an eleventh socket");
    }
}

#[tokio::test]
async fn nobody_is_believed_about_his_address_but_a_trusted_proxy() {
    let spoof = |address: &str| Upgrade::new().header("X-Forwarded-For", address).header("Forwarded", "for=192.0.2.9");
    let direct = capped(Setup::embedded()).ready().await;
    let all_ten = fill(&spoof("198.51.100.1"), direct.public).await;
    assert_eq!(all_ten.len(), 10);
    assert_eq!(spoof("198.51.100.77").refused(direct.public).await.status(), 429);
    assert_eq!(Upgrade::new().refused(direct.public).await.status(), 429);

    let behind = capped(Setup::embedded()).with("GATEWAY_TRUSTED_PROXIES", "127.0.0.1,10.0.0.0/8").ready().await;
    let to = behind.public;
    let first = fill(&spoof("198.51.100.1"), to).await;
    assert_eq!(first.len(), 10);
    // What the client itself put before the proxy's entry changes nothing; nor do further trusted proxies after it.
    for header in ["203.0.113.5, 198.51.100.1", "198.51.100.1, 10.1.2.3", "unknown, 198.51.100.1,10.9.9.9"] {
        assert_eq!(spoof(header).refused(to).await.status(), 429, "{header}");
    }
    let two_lines = Upgrade::new().header("X-Forwarded-For", "203.0.113.5").header("X-Forwarded-For", "198.51.100.1");
    assert_eq!(two_lines.refused(to).await.status(), 429, "several lines are one list");
    assert_eq!(spoof("::ffff:198.51.100.1").refused(to).await.status(), 429, "the same address in IPv6 clothes");
    let _other = spoof("198.51.100.2").open(to).await;
}

#[tokio::test]
async fn ipv6_addresses_of_one_network_share_the_cap() {
    let behind = capped(Setup::embedded()).with("GATEWAY_TRUSTED_PROXIES", "127.0.0.1").ready().await;
    let mut open = Vec::new();
    for n in 0..10 {
        let upgrade = Upgrade::new().header("X-Forwarded-For", &format!("2001:db8:1:2:{n}::1"));
        open.push(upgrade.open(behind.public).await);
    }
    let same = Upgrade::new().header("X-Forwarded-For", "2001:db8:1:2:ffff::");
    assert_eq!(same.refused(behind.public).await.status(), 429);
    let _other = Upgrade::new().header("X-Forwarded-For", "2001:db8:1:3::1").open(behind.public).await;
}

/// A PROXY protocol v2 header for a TCP connection over IPv4 from `client`.
fn proxy_v2(client: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend_from_slice(&client);
    header.extend_from_slice(&[127, 0, 0, 1, 0x30, 0x39, 0x13, 0x88]);
    header
}

#[tokio::test]
async fn the_proxy_protocol_is_believed_from_trusted_proxies_alone() {
    let setup = capped(Setup::embedded()).with("GATEWAY_PROXY_PROTOCOL", "on");
    let gateway = setup.clone().with("GATEWAY_TRUSTED_PROXIES", "127.0.0.1").ready().await;
    let to = gateway.public;
    let v1 = |client: &str| Upgrade::new().preface(format!("PROXY TCP4 {client} 127.0.0.1 12345 5000\r\n").as_bytes());
    let mut open = Vec::new();
    for n in 0..10 {
        let upgrade =
            if n % 2 == 0 { v1("198.51.100.1") } else { Upgrade::new().preface(&proxy_v2([198, 51, 100, 1])) };
        open.push(upgrade.open(to).await);
    }
    assert_eq!(v1("198.51.100.1").refused(to).await.status(), 429, "both versions name the same client");
    let disguised = v1("198.51.100.1").header("X-Forwarded-For", "203.0.113.9");
    assert_eq!(disguised.refused(to).await.status(), 429, "the header is ignored then");
    let _other = v1("198.51.100.2").open(to).await;

    let refused = r#"gateway_connects_failed_total{reason="proxy_header"}"#;
    for (number, preface) in
        (1..).zip(["PROXY TCP4 198.51.100.3\r\n", "PROXY NONSENSE a b c d\r\n", &format!("PROXY {}", "x".repeat(300))])
    {
        let outcome = Upgrade::new().preface(preface.as_bytes()).try_open(to).await;
        assert!(outcome.is_err(), "{preface:?}");
        gateway.until_metric(refused, number).await;
    }

    let stranger = setup.with("GATEWAY_TRUSTED_PROXIES", "192.0.2.1").ready().await;
    // Where the option is on, who is no proxy has no business here, with or without a header.
    assert!(v1("198.51.100.1").try_open(stranger.public).await.is_err(), "a header from nobody we trust");
    assert!(Upgrade::new().try_open(stranger.public).await.is_err(), "no proxy");
    stranger.until_metric(refused, 2).await;
}

#[tokio::test]
async fn without_redis_a_node_goes_on_by_its_own_count() {
    let mut cluster = Cluster::of(1, capped).await;
    let mut open = vec![Client::open(cluster.nodes[0].public).await];
    cluster.redis.kill9();
    open.extend(fill(&Upgrade::new(), cluster.nodes[0].public).await);
    assert_eq!(open.len(), 10);
    cluster.nodes[0].until_metric("gateway_admissions_alone_total", 1).await;

    // Back again, the count is the cluster's, and the ten are in it.
    cluster.redis.restart();
    cluster.nodes[0].until_health("ok", SOON).await;
    let second = capped(Setup::on(&cluster.redis)).ready().await;
    until("the ten count on the other node", SOON, async || {
        let refusal = Upgrade::new().try_open(second.public).await.err()?;
        (refusal.status() == Some(429)).then_some(())
    })
    .await;
}

/// The sockets of all these nodes.
async fn sockets(nodes: &[Gateway]) -> u64 {
    let mut sum = 0;
    for node in nodes {
        sum += node.metric("websocket_connections_active").await;
    }
    sum
}

// Inv. CAP: nodes that decide alone are each within the cap, and over it together. Who came last has to go when Redis is
// back; who was let in by all stays.
#[tokio::test]
async fn what_was_let_in_alone_is_admitted_when_redis_is_back() {
    // Who was admitted must be known again afterwards, or it is anybody's race.
    let redis = RedisServer::with(Options { durability: Durability::Everything, ..Options::default() });
    let mut cluster = Cluster::on(redis, 2, capped).await;
    let mut old = Vec::new();
    for (node, count) in [(0, 6), (1, 4)] {
        for _ in 0..count {
            old.push(Recorder::of(Client::open(cluster.nodes[node].public).await));
        }
    }
    cluster.redis.kill9();
    let mut new = Vec::new();
    for node in &cluster.nodes {
        new.extend(fill(&Upgrade::new(), node.public).await.into_iter().map(Recorder::of));
    }
    assert_eq!((new.len(), sockets(&cluster.nodes).await), (10, 20));
    cluster.redis.restart();
    for recorder in &new {
        recorder.until_end(SOON).await;
    }
    let nodes = &cluster.nodes;
    until("ten sockets", SOON, async || (sockets(nodes).await == 10).then_some(())).await;
    for recorder in &old {
        recorder.until_new("realtime_update", SOON).await;
    }
}

// Inv. CAP: a Redis that lost its data has lost the secret by which addresses are named. A node that starts afterwards
// has to name them as the others do, or each of the two counts its own.
#[tokio::test]
async fn an_address_has_one_name_after_redis_lost_its_data() {
    let redis = RedisServer::with(Options { durability: Durability::Nothing, ..Options::default() });
    let mut cluster = Cluster::on(redis, 2, capped).await;
    let mut open = Vec::new();
    for n in 0..10 {
        open.push(Client::open(cluster.nodes[n % 2].public).await);
    }
    cluster.redis.kill9();
    cluster.redis.restart();
    let mut redis = Resp::to(&cluster.redis).await;
    until("the nodes have told what they held", SOON, async || {
        let addresses = redis.call(&["KEYS", "{analytics}:ip:*"]).await;
        let [address] = addresses.many() else { return None };
        (redis.call(&["HLEN", address.text()]).await == Reply::Number(2)).then_some(())
    })
    .await;
    let third = capped(Setup::on(&cluster.redis)).ready().await;
    assert_eq!(Upgrade::new().refused(third.public).await.status(), 429);
}

#[tokio::test]
async fn zero_means_no_cap() {
    let gateway = capped(Setup::embedded()).with("GATEWAY_MAX_CONNECTIONS_PER_IP", "0").ready().await;
    let mut open = Vec::new();
    for _ in 0..30 {
        open.push(Client::open(gateway.public).await);
    }
    // A peer that opens connections and never upgrades has a limit all the same.
    let mut idle = Vec::new();
    until("too many idle connections", SOON, async || {
        for _ in 0..50 {
            idle.push(connect(gateway.public).await.ok());
        }
        (gateway.metric(r#"gateway_connects_failed_total{reason="too_many_of_peer"}"#).await > 0).then_some(())
    })
    .await;
}
