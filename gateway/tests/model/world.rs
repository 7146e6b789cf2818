//! The world that the checker walks through: nodes, a Redis, what is on its way between them, and what goes wrong.
//!
//! Time goes in steps of a second, for all clocks alike; within a second things happen in every order. A node that is
//! neither paused nor waiting for an answer acts in the second in which it is due, and a call is answered within its
//! second, unless a fault says otherwise: this is what makes the space finite, and costs no behaviour, as whatever is
//! later than that is what the faults are. Each fault is taken from a budget; from [`Params::trouble_ends`] on there
//! are none, and what is paused, down or under way comes to an end.
//!
//! A node is the gateway's own [`Election`], driven as `ticker.rs` drives it; what viewers get to see passes the
//! gateway's own [`SlotGate`]. What can happen is in [`crate::steps`], what must never is in [`crate::laws`].

use std::time::Duration;

use gateway::backplane::{ClaimReply, Lease, Millis};
use gateway::relay::decode::SlotGate;
use gateway::ticker::election::{Election, ElectionSettings};
use shared::ids::{Epoch, NodeId, Slot};

use crate::laws::Broken;
use crate::redis::{RULES, Redis, Rules, Verdict};

/// Seconds since the world began.
pub(crate) type Second = u64;

/// Nodes of the cluster.
pub(crate) const NODES: usize = 3;
/// Requests on their way for whose answer nobody waits; one more is lost.
pub(crate) const STRAYS_MAX: usize = 2;
/// The ticker's lease, as the gateway has it.
pub(crate) const LEASE: Duration = Duration::from_secs(3);
/// A moment at which a slot of any length used here begins, by Redis's clock.
const A_SLOT_BEGINS_MS: Millis = 1_700_000_100_000;

/// What the world is like, and how much may go wrong in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Params {
    /// Length of a slot.
    pub(crate) interval: Duration,
    /// How far into a slot the world begins.
    pub(crate) begins: Second,
    /// How many faults.
    pub(crate) faults: u8,
    /// How many of them may be stops of Redis.
    pub(crate) stops: u8,
    /// No faults from here on.
    pub(crate) trouble_ends: Second,
    /// The longest without trouble and without a new snapshot.
    pub(crate) quiet_max: Second,
    /// What Redis may forget when it stops.
    pub(crate) losses: &'static [Loss],
    /// What Redis insists on.
    pub(crate) rules: Rules,
    /// What the nodes insist on.
    pub(crate) habits: Habits,
}

impl Params {
    /// The gateway and its scripts as they are, with slots of five seconds.
    pub(crate) const REAL: Self = Self {
        interval: Duration::from_secs(5),
        begins: 1,
        faults: 2,
        stops: 1,
        trouble_ends: 5,
        quiet_max: 7,
        losses: &[Loss::Nothing, Loss::LastSecond, Loss::Everything],
        rules: RULES,
        habits: HABITS,
    };

    /// The world ends here: whatever quiet began in time has become too long.
    pub(crate) fn ends(&self) -> Second {
        self.trouble_ends + self.quiet_max + 1
    }

    pub(crate) fn redis_ms(&self, now: Second) -> Millis {
        A_SLOT_BEGINS_MS + (self.begins + now) * 1000
    }

    pub(crate) fn interval_ms(&self) -> Millis {
        self.interval.as_secs() * 1000
    }
}

/// What Redis forgets when it stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Loss {
    /// Nothing: a freeze, a network that fails, `appendfsync always`.
    Nothing,
    /// What was written in the present second: `appendfsync everysec`, or a replica that lagged and was promoted.
    LastSecond,
    /// Everything.
    Everything,
}

/// What nodes do right; each can be switched off, as [`Rules`] can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Habits {
    /// Belief counts from when the claim was sent, not from when its answer was read.
    pub(crate) believes_from_sending: bool,
    /// Data that were lost are given time to come back.
    pub(crate) waits_after_loss: bool,
    /// The relay shows no slot twice.
    pub(crate) gates_slots: bool,
}

/// As the gateway is.
pub(crate) const HABITS: Habits = Habits { believes_from_sending: true, waits_after_loss: true, gates_slots: true };

/// Everything that can differ from one moment to another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) now: Second,
    pub(crate) faults_left: u8,
    pub(crate) stops_left: u8,
    /// Something has happened to one of the nodes that start as challengers and not to the other.
    pub(crate) told_apart: bool,
    pub(crate) redis: Redis,
    /// What a stop within this second would leave. Kept only where Redis may forget its last second.
    pub(crate) synced: Redis,
    /// Redis does not answer, since then.
    pub(crate) down: Option<(Second, Loss)>,
    pub(crate) nodes: [Node; NODES],
    /// Requests whose sender has given up, or is gone. They may arrive all the same.
    pub(crate) strays: Vec<Request>,
    pub(crate) viewer: Viewer,
    /// What the laws need to remember.
    pub(crate) memory: Memory,
    pub(crate) broken: Broken,
}

