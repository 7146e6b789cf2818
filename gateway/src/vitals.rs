//! Whether the loops that a node lives by still move.
//!
//! A process whose relay hangs looks healthy from outside: it accepts sockets and answers probes. So each of these
//! loops leaves a mark whenever it comes round, idle or not, and `/livez` compares the marks with the clock. A node
//! that fails it is restarted by its supervisor; nothing in here looks at the backplane, whose absence must never
//! kill nodes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::clock::Clock;

/// A loop that has not moved for this long hangs. All of them come round at least every 5 s when idle.
pub const STALLED_AFTER: Duration = Duration::from_secs(10);

/// A loop that a node lives by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Loop {
    /// Reads the stream.
    Relay,
    /// Writes to all sockets.
    Broadcaster,
    /// Sends pings and enforces deadlines.
    Sweeper,
    /// Renews the node's membership.
    Beat,
}

impl Loop {
    const ALL: [Self; 4] = [Self::Relay, Self::Broadcaster, Self::Sweeper, Self::Beat];

    /// Its name, for `/livez` and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Broadcaster => "broadcaster",
            Self::Sweeper => "sweeper",
            Self::Beat => "beat",
        }
    }
}

/// The marks of all loops.
#[derive(Debug)]
pub struct Vitals {
    clock: Clock,
    marks: [AtomicU32; 4],
}

impl Vitals {
    /// All loops count as having moved now.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let now = clock.now_ms();
        Self { clock, marks: std::array::from_fn(|_| AtomicU32::new(now)) }
    }

    /// `which` came round.
    pub fn moved(&self, which: Loop) {
        self.marks[which as usize].store(self.clock.now_ms(), Ordering::Relaxed);
    }

    /// The loops that hang.
    #[must_use]
    pub fn stalled(&self) -> Vec<Loop> {
        self.stalled_at(self.clock.now_ms())
    }

    fn stalled_at(&self, now_ms: u32) -> Vec<Loop> {
        let idle = |which: &Loop| {
            let mark = self.marks[*which as usize].load(Ordering::Relaxed);
            Duration::from_millis(u64::from(now_ms.wrapping_sub(mark)))
        };
        // A mark may be newer than `now_ms` by a race; its wrapped difference is then weeks, not a stall.
        let plausible = Duration::from_millis(u64::from(u32::MAX / 2));
        Loop::ALL.into_iter().filter(|which| (STALLED_AFTER..plausible).contains(&idle(which))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_loop_that_hangs_and_survives_the_wrap() {
        let vitals = Vitals::new(Clock::start());
        let start = u32::MAX - 3_000;
        for mark in &vitals.marks {
            mark.store(start, Ordering::Relaxed);
        }
        assert_eq!(vitals.stalled_at(start.wrapping_add(9_999)), []);
        vitals.marks[Loop::Beat as usize].store(start.wrapping_add(9_000), Ordering::Relaxed);
        assert_eq!(vitals.stalled_at(start.wrapping_add(10_000)), [Loop::Relay, Loop::Broadcaster, Loop::Sweeper]);
        // A loop that moves between the two readings of the clock is not stalled.
        assert_eq!(vitals.stalled_at(start.wrapping_sub(1)), []);
    }
}
