//! How many handshakes per second one address may try.
//!
//! A handshake costs a hundred times what an idle socket does, and one that is refused by the cap costs as much as one
//! that is not; so the tries are limited as well. The limiter keeps a state per address, and addresses are the
//! client's to choose (an IPv6 client owns 2^64, hence a /64 counts as one). States that have recovered are swept,
//! and beyond [`ADDRESSES_MAX`] no new address is limited until the next sweep, rather than refused: the caps still
//! hold then, and refusing everybody would be the attacker's goal.
//!
//! How many there are is looked at where one is added, and counted beside the map: its own length is the sum over its
//! shards, each of which it locks.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::Entry;
use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::keyed::{DefaultKeyedStateStore, ShrinkableKeyedStateStore};
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};

use crate::identity::counted;

/// The most addresses whose rate is watched at a time, at 69 bytes each. A state can be swept five seconds after the
/// last handshake at the latest, so only a node that sees more addresses than this between two sweeps comes near it.
// Inv. BOUND
const ADDRESSES_MAX: usize = 100_000;
/// A burst may be this many times what one second allows: a page with several tabs that a browser restores.
const BURST: u32 = 4;

type Limiter<C> = RateLimiter<IpAddr, States, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// See the module's documentation.
pub(super) struct HandshakeRate<C: Clock = DefaultClock> {
    /// `None`: no limit.
    limiter: Option<Limiter<C>>,
    clock: C,
}

impl<C: Clock + Clone> HandshakeRate<C> {
    /// Allows `per_second` handshakes per address and second, and a burst of four times as many; 0 is no limit.
    pub(super) fn new(per_second: u32, clock: C) -> Self {
        let burst = NonZeroU32::new(per_second.saturating_mul(BURST));
        let quota = NonZeroU32::new(per_second).zip(burst);
        let quota = quota.map(|(rate, burst)| Quota::per_second(rate).allow_burst(burst));
        let limiter = quota.map(|quota| RateLimiter::new(quota, States::default(), clock.clone()));
        Self { limiter, clock }
    }

    /// Counts a handshake of `ip`, or tells when it may be tried again.
    pub(super) fn check(&self, ip: IpAddr) -> Result<(), Duration> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        limiter.check_key(&counted(ip)).map_err(|until| until.wait_time_from(self.clock.now()))
    }

    /// Forgets the addresses that may burst again, and gives their memory back.
    pub(super) fn sweep(&self) {
        if let Some(limiter) = &self.limiter {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }
}

/// The addresses' states, of which there are no more than [`ADDRESSES_MAX`].
#[derive(Default)]
struct States {
    map: DefaultKeyedStateStore<IpAddr>,
    /// How many are in the map; one that comes while a sweep ends may be missing here until the next.
    count: AtomicUsize,
}

impl StateStore for States {
    type Key = IpAddr;

    fn measure_and_replace<T, F, E>(&self, ip: &IpAddr, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        if let Some(state) = self.map.get(ip) {
            return state.measure_and_replace(&NotKeyed::NonKey, measure);
        }
        // No sweep here: one costs milliseconds at this size, and would come with each handshake of a flood.
        if self.count.load(Ordering::Relaxed) >= ADDRESSES_MAX {
            return measure(None).map(|(first, _)| first);
        }
        let state = match self.map.entry(*ip) {
            Entry::Occupied(state) => state.into_ref(),
            Entry::Vacant(place) => {
                self.count.fetch_add(1, Ordering::Relaxed);
                place.insert(InMemoryState::default())
            }
        };
        state.measure_and_replace(&NotKeyed::NonKey, measure)
    }
}

impl ShrinkableKeyedStateStore<IpAddr> for States {
    fn retain_recent(&self, drop_below: Nanos) {
        self.map.retain_recent(drop_below);
        self.count.store(self.map.len(), Ordering::Relaxed);
    }

    fn shrink_to_fit(&self) {
        self.map.shrink_to_fit();
    }

    fn len(&self) -> usize {
        self.map.len()
    }

    fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_burst_then_the_rate_and_each_address_by_itself() {
        let clock = FakeRelativeClock::default();
        let rate = HandshakeRate::new(5, clock.clone());
        for _ in 0..20 {
            assert_eq!(rate.check(ip("192.0.2.1")), Ok(()));
        }
        assert_eq!(rate.check(ip("::ffff:192.0.2.1")), Err(Duration::from_millis(200)));
        assert_eq!(rate.check(ip("192.0.2.2")), Ok(()));
        clock.advance(Duration::from_millis(200));
        assert_eq!(rate.check(ip("192.0.2.1")), Ok(()));
        assert!(rate.check(ip("192.0.2.1")).is_err());
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let rate = HandshakeRate::new(1, FakeRelativeClock::default());
        for host in 1..=4 {
            assert_eq!(rate.check(ip(&format!("2001:db8::{host}"))), Ok(()));
        }
        assert!(rate.check(ip("2001:db8::ffff:5")).is_err());
        assert_eq!(rate.check(ip("2001:db8:0:1::1")), Ok(()));
    }

    #[test]
    fn zero_is_no_limit() {
        let rate = HandshakeRate::new(0, FakeRelativeClock::default());
        assert!((0..1000).all(|_| rate.check(ip("192.0.2.1")).is_ok()));
    }

    // Inv. BOUND
    #[test]
    fn recovered_addresses_are_forgotten_and_the_rest_is_bounded() {
        let clock = FakeRelativeClock::default();
        let rate = HandshakeRate::new(5, clock.clone());
        let nth = |n: u32| IpAddr::from(n.to_be_bytes());
        let many = u32::try_from(ADDRESSES_MAX).expect("fits") + 10;
        assert!((0..many).all(|n| rate.check(nth(n)).is_ok()));
        let limiter = rate.limiter.as_ref().expect("limited");
        assert_eq!(limiter.len(), ADDRESSES_MAX);
        // Whose rate is watched stays limited; nobody else is.
        assert!((1..20).all(|_| rate.check(nth(0)).is_ok()) && rate.check(nth(0)).is_err());
        assert!((0..100).all(|_| rate.check(nth(many)).is_ok()));
        clock.advance(Duration::from_secs(5));
        rate.sweep();
        assert_eq!(limiter.len(), 0);
        assert!((0..20).all(|_| rate.check(nth(many)).is_ok()) && rate.check(nth(many)).is_err(), "there is room");
    }
}