/// A gateway process, or the place where one was.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(clippy::large_enum_variant, reason = "worlds are cloned by the million: without an allocation")]
pub(crate) enum Node {
    /// It crashed or was drained; how many lived here before it.
    Down {
        lives: u64,
    },
    Up(Process),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) id: NodeId,
    pub(crate) lives: u64,
    pub(crate) election: Election,
    pub(crate) paused: bool,
    /// The call whose answer it waits for.
    pub(crate) call: Option<Call>,
    /// It was told of a snapshot once, so it can notice that Redis knows of none.
    pub(crate) knows_of_data: bool,
}

impl Process {
    /// A process that starts: never the same node as any before.
    pub(crate) fn start(place: usize, lives: u64, interval: Duration) -> Self {
        let id = NodeId::from_random(10 * (place as u64 + 1) + lives);
        let election = Election::new(id, ElectionSettings { interval, lease: LEASE });
        Self { id, lives, election, paused: false, call: None, knows_of_data: false }
    }
}

/// A call that is not answered at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) sent: Second,
    pub(crate) progress: Progress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Progress {
    /// The request is on its way.
    Going,
    /// It was carried out, and the answer is on its way.
    Coming(Answer),
    /// There was nobody to take it.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    Claim(NodeId),
    Tick(Lease, Slot),
    Release(Lease),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    Claim(ClaimReply),
    Tick(Verdict, Millis),
    Released,
}

/// A browser and the relay of its node, which reads the stream as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Viewer {
    pub(crate) gate: SlotGate,
    pub(crate) last: Option<Slot>,
    /// Seconds since the last snapshot; counted as far as anybody asks.
    pub(crate) silent: Second,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Memory {
    /// The greatest epoch under which a snapshot was ever published, whatever Redis forgot since.
    pub(crate) greatest_epoch: Epoch,
    /// When Redis came back without something that it had known; as long as that excuses anything.
    pub(crate) forgot_at: Option<Second>,
    /// When Redis came back without anything; as long as that obliges anybody.
    pub(crate) emptied_at: Option<Second>,
    /// Seconds since the later of the end of trouble and the last snapshot that was seen.
    pub(crate) quiet: Second,
    /// All trouble has ended for good, and a snapshot was seen since: nothing new is to be learnt.
    pub(crate) healed: bool,
}

impl World {
    /// All nodes start at once, at a Redis that knows nothing.
    pub(crate) fn begin(params: &Params) -> Self {
        Self {
            now: 0,
            faults_left: params.faults,
            stops_left: params.stops,
            told_apart: false,
            redis: Redis::default(),
            synced: Redis::default(),
            down: None,
            nodes: std::array::from_fn(|place| Node::Up(Process::start(place, 0, params.interval))),
            strays: Vec::new(),
            viewer: Viewer { gate: SlotGate::new(params.interval), last: None, silent: 0 },
            memory: Memory::default(),
            broken: Broken::default(),
        }
    }

    pub(crate) fn own_time(&self) -> Duration {
        Duration::from_secs(self.now)
    }

    pub(crate) fn up(&self) -> impl Iterator<Item = (usize, &Process)> {
        self.nodes.iter().enumerate().filter_map(|(place, node)| match node {
            Node::Up(process) => Some((place, process)),
            Node::Down { .. } => None,
        })
    }

    pub(crate) fn process(&mut self, place: usize) -> Option<&mut Process> {
        match &mut self.nodes[place] {
            Node::Up(process) => Some(process),
            Node::Down { .. } => None,
        }
    }

    /// Something is not as it should be, for whatever reason.
    pub(crate) fn is_troubled(&self) -> bool {
        let unwell = |node: &Node| !matches!(node, Node::Up(Process { paused: false, call: None, .. }));
        self.down.is_some() || !self.strays.is_empty() || self.nodes.iter().any(unwell)
    }

    /// Something is, and it need not wait for time to go by.
    pub(crate) fn is_repairable(&self) -> bool {
        let repairable = |node: &Node| match node {
            Node::Down { .. } => true,
            Node::Up(Process { paused, call, .. }) => {
                *paused || call.is_some_and(|call| call.progress != Progress::Lost)
            }
        };
        self.down.is_some() || !self.strays.is_empty() || self.nodes.iter().any(repairable)
    }
}
