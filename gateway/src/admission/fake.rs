//! A backplane for tests that need to hold an answer back, or to give a particular one: only admission and counts
//! exist. What a backplane really does is the contract suite's matter.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use shared::ids::{NodeId, StreamId};
use shared::message::Snapshot;
use tokio::sync::{Semaphore, mpsc};

use crate::backplane::*;

/// What the fake does with the next calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Does its work: counts this node's sockets, beside [`Fake::others`].
    Well,
    /// Never answers, though the call is carried out.
    Silent,
    /// Fails; the call is not carried out.
    Broken,
    /// Says that the node is no member.
    Gone,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Fake {
    pub(crate) mood: Mutex<Mood>,
    /// What this node has told, by address.
    pub(crate) told: Mutex<HashMap<AddressHash, u32>>,
    /// How many sockets of every address the other nodes have.
    pub(crate) others: Mutex<u32>,
    /// In the place of these addresses stands something else.
    pub(crate) corrupt: Mutex<HashSet<AddressHash>>,
    /// Questions put so far.
    pub(crate) asked: AtomicUsize,
    /// Questions of one address that were open at the same time: must never be.
    pub(crate) overlapped: AtomicBool,
    pub(crate) open: Mutex<HashMap<AddressHash, usize>>,
    /// Each call takes a permit before it answers.
    pub(crate) answers: Semaphore,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            mood: Mutex::new(Mood::Well),
            told: Mutex::default(),
            others: Mutex::new(0),
            corrupt: Mutex::default(),
            asked: AtomicUsize::new(0),
            overlapped: AtomicBool::new(false),
            open: Mutex::default(),
            answers: Semaphore::new(Semaphore::MAX_PERMITS),
        }
    }
}

/// Marks addresses as being asked about, until dropped.
struct Open<'a>(&'a Fake, Vec<AddressHash>);

impl<'a> Open<'a> {
    fn new(fake: &'a Fake, addresses: Vec<AddressHash>) -> Self {
        let mut open = fake.open.lock();
        for address in &addresses {
            let count = open.entry(*address).or_default();
            *count += 1;
            if *count > 1 {
                fake.overlapped.store(true, Ordering::Relaxed);
            }
        }
        drop(open);
        Self(fake, addresses)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let mut open = self.0.open.lock();
        for address in &self.1 {
            open.entry(*address).and_modify(|count| *count -= 1);
        }
    }
}

impl Fake {
    async fn answer<T>(&self, reply: T) -> Result<T> {
        let mood = *self.mood.lock();
        match mood {
            Mood::Silent => std::future::pending().await,
            Mood::Broken => Err(BackplaneError::Unreachable),
            Mood::Well | Mood::Gone => {
                self.answers.acquire().await.expect("never closed").forget();
                Ok(reply)
            }
        }
    }

    /// What is answered, and counted from then on.
    fn decide(&self, request: &Admit) -> Result<AdmitReply> {
        let mood = *self.mood.lock();
        if mood != Mood::Gone && self.corrupt.lock().contains(&request.address) {
            return Err(BackplaneError::Corrupt("not a count"));
        }
        let room = request.cap.saturating_sub(*self.others.lock());
        let reply = match mood {
            Mood::Gone => AdmitReply::Gone,
            _ if request.wanted <= room => AdmitReply::Granted,
            _ => AdmitReply::Refused { counted: request.held.min(room) },
        };
        let counted = match reply {
            AdmitReply::Granted => Some(request.wanted),
            AdmitReply::Refused { counted } => Some(counted),
            AdmitReply::Gone => None,
        };
        if let Some(counted) = counted.filter(|_| mood != Mood::Broken) {
            self.told.lock().insert(request.address, counted);
        }
        Ok(reply)
    }
}

#[async_trait]
impl Backplane for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    async fn admit(&self, request: &Admit) -> Result<AdmitReply> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let _open = Open::new(self, vec![request.address]);
        let reply = self.decide(request);
        self.answer(reply).await.and_then(|reply| reply)
    }

    async fn readmit(&self, node: NodeId, cap: u32, held: &[(AddressHash, u32)]) -> Result<Vec<Result<AdmitReply>>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let _open = Open::new(self, held.iter().map(|(address, _)| *address).collect());
        let again = |(address, held): &(AddressHash, u32)| {
            self.decide(&Admit { node, address: *address, held: *held, wanted: *held, cap })
        };
        let replies = held.iter().map(again).collect();
        self.answer(replies).await
    }

    async fn set_counts(&self, _node: NodeId, counts: &[(AddressHash, u32)]) -> Result<Vec<AddressHash>> {
        let _open = Open::new(self, counts.iter().map(|(address, _)| *address).collect());
        let (mut unreadable, mut noted) = (counts.to_vec(), counts.to_vec());
        unreadable.retain(|(address, _)| self.corrupt.lock().contains(address));
        noted.retain(|(address, _)| !self.corrupt.lock().contains(address));
        if *self.mood.lock() != Mood::Broken {
            self.told.lock().extend(noted);
        }
        self.answer(unreadable.into_iter().map(|(address, _)| address).collect()).await
    }

    async fn publish(&self, _request: &Publish) -> Result<PublishReply> {
        Err(BackplaneError::Unreachable)
    }
    async fn read_from(&self, _after: StreamId, _count: usize, _block: Duration) -> Result<Vec<Entry>> {
        Err(BackplaneError::Unreachable)
    }
    fn distrust_reads(&self) {}
    async fn newest(&self, _count: usize) -> Result<Vec<Entry>> {
        Err(BackplaneError::Unreachable)
    }
    async fn up_to(&self, _last: StreamId, _count: usize) -> Result<Vec<Entry>> {
        Err(BackplaneError::Unreachable)
    }
    async fn entry(&self, _id: StreamId) -> Result<Option<Entry>> {
        Err(BackplaneError::Unreachable)
    }
    async fn snapshot(&self) -> Result<Option<Snapshot>> {
        Err(BackplaneError::Unreachable)
    }
    async fn claim(&self, _node: NodeId, _lease: Duration) -> Result<ClaimReply> {
        Err(BackplaneError::Unreachable)
    }
    async fn release(&self, _lease: Lease) -> Result<()> {
        Err(BackplaneError::Unreachable)
    }
    async fn tick(&self, _request: &Tick) -> Result<TickReply> {
        Err(BackplaneError::Unreachable)
    }
    async fn beat(&self, _node: NodeId, _join: Join, _lease: Duration) -> Result<BeatReply> {
        Err(BackplaneError::Unreachable)
    }
    async fn leave(&self, _node: NodeId) -> Result<()> {
        Err(BackplaneError::Unreachable)
    }
    async fn salts(&self, _offer: &[(u64, Salt)]) -> Result<Salts> {
        Err(BackplaneError::Unreachable)
    }
    async fn touch(&self, _request: &Touch) -> Result<TouchReply> {
        Err(BackplaneError::Unreachable)
    }
    async fn secret(&self, _held: Option<[u8; 32]>) -> Result<[u8; 32]> {
        Err(BackplaneError::Unreachable)
    }
    async fn legacy(&self) -> Result<mpsc::Receiver<Bytes>> {
        Err(BackplaneError::Unreachable)
    }
}
