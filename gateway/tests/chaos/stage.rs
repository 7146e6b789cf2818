//! What everybody in a run shares: its clock, who is where, and what viewers see at the moment.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;

use gateway::clock::Clock;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::evidence::{Ms, Node, Round};

/// Whether a gateway can be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It takes sockets.
    Up,
    /// It was stopped; a load balancer would have noticed by its silence.
    Frozen,
    /// It is gone.
    Gone,
}

/// Where a gateway is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Which.
    pub(crate) node: Node,
    /// Where clients connect.
    pub(crate) public: SocketAddr,
    /// Whether they can.
    pub(crate) standing: Standing,
}

/// What a viewer sees now.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sight {
    /// It has a socket, at this gateway.
    pub(crate) at: Option<Node>,
    /// The count that it sees was made then; none while it is flagged as stale, or there is none.
    pub(crate) counted: Option<Ms>,
    /// So many visitors.
    pub(crate) visitors: u64,
    /// The newest event that it has read was sent then.
    pub(crate) newest: Ms,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Stage {
    clock: Clock,
    begun: Ms,
    /// The load balancer's table.
    pub(crate) roster: Mutex<Vec<Place>>,
    /// By viewer.
    pub(crate) sights: Mutex<Vec<Sight>>,
    /// What the busy address has found.
    pub(crate) rounds: Mutex<Vec<Round>>,
    /// The longest time for which a timer of the lab was late, in milliseconds.
    pub(crate) stall_ms: AtomicU64,
    /// The run is over: producers first…
    pub(crate) no_more_events: CancellationToken,
    /// …then slow readers hurry…
    pub(crate) hurry: CancellationToken,
    /// …then viewers leave.
    pub(crate) leave: CancellationToken,
}

impl Stage {
    pub(crate) fn new(viewers: usize) -> Self {
        Self {
            clock: Clock::start(),
            begun: Clock::wall_ms(),
            roster: Mutex::new(Vec::new()),
            sights: Mutex::new(vec![Sight::default(); viewers]),
            rounds: Mutex::new(Vec::new()),
            stall_ms: AtomicU64::new(0),
            no_more_events: CancellationToken::new(),
            hurry: CancellationToken::new(),
            leave: CancellationToken::new(),
        }
    }

    /// Now. Never goes back.
    pub(crate) fn now(&self) -> Ms {
        self.begun + Ms::try_from(self.clock.now().as_millis()).expect("a run is short")
    }

    /// Gateways that can be connected to.
    pub(crate) fn up(&self) -> Vec<Place> {
        self.roster.lock().iter().filter(|place| place.standing == Standing::Up).copied().collect()
    }

    /// Takes note of what has become of a gateway.
    pub(crate) fn stands(&self, node: Node, standing: Standing) {
        for place in self.roster.lock().iter_mut().filter(|place| place.node == node) {
            place.standing = standing;
        }
    }
}
