//! The backplane on Redis, for any number of nodes.
//!
//! Nodes hold opinions; Redis holds the truth. Everything that must be atomic or unique is one Lua script (see
//! [`scripts`]), which checks lease, epoch, slot, number or salt where the data is, by Redis's own clock. Rust here
//! only packs arguments and unpacks answers, so a call that comes late, twice, or from a node that was declared dead
//! does no harm, and a call whose answer was lost can be repeated.
//!
//! Commands share one connection, which pipelines by itself. The stream is read on a second one, since a blocking
//! read blocks its connection, and the legacy channel is heard on a third, made when asked for. Each is watched by
//! its supervisor (see [`connection`]).
//!
//! Deliberately absent: a pool (one connection carries far more than the nodes of one site ask for), reads from
//! replicas (they lag, and a lagging lease is a lie), and a cache (what is remembered is not the truth).

mod admissions;
mod connection;
mod members;
mod patience;
mod presence;
mod publish;
mod pubsub;
mod refusals;
mod reply;
mod scripts;
mod settings;
mod statements;
mod stream;
mod ticker;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fred::clients::{Client, WithOptions};
use fred::interfaces::{ClientLike, FredResult};
use fred::types::config::Options;
use fred::types::scripts::Script;
use fred::types::{Builder, Value};
use fred::util::redis_keyslot;
use shared::ids::{NodeId, StreamId};
use shared::keys::Keys;
use shared::message::Snapshot;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::admissions::Admissions;
use self::connection::{COMMAND_TIMEOUT, Link, NO_TIMER, Questions, Role, ask_options};
use self::patience::{Lateness, patiently};
use self::refusals::Refusals;
use self::reply::{CORRUPT_ADDRESS, Reply};
use self::scripts::Scripts;
pub use self::settings::{RedisSettings, SettingsError};
use self::statements::Statements;
use super::{
    AddressHash, Admit, AdmitReply, Backplane, BackplaneError, BeatReply, ClaimReply, Entry, Join, Lease, MEMBER_LEASE,
    Publish, PublishReply, Result, Salt, Salts, Tick, TickReply, Touch, TouchReply,
};
use crate::metrics::{BackplaneFailure, Metrics};

/// The backplane on Redis.
#[derive(Debug)]
pub struct RedisBackplane {
    keys: Keys,
    scripts: Scripts,
    commands: Link<Client>,
    reader: Link<Client>,
    /// Which of its connections the last read went through; 0 before the first.
    read_through: AtomicU64,
    /// When reads found that this process was late.
    lateness: Lateness,
    /// How commands are sent.
    options: Options,
    /// How long this node's membership lasts: what [`scripts`] prolong others by when Redis itself was away.
    member_lease_ms: AtomicU64,
    admissions: Admissions,
    statements: Statements,
    /// Apart from the statements: a beat waits for none of them.
    beats: Statements,
    /// Builds the connection of a subscription.
    builder: Builder,
    refusals: Refusals,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    end: CancellationToken,
    // Ends the tasks of a backplane that was dropped, not closed.
    _end: DropGuard,
}

impl RedisBackplane {
    /// Starts connecting in the background and returns at once: Redis may come later. Until then calls fail with
    /// [`BackplaneError::Unreachable`]. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`SettingsError`] when the settings cannot lead to any Redis.
    pub fn connect(settings: &RedisSettings, node: NodeId, metrics: Arc<Metrics>) -> Result<Arc<Self>, SettingsError> {
        let (builder, tries) = settings.builder()?;
        let build = || builder.build().map_err(|_| SettingsError::Url("no client can be made of it"));
        let slot = redis_keyslot(settings.keys.events().as_bytes());
        let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
        let questions = || Questions { options: ask_options(slot), schema_key: settings.keys.schema() };
        let open = |client, role| Link::open(client, role, questions(), Arc::clone(&metrics), &tasks, &end);
        let (commands, reader) = (open(build()?, Role::Commands), open(build()?, Role::Reads));
        tracing::info!(%node, prefix = settings.keys.prefix(), "backplane is redis");
        let (admissions, asked) = Admissions::channel();
        let backplane = Arc::new(Self {
            keys: settings.keys.clone(),
            scripts: Scripts::new(),
            commands,
            reader,
            read_through: AtomicU64::new(0),
            lateness: Lateness::default(),
            options: Options {
                timeout: Some(NO_TIMER),
                max_attempts: Some(tries),
                // Nothing is queued while there is no connection, to be carried out when nobody wants it any more.
                fail_fast: true,
                ..Options::default()
            },
            member_lease_ms: AtomicU64::new(millis(MEMBER_LEASE)),
            admissions,
            statements: Statements::default(),
            beats: Statements::default(),
            builder,
            refusals: Refusals::default(),
            metrics,
            tasks,
            _end: end.clone().drop_guard(),
            end,
        });
        let (end, asking) = (backplane.end.clone(), admissions::ask_all(Arc::downgrade(&backplane), asked));
        backplane.tasks.spawn(async move {
            tokio::select! {
                () = end.cancelled() => {}
                () = asking => {}
            }
        });
        Ok(backplane)
    }

