//! Three nodes, each with its own admission, on one [`Truth`]: what can happen to them, and how time passes. What must
//! be true then is asked in `oracle.rs`.
//!
//! Beside admission itself the world plays what surrounds it in a node: beats by a `Membership`, recovery after
//! entering, flushing, having admitted afterwards who was let in alone. The rules are those of `cluster.rs`, one to
//! one; its loops, which wait for real time and close real sockets, are tested beside it and with processes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use gateway::backplane::BeatReply;
use gateway::cluster::BEAT_EVERY;
use gateway::cluster::membership::{Kept, News};
use shared::ids::NodeId;

use super::node::{Link, Node, ip};
use super::truth::Truth;
use super::wire::Request;

pub(super) const NODES: usize = 3;
/// Time passes in pieces, in each of which every node does what is due.
const PIECE: Duration = Duration::from_millis(250);

/// See the module's documentation.
pub(super) struct World<'t, T> {
    pub(super) truth: &'t T,
    pub(super) nodes: Vec<Node>,
    /// Calls of connections that are gone, and whose they are. They may still arrive, until their node's next one is
    /// carried out (see the rules of `Backplane`; on Redis `redis_backplane/keys.rs` tests that one).
    pub(super) late: Vec<(NodeId, Request)>,
    next_id: u64,
    /// Counts the backplane's processes. A real one would take its time to start; who answers is said here.
    pub(super) server: u32,
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
}
