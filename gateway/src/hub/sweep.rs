//! The sweeper: pings, pong deadlines, slow frames and closes that get stuck, for all sockets on one thread.
//!
//! A timer per socket would be 10,000 timers that almost never fire. Walking all sockets once a second costs less than
//! a thousandth of a core, and a second is fine enough for a protocol that counts in tens of them.
//!
//! Time is counted in sweeps. That is also the answer to a process that was paused (SIGSTOP, a suspended machine, a
//! starved container): it made no sweeps, so no deadline came nearer, and clients whose pongs lie unread in the kernel
//! are not closed for the node's own sleep. A late sweep counts the seconds that passed, up to two; more is a pause
//! and counts as none, so that reads go first.
//!
//! What is due is decided by `Pulse::judge`, a pure function of a socket's deadlines and the time.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use rand::{Rng, RngExt};
use shared::close::CloseReason;
use shared::message::encode_ping;

use super::conn::Conn;
use super::outbox::Content;
use super::parcel::Parcel;
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
/// A frame must be complete this long after its first byte; a fragmented message must go on within it.
const FRAME_TIMEOUT: Duration = Duration::from_secs(10);
/// A close must be over after this: its frame written, the peer's bytes discarded.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A socket that has grown old may come back at once: its end was spread already.
const RETIRED_COMES_BACK_MS: u64 = 0;

const _: () = assert!(PAUSE_MIN.as_secs() >= 2 * SWEEP_INTERVAL.as_secs(), "one late sweep is not a pause");
const _: () = assert!(super::linger::LINGER_TIME.as_secs() < CLOSE_TIMEOUT.as_secs(), "lingering ends by itself");

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

/// Turns the node's clock into [`SweepTime`].
#[derive(Debug)]
struct SweepClock {
    /// Where on the node's clock sweep time zero would lie; moves when the process was paused.
    origin: Mono,
    /// Whole sweeps since `origin`.
    sweeps: u32,
}

impl SweepClock {
    fn start(now: Mono) -> Self {
        Self { origin: now, sweeps: SweepTime::START.to_bits() - 1 }
    }

    /// The time of a sweep that happens at `now`.
    fn sweep(&mut self, now: Mono) -> SweepTime {
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

/// Deadlines of one socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pulse {
    ping_due: SweepTime,
    /// A ping is open until then.
    pong_due: Option<SweepTime>,
    /// A frame has begun and must be complete by then.
    frame_due: Option<SweepTime>,
    /// A close was begun and must be over by then.
    end_due: Option<SweepTime>,
    /// The socket is old then, and its client is asked to come back.
    old_at: Option<SweepTime>,
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) ping_interval: Duration,
    pub(super) pong_timeout: Duration,
    pub(super) max_age: Option<Duration>,
}

/// What a sweep does about a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// Send a ping; the pulse has noted it.
    Ping,
    /// Close with this reason.
    Close(CloseReason),
    /// Ask the client to come back, to whichever node the balancer chooses then.
    Retire,
    /// End it without another word: its close got stuck.
    End,
}

impl Pulse {
    /// Of a socket that opens after the sweep at `last_sweep`.
    pub(super) fn new<R: Rng + ?Sized>(last_sweep: SweepTime, limits: Limits, rng: &mut R) -> Self {
        let ping_due = last_sweep.after_now(limits.ping_interval);
        // Give or take a tenth: sockets that came together must not leave together.
        let old_at = limits.max_age.map(|age| last_sweep.after_now(age.mul_f64(rng.random_range(0.9..=1.1))));
        Self { ping_due, pong_due: None, frame_due: None, end_due: None, old_at }
    }

    /// Whether a pong is owed.
    pub(super) fn is_ping_open(&self) -> bool {
        self.pong_due.is_some()
    }

    /// A pong came.
    pub(super) fn pong(&mut self) {
        self.pong_due = None;
    }

    /// A frame, or the next of a fragmented message, is to be completed from now on.
    pub(super) fn frame_begun(&mut self, last_sweep: SweepTime) {
        self.frame_due = Some(last_sweep.after_now(FRAME_TIMEOUT));
    }

    /// The reader holds no part of a frame or message.
    pub(super) fn frame_done(&mut self) {
        self.frame_due = None;
    }

    /// A close was begun.
    pub(super) fn close_begun(&mut self, last_sweep: SweepTime) {
        self.end_due = Some(last_sweep.after_now(CLOSE_TIMEOUT));
    }

