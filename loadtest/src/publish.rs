//! The producer: publishes numbered events from a thread of its own, at a steady rate or as fast as the slowest
//! client takes them.
//!
//! A request that fails may have been carried out all the same. It is not repeated (that would be a duplicate of our
//! own making); its numbers are given up, and the audit holds nobody responsible for them.

mod http;
mod order;
mod redis;

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(crate) use self::http::Http;
pub(crate) use self::order::Orders;
pub(crate) use self::redis::Redis;
use crate::audit::Numbers;
use crate::latency::Sends;
use crate::pace::Slowest;

/// The longest wait for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Pause after a failure: the server may be starting again.
const AFTER_FAILURE: Duration = Duration::from_millis(200);
/// The longest sleep between two looks at the clock, or at the slowest client.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// The most events of one request.
const EVENTS_AT_ONCE: u64 = shared::event::EVENTS_MAX as u64;

/// Where events go.
pub(crate) trait Outlet: Send {
    /// Publishes events with these numbers, at most [`EVENTS_AT_ONCE`]; tells how many were accepted, and in a word
    /// how it went.
    ///
    /// # Errors
    /// When nobody knows whether they were published.
    fn publish(&mut self, numbers: RangeInclusive<u64>) -> io::Result<(u64, String)>;
}

/// When the next event is due.
#[derive(Debug, Clone)]
pub(crate) enum Tempo {
    /// So many per second, whatever becomes of them.
    PerSecond(f64),
    /// When the slowest client has all but so many.
    InFlight(u32, Arc<Slowest>),
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Events that were sent.
    pub(crate) sent: u64,
    /// Events that the server accepted.
    pub(crate) accepted: u64,
    /// Number of the last event that it accepted.
    pub(crate) last: Option<u64>,
    /// Numbers of which nobody knows.
    pub(crate) given_up: Numbers,
    /// Requests by what came of them: a status, or what went wrong.
    pub(crate) answers: BTreeMap<String, u64>,
}

/// A running producer. Dropping it stops it too, without waiting.
#[derive(Debug)]
pub(crate) struct Publisher {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Outcome>>,
}

impl Publisher {
    /// Starts to publish.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(
        outlet: Box<dyn Outlet>,
        tempo: Tempo,
        first_number: u64,
        sends: Arc<Sends>,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let named = std::thread::Builder::new().name("publisher".to_owned());
        let thread = named.spawn(move || run(outlet, &tempo, first_number, &sends, &told))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Asks it to stop after the request that is under way.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Stops it and waits for what came of it; `None` when it panicked.
    pub(crate) fn outcome(mut self) -> Option<Outcome> {
        self.stop();
        self.thread.take()?.join().ok()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(mut outlet: Box<dyn Outlet>, tempo: &Tempo, first: u64, sends: &Sends, stop: &AtomicBool) -> Outcome {
    let mut outcome = Outcome::default();
    let (began, mut sent) = (Instant::now(), 0u64);
    if let Tempo::InFlight(_, slowest) = tempo {
        slowest.tell_me();
    }
    while !stop.load(Ordering::Relaxed) {
        let count = tempo.due(began.elapsed(), first).saturating_sub(sent).min(EVENTS_AT_ONCE);
        if count == 0 {
            tempo.wait();
            continue;
        }
        let numbers = first + sent..=first + sent + count - 1;
        sent += count;
        numbers.clone().for_each(|number| sends.note(number));
        let answer = outlet.publish(numbers.clone());
        let label = match &answer {
            Ok((_, label)) => label.clone(),
            Err(error) => error.kind().to_string(),
        };
        *outcome.answers.entry(label).or_default() += 1;
        if answer.is_ok_and(|(accepted, _)| accepted == count) {
            outcome.accepted += count;
            outcome.last = Some(*numbers.end());
        } else {
            outcome.given_up.add(numbers);
            std::thread::sleep(AFTER_FAILURE);
        }
    }
    outcome.sent = sent;
    outcome
}

impl Tempo {
    /// How many events ought to be published by now, of all.
    fn due(&self, elapsed: Duration, first: u64) -> u64 {
        match self {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a count of events, far below 2^53"
            )]
            Self::PerSecond(rate) => (elapsed.as_secs_f64() * rate) as u64,
            Self::InFlight(most, slowest) => (slowest.number() + 1).saturating_sub(first) + u64::from(*most),
        }
    }

    fn wait(&self) {
        match self {
            Self::PerSecond(rate) => std::thread::sleep(Duration::from_secs_f64(1.0 / rate).min(PAUSE_MAX)),
            Self::InFlight(..) => std::thread::park_timeout(PAUSE_MAX),
        }
    }
}

/// Strings and numbers that came from nowhere.
fn malformed() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{SyncSender, sync_channel};

    use super::*;
    use crate::pace::Pace;

    struct Told(SyncSender<RangeInclusive<u64>>, u64);

    impl Outlet for Told {
        fn publish(&mut self, numbers: RangeInclusive<u64>) -> io::Result<(u64, String)> {
            let count = numbers.end() - numbers.start() + 1;
            let refused = numbers.contains(&self.1);
            self.0.send(numbers).map_err(|_| malformed())?;
            if refused { Err(malformed()) } else { Ok((count, "ok".to_owned())) }
        }
    }

    #[test]
    fn a_closed_loop_waits_for_the_slowest() {
        let (told, came) = sync_channel(8);
        let slowest = Arc::new(Slowest::new(1, 5));
        let mut pace = Pace::new(slowest.clone(), 0, 3);
        pace.join();
        pace.join();
        let sends = Arc::new(Sends::new());
        let tempo = Tempo::InFlight(3, slowest);
        let publisher = Publisher::start(Box::new(Told(told, 0)), tempo, 5, sends.clone()).expect("a thread");
        assert_eq!(came.recv(), Ok(5..=7));
        pace.moved(None, 7);
        pace.moved(None, 6);
        assert_eq!(came.recv(), Ok(8..=9), "the slowest has 6: three are on their way");
        let outcome = publisher.outcome().expect("no panic");
        assert_eq!((outcome.accepted, outcome.last), (5, Some(9)));
        assert!(sends.age_us(9, Instant::now()).is_some());
        assert!(came.try_recv().is_err());
    }

    #[test]
    fn what_failed_is_given_up() {
        let (told, came) = sync_channel(8);
        let tempo = Tempo::PerSecond(1000.0);
        let publisher = Publisher::start(Box::new(Told(told, 1)), tempo, 1, Arc::new(Sends::new())).expect("a thread");
        let failed = came.recv().expect("the first request");
        let next = came.recv().expect("it goes on");
        assert_eq!(*next.start(), failed.end() + 1);
        let outcome = publisher.outcome().expect("no panic");
        assert_eq!(outcome.given_up.within(&(1..=1000)), *failed.end());
        assert!(outcome.last >= Some(*next.end()));
    }
}
