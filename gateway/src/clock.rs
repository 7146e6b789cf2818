//! The only place that asks the machine what time it is.
//!
//! Deadlines use [`Clock::now`], which only moves forward. The wall clock serves the timestamps of `ping` alone:
//! whatever must agree between nodes uses the backplane's time (see [`crate::backplane`]).

use std::time::{Duration, Instant, SystemTime};

use shared::time::Timestamp;

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

    /// The wall clock, in whole seconds.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that may ask")]
    pub fn wall() -> Timestamp {
        Timestamp::from_system_time(SystemTime::now())
    }
}
