//! Walks over all sockets of a node.

use std::net::UdpSocket;
use std::sync::Arc;

use gateway::hub::bench::Walk;
use gateway::hub::broadcast::Broadcast;
use gateway::hub::{Hub, Ids, NewSocket};
use gateway::metrics::{Direction, Metrics};
use shared::message::{MessageKind, MessageKinds};
use tokio::runtime::Runtime;
use tokio_util::task::TaskTracker;

use super::meter::{Case, each};
use super::sockets;
use super::wire::{id, new_event};

const SOCKETS: u64 = 10_000;
const ROUNDS: u32 = 5;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "hub/pass of 1 message to 10,000", run: || pass(1) },
        Case { name: "hub/pass of 32 messages to 10,000", run: || pass(32) },
        Case { name: "hub/sweep over 10,000, nothing due", run: sweep },
    ]
}

/// A hub with [`SOCKETS`] sockets in all forms; everything that it has to say so far is said.
struct Rig {
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    _sink: UdpSocket,
    _runtime: Runtime,
}

impl Rig {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let sink = sockets::sink();
        let (hub, metrics) = sockets::hub();
        let tasks = TaskTracker::new();
        runtime.block_on(async {
            for n in 0..SOCKETS {
                hub.open(socket(&sink, n), &tasks);
            }
            sockets::settled(&metrics, SOCKETS).await;
        });
        Self { hub, metrics, _sink: sink, _runtime: runtime }
    }
}

/// Three of four want everything as documented, one has filters and ids.
fn socket(sink: &UdpSocket, n: u64) -> NewSocket {
    let (kinds, ids) = match n % 4 {
        0 => (MessageKinds::parse("new_event").expect("a kind"), Ids::With),
        _ => (MessageKinds::ALL, Ids::Without),
    };
    NewSocket { kinds, ids, ..sockets::viewer(sockets::stream(sink)) }
}

fn pass(messages: usize) -> u32 {
    let rig = Rig::new();
    let (mut walk, text) = (Walk::default(), new_event().encode());
    let batch = vec![Broadcast { kind: MessageKind::NewEvent, text, id: Some(id()), state: None }; messages];
    let before = rig.metrics.messages.value(Direction::Sent);
    let rounds = each(ROUNDS, || &batch, |batch| walk.pass(&rig.hub, batch));
    let sent = rig.metrics.messages.value(Direction::Sent) - before;
    assert_eq!(sent, u64::from(rounds + 1) * SOCKETS * messages as u64, "a socket was passed over");
    rounds
}

fn sweep() -> u32 {
    let rig = Rig::new();
    let mut walk = Walk::default();
    let mut seconds = 1..;
    let rounds = each(ROUNDS, || seconds.next().expect("endless"), |second| walk.sweep(&rig.hub, second));
    assert_eq!(rig.metrics.messages.value(Direction::Sent), SOCKETS, "something was due");
    rounds
}
