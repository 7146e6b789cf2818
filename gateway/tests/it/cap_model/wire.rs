//! What lies between a node and the backplane: calls that wait, are carried out without an answer, come too late.
//!
//! Nothing happens by itself. A call stands in line until the test carries it out, and its answer until the test
//! hands it over; a caller that has gone meanwhile changes nothing of that, as it does not on a real network.

use std::collections::VecDeque;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use gateway::backplane::{
    AddressHash, Admit, AdmitReply, Backplane, BackplaneError, BeatReply, ClaimReply, Entry, Join, Lease, Publish,
    PublishReply, Result, Salt, Salts, Tick, TickReply, Touch, TouchReply,
};
use parking_lot::Mutex;
use shared::ids::{NodeId, StreamId};
use shared::message::Snapshot;
use tokio::sync::{mpsc, oneshot};

/// What admission asks of the backplane.
#[derive(Debug, Clone)]
pub(super) enum Request {
    Admit(Admit),
    Readmit(NodeId, u32, Vec<(AddressHash, u32)>),
    SetCounts(NodeId, Vec<(AddressHash, u32)>),
}

/// What is answered to it.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    Admit(AdmitReply),
    Readmit(Vec<Result<AdmitReply>>),
    SetCounts(Vec<AddressHash>),
}

#[derive(Debug)]
struct Call {
    request: Request,
    answer: oneshot::Sender<Result<Reply>>,
}

#[derive(Debug, Default)]
struct Lines {
    /// Sent, and not carried out.
    sent: VecDeque<Call>,
    /// Carried out, and not answered.
    done: VecDeque<(oneshot::Sender<Result<Reply>>, Result<Reply>)>,
}

/// A node's connection.
#[derive(Debug, Default)]
pub(super) struct Wire(Mutex<Lines>);

/// A call on its way to the backplane.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) request: Request,
    answer: oneshot::Sender<Result<Reply>>,
}

impl Wire {
    /// Takes the oldest call, to be carried out; [`Self::done`] has to follow.
    pub(super) fn carry(&self) -> Option<Carried> {
        self.0.lock().sent.pop_front().map(|Call { request, answer }| Carried { request, answer })
    }

    /// The call was carried out.
    pub(super) fn done(&self, call: Carried, reply: Result<Reply>) {
        self.0.lock().done.push_back((call.answer, reply));
    }

    /// Hands the oldest answer over; false when there is none.
    pub(super) fn answer(&self) -> bool {
        let oldest = self.0.lock().done.pop_front();
        // Whoever asked may be gone.
        oldest.map(|(caller, reply)| drop(caller.send(reply))).is_some()
    }

    /// The connection is gone: nobody gets an answer. What was sent and not carried out may still arrive.
    pub(super) fn cut(&self) -> Vec<Request> {
        let Lines { sent, .. } = std::mem::take(&mut *self.0.lock());
        sent.into_iter().map(|call| call.request).collect()
    }

    async fn call(&self, request: Request) -> Result<Reply> {
        let (answer, answered) = oneshot::channel();
        self.0.lock().sent.push_back(Call { request, answer });
        answered.await.unwrap_or(Err(BackplaneError::Unreachable))
    }
}

const NOT_ASKED: BackplaneError = BackplaneError::Corrupt("admission does not ask this");

#[async_trait]
impl Backplane for Wire {
    fn name(&self) -> &'static str {
        "wire"
    }
    async fn admit(&self, request: &Admit) -> Result<AdmitReply> {
        match self.call(Request::Admit(*request)).await? {
            Reply::Admit(reply) => Ok(reply),
            Reply::Readmit(_) | Reply::SetCounts(_) => Err(NOT_ASKED),
        }
    }
    async fn readmit(&self, node: NodeId, cap: u32, held: &[(AddressHash, u32)]) -> Result<Vec<Result<AdmitReply>>> {
        match self.call(Request::Readmit(node, cap, held.to_vec())).await? {
            Reply::Readmit(replies) => Ok(replies),
            Reply::Admit(_) | Reply::SetCounts(_) => Err(NOT_ASKED),
        }
    }
    async fn set_counts(&self, node: NodeId, counts: &[(AddressHash, u32)]) -> Result<Vec<AddressHash>> {
        match self.call(Request::SetCounts(node, counts.to_vec())).await? {
            Reply::SetCounts(unreadable) => Ok(unreadable),
            Reply::Admit(_) | Reply::Readmit(_) => Err(NOT_ASKED),
        }
    }
    async fn publish(&self, _request: &Publish) -> Result<PublishReply> {
        Err(NOT_ASKED)
    }
    async fn read_from(&self, _after: StreamId, _count: usize, _block: Duration) -> Result<Vec<Entry>> {
        Err(NOT_ASKED)
    }
    fn distrust_reads(&self) {}
    async fn newest(&self, _count: usize) -> Result<Vec<Entry>> {
        Err(NOT_ASKED)
    }
    async fn up_to(&self, _last: StreamId, _count: usize) -> Result<Vec<Entry>> {
        Err(NOT_ASKED)
    }
    async fn entry(&self, _id: StreamId) -> Result<Option<Entry>> {
        Err(NOT_ASKED)
    }
    async fn snapshot(&self) -> Result<Option<Snapshot>> {
        Err(NOT_ASKED)
    }
    async fn claim(&self, _node: NodeId, _lease: Duration) -> Result<ClaimReply> {
        Err(NOT_ASKED)
    }
    async fn release(&self, _lease: Lease) -> Result<()> {
        Err(NOT_ASKED)
    }
    async fn tick(&self, _request: &Tick) -> Result<TickReply> {
        Err(NOT_ASKED)
    }
    async fn beat(&self, _node: NodeId, _join: Join, _lease: Duration) -> Result<BeatReply> {
        Err(NOT_ASKED)
    }
    async fn leave(&self, _node: NodeId) -> Result<()> {
        Err(NOT_ASKED)
    }
    async fn salts(&self, _offer: &[(u64, Salt)]) -> Result<Salts> {
        Err(NOT_ASKED)
    }
    async fn touch(&self, _request: &Touch) -> Result<TouchReply> {
        Err(NOT_ASKED)
    }
    async fn secret(&self, _held: Option<[u8; 32]>) -> Result<[u8; 32]> {
        Err(NOT_ASKED)
    }
    async fn legacy(&self) -> Result<mpsc::Receiver<Bytes>> {
        Err(NOT_ASKED)
    }
}
