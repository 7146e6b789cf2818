//! Who may open a socket: handshakes per second, sockets per node, and sockets per address in the whole cluster.
//!
//! **The problem.** A cap per node is no cap: eleven sockets fit on two nodes. A shared counter that is raised and
//! lowered is wrong for ever after the first crash. And a cap that needs the backplane must not make the site
//! unreachable when the backplane is.
//!
//! **The idea.** The backplane holds, per address, each live node's *true* count ([`counts`]). A newcomer is let in by
//! one atomic question; everything else (sockets that end, answers that were lost) makes the address dirty, and the
//! node tells its count again until that is acknowledged. What a dead node held stops counting with its membership.
//!
//! **Alone.** When the backplane leaves a question unanswered for [`AdmissionSettings::backplane_wait`], the node
//! decides by its own count: for this handshake, and for all further ones at once, without asking, until the backplane has answered
//! anything again. A node that is told it is no member decides by its own count too, and asks to be entered again
//! ([`Admission::gone`]). So it does for the handshakes of one address, and goes on asking for all others, where what
//! stands in that address's place is no count: that costs the address its cap over all nodes, and nobody else anything.
//!
//! What was let in alone is not simply told: nodes that were each within the cap may be over it together. It is asked
//! about afterwards ([`Admission::readmit`]), which names the sockets that are too many; until then the cluster counts
//! those that it let in. A node that was out asks about all that it has in the same way ([`Admission::owe_all`]).
//!
//! **What comes out** is a [`Permit`]. It is the only way to a socket, and dropping it, from wherever, gives back what
//! was taken. Cancelling [`Admission::admit`] at any point does as well.
//!
//! Deliberately absent: any address in the clear beyond the handshake rate, whose states live for seconds and never
//! leave the process (Inv. PRIVATE).

#[cfg(feature = "bench")]
pub mod bench;
mod counts;
#[cfg(test)]
pub(crate) mod fake;
mod guards;
mod rate;
mod visitors;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use governor::clock::DefaultClock;
use parking_lot::Mutex;
use shared::ids::NodeId;
use tokio::sync::Notify;

use self::counts::{Counts, Told};
pub use self::guards::Permit;
use self::guards::{Batch, Inquiry, Reservation, Seat, Turn};
use self::rate::HandshakeRate;
use self::visitors::VisitorBudget;
use crate::backplane::{self, AddressHash, Admit, AdmitReply, Backplane, BackplaneError, READMIT_ADDRESSES_MAX};
use crate::clock::Clock;
use crate::identity::{VisitorDigest, address_hash};
use crate::metrics::Metrics;

/// Counts that are told to the backplane in one call.
const FLUSH_BATCH_MAX: usize = 500;
/// Pause between two looks whether what others have asked is answered.
const SETTLE_POLL: Duration = Duration::from_millis(2);

/// The limits, and how long to wait for the backplane.
#[derive(Debug, Clone, Copy)]
pub struct AdmissionSettings {
    /// The most sockets of this node.
    pub max_connections: u32,
    /// The most sockets of one address in the whole cluster; 0 turns the cap off.
    pub max_per_address: u32,
    /// Handshakes per second of one address, with a burst of four times as many; 0 turns the limit off.
    pub handshakes_per_second: u32,
    /// How long a handshake waits for an answer of the backplane before the node decides alone.
    pub backplane_wait: Duration,
    /// How long a visitor counts: the time within which an address may bring a bounded number of visitor names.
    pub visitor_window: Duration,
}

/// Why nobody is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The address has as many sockets in the cluster as it may have.
    #[error("too many sockets of this address")]
    AddressCap,
    /// The node carries all it may.
    #[error("the node is full")]
    Full,
    /// The node has not learned the cluster's secret yet.
    #[error("the node is starting")]
    NotReady,
}

