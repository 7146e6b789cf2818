//! The port through which a node shares truth with the others: a narrow trait in the domain's words.
//!
//! Nodes are stateless and any number of them may act at once, late, twice, or after they were declared dead. So
//! nothing here trusts a node's opinion of itself. What must be atomic or unique is decided *behind* this trait, by
//! a Lua script on Redis or under one lock in memory: who the ticker is, whether a slot was ticked, whether this is
//! the eleventh socket of an address, whether a publish was already done. A node proposes and obeys the answer.
//!
//! Two implementations pass one contract suite (`gateway/tests/it/contract.rs`): [`memory`] for a single node without
//! Redis, and [`redis`] for all else.
//!
//! Rules that hold for each method:
//! - Time is the backplane's: every reply that depends on time carries it ([`Millis`], Unix milliseconds).
//! - Repeating a call whose answer was lost is safe. `publish` needs its number for that; the others say what is
//!   true (`set_counts`, `touch`) or are guarded by a lease, an epoch and a slot (`tick`).
//! - What is true of sockets changes, and what a node gave up waiting for may still be under way (on a connection that
//!   broke, say). So a call of `admit`, `readmit` or `set_counts` that was given up is carried out before the node's next one of
//!   them, or never.
//! - A call ends within its bound (Redis: the command timeout, 2 s; `read_from`: its `block` + 2 s), with an answer
//!   or with a [`BackplaneError`]; an error says nothing about whether the call was carried out. Time in which the
//!   process got no CPU does not count.
//! - No method is cancel safe in the sense that dropping its future undoes it.

pub mod memory;
pub mod redis;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use shared::event::Event;
use shared::ids::{EntryDigest, Epoch, EventId, NodeId, Slot, StreamId};
use shared::message::{PublicMessage, Snapshot};
use tokio::sync::mpsc;

/// Milliseconds since the Unix epoch, on the backplane's clock.
pub type Millis = u64;

/// The stream keeps about this many entries; each of ours trims it.
pub const STREAM_ENTRIES_MAX: usize = 10_000;
/// What is kept of a field of an entry, in bytes, whoever wrote it; what is longer is no message.
// Inv. BOUND
pub const ENTRY_VALUE_BYTES_MAX: usize = 20 * 1024;
/// How long a member's beat holds: with a beat each 1.5 s, three may be missed.
pub const MEMBER_LEASE: Duration = Duration::from_secs(6);
/// A day of the salts, in milliseconds.
pub const DAY_MS: Millis = 86_400_000;
/// The longest by which an outage may lengthen the window, in milliseconds: after more, who stayed is not known from
/// who came back.
pub const HOLE_MS_MAX: Millis = 24 * 3600 * 1000;
/// The most items of one [`Publish`].
pub const PUBLISH_ITEMS_MAX: usize = shared::event::EVENTS_MAX;
/// The most visitors of one [`Touch`].
pub const TOUCH_VISITORS_MAX: usize = 500;
/// Messages of the legacy channel that wait to be moved; what comes on top is dropped and counted.
pub const LEGACY_QUEUE_MAX: usize = 4096;

/// Why the backplane gave no answer. Closed: each asks for one reaction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackplaneError {
    /// No connection, or it broke before the answer: try again later.
    #[error("backplane unreachable")]
    Unreachable,
    /// No answer in time: the call may or may not have been carried out.
    #[error("backplane did not answer in time")]
    Timeout,
    /// Too many calls wait already: this one was not sent.
    #[error("backplane queue is full")]
    Backpressure,
    /// A key holds something else than the contract says, or a reply has another shape. An operator must look.
    #[error("backplane holds something unexpected: {0}")]
    Corrupt(&'static str),
    /// The server is too old, or speaks another version of the contract.
    #[error("backplane unusable: {0}")]
    Incompatible(&'static str),
}

/// A result of the backplane.
pub type Result<T, E = BackplaneError> = std::result::Result<T, E>;

// ---------------------------------------------------------------------------------------------- the stream

/// One entry of the stream as it stands there: nothing is decoded or trusted yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub id: StreamId,
    /// Field `type`; empty when absent.
    pub kind: String,
    /// Field `data`; empty when absent.
    pub data: Bytes,
    /// Field `visitor`: a producer's own name for who caused it. To be hashed, never shown.
    pub visitor: Option<String>,
    /// Fields `slot`, `epoch` and `entries`: present and well-formed only on snapshots that a tick wrote.
    pub tick: Option<TickMark>,
    /// Field `traceparent` (W3C trace context).
    pub traceparent: Option<String>,
}

