//! How many connections may be open that are not WebSockets (yet).
//!
//! Before it has upgraded, a connection costs 18 to 27 KB and has proved nothing. So these are capped in all, and per
//! peer, so that one peer cannot take all the places. Trusted proxies carry everybody's connections and are exempt
//! from the second cap; but where they say by a PROXY header whose a connection is, it counts as that client's
//! ([`Pass::charge`]). A connection that upgrades gives its place back and falls under admission instead.
//!
//! Where all places are taken, the next connection waits to be accepted ([`Gate::room`]), in the kernel's queue: when
//! ten thousand clients of a dead node come at once, places come free by the hundred each millisecond, and whoever were
//! dropped would only come again. But if hardly any come free for [`PATIENCE`], they are held by clients that do not
//! finish; then newcomers are dropped at once until one does, so that a balancer can send them elsewhere. Each place that
//! comes free buys patience for a sixty-fourth of that, so places that are let go one by one do not hold the listener.
//!
//! Nor may they, beside the sockets, take the process's last descriptors: probes and the way to the backplane need
//! some. So on a node that is nearly full there are fewer places.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::identity::counted;
use crate::metrics::Connect;

/// How long a place is waited for: long enough for a process that has to share its core with a hundred others to come
/// round to those that hold the places.
const PATIENCE: Duration = Duration::from_millis(500);
/// What of it a place that comes free gives back.
const PATIENCE_OF_PLACE: Duration = PATIENCE.checked_div(64).expect("not by zero");

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Gate {
    max: usize,
    max_per_peer: usize,
    open: Mutex<Open>,
    /// Rings when the last place is given back.
    freed: Notify,
}

#[derive(Debug)]
struct Open {
    total: usize,
    /// Only peers with open connections: bounded by `total`.
    // Inv. BOUND
    per_peer: HashMap<IpAddr, usize>,
    /// A place was waited for in vain, and none has come free since.
    stuck: bool,
    /// How long places may be waited for from now on; at most [`PATIENCE`].
    patience: Duration,
}

impl Default for Open {
    fn default() -> Self {
        Self { total: 0, per_peer: HashMap::new(), stuck: false, patience: PATIENCE }
    }
}

/// Whether a peer has a cap of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// It has.
    Anybody(IpAddr),
    /// A trusted proxy: everybody's connections come from it.
    Exempt,
}

impl Open {
    /// Counts one more of `ip`; gives the address under which it counts.
    fn charge(&mut self, ip: IpAddr, max: usize) -> Result<IpAddr, Connect> {
        let peer = counted(ip);
        let of_peer = self.per_peer.get(&peer).copied().unwrap_or_default();
        if of_peer >= max {
            return Err(Connect::TooManyOfPeer);
        }
        self.per_peer.insert(peer, of_peer + 1);
        Ok(peer)
    }
}

impl Gate {
    pub(super) fn new(max: usize, max_per_peer: usize) -> Arc<Self> {
        Arc::new(Self { max, max_per_peer, open: Mutex::default(), freed: Notify::new() })
    }

    /// Waits for a place, within reason. Cancel safe; for one waiter.
    pub(super) async fn room(&self) {
        if !self.is_worth_waiting() {
            return;
        }
        let freed = async {
            // A ring may be about a place that was taken again since.
            while self.is_worth_waiting() {
                self.freed.notified().await;
            }
        };
        let (patience, began) = (self.open.lock().patience, Instant::now());
        let in_vain = tokio::time::timeout(patience, freed).await.is_err();
        let mut open = self.open.lock();
        open.patience = open.patience.saturating_sub(began.elapsed());
        open.stuck = in_vain && open.total >= self.max;
    }

    fn is_worth_waiting(&self) -> bool {
        let open = self.open.lock();
        open.total >= self.max && !open.stuck
    }

