//! Redis Sentinels: processes that watch a primary and promote a replica when it is gone.

use std::net::SocketAddr;
use std::process::Stdio;

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::ports;
use super::process::Process;
use super::redis_server;
use super::wait::{SOON, until};

/// The name under which the primary is watched.
pub(crate) const SERVICE: &str = "main";

/// A Sentinel; it rewrites its configuration, which therefore has a directory. Ended when dropped.
#[derive(Debug)]
pub(crate) struct Sentinel {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    _process: Process,
    _directory: TempDir,
}

impl Sentinel {
    /// Starts one that watches `primary`, which is gone when `quorum` Sentinels have not heard from it for 500 ms.
    pub(crate) async fn watching(primary: SocketAddr, quorum: usize) -> Self {
        let (directory, address) = (TempDir::new().expect("a directory"), ports::free());
        let path = directory.path().join("sentinel.conf");
        let config = format!(
            "bind 127.0.0.1\nport {}\ndir {}\nsentinel monitor {SERVICE} {} {} {quorum}\n\
             sentinel down-after-milliseconds {SERVICE} 500\nsentinel failover-timeout {SERVICE} 3000\n",
            address.port(),
            directory.path().display(),
            primary.ip(),
            primary.port()
        );
        std::fs::write(&path, config).expect("written");
        let mut command = redis_server::program();
        command.arg(&path).arg("--sentinel").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process::spawn(&mut command).expect("redis-server starts");
        until("sentinel listens", SOON, async || TcpStream::connect(address).await.ok()).await;
        Self { address, _process: process, _directory: directory }
    }
}
