//! What unit tests of the loops share: a backplane that can be told to fail, and to say what it was asked.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use shared::ids::{NodeId, StreamId};
use shared::message::Snapshot;
use tokio::sync::{Notify, mpsc, watch};

use crate::backplane::memory::MemoryBackplane;
use crate::backplane::{
    AddressHash, Admit, AdmitReply, Backplane, BackplaneError, BeatReply, ClaimReply, Entry, Join, Lease, Publish,
    PublishReply, Result, Salt, Salts, Tick, TickReply, Touch, TouchReply,
};

/// Which method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    Publish,
    ReadFrom,
    DistrustReads,
    Newest,
    UpTo,
    Entry,
    Snapshot,
    Claim,
    Release,
    Tick,
    Beat,
    Leave,
    Admit,
    Readmit,
    SetCounts,
    Salts,
    Touch,
    Secret,
    Legacy,
}

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is not carried out.
    Lost,
    /// It is carried out, and nobody learns of it.
    AnswerLost,
    /// It is carried out when [`Unreliable::let_pass`] says so.
    Held,
}

/// The embedded backplane behind a network that fails as it is told.
#[derive(Debug)]
pub(crate) struct Unreliable {
    inner: Mutex<Arc<MemoryBackplane>>,
    forged: Mutex<Vec<Entry>>,
    /// Those that were read already.
    planted: Mutex<Vec<Entry>>,
    down: AtomicBool,
    faults: Mutex<HashMap<Call, VecDeque<Fault>>>,
    seen: watch::Sender<HashMap<Call, usize>>,
    gate: Notify,
}

impl Unreliable {
    pub(crate) fn new(inner: Arc<MemoryBackplane>) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(inner),
            forged: Mutex::default(),
            planted: Mutex::default(),
            down: AtomicBool::new(false),
            faults: Mutex::default(),
            seen: watch::Sender::new(HashMap::new()),
            gate: Notify::new(),
        })
    }

    /// While down, every call fails.
    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// Another data set stands behind the same address.
    pub(crate) fn replace(&self, inner: Arc<MemoryBackplane>) {
        *self.inner.lock() = inner;
    }

    /// The next read finds these entries, under ids that follow where it reads.
    pub(crate) fn forge(&self, entries: impl IntoIterator<Item = Entry>) {
        self.forged.lock().extend(entries);
    }

    fn inner(&self) -> Arc<MemoryBackplane> {
        Arc::clone(&self.inner.lock())
    }

    /// The next calls of this method fail like this, one after the other.
    pub(crate) fn fail(&self, call: Call, faults: impl IntoIterator<Item = Fault>) {
        self.faults.lock().entry(call).or_default().extend(faults);
    }

    /// The calls of this method do not fail any more.
    pub(crate) fn fail_no_more(&self, call: Call) {
        self.faults.lock().remove(&call);
    }

    /// How many calls of this method have ended.
    pub(crate) fn count(&self, call: Call) -> usize {
        self.seen.borrow().get(&call).copied().unwrap_or(0)
    }

    /// Waits until `count` calls of this method have ended.
    pub(crate) async fn seen(&self, call: Call, count: usize) {
        let mut seen = self.seen.subscribe();
        let enough = seen.wait_for(|seen| seen.get(&call).is_some_and(|n| *n >= count));
        within(enough).await.expect("the sender lives");
    }

    /// Lets a call pass that is held, or the next one that will be.
    pub(crate) fn let_pass(&self) {
        self.gate.notify_one();
    }

    async fn through<T: Send>(&self, call: Call, inner: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let fault = self.faults.lock().get_mut(&call).and_then(VecDeque::pop_front);
        let result = if self.down.load(Ordering::SeqCst) {
            Err(BackplaneError::Unreachable)
        } else {
            match fault {
                None => inner.await,
                Some(Fault::Lost) => Err(BackplaneError::Unreachable),
                Some(Fault::Held) => {
                    self.gate.notified().await;
                    inner.await
                }
                Some(Fault::AnswerLost) => inner.await.and(Err(BackplaneError::Timeout)),
            }
        };
        self.seen.send_modify(|seen| *seen.entry(call).or_default() += 1);
        result
    }
}

