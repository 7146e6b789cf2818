//! The one task that reads the stream and hands its messages to the hub, in order.
//!
//! Everything that clients see after their `init` comes this way, so what goes wrong here goes wrong for all of them,
//! and the worst is silence: a reader that waits at a place which the stream will never pass looks like a quiet site.
//! The relay therefore trusts nothing but what comes back through the stream itself:
//!
//! - [`cursor`] checks with each read, after every failure, pause or silence, and when the data set is another one,
//!   that its place still exists, and announces what is missing (Inv. GAP);
//! - [`freshness`] tells clients when snapshots stay away, instead of showing the last number for ever;
//! - [`decode`] lets nothing through but public messages (Inv. ANON), and each slot's snapshot once (Inv. SLOT);
//! - [`handover`] remembers the visitors of events that no ticker may have marked, for when this node becomes one.
//!
//! A failed read is tried again after a jittered wait of at most a second, for ever; sockets are not touched. When the
//! broadcaster's queue is full the relay waits: the stream is the buffer (Inv. BOUND). When it catches up, only the
//! newest snapshot of a batch is shown, and an old one is flagged.
//!
//! A read is not cancel safe (an answer that nobody waits for is still on its connection), so whatever else is to be
//! done meanwhile is done beside it ([`Relay::attend`]), and a doubt that arises is looked into when it has ended.
//!
//! What cannot be shown is counted by reason and mentioned in the log once in a while, as a number.

pub mod cursor;
pub mod decode;
pub mod freshness;
mod handover;
pub mod recall;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use shared::backoff::Backoff;
use shared::field::VisitorId;
use shared::ids::EventId;
use shared::message::{Freshness, MessageKind, PublicMessage, Snapshot, encode_gap, encode_update};
use tokio::sync::watch;

use self::cursor::{Cursor, Gap, REMEMBERED_MAX, Verdict};
use self::decode::{SlotGate, decode};
use self::freshness::{Turn, Watch, age};
use self::handover::Handover;
use self::recall::recalled;
use crate::backplane::{Backplane, BackplaneError, Entry, Lease, Result, STREAM_ENTRIES_MAX, TickMark};
use crate::clock::{Clock, Mono};
use crate::cluster_time::ClusterTime;
use crate::hub::broadcast::{Broadcast, BroadcastSender};
use crate::hub::{Hub, State};
use crate::identity::VisitorDigest;
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::{Metrics, Relayed};
use crate::planted::{self, Bug};
use crate::presence::Presence;
use crate::vitals::{Loop, Vitals};

/// Entries of one read; fewer for a while after reads that did not end in time, as entries may be of any size.
const READ_MAX: usize = 512;
/// A place to go on from is looked for among at least this many entries, however slow the backplane is.
const LOOK_BACK_MIN: usize = 64;
/// How long a read waits for the first entry.
const READ_BLOCK: Duration = Duration::from_secs(2);
const BACKOFF_BASE: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Entries that could not be shown are mentioned in the log at most this often.
const MENTION_EVERY: Duration = Duration::from_secs(60);

/// What the relay stands on.
#[derive(Debug)]
pub struct RelayParts {
    /// Where the stream is.
    pub backplane: Arc<dyn Backplane>,
    /// Where messages go.
    pub broadcast: BroadcastSender,
    /// Gets the first state.
    pub hub: Arc<Hub>,
    /// Learns of producers' own visitors, on the ticker's node.
    pub presence: Arc<Presence>,
    /// Length of a slot.
    pub tick_interval: Duration,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where the relay shows that it lives.
    pub vitals: Arc<Vitals>,
    /// The node's clock.
    pub clock: Clock,
    /// The backplane's, as far as it is known.
    pub time: Arc<ClusterTime>,
    /// Whether this node is the ticker.
    pub is_ticker: watch::Receiver<Option<Lease>>,
    /// Changes when the backplane's data set is another one.
    pub data_set: watch::Receiver<u64>,
    /// A fault planted by a test; ignored in release builds.
    pub panic_on: Option<PanicOn>,
}

/// Where a test wants a panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PanicOn {
    /// When the first snapshot is read.
    FirstSnapshot,
}

