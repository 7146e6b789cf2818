//! A node as the world knows it: its own [`Admission`], and what `cluster.rs` does around it, one step at a time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use gateway::admission::{Admission, AdmissionSettings, Permit, Readmission, Refusal};
use gateway::backplane::{AddressHash, Backplane, Result};
use gateway::clock::Clock;
use gateway::cluster::membership::Membership;
use gateway::identity::address_hash;
use gateway::metrics::Metrics;
use shared::ids::NodeId;

use super::wire::Wire;

/// Client addresses: an IPv4 address and an IPv6 network.
pub(super) const CLIENTS: usize = 2;
/// Small, so that random steps reach it often.
pub(super) const CAP: u32 = 3;
const SECRET: [u8; 32] = [7; 32];

/// How a node's calls fare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// Carried out and answered.
    Up,
    /// As [`super::Step::Carry`] and [`super::Step::Answer`] say.
    ByHand,
    /// Carried out, and the answers wait.
    Mute,
    /// They wait.
    Dead,
    /// They fail at once.
    Down,
}

/// An address of the client; an IPv6 client takes whichever of its network.
pub(super) fn ip(client: usize, host: u16) -> IpAddr {
    match client {
        0 => Ipv4Addr::new(192, 0, 2, 1).into(),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 1, 2, host, 0, 0, host).into(),
    }
}

pub(super) fn address(client: usize) -> AddressHash {
    address_hash(&SECRET, ip(client, 0))
}

/// A node: admission, and what surrounds it.
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) admission: Arc<Admission>,
    metrics: Arc<Metrics>,
    pub(super) wire: Arc<Wire>,
    pub(super) link: Link,
    pub(super) paused: bool,
    pub(super) membership: Membership,
    /// The backplane's process that it has heard last.
    pub(super) heard: u32,
    pub(super) beat_in: Duration,
    pub(super) entered: u32,
    pub(super) recovered: u32,
    /// Open sockets, the oldest first: whose, and what holds their place.
    pub(super) sockets: Vec<(usize, Permit)>,
    pub(super) handshakes: Vec<(usize, BoxFuture<'static, Result<Permit, Refusal>>)>,
    readmission: Option<BoxFuture<'static, Result<Readmission>>>,
    flush: Option<BoxFuture<'static, Result<()>>>,
    /// Something has failed and is tried again when time has passed.
    pub(super) resting: bool,
    /// Whether somebody of a client was let in alone, which is still to be asked about.
    pub(super) alone: [bool; CLIENTS],
}

impl Node {
    pub(super) fn new(id: NodeId) -> Self {
        let settings = AdmissionSettings {
            max_connections: 1000,
            max_per_address: CAP,
            handshakes_per_second: 0,
            backplane_wait: Duration::from_millis(250),
            visitor_window: Duration::from_secs(300),
        };
        let (wire, metrics) = (Arc::new(Wire::default()), Arc::new(Metrics::default()));
        let port = Arc::clone(&wire) as Arc<dyn Backplane>;
        let admission = Admission::new(settings, id, port, Arc::clone(&metrics), Clock::start());
        admission.set_secret(SECRET);
        Self {
            id,
            admission,
            metrics,
            wire,
            link: Link::Up,
            paused: false,
            membership: Membership::default(),
            heard: 0,
            beat_in: Duration::ZERO,
            entered: 0,
            recovered: 0,
            sockets: Vec::new(),
            handshakes: Vec::new(),
            readmission: None,
            flush: None,
            resting: false,
            alone: [false; CLIENTS],
        }
    }

    pub(super) fn held(&self, client: usize) -> u32 {
        u32::try_from(self.sockets.iter().filter(|(of, _)| *of == client).count()).expect("few")
    }

    pub(super) fn has_recovered(&self) -> bool {
        self.entered > 0 && self.recovered == self.entered
    }

    /// Closes whom there is no room for: who came last.
    fn close_surplus(&mut self, kept: &[(AddressHash, u32)]) {
        for (over, kept) in kept {
            let mut stay = *kept;
            self.sockets.retain(|(client, _)| {
                let keep = address(*client) != *over || stay > 0;
                stay = if address(*client) == *over { stay.saturating_sub(1) } else { stay };
                keep
            });
        }
    }

    /// Whoever was let in alone, or before the node was out, has been asked about when nothing is left to ask.
    fn settle(&mut self) {
        if self.readmission.is_none() && !self.admission.owes_admission() {
            self.alone = [false; CLIENTS];
            self.recovered = self.entered;
        }
    }

    /// Polls everything under way once; true when something has happened.
    pub(super) fn step(&mut self) -> bool {
        let moved = self.step_handshakes() | self.step_chores() | self.begin_chores();
        for client in 0..CLIENTS {
            // Nobody asks about sockets that are gone.
            self.alone[client] &= self.held(client) > 0;
        }
        moved
    }

    fn step_handshakes(&mut self) -> bool {
        let before = self.handshakes.len();
        let mut waiting = Vec::new();
        for (client, mut handshake) in std::mem::take(&mut self.handshakes) {
            let alone = self.metrics.admissions_alone.value();
            match (&mut handshake).now_or_never() {
                None => waiting.push((client, handshake)),
                Some(Ok(permit)) => {
                    self.alone[client] |= self.metrics.admissions_alone.value() > alone;
                    self.sockets.push((client, permit));
                }
                Some(Err(refusal)) => assert_eq!(refusal, Refusal::AddressCap),
            }
        }
        self.handshakes = waiting;
        self.handshakes.len() < before
    }

    fn step_chores(&mut self) -> bool {
        let mut moved = false;
        if let Some(mut work) = self.readmission.take() {
            match (&mut work).now_or_never() {
                None => self.readmission = Some(work),
                Some(Ok(readmission)) => {
                    self.close_surplus(&readmission.kept);
                    self.resting |= readmission.is_stuck;
                    self.settle();
                    moved = true;
                }
                Some(Err(_)) => self.resting = true,
            }
        }
        if let Some(mut work) = self.flush.take() {
            match (&mut work).now_or_never() {
                None => self.flush = Some(work),
                Some(Ok(())) => {
                    self.admission.backplane_answered();
                    moved = true;
                }
                Some(Err(_)) => self.resting = true,
            }
        }
        moved
    }

    fn begin_chores(&mut self) -> bool {
        if self.resting || self.entered == 0 {
            return false;
        }
        let admission = Arc::clone(&self.admission);
        if self.readmission.is_none() && self.admission.owes_admission() {
            self.readmission = Some(async move { admission.readmit().await }.boxed());
            return true;
        }
        self.settle();
        if self.flush.is_none() && self.admission.dirty().now_or_never().is_some() {
            self.flush = Some(async move { admission.flush_dirty().await }.boxed());
            return true;
        }
        false
    }
}
