//! Sockets whose clients answer, or do not, swept and told of snapshots on a clock that the tests move.

use super::super::sweep::tests::at;
use super::super::sweep::{LastSweep, SweepClock};
use super::*;

const LIMITS: Limits =
    Limits { ping_interval: Duration::from_secs(30), pong_timeout: Duration::from_secs(10), max_age: None };

fn pulse(limits: Limits) -> Pulse {
    Pulse::new(SweepTime::START, limits, &mut rand::rng())
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

/// A socket whose pongs come at once, on a node that sweeps each second and gets a snapshot now and then.
struct Life {
    pulse: Pulse,
    last_sweep: LastSweep,
    limits: Limits,
    snapshot_interval: Duration,
    /// When pings left, in ms since the socket opened, and with what.
    pings: Vec<(u32, With)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum With {
    Snapshot,
    Nothing,
}

impl Life {
    fn new(limits: Limits, snapshot_interval: Duration) -> Self {
        let (pulse, last_sweep) = (pulse(limits), LastSweep::default());
        Self { pulse, last_sweep, limits, snapshot_interval, pings: Vec::new() }
    }

    /// Lives until `end`, with snapshots at these times; all in ms.
    fn until(mut self, end: u32, snapshots: impl IntoIterator<Item = u32>) -> Vec<(u32, With)> {
        let mut snapshots = snapshots.into_iter().peekable();
        for sweep_ms in (1_000..=end).step_by(1_000) {
            while let Some(now_ms) = snapshots.next_if(|at| *at < sweep_ms) {
                self.snapshot(now_ms);
            }
            self.sweep(sweep_ms);
        }
        self.pings
    }

    fn sweep(&mut self, now_ms: u32) {
        let now = at(now_ms / 1_000);
        self.last_sweep.set(now, now_ms);
        match self.pulse.judge(now, self.limits) {
            Action::Nothing => {}
            Action::Ping => self.pinged(now_ms, With::Nothing),
            other => panic!("{other:?} at {now_ms}"),
        }
    }

    fn snapshot(&mut self, now_ms: u32) {
        let ride = Ride::new(self.last_sweep.moment(now_ms), self.snapshot_interval, self.limits);
        if ride.is_some_and(|ride| self.pulse.rides(ride)) {
            self.pinged(now_ms, With::Snapshot);
        }
    }

    fn pinged(&mut self, now_ms: u32, with: With) {
        assert!(self.pulse.is_ping_open());
        self.pulse.pong();
        self.pings.push((now_ms, with));
    }
}

/// Snapshots each `interval` ms from `first` on, the `n`th of them late by `late(n)`.
fn each(first: u32, interval: u32, late: impl Fn(u32) -> u32) -> impl Iterator<Item = u32> {
    (0..).map(move |n| first + n * interval + late(n))
}

#[test]
fn after_the_first_a_ping_rides_with_every_sixth_snapshot() {
    let life = || Life::new(LIMITS, Duration::from_secs(5));
    // Whatever lies between the snapshots and the sweeps, the opening and the first snapshot.
    for first in (0..5_000).step_by(130) {
        let pings = life().until(240_000, each(first, 5_000, |_| 0));
        // The contract: the first 30 s after opening, to the sweep.
        assert_eq!(pings[0], (31_000, With::Nothing), "{first}");
        let gap = pings[1].0 - pings[0].0;
        assert!((25_000..=30_000).contains(&gap), "{first}: the second after {gap}");
        let later = &pings[1..];
        assert!(later.len() >= 6, "{first}: {pings:?}");
        assert!(later.iter().all(|(_, with)| *with == With::Snapshot), "{first}: {pings:?}");
        assert!(later.windows(2).all(|two| two[1].0 - two[0].0 == 30_000), "{first}: {pings:?}");
    }
}

#[test]
fn snapshots_that_come_late_now_and_then_change_nothing() {
    // Around each sweep's moment, which is where a coarse look at the time would err.
    for first in (0..5_000).step_by(90) {
        let snapshots = each(first, 5_000, |n| (n * 97) % 240);
        let pings = Life::new(LIMITS, Duration::from_secs(5)).until(240_000, snapshots);
        // One that is late for the second ping as well takes the third.
        let from = pings.iter().position(|(_, with)| *with == With::Snapshot).expect("some ride");
        let later = &pings[from..];
        assert!(from <= 2 && later.len() >= 5, "{first}: {pings:?}");
        assert!(later.iter().all(|(_, with)| *with == With::Snapshot), "{first}: {pings:?}");
        assert!(later.windows(2).all(|two| two[1].0.abs_diff(two[0].0).abs_diff(30_000) < 240), "{first}: {pings:?}");
    }
}

#[test]
fn without_snapshots_the_sweeper_pings() {
    // The last snapshot carries a ping; the next ping waits for another as long as that may be late.
    let snapshots = each(300, 5_000, |_| 0).take_while(|at| *at < 70_000);
    let pings = Life::new(LIMITS, Duration::from_secs(5)).until(160_000, snapshots);
    let (sweeper, ridden) = (With::Nothing, With::Snapshot);
    let want = [(31_000, sweeper), (60_300, ridden), (91_000, sweeper), (121_000, sweeper), (151_000, sweeper)];
    assert_eq!(pings, want);
}

#[test]
fn the_intervals_between_pings_have_bounds() {
    // Rows: ping interval, snapshot interval (ms); the least and the most between two pings after the first.
    let check = |ping: u32, snapshot: u32, least: u32, most: u32| {
        let limits = Limits { ping_interval: Duration::from_millis(ping.into()), ..LIMITS };
        for first in (0..snapshot).step_by(70) {
            let life = Life::new(limits, Duration::from_millis(snapshot.into()));
            let pings = life.until(8 * ping, each(first, snapshot, |_| 0));
            let gaps: Vec<u32> = pings[1..].windows(2).map(|two| two[1].0 - two[0].0).collect();
            assert!(gaps.len() >= 4, "{ping}, {snapshot}: {pings:?}");
            assert!(gaps.iter().all(|gap| (least..=most).contains(gap)), "{ping}, {snapshot}: {pings:?}");
        }
    };
    check(30_000, 5_000, 30_000, 30_000);
    check(30_000, 30_000, 30_000, 30_000);
    check(3_000, 1_000, 3_000, 4_000);
    check(3_000, 200, 3_000, 4_200);
    check(30_000, 7_000, 28_000, 28_000);
    check(30_000, 20_000, 20_000, 20_000);
    // Snapshots are rarer than pings: none rides.
    check(30_000, 45_000, 30_000, 30_000);
}

#[test]
fn a_ping_that_rode_is_to_be_answered_in_ten_seconds() {
    let mut life = Life::new(LIMITS, Duration::from_secs(5));
    life.pulse.judge(at(31), LIMITS);
    life.pulse.pong();
    life.last_sweep.set(at(58), 58_000);
    let ride = Ride::new(life.last_sweep.moment(58_300), life.snapshot_interval, LIMITS).expect("pings may ride");
    assert!(life.pulse.rides(ride));
    assert_eq!(watch(&mut life.pulse, 59..=69), [(69, Action::Close(CloseReason::PongTimeout))]);
}

#[test]
fn while_a_ping_is_open_none_rides() {
    let mut pulse = pulse(LIMITS);
    assert_eq!(pulse.judge(at(31), LIMITS), Action::Ping);
    // As rare as pings: this one is the last before the next ping is due.
    let snapshot = Moment { sweep: at(32), since: Duration::ZERO };
    let ride = Ride::new(snapshot, LIMITS.ping_interval, LIMITS).expect("pings may ride");
    assert!(!pulse.rides(ride));
    pulse.pong();
    assert!(pulse.rides(ride));
}

#[test]
fn a_socket_that_is_being_closed_gets_no_ping() {
    let mut pulse = pulse(LIMITS);
    pulse.judge(at(31), LIMITS);
    pulse.pong();
    pulse.close_begun(at(60));
    let now = Moment { sweep: at(60), since: Duration::ZERO };
    assert!(!pulse.rides(Ride::new(now, Duration::from_secs(5), LIMITS).expect("pings may ride")));
    // What the reader does meanwhile moves the close's deadline neither.
    pulse.frame_begun(at(62));
    pulse.frame_done();
    assert_eq!(watch(&mut pulse, 61..=66), [(66, Action::End)]);
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