/// Reads the stream. See the module's documentation.
#[derive(Debug)]
pub struct Relay {
    parts: RelayParts,
    cursor: Cursor,
    gate: SlotGate,
    watch: Watch,
    handover: Handover,
    /// The last snapshot that is known.
    last: Option<State>,
    /// The place in the stream must be checked before it is read.
    in_doubt: bool,
    /// The last read failed.
    reads_fail: bool,
    /// Entries of the next read.
    read_max: usize,
    /// How many entries are looked through for a place to go on from.
    look_back: usize,
    backoff: Backoff,
    /// The last wish to have the stream read to its end that was fulfilled; see [`Hub::end_asked`].
    end_read: u64,
    unmentioned: u64,
    mentioned_at: Option<Mono>,
}

impl Relay {
    /// A relay that has read nothing.
    #[must_use]
    pub fn new(parts: RelayParts) -> Self {
        let watch = Watch::new(parts.tick_interval, parts.clock.now());
        Self {
            cursor: Cursor::default(),
            gate: SlotGate::new(parts.tick_interval),
            watch,
            handover: Handover::default(),
            last: None,
            in_doubt: false,
            reads_fail: false,
            read_max: READ_MAX,
            look_back: STREAM_ENTRIES_MAX,
            backoff: Backoff::new(BACKOFF_BASE, BACKOFF_MAX),
            end_read: 0,
            unmentioned: 0,
            mentioned_at: None,
            parts,
        }
    }

    /// Reads and hands on until the process stops. Essential: without it the node is mute.
    pub async fn run(mut self, lifecycle: Lifecycle) {
        tokio::select! {
            biased;
            () = lifecycle.reached(Phase::Stopped) => {}
            () = self.relay() => {}
        }
    }

    async fn relay(&mut self) {
        while let Err(error) = self.start().await {
            self.wait_after(&error).await;
        }
        loop {
            if self.parts.data_set.has_changed().unwrap_or(false) {
                self.parts.data_set.mark_unchanged();
                self.in_doubt = true;
            }
            let step = if self.in_doubt { self.check_place().await } else { self.read().await };
            match step {
                Ok(()) => self.backoff.reset(),
                Err(error) => {
                    // Whatever answers next may be another server, with another past.
                    self.in_doubt = true;
                    self.wait_after(&error).await;
                }
            }
        }
    }

    /// Takes the place at the end of the stream, and greets with the last snapshot if that is still the truth. If it
    /// is not, the first tick has two intervals and a second to come; then the old one is shown, flagged.
    async fn start(&mut self) -> Result<()> {
        let backplane = Arc::clone(&self.parts.backplane);
        let entries = self.attend(backplane.newest(REMEMBERED_MAX)).await?;
        let marks: Vec<_> = entries.iter().map(|entry| (entry.event_id(), entry.tick)).collect();
        self.cursor = Cursor::at_end_of(&marks);
        self.parts.hub.begin_past(recalled(&entries), entries.len() == REMEMBERED_MAX);
        let newest = entries.iter().rev().find_map(snapshot_of);
        if let Some((tick, ..)) = newest {
            self.gate.admit(tick);
        }
        let stored = self.attend(backplane.snapshot()).await?;
        // Inv. SLOT: a tick between the two answers is stored already, and comes through the stream as well. So what
        // stands before the place that was taken counts, if there is any.
        let standing = newest.map(|(_, _, snapshot)| snapshot);
        if self.parts.time.at(self.parts.clock.now()).is_none() {
            // Nobody has asked yet. Whoever shows a number must know how old it is.
            self.learn_time().await?;
        }
        let Some(snapshot) = standing.or(stored) else { return Ok(()) };
        let now = self.parts.clock.now();
        let state = State { snapshot, fresh_until: self.judge(snapshot, now), id: newest.map(|(_, id, _)| id) };
        self.last = Some(state);
        if state.freshness_at(now) == Freshness::Fresh {
            // Inv. ORDER: this one alone goes past the broadcaster, as no message brings it. Were one that does told before
            // its pass, a socket that joins in between would get it twice.
            self.parts.hub.prime(state);
        }
        Ok(())
    }

