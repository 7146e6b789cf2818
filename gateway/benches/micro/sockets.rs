//! Ten thousand sockets in one process, whose descriptors may be limited to twenty thousand, and what they belong to.
//!
//! They are UDP sockets, connected to one that nobody reads: each has a descriptor and a place in the runtime's poller
//! like any other, its `send(2)` always succeeds at once, and it needs no peer with a descriptor of its own. (The
//! hub's TCP options fail on them, which it survives.)

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gateway::admission::{Admission, AdmissionSettings};
use gateway::backplane::AddressHash;
use gateway::backplane::memory::MemoryBackplane;
use gateway::clock::{Clock, Mono};
use gateway::hub::{Hub, HubSettings, Ids, NewSocket, State};
use gateway::identity::VisitorDigest;
use gateway::metrics::{Direction, Metrics};
use gateway::vitals::Vitals;
use shared::ids::NodeId;
use shared::message::MessageKinds;
use tokio::net::TcpStream;

use super::wire::{id, snapshot};

/// All sockets have their `init` within this time, also under callgrind on a slow machine.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);

/// A hub without sockets, and with something to say to them.
pub(crate) fn hub() -> (Arc<Hub>, Arc<Metrics>) {
    let (metrics, clock) = (Arc::new(Metrics::default()), Clock::start());
    let hub = Hub::new(HubSettings::default(), clock, Arc::clone(&metrics), Arc::new(Vitals::new(clock)));
    hub.prime(State { snapshot: snapshot(), fresh_until: Mono::MAX, id: Some(id()) });
    (hub, metrics)
}

/// An admission that has let nobody in yet; a cap of 0 is none.
pub(crate) fn admission(max_per_address: u32) -> Arc<Admission> {
    let settings = AdmissionSettings {
        max_connections: 10_000,
        max_per_address,
        handshakes_per_second: 5,
        backplane_wait: Duration::from_millis(250),
        visitor_window: Duration::from_secs(300),
    };
    let (node, metrics) = (NodeId::from_random(1), Arc::new(Metrics::default()));
    let admission = Admission::new(settings, node, MemoryBackplane::new(), metrics, Clock::start());
    admission.set_secret([7; 32]);
    admission
}

/// Where sockets send to. Allows the process its descriptors.
pub(crate) fn sink() -> UdpSocket {
    rlimit::increase_nofile_limit(u64::MAX).expect("the soft limit goes up to the hard one");
    UdpSocket::bind("127.0.0.1:0").expect("a free port")
}

/// A socket that is registered with the runtime.
pub(crate) fn stream(sink: &UdpSocket) -> TcpStream {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.connect(sink.local_addr().expect("bound")).expect("connects");
    socket.set_nonblocking(true).expect("sets");
    TcpStream::from_std(OwnedFd::from(socket).into()).expect("registers")
}

/// One that wants everything as documented.
pub(crate) fn viewer(stream: TcpStream) -> NewSocket {
    NewSocket {
        stream,
        answer: Bytes::new(),
        leftover: Bytes::new(),
        kinds: MessageKinds::ALL,
        ids: Ids::Without,
        resume: None,
        visitor: VisitorDigest([0; 16]),
        permit: None,
    }
}

/// Waits until that many messages were written: the `init` of each socket, which had to wait for the runtime to see
/// that the socket can be written to.
pub(crate) async fn settled(metrics: &Metrics, messages: u64) {
    let begun = Instant::now();
    while metrics.messages.value(Direction::Sent) < messages {
        assert!(begun.elapsed() < SETTLED_WITHIN, "some sockets did not get their init");
        tokio::task::yield_now().await;
    }
}

/// The `n`th client's address.
pub(crate) fn ip(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n))
}

/// The `n`th client's address as the backplane knows it.
pub(crate) fn address(n: u32) -> AddressHash {
    let mut hash = [7; 16];
    hash[..4].copy_from_slice(&n.to_be_bytes());
    AddressHash(hash)
}
