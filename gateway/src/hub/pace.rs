//! When the next broadcast pass may begin.
//!
//! A pass costs each socket a write, which dwarfs what one more message in that write costs. Going at once with
//! whatever waits is right for a lone message and for a flood, which fills each pass by itself. In between it is dear:
//! with 100 messages per second and passes of 65 ms, each brings seven, and the thread never rests. So after a pass of
//! several messages during which more came, which tells that they come faster than passes, the broadcaster
//! **breathes**: it rests for half as long as that pass took, and what comes meanwhile shares the next one. The rest
//! scales with what it saves: with few sockets it is microseconds. It also leaves a share of the core to reads and
//! handshakes.
//!
//! Who does not wait:
//! - a message that finds no pass just over, or one of a single message, or one that left nothing behind: nothing
//!   suggests that a second will come;
//! - messages that are [`ENOUGH`] already: a write is then cheap per message, and throughput needs the next pass now.
//!
//! The operator's flush interval is a floor beside that. It holds for whatever waits, until the pass is full.

use std::time::Duration;

use tokio::time::Instant;

/// A pass and the rest after it, in per cent of the pass.
const BREATH_PERCENT: u32 = 150;
/// No rest is longer, however long the pass was: some of what it took may have been others' use of the machine.
const REST_MAX: Duration = Duration::from_millis(50);
/// So many messages do not wait for more.
const ENOUGH: usize = 16;

/// A pass that is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Passed {
    /// What it brought, in messages.
    pub(super) messages: usize,
    /// What waited in the queue when it was over, likewise.
    pub(super) left: usize,
    pub(super) began: Instant,
    pub(super) ended: Instant,
}

impl Passed {
    /// Messages come faster than passes.
    fn is_of_many(&self) -> bool {
        self.messages > 1 && self.left > 0
    }
}

/// From when on the next pass may begin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    flush_interval: Duration,
    /// By the flush interval.
    floor: Instant,
    /// By the last pass.
    rested: Instant,
}

impl Pace {
    /// Before the first pass, which may begin at once.
    pub(super) fn new(flush_interval: Duration, now: Instant) -> Self {
        Self { flush_interval, floor: now, rested: now }
    }

    /// A pass is over.
    pub(super) fn passed(&mut self, pass: Passed) {
        let breath = (pass.ended - pass.began) * (BREATH_PERCENT - 100) / 100;
        let rest = if pass.is_of_many() { breath.min(REST_MAX) } else { Duration::ZERO };
        self.floor = pass.began + self.flush_interval;
        self.rested = pass.ended + rest;
    }

    /// When a pass may begin for which `waiting` messages wait.
    pub(super) fn earliest(&self, waiting: usize) -> Instant {
        if waiting >= ENOUGH { self.floor } else { self.rested.max(self.floor) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pass_of_several_messages_is_followed_by_a_rest() {
        let ms = Duration::from_millis;
        let began = Instant::now();
        // Flush interval, messages of the last pass, how many came meanwhile, how long it took (ms), messages that
        // wait; when the next may begin, in ms since the last one began.
        let check = |flush_interval, (messages, left, took), waiting, want| {
            let mut pace = Pace::new(ms(flush_interval), began);
            assert_eq!(pace.earliest(1), began, "the first may begin at once");
            pace.passed(Passed { messages, left, began, ended: began + ms(took) });
            let earliest = pace.earliest(waiting) - began;
            assert_eq!(earliest, ms(want), "{flush_interval}, {messages} and {left} in {took}, {waiting}");
        };
        check(0, (2, 1, 40), 1, 60);
        check(0, (7, 1, 40), 15, 60);
        check(0, (256, 1, 2), 1, 3);
        check(0, (2, 1, 0), 1, 0);
        // It had one message, or none came meanwhile: no sign of a flood.
        check(0, (1, 1, 40), 1, 40);
        check(0, (7, 0, 40), 1, 40);
        // The rest has a limit.
        check(0, (7, 1, 1_000), 1, 1_050);
        // Enough wait: at once, which is in the past when the pass is over.
        check(0, (7, 1, 40), 16, 0);
        check(0, (7, 1, 40), 256, 0);
        // The flush interval is a floor beside that, also for many.
        check(100, (7, 1, 40), 1, 100);
        check(100, (1, 1, 40), 1, 100);
        check(100, (7, 1, 40), 16, 100);
        check(100, (7, 1, 80), 1, 120);
        check(100, (7, 1, 80), 16, 100);
    }
}