    /// Reads the next entries and hands them on.
    async fn read(&mut self) -> Result<()> {
        let begun = self.parts.clock.now();
        let backplane = Arc::clone(&self.parts.backplane);
        let asked = self.read_max;
        let end_asked = self.parts.hub.end_asked();
        let read = self.attend(backplane.read_from(self.cursor.position(), asked, READ_BLOCK)).await;
        // Half of it may arrive in time: asked for the same again, it never would.
        self.read_max = if read == Err(BackplaneError::Timeout) { asked / 2 } else { asked * 2 }.clamp(1, READ_MAX);
        self.reads_fail = read.is_err();
        let entries = read?;
        let slept = self.parts.clock.now().saturating_sub(begun) > READ_BLOCK + self.parts.tick_interval;
        if slept || self.in_doubt || !self.follows(&entries).await? {
            // Read from a place that may not exist any more; it is read again once that is known.
            self.in_doubt = true;
            return Ok(());
        }
        let more_follows = entries.len() == asked;
        self.take(&entries, more_follows).await;
        if !more_follows && end_asked > self.end_read {
            // What stood in the stream when a client came that is ahead of this node is with the broadcaster now.
            let _ = self.parts.broadcast.read_to_end(end_asked).await;
            self.end_read = end_asked;
        }
        Ok(())
    }

    /// Whether nothing is missing between the cursor and these entries. What stands at the cursor after they were read
    /// stood there before, and all that came after it was read with them, as streams are trimmed from their beginning.
    // Inv. GAP: a stream that was trimmed past the cursor, or is another one, answers as if nothing were wrong. The count
    // of the next snapshot would tell, but to a client that leaves before it, nobody would.
    async fn follows(&mut self, entries: &[Entry]) -> Result<bool> {
        if entries.is_empty() || self.cursor.anchor().is_none() {
            return Ok(true);
        }
        self.place_holds().await
    }

    /// Checks that the cursor's place still leads to what comes, and finds another if it does not.
    // Inv. GAP
    async fn check_place(&mut self) -> Result<()> {
        if !self.place_holds().await? {
            let backplane = Arc::clone(&self.parts.backplane);
            let entries = self.attend(backplane.newest(self.look_back)).await;
            if entries == Err(BackplaneError::Timeout) {
                // More than can be had in one answer. What was read last lies at the end: less will do.
                self.look_back = (self.look_back / 2).max(LOOK_BACK_MIN);
            }
            let entries = entries?;
            self.look_back = STREAM_ENTRIES_MAX;
            let stream: Vec<_> = entries.iter().map(Entry::event_id).collect();
            let gap = self.cursor.reanchor(&stream);
            tracing::warn!(position = %self.cursor.position(), "the stream has lost entries; reading on");
            self.announce(gap).await;
        }
        self.in_doubt = false;
        Ok(())
    }

    async fn place_holds(&mut self) -> Result<bool> {
        if planted::has(Bug::NoCursorCheck) {
            return Ok(true);
        }
        let backplane = Arc::clone(&self.parts.backplane);
        let Some(anchor) = self.cursor.anchor() else {
            let newest = self.attend(backplane.newest(1)).await?;
            return Ok(!self.cursor.waits_in_vain(newest.last().map(|entry| entry.id)));
        };
        let there = self.attend(backplane.entry(anchor.stream)).await?;
        Ok(there.is_some_and(|entry| entry.event_id() == anchor))
    }

