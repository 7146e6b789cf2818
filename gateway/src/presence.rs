//! Who is here: visitors of sockets and events, marked as seen without anybody learning who they are.
//!
//! A visitor counts while it was seen within the window. An event is seen once; an open socket is seen all the time,
//! so each node marks the visitors of its sockets again and again ([`agenda`] says when). What is marked is an HMAC
//! under the day's salt. That salt turns at the backplane's midnight, and then everybody gets another name: a mark also
//! takes the visitor's old name away, so that nobody counts twice ([`names`]).
//!
//! The backplane refuses marks under another salt than the present one (its midnight may come earlier than this node
//! thinks, or it may have lost its salt). Then the salts are fetched, offering those that the node holds, and the
//! marks are repeated.
//!
//! Bounds: who comes waits in a set of [`ARRIVALS_MAX`]; beyond it a socket's visitor waits for the next round, and an
//! event's is not counted (Inv. BOUND). No digest is ever logged (Inv. PRIVATE).

pub mod agenda;
mod names;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use shared::backoff::Backoff;
use shared::ids::NodeId;
use tokio::sync::Notify;

use self::agenda::{Agenda, Job};
use self::names::Names;
use crate::backplane::{Backplane, DAY_MS, Result, TOUCH_VISITORS_MAX, Touch, TouchReply};
use crate::clock::Clock;
use crate::cluster_time::ClusterTime;
use crate::hub::Hub;
use crate::identity::VisitorDigest;
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::Metrics;

/// Visitors who came and wait to be marked.
pub const ARRIVALS_MAX: usize = 20_000;
/// A call that was refused for its salt is made at most this often; then it waits like one that failed.
const REFUSALS_MAX: u32 = 3;
/// Waits after failures lie below this.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
const BACKOFF_BASE: Duration = Duration::from_millis(50);

/// Marks visitors as seen. Shared by all who learn of visitors; [`Presence::run`] does the work.
#[derive(Debug)]
pub struct Presence {
    backplane: Arc<dyn Backplane>,
    node: NodeId,
    window: Duration,
    metrics: Arc<Metrics>,
    clock: Clock,
    time: Arc<ClusterTime>,
    names: ArcSwapOption<Names>,
    wanted: Mutex<Wanted>,
    /// Something stands in `wanted`.
    wake: Notify,
}

/// What others asked for since the task last looked.
#[derive(Debug, Default)]
struct Wanted {
    arrivals: HashSet<VisitorDigest>,
    salts: bool,
    round: bool,
}

