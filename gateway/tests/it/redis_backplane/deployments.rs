//! The ways to run Redis: old, guarded, encrypted, watched by Sentinel, spread over a cluster.

use std::path::Path;
use std::process::{Command, Stdio};

use shared::ids::StreamId;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::*;
use crate::support::ports;
use crate::support::redis_cluster;
use crate::support::sentinel::Sentinel;

const FAILOVER_WITHIN: Duration = Duration::from_secs(40);

/// Speaks just enough of RESP3 to be asked for its version.
async fn old_redis(listener: TcpListener, version: &'static str) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(async move {
            let mut stream = BufReader::new(stream);
            while let Some(words) = command(&mut stream).await {
                let answer = match words[0].as_str() {
                    "HELLO" => "%1\r\n$5\r\nproto\r\n:3\r\n".to_owned(),
                    "INFO" => {
                        let info = format!("# Server\r\nredis_version:{version}\r\n");
                        format!("${}\r\n{info}\r\n", info.len())
                    }
                    "CLIENT" => ":1\r\n".to_owned(),
                    "PING" => "+PONG\r\n".to_owned(),
                    // Whoever sends anything else gets what no caller takes for an answer.
                    _ => "-ERR an unfit server was used\r\n".to_owned(),
                };
                if stream.get_mut().write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// The next command, in either of its two forms.
pub(super) async fn command(stream: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
    let Some(count) = line.trim().strip_prefix('*') else {
        return Some(line.split_whitespace().map(str::to_owned).collect());
    };
    let mut words = Vec::new();
    for _ in 0..count.parse::<usize>().ok()? {
        line.clear();
        stream.read_line(&mut line).await.ok()?;
        let mut word = vec![0; line.trim().strip_prefix('$')?.parse::<usize>().ok()? + 2];
        stream.read_exact(&mut word).await.ok()?;
        words.push(String::from_utf8_lossy(&word).trim().to_owned());
    }
    Some(words)
}

#[tokio::test]
async fn an_old_redis_is_refused_with_the_reason_and_never_used() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("redis://{}", listener.local_addr().expect("bound"));
    let mut server = JoinSet::new();
    server.spawn(old_redis(listener, "6.2.14"));
    let (backplane, metrics) = connect(&url);
    let error = BackplaneError::Incompatible("Redis 7 or newer, or Valkey, is needed");
    assert_eq!(bounded(backplane.secret(None)).await, Err(error.clone()));
    assert_eq!(bounded(backplane.publish(&page(node(1), 1))).await, Err(error.clone()));
    assert_eq!(bounded(backplane.legacy()).await.map(|_| ()), Err(error));
    assert_eq!(metrics.backplane_up.value(), 0);
}

#[tokio::test]
async fn data_of_another_contract_are_not_touched_until_they_fit() {
    let redis = RedisServer::start();
    let mut resp = Resp::to(&redis).await;
    resp.call(&["SET", "{analytics}:schema", "99"]).await;
    let (backplane, metrics) = connect(&redis.url());
    let refused = bounded(backplane.publish(&page(node(1), 1))).await;
    assert!(matches!(refused, Err(BackplaneError::Incompatible(reason)) if reason.contains("schema")), "{refused:?}");
    assert!(bounded(backplane.legacy()).await.is_err());
    assert_eq!(resp.call(&["DBSIZE"]).await.number(), 1);
    assert_eq!(metrics.backplane_up.value(), 0);
    resp.call(&["SET", "{analytics}:schema", "1"]).await;
    back(&backplane).await;
    bounded(backplane.publish(&page(node(1), 1))).await.expect("done");
    assert_eq!(metrics.backplane_up.value(), 1);
}

#[tokio::test]
async fn a_password_opens_and_a_wrong_one_does_not() {
    let redis = RedisServer::with(Options { password: Some("sesame"), ..Options::default() });
    let (backplane, _) = connect(&redis.url());
    bounded(backplane.secret(None)).await.expect("opened");
    let (shut_out, _) = connect(&redis.url().replace("sesame", "thyme"));
    assert_eq!(bounded(shut_out.secret(None)).await, Err(BackplaneError::Unreachable));
}

#[tokio::test]
async fn a_user_with_few_rights_is_enough_and_a_missing_right_is_told() {
    let redis = RedisServer::start();
    let mut resp = Resp::to(&redis).await;
    let rights = "~{analytics}:* &analytics:realtime +@all -@admin -@dangerous";
    let words: Vec<&str> =
        ["ACL", "SETUSER", "gateway", "on", ">sesame"].into_iter().chain(rights.split(' ')).collect();
    resp.call(&words).await;
    let url = format!("redis://gateway:sesame@{}", redis.address());
    let (backplane, _) = connect(&url);
    bounded(backplane.publish(&page(node(1), 1))).await.expect("done, though INFO is not allowed");
    bounded(backplane.legacy()).await.expect("subscribed");
    resp.call(&["ACL", "SETUSER", "gateway", "-evalsha"]).await;
    let told = BackplaneError::Corrupt("the Redis user lacks a permission");
    assert_eq!(bounded(backplane.publish(&page(node(1), 2))).await, Err(told));
}

/// Makes an authority and a certificate for 127.0.0.1.
pub(super) fn certificates(directory: &Path) {
    let openssl = |arguments: &[&str]| {
        let made = Command::new("openssl")
            .args(arguments)
            .current_dir(directory)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .expect("openssl is on the PATH");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let ca = ["req", "-x509", "-subj", "/CN=test authority", "-days", "2", "-keyout", "ca.key", "-out", "ca.crt"];
    openssl(&[&ca[..], &key[..]].concat());
    let server = ["req", "-x509", "-subj", "/CN=redis", "-days", "2", "-keyout", "redis.key", "-out", "redis.crt"];
    let signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1"];
    let leaf = ["-addext", "basicConstraints=critical,CA:FALSE"];
    openssl(&[&server[..], &key[..], &signed[..], &leaf[..]].concat());
}

#[tokio::test]
async fn tls_with_an_authority_of_ones_own() {
    let directory = TempDir::new().expect("a directory");
    certificates(directory.path());
    let file = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let tls = ports::free();
    let directives = vec![
        ("tls-port", tls.port().to_string()),
        ("tls-cert-file", file("redis.crt")),
        ("tls-key-file", file("redis.key")),
        ("tls-ca-cert-file", file("ca.crt")),
        ("tls-auth-clients", "no".to_owned()),
    ];
    let _redis = RedisServer::with(Options { directives, ..Options::default() });
    let with_ca = |ca: &str| RedisSettings { ca_file: Some(file(ca).into()), ..settings(&format!("rediss://{tls}")) };
    let trusting = RedisBackplane::connect(&with_ca("ca.crt"), node(1), Arc::default()).expect("good settings");
    bounded(trusting.publish(&page(node(1), 1))).await.expect("done");
    bounded(trusting.legacy()).await.expect("subscribed");
    // The server's own certificate is no authority for it.
    certificates_of_a_stranger(directory.path());
    let stranger = RedisBackplane::connect(&with_ca("stranger/ca.crt"), node(2), Arc::default()).expect("good");
    assert_eq!(bounded(stranger.secret(None)).await, Err(BackplaneError::Unreachable));
}

fn certificates_of_a_stranger(directory: &Path) {
    let stranger = directory.join("stranger");
    std::fs::create_dir(&stranger).expect("a directory");
    certificates(&stranger);
}

#[tokio::test]
async fn sentinel_leads_to_the_new_primary() {
    let mut primary = RedisServer::start();
    let of_primary = vec![("replicaof", format!("127.0.0.1 {}", primary.address().port()))];
    let replica = RedisServer::with(Options { directives: of_primary, ..Options::default() });
    let (mut to_primary, mut to_replica) = (Resp::to(&primary).await, Resp::to(&replica).await);
    until("the replica follows", FAILOVER_WITHIN, async || {
        to_replica.call(&["INFO", "replication"]).await.text().contains("master_link_status:up").then_some(())
    })
    .await;
    let sentinel = Sentinel::watching(primary.address(), 1).await;
    let (backplane, _) = connect(&format!("redis-sentinel://{}?sentinelServiceName=main", sentinel.address));
    back(&backplane).await;
    let first = bounded(backplane.publish(&page(node(1), 1))).await.expect("done");
    let lease = bounded(backplane.claim(node(1), Duration::from_secs(60))).await.expect("an answer").lease;
    // It waits for the writes of its own connection, and so for what was written before them.
    to_primary.call(&["SET", "marker", "x"]).await;
    assert_eq!(to_primary.call(&["WAIT", "1", "10000"]).await.number(), 1, "the replica has it");
    // Sentinel must have seen the replica before it can promote it: it asks the primary every ten seconds.
    let mut watch = Resp::at(sentinel.address).await;
    until("sentinel knows the replica", FAILOVER_WITHIN, async || {
        let known = watch.call(&["SENTINEL", "REPLICAS", "main"]).await;
        (!known.many().is_empty()).then_some(())
    })
    .await;
    primary.kill9();
    let again = until("the new primary answers", FAILOVER_WITHIN, async || {
        bounded(backplane.publish(&page(node(1), 1))).await.ok()
    });
    // Inv. FENCE: leases and numbers survive with the data.
    assert_eq!(again.await, first);
    let kept = bounded(backplane.claim(node(1), Duration::from_secs(60))).await.expect("an answer").lease;
    assert_eq!(kept, lease);
    let read = until("the stream is read from the new primary", FAILOVER_WITHIN, async || {
        backplane.read_from(StreamId::ZERO, 10, Duration::from_millis(10)).await.ok()
    });
    assert_eq!(read.await.len(), 1);
}

#[tokio::test]
async fn all_keys_live_on_one_node_of_a_cluster() {
    let servers = redis_cluster::start(0).await;
    let (backplane, metrics) = connect(&format!("redis-cluster://{}", servers[0].address()));
    back(&backplane).await;
    let mut legacy = bounded(backplane.legacy()).await.expect("subscribed");
    for number in 1..=2 {
        bounded(backplane.publish(&page(node(1), number))).await.expect("done");
    }
    bounded(backplane.claim(node(1), Duration::from_secs(3))).await.expect("an answer").lease.expect("free");
    bounded(backplane.beat(node(1), gateway::backplane::Join::Enter, Duration::from_secs(6))).await.expect("member");
    bounded(backplane.salts(&[])).await.expect("made");
    bounded(backplane.leave(node(1))).await.expect("left");
    let read = backplane.read_from(StreamId::ZERO, 10, Duration::from_millis(100));
    assert_eq!(bounded(read).await.expect("an answer").len(), 2);
    // A producer may publish on any node of the cluster.
    for server in &servers {
        Resp::to(server).await.call(&["PUBLISH", "analytics:realtime", "x"]).await;
        assert_eq!(legacy.recv().await.expect("open").as_ref(), b"x");
    }
    let mut holders = 0;
    for server in &servers {
        holders += usize::from(Resp::to(server).await.call(&["DBSIZE"]).await.number() > 0);
    }
    assert_eq!(holders, 1);
    assert_eq!((metrics.backplane_up.value(), metrics.backplane_reconnects.value()), (1, 0));
}