/// What came of having sockets admitted again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Readmission {
    /// The addresses that have too many, and how many of each may stay: not how many must go, as some may have gone by
    /// themselves meanwhile.
    pub kept: Vec<(AddressHash, u32)>,
    /// No question has an answer of use (the node is no member): try again, but not at once.
    pub is_stuck: bool,
}

/// See the module's documentation.
pub struct Admission {
    settings: AdmissionSettings,
    node: NodeId,
    backplane: Arc<dyn Backplane>,
    metrics: Arc<Metrics>,
    clock: Clock,
    secret: ArcSwapOption<[u8; 32]>,
    rate: HandshakeRate<DefaultClock>,
    connections: AtomicU32,
    /// A plain lock: held for a few map operations, never over an await. One lock for counts, marks and turns,
    /// because a count that changes and its mark must be one step.
    counts: Mutex<Counts>,
    visitors: Mutex<VisitorBudget>,
    /// The backplane did not answer; until it does, nobody waits for it.
    alone: AtomicBool,
    /// Rings when a turn is given back.
    turns: Notify,
    /// Rings when an address became dirty, or a dirty one free.
    work: Notify,
    /// Rings when the backplane said that this node is no member.
    gone: Notify,
    /// Rings when a socket was let in alone.
    unadmitted: Notify,
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("settings", &self.settings)
            .field("connections", &self.connections)
            .field("alone", &self.alone)
            .finish_non_exhaustive()
    }
}

impl Admission {
    /// Nobody is let in before [`Self::set_secret`].
    #[must_use]
    pub fn new(
        settings: AdmissionSettings,
        node: NodeId,
        backplane: Arc<dyn Backplane>,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Arc<Self> {
        Arc::new(Self {
            settings,
            node,
            backplane,
            metrics,
            clock,
            secret: ArcSwapOption::empty(),
            rate: HandshakeRate::new(settings.handshakes_per_second, DefaultClock::default()),
            connections: AtomicU32::new(0),
            counts: Mutex::default(),
            visitors: Mutex::new(VisitorBudget::new(settings.visitor_window)),
            alone: AtomicBool::new(false),
            turns: Notify::new(),
            work: Notify::new(),
            gone: Notify::new(),
            unadmitted: Notify::new(),
        })
    }

    /// The cluster's secret, which keys the address hashes. Another one than before, which only another backplane has,
    /// holds for those who come: an address then has two names here until its old sockets are gone, but one name on
    /// all nodes.
    pub fn set_secret(&self, secret: [u8; 32]) {
        self.secret.store(Some(Arc::new(secret)));
    }

    /// The secret that the node goes by, when it has one.
    #[must_use]
    pub fn secret(&self) -> Option<[u8; 32]> {
        self.secret.load().as_deref().copied()
    }

    /// How many sockets this node has, with those that are being admitted.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.connections.load(Ordering::Relaxed) as usize
    }

    /// Counts a handshake of `ip`.
    ///
    /// # Errors
    /// When the address tries too often: how long to wait.
    pub fn check_handshake_rate(&self, ip: IpAddr) -> Result<(), Duration> {
        self.rate.check(ip)
    }

