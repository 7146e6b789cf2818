//! What a run has left behind: everything that the checker judges by, and nothing else.
//!
//! It is gathered by the lab's own clients and producers. Nothing in it comes from a gateway but what a client of that
//! gateway could read, so no metric and no log can talk the checker out of what clients saw.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch, by the lab's clock. Redis runs on the same machine, so timestamps of snapshots
/// are on the same scale.
pub(crate) type Ms = u64;

/// The number of an event: producers give each its own.
pub(crate) type Number = u32;

/// A gateway process. One that was started again is another.
pub(crate) type Node = usize;

/// Everything about one run.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    /// What it had to have at least.
    pub(crate) demands: Demands,
    /// Length of a slot.
    pub(crate) interval_ms: Ms,
    /// From one `ping` of a socket to the next.
    pub(crate) ping_ms: Ms,
    /// Sockets that one address may hold.
    pub(crate) cap: usize,
    /// Visitors: how many there are from when all clients have connected…
    pub(crate) visitors: u64,
    /// …which was before this: all of them had been shown that number.
    pub(crate) complete: Ms,
    /// The longest time for which the lab itself was not scheduled: who waits for a processor is not late.
    pub(crate) stall_ms: Ms,
    /// Why the run was ended before its plan was, and before all had come to rest: what is only true then is not judged.
    pub(crate) cut_short: Option<String>,
    /// When the clients were told to leave.
    pub(crate) ended: Ms,
    /// All gateway processes.
    pub(crate) nodes: Vec<NodeLog>,
    /// All sockets of viewers.
    pub(crate) sessions: Vec<Session>,
    /// All events, by number.
    pub(crate) published: HashMap<Number, Published>,
    /// What stands in the stream at the end, in its order.
    pub(crate) survivors: Vec<Survivor>,
    /// What was done to the system, in order.
    pub(crate) faults: Vec<FaultLog>,
    /// Sockets that were opened, or tried, beside those of the viewers to get over the cap.
    pub(crate) attempts: Vec<Attempt>,
    /// How often the busy address was filled, and what it found.
    pub(crate) rounds: Vec<Round>,
}

/// What a run must have at least: who has not done that has proved nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Demands {
    /// Gateways.
    pub(crate) gateways: usize,
    /// Clients…
    pub(crate) clients: usize,
    /// …of which so many have ids…
    pub(crate) with_ids: usize,
    /// …and so many read slowly.
    pub(crate) slow: usize,
    /// Events that were offered, in a second on average, while no fault lasted.
    pub(crate) events_per_second: u64,
    /// Faults, each confirmed.
    pub(crate) faults: usize,
    /// Attempts of a socket over the cap that were refused.
    pub(crate) refused: usize,
    /// Those of them that were refused while nothing that was done to the system could have excused a grant.
    #[serde(default)]
    pub(crate) refused_undisturbed: usize,
    /// Rounds of the busy address that nothing disturbed.
    #[serde(default)]
    pub(crate) rounds: usize,
}

impl Default for Demands {
    /// Those of the failure lab.
    fn default() -> Self {
        Self {
            gateways: 3,
            clients: 60,
            with_ids: 20,
            slow: 6,
            events_per_second: 50,
            faults: 3,
            refused: 1,
            refused_undisturbed: 1,
            rounds: 1,
        }
    }
}

/// The life of a gateway process.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeLog {
    /// When the lab ended it.
    pub(crate) killed: Option<Ms>,
    /// When it was stopped, from and to.
    pub(crate) frozen: Vec<(Ms, Ms)>,
    /// It ended, and not by the lab.
    pub(crate) ended_by_itself: bool,
}

impl NodeLog {
    /// For how long of that time it was stopped.
    pub(crate) fn asleep(&self, from: Ms, to: Ms) -> Ms {
        self.frozen.iter().map(|(stop, go)| to.min(*go).saturating_sub(from.max(*stop))).sum()
    }
}

/// What kind of client it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Reads at once what comes.
    Prompt,
    /// Does not read for seconds.
    Slow,
}

