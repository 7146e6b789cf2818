//! How fast a node that enters again has its sockets admitted: pure.
//!
//! Where one node was out, all may have been: a machine with too much to do, a network that was cut. Each then has to ask
//! about every address it has, and Redis has one thread for all of them and for whoever wants to come in. So each node
//! rests between two calls for as long as makes the calls of *all* members together take half of that thread, and at least
//! as long as its own call took, within reason, which is more where Redis is busy with other things.
//!
//! With 53 members that have 19,000 addresses each, a million in all, it takes 9 s; a lone node of as many has its own
//! through within a quarter of a second.

use std::time::Duration;

/// What a full call costs of Redis's one thread (128 addresses at 4.6 µs; docs/ARCHITECTURE.md, ADR 20).
pub const CALL_COSTS: Duration = Duration::from_micros(590);
/// All members together take one part in so many of that thread.
const SHARE: u32 = 2;

/// The longest rest for the sake of a call that took long: as a rule that one waited for a connection, and others wait for
/// the next.
const BUSY_REST_MAX: Duration = Duration::from_millis(20);

/// How long to rest after a call that took `took`, among so many members.
#[must_use]
pub fn rest_after(took: Duration, members: u32) -> Duration {
    let period = CALL_COSTS * SHARE * members.max(1);
    took.min(BUSY_REST_MAX).max(period.saturating_sub(took))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_members_together_leave_half_of_redis_to_others() {
        for members in [1, 2, 3, 53, 1000] {
            for took in [0, 450, 1_000, 20_000, 2_000_000].map(Duration::from_micros) {
                let period = took + rest_after(took, members);
                assert!(CALL_COSTS * members * SHARE <= period, "{members}, {took:?}");
                assert!(took + took.min(BUSY_REST_MAX) <= period, "{members}, {took:?}");
            }
        }
    }

    /// Sockets that were let in while there was no connection wait for the call after the one that bridged the outage.
    #[test]
    fn a_call_that_waited_for_a_connection_is_not_followed_by_as_long_a_rest() {
        assert_eq!(rest_after(Duration::from_secs(2), 1), BUSY_REST_MAX);
    }

    #[test]
    fn the_largest_cluster_that_was_measured_is_through_within_seconds() {
        let calls = 19_000_u32.div_ceil(128);
        let took = Duration::from_millis(5);
        let all = (took + rest_after(took, 53)) * calls;
        assert!(all < Duration::from_secs(10), "{all:?}");
    }
}