impl Entry {
    /// The id by which clients know the entry.
    #[must_use]
    pub fn event_id(&self) -> EventId {
        EventId { stream: self.id, digest: EntryDigest::of(&self.kind, &self.data) }
    }
}

/// What makes a stream entry a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TickMark {
    /// The reign that published it.
    pub epoch: Epoch,
    /// The interval that it belongs to.
    pub slot: Slot,
    /// How many entries the stream had ever got, this one included (Redis: `entries-added`).
    pub entries: u64,
}

/// One thing to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publication {
    /// An event; the backplane adds its time, or counts its theme.
    Event(Event),
    /// A message that is complete. Never a `RealtimeUpdate`: that is what [`Backplane::tick`] is for.
    Public(PublicMessage),
}

/// A request to append to the stream.
#[derive(Debug, Clone)]
pub struct Publish {
    /// Who publishes.
    pub node: NodeId,
    /// Grows by one with each new request of this node, from 1. A repeated number is answered with what came of it
    /// the first time and does nothing else; a lower one is refused as [`PublishReply::Superseded`].
    pub number: u64,
    /// Only if this lease is still held: how messages of the legacy channel are moved by exactly one node.
    pub lease: Option<Lease>,
    /// At most [`PUBLISH_ITEMS_MAX`], appended in this order, without anything between them.
    pub items: Vec<Publication>,
    /// Who caused the events: touched in the same step. A salt that has turned does not hinder the publishing.
    pub touch: Option<Touch>,
    /// W3C trace context of the request, stored with the entries.
    pub traceparent: Option<String>,
}

/// What came of a [`Publish`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishReply {
    /// Done, now or when this number came first.
    Done {
        /// The ids of the items, in their order.
        ids: Vec<EventId>,
        /// What became of the touch; `Refused` means: fetch the salts and touch again.
        touch: TouchReply,
    },
    /// The lease is no longer held; nothing was done.
    Fenced,
    /// A later number of this node was already carried out; nothing was done.
    Superseded,
}

// ---------------------------------------------------------------------------------------------- the ticker

/// The right to tick: a node and its reign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The holder.
    pub node: NodeId,
    /// The reign.
    pub epoch: Epoch,
}

/// What a node that wants to be, or to stay, the ticker is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClaimReply {
    /// The lease, if the asking node holds it now.
    pub lease: Option<Lease>,
    /// The last slot that was ticked, in whatever reign; 0 when none is known.
    pub last_slot: Slot,
    /// Now.
    pub now: Millis,
}

/// A request to publish the snapshot of a slot.
#[derive(Debug, Clone)]
pub struct Tick {
    /// On whose authority.
    pub lease: Lease,
    /// The slot: must be the one in which the backplane's now lies.
    pub slot: Slot,
    /// Length of a slot.
    pub interval: Duration,
    /// How long a visitor counts after it was last seen.
    pub window: Duration,
}

/// What came of a [`Tick`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TickReply {
    /// The snapshot stands in the stream.
    Published {
        /// What was counted.
        snapshot: Snapshot,
        /// The reign under which it stands; larger than the lease's when the backplane's clock had jumped back.
        lease: Lease,
        /// Now.
        now: Millis,
    },
    /// The slot has its snapshot already.
    AlreadyDone {
        /// Now.
        now: Millis,
    },
    /// The slot is not the present one: the node's idea of the time is off.
    WrongSlot {
        /// Now.
        now: Millis,
    },
    /// The lease is not held by this node in this epoch any more.
    Fenced,
}

// ------------------------------------------------------------------------------------------ membership, cap

/// Whether a beat may make a node a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// Become a member (at start, and after being told [`Standing::Gone`] or seeing a new generation).
    Enter,
    /// Prolong the membership; one that has run out stays out.
    Stay,
}