impl Presence {
    /// `window` is how long a visitor counts after it was last seen.
    #[must_use]
    pub fn new(
        backplane: Arc<dyn Backplane>,
        node: NodeId,
        window: Duration,
        metrics: Arc<Metrics>,
        clock: Clock,
        time: Arc<ClusterTime>,
    ) -> Arc<Self> {
        Arc::new(Self {
            backplane,
            node,
            window,
            metrics,
            clock,
            time,
            names: ArcSwapOption::empty(),
            wanted: Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// Fetches the salts for the first time.
    ///
    /// # Errors
    /// The backplane's; call it again.
    pub async fn start(&self) -> Result<()> {
        self.fetch_salts().await.map(drop)
    }

    /// `visitor` is here: it will be marked as seen within 250 ms, if the backplane answers.
    pub fn arrived(&self, visitor: VisitorDigest) {
        let mut wanted = self.wanted.lock();
        // Inv. BOUND
        if wanted.arrivals.len() < ARRIVALS_MAX {
            let is_first = wanted.arrivals.is_empty();
            wanted.arrivals.insert(visitor);
            drop(wanted);
            // The others find the task awake, or waiting for the moment at which it takes them all.
            if is_first {
                self.wake.notify_one();
            }
        }
    }

    /// The touch that marks `visitors` under the present salts; at most [`TOUCH_VISITORS_MAX`] of them. None before
    /// the salts are known.
    #[must_use]
    pub fn touch_of(&self, visitors: &[VisitorDigest]) -> Option<Touch> {
        let names = self.names.load_full()?;
        let salts = names.salts();
        let distinct: HashSet<&VisitorDigest> = visitors.iter().take(TOUCH_VISITORS_MAX).collect();
        let seen = distinct.into_iter().map(|visitor| names.of(visitor)).collect();
        Some(Touch { day: salts.day, fingerprint: salts.today.fingerprint(), seen, round_of: None })
    }

    /// The backplane refused a touch of ours: the salts are fetched anew.
    pub fn salts_refused(&self) {
        self.wanted.lock().salts = true;
        self.wake.notify_one();
    }

    /// The backplane may have lost what it knew: a round is begun at once and goes as fast as it can.
    pub fn refresh_all(&self) {
        self.wanted.lock().round = true;
        self.wake.notify_one();
    }

    /// Marks those who come and the visitors of the hub's sockets, until the process stops.
    pub async fn run(self: Arc<Self>, hub: Arc<Hub>, lifecycle: Lifecycle) {
        let visitors = || {
            let mut visitors = HashSet::with_capacity(hub.len());
            hub.for_each(|conn| {
                visitors.insert(conn.visitor());
            });
            visitors
        };
        self.drive(visitors, &lifecycle).await;
    }

    /// As [`Self::run`]; `visitors` gives the digests of all open sockets.
    pub(crate) async fn drive(&self, visitors: impl Fn() -> HashSet<VisitorDigest> + Send, lifecycle: &Lifecycle) {
        let mut agenda = Agenda::new(self.window, self.clock.now());
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_MAX);
        loop {
            self.take_wishes(&mut agenda);
            let done = match agenda.next(self.clock.now()) {
                Job::Wait(until) => {
                    let wait = until.saturating_sub(self.clock.now());
                    // Biased: an end comes before work. All three are cancel safe.
                    tokio::select! {
                        biased;
                        () = lifecycle.reached(Phase::Stopped) => return,
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep(wait) => {}
                    }
                    continue;
                }
                Job::Round(pace) => {
                    agenda.begin(visitors(), pace, self.clock.now());
                    continue;
                }
                Job::Salts => self.fetch_salts().await,
                Job::Arrivals => self.touch_arrivals().await,
                Job::Batch(batch) => {
                    let round_of = batch.last.then_some(self.node);
                    let done = self.touch(&batch.visitors, round_of).await;
                    if done.is_err() {
                        agenda.round_wanted(self.clock.now());
                    }
                    done
                }
            };
            match done {
                Ok(()) => backoff.reset(),
                Err(_) => agenda.hold(self.clock.now() + backoff.next_delay(&mut rand::rng())),
            }
            self.plan_salts(&mut agenda);
        }
    }

    fn take_wishes(&self, agenda: &mut Agenda) {
        let now = self.clock.now();
        let mut wanted = self.wanted.lock();
        if std::mem::take(&mut wanted.salts) {
            agenda.salts_wanted(now);
        }
        if std::mem::take(&mut wanted.round) {
            agenda.round_wanted(now);
        }
        if !wanted.arrivals.is_empty() {
            agenda.somebody_came(now);
        }
    }

    /// Salts serve until their day is over by the backplane's clock.
    fn plan_salts(&self, agenda: &mut Agenda) {
        if let Some(names) = self.names.load().as_ref() {
            let salts = names.salts();
            // Not before midnight: fetched early, today's would come again and again until it is there.
            let now = self.clock.now();
            let theirs = self.time.at(now).map_or(salts.now, |time| time.earliest);
            let left = (salts.day + 1).saturating_mul(DAY_MS).saturating_sub(theirs);
            agenda.salts_serve_until(now + Duration::from_millis(left.max(1)));
        }
    }

    async fn touch_arrivals(&self) -> Result<()> {
        let mut arrivals: Vec<VisitorDigest> = std::mem::take(&mut self.wanted.lock().arrivals).into_iter().collect();
        while !arrivals.is_empty() {
            let batch = arrivals.split_off(arrivals.len().saturating_sub(TOUCH_VISITORS_MAX));
            if let Err(error) = self.touch(&batch, None).await {
                batch.into_iter().chain(arrivals).for_each(|visitor| self.arrived(visitor));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Marks at most [`TOUCH_VISITORS_MAX`] visitors, under fresh salts if need be.
    async fn touch(&self, visitors: &[VisitorDigest], round_of: Option<NodeId>) -> Result<()> {
        for _ in 0..REFUSALS_MAX {
            let Some(touch) = self.touch_of(visitors) else {
                self.fetch_salts().await?;
                continue;
            };
            match self.backplane.touch(&Touch { round_of, ..touch }).await? {
                TouchReply::Done => {
                    self.metrics.visitors_touched.add(visitors.len() as u64);
                    return Ok(());
                }
                TouchReply::Refused => self.fetch_salts().await?,
            }
        }
        Err(crate::backplane::BackplaneError::Corrupt("touches are refused under the salts just fetched"))
    }

    async fn fetch_salts(&self) -> Result<()> {
        let held = self.names.load_full();
        let offer = held.as_ref().map(|held| held.offer()).unwrap_or_default();
        let sent = self.clock.now();
        let salts = self.backplane.salts(&offer).await?;
        self.time.learned(sent, salts.now);
        self.names.store(Some(Arc::new(Names::next(held.as_deref(), salts))));
        Ok(())
    }
}

#[cfg(test)]
mod fire;
#[cfg(test)]
mod tests;
