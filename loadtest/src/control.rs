//! What the threads are to do, and how far each has got.
//!
//! One thread leads (`lead.rs`), the others own sockets. They share a handful of numbers and no lock: the stage, which
//! only moves forward, and a board per thread.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::args::YesNo;
use crate::audit::Numbers;
use crate::tally::Tally;

/// What a group of clients is to be: a whole test's, a process's, or a thread's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Servers; each gets a contiguous share of all clients.
    pub(crate) urls: Vec<String>,
    pub(crate) query: String,
    /// Clients of this group.
    pub(crate) connections: u32,
    /// Number of its first client, of all.
    pub(crate) first: u32,
    /// How many clients there are in all groups.
    pub(crate) total: u32,
    /// New sockets per second.
    pub(crate) rate: f64,
    /// Clients per source address; 0: the system chooses.
    pub(crate) spread: u32,
    /// Whether the source is told in X-Forwarded-For instead of being one.
    pub(crate) forwarded_for: bool,
    pub(crate) answer_pings: YesNo,
    /// The servers' tick interval.
    pub(crate) interval_ms: u64,
    /// When an event is late.
    pub(crate) late: Option<Duration>,
    /// Which share of the clients reads slowly, from 0 to 1.
    pub(crate) slow_share: f64,
    pub(crate) slow_manner: SlowManner,
    /// How many pings and how many new numbers each client must have heard by the end.
    pub(crate) heard_min: (u8, u8),
    /// From the begin of connecting to the 101.
    pub(crate) open_within: Duration,
    /// How long a client stays before it leaves and comes again: shortest and longest.
    pub(crate) lives: Option<(Duration, Duration)>,
}

/// What a slow reader does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub(crate) enum SlowManner {
    /// Reads one byte a second.
    Drip,
    /// Reads nothing.
    Stall,
}

impl Job {
    /// All clients in one group, of which nobody is slow or leaves, and who bear with the servers.
    pub(crate) fn new(urls: Vec<String>, connections: u32, rate: f64) -> Self {
        Self {
            urls,
            query: String::new(),
            connections,
            first: 0,
            total: connections,
            rate,
            spread: 1,
            forwarded_for: false,
            answer_pings: YesNo::Yes,
            interval_ms: 0,
            late: None,
            slow_share: 0.0,
            slow_manner: SlowManner::Drip,
            heard_min: (0, 0),
            open_within: Duration::from_secs(10),
            lives: None,
        }
    }

    /// Part number `part` of `parts`.
    pub(crate) fn part(&self, part: u32, parts: u32) -> Self {
        let bound = |part: u32| {
            let of_all = u64::from(self.connections) * u64::from(part) / u64::from(parts.max(1));
            u32::try_from(of_all).unwrap_or(u32::MAX)
        };
        let (from, to) = (bound(part), bound(part + 1));
        let share = if self.connections > 0 { f64::from(to - from) / f64::from(self.connections) } else { 0.0 };
        Self { connections: to - from, first: self.first + from, rate: (self.rate * share).max(1e-3), ..self.clone() }
    }

    /// Whether client number `index` reads slowly; the slow ones are spread evenly.
    pub(crate) fn is_slow(&self, index: u32) -> bool {
        let until = |index: f64| (index * self.slow_share).floor();
        until(f64::from(index) + 1.0) > until(f64::from(index))
    }

    /// How long client number `index` stays this time; `salt` differs from time to time.
    pub(crate) fn life(&self, index: u32, salt: u64) -> Option<Duration> {
        let (shortest, longest) = self.lives?;
        let part = mix(u64::from(index) << 32 ^ salt) >> 48;
        Some(shortest + longest.saturating_sub(shortest) * u32::try_from(part).unwrap_or(0) / (1 << 16))
    }
}

