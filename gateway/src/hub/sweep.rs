//! The sweeper: pings, pong deadlines, slow frames and closes that get stuck, for all sockets on one thread.
//!
//! A timer per socket would be 10,000 timers that almost never fire. Walking all sockets once a second costs less than
//! a thousandth of a core, and a second is fine enough for a protocol that counts in tens of them.
//!
//! Time is counted in sweeps. That is also the answer to a process that was paused (SIGSTOP, a suspended machine, a
//! starved container): it made no sweeps, so no deadline came nearer, and clients whose pongs lie unread in the kernel
//! are not closed for the node's own sleep. A late sweep counts the seconds that passed, up to two; more is a pause
//! and counts as none, so that reads go first. A process that runs but is behind has no such mark; so before a socket is
//! closed for its silence, the kernel is asked whether it was silent (`Conn::judge`).
//!
//! What is due is decided by `hub/pulse.rs`. Most pings are not sent from here: they leave with the snapshots.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shared::message::encode_ping;

use super::conn::Conn;
use super::outbox::Content;
use super::parcel::Parcel;
use super::pulse::Action;
use super::{Hub, frame};
use crate::clock::{Clock, Mono};
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::Direction;
use crate::supervise::{self, Panicked};
use crate::vitals::Loop;

/// The time from sweep to sweep; the unit of [`SweepTime`].
pub(super) const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Two sweeps that lie further apart than this tell that the process was paused.
const PAUSE_MIN: Duration = Duration::from_secs(2);

/// A socket that has grown old may come back at once: its end was spread already.
const RETIRED_COMES_BACK_MS: u64 = 0;

const _: () = assert!(PAUSE_MIN.as_secs() >= 2 * SWEEP_INTERVAL.as_secs(), "one late sweep is not a pause");

/// A point in time, counted in sweeps during which the process was awake: 136 years fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SweepTime(NonZeroU32);

impl SweepTime {
    pub(super) const START: Self = Self(NonZeroU32::MIN);

    pub(super) fn to_bits(self) -> u32 {
        self.0.get()
    }

    pub(super) fn from_bits(bits: u32) -> Self {
        Self(NonZeroU32::new(bits).unwrap_or(NonZeroU32::MIN))
    }

    /// Exactly `duration` later, for what happens in a sweep; parts of a sweep count as a whole one.
    pub(super) fn after(self, duration: Duration) -> Self {
        let sweeps = duration.as_millis().div_ceil(SWEEP_INTERVAL.as_millis());
        Self(self.0.saturating_add(u32::try_from(sweeps).unwrap_or(u32::MAX)))
    }

    /// At least `duration`, and less than a sweep more, after a moment that lies between this sweep and the next.
    pub(super) fn after_now(self, duration: Duration) -> Self {
        self.after(SWEEP_INTERVAL).after(duration)
    }
}

/// A moment between two sweeps, as the clock shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) sweep: SweepTime,
    /// Since that sweep; at most a sweep, as what is more is a pause.
    pub(super) since: Duration,
}

impl Moment {
    /// The first sweep that is at least `duration` later.
    pub(super) fn after(self, duration: Duration) -> SweepTime {
        self.sweep.after(self.since + duration)
    }
}

/// When the last sweep was, in both times: one word, so that they never belong to different sweeps.
#[derive(Debug)]
pub(super) struct LastSweep(AtomicU64);

impl Default for LastSweep {
    fn default() -> Self {
        Self(AtomicU64::new(Self::word(SweepTime::START, 0)))
    }
}

impl LastSweep {
    fn word(time: SweepTime, at_ms: u32) -> u64 {
        u64::from(time.to_bits()) << 32 | u64::from(at_ms)
    }

    /// A sweep happens; `at_ms` is of [`Clock::now_ms`].
    pub(super) fn set(&self, time: SweepTime, at_ms: u32) {
        self.0.store(Self::word(time, at_ms), Ordering::Relaxed);
    }

    fn halves(&self) -> (SweepTime, u32) {
        let word = self.0.load(Ordering::Relaxed);
        #[expect(clippy::cast_possible_truncation, reason = "the halves of the word")]
        let halves = ((word >> 32) as u32, word as u32);
        (SweepTime::from_bits(halves.0), halves.1)
    }

    pub(super) fn time(&self) -> SweepTime {
        self.halves().0
    }

    /// The moment at which [`Clock::now_ms`] is `now_ms`.
    pub(super) fn moment(&self, now_ms: u32) -> Moment {
        let (sweep, at_ms) = self.halves();
        let since = Duration::from_millis(now_ms.wrapping_sub(at_ms).into());
        Moment { sweep, since: since.min(SWEEP_INTERVAL) }
    }
}

/// Turns the node's clock into [`SweepTime`].
#[derive(Debug)]
pub(super) struct SweepClock {
    /// Where on the node's clock sweep time zero would lie; moves when the process was paused.
    origin: Mono,
    /// Whole sweeps since `origin`.
    sweeps: u32,
}

impl SweepClock {
    pub(super) fn start(now: Mono) -> Self {
        Self { origin: now, sweeps: SweepTime::START.to_bits() - 1 }
    }

