//! A Redis Cluster: three primaries that share the slots, and replicas for them.

use std::time::Duration;

use super::ports;
use super::redis_server::{Options, RedisServer};
use super::resp::Resp;
use super::wait::until;

/// Longest wait for nodes to agree; unhindered it takes a few seconds of gossip.
const AGREED_WITHIN: Duration = Duration::from_secs(40);
/// Which slots each primary has, first to last.
const SLOTS: [(&str, &str); 3] = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];

/// Starts three primaries and, behind them in the list, that many replicas, one for each primary in turn.
pub(crate) async fn start(replicas: usize) -> Vec<RedisServer> {
    // The nodes' own talk has a port of its own. Redis would add 10,000 to the other, which is where the kernel takes
    // ports for outgoing connections from: a server that is started again would find it taken.
    let buses: Vec<String> = (0..SLOTS.len() + replicas).map(|_| ports::free().port().to_string()).collect();
    let server = |bus: &String| {
        let directives = vec![
            ("cluster-enabled", "yes".to_owned()),
            ("cluster-port", bus.clone()),
            ("cluster-node-timeout", "2000".to_owned()),
            ("repl-diskless-sync-delay", "0".to_owned()),
        ];
        RedisServer::with(Options { directives, ..Options::default() })
    };
    let servers: Vec<RedisServer> = buses.iter().map(server).collect();
    let first_port = servers[0].address().port().to_string();
    for (index, server) in servers.iter().enumerate() {
        let mut resp = Resp::to(server).await;
        if let Some((from, to)) = SLOTS.get(index) {
            resp.call(&["CLUSTER", "ADDSLOTSRANGE", from, to]).await;
        }
        resp.call(&["CLUSTER", "MEET", "127.0.0.1", &first_port, &buses[0]]).await;
    }
    until_stands(&servers).await;
    for (index, server) in servers.iter().enumerate().skip(SLOTS.len()) {
        let primary = Resp::to(&servers[index % SLOTS.len()]).await.call(&["CLUSTER", "MYID"]).await;
        Resp::to(server).await.call(&["CLUSTER", "REPLICATE", primary.text()]).await;
    }
    for server in &servers[SLOTS.len()..] {
        let mut resp = Resp::to(server).await;
        until("the replica follows", AGREED_WITHIN, async || {
            resp.call(&["INFO", "replication"]).await.text().contains("master_link_status:up").then_some(())
        })
        .await;
    }
    servers
}

/// Waits until each node knows all others and all slots are served.
async fn until_stands(servers: &[RedisServer]) {
    let known = format!("cluster_known_nodes:{}\r", servers.len());
    let whole = ["cluster_state:ok", "cluster_slots_ok:16384", known.as_str()];
    for server in servers {
        let mut resp = Resp::to(server).await;
        until("the cluster stands", AGREED_WITHIN, async || {
            let info = resp.call(&["CLUSTER", "INFO"]).await;
            whole.iter().all(|line| info.text().contains(line)).then_some(())
        })
        .await;
    }
}