/// The finaliser of `SplitMix64`: even over all bits, and the same in each run.
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// Where the test is. Only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Stage {
    /// Nobody is ready.
    Begin,
    /// All connect.
    Open,
    /// All listen.
    Listen,
    /// All drop their connections and come again.
    Scatter,
    /// The slow readers read what there is.
    Wake,
    /// All wait for the last events.
    Settle,
    /// All say goodbye.
    Leave,
}

impl Stage {
    const ALL: [Self; 7] =
        [Self::Begin, Self::Open, Self::Listen, Self::Scatter, Self::Wake, Self::Settle, Self::Leave];

    fn from_number(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::Leave)
    }
}

/// What the leader tells everybody.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Order {
    Listen,
    Scatter,
    Wake,
    /// The last event has this number, if there was one.
    Settle(Option<u64>),
    /// These numbers are nobody's loss.
    Leave(Numbers),
}

/// How far a thread, a process or everybody has got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// The stage that all have done.
    pub(crate) stage: u8,
    pub(crate) begun: u64,
    pub(crate) alive: u32,
    pub(crate) awaited: u32,
    pub(crate) behind: u32,
    pub(crate) messages: u64,
    pub(crate) events: u64,
}

impl Progress {
    /// Whether all have done `stage`.
    pub(crate) fn has_done(&self, stage: Stage) -> bool {
        self.stage >= stage as u8
    }

    /// Of two groups together.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            stage: self.stage.min(other.stage),
            begun: self.begun + other.begun,
            alive: self.alive + other.alive,
            awaited: self.awaited + other.awaited,
            behind: self.behind + other.behind,
            messages: self.messages + other.messages,
            events: self.events + other.events,
        }
    }
}

#[derive(Debug, Default)]
struct Board {
    stage: AtomicU8,
    begun: AtomicU64,
    alive: AtomicU32,
    awaited: AtomicU32,
    behind: AtomicU32,
    messages: AtomicU64,
    events: AtomicU64,
}

/// What the threads of a process share.
#[derive(Debug)]
pub(crate) struct Control {
    stage: AtomicU8,
    /// The last event's number plus one; 0: none.
    after_last: AtomicU64,
    given_up: OnceLock<Numbers>,
    boards: Box<[Board]>,
}