/// One socket of a viewer, from its 101 to its end.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    /// Whose.
    pub(crate) client: usize,
    /// The gateway at the other end.
    pub(crate) node: Node,
    /// It asked for ids.
    pub(crate) ids: bool,
    /// How it reads.
    pub(crate) pace: Pace,
    /// It belongs to its gateway, and does not come again when that has ended.
    pub(crate) witness: bool,
    /// It is one of the many sockets of one address.
    pub(crate) crowded: bool,
    /// It named the last id of the socket before and so goes on where that ended.
    pub(crate) resumed: bool,
    /// When the 101 was read.
    pub(crate) opened: Ms,
    /// What was read, in order.
    pub(crate) heard: Vec<Heard>,
    /// When it ended.
    pub(crate) closed: Ms,
    /// How.
    pub(crate) end: Ending,
}

/// How a socket ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The viewer left because the run was over.
    Left,
    /// Closed by the gateway, with this code.
    Closed(u16),
    /// The connection broke.
    Broken,
}

/// One message, and when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heard {
    /// When.
    pub(crate) at: Ms,
    /// Its id, if it has one.
    pub(crate) id: Option<String>,
    /// What it says.
    pub(crate) what: What,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// `init`.
    Init(Shown),
    /// `realtime_update`.
    Update(Shown),
    /// `new_event` of a producer of the lab.
    Event(Number),
    /// `gap`.
    Gap {
        /// The last id that the client surely has.
        from: Option<String>,
        /// The last id that it will not get.
        to: Option<String>,
    },
    /// `ping`, and when it says that it was sent; whole seconds.
    Ping(Ms),
    /// Something that nobody published.
    Stranger(String),
}

/// A number of visitors, as it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    /// How many.
    pub(crate) visitors: u64,
    /// When they were counted; whole seconds.
    pub(crate) counted: Ms,
    /// Flagged as stale.
    pub(crate) stale: bool,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Published {
    /// When it was given away.
    pub(crate) sent: Ms,
    /// When its acceptance was known, and its id in the stream (without digest). None: refused, or no answer; it may
    /// stand in the stream all the same.
    pub(crate) accepted: Option<(Ms, String)>,
}

/// An entry of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Survivor {
    /// Its id in the stream.
    pub(crate) id: String,
    /// Which event it is.
    pub(crate) number: Option<Number>,
    /// Which slot it is the snapshot of.
    pub(crate) slot: Option<u64>,
    /// Of which reign the ticker was that wrote it.
    pub(crate) epoch: Option<u64>,
}

/// Where a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Redis, or the way to it.
    Redis,
    /// A gateway.
    Gateway,
}

/// One fault.
#[derive(Debug, Clone)]
pub(crate) struct FaultLog {
    /// Its kind, for the summary.
    pub(crate) kind: &'static str,
    /// What was done exactly.
    pub(crate) what: String,
    /// Where.
    pub(crate) part: Part,
    /// Gateways that could not reach Redis, at most: each may have gone by its own count.
    pub(crate) cut_off: usize,
    /// Redis may have lost what it had acknowledged.
    pub(crate) loses: bool,
    /// If it does: what was acknowledged from then on may be lost before any gateway has read it. What is older was there
    /// to be read.
    pub(crate) takes_from: Ms,
    /// How its effect was seen from outside.
    pub(crate) confirmed: String,
    /// When it began.
    pub(crate) begun: Ms,
    /// When the system had all that it needs again: a primary, a path, a process that runs.
    pub(crate) good: Ms,
    /// When the lab had seen that all is well, or had waited in vain, and went on.
    pub(crate) over: Ms,
}

/// The busy address was empty, and asked for as many sockets as may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Round {
    /// When it began…
    pub(crate) from: Ms,
    /// …and had all its answers.
    pub(crate) to: Ms,
    /// When it left.
    pub(crate) left: Ms,
    /// Sockets that it got…
    pub(crate) granted: usize,
    /// …of which so many ended before it left…
    pub(crate) lost: usize,
    /// …those that it did not get for the cap…
    pub(crate) refused: usize,
    /// …and those that it did not get for any other reason, or no answer in time.
    pub(crate) failed: usize,
}

/// An attempt to get one more socket for the crowded address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    /// When it was answered.
    pub(crate) at: Ms,
    /// Until when the socket was open; none when it was refused for the cap.
    pub(crate) open_until: Option<Ms>,
}