    /// Takes a place, or tells which cap is reached. `room`: how many places there are descriptors for at present.
    pub(super) fn enter(self: &Arc<Self>, peer: Peer, room: usize) -> Result<Pass, Connect> {
        let mut open = self.open.lock();
        if open.total >= self.max.min(room) {
            return Err(Connect::TooMany);
        }
        let peer = match peer {
            Peer::Anybody(ip) => Some(open.charge(ip, self.max_per_peer)?),
            Peer::Exempt => None,
        };
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

impl Pass {
    /// The connection of a trusted proxy turned out to be this client's.
    // Inv. BOUND: behind a balancer that passes bytes on, one client cannot take all the places either.
    pub(super) fn charge(&mut self, client: IpAddr) -> Result<(), Connect> {
        if self.peer.is_none() {
            self.peer = Some(self.gate.open.lock().charge(client, self.gate.max_per_peer)?);
        }
        Ok(())
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut open = self.gate.open.lock();
        if open.total >= self.gate.max {
            open.stuck = false;
            self.gate.freed.notify_one();
        }
        open.total -= 1;
        open.patience = PATIENCE.min(open.patience + PATIENCE_OF_PLACE);
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

    #[tokio::test(start_paused = true)]
    async fn a_place_is_waited_for_while_places_come_free() {
        let gate = Gate::new(1, 1);
        let began = Instant::now();
        gate.room().await;
        let pass = gate.enter(Peer::Exempt, ROOM).expect("room");
        let waiting = gate.room();
        let freeing = async {
            tokio::time::sleep(PATIENCE / 2).await;
            drop(pass);
        };
        tokio::join!(waiting, freeing);
        assert_eq!(began.elapsed(), PATIENCE / 2);
        let pass = gate.enter(Peer::Exempt, ROOM).expect("room");
        gate.room().await;
        // A timer counts whole milliseconds.
        assert!(
            (PATIENCE..PATIENCE + Duration::from_millis(2)).contains(&began.elapsed()),
            "in vain: {:?}",
            began.elapsed()
        );
        let (waited, began) = (began.elapsed(), Instant::now());
        gate.room().await;
        assert_eq!(began.elapsed(), Duration::ZERO, "not again, after {waited:?}");
        assert_eq!(gate.enter(Peer::Exempt, ROOM).unwrap_err(), Connect::TooMany);
        drop(pass);
        let _pass = gate.enter(Peer::Exempt, ROOM).expect("room");
        gate.room().await;
        assert!(began.elapsed() >= PATIENCE_OF_PLACE, "worth waiting again");
    }

    // Four thousand connections that are held, and let go one after the other, made the listener wait half a second for
    // each: newcomers hung in the kernel's queue instead of going elsewhere.
    #[tokio::test(start_paused = true)]
    async fn places_that_come_free_one_by_one_do_not_hold_the_listener() {
        let gate = Gate::new(2, 2);
        let mut held =
            std::collections::VecDeque::from([(); 2].map(|()| gate.enter(Peer::Exempt, ROOM).expect("room")));
        let drip = async {
            for _ in 0..20 {
                tokio::time::sleep(PATIENCE * 9 / 10).await;
                held.pop_front();
                held.push_back(gate.enter(Peer::Exempt, ROOM).expect("room"));
            }
        };
        let waits = async {
            let (mut waited, mut dropped) = (Duration::ZERO, 0);
            loop {
                let began = Instant::now();
                gate.room().await;
                waited += began.elapsed();
                dropped += u32::from(gate.open.lock().stuck);
                // The next comes ten milliseconds later.
                tokio::time::sleep(Duration::from_millis(10)).await;
                if dropped > 500 {
                    return waited;
                }
            }
        };
        let (waited, ()) = tokio::join!(waits, drip);
        assert!(waited < 2 * PATIENCE, "{waited:?}");
    }

    #[test]
    fn a_trusted_proxy_has_no_cap_of_its_own() {
        let gate = Gate::new(10, 1);
        let passes: Vec<_> = (0..10).map(|_| gate.enter(Peer::Exempt, ROOM)).collect();
        assert!(passes.iter().all(Result::is_ok));
        assert_eq!(gate.enter(Peer::Exempt, ROOM).unwrap_err(), Connect::TooMany);
    }

    // Inv. BOUND
    #[test]
    fn what_a_proxy_brings_counts_for_whom_it_names() {
        let gate = Gate::new(10, 1);
        let [mut one, mut two, other] = [(); 3].map(|()| gate.enter(Peer::Exempt, ROOM).expect("room"));
        let client = "192.0.2.1".parse().expect("an address");
        assert_eq!(one.charge(client), Ok(()));
        assert_eq!(two.charge(client), Err(Connect::TooManyOfPeer));
        assert_eq!(gate.enter(peer("192.0.2.1"), ROOM).unwrap_err(), Connect::TooManyOfPeer);
        drop(one);
        assert_eq!(two.charge(client), Ok(()));
        drop((two, other));
        assert!(gate.open.lock().total == 0 && gate.open.lock().per_peer.is_empty());
    }
}