    /// What is due in the sweep at `now`.
    pub(super) fn judge(&mut self, now: SweepTime, limits: Limits) -> Action {
        let due = |deadline: Option<SweepTime>| deadline.is_some_and(|deadline| deadline <= now);
        if self.end_due.is_some() {
            return if due(self.end_due) { Action::End } else { Action::Nothing };
        }
        if due(self.frame_due) {
            return Action::Close(CloseReason::ProtocolViolation);
        }
        if due(self.pong_due) {
            return Action::Close(CloseReason::PongTimeout);
        }
        if due(self.old_at) {
            return Action::Retire;
        }
        if self.ping_due <= now && self.pong_due.is_none() {
            self.ping_due = self.ping_due.after(limits.ping_interval).max(now.after(SWEEP_INTERVAL));
            self.pong_due = Some(now.after(limits.pong_timeout));
            return Action::Ping;
        }
        Action::Nothing
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
    core.set_sweep_time(now);
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
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { ping_interval: Duration::from_secs(30), pong_timeout: Duration::from_secs(10), max_age: None };

    fn pulse(limits: Limits) -> Pulse {
        Pulse::new(SweepTime::START, limits, &mut rand::rng())
    }

    fn at(second: u32) -> SweepTime {
        SweepTime::START.after(Duration::from_secs(second.into()))
    }

    /// Sweeps each second and returns what was done, and when.
    fn watch(pulse: &mut Pulse, seconds: std::ops::RangeInclusive<u32>) -> Vec<(u32, Action)> {
        let judged = seconds.map(|second| (second, pulse.judge(at(second), LIMITS)));
        judged.filter(|(_, action)| *action != Action::Nothing).collect()
    }

    #[test]
    fn a_silent_client_is_pinged_once_and_closed_ten_seconds_later() {
        // Opened between the sweeps 0 and 1, so 30 to 31 s pass before the ping, and 40 to 41 s before the close.
        let mut pulse = pulse(LIMITS);
        assert_eq!(watch(&mut pulse, 1..=41), [(31, Action::Ping), (41, Action::Close(CloseReason::PongTimeout))]);
    }

    #[test]
    fn one_that_answers_is_pinged_each_thirty_seconds() {
        let mut pulse = pulse(LIMITS);
        let mut pings = Vec::new();
        for second in 1..=130 {
            match pulse.judge(at(second), LIMITS) {
                Action::Nothing => {}
                Action::Ping => {
                    assert!(pulse.is_ping_open());
                    pulse.pong();
                    pings.push(second);
                }
                other => panic!("{other:?} at {second}"),
            }
        }
        assert_eq!(pings, [31, 61, 91, 121]);
    }

    #[test]
    fn a_frame_has_ten_seconds_and_a_close_five() {
        let mut pulse = pulse(LIMITS);
        pulse.frame_begun(at(3));
        pulse.frame_done();
        pulse.frame_begun(at(5));
        assert_eq!(watch(&mut pulse, 6..=16), [(16, Action::Close(CloseReason::ProtocolViolation))]);
        pulse.close_begun(at(16));
        assert_eq!(watch(&mut pulse, 17..=22), [(22, Action::End)]);
    }

    #[test]
    fn an_old_socket_is_retired_within_a_tenth_of_its_age() {
        let limits = Limits { max_age: Some(Duration::from_secs(1_000)), ..LIMITS };
        let retired_after = || {
            let mut pulse = pulse(limits);
            (1..2_000).find(|second| {
                pulse.pong();
                pulse.judge(at(*second), limits) == Action::Retire
            })
        };
        let ages: Vec<u32> = (0..100).map(|_| retired_after().expect("retired at last")).collect();
        assert!(ages.iter().all(|age| (900..=1_102).contains(age)), "{ages:?}");
        assert!(ages.iter().max() > ages.iter().min(), "not all at once");
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

    // Inv. ISOLATION: the node's own sleep costs no client its socket.
    #[test]
    fn a_pause_moves_every_deadline() {
        let mut clock = SweepClock::start(Duration::ZERO);
        let mut pulse = pulse(LIMITS);
        let mut actions = Vec::new();
        // Pinged at 31 s; stopped from 35 s to 95 s; the client's pong is read right after.
        for second in (1..=35).chain(95..=127) {
            let now = clock.sweep(Duration::from_secs(second));
            let action = pulse.judge(now, LIMITS);
            if action != Action::Nothing {
                actions.push((second, action));
            }
            if second == 96 {
                pulse.pong();
            }
        }
        // 30 s awake lie between the pings.
        assert_eq!(actions, [(31, Action::Ping), (121, Action::Ping)]);
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
