//! Three nodes, each with its own [`Admission`], on one [`Truth`]; and an oracle that knows who holds sockets.
//!
//! Beside admission itself the world plays what surrounds it in a node: beats by [`Membership`], recovery after
//! entering, flushing, having admitted afterwards who was let in alone. The rules are those of `cluster.rs`, one to
//! one; its loops, which wait for real time and close real sockets, are tested beside it and with processes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use gateway::admission::{Admission, AdmissionSettings, Permit, Readmission, Refusal};
use gateway::backplane::{AddressHash, Admit, AdmitReply, Backplane, BeatReply, Join, Result};
use gateway::clock::Clock;
use gateway::cluster::BEAT_EVERY;
use gateway::cluster::membership::{Kept, Membership, News};
use gateway::identity::address_hash;
use gateway::metrics::Metrics;
use shared::ids::NodeId;

use super::truth::Truth;
use super::wire::{Reply, Request, Wire};

pub(super) const NODES: usize = 3;
/// Client addresses: an IPv4 address and an IPv6 network.
pub(super) const CLIENTS: usize = 2;
/// Small, so that random steps reach it often.
pub(super) const CAP: u32 = 3;
/// Time passes in pieces, in each of which every node does what is due.
const PIECE: Duration = Duration::from_millis(250);
/// The longest that nodes need to be right again once everything answers: a membership has run out, a beat says so,
/// the next step is done; with room for failures' rests.
const HEALS_WITHIN: Duration = Duration::from_secs(10);
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
fn ip(client: usize, host: u16) -> IpAddr {
    match client {
        0 => Ipv4Addr::new(192, 0, 2, 1).into(),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 1, 2, host, 0, 0, host).into(),
    }
}

fn address(client: usize) -> AddressHash {
    address_hash(&SECRET, ip(client, 0))
}

