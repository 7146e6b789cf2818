//! How long to wait for Redis before it is called silent.
//!
//! **The problem.** A timer says how much time has passed, not whose fault it was. Where this process did not get the
//! CPU for three seconds (stopped, throttled, a machine with too much to do), an answer that Redis gave at once has
//! lain in the socket all the while, and the first thing that the process does when it runs again is to look at its
//! timers. A fleet that then makes all its connections anew, and has all its sockets admitted again, makes the overload
//! last.
//!
//! **The idea.** Waiting is done in slices of [`SLICE`], and the process itself is watched by how late their timers
//! fire: a slice counts for what it took, but never for more than itself and [`TOLERATED`]. While the process is on time
//! that is an ordinary timeout, to the millisecond. While it is not, time is counted in its own wake-ups, and between two
//! of them the library's task gets to look at the socket. Before a wait in which the process was late is given up there
//! is one slice of grace, so that there is a look after the last delay as well.
//!
//! So a real silence is found by a process that is never on time, too: a wait of `bound` ends with its
//! `bound / SLICE + 2`nd wake-up at the latest. Pure but for [`patiently`].
//!
//! Deliberately absent: a bound on the whole in wall-clock time. A process that was stopped for an hour knows nothing
//! of Redis when it goes on.

use std::future::Future;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

/// The process looks at itself this often.
const SLICE: Duration = Duration::from_millis(250);
/// A timer that fires no later than this is on time.
const TOLERATED: Duration = Duration::from_millis(50);
/// So long after the process was late, what it missed may still be its own fault.
const EXCUSED_FOR: Duration = Duration::from_secs(10);
/// So often in a row.
const EXCUSES_MAX: u32 = 3;

/// A wait that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Patience {
    left: Duration,
    was_late: bool,
    grace: bool,
}

impl Patience {
    fn new(bound: Duration) -> Self {
        Self { left: bound, was_late: false, grace: true }
    }

    /// How long to wait before [`Self::waited`] is to be told; none when there was silence.
    fn slice(&self) -> Option<Duration> {
        Some(self.left.min(SLICE)).filter(|slice| !slice.is_zero())
    }

    /// No answer came during `slice`, which took so long.
    fn waited(&mut self, slice: Duration, took: Duration) {
        let counted = took.min(slice + TOLERATED);
        self.was_late |= took > counted;
        self.left = self.left.saturating_sub(counted.max(slice));
        if self.left.is_zero() && self.was_late && self.grace {
            (self.left, self.grace) = (SLICE, false);
        }
    }
}

/// Waits for an answer, up to `bound` of the time in which this process was awake. None: silence.
pub(super) fn patiently<F: Future>(bound: Duration, answer: F) -> impl Future<Output = Option<F::Output>> {
    // Boxed before the first wait, or the future would hold it once for each of the two functions.
    let answer = Box::pin(answer);
    async move { wait(&Lateness::default(), bound, answer).await }
}

/// As [`patiently`], and notes when the process was late.
pub(super) fn patiently_noting<F: Future>(
    lateness: &Lateness,
    bound: Duration,
    answer: F,
) -> impl Future<Output = Option<F::Output>> {
    wait(lateness, bound, Box::pin(answer))
}

async fn wait<F: Future + Unpin>(lateness: &Lateness, bound: Duration, mut answer: F) -> Option<F::Output> {
    let mut patience = Patience::new(bound);
    while let Some(slice) = patience.slice() {
        let begun = lateness.begin(slice);
        // The answer is looked at before the time, and it is the same one that is polled again.
        let answered = timeout(slice, &mut answer).await.ok();
        lateness.end();
        if answered.is_some() {
            return answered;
        }
        patience.waited(slice, begun.elapsed());
    }
    None
}

/// When the process was late of late. Who finds something missing asks here whether it may have been itself.
#[derive(Debug, Default)]
pub(super) struct Lateness {
    state: Mutex<Late>,
}

#[derive(Debug, Default)]
struct Late {
    /// When the present slice has to end.
    due: Option<Instant>,
    /// When the process was late last.
    at: Option<Instant>,
    /// How often that was an excuse, in a row.
    excused: u32,
}

impl Late {
    fn look(&mut self, now: Instant) {
        if self.due.is_some_and(|due| now > due + TOLERATED) {
            self.at = Some(now);
        }
    }
}

