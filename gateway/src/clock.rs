//! The only place that asks the machine what time it is.
//!
//! Deadlines use [`Clock::now`], which only moves forward. The wall clock serves the timestamps of `ping` alone:
//! whatever must agree between nodes uses the backplane's time (see [`crate::backplane`]).
//!
//! The monotonic clock is read through tokio, which in tests can stop it and move it: deadlines and sleeps then share
//! one time line. Elsewhere that is the machine's clock and nothing else.

use std::time::{Duration, SystemTime};

use shared::time::Timestamp;
use tokio::time::Instant;

/// Time since the clock was made: a point on the node's own monotonic time line.
pub type Mono = Duration;

/// The machine's clocks; cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock whose time line begins now.
    #[must_use]
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Where on the monotonic time line we are.
    #[must_use]
    pub fn now(&self) -> Mono {
        self.origin.elapsed()
    }

    /// Milliseconds since the clock was made, in 32 bits: 49 days and 17 hours, then it wraps. What compares such
    /// values does so by wrapping difference.
    #[must_use]
    pub fn now_ms(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "wrapping is the documented behaviour")]
        let wrapped = self.now().as_millis() as u32;
        wrapped
    }

    /// The wall clock, in milliseconds since the Unix epoch; 0 before it. It may go backwards: for the embedded
    /// backplane, which deals with that as Redis does.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that may ask")]
    pub fn wall_ms() -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// The wall clock, in whole seconds.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that may ask")]
    pub fn wall() -> Timestamp {
        Timestamp::from_system_time(SystemTime::now())
    }
}