    /// Says goodbye to Redis and waits until every task has ended: at most half a second. Calls fail from then on.
    pub async fn close(&self) {
        self.end.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Runs a script on the connection for commands.
    async fn run(&self, script: &Script, keys: Vec<String>, arguments: Vec<Value>) -> Result<Reply> {
        let run = async {
            let client = self.commands.ready().await?;
            let reply = scripts::run(client, &self.options, script, keys, arguments).await;
            reply.map(Reply::new).map_err(|error| self.refusals.meaning(&error))
        };
        patiently(COMMAND_TIMEOUT, run).await.unwrap_or(Err(BackplaneError::Timeout))
    }

    /// Runs a command on the connection for commands.
    async fn command<T, F: Future<Output = FredResult<T>>>(
        &self,
        command: impl FnOnce(WithOptions<Client>) -> F,
    ) -> Result<T> {
        let run = async {
            let client = self.commands.ready().await?;
            command(client.with_options(&self.options)).await.map_err(|error| self.refusals.meaning(&error))
        };
        patiently(COMMAND_TIMEOUT, run).await.unwrap_or(Err(BackplaneError::Timeout))
    }

    /// Counts an address in whose place something else stands, where the call as a whole has an answer, and tells the
    /// operator of the kind of key, never of the address (Inv. PRIVATE).
    fn met_corrupt_address(&self) {
        self.metrics.backplane_failures.inc(BackplaneFailure::Corrupt);
        self.refusals.mention(CORRUPT_ADDRESS);
    }

    fn member_lease(&self) -> Value {
        number(self.member_lease_ms.load(Ordering::Relaxed))
    }

    /// Counts a failure.
    fn counted<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|error| self.metrics.backplane_failures.inc(BackplaneFailure::from(error)))
    }
}

/// A number as scripts take it.
fn number(number: impl Into<u64>) -> Value {
    Value::from(number.into().to_string())
}

/// A text as scripts take it.
fn text(text: &(impl ToString + ?Sized)) -> Value {
    Value::from(text.to_string())
}

/// A duration as scripts take it.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[async_trait]
impl Backplane for RedisBackplane {
    fn name(&self) -> &'static str {
        "redis"
    }

    async fn publish(&self, request: &Publish) -> Result<PublishReply> {
        self.counted(self.append(request).await)
    }

    async fn read_from(&self, after: StreamId, count: usize, block: Duration) -> Result<Vec<Entry>> {
        self.counted(self.read_stream(after, count, block).await)
    }

    fn distrust_reads(&self) {
        if self.lateness.excuses() {
            tracing::debug!("what is missing may not have been read in time: this process was late");
        } else {
            self.reader.suspect();
        }
    }

    async fn newest(&self, count: usize) -> Result<Vec<Entry>> {
        self.counted(self.entries_up_to("+".to_owned(), count).await)
    }

    async fn up_to(&self, last: StreamId, count: usize) -> Result<Vec<Entry>> {
        self.counted(self.entries_up_to(last.to_string(), count).await)
    }

    async fn entry(&self, id: StreamId) -> Result<Option<Entry>> {
        self.counted(self.entry_at(id).await)
    }

    async fn snapshot(&self) -> Result<Option<Snapshot>> {
        self.counted(self.last_snapshot().await)
    }

    async fn claim(&self, node: NodeId, lease: Duration) -> Result<ClaimReply> {
        self.counted(self.claim_ticker(node, lease).await)
    }

    async fn release(&self, lease: Lease) -> Result<()> {
        self.counted(self.release_ticker(lease).await)
    }

    async fn tick(&self, request: &Tick) -> Result<TickReply> {
        self.counted(self.tick_slot(request).await)
    }

    async fn beat(&self, node: NodeId, join: Join, lease: Duration) -> Result<BeatReply> {
        self.counted(self.beat_member(node, join, lease).await)
    }

    async fn leave(&self, node: NodeId) -> Result<()> {
        self.counted(self.leave_members(node).await)
    }

    async fn admit(&self, request: &Admit) -> Result<AdmitReply> {
        self.counted(self.admissions.ask(*request).await)
    }

    async fn readmit(&self, node: NodeId, cap: u32, held: &[(AddressHash, u32)]) -> Result<Vec<Result<AdmitReply>>> {
        let replies = self.counted(self.readmit_together(node, cap, held).await)?;
        Ok(replies.into_iter().map(|reply| self.counted(reply)).collect())
    }

    async fn set_counts(&self, node: NodeId, counts: &[(AddressHash, u32)]) -> Result<Vec<AddressHash>> {
        self.counted(self.write_counts(node, counts).await)
    }

    async fn salts(&self, offer: &[(u64, Salt)]) -> Result<Salts> {
        self.counted(self.day_salts(offer).await)
    }

    async fn touch(&self, request: &Touch) -> Result<TouchReply> {
        self.counted(self.touch_visitors(request).await)
    }

    async fn secret(&self, held: Option<[u8; 32]>) -> Result<[u8; 32]> {
        self.counted(self.address_secret(held).await)
    }

    async fn legacy(&self) -> Result<mpsc::Receiver<Bytes>> {
        self.counted(self.subscribe_legacy().await)
    }
}
