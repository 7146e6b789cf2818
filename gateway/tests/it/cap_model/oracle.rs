//! What is true of the world: who holds sockets, what the backplane believes, and what must never be.

use std::time::Duration;

use gateway::backplane::{AddressHash, Admit, AdmitReply, Join};
use shared::ids::NodeId;

use super::node::{CAP, CLIENTS, Link, Node, address};
use super::truth::Truth;
use super::wire::{Reply, Request};
use super::world::{NODES, World};

/// The longest that nodes need to be right again once everything answers: a membership has run out, a beat says so,
/// the next step is done; with room for failures' rests.
const HEALS_WITHIN: Duration = Duration::from_secs(10);

impl<T: Truth> World<'_, T> {
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
