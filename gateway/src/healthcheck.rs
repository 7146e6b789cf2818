//! `gateway --healthcheck`: asks a running gateway's `/readyz`, for container images that hold no shell and no curl.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

/// How long connecting, and then the answer, may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// A status line is shorter than this.
const ANSWER_BYTES_MAX: u64 = 512;

/// Exit 0 when the gateway at `address` (empty: the configured internal listener) is ready, else 1.
#[must_use]
pub fn run(address: &str, configured: SocketAddr) -> ExitCode {
    let target = if address.is_empty() { Some(reachable(configured)) } else { resolve(address) };
    let Some(target) = target else {
        eprintln!("gateway: not a name or address with a port, like 127.0.0.1:9464, or it does not resolve");
        return ExitCode::FAILURE;
    };
    match status(target) {
        Ok(200) => ExitCode::SUCCESS,
        Ok(status) => {
            eprintln!("gateway: not ready (status {status})");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("gateway: {}", error.kind());
            ExitCode::FAILURE
        }
    }
}

/// A listener on all addresses is asked on loopback.
fn reachable(mut configured: SocketAddr) -> SocketAddr {
    if configured.ip().is_unspecified() {
        let v6 = configured.is_ipv6();
        configured.set_ip(if v6 { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) });
    }
    configured
}

/// The first address of `host:port`; a service's name inside a cluster is one.
fn resolve(address: &str) -> Option<SocketAddr> {
    address.to_socket_addrs().ok()?.next()
}

fn status(target: SocketAddr) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let code = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
    code.ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn tells_ready_from_not_ready_and_from_nonsense() {
        let check = |answer: &'static [u8]| {
            let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
            let target = listener.local_addr().expect("bound");
            let server = std::thread::spawn(move || {
                let (mut peer, _) = listener.accept().expect("a client");
                let mut request = [0; 256];
                let _ = peer.read(&mut request);
                peer.write_all(answer).expect("writes");
            });
            let result = status(target);
            server.join().expect("server ends");
            result
        };
        assert_eq!(check(b"HTTP/1.1 200 OK\r\n\r\n").expect("an answer"), 200);
        assert_eq!(check(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").expect("an answer"), 503);
        assert!(check(b"SSH-2.0-OpenSSH\r\n").is_err());
        assert!(check(b"").is_err());
    }

    #[test]
    fn asks_loopback_when_all_addresses_are_listened_on() {
        let check = |configured: &str, want: &str| {
            assert_eq!(reachable(configured.parse().expect("an address")).to_string(), want);
        };
        check("0.0.0.0:9464", "127.0.0.1:9464");
        check("[::]:9464", "[::1]:9464");
        check("192.0.2.7:9464", "192.0.2.7:9464");
        assert_eq!(resolve("127.0.0.1:9464"), "127.0.0.1:9464".parse().ok());
        assert_eq!(resolve("127.0.0.1"), None);
    }
}
