//! How far the slowest client has got: what a closed loop waits for.
//!
//! Asking ten thousand clients each time would cost more than serving them. So the numbers are counted instead: how
//! many clients have each number as their last. A delivery moves one client from one count to another, and the
//! slowest is where the lowest count above zero is, which only ever moves forward.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

/// The slowest client of each thread, and whom to tell when one of them moves.
#[derive(Debug)]
pub(crate) struct Slowest {
    threads: Box<[AtomicU64]>,
    publisher: OnceLock<Thread>,
}

impl Slowest {
    /// Of so many threads, whose clients have all got what was published before `first`.
    pub(crate) fn new(threads: usize, first: u64) -> Self {
        let threads = (0..threads).map(|_| AtomicU64::new(first.saturating_sub(1))).collect();
        Self { threads, publisher: OnceLock::new() }
    }

    /// The calling thread is to be unparked when the slowest has moved.
    pub(crate) fn tell_me(&self) {
        // The first one stays: there is one publisher.
        let _ = self.publisher.set(std::thread::current());
    }

    /// The last number that every client has.
    pub(crate) fn number(&self) -> u64 {
        self.threads.iter().map(|number| number.load(Ordering::Acquire)).min().unwrap_or(0)
    }

    fn advance(&self, thread: usize, number: u64) {
        if let Some(slot) = self.threads.get(thread) {
            slot.store(number, Ordering::Release);
        }
        if let Some(publisher) = self.publisher.get() {
            publisher.unpark();
        }
    }
}

/// The clients of one thread, counted by their last number.
#[derive(Debug)]
pub(crate) struct Pace {
    slowest: Arc<Slowest>,
    thread: usize,
    /// Clients by last number, modulo the length; clients are never further apart than that.
    counts: Box<[u32]>,
    floor: u64,
    clients: u32,
}

impl Pace {
    /// No clients yet. `in_flight` is the most numbers that are published and not yet everywhere.
    pub(crate) fn new(slowest: Arc<Slowest>, thread: usize, in_flight: u32) -> Self {
        let floor = slowest.number();
        let counts = vec![0; in_flight as usize + 2].into();
        Self { slowest, thread, counts, floor, clients: 0 }
    }

    /// A client that must get everything from now on.
    pub(crate) fn join(&mut self) {
        self.clients += 1;
        *self.count(self.floor) += 1;
    }

    /// A client's last number has changed.
    pub(crate) fn moved(&mut self, from: Option<u64>, to: u64) {
        self.remove(from);
        *self.count(to) += 1;
        self.clients += 1;
        self.look();
    }

    /// A client is gone; nobody waits for it any more.
    pub(crate) fn leave(&mut self, last: Option<u64>) {
        self.remove(last);
        self.look();
    }

    fn remove(&mut self, last: Option<u64>) {
        let count = self.count(last.unwrap_or(self.floor));
        *count = count.saturating_sub(1);
        self.clients = self.clients.saturating_sub(1);
    }

    fn count(&mut self, number: u64) -> &mut u32 {
        let at = usize::try_from(number % self.counts.len() as u64).unwrap_or(0);
        &mut self.counts[at]
    }

    fn look(&mut self) {
        let before = self.floor;
        while self.clients > 0 && *self.count(self.floor) == 0 {
            self.floor += 1;
        }
        if self.floor != before {
            self.slowest.advance(self.thread, self.floor);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_slowest_of_two_threads_counts() {
        let slowest = Arc::new(Slowest::new(2, 1));
        let mut one = Pace::new(slowest.clone(), 0, 4);
        let mut other = Pace::new(slowest.clone(), 1, 4);
        one.join();
        one.join();
        other.join();
        one.moved(None, 1);
        other.moved(None, 2);
        assert_eq!(slowest.number(), 0, "one client has nothing yet");
        one.moved(None, 3);
        assert_eq!(slowest.number(), 1);
        one.leave(Some(1));
        assert_eq!(slowest.number(), 2, "the slow one is gone");
    }

    proptest! {
        #[test]
        fn it_is_the_minimum(steps in prop::collection::vec((0usize..5, 1u64..4), 1..200)) {
            let slowest = Arc::new(Slowest::new(1, 1));
            let mut pace = Pace::new(slowest.clone(), 0, 8);
            let mut clients = [0u64; 5];
            clients.iter().for_each(|_| pace.join());
            for (client, step) in steps {
                let lowest = clients.iter().copied().min().expect("five");
                let to = (clients[client] + step).min(lowest + 8);
                if to > clients[client] {
                    pace.moved((clients[client] > 0).then_some(clients[client]), to);
                    clients[client] = to;
                }
                prop_assert_eq!(slowest.number(), clients.iter().copied().min().expect("five"));
            }
        }
    }
}