struct Node {
    id: NodeId,
    admission: Arc<Admission>,
    metrics: Arc<Metrics>,
    wire: Arc<Wire>,
    link: Link,
    paused: bool,
    membership: Membership,
    /// The backplane's process that it has heard last.
    heard: u32,
    beat_in: Duration,
    entered: u32,
    recovered: u32,
    /// Open sockets, the oldest first: whose, and what holds their place.
    sockets: Vec<(usize, Permit)>,
    handshakes: Vec<(usize, BoxFuture<'static, Result<Permit, Refusal>>)>,
    readmission: Option<BoxFuture<'static, Result<Readmission>>>,
    flush: Option<BoxFuture<'static, Result<()>>>,
    /// Something has failed and is tried again when time has passed.
    resting: bool,
    /// Whether somebody of a client was let in alone, which is still to be asked about.
    alone: [bool; CLIENTS],
}

impl Node {
    fn new(id: NodeId) -> Self {
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

    fn held(&self, client: usize) -> u32 {
        u32::try_from(self.sockets.iter().filter(|(of, _)| *of == client).count()).expect("few")
    }

    fn has_recovered(&self) -> bool {
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
    fn step(&mut self) -> bool {
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

/// See the module's documentation.
pub(super) struct World<'t, T> {
    truth: &'t T,
    nodes: Vec<Node>,
    /// Calls of connections that are gone, and whose they are. They may still arrive, until their node's next one is
    /// carried out (see the rules of [`Backplane`]; on Redis `redis_backplane/keys.rs` tests that one).
    late: Vec<(NodeId, Request)>,
    next_id: u64,
    /// Counts the backplane's processes. A real one would take its time to start; who answers is said here.
    server: u32,
}

impl<'t, T: Truth> World<'t, T> {
    /// Three members without a socket.
    pub(super) async fn new(truth: &'t T) -> Self {
        truth.lose_data().await;
        truth.save().await;
        let mut world = Self { truth, nodes: Vec::new(), late: Vec::new(), next_id: 1, server: 1 };
        for _ in 0..NODES {
            let node = world.fresh();
            world.nodes.push(node);
        }
        world.pass(PIECE).await;
        world
    }

    fn fresh(&mut self) -> Node {
        self.next_id += 1;
        Node::new(NodeId::from_random(self.next_id))
    }

    pub(super) fn connect(&mut self, node: usize, client: usize, host: u16) {
        let node = &mut self.nodes[node];
        // One who is paused accepts nobody.
        if !node.paused {
            let admission = Arc::clone(&node.admission);
            node.handshakes.push((client, async move { admission.admit(ip(client, host)).await }.boxed()));
        }
    }

    /// A client gives up while its handshake is being decided.
    pub(super) fn abandon(&mut self, node: usize, which: usize) {
        let node = &mut self.nodes[node];
        if !node.paused && !node.handshakes.is_empty() {
            drop(node.handshakes.remove(which % node.handshakes.len()));
        }
    }

    pub(super) fn disconnect(&mut self, node: usize, which: usize) {
        let node = &mut self.nodes[node];
        if !node.paused && !node.sockets.is_empty() {
            node.sockets.remove(which % node.sockets.len());
        }
    }

    pub(super) fn link(&mut self, node: usize, link: Link) {
        self.nodes[node].link = link;
    }

    /// The node's connection breaks and is made anew.
    pub(super) fn cut(&mut self, node: usize) {
        let node = &self.nodes[node];
        self.late.extend(node.wire.cut().into_iter().map(|request| (node.id, request)));
    }

    /// Carries one call out by hand.
    pub(super) async fn carry(&mut self, node: usize) {
        if self.nodes[node].link == Link::ByHand {
            self.carry_one(node).await;
        }
    }

    /// Hands one answer over.
    pub(super) fn answer(&mut self, node: usize) {
        if self.nodes[node].link == Link::ByHand {
            self.nodes[node].wire.answer();
        }
    }

    /// A call arrives whose connection is long gone.
    pub(super) async fn arrive_late(&mut self, which: usize) {
        if !self.late.is_empty() {
            let (_, request) = self.late.remove(which % self.late.len());
            let _ = self.truth.carry(&request).await;
        }
    }

    pub(super) fn pause(&mut self, node: usize) {
        self.nodes[node].paused = true;
    }

    pub(super) fn resume(&mut self, node: usize) {
        self.nodes[node].paused = false;
    }

    /// SIGKILL, and another process in its place.
    pub(super) fn kill(&mut self, node: usize) {
        self.cut(node);
        self.nodes[node] = self.fresh();
    }

    pub(super) async fn save(&self) {
        self.truth.save().await;
    }

    /// The backplane's process ends, and with it every connection; another one finds what was saved.
    pub(super) async fn restart_backplane(&mut self) {
        self.break_all();
        self.server += 1;
        self.truth.fall_back().await;
    }

    pub(super) async fn lose_data(&mut self) {
        self.break_all();
        self.truth.lose_data().await;
        self.truth.save().await;
    }

    fn break_all(&mut self) {
        self.late.clear();
        for node in &mut self.nodes {
            node.wire.cut();
        }
    }

    /// Lets time pass.
    pub(super) async fn pass(&mut self, time: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let piece = left.min(PIECE);
            left -= piece;
            tokio::time::advance(piece).await;
            self.truth.pass(piece).await;
            for index in 0..NODES {
                let node = &mut self.nodes[index];
                node.resting = false;
                node.beat_in = node.beat_in.saturating_sub(piece);
                if node.beat_in.is_zero() && !node.paused {
                    node.beat_in = BEAT_EVERY;
                    self.beat(index).await;
                }
            }
            self.settle().await;
        }
    }

    async fn beat(&mut self, index: usize) {
        loop {
            let node = &mut self.nodes[index];
            if matches!(node.link, Link::Dead | Link::Down) {
                return;
            }
            let Ok(reply) = self.truth.beat(node.id, node.membership.join()).await else { return };
            if node.link != Link::Up {
                return;
            }
            let reply = BeatReply { server: self.server.to_string(), ..reply };
            node.heard = self.server;
            node.admission.backplane_answered();
            match node.membership.heard(&reply) {
                News::Same => return,
                News::Out => {}
                News::Entered { kept } => {
                    node.admission.owe_all();
                    if kept != Kept::All {
                        node.admission.mark_left_dirty();
                    }
                    return node.entered += 1;
                }
            }
        }
    }

    /// Lets everything happen that needs no time.
    pub(super) async fn settle(&mut self) {
        loop {
            let mut moved = false;
            for index in 0..NODES {
                let node = &mut self.nodes[index];
                if !node.paused {
                    moved |= node.step();
                    if node.admission.gone().now_or_never().is_some() {
                        node.membership.told_gone();
                        self.beat(index).await;
                        moved = true;
                    }
                }
                // What a paused process has sent is on its way.
                moved |= self.move_calls(index).await;
            }
            if !moved {
                return;
            }
        }
    }

    async fn move_calls(&mut self, index: usize) -> bool {
        let mut moved = false;
        match self.nodes[index].link {
            Link::Up => {
                while self.carry_one(index).await {
                    moved = true;
                }
                while self.nodes[index].wire.answer() {
                    moved = true;
                }
            }
            Link::Mute => {
                while self.carry_one(index).await {
                    moved = true;
                }
            }
            Link::Down => moved = !self.nodes[index].wire.cut().is_empty(),
            Link::ByHand | Link::Dead => {}
        }
        moved
    }

    async fn carry_one(&mut self, index: usize) -> bool {
        let Node { id, wire, .. } = &self.nodes[index];
        let Some(call) = wire.carry() else { return false };
        self.late.retain(|(node, _)| node != id);
        let reply = self.truth.carry(&call.request).await;
        wire.done(call, reply);
        true
    }

    /// Whether the others count this node's sockets.
    async fn is_member(&self, node: NodeId) -> bool {
        let nobody = AddressHash([0xff; 16]);
        let look = Request::Admit(Admit { node, address: nobody, held: 0, wanted: 0, cap: 1 });
        !matches!(self.truth.carry(&look).await, Ok(Reply::Admit(AdmitReply::Gone)))
    }

    /// How many sockets of a client the backplane believes to be there, on all nodes.
    async fn believed(&self, client: usize) -> u32 {
        const MANY: u32 = 1000;
        let (observer, address) = (NodeId::from_random(1), address(client));
        let entered = self.truth.beat(observer, Join::Enter).await;
        entered.expect("it answers");
        let look = Request::Admit(Admit { node: observer, address, held: MANY, wanted: MANY, cap: MANY });
        let reply = self.truth.carry(&look).await.expect("it answers");
        let forget = Request::SetCounts(observer, vec![(address, 0)]);
        self.truth.carry(&forget).await.expect("it answers");
        match reply {
            Reply::Admit(AdmitReply::Granted) => 0,
            Reply::Admit(AdmitReply::Refused { counted }) => MANY - counted,
            other => panic!("{other:?}"),
        }
    }

    fn held(&self, client: usize) -> u32 {
        self.nodes.iter().map(|node| node.held(client)).sum()
    }

    /// Inv. CAP: nodes with a valid membership never hold more than the cap of sockets of one address, but for those
    /// that were let in while nobody could be asked, or are to be asked about because their node was out or the
    /// backplane fell back; and no node ever holds more by itself, which bounds those.
    pub(super) async fn check(&self) {
        let mut governed = Vec::new();
        for node in &self.nodes {
            for client in 0..CLIENTS {
                assert!(node.held(client) <= CAP, "a node over the cap by itself: {}", self.describe());
            }
            let recovered = node.has_recovered() && node.membership.is_member() && node.heard == self.server;
            if recovered && self.is_member(node.id).await {
                governed.push(node);
            }
        }
        for client in 0..CLIENTS {
            let asked = governed.iter().filter(|node| !node.alone[client]);
            let held: u32 = asked.map(|node| node.held(client)).sum();
            assert!(held <= CAP, "client {client} has {held} sockets: {}", self.describe());
        }
    }

    /// Everything answers again; within the bound everything is right again, and stays so when what was sent long ago
    /// arrives at last. Then the last place of each address can be had, and when all have left none is taken.
    pub(super) async fn heal(&mut self) {
        for node in &mut self.nodes {
            (node.paused, node.link) = (false, Link::Up);
        }
        self.settle().await;
        self.pass(HEALS_WITHIN).await;
        self.check_told("when everything answers").await;
        while !self.late.is_empty() {
            self.arrive_late(0).await;
        }
        self.check_told("when late calls have arrived").await;

        for client in 0..CLIENTS {
            for attempt in 0..NODES * CAP as usize {
                self.connect(attempt % NODES, client, u16::try_from(attempt).expect("few"));
                self.settle().await;
            }
            assert_eq!(self.held(client), CAP, "all places can be had: {}", self.describe());
        }
        self.check_told("when all places are taken").await;
        for node in &mut self.nodes {
            node.sockets.clear();
        }
        self.settle().await;
        self.check_told("when all have left").await;
    }

    async fn check_told(&self, when: &str) {
        for node in &self.nodes {
            let settled = node.has_recovered() && node.alone == [false; CLIENTS] && self.is_member(node.id).await;
            assert!(settled, "{when}, a node has not recovered: {}", self.describe());
        }
        self.check().await;
        for client in 0..CLIENTS {
            let (believed, held) = (self.believed(client).await, self.held(client));
            assert_eq!(believed, held, "{when}, client {client}: {}", self.describe());
        }
    }

    fn describe(&self) -> String {
        let describe = |node: &Node| {
            let held: Vec<u32> = (0..CLIENTS).map(|client| node.held(client)).collect();
            format!(
                "{}: {held:?}, alone {:?}, {:?}{}, entered {}, recovered {}",
                node.id,
                node.alone,
                node.link,
                if node.paused { ", paused" } else { "" },
                node.entered,
                node.recovered
            )
        };
        self.nodes.iter().map(describe).collect::<Vec<_>>().join("; ")
    }
}
