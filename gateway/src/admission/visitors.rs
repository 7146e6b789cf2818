//! How many visitors one address may invent.
//!
//! A socket may name its visitor (`visitor=`), and each new name raises the number that the site shows; so does each
//! new `User-Agent` of sockets without a name. Ten sockets, closed and opened again with fresh ones, could raise it for
//! ever. So an address may bring at most [`VISITORS_MAX`] visitors of either kind within a window; what comes on top
//! counts as one more, by the address alone, and nobody is refused.

use std::collections::HashMap;
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

/// The visitors that an address has brought within its present window.
#[derive(Debug)]
struct Window {
    began: Mono,
    /// The first half of each digest: telling fifty apart needs no more.
    seen: Vec<u64>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct VisitorBudget {
    window: Duration,
    addresses: HashMap<AddressHash, Window>,
}

impl VisitorBudget {
    /// A budget whose windows last as long as a visitor counts.
    pub(super) fn new(window: Duration) -> Self {
        Self { window, addresses: HashMap::new() }
    }

    /// Whether `address` may bring this visitor: it is known, or there is room for a new one.
    pub(super) fn allows(&mut self, now: Mono, address: AddressHash, visitor: &VisitorDigest) -> bool {
        if !self.addresses.contains_key(&address) && self.addresses.len() >= ADDRESSES_MAX {
            return false;
        }
        let mark = visitor.0.iter().take(8).fold(0, |mark, byte| mark << 8 | u64::from(*byte));
        let window = self.addresses.entry(address).or_insert_with(|| Window { began: now, seen: Vec::new() });
        if now.saturating_sub(window.began) >= self.window {
            *window = Window { began: now, seen: Vec::new() };
        }
        if window.seen.contains(&mark) {
            return true;
        }
        let room = window.seen.len() < VISITORS_MAX;
        if room {
            window.seen.push(mark);
        }
        room
    }

    /// Forgets the windows that are over.
    pub(super) fn sweep(&mut self, now: Mono) {
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
