//! This node's membership in the cluster: the beat, and what must be done when it was lost.
//!
//! Others count a node's sockets against the cap of an address only while the node's lease holds. So a node that was
//! away (its process stopped, or its connection did) has to know that it was, and must not go on as if nothing had
//! happened: meanwhile others have let sockets in, in the place of its own. It enters again, and before the count of an
//! address is told anew, it is admitted anew; what does not fit is closed (Inv. CAP). That is all, where only the lease
//! ran out. Where another process answers than before, what was told last may be lost: visitors are marked again, and
//! the end of sockets is told again. A data set of another name means that *all* was lost: the relay checks its place in
//! the stream, too.
//!
//! Several loops run in one task. They are apart because having ten thousand addresses admitted again takes its time, and
//! neither the beat nor those who leave must wait for it:
//! - the beat renews the lease, and says when the node has entered anew ([`membership`] decides);
//! - recovery then learns the cluster's secret;
//! - sockets that have to be admitted are, those of before the entering as well as those that were let in while nobody
//!   could be asked: a call at a time, with rests ([`pace`]), so that a fleet which enters at once harms nobody. Where
//!   something else stands in an address's place, that is asked about again each second, apart from all others;
//! - the flush tells the counts of addresses that have changed, but for those that have still to be admitted.
//!
//! At the end the node leaves, when its last socket is gone: until then its sockets are still counted.

pub mod membership;
pub mod pace;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use shared::backoff::Backoff;
use shared::close::CloseReason;
use shared::ids::{ConnId, NodeId};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use self::membership::{Kept, Membership, News};
use crate::admission::{Admission, Readmission};
use crate::backplane::{AddressHash, Backplane, BackplaneError, MEMBER_LEASE, Result};
use crate::clock::{Clock, Mono};
use crate::cluster_time::ClusterTime;
use crate::hub::Hub;
use crate::lifecycle::{Lifecycle, Phase};
use crate::planted::{self, Bug};
use crate::presence::Presence;
use crate::vitals::{Loop, Vitals};

/// From beat to beat.
pub const BEAT_EVERY: Duration = Duration::from_millis(1_500);
/// Changed counts gather for this long before they are told.
pub const FLUSH_AFTER: Duration = Duration::from_millis(20);
/// All sockets are admitted anew this often, whatever happened to their counts: well within the hour after which those
/// expire. It bounds for how long sockets may live that nobody counts, as somebody has removed their count.
pub const REWRITE_EVERY: Duration = Duration::from_secs(20 * 60);
/// Where something else than counts stood in an address's place is asked about again after this: so soon after an operator
/// has removed it, the address has its cap again.
pub const ASK_AGAIN_EVERY: Duration = Duration::from_secs(1);
/// The last flush and the farewell take at most this long each.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
const BACKOFF_BASE: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// What the membership stands on.
#[derive(Debug)]
pub struct ClusterParts {
    /// Where members are known.
    pub backplane: Arc<dyn Backplane>,
    /// This node.
    pub node: NodeId,
    /// Whose counts are told.
    pub admission: Arc<Admission>,
    /// Where surplus sockets are closed.
    pub hub: Arc<Hub>,
    /// Marks all visitors again.
    pub presence: Arc<Presence>,
    /// Where the beat shows that it lives.
    pub vitals: Arc<Vitals>,
    /// The node's clock.
    pub clock: Clock,
    /// Learns the backplane's.
    pub time: Arc<ClusterTime>,
}

/// What is known of the cluster, for `/healthz`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Whether the others count this node's sockets, by the last beat that was answered.
    pub is_member: bool,
    /// Members, by the same.
    pub members: u32,
    /// The name of the data set.
    pub generation: Option<String>,
    /// When a beat was last answered, on the node's clock.
    pub answered_at: Option<Mono>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Cluster {
    parts: ClusterParts,
    report: watch::Sender<Report>,
    /// Counts the data sets seen.
    data_set: watch::Sender<u64>,
    /// Counts the times that the node entered; the secret is to be learned anew for each.
    entered: watch::Sender<u64>,
    /// The last time of `entered` that was recovered from.
    recovered: watch::Sender<u64>,
}

impl Cluster {
    /// A node that is no member yet.
    #[must_use]
    pub fn new(parts: ClusterParts) -> Self {
        let report = watch::Sender::new(Report::default());
        let zero = || watch::Sender::new(0);
        Self { parts, report, data_set: zero(), entered: zero(), recovered: zero() }
    }

    /// Follows what is known of the cluster.
    #[must_use]
    pub fn report(&self) -> watch::Receiver<Report> {
        self.report.subscribe()
    }

    /// Changes when the backplane's data set is another one than before.
    #[must_use]
    pub fn data_set(&self) -> watch::Receiver<u64> {
        self.data_set.subscribe()
    }

