//! Bugs for the failure lab to find: a checker that has never found anything may be blind.
//!
//! Each is what somebody might well have written instead, in one place. They exist in builds with the feature
//! `planted-bugs` alone, which no build with optimisations may have, and there `PULSEGATE_PLANTED_BUG` names the one
//! that is on. In every other build [`has`] is `false`, and [`script`] gives back what it got.
//! `make chaos-planted` runs the lab against each.

#[cfg(all(feature = "planted-bugs", not(debug_assertions)))]
compile_error!("planted-bugs is for the failure lab: what is built with optimisations may be shipped");

/// What can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "planted-bugs"), expect(dead_code, reason = "two of them are in scripts"))]
pub(crate) enum Bug {
    /// The relay does not look whether its place in the stream still exists.
    NoCursorCheck,
    /// A publish that is repeated is done again.
    PublishTwice,
    /// Sockets of an address are counted by ±1, not by true counts.
    CountsByDifference,
    /// The relay shows whatever snapshot comes, though it has shown that slot.
    NoSlotCheck,
    /// A node that finds another data set does not tell it what it holds.
    NoReregistration,
}

/// Whether this bug is planted.
#[cfg(not(feature = "planted-bugs"))]
pub(crate) const fn has(_: Bug) -> bool {
    false
}

/// A script's text, with its bug if that is planted.
#[cfg(not(feature = "planted-bugs"))]
pub(crate) fn script(text: String) -> String {
    text
}

#[cfg(feature = "planted-bugs")]
pub(crate) use self::feature::{has, script};

#[cfg(feature = "planted-bugs")]
mod feature {
    use std::sync::LazyLock;

    use super::Bug;

    #[expect(clippy::disallowed_methods, reason = "no part of the configuration: builds that ship do not know it")]
    static PLANTED: LazyLock<Option<Bug>> =
        LazyLock::new(|| match std::env::var("PULSEGATE_PLANTED_BUG").ok()?.as_str() {
            "no-cursor-check" => Some(Bug::NoCursorCheck),
            "publish-twice" => Some(Bug::PublishTwice),
            "counts-by-difference" => Some(Bug::CountsByDifference),
            "no-slot-check" => Some(Bug::NoSlotCheck),
            "no-reregistration" => Some(Bug::NoReregistration),
            other => panic!("no such planted bug: {other}"),
        });

    pub(crate) fn has(bug: Bug) -> bool {
        *PLANTED == Some(bug)
    }

    pub(crate) fn script(text: String) -> String {
        // What is right, and what stands there instead. The whole of it is found, or the lab would run against no bug.
        let changes: &[(&str, &str)] = match *PLANTED {
            // In publish.lua.
            Some(Bug::PublishTwice) => &[("if tonumber(last) == number then", "if false then")],
            // In admit.lua and set_counts.lua.
            Some(Bug::CountsByDifference) => &[
                ("redis.call('HSET', address, node, int(counted))", "redis.call('HINCRBY', address, node, 1)"),
                ("if count == '0' then", "if redis.call('HINCRBY', address, ARGV[3], -1) then\n  elseif false then"),
            ],
            _ => &[],
        };
        changes.iter().fold(text, |text, (right, wrong)| text.replace(right, wrong))
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn what_is_changed_is_there() {
            let scripts = [
                include_str!("backplane/redis/scripts/publish.lua"),
                include_str!("backplane/redis/scripts/admit.lua"),
                include_str!("backplane/redis/scripts/set_counts.lua"),
            ];
            let lines = [
                "if tonumber(last) == number then",
                "redis.call('HSET', address, node, int(counted))",
                "if count == '0' then",
            ];
            for (script, line) in scripts.iter().zip(lines) {
                assert_eq!(script.matches(line).count(), 1, "{line}");
            }
        }
    }
}