/// Whether the others count this node's sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// They do, for one lease from now.
    Member,
    /// They do not: the lease ran out, or the data was lost. Enter again, and have every address admitted again.
    Gone,
}

/// What a member is told at each beat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeatReply {
    /// Whether the node is a member.
    pub standing: Standing,
    /// Names this data set; another one than last time means that data was lost or replaced.
    pub generation: String,
    /// Names the process that answered. Another one than last time (a restart, a promoted replica) may have the same
    /// data set but for the last that was written to it. Empty when it does not say.
    pub server: String,
    /// Members whose lease has not run out, the asking node included if it is one.
    pub members: u32,
    /// Now.
    pub now: Millis,
}

/// The keyed hash of a client address (IPv4, or an IPv6 /64): all that leaves the node of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressHash(pub [u8; 16]);

// Inv. PRIVATE: what is printed is the keyed hash, which only the holder of the secret can link to an address.
impl fmt::Display for AddressHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for AddressHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A request to let `wanted - held` more sockets of an address in.
#[derive(Debug, Clone, Copy)]
pub struct Admit {
    /// Who asks.
    pub node: NodeId,
    /// Whose sockets.
    pub address: AddressHash,
    /// How many the node holds or has been granted already.
    pub held: u32,
    /// How many it would hold: more than `held` for a new socket; equal to `held` to have them admitted again.
    pub wanted: u32,
    /// The most that all live members may hold together.
    pub cap: u32,
}

/// The most addresses of one [`Backplane::readmit`]: some 0.4 ms of Redis's one thread.
pub const READMIT_ADDRESSES_MAX: usize = 128;

/// What came of an [`Admit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdmitReply {
    /// All `wanted` are counted.
    Granted,
    /// Less than `wanted` fit beside what live members hold. Who asked for one more keeps what it holds, and that is
    /// counted, be it too many or not: a refusal never hides a socket that stays. Who asked about what it holds is told
    /// how many of those fit, has to close the others, and is counted with what fits.
    Refused {
        /// How many of the node's own are counted now.
        counted: u32,
    },
    /// The node is no member: it must enter again first. Nothing is counted.
    Gone,
}

// ---------------------------------------------------------------------------------------------- presence

/// What stands for a visitor in the backplane: an HMAC under the day's salt.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct VisitorHash(pub [u8; 16]);

impl fmt::Display for VisitorHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A day's visitor salt; random.
#[derive(Clone, PartialEq, Eq)]
pub struct Salt(pub [u8; 16]);

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Salt({})", self.fingerprint())
    }
}

impl Salt {
    /// Tells salts apart without telling them: four bytes of a hash, in hex.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        use sha2::{Digest, Sha256};
        Sha256::digest(self.0).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The salts of the backplane's present day and of the day before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Salts {
    /// Days since the Unix epoch, by the backplane's clock.
    pub day: u64,
    /// Of that day.
    pub today: Salt,
    /// Of the day before.
    pub yesterday: Salt,
    /// Now.
    pub now: Millis,
}

/// A visitor to be marked as seen now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Under today's salt.
    pub visitor: VisitorHash,
    /// Under the salt before (yesterday's, as a rule), under which it may still be counted: removed, so that nobody
    /// counts twice.
    pub alias: Option<VisitorHash>,
}

/// A request to mark visitors as seen now.
#[derive(Debug, Clone)]
pub struct Touch {
    /// The day whose salt was used, and that salt's fingerprint. Refused when either is not the present one.
    pub day: u64,
    /// See `day`.
    pub fingerprint: String,
    /// At most [`TOUCH_VISITORS_MAX`].
    pub seen: Vec<Seen>,
    /// Set by the last batch of a round in which a node refreshed all its sockets' visitors: proof that after an
    /// outage this node's visitors are known again.
    pub round_of: Option<NodeId>,
}

/// What came of a [`Touch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TouchReply {
    /// All are marked (or there was nothing to mark).
    Done,
    /// The day or the salt has turned: fetch [`Backplane::salts`] and repeat.
    Refused,
}

// ------------------------------------------------------------------------------------------------ the port

