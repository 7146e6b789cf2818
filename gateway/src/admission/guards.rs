//! What admission takes on behalf of a socket, and gives back by being dropped: from wherever, also when the future that
//! holds it is cancelled. Nothing here is given back by a call that somebody could forget.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::counts::{OverCap, Told};
use super::{Admission, Refusal};
use crate::backplane::{self, AddressHash};
use crate::hub::SocketPermit;

/// The turns of addresses, all of whose sockets are asked about. What gets no answer, however that comes, has to be
/// asked about again.
pub(super) struct Inquiry<'a> {
    admission: &'a Admission,
    pub(super) held: Vec<(AddressHash, u32)>,
    /// What has come of each.
    pub(super) told: Vec<Told>,
}

impl<'a> Inquiry<'a> {
    /// Takes the turns of up to `max` addresses that have to be asked about, and waits while others have those of all
    /// of them. None when there is none. Cancel safe.
    pub(super) async fn begin(admission: &'a Admission, max: usize) -> Option<Self> {
        let rings = admission.turns.notified();
        tokio::pin!(rings);
        loop {
            // Listening before looking: a turn that is given back in between is not missed.
            rings.as_mut().enable();
            let (held, is_owed) = {
                let mut counts = admission.counts.lock();
                (counts.begin_admissions(max), counts.owes_admission())
            };
            if !held.is_empty() {
                return Some(Self { admission, told: vec![Told::Unsure; held.len()], held });
            }
            if !is_owed {
                return None;
            }
            rings.as_mut().await;
            rings.set(admission.turns.notified());
        }
    }
}

impl Drop for Inquiry<'_> {
    fn drop(&mut self) {
        let mut counts = self.admission.counts.lock();
        for ((address, _), told) in self.held.iter().zip(&self.told) {
            if *told == Told::Unsure {
                counts.owe_admission(*address);
            }
            counts.end(*address, *told);
        }
        drop(counts);
        self.admission.turns.notify_waiters();
        self.admission.work.notify_one();
    }
}

/// The right to hold one socket: a place on the node and, under the cap, one of its address. Dropping it gives both
/// back.
#[derive(Debug)]
pub struct Permit {
    pub(super) seat: Seat,
    pub(super) address: AddressHash,
}

impl Permit {
    /// Whose socket it is.
    #[must_use]
    pub fn address(&self) -> AddressHash {
        self.address
    }
}

impl SocketPermit for Permit {
    fn address(&self) -> AddressHash {
        self.address
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let admission = &self.seat.0;
        if admission.settings.max_per_address > 0 {
            admission.counts.lock().release(self.address);
            admission.work.notify_one();
        }
    }
}

/// A place on the node.
#[derive(Debug)]
pub(super) struct Seat(Arc<Admission>);

impl Seat {
    pub(super) fn take(admission: &Arc<Admission>) -> Result<Self, Refusal> {
        let max = admission.settings.max_connections;
        let one_more = |taken: u32| (taken < max).then_some(taken + 1);
        admission
            .connections
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .map(|_| Self(Arc::clone(admission)))
            .map_err(|_| Refusal::Full)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place of the address that is set aside while its handshake is being decided.
pub(super) struct Reservation<'a> {
    pub(super) admission: &'a Admission,
    pub(super) address: AddressHash,
    pub(super) held: bool,
}

impl<'a> Reservation<'a> {
    pub(super) fn take(admission: &'a Admission, address: AddressHash) -> Result<Self, Refusal> {
        let cap = admission.settings.max_per_address;
        admission.counts.lock().reserve(address, cap).map_err(|OverCap| Refusal::AddressCap)?;
        Ok(Self { admission, address, held: false })
    }

    /// It becomes a socket's, though the cluster was not asked.
    pub(super) fn hold_alone(mut self) {
        self.held = true;
        self.admission.counts.lock().hold_alone(self.address);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.held {
            self.admission.counts.lock().unreserve(self.address);
        }
    }
}

/// The exclusive right to talk to the backplane about an address.
pub(super) struct Turn<'a> {
    pub(super) admission: &'a Admission,
    pub(super) address: AddressHash,
    /// How many sockets the address had when the turn began.
    pub(super) held: u32,
    pub(super) told: Told,
}

impl<'a> Turn<'a> {
    /// Waits until nobody else has it, as long as turns are given back within the time that an answer may take: so many
    /// handshakes of one address may be before this one. None when the backplane is silent, and then the node is alone. Cancel safe.
    pub(super) async fn take_unless_silent(admission: &'a Admission, address: AddressHash) -> Option<Self> {
        let rings = admission.turns.notified();
        tokio::pin!(rings);
        loop {
            // Listening before looking: a turn that is given back in between is not missed.
            rings.as_mut().enable();
            if admission.is_alone() {
                return None;
            }
            if let Some(held) = admission.counts.lock().begin(address) {
                return Some(Self { admission, address, held, told: Told::Unsure });
            }
            if tokio::time::timeout(admission.settings.backplane_wait, rings.as_mut()).await.is_err() {
                admission.alone.store(true, Ordering::Relaxed);
                return None;
            }
            rings.set(admission.turns.notified());
        }
    }

    /// The new socket is counted.
    pub(super) fn grant(mut self, mut reservation: Reservation<'_>) {
        // One step: were the turn given back first, a flush could tell the count without the new socket after it.
        let mut counts = self.admission.counts.lock();
        counts.hold(self.address, Told::Yes);
        reservation.held = true;
        self.told = Told::Yes;
        drop(counts);
    }

    /// There is no room; the backplane counts `counted` of this node.
    pub(super) fn refuse(mut self, counted: u32) {
        self.told = if counted == self.held { Told::Yes } else { Told::Unsure };
    }

    /// What stands there is no count, so the question has no answer.
    pub(super) fn unreadable(mut self) {
        self.told = Told::Unreadable;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let is_dirty = self.admission.counts.lock().end(self.address, self.told);
        self.admission.turns.notify_waiters();
        if is_dirty {
            self.admission.work.notify_one();
        }
    }
}

/// The turns of some dirty addresses.
pub(super) struct Batch<'a> {
    pub(super) admission: &'a Admission,
    pub(super) counts: Vec<(AddressHash, u32)>,
    told: Told,
    /// Those for which there is no place.
    unreadable: HashSet<AddressHash>,
}

impl<'a> Batch<'a> {
    pub(super) fn begin(admission: &'a Admission, max: usize) -> Self {
        let counts = admission.counts.lock().begin_batch(max);
        Self { admission, counts, told: Told::Unsure, unreadable: HashSet::new() }
    }

    pub(super) async fn tell(mut self) -> backplane::Result<()> {
        let unreadable = self.admission.backplane.set_counts(self.admission.node, &self.counts).await?;
        self.unreadable = unreadable.into_iter().collect();
        self.told = Told::Yes;
        self.admission.backplane_answered();
        Ok(())
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let mut counts = self.admission.counts.lock();
        for (address, _) in &self.counts {
            let told = if self.unreadable.contains(address) { Told::Unreadable } else { self.told };
            counts.end(*address, told);
        }
        drop(counts);
        self.admission.turns.notify_waiters();
        self.admission.work.notify_one();
    }
}
