//! What Redis answered, but refused to do: told to the operator, who alone can help, and not once per call.
//!
//! Callers treat a refusal like an absence: they try again, and clients are told that the number is stale. That is
//! right for them and useless to whoever has to find out why: the connection is well, all probes are, and nothing
//! moves, because memory is full or a key was overwritten. So each reason is logged when it comes up, and again once a
//! minute while it lasts. Reasons are fixed texts (Inv. PRIVATE, Inv. BOUND): what Redis says can quote what it was
//! sent.

use std::collections::HashMap;
use std::time::Duration;

use fred::error::Error;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::reply;
use crate::backplane::BackplaneError;

/// A reason is logged again after this.
const MENTION_EVERY: Duration = Duration::from_secs(60);

/// When each reason was last mentioned.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<&'static str, Instant>>);

impl Refusals {
    /// The domain's word for an error, which is mentioned if it is Redis's own.
    pub(super) fn meaning(&self, error: &Error) -> BackplaneError {
        let meaning = reply::error(error);
        if let Some(reason) = reply::refused_for(error, &meaning) {
            self.mention(reason);
        }
        meaning
    }

    /// Tells the operator, unless that was done within the minute.
    pub(super) fn mention(&self, reason: &'static str) {
        if self.is_due(reason, Instant::now()) {
            tracing::warn!(reason, "redis answers, but refuses");
        }
    }

    fn is_due(&self, reason: &'static str, now: Instant) -> bool {
        let mut mentioned = self.0.lock();
        let due = mentioned.get(reason).is_none_or(|at| now.duration_since(*at) >= MENTION_EVERY);
        if due {
            mentioned.insert(reason, now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_due_once_a_minute() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        assert!(refusals.is_due("OOM", start));
        assert!(!refusals.is_due("OOM", start + MENTION_EVERY / 2));
        assert!(refusals.is_due("BUSY", start + MENTION_EVERY / 2));
        assert!(refusals.is_due("OOM", start + MENTION_EVERY));
    }
}