/// See the module's documentation for the rules that hold for all of it.
#[async_trait]
pub trait Backplane: Send + Sync + fmt::Debug + 'static {
    /// What it is, for logs and `/healthz`: `memory` or `redis`.
    fn name(&self) -> &'static str;

    /// Appends to the stream, at most once per node and number.
    async fn publish(&self, request: &Publish) -> Result<PublishReply>;

    /// The entries after `after`, oldest first, at most `count`; waits up to `block` for the first one. Empty when
    /// none came. One caller at a time: on Redis it has a connection of its own. When that is another one than at the last
    /// call, that is told by [`BackplaneError::Unreachable`], once: whoever answers now may be another server, or one that
    /// has lost something.
    async fn read_from(&self, after: StreamId, count: usize, block: Duration) -> Result<Vec<Entry>>;

    /// Says that reads are answered and yet the snapshots that must come do not: whatever answers may not be what
    /// everybody else writes to. The way of [`Self::read_from`] is made anew, by name and address, and a read that is
    /// under way fails. Returns at once.
    fn distrust_reads(&self);

    /// The newest `count` entries, oldest first. Its bound is that of each page in which a long past is read.
    async fn newest(&self, count: usize) -> Result<Vec<Entry>>;

    /// The `count` entries up to `last`, the one at `last` included if there is one; oldest first. Bounded as
    /// [`Self::newest`] is.
    async fn up_to(&self, last: StreamId, count: usize) -> Result<Vec<Entry>>;

    /// The entry at `id`, if it still stands there.
    async fn entry(&self, id: StreamId) -> Result<Option<Entry>>;

    /// The last snapshot that was published, for a node that starts.
    async fn snapshot(&self) -> Result<Option<Snapshot>>;

    /// Takes the ticker's lease if it is free, prolongs it if `node` holds it, else only looks. `lease` is how long
    /// it holds.
    async fn claim(&self, node: NodeId, lease: Duration) -> Result<ClaimReply>;

    /// Gives the lease back at once, if it is still the present one.
    async fn release(&self, lease: Lease) -> Result<()>;

    /// Counts the visitors and publishes the snapshot of a slot: at most one per slot, whatever races.
    async fn tick(&self, request: &Tick) -> Result<TickReply>;

    /// Prolongs the node's membership by `lease`, or makes it a member.
    async fn beat(&self, node: NodeId, join: Join, lease: Duration) -> Result<BeatReply>;

    /// Ends the membership: what the node held of any address no longer counts.
    async fn leave(&self, node: NodeId) -> Result<()>;

    /// Lets sockets of an address in, up to the cap over all live members.
    async fn admit(&self, request: &Admit) -> Result<AdmitReply>;

    /// Has all that the node holds of these addresses admitted again, at most [`READMIT_ADDRESSES_MAX`] in one step: as
    /// [`Self::admit`] of each, with `wanted` equal to `held`. Each has its own answer, in their order:
    /// [`BackplaneError::Corrupt`] where something else stands in an address's place.
    async fn readmit(&self, node: NodeId, cap: u32, held: &[(AddressHash, u32)]) -> Result<Vec<Result<AdmitReply>>>;

    /// States how many sockets of these addresses the node holds now; 0 forgets. Never a difference: a difference
    /// that is lost or repeated is wrong for ever. Returns those for which nothing is noted, because something else stands
    /// in their place; all others are.
    async fn set_counts(&self, node: NodeId, counts: &[(AddressHash, u32)]) -> Result<Vec<AddressHash>>;

    /// The salts of today and yesterday, made if they do not exist. `offer` are those that the node still holds of
    /// earlier (day, salt): they are taken over where the backplane has lost its own.
    async fn salts(&self, offer: &[(u64, Salt)]) -> Result<Salts>;

    /// Marks visitors as seen now.
    async fn touch(&self, request: &Touch) -> Result<TouchReply>;

    /// The secret that keys the address hashes: made once, never rotated. `held` is what the node goes by already: it
    /// is taken over where the backplane has lost its own, so that nodes which come later use the same.
    async fn secret(&self, held: Option<[u8; 32]>) -> Result<[u8; 32]>;

    /// Subscribes to the legacy channel; returns when the subscription holds. Dropping the receiver ends it. Bounded
    /// by [`LEGACY_QUEUE_MAX`].
    async fn legacy(&self) -> Result<mpsc::Receiver<Bytes>>;
}