    /// Hands entries on, in their order.
    // Inv. ORDER: one task takes one batch after the other, and each send waits for room.
    async fn take(&mut self, entries: &[Entry], more_follows: bool) {
        let messages: Vec<_> = entries.iter().map(decode).collect();
        // Of several snapshots only the newest is news. What is older than that was true once.
        let newest = messages.iter().rposition(|message| matches!(message, Ok(PublicMessage::RealtimeUpdate(_))));
        for (index, (entry, message)) in entries.iter().zip(messages).enumerate() {
            let (verdict, gap) = self.cursor.accept(entry.event_id(), entry.tick);
            if let Some(gap) = gap {
                self.announce(gap).await;
            }
            let outcome = match (verdict, message) {
                (Verdict::Duplicate, _) => Relayed::Duplicate,
                (_, Err(reason)) => reason,
                (_, Ok(PublicMessage::RealtimeUpdate(_))) if newest != Some(index) => self.pass_over(entry).await,
                (_, Ok(PublicMessage::RealtimeUpdate(snapshot))) => {
                    match self.show(entry, snapshot, more_follows).await {
                        Relayed::Delivered => Relayed::Delivered,
                        _ => self.pass_over(entry).await,
                    }
                }
                (_, Ok(message)) => {
                    self.send(message.kind(), message.encode(), Some(entry)).await;
                    Relayed::Delivered
                }
            };
            self.count(outcome);
            if outcome == Relayed::Delivered {
                self.touch(entry);
            }
        }
        self.mention();
    }

    /// Leaves out a snapshot that another node may have shown, and whose id a client may come back with.
    async fn pass_over(&self, entry: &Entry) -> Relayed {
        let _ = self.parts.broadcast.passed(entry.event_id()).await;
        Relayed::Duplicate
    }

    /// Shows a snapshot, flagged if it is old.
    async fn show(&mut self, entry: &Entry, snapshot: Snapshot, more_follows: bool) -> Relayed {
        if cfg!(debug_assertions) && self.parts.panic_on == Some(PanicOn::FirstSnapshot) {
            panic!("planted by a test");
        }
        if !more_follows && self.age_of(snapshot, self.parts.clock.now()).is_none_or(|age| age >= self.watch.limit()) {
            // The newest that there is seems old, or of the future. That may be so, or Redis' clock was set since its last
            // reading. Before the slot is noted: silence meanwhile makes it forgotten.
            let _ = self.learn_time().await;
        }
        // Inv. SLOT
        if !entry.tick.is_some_and(|mark| self.gate.admit(mark) || planted::has(Bug::NoSlotCheck)) {
            return Relayed::Duplicate;
        }
        let now = self.parts.clock.now();
        let state = State { snapshot, fresh_until: self.judge(snapshot, now), id: Some(entry.event_id()) };
        self.last = Some(state);
        if state.freshness_at(now) == Freshness::Stale && more_follows {
            return Relayed::Duplicate;
        }
        self.send_state(state, Some(entry)).await;
        Relayed::Delivered
    }

    /// Until when a snapshot is the present truth. One that is ends the time of staleness.
    // One look at the clock for its age and for what follows from it: a pause between two would be forgotten.
    fn judge(&mut self, snapshot: Snapshot, now: Mono) -> Mono {
        let age = self.age_of(snapshot, now);
        let was_stale = self.watch.is_stale();
        let fresh_until = self.watch.came(age, now);
        if was_stale && !self.watch.is_stale() {
            self.parts.metrics.stale.set(0);
            tracing::info!("snapshots come again");
        }
        fresh_until
    }

    fn age_of(&self, snapshot: Snapshot, now: Mono) -> Option<Duration> {
        self.parts.time.at(now).and_then(|time| age(snapshot.timestamp, time))
    }

    /// Reads the backplane's clock.
    async fn learn_time(&mut self) -> Result<()> {
        let backplane = Arc::clone(&self.parts.backplane);
        let sent = self.parts.clock.now();
        let now = self.attend(backplane.salts(&[])).await?.now;
        self.parts.time.learned(sent, now);
        Ok(())
    }

