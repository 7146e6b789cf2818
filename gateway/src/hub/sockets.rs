//! The map of all sockets, in parts.
//!
//! Whoever goes over all sockets must not hold a lock of the map while it writes to them, so it works on clones of their
//! `Arc`s. To clone all of them first is the obvious way, and has each socket fetched into the processor's cache three
//! times per pass: to count the clone, to write, to count its end; in between the kernel has used the cache for others.
//! So the map has [`PARTS`] parts, and a pass clones, serves and drops one part at a time: it fetches each socket once.
//!
//! A part is a [`DashMap`] of its own, as what that has inside cannot be gone through shard by shard. Parts are also what
//! the threads of one pass share among them.

use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use shared::ids::ConnId;

/// With 10,000 sockets some 80 are in one part: what they and the kernel's sending need of the cache fits into it.
const PARTS: usize = 128;
/// Each part's own; the fewest that it can have. There are [`PARTS`] times as many locks.
const SHARDS_OF_PART: usize = 2;

/// One part of the map.
pub(super) type Part<V> = DashMap<ConnId, V>;

/// All sockets; `V` stands for them.
#[derive(Debug)]
pub(super) struct Sockets<V> {
    parts: Box<[Part<V>]>,
    /// To count what is in all parts would lock each of them.
    len: AtomicUsize,
}

impl<V: Clone> Sockets<V> {
    pub(super) fn new() -> Self {
        let parts = (0..PARTS).map(|_| DashMap::with_shard_amount(SHARDS_OF_PART)).collect();
        Self { parts, len: AtomicUsize::new(0) }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// The part of a socket. Neighbours are far apart, so that the threads of a pass have the same to do.
    fn part(&self, ConnId(id): ConnId) -> &Part<V> {
        // Fibonacci hashing: the high bits of a product with 2^64 divided by the golden ratio.
        let hash = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - PARTS.trailing_zeros());
        #[expect(clippy::cast_possible_truncation, reason = "below PARTS")]
        let index = hash as usize;
        &self.parts[index]
    }

    pub(super) fn insert(&self, id: ConnId, socket: V) {
        if self.part(id).insert(id, socket).is_none() {
            self.len.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn remove(&self, id: ConnId) {
        if self.part(id).remove(&id).is_some() {
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn find(&self, id: ConnId) -> Option<V> {
        self.part(id).get(&id).map(|entry| entry.value().clone())
    }

    /// The parts in at most so many shares of about the same size.
    pub(super) fn shares(&self, most: usize) -> impl Iterator<Item = &[Part<V>]> {
        self.parts.chunks(PARTS.div_ceil(most.max(1)))
    }

    /// Calls `visit` with the sockets of one part after the other, where there are any. No lock is held meanwhile; a
    /// socket may end before it is visited.
    pub(super) fn each_part(&self, visit: impl FnMut(&[V])) {
        each_part(&self.parts, visit);
    }
}

/// As [`Sockets::each_part`], of a share.
pub(super) fn each_part<V: Clone>(parts: &[Part<V>], mut visit: impl FnMut(&[V])) {
    let mut sockets = Vec::new();
    for part in parts {
        // A shard's lock is held for the moment that it takes to count its sockets up.
        sockets.extend(part.iter().map(|entry| entry.value().clone()));
        if !sockets.is_empty() {
            visit(&sockets);
            sockets.clear();
        }
    }
}

const _: () = assert!(PARTS.is_power_of_two() && SHARDS_OF_PART.is_power_of_two() && SHARDS_OF_PART > 1);

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn what_is_in_it_is_visited_once_and_found() {
        let sockets = Sockets::new();
        (1..=1_000).for_each(|id| sockets.insert(ConnId(id), id));
        (1..=1_000).step_by(3).for_each(|id| sockets.remove(ConnId(id)));
        sockets.remove(ConnId(1));
        assert_eq!((sockets.find(ConnId(1)), sockets.find(ConnId(2)), sockets.len()), (None, Some(2), 666));
        let mut visited = Vec::new();
        sockets.each_part(|some| visited.extend_from_slice(some));
        assert_eq!((visited.len(), visited.into_iter().collect::<HashSet<_>>().len()), (666, 666));
    }

    #[test]
    fn shares_are_whole_and_even() {
        let sockets = Sockets::new();
        (1..=12_800).for_each(|id| sockets.insert(ConnId(id), id));
        for most in [0, 1, 2, 3, 8, 500] {
            let count = |share: &[Part<u64>]| share.iter().map(DashMap::len).sum::<usize>();
            let counts: Vec<usize> = sockets.shares(most).map(count).collect();
            assert_eq!(counts.iter().sum::<usize>(), 12_800);
            let parts: Vec<usize> = sockets.shares(most).map(<[_]>::len).collect();
            assert!(parts.len() <= most.max(1), "{most}: {parts:?}");
            assert!(
                counts.iter().zip(&parts).all(|(count, parts)| count.abs_diff(100 * parts) <= 2 * parts),
                "{counts:?}"
            );
        }
    }
}