    /// The time of a sweep that happens at `now`.
    pub(super) fn sweep(&mut self, now: Mono) -> SweepTime {
        let passed = now.saturating_sub(self.origin);
        let passed_sweeps = u32::try_from(passed.as_millis() / SWEEP_INTERVAL.as_millis()).unwrap_or(u32::MAX);
        let since_last = SWEEP_INTERVAL * passed_sweeps.saturating_sub(self.sweeps);
        if since_last > PAUSE_MIN {
            self.origin += since_last;
        } else {
            self.sweeps = passed_sweeps.max(self.sweeps);
        }
        SweepTime::START.after(SWEEP_INTERVAL * self.sweeps)
    }

    /// How long from `now` to the next sweep.
    fn until_next(&self, now: Mono) -> Duration {
        (self.origin + SWEEP_INTERVAL * (self.sweeps + 1)).saturating_sub(now)
    }
}

/// Sweeps until the process stops.
///
/// # Errors
/// [`Panicked`]: then nobody pings and nobody is timed out; the process must end.
pub async fn run(hub: Arc<Hub>, lifecycle: Lifecycle) -> Result<(), Panicked> {
    let runtime = tokio::runtime::Handle::current();
    supervise::thread("sweeper", move || {
        let mut clock = SweepClock::start(hub.clock.now());
        let mut sockets = Vec::new();
        loop {
            let wait = clock.until_next(hub.clock.now());
            let stopped =
                runtime.block_on(async { tokio::time::timeout(wait, lifecycle.reached(Phase::Stopped)).await.is_ok() });
            if stopped {
                return;
            }
            sweep(&hub, clock.sweep(hub.clock.now()), &mut sockets);
            hub.vitals.moved(Loop::Sweeper);
        }
    })
    .await
}

/// One sweep over all sockets. `sockets` is empty before and after; it is kept for its memory.
pub(super) fn sweep(hub: &Hub, now: SweepTime, sockets: &mut Vec<Arc<Conn>>) {
    let core = &hub.core;
    core.last_sweep.set(now, hub.clock.now_ms());
    hub.snapshot(sockets);
    let mut ping: Option<Parcel> = None;
    let mut sent = 0;
    for conn in sockets.drain(..) {
        match conn.judge(now, core.settings.limits()) {
            Action::Nothing => {}
            Action::Ping => {
                let ping =
                    ping.get_or_insert_with(|| Parcel::single(frame::text(&encode_ping(Clock::wall())), Content::Ping));
                sent += conn.send(core, ping);
            }
            Action::Close(reason) => conn.close(core, reason),
            Action::Retire => conn.close_draining(core, RETIRED_COMES_BACK_MS),
            Action::End => conn.end(),
        }
    }
    core.metrics.messages.add(Direction::Sent, sent);
    hub.shed();
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// That many seconds after the start.
    pub(in crate::hub) fn at(second: u32) -> SweepTime {
        SweepTime::START.after(Duration::from_secs(second.into()))
    }

    #[test]
    fn sweep_time_counts_seconds_awake() {
        // Rows: when the sweeps happen (ms on the node's clock), and their sweep times (seconds since the start).
        let check = |sweeps_at: &[u64], want: &[u32]| {
            let mut clock = SweepClock::start(Duration::ZERO);
            let times: Vec<SweepTime> = sweeps_at.iter().map(|ms| clock.sweep(Duration::from_millis(*ms))).collect();
            assert_eq!(times, want.iter().map(|second| at(*second)).collect::<Vec<_>>(), "{sweeps_at:?}");
        };
        check(&[1_000, 2_003, 3_001, 4_000], &[1, 2, 3, 4]);
        check(&[1_000, 2_900, 4_000], &[1, 2, 4]); // late by less than two seconds: the seconds count
        check(&[1_000, 3_999, 4_000], &[1, 3, 4]);
        check(&[1_000, 61_500, 62_000, 63_000], &[1, 1, 2, 3]); // stopped for a minute: nothing passed
        check(&[1_000, 5_000, 9_000, 10_000], &[1, 1, 1, 2]); // stopped twice
    }

    // Inv. ISOLATION: a pass right after a pause must not count what the process slept.
    #[test]
    fn a_moment_lies_at_most_a_sweep_after_the_last() {
        let last = LastSweep::default();
        let check = |swept_ms: u32, now_ms: u32, since_ms: u64| {
            last.set(at(7), swept_ms);
            let want = Moment { sweep: at(7), since: Duration::from_millis(since_ms) };
            assert_eq!(last.moment(now_ms), want, "{swept_ms}, {now_ms}");
        };
        check(7_000, 7_000, 0);
        check(7_000, 7_300, 300);
        check(7_000, 67_000, 1_000);
        // The milliseconds wrap after 49 days.
        check(u32::MAX - 99, 200, 300);
        assert_eq!(last.time(), at(7));
    }

    #[test]
    fn the_next_sweep_is_on_the_second() {
        let mut clock = SweepClock::start(Duration::from_millis(500));
        assert_eq!(clock.until_next(Duration::from_millis(500)), Duration::from_secs(1));
        clock.sweep(Duration::from_millis(1_700));
        assert_eq!(clock.until_next(Duration::from_millis(1_700)), Duration::from_millis(800));
        assert_eq!(clock.until_next(Duration::from_secs(60)), Duration::ZERO);
    }
}