    /// Is a member until the process stops, then leaves. Essential: a node that does not beat is none.
    pub async fn run(self, lifecycle: Lifecycle) {
        // Biased: the end first. The loops may be left between any two steps: what they tell is told again by others
        // below, or not needed any more.
        tokio::select! {
            biased;
            () = lifecycle.reached(Phase::Stopped) => {}
            () = self.beat() => {}
            () = self.recover() => {}
            () = self.readmit() => {}
            () = self.flush() => {}
            () = self.rewrite() => {}
            () = self.ask_again() => {}
        }
        let _ = timeout(FAREWELL_MAX, self.parts.admission.flush_dirty()).await;
        let farewell = timeout(FAREWELL_MAX, self.parts.backplane.leave(self.parts.node)).await;
        if !matches!(farewell, Ok(Ok(()))) {
            tracing::warn!("could not leave the cluster; the membership runs out by itself");
        }
    }

    async fn beat(&self) {
        let mut membership = Membership::default();
        let mut told = None;
        let mut beats = interval(BEAT_EVERY);
        // A beat that took long is followed by one after a whole period, not by a burst.
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.parts.vitals.moved(Loop::Beat);
            // Biased: being told that one is out comes before the routine. Both are cancel safe.
            tokio::select! {
                biased;
                () = self.parts.admission.gone() => membership.told_gone(),
                _ = beats.tick() => {}
            }
            // Out, or in another data set, is followed by entering at once.
            while self.beat_once(&mut membership, &mut told).await == Some(News::Out) {}
        }
    }

    /// None when there was no answer.
    async fn beat_once(&self, membership: &mut Membership, told: &mut Option<BackplaneError>) -> Option<News> {
        let parts = &self.parts;
        parts.vitals.moved(Loop::Beat);
        // The lease counts from when the backplane gets the beat, which is after this. The call's own bound keeps it
        // shorter than the lease, unless the process sleeps; then the next beat tells.
        let sent = parts.clock.now();
        let reply = match parts.backplane.beat(parts.node, membership.join(), MEMBER_LEASE).await {
            Ok(reply) => reply,
            Err(error) => {
                tell_once(told, error);
                return None;
            }
        };
        *told = None;
        parts.time.learned(sent, reply.now);
        parts.admission.backplane_answered();
        let news = membership.heard(&reply);
        self.report.send_replace(Report {
            is_member: membership.is_member(),
            members: reply.members,
            generation: Some(reply.generation),
            answered_at: Some(parts.clock.now()),
        });
        match news {
            News::Same => {}
            News::Out => tracing::warn!("what this node told the cluster may be lost; entering again"),
            News::Entered { kept } => {
                tracing::info!(members = reply.members, "entered the cluster");
                if kept == Kept::Nothing {
                    tracing::warn!("the backplane holds another data set than before");
                    self.data_set.send_modify(|n| *n += 1);
                }
                if !(kept == Kept::Nothing && planted::has(Bug::NoReregistration)) {
                    self.tell_again(kept);
                }
            }
        }
        Some(news)
    }

    /// Sees to it that the others learn what they may not know of this node any more.
    fn tell_again(&self, kept: Kept) {
        // Inv. CAP: before the flush can tell anything.
        self.parts.admission.owe_all();
        if kept != Kept::All {
            self.parts.admission.mark_left_dirty();
            self.parts.presence.refresh_all();
        }
        self.entered.send_modify(|n| *n += 1);
    }

    /// Does what else must be done after each entering, until it has succeeded.
    async fn recover(&self) {
        let mut entered = self.entered.subscribe();
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_MAX);
        loop {
            let done = *self.recovered.borrow();
            // The sender lives as long as `self`, so waiting cannot fail.
            let Ok(time) = entered.wait_for(|time| *time > done).await.map(|time| *time) else { return };
            match self.learn_secret().await {
                Ok(()) => {
                    backoff.reset();
                    self.recovered.send_replace(time);
                }
                Err(error) => {
                    tracing::debug!(%error, "the cluster's secret could not be learned yet");
                    let delay = backoff.next_delay(&mut rand::rng());
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }

    /// Has the sockets admitted that have to be, call after call, as soon as there is an answer.
    async fn readmit(&self) {
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_MAX);
        loop {
            self.parts.admission.unadmitted().await;
            self.recovered_from_entering().await;
            let begun = Instant::now();
            let rest = match self.parts.admission.readmit().await {
                Ok(Readmission { kept, is_stuck: false }) => {
                    // What trickles in gathers, like counts do. And a handshake that ends while somebody of its address
                    // had to go gets the time for it: the next answer finds its socket.
                    let is_whole = kept.is_empty() && self.parts.admission.owes_admission();
                    let is_refused = !kept.is_empty();
                    if self.close_surplus(kept) == 0 && is_refused {
                        // Not open yet, for as long as a client takes to read the answer to its handshake. The next answer
                        // says the same, and every look is one at all sockets.
                        backoff.next_delay(&mut rand::rng())
                    } else {
                        backoff.reset();
                        let rest = pace::rest_after(begun.elapsed(), self.report.borrow().members);
                        if is_whole { rest } else { rest.max(FLUSH_AFTER) }
                    }
                }
                Ok(_) | Err(_) => backoff.next_delay(&mut rand::rng()),
            };
            tokio::time::sleep(rest).await;
        }
    }

    /// Waits until the node has entered and done what has to be done then.
    async fn recovered_from_entering(&self) {
        let (mut entered, mut recovered) = (self.entered.subscribe(), self.recovered.subscribe());
        // The senders live as long as `self`, so waiting cannot fail.
        let time = entered.wait_for(|time| *time > 0).await.map_or(0, |time| *time);
        let _ = recovered.wait_for(|done| *done >= time).await;
    }

    /// Learns the secret by which all nodes name addresses.
    async fn learn_secret(&self) -> Result<()> {
        let held = self.parts.admission.secret();
        let secret = self.parts.backplane.secret(held).await?;
        if held.is_some_and(|held| held != secret) {
            tracing::warn!("the backplane names addresses differently than before: sockets held now count apart");
        }
        self.parts.admission.set_secret(secret);
        Ok(())
    }

    /// Closes the sockets for which there is no room any more, and says how many those were. `kept` says how many of each
    /// address may stay.
    // Inv. CAP
    fn close_surplus(&self, kept: Vec<(AddressHash, u32)>) -> usize {
        let sockets = self.all_but_the_oldest(&kept.into_iter().collect());
        let count = sockets.len();
        if count > 0 {
            tracing::warn!(sockets = count, "closing sockets that are over their address's cap");
        }
        for id in sockets {
            // The cluster does not count it any more. Were its place kept until the client has answered, the next answer
            // would name it once more.
            self.parts.hub.give_place_back(id);
            self.parts.hub.close(id, CloseReason::Overloaded);
        }
        count
    }

    /// The sockets of these addresses but for the oldest, as many of each as is said: who came last has the least to
    /// lose. Saying who stays, not how many go, closes nobody for a socket that has ended since.
    fn all_but_the_oldest(&self, kept: &HashMap<AddressHash, u32>) -> Vec<ConnId> {
        if kept.is_empty() {
            return Vec::new();
        }
        let mut sockets: HashMap<AddressHash, Vec<ConnId>> = HashMap::new();
        self.parts.hub.for_each(|conn| {
            if let Some(address) = conn.address().filter(|address| kept.contains_key(address)) {
                sockets.entry(address).or_default().push(conn.id());
            }
        });
        let surplus = |(address, mut ids): (AddressHash, Vec<ConnId>)| {
            ids.sort_unstable();
            let stay = kept.get(&address).map_or(ids.len(), |n| ids.len().min(*n as usize));
            ids.split_off(stay)
        };
        sockets.into_iter().flat_map(surplus).collect()
    }

    /// Tells the counts of addresses that have changed.
    async fn flush(&self) {
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_MAX);
        loop {
            self.parts.admission.dirty().await;
            // Counts are told by members alone.
            self.recovered_from_entering().await;
            tokio::time::sleep(FLUSH_AFTER).await;
            match self.parts.admission.flush_dirty().await {
                Ok(()) => {
                    backoff.reset();
                    self.parts.admission.backplane_answered();
                }
                Err(_) => {
                    let delay = backoff.next_delay(&mut rand::rng());
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }

    async fn ask_again(&self) {
        loop {
            tokio::time::sleep(ASK_AGAIN_EVERY).await;
            self.parts.admission.owe_put_off();
        }
    }

    async fn rewrite(&self) {
        loop {
            tokio::time::sleep(REWRITE_EVERY).await;
            // Inv. CAP: asked, not stated. Somebody may have removed an address's counts, and others been let in since in the
            // place of those who know nothing of it; a count that is stated as a fact is compared with no cap.
            self.parts.admission.owe_all();
            self.parts.admission.mark_left_dirty();
        }
    }
}

/// Logs why this node is kept out of the cluster, where only an operator can help. That the backplane is away is told
/// by whoever holds the connection.
fn tell_once(told: &mut Option<BackplaneError>, error: BackplaneError) {
    let for_an_operator = matches!(error, BackplaneError::Corrupt(_) | BackplaneError::Incompatible(_));
    if for_an_operator && told.as_ref() != Some(&error) {
        tracing::warn!(%error, "cannot be a member of the cluster");
        *told = Some(error);
    }
}

#[cfg(test)]
mod tests;
