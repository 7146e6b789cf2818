//! Ports for servers that cannot tell which one the kernel gave them.
//!
//! Binding port 0, dropping the socket and passing the number on has a hole: the kernel may hand the same number to
//! the next outgoing connection, of which these tests make thousands. So ports come from below the range that Linux
//! and macOS use for those, each number once per process; what is left is a clash with a stranger, for which
//! whoever starts a server tries again.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// Registered ports, below the ephemeral ranges (Linux: from 32768; macOS: from 49152).
const FIRST: u32 = 12_000;
const COUNT: u32 = 20_000;

/// An address on 127.0.0.1 where nobody listens now, and which no other caller in this process gets.
pub(crate) fn free() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Processes that run at the same time begin far apart.
    let begin = std::process::id().wrapping_mul(127);
    (0..COUNT)
        .find_map(|_| {
            let offset = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
            let port = u16::try_from(FIRST + offset).expect("below 32768");
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            TcpListener::bind(address).is_ok().then_some(address)
        })
        .expect("one of 20,000 ports is free")
}
