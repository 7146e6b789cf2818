//! A socket's deadlines: pings, pongs, slow frames, closes that get stuck, old age. Pure: the sweeper and the
//! broadcaster bring the time and do what is due.
//!
//! **Most pings ride with a snapshot.** A ping by itself costs each socket a write, and its client a wake-up. But every
//! socket gets a snapshot every few seconds anyhow. So a broadcast pass that brings one takes along the pings that are
//! due ([`Ride`]), in the same write. Few are due just then, so those that the sweeper sends move towards the snapshots:
//! they come [`PING_STEP`] later than the interval says, or with a snapshot before that, until they meet one. From then
//! on a socket's pings are one ping interval apart, where that is a multiple of the snapshots'. The contract's 30 s is
//! kept to about a second all the while: it could not be kept better where all pings wait for a sweep. (Taking along what is due before the
//! *next* snapshot puts all sockets in step at once, but brings a second ping right after the first.)
//!
//! The sweeper pings whom no snapshot came for: nothing depends on there being any. Not taken along are
//! - the first ping of a socket: the contract has it 30 s after opening, and a client that never answers closed 10 s
//!   later;
//! - any, where snapshots are rarer than pings, or pings so frequent that a second more is much: there is nothing to
//!   gain, or too much to pay.

use std::time::Duration;

use rand::{Rng, RngExt};
use shared::close::CloseReason;

use super::sweep::{Moment, SWEEP_INTERVAL, SweepTime};

/// A frame must be complete this long after its first byte; a fragmented message must go on within it.
const FRAME_TIMEOUT: Duration = Duration::from_secs(10);
/// A close must be over after this: its frame written, the peer's bytes discarded.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The sweeper's pings come this much later than the ping interval says, where they may ride: the time in which a snapshot
/// may take them along, and their step towards the snapshots. A sweep, which is as finely as it counts.
const PING_STEP: Duration = SWEEP_INTERVAL;
/// Pings ride where their interval is at least this many steps.
const STEPS_IN_INTERVAL: u32 = 10;
/// A snapshot may come this much earlier or later than an interval after the one before, and still takes the ping along
/// that its forerunner did. More than a pass over 20,000 sockets takes.
const SNAPSHOT_JITTER: Duration = Duration::from_millis(250);

const _: () = assert!(super::linger::LINGER_TIME.as_secs() < CLOSE_TIMEOUT.as_secs(), "lingering ends by itself");

/// Deadlines of one socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pulse {
    ping_due: SweepTime,
    /// A ping is open until then.
    pong_due: Option<SweepTime>,
    /// What is under way must be over by then.
    deadline: Option<SweepTime>,
    /// The socket is old then, and its client is asked to come back.
    old_at: Option<SweepTime>,
    under_way: UnderWay,
    next_ping: NextPing,
}

/// What [`Pulse::deadline`] is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UnderWay {
    /// A frame has begun and must be complete.
    Frame,
    /// A close was begun and must be over. What else was to happen is forgotten.
    Close,
}

/// Which ping is the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NextPing {
    First,
    Later,
}

/// A pass that brings a snapshot, as an opportunity for pings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ride {
    /// Pings that the sweeper would send by then leave now.
    until: SweepTime,
    /// When the next ping is due of a socket that gets one now.
    ping_due: SweepTime,
    /// And its pong.
    pong_due: SweepTime,
}

impl Ride {
    /// Of a pass at `now`; none if pings do not ride.
    pub(super) fn new(now: Moment, limits: Limits) -> Option<Self> {
        limits.pings_ride().then(|| Self {
            until: now.after(2 * SNAPSHOT_JITTER),
            ping_due: now.after(limits.ping_interval + SNAPSHOT_JITTER),
            pong_due: now.after(limits.pong_timeout),
        })
    }
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) ping_interval: Duration,
    pub(super) pong_timeout: Duration,
    pub(super) max_age: Option<Duration>,
    /// How far apart snapshots are expected.
    pub(super) snapshot_interval: Duration,
}

impl Limits {
    fn pings_ride(self) -> bool {
        self.snapshot_interval <= self.ping_interval && self.ping_interval >= STEPS_IN_INTERVAL * PING_STEP
    }

    /// From a ping of the sweeper's to its next one.
    fn ping_distance(self) -> Duration {
        self.ping_interval + if self.pings_ride() { PING_STEP } else { Duration::ZERO }
    }
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
        let (under_way, next_ping) = (UnderWay::Frame, NextPing::First);
        Self { ping_due, pong_due: None, deadline: None, old_at, under_way, next_ping }
    }

    /// Whether a pong is owed.
    pub(super) fn is_ping_open(&self) -> bool {
        self.pong_due.is_some()
    }

    /// A pong came.
    pub(super) fn pong(&mut self) {
        self.pong_due = None;
    }

    /// The pong that is overdue may lie unread in the kernel. Whether it is given another sweep; never longer than until
    /// the next ping would have been due.
    pub(super) fn wait_longer(&mut self, now: SweepTime) -> bool {
        let waits = now < self.ping_due;
        if waits {
            self.pong_due = Some(now.after(SWEEP_INTERVAL));
        }
        waits
    }

    /// A frame, or the next of a fragmented message, is to be completed from now on.
    pub(super) fn frame_begun(&mut self, last_sweep: SweepTime) {
        if self.under_way == UnderWay::Frame {
            self.deadline = Some(last_sweep.after_now(FRAME_TIMEOUT));
        }
    }

    /// The reader holds no part of a frame or message.
    pub(super) fn frame_done(&mut self) {
        if self.under_way == UnderWay::Frame {
            self.deadline = None;
        }
    }

    /// A close was begun.
    pub(super) fn close_begun(&mut self, last_sweep: SweepTime) {
        (self.under_way, self.deadline) = (UnderWay::Close, Some(last_sweep.after_now(CLOSE_TIMEOUT)));
    }

    /// Whether the socket's ping is to leave with the snapshot of this pass; it has noted it then.
    pub(super) fn rides(&mut self, ride: Ride) -> bool {
        let may = self.next_ping == NextPing::Later && self.under_way != UnderWay::Close && self.pong_due.is_none();
        let rides = may && self.ping_due <= ride.until;
        if rides {
            (self.ping_due, self.pong_due) = (ride.ping_due, Some(ride.pong_due));
        }
        rides
    }

    /// What is due in the sweep at `now`.
    pub(super) fn judge(&mut self, now: SweepTime, limits: Limits) -> Action {
        let due = |deadline: Option<SweepTime>| deadline.is_some_and(|deadline| deadline <= now);
        match self.under_way {
            UnderWay::Close if due(self.deadline) => return Action::End,
            UnderWay::Close => return Action::Nothing,
            UnderWay::Frame if due(self.deadline) => return Action::Close(CloseReason::ProtocolViolation),
            UnderWay::Frame => {}
        }
        if due(self.pong_due) {
            return Action::Close(CloseReason::PongTimeout);
        }
        if due(self.old_at) {
            return Action::Retire;
        }
        if self.ping_due <= now && self.pong_due.is_none() {
            self.ping_due = self.ping_due.after(limits.ping_distance()).max(now.after(SWEEP_INTERVAL));
            self.pong_due = Some(now.after(limits.pong_timeout));
            self.next_ping = NextPing::Later;
            return Action::Ping;
        }
        Action::Nothing
    }
}

#[cfg(test)]
mod tests;