impl Lateness {
    /// A wait begins, now, that should last no longer than `slice`. One wait at a time.
    fn begin(&self, slice: Duration) -> Instant {
        let now = Instant::now();
        self.state.lock().due = Some(now + slice);
        now
    }

    fn end(&self) {
        let mut late = self.state.lock();
        late.look(Instant::now());
        late.due = None;
    }

    /// Whether what is missing now may be this process's own fault. A bounded number of times in a row: then it is
    /// somebody else's, whatever this process is like.
    pub(super) fn excuses(&self) -> bool {
        let (mut late, now) = (self.state.lock(), Instant::now());
        // Whoever waits may not have run yet since the process goes on.
        late.look(now);
        let excuses = late.at.is_some_and(|at| now - at < EXCUSED_FOR) && late.excused < EXCUSES_MAX;
        late.excused = if excuses { late.excused + 1 } else { 0 };
        excuses
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use tokio::time::{advance, sleep};

    use super::*;

    const BOUND: Duration = Duration::from_secs(2);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// How many slices it takes until there is silence, if each takes `took`.
    fn slices(took: impl Fn(Duration) -> Duration) -> usize {
        let mut patience = Patience::new(BOUND);
        let wait = || patience.slice().map(|slice| patience.waited(slice, took(slice)));
        std::iter::from_fn(wait).count()
    }

    #[test]
    fn time_counts_while_the_process_is_on_time() {
        assert_eq!(slices(|slice| slice), 8);
        assert_eq!(slices(|slice| slice + ms(1)), 8);
        let mut patience = Patience::new(BOUND);
        let mut total = Duration::ZERO;
        while let Some(slice) = patience.slice() {
            total += slice + TOLERATED;
            patience.waited(slice, slice + TOLERATED);
        }
        assert!(total <= BOUND + TOLERATED, "what is tolerated is not added: {total:?}");
    }

    #[test]
    fn a_process_that_is_never_on_time_finds_silence_by_its_wake_ups() {
        let bound = usize::try_from(BOUND.as_millis() / SLICE.as_millis() + 2).expect("few");
        for late in [51, 500, 5_000, 3_600_000] {
            let slices = slices(|slice| slice + ms(late));
            assert!((7..=bound).contains(&slices), "{late}: {slices}");
        }
    }

    #[test]
    fn who_was_late_looks_once_more() {
        let mut patience = Patience::new(SLICE);
        patience.waited(SLICE, ms(9_000));
        assert_eq!((patience.slice(), patience.was_late), (Some(SLICE), true));
        patience.waited(SLICE, ms(9_000));
        assert_eq!(patience.slice(), None, "and not for ever");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_found_at_the_bound() {
        let begun = Instant::now();
        let lateness = Lateness::default();
        assert_eq!(patiently_noting(&lateness, BOUND, std::future::pending::<()>()).await, None);
        assert_eq!(begun.elapsed(), BOUND);
        assert!(!lateness.excuses());
    }

    /// The process is stopped for longer than any bound; the answer has come meanwhile, but the task that reads it
    /// runs only after the one that waits.
    #[tokio::test(start_paused = true)]
    async fn a_process_that_was_stopped_sees_the_answer_that_has_come() {
        let (answer, answered) = oneshot::channel();
        let reader = async {
            sleep(ms(10)).await;
            advance(Duration::from_secs(30)).await;
            // Whoever waits has looked at its timer by now.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            answer.send("pong").expect("still waited for");
        };
        let (answered, ()) = tokio::join!(patiently(BOUND, answered), reader);
        assert_eq!(answered, Some(Ok("pong")));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_missing_is_excused_for_a_while_and_a_few_times() {
        let lateness = Lateness::default();
        assert!(!lateness.excuses());
        lateness.begin(SLICE);
        advance(SLICE + TOLERATED).await;
        assert!(!lateness.excuses(), "still on time");
        advance(ms(1)).await;
        assert!(lateness.excuses(), "whoever waits has not even run");
        lateness.end();
        advance(EXCUSED_FOR - ms(1)).await;
        assert!(lateness.excuses());
        advance(ms(1)).await;
        assert!(!lateness.excuses());
        lateness.begin(SLICE);
        advance(ms(9_000)).await;
        let excuses = (0..=EXCUSES_MAX).filter(|_| lateness.excuses());
        assert_eq!(excuses.count(), EXCUSES_MAX as usize);
    }
}
