//! How many connections may be open that are not WebSockets (yet).
//!
//! Before it has upgraded, a connection costs 18 to 27 KB and has proved nothing. So these are capped in all, and per
//! peer, so that one peer cannot take all the places. Trusted proxies carry everybody's connections and are exempt
//! from the second cap. A connection that upgrades gives its place back and falls under admission instead.
//!
//! Nor may they, beside the sockets, take the process's last descriptors: probes and the way to the backplane need
//! some. So on a node that is nearly full there are fewer places.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::identity::counted;
use crate::metrics::Connect;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Gate {
    max: usize,
    max_per_peer: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    /// Only peers with open connections: bounded by `total`.
    // Inv. BOUND
    per_peer: HashMap<IpAddr, usize>,
}

/// Whether a peer has a cap of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// It has.
    Anybody(IpAddr),
    /// A trusted proxy: everybody's connections come from it.
    Exempt,
}

impl Gate {
    pub(super) fn new(max: usize, max_per_peer: usize) -> Arc<Self> {
        Arc::new(Self { max, max_per_peer, open: Mutex::default() })
    }

    /// Takes a place, or tells which cap is reached. `room`: how many places there are descriptors for at present.
    pub(super) fn enter(self: &Arc<Self>, peer: Peer, room: usize) -> Result<Pass, Connect> {
        let mut open = self.open.lock();
        if open.total >= self.max.min(room) {
            return Err(Connect::TooMany);
        }
        let peer = match peer {
            Peer::Anybody(ip) => Some(counted(ip)),
            Peer::Exempt => None,
        };
        if let Some(peer) = peer {
            let of_peer = open.per_peer.get(&peer).copied().unwrap_or_default();
            if of_peer >= self.max_per_peer {
                return Err(Connect::TooManyOfPeer);
            }
            open.per_peer.insert(peer, of_peer + 1);
        }
        open.total += 1;
        drop(open);
        Ok(Pass { gate: Arc::clone(self), peer })
    }
}

/// A place; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Pass {
    gate: Arc<Gate>,
    peer: Option<IpAddr>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut open = self.gate.open.lock();
        open.total -= 1;
        let Some(peer) = self.peer else { return };
        if let Some(of_peer) = open.per_peer.get_mut(&peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                open.per_peer.remove(&peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = usize::MAX;

    fn peer(text: &str) -> Peer {
        Peer::Anybody(text.parse().expect("an address"))
    }

    // Inv. BOUND
    #[test]
    fn both_caps_hold_and_places_come_back() {
        let gate = Gate::new(4, 2);
        let mut passes = vec![
            gate.enter(peer("192.0.2.1"), ROOM).expect("room"),
            gate.enter(peer("192.0.2.1"), ROOM).expect("room"),
        ];
        assert_eq!(gate.enter(peer("::ffff:192.0.2.1"), ROOM).unwrap_err(), Connect::TooManyOfPeer);
        passes.push(gate.enter(peer("2001:db8::1"), ROOM).expect("room"));
        passes.push(gate.enter(peer("2001:db8::2"), ROOM).expect("room"));
        assert_eq!(gate.enter(peer("192.0.2.9"), ROOM).unwrap_err(), Connect::TooMany);
        passes.pop();
        passes.push(gate.enter(Peer::Exempt, ROOM).expect("room"));
        passes.remove(0);
        assert!(gate.enter(peer("192.0.2.1"), ROOM).is_ok());
        passes.clear();
        assert_eq!(gate.open.lock().total, 0);
        assert!(gate.open.lock().per_peer.is_empty());
    }

    // Inv. BOUND
    #[test]
    fn where_descriptors_are_short_there_are_fewer_places() {
        let gate = Gate::new(4, 4);
        let _pass = gate.enter(Peer::Exempt, 1).expect("room");
        assert_eq!(gate.enter(Peer::Exempt, 1).unwrap_err(), Connect::TooMany);
        assert!(gate.enter(Peer::Exempt, 2).is_ok());
    }

    #[test]
    fn a_trusted_proxy_has_no_cap_of_its_own() {
        let gate = Gate::new(10, 1);
        let passes: Vec<_> = (0..10).map(|_| gate.enter(Peer::Exempt, ROOM)).collect();
        assert!(passes.iter().all(Result::is_ok));
        assert_eq!(gate.enter(Peer::Exempt, ROOM).unwrap_err(), Connect::TooMany);
    }
}