impl Control {
    /// For so many threads.
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            stage: AtomicU8::new(Stage::Open as u8),
            after_last: AtomicU64::new(0),
            given_up: OnceLock::new(),
            boards: (0..threads).map(|_| Board::default()).collect(),
        }
    }

    /// Tells the threads what comes next.
    pub(crate) fn order(&self, order: Order) {
        let stage = match order {
            Order::Listen => Stage::Listen,
            Order::Scatter => Stage::Scatter,
            Order::Wake => Stage::Wake,
            Order::Settle(last) => {
                self.after_last.store(last.map_or(0, |last| last.saturating_add(1)), Ordering::Relaxed);
                self.boards.iter().for_each(|board| board.behind.store(u32::MAX >> 8, Ordering::Relaxed));
                Stage::Settle
            }
            Order::Leave(given_up) => {
                // The first one stays: there is one end.
                let _ = self.given_up.set(given_up);
                Stage::Leave
            }
        };
        self.stage.store(stage as u8, Ordering::Release);
    }

    /// Where the test is.
    pub(crate) fn stage(&self) -> Stage {
        Stage::from_number(self.stage.load(Ordering::Acquire))
    }

    /// Number of the last event.
    pub(crate) fn last_number(&self) -> Option<u64> {
        self.after_last.load(Ordering::Relaxed).checked_sub(1)
    }

    /// What the producer gave up; known at the end.
    pub(crate) fn given_up(&self) -> Option<&Numbers> {
        self.given_up.get()
    }

    /// A thread has done what `stage` asks for.
    pub(crate) fn reached(&self, thread: usize, stage: Stage) {
        self.with(thread, |board| board.stage.store(stage as u8, Ordering::Release));
    }

    /// So many of a thread's sockets lack the last event.
    pub(crate) fn behind(&self, thread: usize, sockets: u32) {
        self.with(thread, |board| board.behind.store(sockets, Ordering::Release));
    }

    /// A thread's figures.
    pub(crate) fn note(&self, thread: usize, alive: u32, awaited: u32, tally: &Tally) {
        self.with(thread, |board| {
            board.alive.store(alive, Ordering::Relaxed);
            board.awaited.store(awaited, Ordering::Relaxed);
            board.begun.store(tally.begin.count(), Ordering::Relaxed);
            board.messages.store(tally.messages.total(), Ordering::Relaxed);
            board.events.store(tally.messages.new_event, Ordering::Relaxed);
        });
    }

    /// How far all have got.
    pub(crate) fn progress(&self) -> Progress {
        let of = |board: &Board| Progress {
            stage: board.stage.load(Ordering::Acquire),
            begun: board.begun.load(Ordering::Relaxed),
            alive: board.alive.load(Ordering::Relaxed),
            awaited: board.awaited.load(Ordering::Relaxed),
            behind: board.behind.load(Ordering::Relaxed),
            messages: board.messages.load(Ordering::Relaxed),
            events: board.events.load(Ordering::Relaxed),
        };
        self.boards.iter().map(of).reduce(Progress::and).unwrap_or_default()
    }

    fn with(&self, thread: usize, act: impl FnOnce(&Board)) {
        if let Some(board) = self.boards.get(thread) {
            act(board);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn job(urls: &[String], connections: u32) -> Job {
        Job { interval_ms: 5000, ..Job::new(urls.to_vec(), connections, 500.0) }
    }

    #[test]
    fn parts_make_up_the_whole() {
        for (connections, parts) in [(10, 3), (1_000_000, 52), (2, 5), (0, 2)] {
            let whole = job(&[], connections);
            let mut next = 0;
            for part in (0..parts).map(|part| whole.part(part, parts)) {
                assert_eq!((part.first, part.total), (next, connections));
                next += part.connections;
            }
            assert_eq!(next, connections);
        }
        let halves = job(&[], 10).part(1, 2);
        assert!((halves.rate - 250.0).abs() < 1e-9);
        assert_eq!(halves.part(1, 5).first, 6);
    }

    #[test]
    fn the_slow_share_is_exact_and_spread() {
        let job = Job { slow_share: 0.1, ..job(&[], 1000) };
        let slow: Vec<u32> = (0..1000).filter(|index| job.is_slow(*index)).collect();
        assert_eq!(slow.len(), 100);
        assert!(slow.windows(2).all(|pair| (9..=11).contains(&(pair[1] - pair[0]))));
    }

    #[test]
    fn lives_lie_between_their_bounds_and_differ() {
        let (shortest, longest) = (Duration::from_secs(1), Duration::from_secs(3));
        let job = Job { lives: Some((shortest, longest)), ..job(&[], 1000) };
        let lives: Vec<Duration> = (0..1000).filter_map(|index| job.life(index, 7)).collect();
        assert!(lives.iter().all(|life| (shortest..=longest).contains(life)));
        let mean = lives.iter().sum::<Duration>() / 1000;
        assert!((1.9..2.1).contains(&mean.as_secs_f64()), "{mean:?}");
        assert_ne!(job.life(1, 1), job.life(1, 2));
    }

    #[test]
    fn a_stage_is_done_when_all_have_done_it() {
        let control = Control::new(2);
        control.order(Order::Settle(Some(7)));
        assert_eq!((control.stage(), control.last_number()), (Stage::Settle, Some(7)));
        assert!(control.progress().behind > 0, "nobody has looked yet");
        control.reached(0, Stage::Settle);
        control.behind(0, 0);
        assert!(!control.progress().has_done(Stage::Settle));
        control.reached(1, Stage::Settle);
        control.behind(1, 3);
        let progress = control.progress();
        assert!(progress.has_done(Stage::Settle));
        assert_eq!(progress.behind, 3);
        for stage in Stage::ALL {
            assert_eq!(Stage::from_number(stage as u8), stage);
        }
    }
}