    /// Lets one socket of `ip` in. Cancel safe: a handshake that is given up gives back what it took.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn admit(self: &Arc<Self>, ip: IpAddr) -> Result<Permit, Refusal> {
        let secret = self.secret().ok_or(Refusal::NotReady)?;
        // Inv. PRIVATE: from here on the address is its keyed hash.
        let address = address_hash(&secret, ip);
        let seat = Seat::take(self)?;
        if self.settings.max_per_address > 0 {
            // Cheap before dear: an address that is full here needs no question.
            let reservation = Reservation::take(self, address)?;
            self.decide(reservation).await?;
        }
        Ok(Permit { seat, address })
    }

    /// Whether a socket of `address` may be counted as this visitor: one that the address has brought within the
    /// window, or one of the few new ones.
    #[must_use]
    pub fn new_visitor_allowed(&self, address: AddressHash, visitor: &VisitorDigest) -> bool {
        self.visitors.lock().allows(self.clock.now(), address, visitor)
    }

    /// Forgets what is over. To be called about every 30 s.
    pub fn sweep(&self) {
        self.rate.sweep();
        self.visitors.lock().sweep(self.clock.now());
        self.counts.lock().forget_left();
    }

    /// Waits until the count of some address has to be told. Cancel safe; for one waiter, who gathers for a moment
    /// before it calls [`Self::flush_dirty`], and waits longer after a failure: what failed is dirty at once again.
    pub async fn dirty(&self) {
        loop {
            // Notify keeps one ring for a waiter that comes late, so looking first cannot miss one.
            if self.counts.lock().has_work() {
                return;
            }
            self.work.notified().await;
        }
    }

    /// Tells the backplane the counts of the dirty addresses. A batch that fails stays dirty, as do addresses that a
    /// handshake is asking about.
    ///
    /// # Errors
    /// That of the first batch which fails; the rest is not tried.
    pub async fn flush_dirty(&self) -> backplane::Result<()> {
        // What becomes dirty meanwhile belongs to the next call: this one ends.
        let mut rounds = counts::DIRTY_MAX.div_ceil(FLUSH_BATCH_MAX);
        while rounds > 0 {
            let batch = Batch::begin(self, FLUSH_BATCH_MAX);
            if batch.counts.is_empty() {
                break;
            }
            batch.tell().await?;
            rounds -= 1;
        }
        Ok(())
    }

    /// Tells all counts that have changed and waits for every answer, also to what others have asked meanwhile: after
    /// that, no place which was given back before the call is counted any more. Without bound: give it one.
    ///
    /// # Errors
    /// Those of [`Self::flush_dirty`].
    pub async fn settle(&self) -> backplane::Result<()> {
        loop {
            self.flush_dirty().await?;
            if self.counts.lock().is_told() {
                return Ok(());
            }
            tokio::time::sleep(SETTLE_POLL).await;
        }
    }

    /// Has the count of every address told anew. Outside tests, those that have sockets are asked about
    /// ([`Self::owe_all`]): a count that is stated is compared with no cap.
    #[cfg(test)]
    pub(crate) fn mark_all_dirty(&self) {
        self.counts.lock().mark_all();
        self.work.notify_one();
    }

    /// Has the end of those addresses told anew whose last socket has ended within half a minute: a backplane that has
    /// forgotten it counts them.
    pub fn mark_left_dirty(&self) {
        self.counts.lock().mark_left();
        self.work.notify_one();
    }

    /// Every socket has to be admitted again, and no count is told before it was: to be called when the node has become a
    /// member anew, before anything else. And now and then: the remedy for counts that somebody has removed, and for what
    /// nobody thought of.
    pub fn owe_all(&self) {
        self.counts.lock().owe_all();
        self.unadmitted.notify_one();
    }

    /// Asks again about the addresses in whose place something else stood. To be called about every second.
    pub fn owe_put_off(&self) {
        if self.counts.lock().owe_put_off() {
            self.unadmitted.notify_one();
        }
    }

    /// Waits until there are sockets that have to be admitted. Cancel safe; for one waiter.
    pub async fn unadmitted(&self) {
        while !self.owes_admission() {
            self.unadmitted.notified().await;
        }
    }

    /// Whether there are sockets that have to be admitted.
    #[must_use]
    pub fn owes_admission(&self) -> bool {
        self.counts.lock().owes_admission()
    }

    /// Has the sockets of some addresses admitted that were let in alone, or before the node was out: one call of the
    /// backplane, to be repeated while there are more. If it is told that the node is no member, [`Self::gone`] rings.
    ///
    /// # Errors
    /// When the backplane does not answer: call it again.
    // Inv. CAP: what does not fit beside the other members' sockets is named, to be closed, until nothing is left that
    // does not fit: a socket that was let in is not yet to be found while its handshake ends.
    pub async fn readmit(&self) -> backplane::Result<Readmission> {
        let Some(mut inquiry) = Inquiry::begin(self, READMIT_ADDRESSES_MAX).await else {
            return Ok(Readmission::default());
        };
        let cap = self.settings.max_per_address;
        let replies = self.backplane.readmit(self.node, cap, &inquiry.held).await?;
        self.backplane_answered();
        let mut readmission = Readmission::default();
        for (at, reply) in replies.into_iter().enumerate().take(inquiry.held.len()) {
            match reply {
                Ok(AdmitReply::Granted) => inquiry.told[at] = Told::Yes,
                // The surplus is about to be closed; telling the larger number meanwhile would undo the answer.
                Ok(AdmitReply::Refused { counted }) => {
                    inquiry.told[at] = Told::TooMany;
                    readmission.kept.push((inquiry.held[at].0, counted));
                }
                Ok(AdmitReply::Gone) => self.gone.notify_one(),
                Err(BackplaneError::Corrupt(_)) => inquiry.told[at] = Told::Unreadable,
                Err(_) => {}
            }
        }
        readmission.is_stuck = inquiry.told.iter().all(|told| *told == Told::Unsure);
        Ok(readmission)
    }

    /// Waits until the backplane said that this node is no member. Cancel safe; for one waiter, who has to enter
    /// again and then call [`Self::owe_all`].
    pub async fn gone(&self) {
        self.gone.notified().await;
    }

    /// The backplane has answered something: handshakes ask it again.
    pub fn backplane_answered(&self) {
        self.alone.store(false, Ordering::Relaxed);
    }

    /// Whether handshakes are decided without the backplane at present.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.alone.load(Ordering::Relaxed)
    }

    /// Asks the backplane for the reserved place, or decides alone.
    async fn decide(&self, reservation: Reservation<'_>) -> Result<(), Refusal> {
        if self.is_alone() {
            return self.decide_alone(reservation);
        }
        match self.ask(reservation.address).await {
            Some((turn, AdmitReply::Granted)) => {
                self.backplane_answered();
                turn.grant(reservation);
                Ok(())
            }
            Some((turn, AdmitReply::Refused { counted })) => {
                self.backplane_answered();
                turn.refuse(counted);
                Err(Refusal::AddressCap)
            }
            Some((turn, AdmitReply::Gone)) => {
                drop(turn);
                self.gone.notify_one();
                self.decide_alone(reservation)
            }
            None => self.decide_alone(reservation),
        }
    }

    /// Puts the question, when it is the address' turn. None when there is no answer: the backplane is silent, and then
    /// the node is alone; or it holds something unexpected, which is told at once and says nothing about other addresses.
    /// Dropping the returned turn, or this future, leaves the address dirty: whether the question was carried out is
    /// not known.
    // Inv. CAP: the wait is that for one answer. Were it also that for one's turn, a client could make the node believe
    // that the backplane is silent, by handshakes that queue up behind each other.
    async fn ask(&self, address: AddressHash) -> Option<(Turn<'_>, AdmitReply)> {
        let turn = Turn::take_unless_silent(self, address).await?;
        let (held, cap) = (turn.held, self.settings.max_per_address);
        let question = Admit { node: self.node, address, held, wanted: held + 1, cap };
        match tokio::time::timeout(self.settings.backplane_wait, self.backplane.admit(&question)).await {
            Ok(Ok(reply)) => Some((turn, reply)),
            Ok(Err(BackplaneError::Corrupt(_))) => {
                turn.unreadable();
                None
            }
            Ok(Err(_)) | Err(_) => {
                // Before the turn is given back, so that whoever gets it next does not wait as well.
                self.alone.store(true, Ordering::Relaxed);
                None
            }
        }
    }

    /// The reservation is within the cap by this node's own count; that must do.
    fn decide_alone(&self, reservation: Reservation<'_>) -> Result<(), Refusal> {
        self.metrics.admissions_alone.inc();
        reservation.hold_alone();
        self.unadmitted.notify_one();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
