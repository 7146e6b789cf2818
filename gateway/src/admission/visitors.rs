//! How many visitors one address may invent.
//!
//! A socket may name its visitor (`visitor=`), and each new name raises the number that the site shows; so does each
//! new `User-Agent` of sockets without a name. Ten sockets, closed and opened again with fresh ones, could raise it for
//! ever. So an address may bring at most [`VISITORS_MAX`] visitors of either kind within a window; what comes on top
//! counts as one more, by the address alone, and nobody is refused.
//!
//! The bound is a node's own, and its windows follow one another: as many may come just before the end of one as just
//! after it, so twice as many may count at one time. It is there to keep a number from being invented without end;
//! exactness would cost each address a second window, or Redis a question per socket.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use crate::backplane::AddressHash;
use crate::clock::Mono;
use crate::identity::VisitorDigest;

/// The most visitors that an address may bring within a window.
// Inv. BOUND
pub(super) const VISITORS_MAX: usize = 50;
/// The most addresses whose visitors are remembered. Sockets of further ones count by their address alone.
// Inv. BOUND
const ADDRESSES_MAX: usize = 50_000;

/// The visitors that an address has brought within its present window, each by the first half of its digest: telling
/// fifty apart needs no more, and half of an address' hash tells addresses apart. Nearly every address brings one; this
/// is kept for each that has a socket, so the others are boxed.
#[derive(Debug)]
struct Window {
    first: u64,
    others: Option<Box<Others>>,
    /// In tenths of a second since the process began, which last for thirteen years.
    began: u32,
}

#[derive(Debug, Default)]
struct Others(Vec<u64>);

// With its key, 32 bytes per address and slot of the map.
const _: () = assert!(size_of::<(u64, Window)>() == 32);

impl Window {
    fn begin(now: u32, visitor: u64) -> Self {
        Self { first: visitor, others: None, began: now }
    }

    /// Whether `visitor` is known or there is room for it.
    fn allows(&mut self, visitor: u64) -> bool {
        let others = self.others.as_ref().map_or(&[][..], |others| &others.0);
        if self.first == visitor || others.contains(&visitor) {
            return true;
        }
        let room = 1 + others.len() < VISITORS_MAX;
        if room {
            self.others.get_or_insert_default().0.push(visitor);
        }
        room
    }
}

fn tenths(time: Mono) -> u32 {
    u32::try_from(time.as_millis() / 100).unwrap_or(u32::MAX)
}

fn half(bytes: [u8; 16]) -> u64 {
    bytes.iter().take(8).fold(0, |half, byte| half << 8 | u64::from(*byte))
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct VisitorBudget {
    /// In tenths of a second.
    window: u32,
    addresses: HashMap<u64, Window>,
}

impl VisitorBudget {
    /// A budget whose windows last as long as a visitor counts.
    pub(super) fn new(window: Duration) -> Self {
        Self { window: tenths(window), addresses: HashMap::new() }
    }

    /// Whether `address` may bring this visitor: it is known, or there is room for a new one.
    pub(super) fn allows(&mut self, now: Mono, address: AddressHash, visitor: &VisitorDigest) -> bool {
        let (now, visitor) = (tenths(now), half(visitor.0));
        let is_full = self.addresses.len() >= ADDRESSES_MAX;
        match self.addresses.entry(half(address.0)) {
            Entry::Vacant(_) if is_full => false,
            Entry::Vacant(place) => {
                place.insert(Window::begin(now, visitor));
                true
            }
            Entry::Occupied(mut place) if now.saturating_sub(place.get().began) >= self.window => {
                place.insert(Window::begin(now, visitor));
                true
            }
            Entry::Occupied(mut place) => place.get_mut().allows(visitor),
        }
    }

    /// Forgets the windows that are over.
    pub(super) fn sweep(&mut self, now: Mono) {
        let now = tenths(now);
        self.addresses.retain(|_, window| now.saturating_sub(window.began) < self.window);
        self.addresses.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(300);

    fn visitor(n: usize) -> VisitorDigest {
        VisitorDigest(std::array::from_fn(|i| n.to_be_bytes()[i % 8]))
    }

    #[test]
    fn fifty_names_per_address_and_window() {
        let mut budget = VisitorBudget::new(WINDOW);
        let (a, b) = (AddressHash([1; 16]), AddressHash([2; 16]));
        let allowed = (0..200).filter(|n| budget.allows(Duration::ZERO, a, &visitor(*n))).count();
        assert_eq!(allowed, VISITORS_MAX);
        assert!(budget.allows(Duration::ZERO, a, &visitor(7)), "a known one may come again");
        assert!(budget.allows(Duration::ZERO, b, &visitor(199)), "each address has its own budget");
        assert!(!budget.allows(WINDOW - Duration::from_millis(1), a, &visitor(199)));
        assert!(budget.allows(WINDOW, a, &visitor(199)));
    }

    // Inv. BOUND
    #[test]
    fn addresses_are_bounded_and_swept() {
        let mut budget = VisitorBudget::new(WINDOW);
        let nth = |n: usize| AddressHash(std::array::from_fn(|i| n.to_be_bytes()[i % 8]));
        let allowed = (0..ADDRESSES_MAX + 5).filter(|n| budget.allows(Duration::ZERO, nth(*n), &visitor(1))).count();
        assert_eq!(allowed, ADDRESSES_MAX);
        budget.sweep(WINDOW);
        assert!(budget.addresses.is_empty());
    }
}