/// What a test waits for must come within this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for what must come.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("must come in time")
}

#[async_trait]
impl Backplane for Unreliable {
    fn name(&self) -> &'static str {
        "unreliable"
    }
    async fn publish(&self, request: &Publish) -> Result<PublishReply> {
        self.through(Call::Publish, self.inner().publish(request)).await
    }
    async fn read_from(&self, after: StreamId, count: usize, block: Duration) -> Result<Vec<Entry>> {
        let forged = std::mem::take(&mut *self.forged.lock());
        if !forged.is_empty() {
            let ids = (1..).map(|n| StreamId { ms: after.ms, seq: after.seq + n });
            let forged: Vec<_> = ids.zip(forged).map(|(id, entry)| Entry { id, ..entry }).collect();
            self.planted.lock().extend(forged.iter().cloned());
            return Ok(forged);
        }
        self.through(Call::ReadFrom, self.inner().read_from(after, count, block)).await
    }
    fn distrust_reads(&self) {
        self.seen.send_modify(|seen| *seen.entry(Call::DistrustReads).or_default() += 1);
    }
    async fn newest(&self, count: usize) -> Result<Vec<Entry>> {
        self.through(Call::Newest, self.inner().newest(count)).await
    }
    async fn up_to(&self, last: StreamId, count: usize) -> Result<Vec<Entry>> {
        self.through(Call::UpTo, self.inner().up_to(last, count)).await
    }
    async fn entry(&self, id: StreamId) -> Result<Option<Entry>> {
        let planted = self.planted.lock().iter().find(|entry| entry.id == id).cloned();
        let inner = self.inner();
        let found = async { if planted.is_some() { Ok(planted) } else { inner.entry(id).await } };
        self.through(Call::Entry, found).await
    }
    async fn snapshot(&self) -> Result<Option<Snapshot>> {
        self.through(Call::Snapshot, self.inner().snapshot()).await
    }
    async fn claim(&self, node: NodeId, lease: Duration) -> Result<ClaimReply> {
        self.through(Call::Claim, self.inner().claim(node, lease)).await
    }
    async fn release(&self, lease: Lease) -> Result<()> {
        self.through(Call::Release, self.inner().release(lease)).await
    }
    async fn tick(&self, request: &Tick) -> Result<TickReply> {
        self.through(Call::Tick, self.inner().tick(request)).await
    }
    async fn beat(&self, node: NodeId, join: Join, lease: Duration) -> Result<BeatReply> {
        self.through(Call::Beat, self.inner().beat(node, join, lease)).await
    }
    async fn leave(&self, node: NodeId) -> Result<()> {
        self.through(Call::Leave, self.inner().leave(node)).await
    }
    async fn admit(&self, request: &Admit) -> Result<AdmitReply> {
        self.through(Call::Admit, self.inner().admit(request)).await
    }
    async fn readmit(&self, node: NodeId, cap: u32, held: &[(AddressHash, u32)]) -> Result<Vec<Result<AdmitReply>>> {
        self.through(Call::Readmit, self.inner().readmit(node, cap, held)).await
    }
    async fn set_counts(&self, node: NodeId, counts: &[(AddressHash, u32)]) -> Result<Vec<AddressHash>> {
        self.through(Call::SetCounts, self.inner().set_counts(node, counts)).await
    }
    async fn salts(&self, offer: &[(u64, Salt)]) -> Result<Salts> {
        self.through(Call::Salts, self.inner().salts(offer)).await
    }
    async fn touch(&self, request: &Touch) -> Result<TouchReply> {
        self.through(Call::Touch, self.inner().touch(request)).await
    }
    async fn secret(&self, held: Option<[u8; 32]>) -> Result<[u8; 32]> {
        self.through(Call::Secret, self.inner().secret(held)).await
    }
    async fn legacy(&self) -> Result<mpsc::Receiver<Bytes>> {
        self.through(Call::Legacy, self.inner().legacy()).await
    }
}
