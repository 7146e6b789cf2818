//! Sockets whose clients answer, or do not, swept and told of snapshots on a clock that the tests move.

use super::super::sweep::tests::at;
use super::super::sweep::{LastSweep, SweepClock};
use super::*;

const LIMITS: Limits = Limits {
    ping_interval: Duration::from_secs(30),
    pong_timeout: Duration::from_secs(10),
    max_age: None,
    snapshot_interval: Duration::from_secs(5),
};

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
fn one_that_answers_is_pinged_each_thirty_seconds_where_pings_do_not_ride() {
    let limits = Limits { snapshot_interval: Duration::from_secs(45), ..LIMITS };
    let mut pulse = pulse(LIMITS);
    let mut pings = Vec::new();
    for second in 1..=130 {
        match pulse.judge(at(second), limits) {
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
    /// When pings left, in ms since the socket opened, and with what.
    pings: Vec<(u32, With)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum With {
    Snapshot,
    Nothing,
}

impl Life {
    fn new(limits: Limits) -> Self {
        Self { pulse: pulse(limits), last_sweep: LastSweep::default(), limits, pings: Vec::new() }
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
        let ride = Ride::new(self.last_sweep.moment(now_ms), self.limits);
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

/// How far apart the pings were, in ms.
fn distances(pings: &[(u32, With)]) -> Vec<u32> {
    pings.windows(2).map(|two| two[1].0 - two[0].0).collect()
}

#[test]
fn pings_move_towards_the_snapshots_and_then_ride_with_every_sixth() {
    // Whatever lies between the snapshots and the sweeps, the opening and the first snapshot.
    for first in (0..5_000).step_by(130) {
        let pings = Life::new(LIMITS).until(420_000, each(first, 5_000, |_| 0));
        // The contract: the first 30 s after opening, to the sweep.
        assert_eq!(pings[0], (31_000, With::Nothing), "{first}");
        let from = pings.iter().position(|(_, with)| *with == With::Snapshot).expect("some ride");
        assert!(from <= 5, "{first}: {pings:?}");
        assert!(pings[from..].iter().all(|(_, with)| *with == With::Snapshot), "{first}: {pings:?}");
        // Wire: 30 s, to the second, on the way there; exactly, from then on.
        assert!(distances(&pings[..=from]).iter().all(|gap| (29_500..=31_000).contains(gap)), "{first}: {pings:?}");
        assert!(distances(&pings[from..]).iter().all(|gap| *gap == 30_000), "{first}: {pings:?}");
    }
}

#[test]
fn snapshots_that_come_late_now_and_then_change_nothing() {
    // Around each sweep's moment, which is where a coarse look at the time would err.
    for first in (0..5_000).step_by(90) {
        let pings = Life::new(LIMITS).until(420_000, each(first, 5_000, |n| (n * 97) % 240));
        let from = pings.iter().position(|(_, with)| *with == With::Snapshot).expect("some ride");
        let later = &pings[from..];
        assert!(from <= 6 && later.len() >= 5, "{first}: {pings:?}");
        assert!(later.iter().all(|(_, with)| *with == With::Snapshot), "{first}: {pings:?}");
        assert!(distances(later).iter().all(|gap| gap.abs_diff(30_000) < 240), "{first}: {pings:?}");
    }
}

#[test]
fn without_snapshots_the_sweeper_pings() {
    // The last snapshot carries a ping; the next ping waits for another as long as that may be late.
    let snapshots = each(1_300, 5_000, |_| 0).take_while(|at| *at < 70_000);
    let pings = Life::new(LIMITS).until(160_000, snapshots);
    let (sweeper, ridden) = (With::Nothing, With::Snapshot);
    let want = [(31_000, sweeper), (61_300, ridden), (92_000, sweeper), (123_000, sweeper), (154_000, sweeper)];
    assert_eq!(pings, want);
}

#[test]
fn the_intervals_between_pings_have_bounds() {
    // Rows: ping interval, snapshot interval (ms); the least and the most between two pings.
    let check = |ping: u32, snapshot: u32, least: u32, most: u32| {
        let interval = |ms: u32| Duration::from_millis(ms.into());
        let limits = Limits { ping_interval: interval(ping), snapshot_interval: interval(snapshot), ..LIMITS };
        for first in (0..snapshot).step_by(70) {
            let gaps = distances(&Life::new(limits).until(12 * ping, each(first, snapshot, |_| 0)));
            assert!(gaps.len() >= 10, "{ping}, {snapshot}, {first}: {gaps:?}");
            assert!(gaps.iter().all(|gap| (least..=most).contains(gap)), "{ping}, {snapshot}, {first}: {gaps:?}");
        }
    };
    check(30_000, 5_000, 29_500, 31_000);
    check(30_000, 30_000, 29_500, 31_000);
    // So frequent that the first that is early enough takes it, counted in sweeps.
    check(30_000, 1_000, 29_000, 31_000);
    check(30_000, 7_000, 29_500, 31_250);
    check(30_000, 20_000, 29_500, 31_250);
    check(10_000, 5_000, 9_500, 11_000);
    // A second more would be much: none rides.
    check(9_000, 5_000, 9_000, 9_000);
    // Snapshots are rarer than pings: none rides.
    check(30_000, 45_000, 30_000, 30_000);
}

#[test]
fn a_ping_that_rode_is_to_be_answered_in_ten_seconds() {
    let mut life = Life::new(LIMITS);
    life.pulse.judge(at(31), LIMITS);
    life.pulse.pong();
    life.last_sweep.set(at(61), 61_000);
    let ride = Ride::new(life.last_sweep.moment(61_300), LIMITS).expect("pings may ride");
    assert!(life.pulse.rides(ride));
    assert_eq!(watch(&mut life.pulse, 62..=72), [(72, Action::Close(CloseReason::PongTimeout))]);
}

#[test]
fn while_a_ping_is_open_none_rides() {
    let mut pulse = pulse(LIMITS);
    assert_eq!(pulse.judge(at(31), LIMITS), Action::Ping);
    let snapshot = Moment { sweep: at(61), since: Duration::ZERO };
    let ride = Ride::new(snapshot, LIMITS).expect("pings may ride");
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
    assert!(!pulse.rides(Ride::new(now, LIMITS).expect("pings may ride")));
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
    for second in (1..=35).chain(95..=128) {
        let now = clock.sweep(Duration::from_secs(second));
        let action = pulse.judge(now, LIMITS);
        if action != Action::Nothing {
            actions.push((second, action));
        }
        if second == 96 {
            pulse.pong();
        }
    }
    // 31 s awake lie between the pings, as no snapshot came to take the second along.
    assert_eq!(actions, [(31, Action::Ping), (122, Action::Ping)]);
}