    /// Runs `work` to its end; meanwhile says when snapshots stay away, and shows that the relay lives.
    async fn attend<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            self.parts.vitals.moved(Loop::Relay);
            let due = self.watch.due().saturating_sub(self.parts.clock.now());
            // Biased: what was read comes before what is missed. The work is pinned and polled again, never dropped. A
            // ticker that has ended sends no more, and is waited for no more.
            tokio::select! {
                biased;
                result = &mut work => {
                    self.parts.vitals.moved(Loop::Relay);
                    return result;
                }
                Ok(()) = self.parts.is_ticker.changed() => self.hand_over(),
                () = tokio::time::sleep(due) => self.miss().await,
            }
        }
    }

    /// No snapshot has come for too long.
    async fn miss(&mut self) {
        let now = self.parts.clock.now();
        let Some(turn) = self.watch.poll(now) else { return };
        // Silence is a reason to doubt the place, and to take whatever snapshot comes.
        self.in_doubt = true;
        self.gate.forget();
        if !self.reads_fail {
            // Somebody answers, but is it who everybody else talks to? A connection that breaks is looked after already.
            self.parts.backplane.distrust_reads();
        }
        if turn == Turn::Stale {
            self.parts.metrics.stale.set(1);
            tracing::warn!("no snapshot for two intervals; the number is shown as stale");
        }
        if let Some(last) = self.last {
            self.send_state(State { fresh_until: last.fresh_until.min(now), ..last }, None).await;
        }
    }

    async fn wait_after(&mut self, error: &BackplaneError) {
        let wait = self.backoff.next_delay(&mut rand::rng());
        tracing::debug!(%error, wait_ms = wait.as_millis(), "the stream cannot be read");
        self.attend(tokio::time::sleep(wait)).await;
    }

    async fn send_state(&self, state: State, entry: Option<&Entry>) {
        let text = encode_update(state.snapshot, state.freshness_at(self.parts.clock.now()));
        let id = entry.map(Entry::event_id);
        self.broadcast(Broadcast { kind: MessageKind::RealtimeUpdate, text, id, state: Some(state) }).await;
    }

    async fn send(&self, kind: MessageKind, text: String, entry: Option<&Entry>) {
        self.broadcast(Broadcast { kind, text, id: entry.map(Entry::event_id), state: None }).await;
    }

    /// Tells clients with ids what they will not get.
    // Inv. GAP
    async fn announce(&self, gap: Gap) {
        self.parts.metrics.gaps.add(gap.entries);
        self.send(MessageKind::Gap, encode_gap(gap.from, None), None).await;
    }

    async fn broadcast(&self, message: Broadcast) {
        // It ends only with the process; then nobody is left to be told.
        let _ = self.parts.broadcast.send(message).await;
    }

    fn is_ticker(&self) -> bool {
        self.parts.is_ticker.borrow().is_some()
    }

    /// A producer's own visitor is marked as seen by the ticker's node alone: the others read the same entry.
    fn touch(&mut self, entry: &Entry) {
        // Inv. PRIVATE: a digest from here on.
        let named = entry.visitor.as_deref().and_then(|visitor| VisitorId::parse("visitor", visitor).ok());
        match named.map(|visitor| VisitorDigest::of_id(&visitor)) {
            Some(visitor) if self.is_ticker() => self.parts.presence.arrived(visitor),
            Some(visitor) => self.handover.remember(visitor, self.parts.clock.now()),
            None => {}
        }
    }

    /// A reign has begun or ended. Who begins one marks those whom nobody may have marked.
    fn hand_over(&mut self) {
        if self.is_ticker() {
            let visitors = self.handover.take(self.parts.clock.now());
            visitors.for_each(|visitor| self.parts.presence.arrived(visitor));
        }
    }

    fn count(&mut self, outcome: Relayed) {
        self.parts.metrics.relayed.inc(outcome);
        if !matches!(outcome, Relayed::Delivered | Relayed::Duplicate) {
            self.unmentioned += 1;
        }
    }

    /// Mentions entries that could not be shown, as a number and rarely: whoever writes garbage must not fill disks.
    fn mention(&mut self) {
        let now = self.parts.clock.now();
        let quiet = self.mentioned_at.is_some_and(|at| now < at + MENTION_EVERY);
        if self.unmentioned > 0 && !quiet {
            tracing::warn!(entries = self.unmentioned, "stream entries that are no public messages were skipped");
            self.unmentioned = 0;
            self.mentioned_at = Some(now);
        }
    }
}

/// The snapshot that an entry is, if it is one that may be shown.
fn snapshot_of(entry: &Entry) -> Option<(TickMark, EventId, Snapshot)> {
    match (entry.tick, decode(entry)) {
        (Some(tick), Ok(PublicMessage::RealtimeUpdate(snapshot))) => Some((tick, entry.event_id(), snapshot)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
